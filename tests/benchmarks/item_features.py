"""HitRate@10 of tracks without plays in training, with and without the content of the tracks, and its cost.

python tests/benchmarks/item_features.py         # about three minutes on one core
python tests/benchmarks/item_features.py --cost  # a training step at 50,000 items, about a minute
python tests/benchmarks/item_features.py --movielens ml-100k   # genres: the folder of u.data and u.item

A tenth of the tracks of a simulated log are played only as the last track of sessions. All tracks are equally
popular. The content of a track is a vector of 8 numbers, as of an audio model: its mood on a circle,
projected, with noise. In one log the next track has the mood of the last one; in the other it is often its
one successor, which no content tells. Of MovieLens-100K, a tenth of the movies are new: each user's ratings
end with the first of them after ten others.
"""

import argparse
import logging
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import torch
from lightning.pytorch import Trainer, seed_everything

from skipcl_lightning import SessionBatch, SessionDataModule, SkipCLModule, evaluate
from skipcl_lightning.backbones import SASRec
from skipcl_lightning.data import ItemFeatures, ItemVocabulary, read_movielens, simulate_sessions
from skipcl_lightning.heads import SampledSoftmax

NUM_ITEMS, NUM_MOODS, EPOCHS, SEEDS = 1000, 20, 10, 2
LOGS = {"moods": 0.0, "moods and successors": 0.55}
# The content is given, and id_dropout.
MODELS = {
    "ids alone": (False, 0.0),
    "with content": (True, 0.0),
    "with content, id_dropout=0.2": (True, 0.2),
    "with content, id_dropout=0.5": (True, 0.5),
    "content alone, id_dropout=1": (True, 1.0),
}
# Of the training step.
MANY_ITEMS, VECTOR, SIZE, SESSIONS, LENGTH, STEPS = 50_000, 128, 64, 128, 20, 20


def simulate(follow: float, seed: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return a log in which a tenth of the tracks are new at the end, and the content of all tracks."""
    log = simulate_sessions(
        4000,
        num_items=NUM_ITEMS,
        num_moods=NUM_MOODS,
        popularity_exponent=0.0,
        follow_probability=follow,
        seed=seed,
    ).collect()
    tracks = log.select("item_id", "item_mood").unique().sort("item_id")
    random = np.random.default_rng(seed)
    new = tracks["item_id"].sample(tracks.height // 10, seed=seed)
    is_last = pl.col("position") == pl.col("position").max().over("session_id")
    log = log.filter(is_last | ~pl.col("item_id").is_in(new.implode()))
    angle = 2 * np.pi * tracks["item_mood"].to_numpy() / NUM_MOODS
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    audio = circle @ random.normal(size=(2, 8)) + 0.3 * random.normal(size=(tracks.height, 8))
    return log, tracks.select("item_id", audio=pl.Series(audio))


def read_movielens_genres(folder: Path, seed: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the ratings, of which a tenth of the movies are new at the end, and the genres of all movies."""
    log = read_movielens(folder / "u.data").collect().sort("session_id", "timestamp", maintain_order=True)
    lines = (folder / "u.item").read_text(encoding="latin-1").splitlines()
    genres = [[number for number, has in enumerate(line.split("|")[-19:]) if has == "1"] for line in lines]
    ids = pl.Series([line.split("|")[0] for line in lines]).cast(log["item_id"].dtype)
    content = pl.DataFrame({"item_id": ids, "genres": genres}, schema_overrides={"genres": pl.List(pl.Int64)})
    content = content.with_columns(pl.col("genres").cast(pl.List(pl.String)))
    new = content["item_id"].sample(content.height // 10, seed=seed)
    is_new = pl.col("item_id").is_in(new.implode())
    known = (~is_new).cum_sum().over("session_id")
    first = (is_new & (known > 10)).cum_sum().over("session_id")
    # Up to the first new movie after ten others, without earlier ones.
    log = log.with_columns(first=first, known=known, is_new=is_new)
    ends = (pl.col("first") == 1) & pl.col("is_new") & (pl.col("known") > 10)
    return log.filter(((pl.col("first") == 0) & ~pl.col("is_new")) | ends), content


def measure(
    log: pl.DataFrame, content: pl.DataFrame, seed: int, *, has_content: bool, id_dropout: float
) -> dict[str, float]:
    """Return HitRate@10 of all listened targets, of new and of known tracks."""
    seed_everything(seed, verbose=False)
    data = SessionDataModule(
        log, cold_targets="score", batch_size=128, seed=seed, item_features=content if has_content else None
    )
    module = SkipCLModule(
        SASRec(SIZE, dropout=0.2),
        num_items=data.num_items,
        item_features=data.item_features,
        id_dropout=id_dropout,
        learning_rate=3e-3,
    )
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(module, data)
    targets = evaluate(module, data, num_resamples=0).sessions.filter(~pl.col("skipped"))
    hit, is_new = pl.col("rank") <= 10, pl.col("target_count") == 0
    row = targets.select(all=hit.mean(), new=hit.filter(is_new).mean(), known=hit.filter(~is_new).mean())
    return row.row(0, named=True) | {"new targets": int((targets["target_count"] == 0).sum())}


def step_seconds(*, has_content: bool, sparse: bool) -> float:
    """Return the seconds of processor time of a training step with a sampled softmax and its optimizer."""
    torch.manual_seed(0)
    ids = ItemVocabulary(range(1, MANY_ITEMS + 1))
    vectors = pl.Series(torch.randn(MANY_ITEMS, VECTOR).numpy())
    table = pl.DataFrame({"item_id": ids.to_series(), "audio": vectors})
    module = SkipCLModule(
        SASRec(SIZE, dropout=0.0),
        num_items=MANY_ITEMS,
        item_features=ItemFeatures.from_table(table, ids) if has_content else None,
        id_dropout=0.2 if has_content else 0.0,
        next_item_loss=SampledSoftmax(256),
        sparse_item_table=sparse,
    )
    items = torch.randint(1, MANY_ITEMS + 1, (SESSIONS, LENGTH))
    batch = SessionBatch(items, torch.ones(SESSIONS, LENGTH))
    optimizer = module.configure_optimizers()["optimizer"]
    start = 0.0
    for step in range(STEPS + 1):
        if step == 1:
            start = time.process_time()
        optimizer.zero_grad()
        module.losses(module.part_losses(batch))["loss"].backward()
        optimizer.step()
    return (time.process_time() - start) / STEPS


def main() -> None:
    """Print a table of hit rates, or of the cost."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cost", action="store_true", help="measure a training step")
    parser.add_argument("--movielens", type=Path, help="the folder of u.data and u.item")
    arguments = parser.parse_args()
    if arguments.cost:
        rows = [
            {
                "sparse table": sparse,
                "content": content,
                "ms": 1e3 * step_seconds(has_content=content, sparse=sparse),
            }
            for sparse in (False, True)
            for content in (False, True)
        ]
        print(pl.DataFrame(rows))
        return
    logs = {name: partial(simulate, follow) for name, follow in LOGS.items()}
    if arguments.movielens is not None:
        logs = {"MovieLens-100K": partial(read_movielens_genres, arguments.movielens)}
    for name, make in logs.items():
        for model, (has_content, id_dropout) in MODELS.items():
            found = pl.DataFrame(
                [
                    measure(*make(seed), seed, has_content=has_content, id_dropout=id_dropout)
                    for seed in range(SEEDS)
                ]
            )
            print(name, "|", model, "|", found.to_dicts(), "| mean", found.mean().row(0), flush=True)


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    main()
