"""The Markdown table of a comparison, from what its workers printed."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TITLES = {
    "train_full": "training, full softmax",
    "train_sampled": "training, 1,000 sampled",
    "train_skip": "training, full softmax and skips",
    "evaluate": "evaluation",
}


@dataclass
class Cell:
    """What one library did at one task and V: a rate for each round, None where it has none."""

    rates: list[float | None] = field(default_factory=list)
    peak: float = 0.0
    batch: int = 0
    failed: str | None = None  # why it failed in the last round, and is not tried again
    line: dict[str, Any] = field(default_factory=dict)

    def add(self, line: dict[str, Any]) -> None:
        """Note a round."""
        self.failed = line.get("failed")
        self.rates.append(line.get("sessions_per_second"))
        if self.failed is None:
            self.peak = max(self.peak, line["peak_mib"])
            self.batch = line["batch"]
            self.line = line


Cells = dict[tuple[str, int, str], Cell]


def describe(cell: Cell | None, ours: Cell | None, batch: int) -> str:
    """Sessions a second; how many times as fast ours is, with the extremes of the rounds; and the peak."""
    if cell is None:
        return "-"
    rates = [rate for rate in cell.rates if rate is not None]
    if not rates:
        return f"failed: {cell.failed}"
    parts = [f"{statistics.median(rates):,.3g}" if max(rates) < 100 else f"{statistics.median(rates):,.0f}"]
    if ours is not None and ours is not cell:
        pairs = zip(ours.rates, cell.rates, strict=False)
        ratios = [one / other for one, other in pairs if one is not None and other is not None]
        if ratios:
            parts.append(f"{statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})")
    parts.append(f"{cell.peak:,.0f} MiB")
    if cell.batch != batch:
        parts.append(f"at batch {cell.batch}, since {batch} failed: out of memory")
    if cell.failed:
        parts.append(f"in {len(rates)} of {len(cell.rates)} rounds; then failed: {cell.failed}")
    return "<br>".join(parts)


def write_table(path: Path, cells: Cells, libraries: Sequence[str], notes: Sequence[str], batch: int) -> None:
    """Write the table whole: under a temporary name, then renamed.

    Args:
        path: The file.
        cells: By task, V and library.
        libraries: The columns; `ours` is the first.
        notes: What is said above the table.
        batch: Sessions in a batch, where nothing else is said.
    """
    rows = list(dict.fromkeys((task, items) for task, items, _ in cells))
    lines = [f"{note}\n" for note in notes]
    lines.append("| task | V | " + " | ".join(libraries) + " |")
    lines.append("|---|---:|" + "---:|" * len(libraries))
    for task, items in rows:
        ours = cells.get((task, items, "ours"))
        texts = [describe(cells.get((task, items, name)), ours, batch) for name in libraries]
        lines.append(f"| {TITLES[task]} | {items:,} | " + " | ".join(texts) + " |")
    lines.append("\n" + "\n".join(_versions(cells, libraries)))
    temporary = path.with_name(path.name + ".part")
    temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    temporary.replace(path)


def _versions(cells: Cells, libraries: Sequence[str]) -> list[str]:
    """A line for each library: what it is, and the losses and metrics that show that it did its work."""
    texts = []
    for name in libraries:
        lines = {(task, items): cell.line for (task, items, other), cell in cells.items() if other == name}
        versions = next((line["versions"] for line in lines.values() if "versions" in line), None)
        if versions is None:
            continue
        facts = [
            f"{task} {items:,}: loss {line['first_loss']:.2f}, then {line['last_loss']:.2f}"
            for (task, items), line in lines.items()
            if "last_loss" in line
        ]
        facts += [
            f"{task} {items:,}: hit rate {line['hit_rate']:.4f}, NDCG {line['ndcg']:.4f}"
            for (task, items), line in lines.items()
            if "hit_rate" in line
        ]
        packages = ", ".join(f"{package} {number}" for package, number in versions.items())
        texts.append(f"- {name}: {packages}." + (f" {'; '.join(facts)}." if facts else ""))
    return texts
