"""Pairwise head: the next listened item should score above the skipped items."""

from typing import Unpack

from torch import Tensor

from skipcl_lightning._settings import records_settings_and
from skipcl_lightning.batch import Sessions
from skipcl_lightning.functional.skip_losses.contrast import (
    ContrastOptions,
    ContrastSettings,
    settings_within_session,
)
from skipcl_lightning.functional.skip_losses.score_losses import MarginLoss, check_margin, skip_margin
from skipcl_lightning.heads.session_head import SessionHead

__all__ = ["SkipMargin"]


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
