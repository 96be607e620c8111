"""Several heads as one, with given or learned weights."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from skipcl_lightning._checks import check_choice
from skipcl_lightning._settings import Part, build_part, describe_part
from skipcl_lightning.batch import Sessions
from skipcl_lightning.heads.session_head import extend_part
from skipcl_lightning.heads.skip_prediction import SkipPrediction

__all__ = ["CombinedHead", "Weighting", "find_skip_prediction"]

Weighting = Literal["fixed", "uncertainty"]


class CombinedHead(nn.Module):
    r"""Weighted sum of several heads.

    With `fixed` weighting the sum is Σ λ_h · L_h, with each head's own `weight`. With `uncertainty` each head
    also gets a learned s_h, the logarithm of a variance, and the sum is

    $$
    \sum_h \lambda_h \exp(-s_h) L_h + s_h / 2
    $$

    so a loss that stays large gets a smaller weight. The next-item loss keeps the weight 1.

    Args:
        heads: At least two heads, or their names and settings.
        weighting: `fixed`, or learned by `uncertainty`.

    Raises:
        TypeError: A head is neither a module nor a name with settings.
        ValueError: There are fewer than two, or the weighting is unknown.

    Reference:
        Kendall, Gal, Cipolla: Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and
        Semantics, CVPR 2018, arXiv 1705.07115, equation 7.

    Examples:
        >>> from skipcl_lightning.heads import SkipInfoNCE
        >>> head = CombinedHead([SkipInfoNCE(weight=0.3), SkipInfoNCE(weight=0.1, negatives="batch")])
        >>> [part.weight for part in head.heads]
        [0.3, 0.1]
    """

    uses_item_table = True

    def __init__(self, heads: Sequence[Part], *, weighting: Weighting = "fixed") -> None:
        super().__init__()
        check_choice("weighting", weighting, get_args(Weighting))
        if len(heads) < 2:
            raise ValueError(
                f"`heads` must hold at least two heads, got {len(heads)}. A single one needs no sum."
            )
        self.heads = nn.ModuleList(build_part("heads", head, _registry()) for head in heads)
        self.weighting: Weighting = weighting
        self.log_variance = nn.Parameter(torch.zeros(len(heads))) if weighting == "uncertainty" else None
        # The plain values that a checkpoint keeps.
        parts = [describe_part(head, _registry()) for head in self.heads]
        self.settings: dict[str, Any] = {"heads": parts, "weighting": weighting}

    def check_cloze(self) -> None:
        """Check that every head is defined for a bidirectional backbone.

        Raises:
            ValueError: `check_cloze` of a head refuses a setting, or a head has no such method.
        """
        for head in self.heads:
            check = getattr(head, "check_cloze", None)
            if check is None:
                raise ValueError(
                    f"`heads` must have a method `check_cloze` beside a bidirectional backbone, got "
                    f"{type(head).__name__} without. Take anchors only where `batch.cloze_mask` is True."
                )
            check()

    @property
    def hides_rejected(self) -> bool:
        """Whether a head needs rejected items hidden from a bidirectional backbone."""
        return any(getattr(head, "hides_rejected", False) for head in self.heads)

    def materialise(self, item_embeddings: Tensor) -> None:
        """Let each head that needs it make weights for the items of a table.

        Args:
            item_embeddings: [V + 1, D] floating point, the item table.

        Raises:
            ValueError: A head has weights for a table of other sizes.
        """
        for head in self.heads:
            materialise = getattr(head, "materialise", None)
            if materialise is not None:
                materialise(item_embeddings)

    def extend_items(self, num_new: int) -> None:
        """Let each head with weights for each item make such weights for new items.

        Args:
            num_new: N, the number of new items.

        Raises:
            TypeError: A head has `materialise`, but no such method.
        """
        for head in self.heads:
            extend_part(head, num_new)

    def losses(
        self, query: Tensor, keys: Tensor, sessions: Sessions, item_embeddings: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the loss of each head, before its weight.

        Args:
            query: [B, L, D] floating point, the backbone's output.
            keys: [B, L, D] floating point, the embeddings of the sessions' items.
            sessions: A `SessionBatch`, or the pair `(items, feedback)`.
            item_embeddings: [V + 1, D] floating point, the item table.

        Returns:
            Scalars by the heads' class names; a repeated name gets a number.
        """
        losses: dict[str, Tensor] = {}
        for name, head in self.named_heads().items():
            extra = (item_embeddings,) if getattr(head, "uses_item_table", False) else ()
            losses[name] = head(query, keys, sessions, *extra)
        return losses

    def named_heads(self) -> dict[str, nn.Module]:
        """Return the heads by the names of their losses.

        Returns:
            By class name; a repeated name gets a number.
        """
        named: dict[str, nn.Module] = {}
        for head in self.heads:
            name, number = type(head).__name__, 2
            while name in named:
                name, number = f"{type(head).__name__}_{number}", number + 1
            named[name] = head
        return named

    @property
    def weights(self) -> dict[str, Tensor | float]:
        """The factor of each head's loss in the sum, by the names of `named_heads`, without gradients."""
        weights = {name: _weight(head) for name, head in self.named_heads().items()}
        if self.log_variance is None:
            return dict(weights)
        factors = (-self.log_variance.detach()).exp()
        return {name: factors[place] * weight for place, (name, weight) in enumerate(weights.items())}

    def combine(self, losses: dict[str, Tensor]) -> Tensor:
        """Return the weighted sum of the heads' losses.

        Args:
            losses: The result of `losses`.

        Returns:
            A scalar.
        """
        weights = [_weight(head) for head in self.heads]
        values = torch.stack([weight * loss for weight, loss in zip(weights, losses.values(), strict=True)])
        if self.log_variance is None:
            return values.sum()
        return ((-self.log_variance).exp() * values + self.log_variance / 2).sum()

    def forward(
        self, query: Tensor, keys: Tensor, sessions: Sessions, item_embeddings: Tensor | None = None
    ) -> Tensor:
        """Return the weighted sum.

        Args:
            query: [B, L, D] floating point, the backbone's output.
            keys: [B, L, D] floating point, the embeddings of the session's items.
            sessions: A `SessionBatch`, or the pair `(items, feedback)`.
            item_embeddings: [V + 1, D] floating point, the item table.

        Returns:
            A scalar.
        """
        return self.combine(self.losses(query, keys, sessions, item_embeddings))


def _weight(head: nn.Module) -> float:
    return float(getattr(head, "weight", 1.0))


def _registry() -> Any:
    # Imported here, because the registry itself contains this class.
    from skipcl_lightning.heads import SKIP_HEADS

    return SKIP_HEADS


def find_skip_prediction(head: nn.Module | None) -> SkipPrediction | None:
    """Return a head that predicts skips, itself or as part of a `CombinedHead`; None if there is none."""
    heads = head.heads if isinstance(head, CombinedHead) else [head]
    return next((one for one in heads if isinstance(one, SkipPrediction)), None)
