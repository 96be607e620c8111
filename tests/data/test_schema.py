import sys

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from skipcl_lightning.data import (
    SessionDataModule,
    label_by_next_play,
    prepare_sessions,
    prepare_store,
    sessionise,
)
from skipcl_lightning.data.canonical_table import describe_polars_error, resolve_schema, to_frame

ROWS = [
    {"session_id": session, "item_id": item, "feedback": feedback, "position": position}
    for session in ("s", "t")
    for position, (item, feedback) in enumerate([("a", 1.0), ("b", -1.0), ("c", None), ("a", 0.5)])
]
PLAYS = [{"user_id": 1, "item_id": item, "timestamp": second} for item, second in (("a", 0), ("b", 10))]


class Stream:
    """Has nothing but Arrow's C stream."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        return self.table.__arrow_c_stream__(requested_schema)


KINDS = {
    "pandas": pd.DataFrame,
    "pandas with an index": lambda rows: pd.DataFrame(rows).set_axis(range(9, 9 + len(rows))),
    "pyarrow": pa.Table.from_pylist,
    "Arrow stream": lambda rows: Stream(pa.Table.from_pylist(rows)),
    "list of dictionaries": list,
}
every_kind = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


@every_kind
def test_every_kind_of_table_is_prepared_as_the_polars_frame_is(make, tmp_path):
    expected, report = prepare_sessions(pl.DataFrame(ROWS))
    table, same = prepare_sessions(make(ROWS))
    assert table.equals(expected)
    assert same == report
    data = SessionDataModule(make(ROWS))
    assert data.session_ids.to_list() == ["s", "t"]
    assert next(iter(data.predict_dataloader())).feedback.tolist() == [[0.5]] * 2
    assert prepare_store(make(ROWS), tmp_path / "store").drop_report == report


@every_kind
def test_every_kind_of_history_is_labelled_and_cut(make):
    assert label_by_next_play(make(PLAYS), skip_seconds=30).collect()["feedback"].to_list() == [-1, 0]
    assert sessionise(make(PLAYS), gap_minutes=1).collect()["session_id"].to_list() == ["1/0", "1/0"]


@every_kind
def test_columns_keep_their_values_and_a_missing_number_is_null(make):
    frame = to_frame("log", make(ROWS))
    assert frame.columns == ["session_id", "item_id", "feedback", "position"]
    assert frame["feedback"].to_list() == [row["feedback"] for row in ROWS]


def test_a_row_late_in_a_list_decides_on_a_columns_type_too():
    frame = to_frame("log", [{"feedback": 1}] * 500 + [{"feedback": -0.5}])
    assert frame["feedback"][-1] == -0.5


def test_a_polars_frame_is_passed_on_as_it_is():
    lazy = pl.LazyFrame(ROWS)
    assert to_frame("log", lazy) is lazy


@pytest.mark.parametrize("table", [None, 5, "log.csv", {"a": [1]}, [[1, 2]], pl.Series([1]), pa.Table])
def test_what_is_no_table_is_refused(table):
    with pytest.raises(TypeError, match=r"`log` must be a polars, pandas or Arrow table .*, got \w+\."):
        to_frame("log", table)


def test_pandas_without_pyarrow_works_for_numbers_and_says_what_to_install_for_text(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    numbers = to_frame("log", pd.DataFrame({"item_id": [1, 2], "feedback": [1.0, None]}))
    assert numbers["feedback"].to_list() == [1.0, None]


def test_a_table_that_cannot_be_converted_names_what_pandas_needs():
    class Broken:
        def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
            raise AttributeError("no pyarrow")

    with pytest.raises(ValueError, match=r"got AttributeError: no pyarrow\. .*`pip install pyarrow`"):
        to_frame("log", Broken())


@pytest.mark.parametrize("column", ["feedback", "explicit_feedback"])
@pytest.mark.parametrize(
    "value", [True, "skipped", [1.0], {"graded": 1.0}], ids=["Boolean", "text", "list", "struct"]
)
def test_feedback_that_is_no_number_is_refused_with_the_cure(column, value):
    rows = [row | {column: value} for row in ROWS]
    cure = r"pl\.when\(pl\.col\(\"listened\"\)\)\.then\(1\.0\)\.otherwise\(-1\.0\).*skipped="
    with pytest.raises(ValueError, match=f"in column '{column}', got .*{cure}"):
        SessionDataModule(rows)


def test_no_error_of_a_table_ends_in_polars_account_of_the_query():
    log = pl.LazyFrame(ROWS)
    wrong = log.with_columns(pl.col("item_id").cast(pl.Int64)).sort("position")
    with pytest.raises(ValueError, match=r"conversion from `str` to `i64` failed") as caught:
        prepare_sessions(wrong)
    assert "This error occurred" not in str(caught.value)
    with pytest.raises(ValueError, match='unable to find column "y"') as caught:
        resolve_schema("log", log.select("y"))
    assert "This error occurred" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert describe_polars_error(OSError("a\n b.")) == "OSError: a b"


def test_an_error_raised_while_rows_are_parsed_reaches_the_user_as_it_is():
    def fail(_: pl.Series) -> pl.Series:
        raise ValueError("'a.csv' must hold integers in row 7, got 'x'. Correct it.")

    log = pl.LazyFrame(ROWS).with_columns(
        pl.col("position").map_batches(fail, return_dtype=pl.Int64, is_elementwise=True)
    )
    with pytest.raises(ValueError, match=r"^'a.csv' must hold integers in row 7, got 'x'. Correct it.$"):
        _ = SessionDataModule(log).num_items
