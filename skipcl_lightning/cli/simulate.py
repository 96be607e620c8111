"""`skipcl simulate`: logs of any size in the format of the Music Streaming Sessions Dataset."""

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from skipcl_lightning._checks import check_integer
from skipcl_lightning.data import write_mssd_logs

__all__ = ["simulate"]


def simulate(
    folder: Path,
    sessions: int = 10_000,
    items: int = 50_000,
    sessions_per_file: int = 100_000,
    moods: int = 20,
    popularity_exponent: float = 0.88,
    skip_bias: float = 0.0,
    seed: int = 0,
) -> None:
    """Write simulated listening logs in the format of the Music Streaming Sessions Dataset.

    A million sessions have 16 million rows, which take 600 MB and a minute or so; memory does not grow.

    Args:
        folder: Where; made if need be. It may hold no CSV files yet.
        sessions: How many sessions, of 10 to 20 tracks each.
        items: Tracks in the catalogue.
        sessions_per_file: How many sessions a file has.
        moods: How many moods the tracks fall into; a listener skips what misses the mood.
        popularity_exponent: How skewed popularity is (Zipf), 0 or more.
        skip_bias: Added to the log-odds of every skip: above 0 there are more of them.
        seed: The same seed and settings give the same logs.
    """
    # Here too, since the bar needs it before the logs are begun.
    check_integer("sessions", sessions)
    console = Console()
    num_rows = 0
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"))
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        task = progress.add_task("Writing", total=sessions)

        def tick(new_sessions: int, new_rows: int) -> None:
            nonlocal num_rows
            num_rows += new_rows
            progress.advance(task, new_sessions)

        files = write_mssd_logs(
            folder,
            num_sessions=sessions,
            num_items=items,
            sessions_per_file=sessions_per_file,
            num_moods=moods,
            popularity_exponent=popularity_exponent,
            skip_bias=skip_bias,
            seed=seed,
            progress=tick,
        )
    size = sum(file.stat().st_size for file in files)
    console.print(
        f"{len(files):,} {'file' if len(files) == 1 else 'files'}, {sessions:,} sessions, {num_rows:,} rows, "
        f"{size / 1e6:,.1f} MB: {folder}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
