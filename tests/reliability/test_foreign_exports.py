"""A changed folder of an export is read or refused, and names no file outside of it."""

import json

import numpy as np
import pytest
from test_foreign_checkpoints import mutate

from skipcl_lightning import Recommender
from skipcl_lightning._files import digest_json
from skipcl_lightning.export import export_model

pytest.importorskip("safetensors")
MUTANTS = 60


@pytest.fixture
def exported(tmp_path, trained):
    recommender = Recommender.from_checkpoint(trained[2])
    return export_model(recommender.scorer, recommender.encoder, tmp_path / "export", onnx=False, pt2=False)


def write(folder, description):
    """A forger knows the digest too."""
    description.pop("sha256", None)
    description["sha256"] = digest_json(description)
    (folder / "model.json").write_text(json.dumps(description))


def refuses(folder):
    try:
        Recommender.from_export(folder)
    except ValueError as error:
        return str(folder) in str(error)
    return False


def test_changed_descriptions_are_read_or_refused_with_the_folder(exported):
    generator, whole = np.random.default_rng(0), (exported / "model.json").read_text()
    refused = 0
    for _ in range(MUTANTS):
        description = json.loads(whole)
        mutate(description, generator, tensors=False)
        write(exported, description)
        refused += refuses(exported)
    assert refused > MUTANTS / 10


def test_an_export_reads_no_file_outside_its_folder(exported, tmp_path):
    (exported / "items.parquet").rename(tmp_path / "items.parquet")
    description = json.loads((exported / "model.json").read_text())
    description["files"]["../items.parquet"] = description["files"].pop("items.parquet")
    write(exported, description)
    with pytest.raises(ValueError, match=r"without its items\.parquet"):
        Recommender.from_export(exported)


def test_an_export_of_another_size_fills_no_memory(exported):
    description = json.loads((exported / "model.json").read_text())
    description["settings"]["num_items"] = 10**9
    write(exported, description)
    with pytest.raises(
        ValueError, match=r"`folder` must be one that .* with 30 items for a model of 1000000000"
    ):
        Recommender.from_export(exported)


@pytest.mark.parametrize("name", ["model.safetensors", "items.parquet"])
def test_a_flipped_bit_of_an_export_is_refused(exported, name):
    whole, generator = (exported / name).read_bytes(), np.random.default_rng(0)
    for _ in range(10):
        damaged = bytearray(whole)
        damaged[generator.integers(len(whole))] ^= 1 << int(generator.integers(8))
        (exported / name).write_bytes(damaged)
        assert refuses(exported)
