"""`skipcl study`: what skip heads do, over backbones, weights, seeds and data sets."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import polars as pl
from rich.console import Console

from skipcl_lightning._checks import check_choice, check_integer, check_number
from skipcl_lightning._files import write_whole
from skipcl_lightning.study.choices import BASELINES, PLAIN, VARIANTS, find_recipe, find_variant
from skipcl_lightning.study.pictures import save_skip_rate_plot, save_trade_off_plot
from skipcl_lightning.study.results import (
    compare_all,
    describe_choices,
    describe_runs,
    gains_by_skip_rate,
    read_hits,
    read_metrics,
)
from skipcl_lightning.study.runs import Mode, Run, Tracking, do_missing, list_runs
from skipcl_lightning.study.tables import make_markdown, make_paper_tables, make_terminal_tables

__all__ = ["study"]


def study(
    datasets: Sequence[str] = ("dense", "sparse", "high_skip"),
    variants: Sequence[str] = (*VARIANTS, *BASELINES),
    weights: Sequence[float] = (0.1, 0.3, 1.0),
    backbones: Sequence[str] = ("SASRec",),
    seeds: int = 3,
    epochs: int | None = None,
    sessions: int | None = None,
    jobs: int = 1,
    output: Path = Path("study"),
    wandb: Mode = "none",
    group: str = "skipcl-study",
) -> None:
    """Train models with and without skip heads, and show which differences are statistically significant.

    Each finished run is kept in `output`/runs and is not repeated, so a study can be interrupted and
    extended. The tables are written from the runs of the current call.

    Args:
        datasets: Simulated ones (`dense`, `sparse`, `high_skip`), or real ones with their path
            (`ml-100k=FILE`, `streaming=FOLDER`, `mssd=FOLDER`, `lfm2b=FOLDER`, `lfm1k=FOLDER`). A FOLDER can
            also be one of its files.
        variants: The heads to compare; `+input` after a name also feeds past feedback to the model. The plain
            model, `none`, always takes part. `+penalty` chooses the skip penalty on the validation set,
            `+counts+penalty` first the weight of the transitions; both share the training of `prediction`.
            `LastItemMarkov` and `SessionKNN` are baselines without a backbone.
        weights: Values of λ, the weight of the head.
        backbones: Backbones by name.
        seeds: Runs of each model, each on its own simulated log. One seed has no intervals.
        epochs: Epochs of each training; the data set's own number if None.
        sessions: Sessions in each simulated log, for a quick trial.
        jobs: Parallel runs, each in a process with its share of the cores.
        output: The folder for runs, tables and pictures.
        wandb: Where each new run is logged in W&B; `offline` needs no account.
        group: The runs' group in W&B.

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A name is unknown, or a setting is out of range or has no use.
        RuntimeError: Some runs failed; the message names them.
    """
    variants = list(dict.fromkeys([PLAIN, *variants]))
    weights = _check_weights(variants, weights)
    check_integer("seeds", seeds)
    check_integer("jobs", jobs)
    for name, number in (("epochs", epochs), ("sessions", sessions)):
        if number is not None:
            check_integer(name, number)
    check_choice("wandb", wandb, get_args(Mode))
    _check_datasets(datasets, sessions)
    for name, chosen in (("datasets", datasets), ("backbones", backbones)):
        if not chosen:
            raise ValueError(f"`{name}` must hold at least one name, got none.")
    runs = list_runs(
        datasets=datasets,
        backbones=list(dict.fromkeys(backbones)),
        variants=variants,
        weights=weights,
        seeds=seeds,
        epochs=epochs,
        sessions=sessions,
    )
    for run in runs:
        run.build_parts()
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    # The tables are wider than the default width of a pipe.
    console = Console(width=max(120, Console().width))
    tracking = None if wandb == "none" else Tracking(wandb, group, output)
    do_missing(runs, output, jobs=jobs, tracking=tracking, console=console)
    for table in _write_results(runs, output):
        console.print(table)
    console.print(f"Tables and pictures: {output}", markup=False)


def _write_results(runs: Sequence[Run], output: Path) -> list[Any]:
    """Write tables and pictures; return the tables for a terminal."""
    metrics, hits = read_metrics(runs, output), read_hits(runs, output)
    summary, gains = compare_all(metrics), gains_by_skip_rate(PLAIN, hits)
    text = make_markdown(summary, gains, describe_runs(runs, output), describe_choices(runs, output))
    write_whole(output / "results.md", lambda path: path.write_text(text, encoding="utf-8"))
    write_whole(output / "results.csv", summary.write_csv)
    save_trade_off_plot(output / "trade_off.png", summary, metrics.filter(pl.col("variant") == PLAIN))
    if gains.height:
        save_skip_rate_plot(output / "skip_rates.png", gains)
    else:
        # A plot of an earlier call would show other runs than the tables.
        (output / "skip_rates.png").unlink(missing_ok=True)
    return [*make_terminal_tables(summary), *make_paper_tables(summary)]


def _check_weights(variants: Sequence[str], weights: Sequence[float]) -> list[float]:
    heads = [name for name in variants if find_variant(name).parts]
    for weight in weights:
        check_number("weights", weight, minimum=0, open_minimum=True)
    if heads and not weights:
        raise ValueError(f"`weights` must hold a λ for {', '.join(heads)}, got none. The paper has 0.1 to 1.")
    # 1 and 1.0 are the same run.
    return list(dict.fromkeys(map(float, weights)))


def _check_datasets(datasets: Sequence[str], sessions: int | None) -> None:
    recipes = {name: find_recipe(name) for name in datasets}
    titles = [name.partition("=")[0] for name in datasets]
    twice = sorted({title for title in titles if titles.count(title) > 1})
    if twice:
        raise ValueError(f"`datasets` must name each one once, got {', '.join(twice)} several times.")
    if sessions is not None and not any(recipe.simulation for recipe in recipes.values()):
        raise ValueError(
            f"`sessions` must be left alone without a simulated data set, got {sessions}. "
            "Real logs are used whole."
        )
