"""A pairwise head: the next listened track above the skipped ones, by a margin."""

from typing import get_args

from torch import Tensor

from skipcl_lightning._checks import check_choice, check_number
from skipcl_lightning._settings import records_settings
from skipcl_lightning.batch import SessionBatch
from skipcl_lightning.functional.contrast import Anchors, SessionNegatives, SkipWeights
from skipcl_lightning.functional.skip_margin import MarginLoss, skip_margin
from skipcl_lightning.heads.session_head import SessionHead

__all__ = ["SkipMargin"]


class SkipMargin(SessionHead):
    """Scores the next listened track above each skipped one, pair by pair.

    The formula: `skipcl_lightning.functional.skip_margin`. The scores are those of the ranking, inner
    products, not cosines.

    Args:
        weight: λ ≥ 0, what the loss is multiplied by in the sum; 0.1 by the study in the README.
        loss: `bpr`, or `hinge` with a `margin`.
        margin: m > 0, in units of the score; `bpr` has no use for it.
        anchors: `listened` positions, or `all` real ones.
        negatives: The skips `passed` over on the way to the next listened track, those of the `past`
            before it, or all of the `session`.
        skip_weights: `uniform`, or by the `strength` of the skip.
        dislike_weight: What the weight of a disliked track is multiplied by, above 0.
        like_weight: How much an anchor counts whose positive is liked, above 0.

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is out of range or not among its choices, or has no use.

    Reference:
        Rendle et al.: BPR, UAI 2009, arXiv 1205.2618; Weston, Bengio, Usunier: WSABIE, IJCAI 2011.

    Examples:
        >>> SkipMargin(weight=0.3, loss="hinge", margin=0.5).settings["margin"]
        0.5
    """

    @records_settings
    def __init__(
        self,
        *,
        weight: float = 0.1,
        loss: MarginLoss = "bpr",
        margin: float | None = None,
        anchors: Anchors = "listened",
        negatives: SessionNegatives = "passed",
        skip_weights: SkipWeights = "uniform",
        dislike_weight: float = 1.0,
        like_weight: float = 1.0,
    ) -> None:
        super().__init__(
            weight=weight,
            anchors=anchors,
            negatives=negatives,
            skip_weights=skip_weights,
            dislike_weight=dislike_weight,
            like_weight=like_weight,
        )
        check_choice("loss", loss, get_args(MarginLoss))
        if margin is not None:
            check_number("margin", margin, minimum=0, open_minimum=True)
            if loss == "bpr":
                raise ValueError(
                    f"`margin` must be None for 'bpr', got {margin!r}. Only the hinge keeps a distance."
                )
        self.loss: MarginLoss = loss
        self.margin = 1.0 if margin is None else margin

    def terms(
        self,
        query: Tensor,
        keys: Tensor,
        batch: SessionBatch,
        item_embeddings: Tensor | None,  # noqa: ARG002 - the heads' common signature
    ) -> tuple[Tensor, Tensor]:
        """[B, L] losses of the anchors and [B, L] what each counts in the mean; 0 where there is none."""
        return skip_margin(query, keys, batch.items, self.contrast(batch), loss=self.loss, margin=self.margin)
