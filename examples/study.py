"""Compare skip heads over backbones, weights, seeds and data sets, as `skipcl study` does.

python examples/study.py --jobs 2
python examples/study.py --datasets [ml-100k=ratings.parquet] --variants [session,batch] --seeds 5
python examples/study.py --smoke true                     # seconds
"""

from jsonargparse import ArgumentParser

from skipcl_lightning.study import study

SMOKE = {"datasets": ["dense"], "variants": ["none", "session"], "weights": [0.1], "seeds": 1, "epochs": 1}


def main() -> None:
    """Read the settings from the command line, train and compare models."""
    parser = ArgumentParser(description=__doc__)
    parser.add_function_arguments(study)
    parser.add_argument(
        "--smoke", type=bool, default=False, help="only see that all works: two tiny trainings"
    )
    settings = parser.parse_args().as_dict()
    if settings.pop("smoke"):
        settings |= SMOKE | {"sessions": 60}
    study(**settings)


if __name__ == "__main__":
    main()
