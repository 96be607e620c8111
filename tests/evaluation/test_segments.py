import numpy as np
import polars as pl
import pytest

from skipcl_lightning.evaluation.segments import add_segments, popularity_deciles


@pytest.mark.parametrize(
    ("column", "values", "names"),
    [
        (
            "length",
            [1, 5, 6, 10, 11, 100, 101],
            ["1-5", "1-5", "6-10", "6-10", "11-20", "51-100", "over 100"],
        ),
        (
            "skip_rate",
            [0.0, 0.01, 0.25, 0.26, 0.5, 0.75, 0.76, 1.0],
            ["none"] + ["up to 25 %"] * 2 + ["25 to 50 %"] * 2 + ["50 to 75 %"] + ["over 75 %"] * 2,
        ),
        ("popularity_decile", [1, 2, 10], ["1 (most played)", "2", "10 (least played)"]),
        ("target_count", [1, 0], ["1 (most played)", "not in training"]),
        ("repeat", [True, False], ["repeat", "explore"]),
    ],
)
def test_a_boundary_belongs_to_the_segment_below_it(column, values, names):
    rows = {"length": 1, "skip_rate": 0.0, "popularity_decile": 1, "target_count": 3, "repeat": True}
    sessions = pl.DataFrame([rows | {column: value} for value in values])
    segment = {"target_count": "popularity"}.get(column, column.split("_")[0]) + "_segment"
    assert add_segments(sessions)[segment].cast(pl.String).to_list() == names


def test_the_first_tenth_of_the_catalogue_is_the_most_played():
    counts = np.concatenate(([99], np.arange(20)))  # index 0 is padding
    assert popularity_deciles(counts).tolist() == [0, *(10 - place // 2 for place in range(20))]
    assert popularity_deciles(np.array([0, 3, 3, 3])).tolist() == [0, 1, 4, 7]
    # More items than an unstable sort keeps in order.
    equal = popularity_deciles(np.full(101, 3))
    assert (np.diff(equal[1:]) >= 0).all()
