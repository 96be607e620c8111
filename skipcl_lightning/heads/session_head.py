"""Base classes of the skip heads: a weight, and the settings of a contrast."""

from typing import TYPE_CHECKING

from torch import Tensor, nn

from skipcl_lightning._checks import check_number

if TYPE_CHECKING:
    from skipcl_lightning.batch import Sessions
    from skipcl_lightning.functional.skip_losses.contrast import ContrastSettings

__all__ = ["SessionHead", "WeightedHead", "extend_part"]


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
        self, query: Tensor, keys: Tensor, sessions: "Sessions", item_embeddings: Tensor | None = None
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
