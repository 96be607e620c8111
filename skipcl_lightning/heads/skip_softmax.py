"""A head that puts the skipped tracks among the candidates of a next-item softmax."""

from torch import Tensor

from skipcl_lightning._checks import check_integer
from skipcl_lightning._settings import records_settings
from skipcl_lightning.batch import SessionBatch
from skipcl_lightning.functional.contrast import Anchors, SessionNegatives, SkipWeights
from skipcl_lightning.functional.look_up import look_up
from skipcl_lightning.functional.skip_softmax import skip_softmax
from skipcl_lightning.functional.softmax import sample_items
from skipcl_lightning.heads.session_head import SessionHead, require_table

__all__ = ["SkipSoftmax"]


class SkipSoftmax(SessionHead):
    """Cross-entropy of the next listened track against the skips on the way to it, and sampled items.

    The formula: `skipcl_lightning.functional.skip_softmax`. Where `SkipInfoNCE` contrasts cosines, this
    one contrasts the scores of the ranking.

    Args:
        weight: λ ≥ 0, what the loss is multiplied by in the sum; 0.1 by the study in the README.
        num_samples: K, items drawn uniformly in each step and shared by the batch, no more than
            the catalogue has, less one; 0 for skips alone.
        anchors: `listened` positions, or `all` real ones.
        negatives: The skips `passed` over on the way to the next listened track, those of the `past`
            before it, or all of the `session`.
        skip_weights: `uniform`, or by the `strength` of the skip.
        dislike_weight: What the weight of a disliked track is multiplied by, above 0.
        like_weight: How much an anchor counts whose positive is liked, above 0.

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is out of range or not among its choices.

    Reference:
        As for the function.

    Examples:
        >>> SkipSoftmax(num_samples=0).uses_item_table
        False
    """

    sparse_gradients = False

    @records_settings
    def __init__(
        self,
        *,
        weight: float = 0.1,
        num_samples: int = 256,
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
        check_integer("num_samples", num_samples, minimum=0)
        self.num_samples = num_samples
        self.uses_item_table = num_samples > 0

    def terms(
        self, query: Tensor, keys: Tensor, batch: SessionBatch, item_embeddings: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """[B, L] losses of the anchors and [B, L] what each counts in the mean; 0 where there is none."""
        samples = sample_keys = None
        if self.num_samples:
            table = require_table(item_embeddings, "sampled items")
            samples = sample_items(min(self.num_samples, len(table) - 2), len(table) - 1, device=query.device)
            sample_keys = look_up(samples, table, sparse=self.sparse_gradients)
        return skip_softmax(
            query, keys, batch.items, self.contrast(batch), samples=samples, sample_keys=sample_keys
        )
