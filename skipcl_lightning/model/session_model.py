"""The model without training: item table, feedback input and backbone, which turn sessions into queries.

It needs only torch, so it can be exported, served or used in any other module.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipcl_lightning._checks import check_integer, check_number, check_shape
from skipcl_lightning.backbones import check_backbone, is_causal
from skipcl_lightning.backbones.contract import takes_argument
from skipcl_lightning.batch import PADDING_INDEX, SessionBatch
from skipcl_lightning.functional import SparseScores, append_mask_token, hide_masked, last_position
from skipcl_lightning.functional.backbone_input import history_places
from skipcl_lightning.functional.next_item.look_up import add_content, gather_gradients, look_up
from skipcl_lightning.functional.ranking.sparse_scores import add_scores
from skipcl_lightning.model.transitions import Transitions

__all__ = ["ItemEmbedding", "SessionModel"]

# Two items say more than one. On a log of real sessions the best factor on the validation set was 3.1, and
# NDCG@10 was flat from 2 to 3 (docs/results.md).
_PAIR_FACTOR = 3.0


class ItemEmbedding(nn.Embedding):
    """The item table, a `torch.nn.Embedding` with padding in row 0.

    Lookups of a step may share one dense gradient (`gathered_gradients`).

    Args:
        num_items: V.
        embedding_size: D.
        sparse: Whether gradients are sparse tensors of the used rows.

    Examples:
        >>> import torch
        >>> items = ItemEmbedding(3, 2, sparse=False)
        >>> items.table.shape, items(torch.tensor([[1, 0]])).shape
        (torch.Size([4, 2]), torch.Size([1, 2, 2]))
    """

    def __init__(self, num_items: int, embedding_size: int, *, sparse: bool) -> None:
        super().__init__(num_items + 1, embedding_size, padding_idx=PADDING_INDEX, sparse=sparse)
        self._gathered: Tensor | None = None

    @property
    def table(self) -> Tensor:
        """[V + 1, D]; inside `gathered_gradients` or `sharing`, the table of the step."""
        return self.weight if self._gathered is None else self._gathered

    @contextmanager
    def gathered_gradients(self) -> Iterator[None]:
        """Let all lookups in a context make one dense gradient together, which is faster on a CPU."""
        if self.weight.device.type == "cpu" and not self.sparse:
            self._gathered = gather_gradients(self.weight)
        try:
            yield
        finally:
            self._gathered = None

    def extend_items(self, rows: Tensor) -> None:
        """Append [N, D] rows; the weight becomes another parameter."""
        weight = torch.cat([self.weight.detach(), rows.detach().to(self.weight)])
        self.weight = nn.Parameter(weight, requires_grad=self.weight.requires_grad)
        self.num_embeddings = len(weight)

    @contextmanager
    def sharing(self, table: Tensor, num_rows: int, *, gathers: bool) -> Iterator[Tensor]:
        """Let all lookups in a context use another table [V + 1, D], with gathered gradients if these help.

        Yields:
            The first rows of the table.
        """
        gathers = gathers and table.device.type == "cpu"
        self._gathered = gather_gradients(table) if gathers and not self.sparse else table
        try:
            if num_rows == len(table):
                yield self._gathered
            elif gathers or self.sparse:
                yield gather_gradients(table, num_rows, sparse=self.sparse)
            else:
                yield table[:num_rows]
        finally:
            self._gathered = None

    @property
    def is_shared(self) -> bool:
        """Whether lookups use the table of a step."""
        return self._gathered is not None

    def forward(self, items: Tensor) -> Tensor:
        """[...] int64 in 0..V to [..., D]."""
        if self._gathered is None:
            return super().forward(items)
        return look_up(items, self._gathered, sparse=self.sparse, padding_index=PADDING_INDEX)


class SessionModel(nn.Module):
    """An item table, used for inputs and candidates, and a backbone.

    The output of a causal backbone at a position is the query for the next item. A bidirectional backbone has
    seen the next item, so its query is the output at a mask token after the session's last item, and it is
    trained on hidden items (the cloze task). A backbone with a `max_length` gets the latest positions.

    After `use_history`, the backbone also sees the `history` of a batch, in front of the session and within
    the same `max_length`: the session comes first, and the latest items of the history fill the rest. The
    output has the session's positions only.

    Args:
        backbone: Any module `forward(x [B, L, D], valid_mask [B, L]) -> [B, L, D]`; `causal = False` if it
            sees later items, and optionally a `max_length`, and an `item_scale` s (1 without it): item
            embeddings are drawn with the standard deviation s / √D.
        num_items: V, at least 2.
        embedding_size: D; None for the backbone's own `embedding_size`.
        feedback_input: Whether the backbone sees the feedback of each item. One embedding each for listening,
            skips, likes and dislikes, linear in the strength and zero at first, is added to the item's own.
        context_sizes: By name, the number of codes of each input in `SessionBatch.context`, without 0, in its
            order. One embedding for each code, zero at first, is added to the item's own; code 0 adds
            nothing.
        sparse_item_table: Whether the gradients of the table are sparse tensors of the used rows.
        item_tower: Any module `forward(items [...] or None) -> [..., D] or [V + 1, D]` that makes embeddings
            of items from their content, zero for padding, such as `ItemTower`. They are added to the rows of
            the table, which are zero at first.
        id_dropout: Probability in [0, 1] that the table's row of an item is left out in a training step,
            where the tower alone must do. With 1 there are only the tower's embeddings.

    Raises:
        TypeError: A part or setting has the wrong type.
        ValueError: A setting is out of range, no size is known, or the backbone does not fit.

    Examples:
        >>> from skipcl_lightning.backbones import SASRec
        >>> model = SessionModel(SASRec(16), num_items=100).eval()
        >>> batch = SessionBatch(torch.tensor([[5, 3, 4]]), torch.tensor([[1.0, -1.0, 1.0]]))
        >>> model(batch).shape, model.score(model.session_query(batch)).shape
        (torch.Size([1, 3, 16]), torch.Size([1, 101]))
    """

    history_embedding: nn.Parameter | None

    def __init__(
        self,
        backbone: nn.Module,
        *,
        num_items: int,
        embedding_size: int | None = None,
        feedback_input: bool = True,
        context_sizes: Mapping[str, int] | None = None,
        sparse_item_table: bool = False,
        item_tower: nn.Module | None = None,
        id_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_integer("num_items", num_items, minimum=2)
        context_sizes = dict(context_sizes or {})
        for name, codes in context_sizes.items():
            check_integer(f"context_sizes[{name!r}]", codes)
        _check_id_dropout(id_dropout, item_tower, sparse=sparse_item_table)
        size = _embedding_size(backbone, embedding_size)
        check_backbone(backbone, size)
        self.num_items = num_items
        self.embedding_size = size
        self.backbone = backbone
        self.causal = is_causal(backbone)
        self.item_embedding = ItemEmbedding(num_items, size, sparse=sparse_item_table)
        scale = getattr(backbone, "item_scale", 1.0)
        self.item_embedding.weight.data[PADDING_INDEX + 1 :].normal_(std=scale * size**-0.5)
        self.item_tower = item_tower
        self.id_dropout = id_dropout
        # The items after these, of which training has no plays, are no candidates in training. None for all.
        self.num_trained: int | None = None
        if item_tower is not None:
            # So that an item without plays has the tower's embedding alone, and the tower learns the most.
            nn.init.zeros_(self.item_embedding.weight)
            self.item_embedding.weight.requires_grad_(id_dropout < 1)
        self.mask_embedding = None if self.causal else nn.Parameter(torch.randn(size) * size**-0.5)
        self.feedback_embedding = nn.Linear(4, size, bias=False) if feedback_input else None
        if self.feedback_embedding is not None:
            # Zero at first: random values would outweigh the items, and training on a short log would not
            # correct that.
            nn.init.zeros_(self.feedback_embedding.weight)
        # Made by `use_history`.
        self.register_parameter("history_embedding", None)
        self.context_sizes = context_sizes
        tables = [nn.Embedding(codes + 1, size, padding_idx=0) for codes in context_sizes.values()]
        for table in tables:
            nn.init.zeros_(table.weight)
        self.context_embeddings = nn.ModuleList(tables)
        # From the last item and from the last two, counted if the module has a `transition_weight`.
        self.transitions: nn.ModuleList | None = None
        # [V + 1] bool, items that are not recommended, or None; set by `SkipCLModule.retire_items`.
        self.retired: Tensor | None
        self.register_buffer("retired", None)
        # Set by a LightningModule that overrides `embed`.
        self.embed_override: Callable[[SessionBatch, Tensor], Tensor] | None = None

    @property
    def max_length(self) -> int | None:
        """The largest number of positions that the backbone takes; None for no limit."""
        limit: int | None = getattr(self.backbone, "max_length", None)
        return limit

    @property
    def mask_index(self) -> int:
        """The item index of a bidirectional backbone's mask token, V + 1."""
        return self.num_items + 1

    @property
    def item_table(self) -> Tensor:
        """[V + 1, D], the candidates: row 0 is padding. With an item tower, it is computed at each use."""
        if self.item_tower is None or self.item_embedding.is_shared:
            return self.item_embedding.table
        table: Tensor = self.item_embedding.weight + self.item_tower()
        return table

    @contextmanager
    def training_table(self, *, gathers: bool) -> Iterator[Tensor]:
        """Let all uses of the item table in a context, a training step, share one.

        With an item tower, the table is computed once, without the rows that `id_dropout` leaves out in this
        step. Items without plays are no candidates then: every one would be wrong, so the model would learn
        to rank new items last.

        Args:
            gathers: Whether the table is only looked up, so that its gradients may be gathered.

        Yields:
            The candidates, [V + 1, D] or, with a tower and `num_trained`, [num_trained + 1, D].
        """
        if self.item_tower is None:
            with self.item_embedding.gathered_gradients() if gathers else nullcontext():
                yield self.item_table
            return
        weight = self.item_embedding.weight
        num_rows = len(weight) if self.num_trained is None else self.num_trained + 1
        keep = torch.arange(len(weight), device=weight.device) < num_rows
        if self.training and 0 < self.id_dropout < 1:
            keep = keep & (torch.rand(len(weight), device=weight.device) >= self.id_dropout)
        table = add_content(weight, self.item_tower(), keep)
        with self.item_embedding.sharing(table, num_rows, gathers=gathers) as candidates:
            yield candidates

    def make_room(self, names: Iterable[str]) -> None:
        """Make the weights that only some models have, before a state dict is loaded.

        Args:
            names: The keys of the state dict. Without `retired`, all items are recommended.
        """
        known = set(names)
        self.retired = None
        if "retired" in known:
            weight = self.item_embedding.weight
            self.retired = torch.zeros(self.num_items + 1, dtype=torch.bool, device=weight.device)
        if "history_embedding" in known:
            self.use_history()

    def use_history(self) -> None:
        """Let the backbone see the `history` of batches, which it ignores otherwise.

        One learned vector, zero at first, is added to the embedding of each item of a history. A second call
        does nothing.
        """
        if self.history_embedding is None:
            weight = self.item_embedding.weight
            self.history_embedding = nn.Parameter(weight.new_zeros(self.embedding_size))

    def embed_items(self, items: Tensor) -> Tensor:
        """Return the embeddings of the sessions' items, mask tokens included.

        Args:
            items: [B, L] int64 in 0..V + 1; V + 1 is the mask token of a bidirectional backbone.

        Returns:
            [B, L, D].
        """
        if self.mask_embedding is None:
            return self._look_up(items)
        hidden = items == self.mask_index
        keys = self._look_up(items.masked_fill(hidden, PADDING_INDEX))
        return torch.where(hidden[..., None], self.mask_embedding, keys)

    def embed(self, batch: SessionBatch, keys: Tensor) -> Tensor:
        """Return the backbone's input: the items and, if they are inputs, their feedback and context.

        Args:
            batch: B sessions, without the items that are hidden from a bidirectional backbone.
            keys: [B, L, D] the embeddings of their items.

        Returns:
            [B, L, D].

        Raises:
            ValueError: The batch does not have the context on which the model was trained.
        """
        keys = self._add_context(batch.context, keys)
        if self.feedback_embedding is None:
            return keys
        explicit = batch.explicit_feedback
        known = [batch.feedback, torch.zeros_like(batch.feedback) if explicit is None else explicit]
        # Listened to, skipped, liked, disliked; all zero if unknown.
        signed = torch.stack([part.clamp(min=0) for one in known for part in (one, -one)], dim=2)  # [B, L, 4]
        embedded: Tensor = keys + self.feedback_embedding(signed.to(keys.dtype))
        return embedded

    def extend_items(self, rows: Tensor) -> None:
        """Append items, whose indices follow the known ones; `SkipCLModule.extend_items` calls it.

        Args:
            rows: [N, D] floating point, their embeddings.

        Raises:
            TypeError: `rows` has the wrong dtype.
            ValueError: It has another D.

        Examples:
            >>> from skipcl_lightning.backbones import SASRec
            >>> model = SessionModel(SASRec(16), num_items=100)
            >>> model.extend_items(torch.zeros(2, 16))
            >>> model.num_items, model.item_table.shape
            (102, torch.Size([103, 16]))
        """
        check_shape("rows", rows, "N D", {"D": self.embedding_size}, floating=True)
        self.item_embedding.extend_items(rows)
        if self.retired is not None:
            self.retired = F.pad(self.retired, (0, len(rows)))
        if self.transitions is not None:
            pairs = self.transitions[1]
            assert isinstance(pairs, Transitions)  # noqa: S101
            pairs.recode_pairs(self.num_items, self.num_items + len(rows))
        self.num_items += len(rows)

    def _add_context(self, context: Tensor | None, keys: Tensor) -> Tensor:
        if not self.context_sizes:
            return keys
        if context is None or context.shape[2] != len(self.context_sizes):
            raise ValueError(
                f"`batch.context` must have the codes of {', '.join(self.context_sizes)}, on which the model "
                f"was trained, got {'None' if context is None else context.shape[2]}. Take batches from a "
                f"data module with `context={list(self.context_sizes)}`."
            )
        for embedding, codes in zip(self.context_embeddings, context.unbind(2), strict=True):
            keys = keys + embedding(codes)
        return keys

    def forward(self, batch: SessionBatch, *, last_only: bool = False) -> Tensor:
        """Return the backbone's output at each position.

        Args:
            batch: B sessions.
            last_only: Return only the output at each session's last item; for a backbone that takes the
                argument.

        Returns:
            [B, L, D] in the space of the item table (of the latest `backbone.max_length` positions if L is
            more), or [B, 1, D]. For a causal backbone, position t holds the query after t items; for a
            bidirectional one, the prediction of the item at t.
        """
        batch = self.shorten(batch)
        only = {"last_only": True} if last_only else {}
        return self.encode(batch, self.embed_items(batch.items), **only)

    def session_query(self, batch: SessionBatch) -> Tensor:
        """Return the query of each session after all of its items.

        Args:
            batch: B sessions.

        Returns:
            [B, D]; its inner products with the item table are the scores. An empty session has zeros, or the
            output of a mask token alone.
        """
        if not self.causal:
            batch = append_mask_token(batch, self.mask_index)
        batch = self.shorten(batch)
        # A user's override or backbone may not take the argument.
        if takes_argument("last_only", self.forward, self.encode, self.backbone.forward):
            query: Tensor = self(batch, last_only=True).squeeze(1)
            return query
        return last_position(self(batch), batch.valid_mask)

    def encode(self, batch: SessionBatch, keys: Tensor, *, last_only: bool = False) -> Tensor:
        """Return the backbone's output for a batch that is short enough.

        Args:
            batch: B sessions with at most as many positions as the backbone takes, or one more for a causal
                backbone.
            keys: [B, L, D] the embeddings of their items, hidden ones included.
            last_only: As in `forward`, but without the additional position.

        Returns:
            [B, L, D], zero at the additional position; or [B, 1, D].

        Raises:
            ValueError: Items are hidden from a causal backbone.
        """
        if batch.cloze_mask is not None:
            batch, keys = self._hide(batch)
        embed = self.embed if self.embed_override is None else self.embed_override
        length = batch.items.shape[1]
        limit = self.max_length
        taken = length if limit is None or length <= limit else limit
        x, valid_mask = embed(batch, keys)[:, :taken], batch.valid_mask[:, :taken]
        if self.history_embedding is not None and batch.history is not None:
            before = self.embed_items(batch.history) + self.history_embedding  # [B, H, D]
            history_mask = batch.history != PADDING_INDEX
            output = self._encode_after(before, history_mask, x, valid_mask, last_only=last_only)
        elif last_only:
            output = self.backbone(x, valid_mask, last_only=True)
        else:
            output = self.backbone(x, valid_mask)
        return output if last_only or taken == length else F.pad(output, (0, 0, 0, length - taken))

    def _encode_after(
        self, before: Tensor, history_mask: Tensor, x: Tensor, valid_mask: Tensor, *, last_only: bool
    ) -> Tensor:
        """Return the output at the positions of the session, [B, L, D], or at its last one, [B, 1, D]."""
        places, joined_mask, of_session = history_places(history_mask, valid_mask, self.max_length)
        joined = _take_places(torch.cat([before, x], dim=1), places)  # [B, W, D]
        if last_only:
            last: Tensor = self.backbone(joined, joined_mask, last_only=True)
            return torch.where(valid_mask.any(dim=1)[:, None, None], last, 0)
        output = _take_places(self.backbone(joined, joined_mask), of_session)  # [B, L, D]
        return torch.where(valid_mask[..., None], output, 0)

    def added_scores(self, batch: SessionBatch, weight: float) -> SparseScores | None:
        """Return what the transitions from each session's last items add to the inner products.

        Args:
            batch: B sessions.
            weight: The weight of the transitions, at least 0.

        Returns:
            `weight` · (log(1 + c(last → i)) + 3 · log(1 + c(before last, last → i))), where c are counts;
            None if `weight` is 0 or nothing was counted.
        """
        if self.transitions is None or weight == 0:
            return None
        last = last_position(batch.items[..., None], batch.valid_mask).squeeze(1)
        before = batch.items.gather(1, (batch.lengths - 2).clamp(min=0)[:, None]).squeeze(1)
        pair = torch.where(batch.lengths > 1, before * (self.num_items + 1) + last, PADDING_INDEX)
        from_last, from_pair = (table(key) for table, key in zip(self.transitions, (last, pair), strict=True))
        return add_scores(from_last, from_pair, weights=(weight, _PAIR_FACTOR * weight))

    def score(self, query: Tensor) -> Tensor:
        """Return the inner products of the whole catalogue.

        Args:
            query: [..., D], as from `session_query`.

        Returns:
            [..., V + 1] inner products with the item table, without `added_scores`; column 0 is padding.
        """
        return query @ self.item_table.T

    def shorten(self, batch: SessionBatch, more: int = 0) -> SessionBatch:
        """Return the sessions cut to the latest positions that the backbone takes.

        Args:
            batch: B sessions.
            more: Additional positions beyond that limit.

        Returns:
            The batch, or a shorter one.

        Raises:
            TypeError: `batch` is something else.
        """
        if not isinstance(batch, SessionBatch):
            raise TypeError(
                f"`batch` must be a SessionBatch, got {type(batch).__name__}. Pass "
                "`SessionBatch(items, feedback)`."
            )
        return batch if self.max_length is None else batch.latest(self.max_length + more)

    def _look_up(self, items: Tensor) -> Tensor:
        embedded: Tensor = self.item_embedding(items)
        if self.item_tower is None or self.item_embedding.is_shared:
            return embedded
        content: Tensor = self.item_tower(items)
        return embedded + content

    def _hide(self, batch: SessionBatch) -> tuple[SessionBatch, Tensor]:
        """Return the batch as a bidirectional backbone may see it, and the embeddings of its items."""
        if self.causal:
            raise ValueError(
                "`batch` must hide nothing from a causal backbone, got a `cloze_mask`. Leave it None."
            )
        visible = hide_masked(batch, self.mask_index)
        return visible, self.embed_items(visible.items)


def _take_places(x: Tensor, places: Tensor) -> Tensor:
    """[B, W, D] the vectors of [B, L, D] at the places [B, W]."""
    return x.gather(1, places[..., None].expand(-1, -1, x.shape[2]))


def _check_id_dropout(value: float, tower: nn.Module | None, *, sparse: bool) -> None:
    check_number("id_dropout", value, minimum=0, maximum=1)
    if value > 0 and tower is None:
        raise ValueError(
            f"`id_dropout` must be 0 without content of the items, got {value!r}. Pass `item_features`."
        )
    if value == 1 and sparse:
        raise ValueError(
            "`id_dropout` must be below 1 beside `sparse_item_table`, got 1. It leaves the table out."
        )


def _embedding_size(backbone: nn.Module, given: int | None) -> int:
    """Return the given size, or the backbone's own."""
    size: int | None = getattr(backbone, "embedding_size", None) if given is None else given
    if size is None:
        raise ValueError(
            f"`embedding_size` must be given for {type(backbone).__name__}, which has no attribute of that "
            "name, got None. Pass the D of its input and output."
        )
    check_integer("embedding_size", size)
    return size
