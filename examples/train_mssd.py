"""Train on logs of the Music Streaming Sessions Dataset (CSV or CSV.gz).

python examples/train_mssd.py training_set/log_0_20180715_000000000000.csv.gz
python examples/train_mssd.py --smoke true                # seconds, on a simulated log
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from helpers.smoke_data import write_mssd
from helpers.training import train
from jsonargparse import ArgumentParser

from skipcl_lightning.data import read_mssd


def main() -> None:
    """Read the settings from the command line, and train."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="*", type=Path, help="CSV files, CSV.gz files, or one folder of them")
    parser.add_argument("--label", default="skip_2", help="the flag that says skipped, or `graded`")
    parser.add_function_arguments(train, skip={"log"})
    settings = parser.parse_args()
    paths, label = settings.pop("paths"), settings.pop("label")
    if not paths and not settings.smoke:
        parser.error("`paths` must name logs, got none. Give files or a folder, or `--smoke true`.")
    with TemporaryDirectory() as folder:
        paths = paths or [write_mssd(Path(folder))]
        train(read_mssd(paths[0] if len(paths) == 1 else paths, label=label), **settings.as_dict())


if __name__ == "__main__":
    main()
