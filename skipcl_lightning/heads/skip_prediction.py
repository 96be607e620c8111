"""Head that predicts whether the next item is listened to, and the dial that ranks by it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipcl_lightning._checks import check_integer, check_number, check_shape
from skipcl_lightning._settings import records_settings
from skipcl_lightning.batch import Sessions, as_batch
from skipcl_lightning.functional.products import at_least_float32, without_autocast
from skipcl_lightning.functional.skip_losses.skip_prediction import skip_prediction_loss
from skipcl_lightning.heads.session_head import WeightedHead

__all__ = ["LARGEST_PENALTY", "SkipPrediction"]

# Above it, the scores of the model itself vanish in float32.
LARGEST_PENALTY = 1e6


class SkipPrediction(WeightedHead):
    r"""Head with the loss `skip_prediction_loss`: is the next item listened to?

    It learns the logit of listening to item i after position t,

    $$
    a(t, i) = w_t \cdot k(i) + b(i), \qquad w_t = W z_t, \qquad k(i) = v(i) + P e(i) + k_0
    $$

    from the backbone's output z_t and the item embedding e(i), with an own vector v(i) and bias b(i) of each
    item. The common vector k_0 makes w_t · k_0 the part that depends on the session alone: it changes
    probabilities, but no ranking.

    The ranking can use the logit with a weight that is chosen after training, the penalty: the inner product
    of `extended_query` and `extended_table` is z_t · e(i) + penalty · a(t, i).

    All but W are zero at first, so an item that training never saw is neither avoided nor preferred by a
    vector or bias of its own.

    `SkipCLModule` calls `materialise` with its item table. In a module of your own, call it once before the
    optimizer is made.

    A bidirectional backbone predicts hidden items, here rejected ones too (`hides_rejected`). At a hidden
    position the item and its feedback are hidden. The items and feedback of all other positions are visible,
    later ones included, although at evaluation only earlier ones are.

    Beside a `sparse_item_table`, the own vectors and biases still have dense gradients. Without both, the
    cost of a step does not grow with the catalogue.

    Args:
        weight: λ ≥ 0, the factor of the loss in the sum.
        vector_size: M, at least 1.
        own_vectors: Whether each item has a vector v(i) of its own.
        project_embeddings: Whether k(i) contains P e(i). At least one of both is needed.
        own_bias: Whether each item has a bias of its own beside the common bias.
        graded: Whether feedback is a soft label (1 + f) / 2, instead of listened or not.
        dislike_weight: Weight of a disliked item in the mean, above 0; other items have 1.
        like_weight: Weight of a liked item in the mean, above 0.
        stop_gradient: Whether the loss leaves the backbone and the item table alone and trains only the head.

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is out of range, or k(i) does not depend on the item.

    Reference:
        See `skip_prediction_loss`.

    Examples:
        >>> table = torch.randn(10, 8)  # nine items and padding
        >>> head = SkipPrediction(vector_size=4)
        >>> head.materialise(table)
        >>> items, feedback = torch.tensor([[1, 2, 3]]), torch.tensor([[1.0, -1.0, 1.0]])
        >>> head(torch.randn(1, 3, 8), table[items], (items, feedback))  # log(2) at first
        tensor(0.6931, grad_fn=<DivBackward0>)
        >>> head.extended_query(torch.randn(2, 8), 0.5).shape, head.extended_table(table).shape
        (torch.Size([2, 13]), torch.Size([10, 13]))
    """

    # A bidirectional backbone must hide rejected items too, or every label would be 1.
    hides_rejected = True

    @records_settings
    def __init__(
        self,
        *,
        weight: float = 1.0,
        vector_size: int = 16,
        own_vectors: bool = True,
        project_embeddings: bool = True,
        own_bias: bool = True,
        graded: bool = False,
        dislike_weight: float = 1.0,
        like_weight: float = 1.0,
        stop_gradient: bool = False,
    ) -> None:
        super().__init__(weight=weight)
        check_integer("vector_size", vector_size)
        check_number("dislike_weight", dislike_weight, minimum=0, open_minimum=True)
        check_number("like_weight", like_weight, minimum=0, open_minimum=True)
        if not (own_vectors or project_embeddings):
            raise ValueError(
                "`own_vectors` must be True without `project_embeddings`, got False for both. Items need "
                "vectors from one of them."
            )
        self.vector_size = vector_size
        self.own_vectors = own_vectors
        self.project_embeddings = project_embeddings
        self.own_bias = own_bias
        self.graded = graded
        self.dislike_weight = dislike_weight
        self.like_weight = like_weight
        self.stop_gradient = stop_gradient
        self.num_rows: int | None = None
        self.session_projection: nn.Parameter | None = None  # W, [M, D]
        self.item_projection: nn.Parameter | None = None  # P, [M, D]
        self.vectors: nn.Parameter | None = None  # v, [V + 1, M]
        self.biases: nn.Parameter | None = None  # [V + 1]
        self.vector = nn.Parameter(torch.zeros(vector_size))  # k_0
        self.bias = nn.Parameter(torch.zeros(1))
        # Set by `evaluation.calibrate_skip_prediction`.
        self.temperature: Tensor
        self.register_buffer("temperature", torch.ones(()))

    def materialise(self, item_embeddings: Tensor) -> None:
        """Make the weights for the items of a table, on its device.

        A second call with a table of the same sizes does nothing.

        Args:
            item_embeddings: [V + 1, D] floating point, the item table.

        Raises:
            TypeError: The table has the wrong dtype.
            ValueError: The head has weights for a table of other sizes.
        """
        sizes = check_shape("item_embeddings", item_embeddings, "V+1 D", floating=True)
        rows, size = sizes["V+1"], sizes["D"]
        if self.session_projection is not None:
            known = (self.num_rows, self.session_projection.shape[1])
            if known != (rows, size):
                raise ValueError(
                    f"`item_embeddings` must have shape {list(known)}, as when the head was made, got "
                    f"{[rows, size]}. Make another `SkipPrediction` for another catalogue."
                )
            return
        self.num_rows = rows
        limit = size**-0.5
        self.session_projection = nn.Parameter(torch.empty(self.vector_size, size).uniform_(-limit, limit))
        if self.project_embeddings:
            self.item_projection = nn.Parameter(torch.zeros(self.vector_size, size))
        if self.own_vectors:
            self.vectors = nn.Parameter(torch.zeros(rows, self.vector_size))
        if self.own_bias:
            self.biases = nn.Parameter(torch.zeros(rows))
        self.to(item_embeddings.device)

    def extend_items(self, num_new: int) -> None:
        """Append zeros for new items to the own vectors and biases, as for items that training never saw.

        Args:
            num_new: N, the number of new items.
        """
        for name in ("vectors", "biases"):
            known = getattr(self, name)
            if known is not None:
                rows = torch.cat([known.detach(), known.new_zeros(num_new, *known.shape[1:])])
                setattr(self, name, nn.Parameter(rows, requires_grad=known.requires_grad))
        if self.num_rows is not None:
            self.num_rows += num_new

    def check_cloze(self) -> None:
        """Do nothing: every setting is defined for a bidirectional backbone."""

    def forward(
        self,
        query: Tensor,
        keys: Tensor,
        sessions: Sessions,
        item_embeddings: Tensor | None = None,  # noqa: ARG002 - the heads' common signature
    ) -> Tensor:
        """Return the mean loss over the positions with a next item, before its weight.

        Args:
            query: [B, L, D] floating point, the backbone's output.
            keys: [B, L, D] floating point, the embeddings of the sessions' items.
            sessions: A `SessionBatch`, or the pair `(items, feedback)`.
            item_embeddings: Unused.

        Returns:
            A scalar; exactly 0, with a zero gradient, without a next item.

        Raises:
            ValueError: Shapes disagree, or `materialise` was not called.
        """
        batch = as_batch(sessions)
        sizes = check_shape("items", batch.items, "B L")
        check_shape("query", query, "B L D", sizes, floating=True)
        check_shape("keys", keys, "B L D", sizes, floating=True)
        if self.stop_gradient:
            query, keys = query.detach(), keys.detach()
        return skip_prediction_loss(
            self.session_vector(query),
            self._vectors_of(batch.items, keys),
            self._bias_of(batch.items),
            batch,
            graded=self.graded,
            dislike_weight=self.dislike_weight,
            like_weight=self.like_weight,
        )

    def session_vector(self, query: Tensor) -> Tensor:
        """Return w = W z.

        Args:
            query: [..., D] floating point.

        Returns:
            [..., M], at least float32, whatever autocast says.

        Raises:
            ValueError: `materialise` was not called.
        """
        return _project(query, self._session_projection)

    def item_vectors(self, item_embeddings: Tensor) -> Tensor:
        """Return k of every item.

        Args:
            item_embeddings: [V + 1, D] floating point, the item table.

        Returns:
            [V + 1, M], at least float32; row 0 is padding.

        Raises:
            ValueError: The table has another shape, or `materialise` was not called.
        """
        projection = self._session_projection
        known = {"V+1": self.num_rows or 0, "D": projection.shape[1]}
        check_shape("item_embeddings", item_embeddings, "V+1 D", known, floating=True)
        every = torch.arange(len(item_embeddings), device=item_embeddings.device)
        return self._vectors_of(every, item_embeddings)

    @property
    def item_bias(self) -> Tensor:
        """[V + 1], at least float32: b of every item, the common bias included.

        It raises a `ValueError` if `materialise` was not called.
        """
        rows = self._session_projection.new_zeros(self.num_rows or 0)
        return at_least_float32((rows if self.biases is None else self.biases) + self.bias)

    def listen_logits(self, query: Tensor, items: Tensor, item_embeddings: Tensor) -> Tensor:
        """Return a(t, i) of some items for each query; its sigmoid is the probability of listening.

        Args:
            query: [N, D] floating point, as from `SessionModel.session_query`.
            items: [N, K] int64 in 0..V.
            item_embeddings: [V + 1, D] floating point, the item table.

        Returns:
            [N, K], at least float32.

        Raises:
            TypeError: A tensor has the wrong dtype.
            ValueError: Shapes disagree, or `materialise` was not called.
        """
        sizes = check_shape("query", query, "N D", floating=True)
        check_shape("items", items, "N K", sizes, dtype=torch.int64)
        check_shape("item_embeddings", item_embeddings, "V+1 D", sizes, floating=True)
        vectors = self._vectors_of(items, F.embedding(items, item_embeddings))  # [N, K, M]
        with without_autocast(query.device):
            return (vectors @ self.session_vector(query)[..., None]).squeeze(2) + self._bias_of(items)

    def skip_probability(self, query: Tensor, items: Tensor, item_embeddings: Tensor) -> Tensor:
        """Return the probability that items are skipped, sigmoid(-a(t, i) / temperature).

        Args:
            query: As for `listen_logits`.
            items: As for `listen_logits`.
            item_embeddings: As for `listen_logits`.

        Returns:
            [N, K] in [0, 1], at least float32. The temperature is 1 before a calibration.

        Raises:
            TypeError: A tensor has the wrong dtype.
            ValueError: Shapes disagree, or `materialise` was not called.
        """
        return torch.sigmoid(-self.listen_logits(query, items, item_embeddings) / self.temperature)

    def extended_query(self, query: Tensor, penalty: float) -> Tensor:
        """Return queries whose inner products with `extended_table` are z · e(i) + penalty · a(t, i).

        Args:
            query: [..., D] floating point, z.
            penalty: At least 0; 0 gives the plain scores, and more avoids skips more.

        Returns:
            [..., D + M + 1], at least float32: z, penalty · w, and the penalty.

        Raises:
            TypeError: `penalty` is no number.
            ValueError: It is negative, above a million or NaN, or `materialise` was not called.
        """
        check_number("penalty", penalty, minimum=0, maximum=LARGEST_PENALTY)
        vector = penalty * self.session_vector(query)
        return torch.cat([query, vector, torch.full_like(vector[..., :1], penalty)], dim=-1)

    def extended_table(self, item_embeddings: Tensor) -> Tensor:
        """Return the table for `extended_query`; compute it once for many queries.

        Args:
            item_embeddings: [V + 1, D] floating point, the item table.

        Returns:
            [V + 1, D + M + 1], at least float32: e(i), k(i) and b(i).

        Raises:
            ValueError: The table has another shape, or `materialise` was not called.
        """
        vectors = self.item_vectors(item_embeddings)
        return torch.cat([item_embeddings, vectors, self.item_bias[:, None]], dim=1)

    @property
    def _session_projection(self) -> Tensor:
        if self.session_projection is None:
            raise ValueError(
                "`SkipPrediction` must know the item table before it is used, got none. Call "
                "`head.materialise(item_table)` once, before the optimizer is made."
            )
        return self.session_projection

    def _vectors_of(self, items: Tensor, embeddings: Tensor) -> Tensor:
        """[..., M]: k of some items, [...], with their embeddings, [..., D]."""
        vectors = at_least_float32(self.vector).expand(*items.shape, -1)
        if self.vectors is not None:
            vectors = vectors + F.embedding(items, self.vectors)
        if self.item_projection is not None:
            vectors = vectors + _project(embeddings, self.item_projection)
        return vectors

    def _bias_of(self, items: Tensor) -> Tensor:
        """[...]: b of some items, [...]."""
        if self.biases is None:
            return at_least_float32(self.bias).expand(items.shape)
        return at_least_float32(F.embedding(items, self.biases[:, None]).squeeze(-1) + self.bias)


def _project(inputs: Tensor, projection: Tensor) -> Tensor:
    with without_autocast(inputs.device):
        return F.linear(at_least_float32(inputs), at_least_float32(projection))
