"""Run the search of `sweep.yaml` with Optuna, without a W&B account: each trial is an offline W&B run.

pip install ".[sweep]"
python examples/sweep_optuna.py --trials 20
python examples/sweep_optuna.py --trials 2 --smoke true   # seconds
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from helpers.wandb_training import train_with_wandb
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from optuna import Study, Trial

SWEEP = Path(__file__).with_name("sweep.yaml")


def sweep(
    *,
    trials: int = 20,
    sweep_file: Path = SWEEP,
    output: Path = Path("runs"),
    wandb: Literal["offline", "online"] = "offline",
    name: str = "sweep",
    storage: str | None = None,
    seed: int = 0,
    smoke: bool = False,
) -> None:
    """Search for the best settings, and print all trials, best first.

    Args:
        trials: Number of trainings.
        sweep_file: A W&B sweep file; only its parameters and metric are read.
        output: The folder for checkpoints and W&B's files.
        wandb: Where to log the runs; the `wandb` setting of the sweep file is ignored.
        name: Name of the study and of the runs' group.
        storage: An Optuna database, such as `sqlite:///runs/sweep.db`, from which to resume a search.
        seed: Random seed of the search, not of the trainings.
        smoke: Quick check that everything works: tiny trainings.

    Raises:
        ImportError: Optuna is not installed.
    """
    optuna = import_optuna()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    settings = yaml.safe_load(sweep_file.read_text(encoding="utf-8"))
    metric = settings["metric"]["name"]
    parameters = {key: spec for key, spec in settings["parameters"].items() if key != "wandb"}

    def train(trial: "Trial") -> float:
        chosen = {key: suggest(trial, key, spec) for key, spec in parameters.items()}
        print(f"Trial {trial.number + 1}: {chosen}")
        return train_with_wandb(output=output, wandb=wandb, group=name, smoke=smoke, **chosen)[metric]

    study: Study = optuna.create_study(
        study_name=name,
        storage=storage,
        load_if_exists=True,
        direction=settings["metric"]["goal"],
        sampler=optuna.samplers.TPESampler(seed=seed),
    )
    study.optimize(train, n_trials=trials)
    print_trials(study, metric)


def import_optuna() -> Any:
    """Return the module optuna.

    Raises:
        ImportError: Optuna is not installed; the message names the extra.
    """
    try:
        import optuna
    except ImportError as error:
        raise ImportError(
            'The search must have the package optuna, and it is missing. Run `pip install ".[sweep]"`.'
        ) from error
    return optuna


def suggest(trial: "Trial", name: str, spec: dict[str, Any]) -> Any:
    """Return a trial's value of a parameter that a W&B sweep describes.

    Args:
        trial: The Optuna trial.
        name: The parameter.
        spec: `value`, `values`, or `min` and `max` with a `distribution`.

    Raises:
        ValueError: The distribution is not supported.
    """
    if "value" in spec:
        return spec["value"]
    if "values" in spec:
        return trial.suggest_categorical(name, spec["values"])
    kind = spec.get("distribution", "uniform")
    if kind not in ("uniform", "log_uniform_values"):
        raise ValueError(
            f"`{name}` must be `uniform` or `log_uniform_values`, or have `value` or `values`, got {kind!r}. "
            "Optuna has no such distribution here."
        )
    return trial.suggest_float(name, spec["min"], spec["max"], log=kind == "log_uniform_values")


def print_trials(study: "Study", metric: str) -> None:
    """Print the trials with their metric, best first."""
    sign = -1 if study.direction.name == "MAXIMIZE" else 1
    done = sorted((trial for trial in study.trials if trial.values), key=lambda trial: sign * trial.value)
    table = Table("trial", metric, *done[0].params)
    for trial in done:
        cells = (f"{v:.4g}" if isinstance(v, float) else str(v) for v in trial.params.values())
        table.add_row(str(trial.number + 1), f"{trial.value:.4f}", *cells)
    Console().print(table)


if __name__ == "__main__":
    auto_cli(sweep, as_positional=False)
