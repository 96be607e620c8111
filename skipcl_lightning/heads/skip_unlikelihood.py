"""Head that takes probability away from the skipped items."""

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
from skipcl_lightning.functional.skip_losses.score_losses import skip_unlikelihood
from skipcl_lightning.heads.session_head import SessionHead

__all__ = ["SkipUnlikelihood"]


class SkipUnlikelihood(SessionHead):
    """Head with the loss `skip_unlikelihood`: -log(1 - p) of the skipped items.

    Args:
        weight: λ ≥ 0, the factor of the loss in the sum.
        num_samples: K, items drawn uniformly in each step to estimate the sum over the catalogue; None for
            the exact sum, which costs a second full softmax.
        contrast: Keyword arguments of `ContrastSettings`: `anchors`, `negatives` (`passed` by default, not
            `batch`), `skip_weights`, `dislike_weight`, `like_weight`.

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is out of range or not among its choices.

    Reference:
        See `skip_unlikelihood`.

    Examples:
        >>> SkipUnlikelihood(weight=0.3).uses_item_table
        True
    """

    uses_item_table = True

    @records_settings_and(contrast=ContrastSettings(negatives="passed"))
    def __init__(
        self, *, weight: float = 0.1, num_samples: int | None = None, **contrast: Unpack[ContrastOptions]
    ) -> None:
        super().__init__(weight=weight, contrast=settings_within_session(contrast))
        if num_samples is not None:
            check_integer("num_samples", num_samples)
        self.num_samples = num_samples

    def forward(
        self, query: Tensor, keys: Tensor, sessions: Sessions, item_embeddings: Tensor | None = None
    ) -> Tensor:
        """Return the mean loss over the anchors; see `SessionHead.forward`."""
        samples = None
        if self.num_samples is not None:
            num_items = len(require_table(item_embeddings, "probabilities")) - 1
            samples = sample_items(self.num_samples, num_items, device=query.device)
        return skip_unlikelihood(
            query, keys, sessions, item_embeddings, samples=samples, **self.contrast.options
        )
