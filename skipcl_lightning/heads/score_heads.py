"""Skip heads that compare the scores of the ranking: margin, softmax and unlikelihood."""

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
from skipcl_lightning.functional.skip_losses.score_losses import (
    MarginLoss,
    check_margin,
    skip_margin,
    skip_softmax,
    skip_unlikelihood,
)
from skipcl_lightning.heads.session_head import SessionHead

__all__ = ["SkipMargin", "SkipSoftmax", "SkipUnlikelihood"]


class SkipMargin(SessionHead):
    """Head with the loss `skip_margin`, which compares scores (inner products) pair by pair.

    Args:
        weight: λ ≥ 0, the factor of the loss in the sum.
        loss: `bpr`, or `hinge` with a `margin`.
        margin: m > 0 of the hinge, in units of the score; None for 1.
        contrast: Keyword arguments of `ContrastSettings`: `anchors`, `negatives` (`passed` by default, not
            `batch`), `skip_weights`, `dislike_weight`, `like_weight`.

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is out of range, not among its choices, or has no effect.

    Reference:
        Rendle et al.: BPR, UAI 2009, arXiv 1205.2618; Weston, Bengio, Usunier: WSABIE, IJCAI 2011.

    Examples:
        >>> SkipMargin(weight=0.3, loss="hinge", margin=0.5).settings["margin"]
        0.5
    """

    @records_settings_and(contrast=ContrastSettings(negatives="passed"))
    def __init__(
        self,
        *,
        weight: float = 0.1,
        loss: MarginLoss = "bpr",
        margin: float | None = None,
        **contrast: Unpack[ContrastOptions],
    ) -> None:
        super().__init__(weight=weight, contrast=settings_within_session(contrast))
        check_margin(loss, margin)
        self.loss: MarginLoss = loss
        self.margin = margin

    def forward(
        self,
        query: Tensor,
        keys: Tensor,
        sessions: Sessions,
        item_embeddings: Tensor | None = None,  # noqa: ARG002 - the heads' common signature
    ) -> Tensor:
        """Return the mean loss over the anchors; see `SessionHead.forward`."""
        return skip_margin(query, keys, sessions, loss=self.loss, margin=self.margin, **self.contrast.options)


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
