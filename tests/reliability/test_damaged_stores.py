"""A store whose files were changed and described again is refused, and so is a damaged log."""

import json
import shutil

import numpy as np
import polars as pl
import pytest

from skipcl_lightning.data import SessionDataModule, open_store, prepare_store, simulate_sessions
from skipcl_lightning.data.store import folder as stores

DAMAGED_LOGS = 300


def change_array(name, change):
    def apply(folder):
        values = np.load(folder / name)
        np.save(folder / name, change(values.copy()))

    return apply


def put(place, value):
    def change(values):
        values[place] = value
        return values

    return change


def change_manifest(change):
    def apply(folder):
        manifest = json.loads((folder / "manifest.json").read_text())
        change(manifest)
        del manifest["sha256"]
        text = json.dumps(manifest | {"sha256": stores.digest_json(manifest)})
        (folder / "manifest.json").write_text(text)

    return apply


def seal(folder):
    change_manifest(lambda manifest: manifest.update(files=stores.describe_files(folder)))(folder)


FILES = {
    "an item above V": change_array("items.npy", put(5, 999)),
    "an item below 1": change_array("items.npy", put(5, -3)),
    "padding": change_array("items.npy", put(5, 0)),
    "wide items": change_array("items.npy", lambda items: items.astype(np.int64)),
    "a matrix": change_array("items.npy", lambda items: items.reshape(-1, 1)),
    "short feedback": change_array("feedback.npy", lambda values: values[:-1]),
    "falling offsets": change_array("offsets.npy", put(3, 10**6)),
    "objects": change_array("offsets.npy", lambda values: values.astype(object)),
    "rows beyond": change_array("train_rows.npy", put(0, 10**6)),
    "ends below": change_array("test_ends.npy", put(0, -1)),
    "short rows": change_array("validation_rows.npy", lambda rows: rows[:-1]),
    "short counts": change_array("item_counts.npy", lambda counts: counts[:-1]),
    "negative counts": change_array("item_counts.npy", put(1, -9)),
    "few ids": lambda folder: pl.DataFrame({"item_id": ["a"]}).write_ipc(folder / "item_id.arrow"),
    "no ids": lambda folder: (folder / "item_id.arrow").write_bytes(b""),
    "no sessions": lambda folder: (folder / "session_id.arrow").write_text("no arrow"),
    "one session": lambda folder: pl.DataFrame({"session_id": ["a"]}).write_ipc(folder / "session_id.arrow"),
    "no array": lambda folder: (folder / "items.npy").write_text("no array"),
}
MANIFESTS = {
    "no counts": lambda manifest: manifest.pop("counts"),
    "a list": lambda manifest: manifest.update(counts=[]),
    "no settings": lambda manifest: manifest.update(settings=None),
    "more": lambda manifest: manifest.update(more=1),
    "no files": lambda manifest: manifest.update(files={}),
    "another folder": lambda manifest: manifest["files"].update({"../log.csv": {"bytes": 1, "sha256": ""}}),
    "a strange count": lambda manifest: manifest["counts"].update(drop_report={"a": 1}),
    "text": lambda manifest: manifest["counts"].update(longest_input="long"),
    "known items": lambda manifest: manifest["counts"].update(known_items=10**9),
}


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sealed") / "store"
    prepare_store(simulate_sessions(40, num_items=30, num_moods=3), folder)
    return folder


@pytest.mark.parametrize("kind", [*FILES, *MANIFESTS])
def test_a_changed_store_is_refused_with_its_folder(tmp_path, sealed, kind):
    folder = tmp_path / "store"
    shutil.copytree(sealed, folder)
    if kind in FILES:
        FILES[kind](folder)
        seal(folder)
    else:
        change_manifest(MANIFESTS[kind])(folder)
    with pytest.raises(ValueError, match=r"`folder` must be a whole session store, got .*store'") as caught:
        _ = open_store(folder).store.ids
    assert str(folder) in str(caught.value)


@pytest.mark.reliability
@pytest.mark.filterwarnings("ignore")
def test_damaged_parquet_files_are_refused_or_read(tmp_path, record):
    simulate_sessions(60, num_items=30, num_moods=3).collect().write_parquet(tmp_path / "whole.parquet")
    whole, generator = (tmp_path / "whole.parquet").read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(DAMAGED_LOGS):
        damaged = bytearray(whole)
        for place in generator.integers(len(whole), size=generator.integers(1, 4)):
            damaged[place] ^= 1 << int(generator.integers(8))
        (tmp_path / "damaged.parquet").write_bytes(damaged)
        try:
            _ = SessionDataModule(tmp_path / "damaged.parquet").num_items
        except ValueError:
            refused += 1
    record(f"{DAMAGED_LOGS} damaged parquet logs: {refused} refused, the others read, no panic of polars")
