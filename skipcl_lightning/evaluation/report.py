"""The report of an evaluation: metrics with intervals, by segment, as tables and plots."""

import difflib
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from skipcl_lightning._files import write_whole
from skipcl_lightning.evaluation.plots import save_rank_plot, save_segment_plot
from skipcl_lightning.evaluation.report_metrics import is_higher_better, session_ratios
from skipcl_lightning.evaluation.segments import SEGMENTS
from skipcl_lightning.evaluation.statistics import Ratio, bootstrap, ratio_values
from skipcl_lightning.metrics.session_metrics import describe_left_out

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["EvaluationReport", "describe_last_first"]

# A model is degenerate if the item that just played comes first in a larger share of its lists than this, and
# this many times as often as it is the next one.
_MOST_LAST_FIRST, _MOST_TIMES_NEXT = 0.5, 3


@dataclass(frozen=True, eq=False, repr=False)
class EvaluationReport:
    """The result of `evaluate`.

    `report["ndcg@10"]` is one value, `metrics` all of them with intervals, `segments` the same by segment,
    and `sessions` the rows behind them. Metrics whose population is empty are not in `values` and the tables;
    `left_out` names them, and `report[name]` is NaN. MAP@k is not listed, because it equals MRR@k for one
    target. Novelty is the mean over sessions of each list's mean. `last_item_first` is the share of targets
    before which the first recommendation is the item that just played, and `last_item_next` the share of
    listened targets that are this item; `caution` says if the first is much larger.

    Args:
        name: The model's name.
        sessions: One row for each held-out target: external ids, `rank`, `skipped`, `repeat`, `unscored`, its
            segments, and perhaps `markov_rank`. A session has several rows with `targets="every"`.
        settings: The protocol.
        coverage: The share of the catalogue that is recommended at all; None without recommendations.
    """

    name: str
    sessions: pl.DataFrame
    settings: dict[str, Any]
    coverage: float | None

    def __getitem__(self, metric: str) -> float:
        if metric not in self._all_values:
            close = difflib.get_close_matches(metric, self._all_values, n=1)
            guess = f" Did you mean {close[0]!r}?" if close else ""
            raise KeyError(f"no metric {metric!r}.{guess} `report.values` has all of them.")
        return self._all_values[metric]

    def __repr__(self) -> str:
        k = min(self.settings["top_k"], key=lambda k: abs(k - 10))
        names = [f"{name}@{k}{self.postfix}" for name in ("hit_rate", "ndcg", "skip_hit_rate")]
        shown = [name for name in names if name in self.values]
        values = ", ".join(f"{name} {self.values[name]:.4f}" for name in shown)
        of_markov = ", ".join(f"{self.markov[name]:.4f}" for name in shown if name in self.markov)
        beside = f"; last-item Markov {of_markov}" if of_markov else ""
        unknown = self.settings["unknown_rows"]
        beside += f"; {unknown:,} plays of unknown items left out" if unknown else ""
        return f"EvaluationReport({self.name!r}, {self.sessions.height:,} targets: {values}{beside})"

    @property
    def postfix(self) -> str:
        """The end of the metrics' names: empty, or the number of sampled candidates."""
        sampled = self.settings["num_candidates"]
        return "" if sampled is None else f"/sampled{sampled}"

    @property
    def num_candidates(self) -> int:
        """The number of ranked items, the target included."""
        sampled: int | None = self.settings["num_candidates"]
        return int(self.settings["num_items"]) if sampled is None else sampled + 1

    @cached_property
    def values(self) -> dict[str, float]:
        """The metrics by name, without those of an empty population."""
        return {name: value for name, value in self._all_values.items() if not math.isnan(value)}

    @property
    def left_out(self) -> str:
        """One line that names the metrics whose population is empty; empty if there is none."""
        return describe_left_out(name for name in self._all_values if name not in self.values)

    @cached_property
    def markov(self) -> dict[str, float]:
        """The metrics of last-item Markov on the same targets; empty if it was not evaluated."""
        if "markov_rank" not in self.sessions.columns:
            return {}
        k = min(self.settings["top_k"], key=lambda k: abs(k - 10))
        ratios = self.ratios(self.sessions.with_columns(rank=pl.col("markov_rank")))
        names = ("hit_rate@1", f"hit_rate@{k}", f"ndcg@{k}", f"skip_hit_rate@{k}")
        found = ratio_values({name: ratios[name] for name in dict.fromkeys(names) if name in ratios})
        return {name: value for name, value in found.items() if not math.isnan(value)}

    @property
    def markov_line(self) -> str:
        """One line with `markov`; empty if it was not evaluated."""
        if not self.markov:
            return ""
        values = ", ".join(f"{name} {value:.4f}" for name, value in self.markov.items())
        return f"Last-item Markov on the same targets: {values}."

    @property
    def caution(self) -> str:
        """One line if most lists begin with the item that just played; empty if they do not."""
        first, following = (self.values.get(name, 0.0) for name in ("last_item_first", "last_item_next"))
        return describe_last_first(first, following)

    @cached_property
    def _all_values(self) -> dict[str, float]:
        values = ratio_values(self.ratios(self.sessions))
        return values if self.coverage is None else {**values, self._coverage_name: self.coverage}

    @property
    def _coverage_name(self) -> str:
        return f"coverage@{max(self.settings['top_k'])}"

    @cached_property
    def metrics(self) -> pl.DataFrame:
        """One row for each metric: `metric`, `value`, `low`, `high`, `targets` and `sessions`.

        `targets` and `sessions` count the held-out targets that the metric averages, and their sessions. The
        intervals come from a bootstrap over whole sessions; coverage has none, because it is no mean over
        sessions.
        """
        frame = self._describe(self.sessions)
        if self.coverage is None:
            return frame
        coverage = {"metric": self._coverage_name, "value": self.coverage}
        counts = {"targets": self.sessions.height, "sessions": self.sessions["session_id"].n_unique()}
        return pl.concat([frame, pl.DataFrame([coverage | counts])], how="diagonal")

    @cached_property
    def segments(self) -> pl.DataFrame:
        """The rows of `metrics` for each segment, with `segmented_by` and `segment` before them.

        Coverage is left out, because it depends on the number of sessions. The skip rate is that of the items
        that a model sees, the latest `max_length`.
        """
        frames = []
        for column, title in SEGMENTS.items():
            for segment in cast("pl.Enum", self.sessions.schema[column]).categories:
                part = self.sessions.filter(pl.col(column) == segment)
                if part.height:
                    place = pl.DataFrame({"segmented_by": [title], "segment": [segment]})
                    frames.append(place.join(self._describe(part), how="cross"))
        return pl.concat(frames)

    @property
    def populations(self) -> dict[str, int]:
        """The number of `sessions`, `targets`, and targets of each kind; `unscored` ones score NaN."""
        listened = ~pl.col("skipped")
        row = self.sessions.select(
            pl.col("session_id").n_unique().alias("sessions"),
            pl.len().alias("targets"),
            listened.sum().alias("listened"),
            pl.col("skipped").sum(),
            (listened & pl.col("repeat")).sum().alias("repeated"),
            pl.col("unscored").sum(),
        ).row(0, named=True)
        return {name: int(count) for name, count in row.items()}

    def ratios(self, sessions: pl.DataFrame) -> dict[str, Ratio]:
        """Return the metrics of some rows as sums, for intervals.

        Args:
            sessions: Rows of `sessions`.

        Returns:
            `Ratio`s by name.
        """
        return session_ratios(
            sessions,
            top_k=self.settings["top_k"],
            num_candidates=self.num_candidates,
            postfix=self.postfix,
        )

    def session_numbers(self, sessions: pl.DataFrame) -> NDArray[np.int64]:
        """Return a number for the session of each row, for `bootstrap`.

        Args:
            sessions: Rows of `sessions`.

        Returns:
            [N] int64, from 0 in the order of first appearance.
        """
        ids = sessions["session_id"]
        first = pl.DataFrame({"session_id": ids.unique(maintain_order=True)}).with_row_index("number")
        numbers = sessions.select("session_id").join(
            first, on="session_id", how="left", maintain_order="left"
        )["number"]
        return numbers.to_numpy().astype(np.int64)

    def to_markdown(self) -> str:
        """Return the report as Markdown: the protocol, the populations, and the table of metrics."""
        lines = [f"## {self.name}", "", self.describe_protocol(), ""]
        lines += ["| metric | value | interval | targets | sessions |", "|---|---:|---:|---:|---:|"]
        lines += ["| " + " | ".join(row) + " |" for row in self._cells()]
        lines += [
            line for text in (self.markov_line, self.left_out, self.caution) if text for line in ("", text)
        ]
        return "\n".join(lines) + "\n"

    def table(self) -> Any:
        """Return the report as a `rich.table.Table` for a terminal."""
        from rich.table import Table

        caption = " ".join(
            filter(None, (self.describe_protocol(), self.markov_line, self.left_out, self.caution))
        )
        table = Table(title=self.name, caption=caption)
        for column in ("metric", "value", "interval", "targets", "sessions"):
            table.add_column(column, justify="left" if column == "metric" else "right")
        for row in self._cells():
            table.add_row(*row)
        return table

    def describe_protocol(self) -> str:
        """Return the protocol, the populations, and what is unknown in a few sentences."""
        settings = self.settings
        sampled = settings["num_candidates"]
        among = (
            f"all {settings['num_items']:,} items"
            if sampled is None
            else f"{sampled:,} sampled candidates ({settings['sampler']}), which misleads"
        )
        seen = ", less what the session held" if settings["exclude_seen"] else ""
        counts = self.populations
        return (
            f"{settings['split'].capitalize()}: ranks among {among}{seen}; ties {settings['ties']}; "
            f"{self._describe_intervals()}. "
            f"{counts['targets']:,} targets of {counts['sessions']:,} sessions: "
            f"{counts['listened']:,} listened to ({counts['repeated']:,} of them repeats), "
            f"{counts['skipped']:,} skipped, {counts['unscored']:,} without a score."
            f"{self._describe_unknown()}"
        )

    def save(self, folder: str | Path) -> Path:
        """Write `report.md`, `metrics.csv`, `segments.csv`, `sessions.parquet` and two plots.

        Each file appears complete or not at all.

        Args:
            folder: The folder, which is created if needed.

        Returns:
            The folder.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        writers: dict[str, Callable[[Path], Any]] = {
            "report.md": lambda path: path.write_text(self.to_markdown(), encoding="utf-8"),
            "metrics.csv": self.metrics.write_csv,
            "segments.csv": self.segments.write_csv,
            "sessions.parquet": self.sessions.write_parquet,
        }
        cut_offs = self.settings["top_k"]
        cut_off = 10 if 10 in cut_offs else max(cut_offs)
        for name, write in writers.items():
            write_whole(folder / name, write)
        save_rank_plot(
            folder / "ranks.png",
            {self.name: self.sessions},
            num_items=self.num_candidates,
            top_k=cut_off,
            sampled=self.settings["num_candidates"] is not None,
        )
        save_segment_plot(folder / "segments.png", [self], metric=f"hit_rate@{cut_off}")
        return folder

    def _describe(self, sessions: pl.DataFrame) -> pl.DataFrame:
        ratios = self.ratios(sessions)
        numbers = self.session_numbers(sessions)
        settings = self.settings
        intervals = {}
        if settings["num_resamples"]:
            intervals = bootstrap(
                ratios,
                sessions=numbers,
                confidence=settings["confidence"],
                num_resamples=settings["num_resamples"],
                seed=settings["seed"],
            )
        schema = {"metric": pl.String, "value": pl.Float64, "low": pl.Float64, "high": pl.Float64}
        rows = [
            (name, value, *intervals.get(name, (None, None)), *_count(ratios[name].members, numbers))
            for name, value in ratio_values(ratios).items()
            if not math.isnan(value)
        ]
        return pl.DataFrame(rows, schema={**schema, "targets": pl.Int64, "sessions": pl.Int64}, orient="row")

    def _describe_unknown(self) -> str:
        rows, items = self.settings["unknown_rows"], self.settings["unknown_items"]
        sentences = [""]
        if rows:
            sentences.append(f"Unknown items: {items:,}; their plays, {rows:,}, were left out.")
        if not self.settings["training_sessions"]:
            sentences.append("The training set is empty, so last-item Markov and novelty are undefined.")
        return " ".join(sentences)

    def _describe_intervals(self) -> str:
        if not self.settings["num_resamples"]:
            return "no intervals"
        confidence, resamples = self.settings["confidence"], self.settings["num_resamples"]
        return f"{100 * confidence:g}% intervals from {resamples:,} resamples of the sessions"

    def _cells(self) -> list[tuple[str, str, str, str, str]]:
        rows = []
        for metric, value, low, high, targets, sessions in self.metrics.iter_rows():
            higher = is_higher_better(metric)
            arrow = "" if higher is None else " ↑" if higher else " ↓"
            interval = "" if low is None or low != low else f"{low:.4f} to {high:.4f}"
            rows.append((metric + arrow, f"{value:.4f}", interval, f"{targets:,}", f"{sessions:,}"))
        return rows


def _count(members: NDArray[np.bool_], numbers: NDArray[np.int64]) -> tuple[int, int]:
    """Return the number of targets that a metric averages, and of their sessions."""
    return int(members.sum()), len(np.unique(numbers[members]))


def describe_last_first(first: float, following: float) -> str:
    """Return a warning if lists begin with the item that just played, or an empty string.

    Args:
        first: The share of lists that begin with it, in [0, 1].
        following: The share of listened targets that are this item, in [0, 1].

    Returns:
        One line with the cure, from 50 % on, if that is three times the second share.
    """
    if not first > max(_MOST_LAST_FIRST, _MOST_TIMES_NEXT * following):
        return ""
    return (
        f"The first recommendation is the item that just played before {first:.0%} of the targets, but "
        f"only {following:.0%} of the listened targets are that item. Train with a `transition_weight`, or "
        "recommend with `exclude_seen=True`, if listeners seldom repeat a track."
    )
