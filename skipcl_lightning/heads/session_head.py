"""What all skip heads share: a weight, and the anchors that a batch allows."""

from typing import Any, get_args

from torch import Tensor, nn

from skipcl_lightning._checks import check_choice, check_number
from skipcl_lightning.batch import SessionBatch
from skipcl_lightning.functional.cloze import cloze_positives
from skipcl_lightning.functional.contrast import (
    Anchors,
    Contrast,
    SessionNegatives,
    SkipWeights,
    session_contrast,
    weighted_mean,
)

__all__ = ["SessionHead", "WeightedHead", "require_table"]


class WeightedHead(nn.Module):
    """A loss beside the next-item loss, with a weight; `SkipLossWarmup` lets it rise over the first steps.

    Args:
        weight: λ ≥ 0, what the loss is multiplied by in the sum.

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is out of range.
    """

    # Whether `forward` is to be given the item table as well.
    uses_item_table = False

    def __init__(self, *, weight: float) -> None:
        super().__init__()
        check_number("weight", weight, minimum=0)
        self.weight = weight


class SessionHead(WeightedHead):
    """A head that compares the next listened track with skipped ones, at each anchor of a session.

    Args:
        weight: λ ≥ 0.
        anchors: `listened` positions, or `all` real ones.
        negatives: Which skips: `session`, `past` or `passed` (`session_contrast` says what they are).
        skip_weights: `uniform`, or by the `strength` of the skip.
        dislike_weight: What the weight of a disliked track is multiplied by, above 0.
        like_weight: How much an anchor counts whose positive is liked, above 0.

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is out of range or not among its choices.
    """

    def __init__(
        self,
        *,
        weight: float,
        anchors: Anchors,
        negatives: SessionNegatives,
        skip_weights: SkipWeights,
        dislike_weight: float,
        like_weight: float,
    ) -> None:
        super().__init__(weight=weight)
        check_choice("anchors", anchors, get_args(Anchors))
        check_choice("negatives", negatives, get_args(SessionNegatives))
        check_choice("skip_weights", skip_weights, get_args(SkipWeights))
        check_number("dislike_weight", dislike_weight, minimum=0, open_minimum=True)
        check_number("like_weight", like_weight, minimum=0, open_minimum=True)
        self.contrast_settings: dict[str, Any] = {
            "anchors": anchors,
            "negatives": negatives,
            "skip_weights": skip_weights,
            "dislike_weight": dislike_weight,
            "like_weight": like_weight,
        }

    def forward(
        self, query: Tensor, keys: Tensor, batch: SessionBatch, item_embeddings: Tensor | None = None
    ) -> Tensor:
        """The mean loss over the batch's anchors.

        Args:
            query: [B, L, D] floating point, the backbone's output.
            keys: [B, L, D] floating point, the embeddings of the session's items.
            batch: Their items and feedback.
            item_embeddings: [V + 1, D] floating point, the item table; row 0 is padding. Needed by heads
                whose `uses_item_table` is True.

        Returns:
            A scalar; exactly 0, with a zero gradient, without anchors.

        Raises:
            ValueError: The batch hides tracks, and a setting has no meaning then; or the table is missing.
        """
        losses, weights = self.terms(query, keys, batch, item_embeddings)
        return weighted_mean(losses, weights)

    def terms(
        self, query: Tensor, keys: Tensor, batch: SessionBatch, item_embeddings: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """[B, L] losses of the anchors and [B, L] what each counts in the mean; 0 where there is none."""
        raise NotImplementedError

    def contrast(self, batch: SessionBatch) -> Contrast:
        """What is compared in a batch.

        Args:
            batch: B sessions.

        Returns:
            Anchors, positives and negatives.
        """
        return session_contrast(
            batch.items,
            batch.feedback,
            explicit_feedback=batch.explicit_feedback,
            skip_threshold=batch.skip_threshold,
            positive_position=self.positive_position(batch),
            **self.contrast_settings,
        )

    def positive_position(self, batch: SessionBatch) -> Tensor | None:
        """Where the positives stand if tracks are hidden from a bidirectional backbone, else None.

        Args:
            batch: B sessions.

        Returns:
            [B, L] int64, or None for the next listened tracks.
        """
        if batch.cloze_mask is None:
            return None
        self.check_cloze()
        return cloze_positives(batch.items, batch.listened_mask, batch.cloze_mask)

    def check_cloze(self) -> None:
        """Raise unless the settings have a meaning where tracks are hidden from a bidirectional backbone.

        A head of your own has such a method if it takes its anchors from `batch.cloze_mask`:
        `SkipCLModule` joins no other with a bidirectional backbone, whose output has seen all the rest.

        Raises:
            ValueError: A setting has none.
        """
        if self.contrast_settings["anchors"] == "all":
            raise ValueError(
                "`anchors` must be 'listened' for a bidirectional backbone, got 'all'. Only hidden tracks "
                "that were listened to can be anchors."
            )


def require_table(item_embeddings: Tensor | None, reason: str) -> Tensor:
    """The item table, or an error that says what needs it.

    Args:
        item_embeddings: [V + 1, D], or None.
        reason: What needs it.

    Returns:
        The table.

    Raises:
        ValueError: It is None.

    Examples:
        >>> require_table(None, "a memory bank")
        Traceback (most recent call last):
            ...
        ValueError: `item_embeddings` must be given for a memory bank, got None. Pass the item table.
    """
    if item_embeddings is None:
        raise ValueError(f"`item_embeddings` must be given for {reason}, got None. Pass the item table.")
    return item_embeddings
