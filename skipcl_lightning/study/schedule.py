"""Which runs there are, and doing those that are missing, several at a time."""

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from skipcl_lightning.study.datasets import find_recipe
from skipcl_lightning.study.runs import Run, execute, read_record
from skipcl_lightning.study.tracking import Tracking
from skipcl_lightning.study.variants import find_variant

__all__ = ["do_missing", "list_runs"]


def list_runs(
    *,
    datasets: Sequence[str],
    backbones: Sequence[str],
    variants: Sequence[str],
    weights: Sequence[float],
    seeds: int,
    epochs: int | None = None,
    sessions: int | None = None,
) -> list[Run]:
    """Every combination; one without a head once, and not once a weight.

    Args:
        datasets: As for `make_data`.
        backbones: Names.
        variants: Names.
        weights: Values of λ.
        seeds: How many, from 0.
        epochs: Of each training; the data set's own number if None.
        sessions: Of simulated logs; the recipe's number if None.

    Returns:
        The runs: seed by seed, so that a study that is broken off has whole seeds.

    Examples:
        >>> names = {"datasets": ["dense"], "backbones": ["SASRec"], "variants": ["none", "session"]}
        >>> [(run.variant, run.weight) for run in list_runs(**names, weights=[0.1, 1.0], seeds=1)]
        [('none', None), ('session', 0.1), ('session', 1.0)]
    """
    choices: list[tuple[str, float | None]] = []
    for variant in variants:
        choices += [(variant, weight) for weight in (weights if find_variant(variant).parts else [None])]
    runs = []
    for seed in range(seeds):
        for dataset in datasets:
            recipe = find_recipe(dataset)
            count = sessions if recipe.simulation else None
            runs += [
                Run(dataset, backbone, variant, weight, seed, epochs or recipe.epochs, count)
                for backbone in backbones
                for variant, weight in choices
            ]
    return runs


def do_missing(
    runs: Sequence[Run], folder: Path, *, jobs: int, tracking: Tracking | None, console: Console
) -> None:
    """Execute the runs that are not on disk yet, each in one of several processes.

    A run that fails does not stop the others.

    Args:
        runs: All that are wanted.
        folder: Of the study.
        jobs: Runs at once; they share the cores.
        tracking: Where they are logged in W&B.
        console: Where progress is shown.

    Raises:
        RuntimeError: Some failed; the message names them.
    """
    missing = [run for run in runs if read_record(run, folder) is None]
    console.print(f"{len(runs)} runs, {len(runs) - len(missing)} of them done before.")
    if not missing:
        return
    threads = max(1, torch.get_num_threads() // jobs)
    failures: list[tuple[Run, BaseException]] = []
    spawn = multiprocessing.get_context("spawn")
    workers = min(jobs, len(missing))
    with Progress(console=console) as progress, ProcessPoolExecutor(workers, mp_context=spawn) as pool:
        task = progress.add_task("Training", total=len(missing))
        futures = {pool.submit(execute, run, folder, threads, tracking): run for run in missing}
        for future in as_completed(futures):
            run, error = futures[future], future.exception()
            if error is not None:
                failures.append((run, error))
                console.print(f"{run.label}: failed, {type(error).__name__}: {error}", markup=False)
            progress.advance(task)
    if failures:
        told = "\n".join(f"  {run.label}: {type(error).__name__}: {error}" for run, error in failures)
        raise RuntimeError(
            f"{len(failures)} of {len(missing)} runs failed; run again to do only these:\n{told}"
        ) from failures[0][1]
