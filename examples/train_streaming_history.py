"""Train on a listener's own "extended streaming history" or account data export (JSON).

python examples/train_streaming_history.py my_data/Streaming_History
python examples/train_streaming_history.py --smoke true   # seconds, on a simulated history
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from helpers.smoke_data import write_history
from helpers.training import train
from jsonargparse import ArgumentParser

from skipcl_lightning.data import read_streaming_history


def main() -> None:
    """Read the settings from the command line, and train."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="the folder with the JSON files of the export")
    parser.add_argument(
        "--skip_rule", default="skipped", help="what makes a skip: `skipped`, `fwdbtn` or `ms_played`"
    )
    parser.add_argument("--skip_seconds", type=float, default=30.0, help="the threshold of `ms_played`")
    parser.add_argument("--gap_minutes", type=float, default=20.0, help="the longest pause within a session")
    parser.add_function_arguments(train, skip={"log"})
    settings = parser.parse_args().as_dict()
    export = settings.pop("folder")
    reading = {name: settings.pop(name) for name in ("skip_rule", "skip_seconds", "gap_minutes")}
    if export is None and not settings["smoke"]:
        parser.error("`folder` must name an export, got none. Give its folder, or `--smoke true`.")
    with TemporaryDirectory() as simulated:
        export = export or write_history(Path(simulated)).parent
        train(read_streaming_history(export, **reading), **settings)


if __name__ == "__main__":
    main()
