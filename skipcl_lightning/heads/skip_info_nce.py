"""The skip-contrastive head."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from skipcl_lightning._checks import check_choice, check_integer, check_number
from skipcl_lightning._settings import records_settings
from skipcl_lightning.batch import SessionBatch
from skipcl_lightning.functional.cloze import cloze_positives
from skipcl_lightning.functional.skip_info_nce import Anchors, Negatives, SkipWeights, skip_info_nce

__all__ = ["Query", "SkipInfoNCE"]

Query = Literal["session", "item"]


class SkipInfoNCE(nn.Module):
    """Pulls each position towards the next listened track and pushes it from the skipped ones.

    The loss that ``forward`` yields is not weighted: whoever adds it to another asks ``weight_at``.

    Where the batch hides tracks from a bidirectional backbone, the anchors are hidden positions only, each
    pulled to its own hidden track; ``query="item"`` and ``anchors="all"`` mean nothing there.

    Args:
        weight: λ ≥ 0, what the loss is multiplied by in the sum.
        temperature: τ > 0; where it starts, if it is learned.
        learn_temperature: Learn log τ along with the model.
        query: What is contrasted at position t: the ``session`` as known after t tracks (z_t), or the
            ``item`` at t (e(i_t)); the predecessor paper tries both.
        anchors: ``listened`` positions, or ``all`` real ones.
        negatives: Skips of the ``session``, of its ``past``, or of the whole ``batch``.
        skip_weights: ``uniform``, or by the ``strength`` of the skip.
        warmup_steps: Optimizer steps over which λ rises linearly from 0; 0 for none.

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is out of range or not among its choices.

    Reference:
        Seshadri, Shashaani, Knees, RecSys 2024, arXiv 2409.07367; for ``query``, Seshadri and Knees:
        Leveraging Negative Signals with Self-Attention for Sequential Music Recommendation, MuRS 2023,
        arXiv 2309.11623.

    Example:
        >>> head = SkipInfoNCE(weight=0.5, warmup_steps=10)
        >>> head.weight_at(0), head.weight_at(5), head.weight_at(1000)
        (0.0, 0.25, 0.5)
    """

    @records_settings
    def __init__(
        self,
        *,
        weight: float = 1.0,
        temperature: float = 0.1,
        learn_temperature: bool = False,
        query: Query = "session",
        anchors: Anchors = "listened",
        negatives: Negatives = "session",
        skip_weights: SkipWeights = "uniform",
        warmup_steps: int = 0,
    ) -> None:
        super().__init__()
        check_number("weight", weight, minimum=0)
        check_number("temperature", temperature, minimum=0, open_minimum=True)
        check_choice("query", query, get_args(Query))
        check_choice("anchors", anchors, get_args(Anchors))
        check_choice("negatives", negatives, get_args(Negatives))
        check_choice("skip_weights", skip_weights, get_args(SkipWeights))
        check_integer("warmup_steps", warmup_steps, minimum=0)
        self.weight = weight
        self.query: Query = query
        self.anchors: Anchors = anchors
        self.negatives: Negatives = negatives
        self.skip_weights: SkipWeights = skip_weights
        self.warmup_steps = warmup_steps
        self.log_temperature: Tensor
        if learn_temperature:
            self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))
        else:
            self.register_buffer("log_temperature", torch.tensor(math.log(temperature)))

    @property
    def temperature(self) -> Tensor:
        """τ, a scalar; positive whatever the optimizer does, since its logarithm is what is learned."""
        return self.log_temperature.exp()

    def weight_at(self, step: int) -> float:
        """λ at an optimizer step.

        Args:
            step: Optimizer steps done so far, at least 0.

        Returns:
            ``weight``, or the part of it that the warm-up has reached.
        """
        if step >= self.warmup_steps:
            return self.weight
        return self.weight * step / self.warmup_steps

    def forward(self, query: Tensor, keys: Tensor, batch: SessionBatch) -> Tensor:
        """The mean contrastive loss over the batch's anchors.

        Args:
            query: [B, L, D] floating point, the backbone's output.
            keys: [B, L, D] floating point, the embeddings of the session's items.
            batch: Their items and feedback.

        Returns:
            A scalar; exactly 0, with a zero gradient, without anchors.

        Raises:
            ValueError: The batch hides tracks, and a setting has no meaning then.
        """
        positive_position = None
        if batch.cloze_mask is not None:
            self.check_cloze()
            positive_position = cloze_positives(batch.items, batch.listened_mask, batch.cloze_mask)
        return skip_info_nce(
            keys if self.query == "item" else query,
            keys,
            batch.items,
            batch.feedback,
            anchors=self.anchors,
            negatives=self.negatives,
            skip_weights=self.skip_weights,
            temperature=self.temperature,
            skip_threshold=batch.skip_threshold,
            positive_position=positive_position,
        )

    def check_cloze(self) -> None:
        """Raise unless the settings have a meaning where tracks are hidden from a bidirectional backbone.

        A head of your own has such a method if it takes its anchors from ``batch.cloze_mask``:
        ``SkipCLModule`` joins no other with a bidirectional backbone, whose output has seen all the rest.

        Raises:
            ValueError: A setting has none.
        """
        if self.query == "item":
            raise ValueError(
                "`query` must be 'session' for a bidirectional backbone, got 'item'. The item at a hidden "
                "position is the very one that it is pulled to."
            )
        if self.anchors == "all":
            raise ValueError(
                "`anchors` must be 'listened' for a bidirectional backbone, got 'all'. Only hidden tracks "
                "that were listened to can be anchors."
            )
