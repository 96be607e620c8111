"""Recall@10 and speed of `ItemIndex` beside exact search on one core, one line for each catalogue.

OMP_NUM_THREADS=1 python tests/benchmarks/item_index.py                 # about 5 minutes
OMP_NUM_THREADS=1 python tests/benchmarks/item_index.py --checkpoint best.ckpt --log sessions.parquet

Vectors have 64 dimensions. `gaussian` vectors are independent, for which no index does well. `clusters` are
grown in two levels with lengths that differ. With a checkpoint that predicts skips, and a table of sessions
for it, `trained` are its vectors and queries, grown to the wanted size: each new track is a trained one whose
vector is changed by noise of `--noise` of its length. Times are processor times.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median

import polars as pl
import torch
from jsonargparse import auto_cli
from torch import Tensor

from skipcl_lightning import Recommender
from skipcl_lightning.backbones import SASRec
from skipcl_lightning.data import ItemVocabulary, SessionEncoder
from skipcl_lightning.export.item_index import ItemIndex
from skipcl_lightning.functional import top_k_items
from skipcl_lightning.model import Scorer, SessionModel

SIZE = 64
QUERIES = 512
TOP_K = 10


def seconds(call: Callable[[], object], repeats: int) -> float:
    """Return the median processor time of a call."""
    taken = []
    for _ in range(repeats + 1):
        start = time.process_time()
        call()
        taken.append(time.process_time() - start)
    return median(taken[1:])


def gaussian(num_items: int) -> tuple[Tensor, Tensor]:
    """Return independent vectors of items and queries."""
    return torch.randn(num_items, SIZE), torch.randn(QUERIES, SIZE)


def clusters(num_items: int) -> tuple[Tensor, Tensor]:
    """Return items of clusters whose sizes fall with their rank, and queries near clusters."""
    number = round(2 * num_items**0.5)
    wide = torch.randn(number // 20, SIZE)
    centres = wide[torch.randint(len(wide), (number,))] + 0.7 * torch.randn(number, SIZE)
    chosen = torch.multinomial((1.0 + torch.arange(number)) ** -0.7, num_items, replacement=True)
    items = centres[chosen] + 0.6 * torch.randn(num_items, SIZE)
    items *= (0.3 * torch.randn(num_items, 1)).exp()
    near = centres[chosen[torch.randint(num_items, (QUERIES,))]]
    return items, near + 0.5 * torch.randn(QUERIES, SIZE)


def plain(num_items: int, kind: Callable[[int], tuple[Tensor, Tensor]]) -> tuple[Recommender, Tensor]:
    """Return an untrained model with given item vectors, and queries."""
    items, queries = kind(num_items)
    model = SessionModel(SASRec(SIZE, max_length=50), num_items=num_items)
    model.item_embedding.weight[1:] = items
    encoder = SessionEncoder(ItemVocabulary(pl.int_range(num_items, eager=True)), max_length=50)
    return Recommender(Scorer(model).eval(), encoder), queries


def grown(num_items: int, checkpoint: Path, noise: float) -> Recommender:
    """Return the model of a checkpoint with more tracks than it was trained with."""
    trained = Recommender.from_checkpoint(checkpoint)
    known = trained.scorer.num_items
    source = torch.randint(1, known + 1, (num_items - known,))
    model, head = trained.scorer.model, trained.scorer.skip_prediction
    model.extend_items(_changed(model.item_embedding.weight[source], noise))
    head.extend_items(len(source))
    if head.vectors is not None:
        head.vectors[known + 1 :] = _changed(head.vectors[source], noise)
    if head.biases is not None:
        head.biases[known + 1 :] = head.biases[source]
    vocabulary = trained.encoder.vocabulary
    new = (
        [f"new {n}" for n in range(len(source))] if vocabulary.dtype == pl.String else range(-len(source), 0)
    )
    return Recommender(trained.scorer, trained.encoder.replace(vocabulary=vocabulary.extended(list(new))))


def _changed(vectors: Tensor, noise: float) -> Tensor:
    """Return vectors plus noise of a share of their length."""
    scale = noise * vectors.norm(dim=1, keepdim=True) / vectors.shape[1] ** 0.5
    return vectors + scale * torch.randn(vectors.shape)


def catalogues(
    num_items: int, checkpoint: Path | None, log: Path | None, noise: float
) -> Iterator[tuple[str, Recommender, Tensor, float]]:
    """Yield the name, the model, queries and the skip penalty of each row."""
    if checkpoint is None or log is None:
        for kind in (clusters, gaussian):
            yield (kind.__name__, *plain(num_items, kind), 0.0)
        return
    recommender = grown(num_items, checkpoint, noise)
    plays = pl.read_parquet(log)
    if "feedback" not in plays.columns:
        plays = plays.with_columns(feedback=pl.when(pl.col("seconds_played") < 30).then(-1.0).otherwise(1.0))
    kept = plays.filter(
        pl.col("session_id").rank("dense") <= 4 * QUERIES,
        pl.col("item_id").is_in(recommender.encoder.vocabulary.to_series().implode()),
    )
    sessions = kept.select("session_id", "item_id", "feedback")
    for penalty in (0.0, 0.5, 2.0):
        queries = torch.tensor(
            recommender.embed_sessions(sessions, skip_penalty=penalty)["embedding"].to_numpy()
        )
        yield f"trained, penalty {penalty}", recommender, queries[:QUERIES], penalty


def search_exactly(queries: Tensor, table: Tensor, batch: int) -> tuple[Tensor, float, float]:
    """Return the best items, and the seconds for one query alone and for one of a batch."""
    exact = partial(top_k_items, item_embeddings=table, top_k=TOP_K)
    best = torch.cat([exact(part)[0] for part in queries.split(batch)])
    many = seconds(partial(exact, queries[:batch]), 2) / batch
    return best, seconds(partial(exact, queries[:1]), 5), many


def row(
    index: ItemIndex, queries: Tensor, table: Tensor, exact: tuple[Tensor, float, float], repeats: int
) -> str:
    """Return the cells of the index at its present settings."""
    search = partial(index.top_k_items, item_embeddings=table, top_k=TOP_K)
    found = search(queries)[0]
    recall = (found[:, :, None] == exact[0][:, None]).any(2).float().mean()
    each = iter(queries.split(1))
    one = seconds(lambda: search(next(each)), repeats)
    many = seconds(partial(search, queries), 3) / len(queries)
    return (
        f"{index.num_probes} | {index.num_candidates} | {recall:.4f} "
        f"| {1 / one:,.0f} | {1 / exact[1]:,.0f} | {exact[1] / one:.0f} "
        f"| {1 / many:,.0f} | {1 / exact[2]:,.0f} | {exact[2] / many:.0f} |"
    )


def measure(
    num_items: tuple[int, ...] = (100_000, 1_000_000),
    checkpoint: Path | None = None,
    log: Path | None = None,
    noise: float = 0.3,
    probes: tuple[int, ...] = (),
    candidates: tuple[int, ...] = (),
    repeats: int = 100,
) -> None:
    """Print the table: queries per second, one by one and in batches, with the index and exactly.

    Args:
        num_items: The sizes of the catalogue.
        checkpoint: A model with a `SkipPrediction` head.
        log: Sessions for it: session_id, item_id, and feedback or seconds_played.
        noise: The change of new tracks, as a share of the length of the vector.
        probes: Values of `num_probes`; none for the default.
        candidates: Values of `num_candidates`; none for the default.
        repeats: The number of single queries, at most 511.
    """
    torch.set_grad_enabled(False)
    heads = "built, s | probes | candidates | recall@10 | 1/s | exact | x | batch 1/s | exact | x"
    print(f"| vectors | tracks | {heads} |\n|---|" + "---:|" * 11)
    for size in num_items:
        torch.manual_seed(0)
        built: tuple[Recommender, ItemIndex, float] | None = None
        for name, recommender, queries, penalty in catalogues(size, checkpoint, log, noise):
            if built is None or built[0] is not recommender:
                start = time.process_time()
                index = ItemIndex.build(recommender.scorer, recommender.encoder)
                built = recommender, index, time.process_time() - start
            _, index, build = built
            with recommender.scorer.at_skip_penalty(penalty):
                table = recommender.scorer.item_table
            exact = search_exactly(queries, table, min(256, 2**24 // size))
            for number in probes or (index.num_probes,):
                for wanted in candidates or (index.num_candidates,):
                    index.num_probes, index.num_candidates = number, wanted
                    cells = row(index, queries, table, exact, repeats)
                    print(f"| {name} | {size:,} | {build:.0f} | {cells}", flush=True)


if __name__ == "__main__":
    auto_cli(measure, as_positional=False)
