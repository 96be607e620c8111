"""An exported folder is the whole model, and its graphs give the model's outputs."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import torch
from torch import nn

from skipcl_lightning import Recommender
from skipcl_lightning._files import digest_json
from skipcl_lightning.backbones import BACKBONES, BERT4Rec, GRU4Rec, SASRec
from skipcl_lightning.data import ItemVocabulary, SessionEncoder
from skipcl_lightning.export import export_model, graph, load_export
from skipcl_lightning.heads import CombinedHead, SkipInfoNCE, SkipPrediction
from skipcl_lightning.model import ItemTower, Scorer, SessionModel, Transitions

EXAMPLE = Path(__file__).parents[1] / "examples" / "serve_onnx.py"
IDS = [f"t{number}" for number in range(30)]
SESSION, FEEDBACK = ["t3", "t7", "t2"], [1.0, -1.0, 0.5]
LONG = "t9:1,t4:-1,t3:1,t7:-1,t2:0.5,t8:-0.5,t1:1"


class Running(nn.Module):
    """A user's own backbone, with GRUs inside, of which one gives its last state to the next."""

    embedding_size = 8
    causal = False

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential()
        self.inner.add_module("deep", nn.GRU(8, 8, 2, batch_first=True))
        self.inner.add_module("first", nn.GRU(8, 8, batch_first=True))
        self.inner.add_module("second", nn.GRU(8, 8, bias=False))

    def forward(self, x, valid_mask):
        x = self.inner.deep(x * valid_mask[..., None])[0] * valid_mask[..., None]
        _, state = self.inner.first(x)
        return self.inner.second(x.transpose(0, 1), state)[0].transpose(0, 1) * valid_mask[..., None]


def scorer(backbone, *, head=True, **settings):
    """A model whose weights all have an effect."""
    torch.manual_seed(0)
    model = SessionModel(backbone, num_items=len(IDS), **settings)
    made = None
    if head:
        made = CombinedHead([SkipInfoNCE(), SkipPrediction(vector_size=4)])
        made.heads[1].materialise(model.item_table)
        made.heads[1].temperature.fill_(1.5)
    result = Scorer(model, made, skip_penalty=0.5 if head else 0.0)
    for weight in result.parameters():
        weight.data.add_(0.1 * torch.randn_like(weight))
    model.item_embedding.weight.data[0] = 0
    return result.eval()


def encoder(max_length=20):
    return SessionEncoder(ItemVocabulary(IDS), max_length=max_length)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = scorer(GRU4Rec(8))
    model.model.retired = torch.zeros(31, dtype=torch.bool).index_fill(0, torch.tensor([5, 6]), True)
    place = tmp_path_factory.mktemp("export") / "model"
    return export_model(model, encoder(), place, onnx=False, pt2=False), model


def test_a_folder_holds_the_whole_model(tmp_path):
    numbers, codes = torch.randn(31, 2), torch.randint(0, 4, (31, 2), dtype=torch.int32)
    numbers[0], codes[0] = 0, 0
    tower = ItemTower(numbers, {"genre": codes}, {"genre": 3}, embedding_size=8)
    model = scorer(SASRec(8, max_length=20), context_sizes={"place": 3}, item_tower=tower)
    model.model.use_history()
    model.model.history_embedding.data.fill_(0.3)
    tables = [
        Transitions.from_counts(torch.tensor(contexts), torch.tensor([4, 9]), torch.tensor([5, 2]))
        for contexts in ([3, 3], [3 * 31 + 3, 8 * 31 + 3])
    ]
    model.model.transitions = nn.ModuleList(tables)
    model.transition_weight = 0.7
    model.model.retired = torch.zeros(31, dtype=torch.bool).index_fill(0, torch.tensor([1]), True)
    own = encoder().replace(history_length=4)
    folder = export_model(model, own, tmp_path / "model", onnx=False, pt2=False)
    loaded, found = load_export(folder)
    assert found.state_dict() == own.state_dict()
    for name, value in loaded.state_dict().items():
        expected = value if "skip_head" in name else model.state_dict()[name]
        assert torch.equal(value, expected), name
    assert isinstance(loaded.skip_head, SkipPrediction)
    assert (loaded.skip_penalty, loaded.transition_weight) == (0.5, 0.7)
    request = {"sessions": [SESSION], "feedback": [FEEDBACK], "histories": [["t8"]], "top_k": 25}
    again = Recommender.from_export(folder)
    # The context is unknown to the encoder: codes by hand.
    for one in (again.scorer, model):
        one.model.context_sizes = {}
    assert again.recommend(**request).equals(Recommender(model, own).recommend(**request))


def test_the_vectors_of_the_items_are_the_candidates(folder):
    place, model = folder
    items = pl.read_parquet(place / "items.parquet")
    assert items.columns == ["index", "item_id", "retired", "vector"]
    assert items["item_id"].to_list() == IDS
    assert items["index"].to_list() == list(range(1, 31))
    assert items.filter("retired")["index"].to_list() == [5, 6]
    with model.at_skip_penalty(1.0):
        torch.testing.assert_close(torch.tensor(items["vector"].to_list()), model.item_table[1:].detach())


@pytest.mark.slow
def test_a_graph_is_used_without_torch(folder, tmp_path):
    model = folder[1]
    place = export_model(model, encoder(5), tmp_path / "model", pt2=False)
    # Importing torch would fail.
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')")
    run = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, EXAMPLE, place, LONG, "--penalty", "0.5", "--top-k", "6"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    # The model sees the latest five, as in training.
    plays = [play.split(":") for play in LONG.split(",")]
    items, feedback = [item for item, _ in plays], [float(signal) for _, signal in plays]
    expected = Recommender(model, encoder(5)).recommend([items], [feedback], top_k=6)
    rows = [line.split() for line in run.stdout.splitlines()]
    assert [row[1] for row in rows] == expected["item_id"].to_list()
    assert [float(row[2]) for row in rows] == pytest.approx(expected["score"].to_list(), abs=1e-3)


def test_the_description_says_what_goes_in_and_out(folder):
    place, _ = folder
    about = json.loads((place / "model.json").read_text())
    assert list(about["inputs"]) == ["items", "feedback", "explicit_feedback"]
    assert about["inputs"]["items"]["shape"] == ["batch", "length"]
    assert about["outputs"] == {
        "query": {"shape": ["batch", 8], "dtype": "float32"},
        "skip_vector": {"shape": ["batch", 4], "dtype": "float32"},
    }
    assert about["temperature"] == 1.5
    assert set(about["files"]) == {"items.parquet", "model.safetensors"}
    plain = scorer(SASRec(8), head=False, feedback_input=False)
    folder = export_model(plain, encoder(), place.with_name("plain"), onnx=False, pt2=False)
    about = json.loads((folder / "model.json").read_text())
    assert list(about["inputs"]) == ["items"]
    assert list(about["outputs"]) == ["query"]
    assert about["longest_session"] == 20


def test_the_skip_probability_can_be_computed_from_the_folder(folder):
    place, model = folder
    about = json.loads((place / "model.json").read_text())
    vectors = torch.tensor(pl.read_parquet(place / "items.parquet")["vector"].to_list())
    batch = encoder().encode([SESSION], [FEEDBACK])
    query = model.model.session_query(batch)
    skip_vector = model.skip_prediction.session_vector(query)
    logit = vectors[:, 8:12] @ skip_vector[0] + vectors[:, 12]
    expected = model.skip_probability(batch, torch.arange(1, 31)[None])[0]
    torch.testing.assert_close(1 / (1 + torch.exp(logit / about["temperature"])), expected)


BACKBONE_SETTINGS = {
    "HFBackbone": lambda: BACKBONES["HFBackbone"](
        {
            "model_type": "bert",
            "hidden_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "max_position_embeddings": 32,
            "vocab_size": 3,
        },
        causal=False,
    ),
    "Running": Running,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*BACKBONES, "Running"])
def test_every_backbone_exports(name, tmp_path):
    made = BACKBONE_SETTINGS.get(name, lambda: BACKBONES[name](8))()
    codes = torch.randint(0, 4, (31, 2), dtype=torch.int32)
    tower = ItemTower(torch.randn(31, 2), {"genre": codes}, {"genre": 3}, embedding_size=8)
    model = scorer(made, context_sizes={"place": 3}, item_tower=tower)
    model.model.use_history()
    folder = export_model(model, encoder(), tmp_path / name)
    given = graph.Graph(model)
    loaded = torch.export.load(folder / "model.pt2").module()
    for size in ((1, 1), (2, 3), (7, 11)):  # a batch of one included
        inputs = given.example(*size)
        for found, expected in zip(loaded(*inputs), given.outputs_of(model, inputs), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    if name == "Running":
        with pytest.raises(ValueError, match="`backbone` must be passed"):
            load_export(folder)
        again, _ = load_export(folder, backbone=Running())
        assert torch.equal(again.item_table, model.item_table)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of torch's compiler
def test_a_scan_equals_the_gru_of_torch():
    for settings in ({}, {"batch_first": True, "num_layers": 2}, {"bias": False}):
        gru = nn.GRU(4, 6, **settings).requires_grad_(False)
        x, state = torch.randn(3, 5, 4), torch.randn(settings.get("num_layers", 1), 3, 6)
        x = x if settings.get("batch_first") else x.transpose(0, 1)
        for given in ((x,), (x, state)):
            for found, expected in zip(graph._ScannedGRU(gru)(*given), gru(*given), strict=True):
                torch.testing.assert_close(found, expected)


def test_a_graph_holds_one_copy_of_the_weights():
    model = scorer(GRU4Rec(8))
    made = graph.Graph(model)
    tables = [one.model.item_embedding.weight for one in (made.scorer, made.original[0], model)]
    assert tables[0] is tables[1]
    assert tables[1].data_ptr() != tables[2].data_ptr()


def test_a_graph_that_differs_from_the_model_is_refused():
    made = graph.Graph(scorer(SASRec(8)))
    graph._compare(made, lambda inputs: made(*inputs), "onnx")
    for change in (0.01, torch.nan):
        with pytest.raises(ValueError, match="`onnx` must give the outputs of the model, got `query`"):
            graph._compare(made, lambda inputs, change=change: [made(*inputs)[0] + change, None], "onnx")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_of_another_precision_has_graphs_of_float32(dtype, tmp_path):
    model = scorer(SASRec(8)).to(dtype)
    folder = export_model(model, encoder(), tmp_path / "model")
    described = json.loads((folder / "model.json").read_text())
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    program = torch.export.load(folder / "model.pt2").module()
    inputs = {
        "items": torch.tensor([[3, 7, 2]]),
        "feedback": torch.tensor([[1.0, -1.0, 0.5]]),
        "explicit_feedback": torch.zeros(1, 3),
    }
    given = {name: inputs[name] for name in described["inputs"]}
    of_onnx = session.run(None, {name: value.numpy() for name, value in given.items()})
    for one, other in zip(of_onnx, program(*given.values()), strict=True):
        assert (one.dtype, other.dtype) == ("float32", torch.float32)
    assert model.model.item_embedding.weight.dtype == dtype


def test_an_error_leaves_nothing(tmp_path, monkeypatch):
    def fail(made, path):
        path.write_bytes(b"half")
        raise ValueError("wrong")

    monkeypatch.setattr("skipcl_lightning.export.folder.write_pt2", fail)
    with pytest.raises(ValueError, match="wrong"):
        export_model(scorer(SASRec(8), head=False), encoder(), tmp_path / "model", onnx=False)
    few = SessionEncoder(ItemVocabulary(IDS[:2]), max_length=6)
    with pytest.raises(ValueError, match="`encoder` must have the 30 items of the model, got 2"):
        export_model(scorer(SASRec(8), head=False), few, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_has_the_usual_rights_and_its_parts_are_made_too(tmp_path):
    mask = os.umask(0o022)
    try:
        place = tmp_path / "[new]" / "model"  # a pattern for polars
        export_model(scorer(SASRec(8), head=False), encoder(), place, onnx=False, pt2=False)
    finally:
        os.umask(mask)
    assert place.stat().st_mode & 0o777 == 0o755
    assert {path.stat().st_mode & 0o777 for path in place.iterdir()} == {0o644}
    assert list(place.parent.iterdir()) == [place]
    assert load_export(place)[1].vocabulary.ids == IDS


def test_a_backbone_that_cannot_be_exported_is_named(tmp_path):
    class Fixed(nn.Module):
        embedding_size = 8

        def forward(self, x, valid_mask):
            return x * len(x)

    with pytest.raises(ValueError, match="`onnx` and `pt2` must be False for the backbone Fixed"):
        export_model(scorer(Fixed(), head=False), encoder(), tmp_path / "model", onnx=False)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_stays_as_it_is(folder):
    place, model = folder
    before = {path.name: path.stat().st_mtime_ns for path in place.iterdir()}
    with pytest.raises(FileExistsError, match="`folder` must be new"):
        export_model(model, encoder(), place)
    assert {path.name: path.stat().st_mtime_ns for path in place.iterdir()} == before


def copy(place, target):
    target.mkdir()
    for path in place.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


@pytest.mark.parametrize("name", ["model.safetensors", "items.parquet", "model.json"])
def test_damaged_files_are_refused(folder, tmp_path, name):
    place = copy(folder[0], tmp_path / "copy")
    whole = (place / name).read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 16
    for damaged in (whole[: len(whole) // 2], b"", bytes(flipped) if name != "model.json" else b"[]"):
        (place / name).write_bytes(damaged)
        with pytest.raises(ValueError, match=r"`folder` must be one that `skipcl export` wrote, got .*copy"):
            load_export(place)
    (place / name).unlink()
    with pytest.raises(ValueError, match=f"copy', without (a|its) {name}. Copy it again"):
        load_export(place)


def test_an_edited_description_is_refused(folder, tmp_path):
    place = copy(folder[0], tmp_path / "copy")
    text = (place / "model.json").read_text()
    assert text.count('"skip_penalty": 0.5') == 1
    (place / "model.json").write_text(text.replace('"skip_penalty": 0.5', '"skip_penalty": 0.7'))
    with pytest.raises(ValueError, match=r"whose model.json is damaged or was edited"):
        load_export(place)
    with pytest.raises(FileNotFoundError, match=r"`folder` must be one .*nowhere', which does not exist"):
        load_export(tmp_path / "nowhere")
    with pytest.raises(
        ValueError, match=r"safetensors', which is a file\. Name the folder, or load a checkp"
    ):
        load_export(place / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "of the format 99; this version reads 1"),
        ({"settings": []}, "of the format 1"),
        ({"files": {"../../secret": {"sha256": "0"}}}, "whose model.safetensors is damaged or of another"),
        ({"encoder": {"max_length": -1}}, "whose contents do not fit each other"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(folder, tmp_path, change, message):
    place = copy(folder[0], tmp_path / "copy")
    about = {**json.loads((place / "model.json").read_text()), **change}
    del about["sha256"]
    # Not damaged, but of another program or version.
    about["sha256"] = digest_json(about)
    (place / "model.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=message):
        load_export(place)


class Hostile:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("name", ["model.safetensors", "items.parquet"])
def test_a_hostile_folder_runs_no_code(folder, tmp_path, name):
    place = copy(folder[0], tmp_path / "copy")
    torch.save({"model.item_embedding.weight": Hostile(tmp_path / "mark")}, place / name)
    about = json.loads((place / "model.json").read_text())
    del about["sha256"]
    # A forger knows the digests too.
    about["files"][name]["sha256"] = hashlib.sha256((place / name).read_bytes()).hexdigest()
    about["sha256"] = digest_json(about)
    (place / "model.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="whose contents do not fit each other"):
        load_export(place)
    assert not (tmp_path / "mark").exists()


def test_a_bidirectional_model_leaves_room_for_its_mask(tmp_path):
    assert graph.Graph(scorer(BERT4Rec(8, max_length=20))).longest == 19


def test_an_overridden_input_cannot_be_loaded_from_weights(tmp_path):
    model = scorer(SASRec(8), head=False)
    model.model.embed_override = model.model.embed
    folder = export_model(model, encoder(), tmp_path / "model", onnx=False, pt2=False)
    with pytest.raises(ValueError, match="`folder` must be of a model whose `embed` is the library's"):
        load_export(folder)


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"onnxruntime, which is not installed.*skipcl-lightning\[export\]"):
        export_model(scorer(SASRec(8), head=False), encoder(), tmp_path / "model", pt2=False)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match=r"safetensors, which is not installed.*skipcl-lightning\[export\]"):
        export_model(scorer(SASRec(8), head=False), encoder(), tmp_path / "model", onnx=False, pt2=False)
    assert list(tmp_path.iterdir()) == []
