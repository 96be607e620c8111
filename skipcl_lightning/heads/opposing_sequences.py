"""Head with its own encoder of the skipped items."""

from torch import Tensor, nn

from skipcl_lightning._checks import check_integer, check_number
from skipcl_lightning._settings import records_settings
from skipcl_lightning.batch import PADDING_INDEX, Sessions, as_batch
from skipcl_lightning.functional.next_item.look_up import look_up, require_table
from skipcl_lightning.functional.next_item.sampled_softmax import chunked_sampled_softmax_loss, sample_items
from skipcl_lightning.functional.skip_losses.contrast import (
    Anchors,
    ContrastSettings,
    session_contrast,
    weighted_mean,
)
from skipcl_lightning.functional.skip_losses.opposing import opposing_contrast, rejected_sequence
from skipcl_lightning.heads.next_item import real_positions
from skipcl_lightning.heads.session_head import SessionHead

__all__ = ["OpposingSequences"]


class OpposingSequences(SessionHead):
    r"""Head that contrasts the next listened item with the encoded sequence of skipped items.

    A gated recurrent network encodes the skipped items of a session. It learns to predict the next skipped
    item against sampled items. The backbone's output is pulled to the next listened item and pushed from the
    network's output after the skips so far (`opposing_contrast`):

    $$
    L = \text{mean contrast} + \text{sequence weight} \cdot \text{mean cross-entropy}
    $$

    The network is used in training only. It shares the item table with the backbone.

    Args:
        embedding_size: D, that of the item table.
        weight: λ ≥ 0, the factor of the loss in the sum.
        temperature: τ > 0 of the contrast.
        sequence_weight: Weight of the prediction of the next skipped item, at least 0.
        num_samples: K, items drawn uniformly in each step for that prediction, below the catalogue's size.
        anchors: As in `ContrastSettings`.
        like_weight: As in `ContrastSettings`.

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is out of range or not among its choices.

    Reference:
        After Ivanova, Frolov, Vasilev: Benefiting from Negative yet Informative Feedback by
        Contrasting Opposing Sequential Patterns, RecSys 2025, arXiv 2508.14786, whose two encoders are
        transformers; here they are the backbone and a recurrent network.

    Examples:
        >>> OpposingSequences(16).encoder.hidden_size
        16
    """

    uses_item_table = True
    sparse_gradients = False

    @records_settings
    def __init__(
        self,
        embedding_size: int = 64,
        *,
        weight: float = 0.1,
        temperature: float = 0.1,
        sequence_weight: float = 0.5,
        num_samples: int = 256,
        anchors: Anchors = "listened",
        like_weight: float = 1.0,
    ) -> None:
        contrast = ContrastSettings(anchors=anchors, negatives="past", like_weight=like_weight)
        super().__init__(weight=weight, contrast=contrast)
        check_integer("embedding_size", embedding_size)
        check_number("temperature", temperature, minimum=0, open_minimum=True)
        check_number("sequence_weight", sequence_weight, minimum=0)
        check_integer("num_samples", num_samples)
        self.temperature = temperature
        self.sequence_weight = sequence_weight
        self.num_samples = num_samples
        self.encoder = nn.GRU(embedding_size, embedding_size, batch_first=True)

    def forward(
        self, query: Tensor, keys: Tensor, sessions: Sessions, item_embeddings: Tensor | None = None
    ) -> Tensor:
        """Return the mean contrast over the anchors plus the loss of the skip sequence.

        Args:
            query: [B, L, D] floating point, the backbone's output.
            keys: [B, L, D] floating point, the embeddings of the session's items.
            sessions: A `SessionBatch`, or the pair `(items, feedback)`.
            item_embeddings: [V + 1, D] floating point, the item table; row 0 is padding.

        Returns:
            A scalar; exactly 0, with a zero gradient, without skips.

        Raises:
            ValueError: The batch hides items and a setting is not defined for that, the table is missing, or
                its D is not `embedding_size`.
        """
        batch, table = as_batch(sessions), require_table(item_embeddings, "the sequence of skips")
        if table.shape[1] != self.encoder.input_size:
            raise ValueError(
                f"`embedding_size` must be the item table's {table.shape[1]}, got {self.encoder.input_size}. "
                f"Pass `OpposingSequences({table.shape[1]})`."
            )
        contrast = session_contrast(batch, **self.contrast.options)
        skipped = rejected_sequence(batch.items, contrast).items
        opposing: Tensor = self.encoder(look_up(skipped, table, sparse=self.sparse_gradients))[0]  # [B, L, D]
        losses, weights = opposing_contrast(
            query, keys, opposing, batch.items, contrast, temperature=self.temperature
        )
        loss = weighted_mean(losses, weights)
        if not self.sequence_weight:
            return loss
        return loss + self.sequence_weight * self._sequence_loss(opposing, skipped, table)

    def _sequence_loss(self, output: Tensor, items: Tensor, table: Tensor) -> Tensor:
        """Return the mean cross-entropy of each skipped item, given the skipped items before it."""
        following = nn.functional.pad(items[:, 1:], (0, 1), value=PADDING_INDEX)
        samples = sample_items(min(self.num_samples, len(table) - 2), len(table) - 1, device=items.device)
        query, target, weight = real_positions(output, following)
        return chunked_sampled_softmax_loss(
            query, table, target, samples, weight, sparse_gradients=self.sparse_gradients
        )
