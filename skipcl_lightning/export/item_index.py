"""Approximate nearest-neighbour search with FAISS, for catalogues that are too large for exact search."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from skipcl_lightning._checks import check_integer, import_extra
from skipcl_lightning._files import open_checkpoint, save_checkpoint
from skipcl_lightning.batch import PADDING_INDEX, is_among
from skipcl_lightning.data import SessionEncoder
from skipcl_lightning.functional import SparseScores, look_up_scores, top_k_items
from skipcl_lightning.functional.ranking.ranks import multiply_pairs
from skipcl_lightning.functional.ranking.top_k import in_order
from skipcl_lightning.model import Scoring

__all__ = ["ItemIndex", "item_vectors"]

FORMAT = 1
_LEVELS = 16  # of a code of 4 bits, for which FAISS has its fastest scan
_KMEANS_SEED = 1234
# Candidates beyond `top_k` that are scored in float64.
_SPARE = 64
_FEWEST_ITEMS = 1000
_MOST_NUMBERS = 2**24
# Weights of `SkipPrediction` on which items do not depend.
_OF_SESSIONS = ("session_projection", "temperature")


class ItemIndex:
    """Items grouped in lists by their vectors; a search reads only the lists that fit the session best.

    `Recommender.recommend(…, index=index)` takes candidates from the index, and scores them with the model.
    Scores and probabilities are therefore exact; only an item that is no candidate can be missing. Skip
    penalty, transitions, retired, excluded and allowed items are chosen at each request, as without an index.

    The index has neither vectors nor ids of its own, only digests: it belongs to one trained model and is
    refused for any other. Build it again after further training. It needs the extra `faiss`.

    An item is kept as the number of its list and 4 bits for each dimension of its difference from the centre
    of the list: 34 bytes at D = 64 and a million items, and 43 with a head of M = 16. With a `SkipPrediction`
    head, the vector is a row of `SkipPrediction.extended_table`, and a query without a penalty has zeros in
    its second part.

    Make an index with `build` or `load`.

    Attributes:
        num_probes: The lists that a search reads, at first a fifth of them. More find more of the best items
            and take longer.
        num_candidates: The items that the model scores for each session, at least 10 · `top_k`.

    Examples:
        >>> from skipcl_lightning import Recommender
        >>> from skipcl_lightning.backbones import SASRec
        >>> from skipcl_lightning.data import ItemVocabulary
        >>> from skipcl_lightning.model import Scorer, SessionModel
        >>> encoder = SessionEncoder(ItemVocabulary(range(5000)), max_length=50)
        >>> recommender = Recommender(Scorer(SessionModel(SASRec(8), num_items=5000)), encoder)
        >>> index = ItemIndex.build(recommender.scorer, encoder)
        >>> recommender.recommend([[7, 3]], top_k=2, index=index).columns
        ['session_id', 'rank', 'item_id', 'score']
    """

    def __init__(self, state: dict[str, Any]) -> None:
        self._state = state
        self._search = _assemble(state)
        num_lists = len(state["centres"])
        # Recall .99 of the vectors of a trained model, at 100,000 tracks and a million (docs/results.md).
        self.num_probes = max(1, num_lists // 5)
        self.num_candidates = 200
        self._checked: tuple[Any, list[tuple[int, int, int]], list[Tensor]] | None = None

    def __len__(self) -> int:
        return len(self._state["codes"])

    def __repr__(self) -> str:
        return f"ItemIndex({len(self):,} items, {len(self._state['centres']):,} lists)"

    @classmethod
    @torch.no_grad()
    def build(cls, scorer: Scoring, encoder: SessionEncoder, *, num_lists: int | None = None) -> "ItemIndex":
        """Group the items of a trained model. A million items take about half a minute on one core.

        Args:
            scorer: A trained `SkipCLModule` or a `Scorer`, such as `recommender.scorer`.
            encoder: Its item vocabulary, such as `recommender.encoder`.
            num_lists: The number of lists; None for 2 √V, at most V / 39, below which FAISS warns of too few
                items for a list.

        Returns:
            The index; the same model gives the same one.

        Raises:
            ImportError: FAISS is not installed.
            ValueError: The encoder has another number of items, or `num_lists` is out of range.
        """
        faiss = _faiss()
        if scorer.num_items != len(encoder.vocabulary):
            raise ValueError(
                f"`encoder` must have the {scorer.num_items:,} items of the model, got "
                f"{len(encoder.vocabulary):,}. Take both from the same `Recommender`."
            )
        check_integer(
            "num_items", scorer.num_items, minimum=_FEWEST_ITEMS, cure="Search a small catalogue exactly."
        )
        vectors = item_vectors(scorer)
        if num_lists is None:
            num_lists = max(1, min(round(2 * len(vectors) ** 0.5), len(vectors) // 39))
        check_integer("num_lists", num_lists, maximum=len(vectors), cure="A list needs an item.")
        size = vectors.shape[1]
        # By distance, so that differences from the centres are small.
        grouping = faiss.IndexIVFPQ(faiss.IndexFlatL2(size), size, num_lists, size, 4)
        grouping.cp.seed = grouping.pq.cp.seed = _KMEANS_SEED
        grouping.train(vectors)
        state = {
            "format": FORMAT,
            "centres": torch.from_numpy(grouping.quantizer.reconstruct_n(0, num_lists)),
            "levels": torch.from_numpy(faiss.vector_to_array(grouping.pq.centroids).reshape(size, _LEVELS)),
            "codes": torch.from_numpy(grouping.sa_encode(vectors)),
            "vectors_digest": _digest(_numbers(_item_weights(scorer))),
            "ids_digest": _digest(_id_bytes(encoder.vocabulary.to_series())),
        }
        return cls(state)

    def save(self, path: str | Path) -> None:
        """Write the index to a file, which appears complete or not at all.

        Args:
            path: The file, such as `items.index`; an existing one is replaced.

        Raises:
            OSError: The file cannot be written.
        """
        save_checkpoint(self._state, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> "ItemIndex":
        """Read an index that `save` wrote. No code of the file runs, and FAISS does not read it.

        Args:
            path: The file.

        Raises:
            FileNotFoundError: There is no such file.
            ImportError: FAISS is not installed.
            ValueError: The file is damaged, or of another kind or format.
        """
        _faiss()
        try:
            state = open_checkpoint(path, mmap=False)
            _check_state(state)
            return cls(state)
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise ValueError(
                f"`path` must be a file of `ItemIndex.save`, got {str(path)!r}, which is damaged or another "
                f"file ({error}). Copy it again, or build the index anew."
            ) from error

    @classmethod
    def load_or_build(cls, path: str | Path, scorer: Scoring, encoder: SessionEncoder) -> "ItemIndex":
        """Read an index and check it; build and save it if there is no such file.

        Args:
            path: As for `load` and `save`.
            scorer: As for `build`.
            encoder: As for `build`.

        Raises:
            ImportError: As for `build`.
            OSError: As for `save`.
            ValueError: As for `load`, `check` and `build`.
        """
        if Path(path).exists():
            index = cls.load(path)
            index.check(scorer, encoder)
        else:
            index = cls.build(scorer, encoder)
            index.save(path)
        return index

    @torch.no_grad()
    def check(self, scorer: Scoring, encoder: SessionEncoder) -> None:
        """Raise unless the index was built from this model, as it is now.

        `Recommender.recommend` calls it. Weights that require no gradient and have not changed since the last
        call are not read again. A million items take about 0.3 s otherwise, so freeze a model that you
        trained (`module.freeze()`); `Recommender.from_checkpoint` does.

        Args:
            scorer: The model.
            encoder: Its item vocabulary.

        Raises:
            ValueError: The model has other item vectors, or its items other ids or another order.
        """
        weights = _item_weights(scorer)
        # torch counts no changes of tensors of inference mode, nor those by its fused optimizers.
        is_fixed = not any(one.requires_grad or one.is_inference() for one in weights)
        # The kept weights see to it that no new one gets the address of an old one.
        versions = [(one.data_ptr(), one.numel(), one._version) for one in weights] if is_fixed else []
        ids = encoder.vocabulary
        if is_fixed and self._checked is not None and self._checked[:2] == (ids, versions):
            return
        for name, digest in (
            ("ids", _digest(_id_bytes(ids.to_series()))),
            ("vectors", _digest(_numbers(weights))),
        ):
            if digest != self._state[f"{name}_digest"] or len(self) != scorer.num_items:
                raise ValueError(
                    f"`index` must be built from this model, got one with other {name}. "
                    "Build it again with `ItemIndex.build` after each training."
                )
        self._checked = (ids, versions, weights)

    @torch.no_grad()
    def top_k_items(
        self,
        queries: Tensor,
        item_embeddings: Tensor,
        top_k: int,
        *,
        exclude: Tensor | None = None,
        added: SparseScores | None = None,
        retired: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return almost always the same as the function `top_k_items`, in less time.

        Queries for which too few candidates are left are searched exactly. So are all of them if more than
        nine items in ten are retired or not allowed, or a list needs more than a tenth of the items.

        Args:
            queries: [N, D] or [N, D + M + 1] floating point, of `Scoring.session_query`.
            item_embeddings: [V + 1, D] or [V + 1, D + M + 1] floating point, `Scoring.item_table`.
            top_k: Items for each query, in 1..V.
            exclude: As for the function.
            added: As for the function. The items with an additional score are candidates.
            retired: As for the function.

        Returns:
            Items [N, top_k] int64 and their scores [N, top_k] float32, as of the function.

        Raises:
            TypeError: As for the function, or `num_probes` or `num_candidates` is no integer.
            ValueError: As for the function, or `num_probes` or `num_candidates` is below 1.
        """
        check_integer("num_probes", self.num_probes)
        check_integer("num_candidates", self.num_candidates)
        own = 0 if exclude is None else int((exclude != PADDING_INDEX).sum(dim=1).max())
        wanted = max(self.num_candidates, 10 * top_k) + own
        left = len(self) if retired is None else int((~retired[PADDING_INDEX + 1 :]).sum())
        if 10 * wanted > len(self) or 10 * left < len(self):
            return top_k_items(queries, item_embeddings, top_k, exclude=exclude, added=added, retired=retired)
        candidates = self._candidates(queries, wanted, retired)
        if added is not None:
            # Each item once.
            others = candidates.masked_fill(is_among(candidates, added.items), PADDING_INDEX)
            candidates = torch.cat([others, added.items], dim=1)
        # Some queries at a time, to spare memory.
        step = max(1, _MOST_NUMBERS // (candidates.shape[1] * queries.shape[1]))
        parts = [slice(start, start + step) for start in range(0, len(queries), step)]
        found = [
            _score(
                queries[part],
                item_embeddings,
                candidates[part],
                top_k,
                None if exclude is None else exclude[part],
                _rows(added, part),
                retired,
            )
            for part in parts
        ]
        items, scores = (torch.cat(one) for one in zip(*found, strict=True))
        short = scores[:, -1] == -torch.inf
        if short.any():
            items[short], scores[short] = top_k_items(
                queries[short],
                item_embeddings,
                top_k,
                exclude=None if exclude is None else exclude[short],
                added=_rows(added, short),
                retired=retired,
            )
        return items, scores

    def _candidates(self, queries: Tensor, count: int, retired: Tensor | None) -> Tensor:
        """[N, count] items whose approximate products are the largest, 0 for none."""
        faiss, size = _faiss(), self._state["centres"].shape[1]
        query = F.pad(queries.float(), (0, size - queries.shape[1])).cpu().contiguous().numpy()
        # FAISS takes memory and time for lists that there are not.
        probes = min(self.num_probes, len(self._state["centres"]))
        settings = faiss.SearchParametersIVF(nprobe=probes)
        if retired is not None:
            kept = np.packbits(~retired[PADDING_INDEX + 1 :].cpu().numpy(), bitorder="little")
            settings = faiss.SearchParametersIVF(nprobe=probes, sel=faiss.IDSelectorBitmap(kept))
        _, rows = self._search.search(query, count, params=settings)
        return torch.from_numpy(rows).to(queries.device) + (PADDING_INDEX + 1)


def _rows(added: SparseScores | None, rows: slice | Tensor) -> SparseScores | None:
    return None if added is None else SparseScores(added.items[rows], added.scores[rows])


def _score(
    queries: Tensor,
    table: Tensor,
    items: Tensor,
    top_k: int,
    exclude: Tensor | None,
    added: SparseScores | None,
    retired: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return the best of the candidates [N, C] with their exact scores, as `top_k_items` rounds them."""
    out = (items == PADDING_INDEX) | is_among(items, exclude)
    if retired is not None:
        out |= retired[items]
    # The best few of them in float32, then in float64.
    more = torch.zeros_like(items, dtype=torch.float32) if added is None else look_up_scores(added, items)
    chosen = F.embedding(items, table).float()  # [N, C, D]
    rough = torch.baddbmm(more[:, None], queries[:, None].float(), chosen.mT).squeeze(1)
    rough = rough.masked_fill(out, -torch.inf).nan_to_num_(nan=-torch.inf)
    places = rough.topk(min(top_k + _SPARE, items.shape[1]), dim=1).indices
    items, out, more = items.gather(1, places), out.gather(1, places), more.gather(1, places)
    scores = (multiply_pairs(queries, table, items)[0] + more).float()
    scores = scores.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    items, scores = in_order(items, scores.masked_fill(out, -torch.inf))
    return items[:, :top_k], scores[:, :top_k]


def _assemble(state: dict[str, Any]) -> Any:
    """Return the FAISS index of a state."""
    faiss = _faiss()
    centres, levels = state["centres"].numpy(), state["levels"].numpy()
    size = centres.shape[1]
    lists = faiss.IndexFlatIP(size)
    lists.add(centres)
    slow = faiss.IndexIVFPQ(lists, size, len(centres), size, 4, faiss.METRIC_INNER_PRODUCT)
    faiss.copy_array_to_vector(levels.ravel(), slow.pq.centroids)
    slow.is_trained = True
    slow.add_sa_codes(state["codes"].numpy())
    fast = faiss.IndexIVFPQFastScan(slow)
    fast.referenced_objects = [lists]  # which C++ only points to
    return fast


def _check_state(state: dict[str, Any]) -> None:
    """Raise `ValueError` unless a state has the parts of an index, which fit each other."""
    if state["format"] != FORMAT:
        raise ValueError(f"format {state['format']!r}; this version reads {FORMAT}")
    if not all(isinstance(state[f"{name}_digest"], str) for name in ("ids", "vectors")):
        raise ValueError("digests that are none")
    centres, levels, codes = state["centres"], state["levels"], state["codes"]
    num_lists, size = centres.shape
    number_bytes = ((num_lists - 1).bit_length() + 7) // 8
    right = [
        (centres, (num_lists, size), torch.float32),
        (levels, (size, _LEVELS), torch.float32),
        (codes, (len(codes), number_bytes + (size + 1) // 2), torch.uint8),
    ]
    for tensor, shape, dtype in right:
        # One that is not contiguous may show a small tensor as a huge one.
        is_right = tensor.shape == shape and tensor.dtype == dtype and tensor.is_contiguous()
        if not (is_right and tensor.numel()):
            raise ValueError(f"a part of shape {tuple(tensor.shape)} and {tensor.dtype}")
        if not tensor.isfinite().all():
            raise ValueError("numbers that are not finite")
    places = 256 ** torch.arange(number_bytes)
    if (codes[:, :number_bytes] * places).sum(dim=1).max() >= num_lists:
        raise ValueError("items in lists that there are not")


def item_vectors(scorer: Scoring) -> np.ndarray:
    """[V, D] float32, or [V, D + M + 1] of a model that predicts skips; the first is that of item 1."""
    table = scorer.model.item_table
    table = scorer.skip_prediction.extended_table(table) if scorer.predicts_skips else table
    return table[PADDING_INDEX + 1 :].float().cpu().contiguous().numpy()


def _item_weights(scorer: Scoring) -> list[Tensor]:
    """The weights that the vectors of the items depend on."""
    model = scorer.model
    head = scorer.skip_prediction if scorer.predicts_skips else None
    parts = [model.item_embedding, model.item_tower, head]
    known = [part for part in parts if part is not None]
    named = [pair for part in known for pair in (*part.named_parameters(), *part.named_buffers())]
    return [value for name, value in named if name not in _OF_SESSIONS]


def _numbers(tensors: list[Tensor]) -> Iterator[Any]:
    for tensor in tensors:
        yield tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy()


def _id_bytes(ids: pl.Series) -> Iterator[Any]:
    if ids.dtype == pl.String:
        yield ids.str.len_bytes().to_numpy()
        yield "".join(ids.to_list()).encode()
    else:
        yield np.ascontiguousarray(ids.to_numpy())


def _digest(parts: Iterator[Any]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _faiss() -> Any:
    return import_extra("faiss", extra="faiss", user="An `ItemIndex`")
