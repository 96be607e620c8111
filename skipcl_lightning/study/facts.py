"""What was run, in a row a data set and backbone."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from skipcl_lightning.study.runs import Run, read_record

__all__ = ["describe_runs"]


def describe_runs(runs: Sequence[Run], folder: Path) -> list[dict[str, Any]]:
    """What the figures stand on.

    Args:
        runs: Finished runs.
        folder: Of the study.

    Returns:
        A row a data set and backbone, by column; numbers that differ between runs as their median.
    """
    found: dict[tuple[str, str], list[tuple[Run, dict[str, Any]]]] = {}
    for run in runs:
        record = read_record(run, folder)
        if record is not None:
            found.setdefault((run.title, run.backbone), []).append((run, record))
    return [_describe(dataset, backbone, pairs) for (dataset, backbone), pairs in found.items()]


def _describe(dataset: str, backbone: str, pairs: Sequence[tuple[Run, dict[str, Any]]]) -> dict[str, Any]:
    run, first = pairs[0]
    records = [record for _, record in pairs]

    def median(numbers: Sequence[float]) -> str:
        return f"{statistics.median(numbers):,.0f}"

    return {
        "data set": dataset,
        "backbone": backbone,
        "runs": len(pairs),
        "seeds": len({run.seed for run, _ in pairs}),
        "epochs": run.epochs,
        "learning rate": f"{first['settings']['learning_rate']:g}",
        "items": median([record["items"] for record in records]),
        "listened targets": median([record["populations"]["listened"] for record in records]),
        "skipped targets": median([record["populations"]["skipped"] for record in records]),
        "parameters": median([record["parameters"] for record in records]),
        "seconds a training": median([record["seconds"] for record in records]),
        "torch": ", ".join(sorted({record["torch"] for record in records})),
    }
