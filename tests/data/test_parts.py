import subprocess
import sys

import polars as pl
import pytest

from skipcl_lightning.data.canonical_table import arrange_parts, drop_repeated, order_rows, read_chunks


def test_rows_are_sorted_by_key_and_order_and_equal_ones_stay():
    rows = [("b", 1, 0), ("a", 2, 1), ("a", 1, 2), ("a", 1, 3)]
    table = pl.DataFrame(rows, schema=["key", "order", "place"], orient="row")
    assert order_rows(table, "key", "order").rows() == [("a", 1, 2), ("a", 1, 3), ("a", 2, 1), ("b", 1, 0)]


def test_many_equal_rows_stay_in_their_order():
    table = pl.DataFrame(
        {"key": [n % 3 for n in range(99)], "order": [n % 5 for n in range(99)], "n": range(99)}
    )
    found = order_rows(table, "key", "order")["n"].to_list()
    assert found == sorted(range(99), key=lambda n: (n % 3, n % 5))


def test_sorted_rows_are_returned_as_they_are():
    table = pl.DataFrame({"key": ["a", "a", "b"], "order": [1, 2, 1]})
    assert order_rows(table, "key", "order") is table


def test_only_rows_that_are_equal_in_every_canonical_column_are_dropped():
    plays = {"session_id": "a", "position": [1, 1, 1], "item_id": [7, 8, 7], "device": [1, 2, 3]}
    kept = drop_repeated(pl.DataFrame(plays), "session_id", "position")
    assert kept.rows() == [("a", 1, 7, 1), ("a", 1, 8, 2)]


def test_a_table_is_read_in_chunks_or_at_once():
    table = pl.DataFrame({"item_id": [7, 8, 9]})
    assert [chunk.height for chunk in read_chunks(table, rows=2)] == [2, 1]
    assert [chunk.height for chunk in read_chunks(table, rows=None)] == [3]
    assert [chunk.height for chunk in read_chunks(table.clear(), rows=2)] == [0]


def test_all_rows_of_a_key_are_in_one_part_and_keys_ascend(tmp_path):
    chunks = [pl.DataFrame({"key": ["b", "a"]}), pl.DataFrame({"key": ["a", "c"]})]
    parts = arrange_parts(iter(chunks), "key", 2, tmp_path)
    assert [sorted(part["key"]) for part in parts] == [["a", "a"], ["b", "c"]]


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of a process from /proc")
def test_the_sample_of_a_run_keeps_none_of_its_other_keys_in_memory(tmp_path):
    program = """
import sys
from pathlib import Path

import polars as pl

from skipcl_lightning.data.canonical_table import arrange_parts

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024

found = []

def chunks():
    for number in range(16):
        found.append(resident())
        keys = pl.int_range(100_000, eager=True).cast(pl.String).str.zfill(200)
        yield pl.DataFrame({"session_id": keys + str(number)})

arrange_parts(chunks(), "session_id", 100_000, Path(sys.argv[1]))
print(found[-1] - found[5])
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    # 20 MB of keys for each of the ten runs between, and at most 1 MB of samples.
    assert float(done.stdout) < 100
