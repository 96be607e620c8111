import re
import sys
from types import SimpleNamespace

import huggingface_hub
import polars as pl
import pytest
import torch
import yaml
from hub_stand_in import stand_in
from hypothesis import given, settings
from hypothesis import strategies as st

from skipcl_lightning import Recommender
from skipcl_lightning.backbones import SASRec
from skipcl_lightning.data import ItemVocabulary, SessionEncoder
from skipcl_lightning.export import export_model
from skipcl_lightning.export.hub import FILES, escape, model_card
from skipcl_lightning.heads import SkipPrediction
from skipcl_lightning.model import Scorer, SessionModel

TOKEN = "hf_notforothers"  # noqa: S105 - of the stand-in


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with stand_in() as hub:
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield hub


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    encoder = SessionEncoder(ItemVocabulary(["<b>", "c"]), max_length=7)
    model, head = SessionModel(SASRec(8), num_items=2), SkipPrediction(vector_size=3)
    head.materialise(model.item_table)
    return Scorer(model, head), encoder


@pytest.fixture
def recommender(model):
    return Recommender(*model)


def report(name="Test"):
    rows = [("hit_rate@5", 0.25, 0.125, 0.5), ("hit_rate@20", 0.5, None, None), ("novelty@20", 3.0, 2.0, 4.0)]
    return SimpleNamespace(
        settings={"top_k": (5, 20), "split": "test", "confidence": 0.9, "training_sessions": 1234},
        metrics=pl.DataFrame(rows, ["metric", "value", "low", "high"], orient="row").with_columns(
            targets=pl.lit(1000), sessions=pl.lit(500)
        ),
        markov_line="",
        caution="It repeats | itself.",
        describe_protocol=lambda: f"{name}: all.",
    )


def parts_of(card):
    _, metadata, body = re.split(r"^---$", card, maxsplit=2, flags=re.MULTILINE)
    return yaml.safe_load(metadata), body


def test_a_card_says_what_is_known(model):
    metadata, body = parts_of(
        model_card(*model, repo_id="me/it", report=report(), dataset="plays", licence="mit")
    )
    assert metadata["library_name"] == "skipcl_lightning"
    assert metadata["license"] == "mit"
    (result,) = metadata["model-index"][0]["results"]
    assert result["dataset"] == {"name": "plays", "type": "session-log", "split": "test"}
    assert result["metrics"] == [
        {"type": "hit_rate@5", "value": 0.25, "args": {"low": 0.125, "high": 0.5, "confidence": 0.9}}
    ]
    for line in (
        r"| items | 2 \(String\) |",
        r"| hit\_rate\@5 | 0.2500 | 0.1250 to 0.5000 | 1,000 |",
        r"| hit\_rate\@20 | 0.5000 |  | 1,000 |",
        r"Training sessions\: 1,234. Test\: all.",
        r"It repeats \| itself.",
        "Trained on plays.",
        "- It sees the latest 7 items of a session.",
        "  doi = {10.1145/3640457.3688188}",
    ):
        assert line in body.splitlines()
    assert r"SkipPrediction\(weight=1.0, vector\_size=3" in body
    assert 'Recommender.from_pretrained("me/it")' in body


def test_a_card_without_a_report_claims_nothing(model):
    metadata, body = parts_of(model_card(*model, repo_id="me/it"))
    assert set(metadata) == {"library_name", "tags"}
    assert "Not evaluated in this card." in body
    assert "Trained on" not in body


@given(st.text(), st.text())
@settings(max_examples=40)
def test_names_break_neither_the_metadata_nor_the_page(model, dataset, name):
    card = model_card(*model, repo_id="me/it", report=report(name), dataset=dataset, licence=dataset)
    metadata, body = parts_of(card)
    assert metadata["model-index"][0]["results"][0]["dataset"]["name"] == (dataset or "unnamed")
    assert metadata["license"] == dataset
    assert re.findall("^#+ .*", body, flags=re.MULTILINE) == [
        "# me/it", "## Model", "## Data", "## Evaluation", "## Limits", "## Citation"
    ]  # fmt: skip
    assert re.sub(r"\\(.)", r"\1", escape(dataset)) == " ".join(dataset.split())


def test_a_hub_that_cannot_be_reached_is_not_called_an_empty_repository(monkeypatch):
    def fail(*arguments, **settings):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(huggingface_hub.errors.LocalEntryNotFoundError, match="no connection"):
        Recommender.from_pretrained("me/it")


@pytest.mark.parametrize("repo_id", ['me/it")\nimport os', "a/b/c", "me/..", ""])
def test_a_name_that_is_no_repository_is_refused(model, repo_id):
    with pytest.raises(ValueError, match="epo id must"):
        model_card(*model, repo_id=repo_id)


def test_a_model_goes_to_the_hub_and_comes_back(hub, recommender, tmp_path, caplog, capfd):
    address = recommender.push_to_hub("me/it", report=report(), private=True, token=TOKEN, message="First")
    assert address == f"{hub.url}/me/it"
    files = hub.repositories["me/it"]
    assert set(files) == {*FILES, "README.md"}
    assert sum("/commit/" in call for call in hub.calls) == 1
    request = hub.asked["me/it"]  # releases of huggingface_hub name it differently
    assert request.get("private") is True or request.get("visibility") == "private"
    first_card = files["README.md"]
    recommender.push_to_hub("me/it", token=TOKEN)
    assert b"model-index" in first_card
    assert b"model-index" not in files["README.md"]
    files["payload.pkl"] = b"not wanted"
    again = Recommender.from_pretrained("me/it", token=TOKEN)
    sessions, feedback = [["<b>", "c"]], [[1.0, -1.0]]
    assert again.recommend(sessions, feedback, top_k=2).equals(
        recommender.recommend(sessions, feedback, top_k=2)
    )
    assert not list(tmp_path.rglob("*.pkl"))
    Recommender.from_pretrained("me/it", revision="v1", token=TOKEN)
    assert "GET /api/models/me/it/revision/v1" in hub.calls
    assert f"Bearer {TOKEN}" in hub.tokens
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()] + list(files.values())
    assert all(TOKEN.encode() not in content for content in written)
    assert TOKEN not in caplog.text + "".join(capfd.readouterr())


def test_a_folder_is_loaded_without_the_hub(recommender, tmp_path, monkeypatch):
    folder = export_model(
        recommender.scorer, recommender.encoder, tmp_path / "exported", onnx=False, pt2=False
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setenv("HOME", str(tmp_path))
    for place in (folder, "~/exported"):
        assert Recommender.from_pretrained(place).encoder.vocabulary == recommender.encoder.vocabulary
    with pytest.raises(ImportError, match=r'pip install "skipcl-lightning\[hub\]"'):
        Recommender.from_pretrained("me/it")


def test_what_is_not_there_is_named(hub, recommender):
    with pytest.raises(huggingface_hub.errors.RepositoryNotFoundError, match="nobody/nothing"):
        Recommender.from_pretrained("nobody/nothing", token=TOKEN)
    hub.repositories["me/foreign"] = {"model.safetensors": b"another program's"}
    with pytest.raises(ValueError, match=r"`model` must be .*got 'me/foreign', which has no model\.json"):
        Recommender.from_pretrained("me/foreign", token=TOKEN)
    assert not any("safetensors" in call for call in hub.calls)
