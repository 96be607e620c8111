"""Head with the skipped items among the candidates of a next-item softmax."""

from typing import Unpack

from torch import Tensor

from skipcl_lightning._checks import check_integer
from skipcl_lightning._settings import records_settings_and
from skipcl_lightning.batch import Sessions
from skipcl_lightning.functional.next_item.look_up import require_table
from skipcl_lightning.functional.next_item.sampled_softmax import sample_items
from skipcl_lightning.functional.skip_losses.contrast import (
    ContrastOptions,
    ContrastSettings,
    settings_within_session,
)
from skipcl_lightning.functional.skip_losses.score_losses import skip_softmax
from skipcl_lightning.heads.session_head import SessionHead

__all__ = ["SkipSoftmax"]


class SkipSoftmax(SessionHead):
    """Head with the loss `skip_softmax`: cross-entropy against skipped items and sampled items.

    `SkipInfoNCE` compares cosines; this head compares the scores of the ranking.

    Args:
        weight: λ ≥ 0, the factor of the loss in the sum.
        num_samples: K, items drawn uniformly in each step and shared by the batch, below the catalogue's
            size; 0 for skipped items only.
        contrast: Keyword arguments of `ContrastSettings`: `anchors`, `negatives` (`passed` by default, not
            `batch`), `skip_weights`, `dislike_weight`, `like_weight`.

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is out of range or not among its choices.

    Reference:
        See `skip_softmax`.

    Examples:
        >>> SkipSoftmax(num_samples=0).uses_item_table
        False
    """

    sparse_gradients = False

    @records_settings_and(contrast=ContrastSettings(negatives="passed"))
    def __init__(
        self, *, weight: float = 0.1, num_samples: int = 256, **contrast: Unpack[ContrastOptions]
    ) -> None:
        super().__init__(weight=weight, contrast=settings_within_session(contrast))
        check_integer("num_samples", num_samples, minimum=0)
        self.num_samples = num_samples
        self.uses_item_table = num_samples > 0

    def forward(
        self, query: Tensor, keys: Tensor, sessions: Sessions, item_embeddings: Tensor | None = None
    ) -> Tensor:
        """Return the mean loss over the anchors; see `SessionHead.forward`."""
        samples = None
        if self.num_samples:
            num_items = len(require_table(item_embeddings, "sampled items")) - 1
            samples = sample_items(min(self.num_samples, num_items - 1), num_items, device=query.device)
        return skip_softmax(
            query,
            keys,
            sessions,
            item_embeddings,
            samples=samples,
            sparse_gradients=self.sparse_gradients,
            **self.contrast.options,
        )
