"""Train the backbones on a public data set with the published protocol, and compare with published results.

python examples/reproduce.py ml-1m ml-1m/ratings.dat
python examples/reproduce.py ml-1m ml-1m.txt              # lines of "user item" in time order
python examples/reproduce.py beauty beauty.txt --models [SASRec,BERT4Rec] --accelerator gpu
python examples/reproduce.py ml-100k ml-100k/u.data --jobs 2
python examples/reproduce.py ml-1m --smoke true           # seconds, on a simulated file

The protocol: each user's last item is the test target, the item before it the validation target. The target
is ranked among the whole catalogue without seen items. Users and items with fewer than 5 rows are removed;
all ratings count equally. Training stops when the validation NDCG@10 has not risen for some epochs, and the
best epoch is tested. No skip head is used, since these data have no skips.

The published figures are from at most 100 epochs, 200 for BERT4Rec, which are the defaults. The validation
curve is printed while a model trains, one line each few epochs.
"""

import logging
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Literal, get_args

import polars as pl
import torch
from helpers.configurations import CONFIGURATIONS, EMBEDDING_SIZE, fits
from helpers.smoke_data import write_interactions
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from rich.console import Console
from rich.table import Table

from skipcl_lightning import SkipCLModule
from skipcl_lightning.data import SessionDataModule, read_movielens
from skipcl_lightning.evaluation import LastItemMarkov, Popularity, SessionKNN, evaluate

METRICS = ("hit_rate@10", "ndcg@10")
MAX_LENGTH = {"ml-100k": 100, "ml-1m": 200, "beauty": 50}

Dataset = Literal["ml-100k", "ml-1m", "beauty"]


class ValidationCurve(Callback):
    """Callback that prints the validation NDCG@10 after epoch 1 and each few epochs.

    Args:
        name: The run, printed at the beginning of each line.
        every: Epochs between two lines.
    """

    def __init__(self, name: str, *, every: int) -> None:
        self.name = name
        self.every = every

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Print a line."""
        epoch = trainer.current_epoch + 1
        if epoch == 1 or epoch % self.every == 0:
            value = float(trainer.callback_metrics["val/ndcg@10"])
            # Flushed, because several processes share the output.
            print(f"{self.name}, epoch {epoch}: validation ndcg@10 {value:.4f}", flush=True)


def read_interactions(path: Path) -> pl.LazyFrame:
    """Read a data set's usual file as a canonical table, with every row labelled as listened.

    Args:
        path: Any file that `read_movielens` reads: ratings, or lines of "user item" in time order.

    Returns:
        One session per user; rows with equal times keep the order of the file.
    """
    return read_movielens(path, label="watched")


def make_data(dataset: Dataset, path: Path, batch_size: int) -> SessionDataModule:
    """Return the data of the published protocol."""
    return SessionDataModule(
        read_interactions(path),
        batch_size=batch_size,
        max_length=MAX_LENGTH[dataset],
        min_session_length=5,
        min_item_count=5,
    )


def run(
    name: str,
    seed: int,
    *,
    dataset: Dataset,
    path: Path,
    epochs: int | None,
    batch_size: int,
    learning_rate: float,
    accelerator: str,
    curve_every: int,
    threads: int,
) -> dict[str, float]:
    """Train and test one model with one seed; call it in a new process.

    Returns:
        The test metrics, the number of epochs, seconds, and the peak memory in MiB.
    """
    torch.set_num_threads(threads)
    # Otherwise each process prints messages on devices and limits.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    seed_everything(seed, verbose=False)
    started = time.perf_counter()
    data = make_data(dataset, path, batch_size)
    configuration = CONFIGURATIONS[name]
    module = SkipCLModule(
        configuration.backbone(MAX_LENGTH[dataset]),
        None,
        num_items=data.num_items,
        embedding_size=EMBEDDING_SIZE,
        next_item_loss=None if configuration.loss is None else configuration.loss(),
        exclude_seen=True,
        feedback_input=False,
        top_k=(1, 5, 10, 20),
        learning_rate=learning_rate,
        **configuration.settings,
    )
    with tempfile.TemporaryDirectory() as folder:
        best = ModelCheckpoint(dirpath=folder, monitor="val/ndcg@10", mode="max")
        stop = EarlyStopping("val/ndcg@10", mode="max", patience=configuration.patience)
        curve = ValidationCurve(f"{name}, seed {seed}", every=curve_every)
        trainer = Trainer(
            accelerator=accelerator,
            devices=1,
            max_epochs=epochs or configuration.epochs,
            callbacks=[best, stop, curve],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(module, data)
        measured = trainer.test(module, data, ckpt_path="best", weights_only=True, verbose=False)[0]
    result = {metric: measured[f"test/{metric}"] for metric in METRICS}
    result["epochs"] = trainer.current_epoch
    result["seconds"] = time.perf_counter() - started
    result["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if module.device.type == "cuda":
        result["memory"] = torch.cuda.max_memory_allocated() / 2**20
    return result


def reproduce(
    dataset: Dataset,
    path: Path,
    *,
    models: Sequence[str] = (),
    seeds: int = 3,
    epochs: int | None = None,
    batch_size: int = 128,
    learning_rate: float = 0.001,
    accelerator: str = "auto",
    jobs: int = 1,
    curve_every: int = 5,
    smoke: bool = False,
) -> None:
    """Train models on a data set, and print their results beside baselines and published results.

    Args:
        dataset: The data set.
        path: Its usual file: `u.data`, `ratings.dat`, or a text file of "user item" lines in time order.
        models: Names of configurations; by default all that suit the catalogue size.
        seeds: Runs of each model.
        epochs: The maximum number of epochs; the configuration's number if None.
        batch_size: Sessions in a batch.
        learning_rate: The learning rate of AdamW.
        accelerator: The accelerator of Lightning's Trainer.
        jobs: Number of parallel runs, each in its own process with a share of the cores.
        curve_every: Epochs between two lines of a run's validation curve.
        smoke: Quick check that everything works: one epoch of one model, on a simulated file by default.
    """
    if smoke:
        models, seeds, epochs = models[:1] or ["SASRec"], 1, 1
    unknown = sorted(set(models) - set(CONFIGURATIONS))
    if unknown:
        raise ValueError(f"`models` must be among {', '.join(CONFIGURATIONS)}, got {', '.join(unknown)}.")
    # The table is wider than the default width of a pipe.
    console = Console(width=max(100, Console().width))
    data = make_data(dataset, path, batch_size)
    console.print(str(data.drop_report))
    results = {name: [measured] for name, measured in measure_baselines(data).items()}
    names = list(models) or [name for name in CONFIGURATIONS if fits(name, data.num_items)]
    settings = {
        "dataset": dataset,
        "path": path,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "accelerator": accelerator,
        "curve_every": curve_every,
        "threads": max(1, torch.get_num_threads() // jobs),
    }
    # A process for each run, since peak memory is measured per process.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn, max_tasks_per_child=1) as pool:
        runs = {
            pool.submit(run, name, seed, **settings): (name, seed) for name in names for seed in range(seeds)
        }
        for number, future in enumerate(as_completed(runs), start=1):
            name, seed = runs[future]
            if future.exception():
                pool.shutdown(wait=False, cancel_futures=True)
            measured = future.result()
            results.setdefault(name, []).append(measured)
            found = ", ".join(f"{metric} {measured[metric]:.4f}" for metric in METRICS)
            place = f"run {number} of {len(runs)}"
            console.print(f"{name}, seed {seed}: test {found}, {measured['seconds']:.0f} s ({place})")
    console.print(make_table(dataset, results))
    console.print(describe_order(results))


def measure_baselines(data: SessionDataModule) -> dict[str, dict[str, float]]:
    """Evaluate popularity, last-item Markov and session-KNN under the same protocol."""
    baselines = {
        "Popularity": Popularity(data.item_counts),
        "Markov": LastItemMarkov(data),
        "Session-KNN": SessionKNN(data),
    }
    return {
        name: evaluate(baseline, data, exclude_seen=True, num_resamples=0).values
        for name, baseline in baselines.items()
    }


def make_table(dataset: Dataset, results: dict[str, list[dict[str, float]]]) -> Table:
    """Return a table of our results, mean ± standard deviation over seeds, and published results."""
    table = Table(title=f"{dataset}: test, whole catalogue, seen items left out")
    for column in ("", "HR@10", "published", "NDCG@10", "published", "epochs", "seconds", "MiB"):
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    for name, runs in results.items():
        configuration = CONFIGURATIONS.get(name)
        published = configuration.published.get(dataset) if configuration else None
        cells = [name]
        for place, metric in enumerate(METRICS):
            cells.append(spread([measured[metric] for measured in runs], ".4f"))
            cells.append("" if published is None else f"{published[place]:.4f}")
        cells += [
            spread([measured[quantity] for measured in runs], ".0f") if quantity in runs[0] else ""
            for quantity in ("epochs", "seconds", "memory")
        ]
        table.add_row(*cells)
    return table


def spread(values: Sequence[float], form: str) -> str:
    """Format the mean, with the standard deviation if there are several values."""
    mean = format(statistics.mean(values), form)
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):{form}}"


def describe_order(results: dict[str, list[dict[str, float]]]) -> str:
    """Say whether popularity < Markov < every neural model holds, by NDCG@10."""
    means = {name: statistics.mean(run["ndcg@10"] for run in runs) for name, runs in results.items()}
    wrong = [] if means["Popularity"] < means["Markov"] else ["Markov is not above popularity"]
    neural = [name for name in results if name in CONFIGURATIONS]
    wrong += [f"{name} is not above Markov" for name in neural if means[name] <= means["Markov"]]
    expected = "popularity < Markov < neural, by NDCG@10"
    return f"The usual order holds: {expected}." if not wrong else f"Not {expected}: {'; '.join(wrong)}."


def main() -> None:
    """Read the settings from the command line, train and compare."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("dataset", choices=get_args(Dataset), help="which data set the file is")
    parser.add_argument("path", nargs="?", type=Path, help="its usual file")
    parser.add_function_arguments(reproduce, skip={"dataset", "path"})
    settings = parser.parse_args().as_dict()
    dataset, path = settings.pop("dataset"), settings.pop("path")
    if path is None and not settings["smoke"]:
        parser.error("`path` must name the data set's file, got none. Give it, or `--smoke true`.")
    with tempfile.TemporaryDirectory() as folder:
        reproduce(dataset, path or write_interactions(Path(folder), dataset), **settings)


if __name__ == "__main__":
    main()
