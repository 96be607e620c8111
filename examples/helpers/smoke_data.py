"""Small simulated logs in the formats that the examples read, for their smoke modes."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl

from skipcl_lightning.data import simulate_sessions

SESSIONS = 60

# For each public data set, its usual file name and a line format for user, item and time.
INTERACTIONS = {
    "ml-100k": ("u.data", "{0}\t{1}\t3\t{2}"),
    "ml-1m": ("ratings.dat", "{0}::{1}::3::{2}"),
    "beauty": ("beauty.txt", "{0} {1}"),
}


def simulate() -> pl.DataFrame:
    """Return a canonical table of a few sessions over a catalogue of 30 items."""
    return simulate_sessions(SESSIONS, num_items=30, num_moods=3).collect()


def write_mssd(folder: Path) -> Path:
    """Write a Music Streaming Sessions log with booleans as pandas writes them, and return its path."""
    skipped = pl.col("feedback") < 0
    position = pl.int_range(1, pl.len() + 1).over("session_id")
    flags = {
        "skip_1": pl.col("feedback") < -0.7,
        "skip_2": skipped,
        "skip_3": skipped,
        "not_skipped": ~skipped,
    }
    path = folder / "log.csv"
    simulate().select(
        pl.col("session_id"),
        position.alias("session_position"),
        pl.len().over("session_id").alias("session_length"),
        pl.col("item_id").alias("track_id_clean"),
        *(flag.cast(pl.String).str.to_titlecase().alias(name) for name, flag in flags.items()),
    ).write_csv(path)
    return path


def write_history(folder: Path) -> Path:
    """Write an extended streaming history with one session per day, and return its path."""
    rows = []
    for number, session in enumerate(simulate().partition_by("session_id")):
        end = datetime(2024, 1, 1, 12, tzinfo=UTC) + timedelta(days=number)
        for item, feedback in session.select("item_id", "feedback").iter_rows():
            end += timedelta(minutes=3)
            rows.append(
                {
                    "ts": end.strftime("%Y-%m-%dT%H:%M:%SZ"),
                    "ms_played": 20_000 if feedback < 0 else 170_000,
                    "spotify_track_uri": f"spotify:track:{item}",
                    "skipped": feedback < 0,
                    "reason_end": "fwdbtn" if feedback < 0 else "trackdone",
                }
            )
    path = folder / "Streaming_History_Audio_0.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def write_interactions(folder: Path, dataset: str) -> Path:
    """Write the usual file of a data set in `INTERACTIONS`, one user per session, and return its path."""
    rows = simulate().select("session_id", pl.col("item_id").str.strip_prefix("track-"), "position").rows()
    name, form = INTERACTIONS[dataset]
    path = folder / name
    path.write_text("\n".join(form.format(*row) for row in rows) + "\n", encoding="utf-8")
    return path
