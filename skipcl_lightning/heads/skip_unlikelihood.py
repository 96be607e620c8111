"""A head that takes probability away from the skipped tracks."""

from torch import Tensor

from skipcl_lightning._checks import check_integer
from skipcl_lightning._settings import records_settings
from skipcl_lightning.batch import SessionBatch
from skipcl_lightning.functional.contrast import Anchors, SessionNegatives, SkipWeights
from skipcl_lightning.functional.skip_unlikelihood import skip_unlikelihood
from skipcl_lightning.functional.softmax import sample_items
from skipcl_lightning.heads.session_head import SessionHead, require_table

__all__ = ["SkipUnlikelihood"]


class SkipUnlikelihood(SessionHead):
    """-log(1 - p) of the skipped tracks under the next-item softmax.

    The formula: `skipcl_lightning.functional.skip_unlikelihood`.

    Args:
        weight: λ ≥ 0, what the loss is multiplied by in the sum; 0.1 by the study in the README.
        num_samples: K, items drawn uniformly in each step to estimate the sum over the catalogue; None sums
            all of it, at the cost of a second full softmax.
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
        Welleck et al.: Neural Text Generation with Unlikelihood Training, ICLR 2020, arXiv 1908.04319; for
        skips, arXiv 2308.12256.

    Examples:
        >>> SkipUnlikelihood(weight=0.3).uses_item_table
        True
    """

    uses_item_table = True

    @records_settings
    def __init__(
        self,
        *,
        weight: float = 0.1,
        num_samples: int | None = None,
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
        if num_samples is not None:
            check_integer("num_samples", num_samples)
        self.num_samples = num_samples

    def terms(
        self, query: Tensor, keys: Tensor, batch: SessionBatch, item_embeddings: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """[B, L] losses of the anchors and [B, L] what each counts in the mean; 0 where there is none."""
        table = require_table(item_embeddings, "probabilities")
        samples = None
        if self.num_samples is not None:
            samples = sample_items(self.num_samples, len(table) - 1, device=query.device)
        return skip_unlikelihood(query, keys, batch.items, self.contrast(batch), table, samples=samples)
