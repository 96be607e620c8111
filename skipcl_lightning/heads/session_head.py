"""What skip heads share: base classes, several heads as one, and sparse gradients of the item table."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from skipcl_lightning._checks import check_choice, check_number
from skipcl_lightning._settings import Part, build_part, describe_part
from skipcl_lightning.batch import Sessions

if TYPE_CHECKING:
    from skipcl_lightning.functional.skip_losses.contrast import ContrastSettings

__all__ = [
    "CombinedHead",
    "SessionHead",
    "WeightedHead",
    "Weighting",
    "check_cloze",
    "extend_part",
    "heads_of",
    "materialise_part",
    "only_looks_up",
    "use_sparse_gradients",
]


def extend_part(part: nn.Module | None, num_new: int) -> None:
    """Call `extend_items(num_new)` of a head or loss that has weights for each item.

    Raises:
        TypeError: It has `materialise`, but no such method.
    """
    extend = getattr(part, "extend_items", None)
    if extend is not None:
        extend(num_new)
    elif hasattr(part, "materialise"):
        raise TypeError(
            f"`skip_head` must have a method `extend_items(num_new)` beside `materialise`, got "
            f"{type(part).__name__} without. Append rows for the new tracks there."
        )


def materialise_part(part: nn.Module | None, item_embeddings: Tensor) -> None:
    """Call `materialise` of a head that makes weights for the items of a table [V + 1, D]."""
    materialise = getattr(part, "materialise", None)
    if materialise is not None:
        materialise(item_embeddings)


def check_cloze(argument: str, head: nn.Module) -> None:
    """Raise a `ValueError` unless a head is defined for a bidirectional backbone."""
    check = getattr(head, "check_cloze", None)
    if check is None:
        raise ValueError(
            f"`{argument}` must have a method `check_cloze` beside a bidirectional backbone, got "
            f"{type(head).__name__} without. Take anchors only where `batch.cloze_mask` is True: elsewhere "
            "the output has seen the track that it would be pulled to."
        )
    check()


def heads_of(head: nn.Module | None) -> list[nn.Module]:
    """Return a head, or the heads that a `CombinedHead` adds up, also those of one within another.

    Examples:
        >>> from skipcl_lightning.heads import SkipInfoNCE, SkipMargin
        >>> inner = CombinedHead([SkipInfoNCE(), SkipMargin()])
        >>> [type(one).__name__ for one in heads_of(CombinedHead([inner, SkipInfoNCE()]))]
        ['SkipInfoNCE', 'SkipMargin', 'SkipInfoNCE']
    """
    if isinstance(head, CombinedHead):
        return [one for part in head.heads for one in heads_of(part)]
    return [] if head is None else [head]


class WeightedHead(nn.Module):
    """A loss with a weight in the training sum; the callback `SkipLossWarmup` raises it over the first steps.

    Args:
        weight: λ ≥ 0, the factor of the loss in the sum.

    Raises:
        TypeError: `weight` is no number.
        ValueError: It is negative.
    """

    # Whether `forward` needs the item table.
    uses_item_table = False

    def __init__(self, *, weight: float) -> None:
        super().__init__()
        check_number("weight", weight, minimum=0)
        self.weight = weight

    def extra_repr(self) -> str:
        """Return the settings, for `print`."""
        settings = getattr(self, "settings", {"weight": self.weight})
        return ", ".join(f"{name}={value!r}" for name, value in settings.items())


class SessionHead(WeightedHead):
    """A skip head that compares the next listened item with skipped items at each anchor.

    Args:
        weight: λ ≥ 0.
        contrast: The checked settings that all skip losses share.

    Raises:
        TypeError: `weight` is no number.
        ValueError: It is negative.
    """

    def __init__(self, *, weight: float, contrast: "ContrastSettings") -> None:
        super().__init__(weight=weight)
        self.contrast = contrast

    def forward(
        self, query: Tensor, keys: Tensor, sessions: Sessions, item_embeddings: Tensor | None = None
    ) -> Tensor:
        """Return the mean loss over the anchors of the batch, before its weight.

        Args:
            query: [B, L, D] floating point, the backbone's output.
            keys: [B, L, D] floating point, the embeddings of the sessions' items.
            sessions: A `SessionBatch`, or the pair `(items, feedback)`.
            item_embeddings: [V + 1, D] floating point, the item table; row 0 is padding. Needed by heads
                with `uses_item_table`.

        Returns:
            A scalar; exactly 0, with a zero gradient, without anchors.

        Raises:
            ValueError: The batch hides items and a setting is not defined for that, or the table is missing.
        """
        raise NotImplementedError

    def check_cloze(self) -> None:
        """Check that the settings are defined for a bidirectional backbone.

        `SkipCLModule` accepts a head beside a bidirectional backbone only if it has this method. A head of
        your own with this method must take its anchors from `batch.cloze_mask`.

        Raises:
            ValueError: `anchors` is 'all'; only 'listened' is defined.
        """
        self.contrast.check_cloze()


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
            check_cloze("heads", head)

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
            materialise_part(head, item_embeddings)

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


def only_looks_up(next_item_loss: nn.Module, skip_head: nn.Module | None) -> bool:
    """Return whether all losses use the item table only by looking up rows.

    Examples:
        >>> from skipcl_lightning.heads import FullSoftmax, SampledSoftmax
        >>> only_looks_up(SampledSoftmax(8), None), only_looks_up(FullSoftmax(), None)
        (True, False)
    """
    return all(hasattr(part, "sparse_gradients") for _, part in _given_the_table(next_item_loss, skip_head))


def use_sparse_gradients(next_item_loss: nn.Module, skip_head: nn.Module | None) -> None:
    """Let losses that get the item table leave sparse gradients.

    A loss of your own that can do so has an attribute `sparse_gradients`, False at first. If it is True, use
    the table only through `torch.nn.functional.embedding(items, table, sparse=True)`.

    Raises:
        ValueError: A loss has no such attribute.

    Examples:
        >>> from skipcl_lightning.heads import SampledSoftmax
        >>> loss = SampledSoftmax(8)
        >>> use_sparse_gradients(loss, None)
        >>> loss.sparse_gradients
        True
    """
    for argument, part in _given_the_table(next_item_loss, skip_head):
        if not hasattr(part, "sparse_gradients"):
            raise ValueError(
                f"`{argument}` must be able to leave sparse gradients beside `sparse_item_table`, got "
                f"{type(part).__name__}, which has none. Use `SampledSoftmax`, or a head that looks up "
                "rows only."
            )
        vars(part)["sparse_gradients"] = True


def _given_the_table(
    next_item_loss: nn.Module, skip_head: nn.Module | None
) -> Iterator[tuple[str, nn.Module]]:
    """Yield the losses that get the item table, with the name of their argument."""
    yield "next_item_loss", next_item_loss
    for head in heads_of(skip_head):
        if getattr(head, "uses_item_table", False):
            yield "skip_head", head
