"""A head with an encoder of its own for what was skipped, contrasted with what was listened to."""

from torch import Tensor, nn

from skipcl_lightning._checks import check_integer, check_number
from skipcl_lightning._settings import records_settings
from skipcl_lightning.batch import PADDING_INDEX, SessionBatch
from skipcl_lightning.functional.chunked_sampled_softmax import chunked_sampled_softmax_loss
from skipcl_lightning.functional.contrast import Anchors, weighted_mean
from skipcl_lightning.functional.look_up import look_up
from skipcl_lightning.functional.opposing import opposing_contrast, rejected_sequence
from skipcl_lightning.functional.softmax import sample_items
from skipcl_lightning.heads.real_positions import real_positions
from skipcl_lightning.heads.session_head import SessionHead, require_table

__all__ = ["OpposingSequences"]


class OpposingSequences(SessionHead):
    """Contrasts the session with the sequence of its skipped tracks, which an encoder of its own learns.

    The skipped tracks of a session, moved together, run through a gated recurrent network n. It learns to
    predict the next skipped track (`sequence_weight`, against sampled items), and the session's output is
    pulled to the next listened track and pushed from n of the skips before it
    (`skipcl_lightning.functional.opposing_contrast`):

        L = mean contrast + sequence_weight · mean cross-entropy

    The network serves training only. Both sides share the item table, which is how one shapes the other.

    Args:
        embedding_size: D, that of the item table.
        weight: λ ≥ 0, what the loss is multiplied by in the sum; 0.1 by the study in the README.
        temperature: τ > 0 of the contrast.
        sequence_weight: How much the next skipped track counts, at least 0; at 0 the encoder learns by the
            contrast alone.
        num_samples: K, items drawn uniformly in each step to predict the next skipped track against; no
            more than the catalogue has, less one.
        anchors: `listened` positions, or `all` real ones.
        like_weight: How much an anchor counts whose positive is liked, above 0.

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is out of range or not among its choices.

    Reference:
        In the manner of Ivanova, Frolov, Vasilev: Benefiting from Negative yet Informative Feedback by
        Contrasting Opposing Sequential Patterns, RecSys 2025, arXiv 2508.14786, whose two encoders are
        transformers; here the backbone is the one, whatever it is, and a recurrent network the other.

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
        super().__init__(
            weight=weight,
            anchors=anchors,
            negatives="past",
            skip_weights="uniform",
            dislike_weight=1.0,
            like_weight=like_weight,
        )
        check_integer("embedding_size", embedding_size)
        check_number("temperature", temperature, minimum=0, open_minimum=True)
        check_number("sequence_weight", sequence_weight, minimum=0)
        check_integer("num_samples", num_samples)
        self.temperature = temperature
        self.sequence_weight = sequence_weight
        self.num_samples = num_samples
        self.encoder = nn.GRU(embedding_size, embedding_size, batch_first=True)

    def forward(
        self, query: Tensor, keys: Tensor, batch: SessionBatch, item_embeddings: Tensor | None = None
    ) -> Tensor:
        """The mean contrast over the anchors, and the loss of the sequence of skips.

        Args:
            query: [B, L, D] floating point, the backbone's output.
            keys: [B, L, D] floating point, the embeddings of the session's items.
            batch: Their items and feedback.
            item_embeddings: [V + 1, D] floating point, the item table; row 0 is padding.

        Returns:
            A scalar; exactly 0, with a zero gradient, without skips.

        Raises:
            ValueError: The batch hides tracks, and a setting has no meaning then; or the table is missing.
        """
        table = require_table(item_embeddings, "the sequence of skips")
        contrast = self.contrast(batch)
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
        """How badly the encoder predicts each skipped track from those before it."""
        following = nn.functional.pad(items[:, 1:], (0, 1), value=PADDING_INDEX)
        samples = sample_items(min(self.num_samples, len(table) - 2), len(table) - 1, device=items.device)
        query, target, weight = real_positions(output, following)
        return chunked_sampled_softmax_loss(
            query, table, target, samples, weight, sparse_gradients=self.sparse_gradients
        )
