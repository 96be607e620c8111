import subprocess
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from skipcl_lightning import Recommender, SkipCLModule
from skipcl_lightning.backbones import GRU4Rec, SASRec
from skipcl_lightning.data import ItemVocabulary, SessionDataModule, SessionEncoder, simulate_sessions
from skipcl_lightning.export import export_model
from skipcl_lightning.heads import SampledSoftmax, SkipInfoNCE, SkipPrediction
from skipcl_lightning.model import Scorer, SessionModel

SESSIONS = [["b", "a", "d"], ["c"], ["a", "a", "e", "b"]]
FEEDBACK = [[1.0, -1.0, 1.0], [1.0], [-1.0, 1.0, -1.0, 1.0]]


class Average(nn.Module):
    def forward(self, x, valid_mask):
        return x.cumsum(dim=1)


class BuildsItsOwn(SkipCLModule):
    def __init__(self, skip_head=None, *, layers=1, **settings):
        super().__init__(settings.pop("backbone", None), skip_head, **settings)
        self.layers = layers

    def build_backbone(self):
        return SASRec(self.hparams["embedding_size"], num_layers=self.hparams["layers"])


def recommender(**settings):
    torch.manual_seed(0)
    module = SkipCLModule(SASRec(8, max_length=4), SkipInfoNCE(), num_items=5, embedding_size=8, **settings)
    module.encoder = SessionEncoder(ItemVocabulary(["a", "b", "c", "d", "e"]), max_length=4)
    return Recommender(module.eval())


def save(tmp_path, module):
    data = SessionDataModule(simulate_sessions(60, num_items=30, num_moods=3), batch_size=32, max_length=20)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = module(data.num_items)
    trainer.fit(module, data)
    path = tmp_path / "model.ckpt"
    trainer.save_checkpoint(path)
    return path, module


def builtin(num_items):
    head = SkipInfoNCE(weight=0.2, negatives="batch", learn_temperature=True)
    return SkipCLModule(
        SASRec(8, max_length=20, num_layers=1),
        head,
        num_items=num_items,
        embedding_size=8,
        feedback_input=True,
        next_item_loss=SampledSoftmax(5),
    )


def test_recommendations_are_the_highest_inner_products():
    recommend = recommender()
    frame = recommend.recommend(SESSIONS, FEEDBACK, top_k=5, exclude_skipped=False)
    batch = recommend.encoder.encode(SESSIONS, FEEDBACK)
    for number, length in enumerate([3, 1, 4]):
        query = recommend.scorer(batch)[number, length - 1]
        scores = recommend.scorer.model.item_embedding.weight[1:] @ query
        expected = ["abcde"[i] for i in scores.argsort(descending=True)]
        rows = frame.filter(pl.col("session_id") == number)
        assert rows["item_id"].to_list() == expected
        assert rows["rank"].to_list() == [1, 2, 3, 4, 5]
        torch.testing.assert_close(
            torch.tensor(rows["score"].to_list()), scores.sort(descending=True).values.detach()
        )


def test_exclusions_leave_out_what_they_name_and_shorten_the_list():
    recommend = recommender()
    seen = recommend.recommend(SESSIONS, FEEDBACK, top_k=5, exclude_seen=True)
    skipped = recommend.recommend(SESSIONS, FEEDBACK, top_k=5)
    for number, (session, feedback) in enumerate(zip(SESSIONS, FEEDBACK, strict=True)):
        left = set(seen.filter(pl.col("session_id") == number)["item_id"])
        assert left == set("abcde") - set(session)
        left = set(skipped.filter(pl.col("session_id") == number)["item_id"])
        assert left == set("abcde") - {i for i, f in zip(session, feedback, strict=True) if f < 0}


def test_a_model_that_excludes_what_a_session_held_recommends_so_from_checkpoint_and_export(tmp_path):
    path, _ = save(
        tmp_path, lambda num_items: SkipCLModule(GRU4Rec(8), None, num_items=num_items, exclude_seen=True)
    )
    loaded = Recommender.from_checkpoint(path)
    export_model(loaded.scorer, loaded.encoder, tmp_path / "folder", onnx=False, pt2=False)
    session = loaded.encoder.vocabulary.ids[:5]
    for one in (loaded, Recommender.from_export(tmp_path / "folder")):
        assert not set(one.recommend([session], top_k=30)["item_id"]) & set(session)
        assert set(session) <= set(one.recommend([session], top_k=30, exclude_seen=False)["item_id"])


def test_what_a_session_held_is_left_out_as_the_module_was_saved_not_as_it_was_made(tmp_path):
    path, module = save(
        tmp_path, lambda num_items: SkipCLModule(GRU4Rec(8), None, num_items=num_items, exclude_seen=True)
    )
    module.exclude_seen = False
    module.trainer.save_checkpoint(path)
    assert SkipCLModule.load_from_checkpoint(path).exclude_seen is False
    assert Recommender.from_checkpoint(path).scorer.exclude_seen is False


def test_batches_do_not_matter_and_names_are_the_users():
    recommend = recommender()
    names = ["monday", "tuesday", "friday"]
    whole = recommend.recommend(SESSIONS, FEEDBACK, session_ids=names, top_k=3)
    parts = recommend.recommend(SESSIONS, FEEDBACK, session_ids=names, top_k=3, batch_size=1)
    assert whole.drop("score").equals(parts.drop("score"))
    assert whole["session_id"].unique(maintain_order=True).to_list() == names


def test_only_the_latest_tracks_of_a_long_session_count():
    recommend = recommender()
    long = recommend.recommend([["e", "d", "c", "a", "b", "c", "d"]], top_k=5)
    assert long.equals(recommend.recommend([["a", "b", "c", "d"]], top_k=5))


def test_a_backbone_without_a_limit_looks_at_no_more_than_it_was_trained_on():
    torch.manual_seed(0)
    module = SkipCLModule(GRU4Rec(8), None, num_items=5, embedding_size=8)
    module.encoder = SessionEncoder(ItemVocabulary(["a", "b", "c", "d", "e"]), max_length=3)
    long, short = (Recommender(module).recommend([s], top_k=5) for s in (list("eeeeabc"), list("abc")))
    assert long.equals(short)


def test_exclusions_count_from_the_first_track_of_a_long_session():
    recommend = recommender()
    session, feedback = ["e", "d", "a", "b", "a", "b"], [-1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    seen = recommend.recommend([session], [feedback], top_k=5, exclude_seen=True)
    assert set(seen["item_id"]) == {"c"}
    unskipped = recommend.recommend([session], [feedback], top_k=5)
    assert set(unskipped["item_id"]) == {"a", "b", "c", "d"}


def test_an_unknown_track_is_named_or_ignored():
    recommend = recommender()
    with pytest.raises(ValueError, match=r"got 'x'.*unknown='ignore'"):
        recommend.recommend([["a", "x"]], top_k=2)
    ignored = recommend.recommend([["a", "x"]], unknown="ignore", top_k=2)
    assert ignored.equals(recommend.recommend([["a"]], top_k=2))


def test_an_error_in_a_later_batch_says_where_the_batch_begins():
    recommend = recommender()
    for session_ids, first in ((None, "2"), (["x", "y", "z", "w"], "'z'")):
        with pytest.raises(ValueError, match=rf"got 'nobody' in session 1 .* 0 of these is {first}\."):
            recommend.recommend(
                [["a"], ["b"], ["c"], ["nobody"]], session_ids=session_ids, top_k=2, batch_size=2
            )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"top_k": 6}, "`top_k` must be at most 5, got 6"),
        ({"top_k": 0}, "`top_k` must be at least 1, got 0"),
        ({"sessions": [[]]}, "without a track"),
        ({"sessions": []}, "at least one session"),
        ({"session_ids": ["one", "two"]}, "`session_ids` must name each session, got 2 for 1"),
        ({"feedback": [[2.0]]}, r"`feedback` must be in \[-1, 1\]"),
    ],
)
def test_bad_requests_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        recommender().recommend(**{"sessions": [["a"]], "top_k": 2, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sessions": [{"a", "b"}]}, "`sessions` must hold sequences of ids in the order of listening"),
        ({"sessions": ["a"]}, "got 'a' as session 0"),
        ({"sessions": [1]}, "got 1 as session 0"),
        ({"session_ids": [1.5]}, "`session_ids` must be all strings or all integers, got float"),
        ({"feedback": [[True]]}, "`feedback` must be numbers .*1.0 if listened else -1.0"),
        ({"explicit_feedback": [["liked"]]}, "`explicit_feedback` must be numbers"),
    ],
)
def test_requests_of_another_type_are_named(arguments, message):
    with pytest.raises(TypeError, match=message):
        recommender().recommend(**{"sessions": [["a"]], "top_k": 2, **arguments})


def test_embeddings_that_are_not_finite_are_refused():
    module = recommender().scorer
    module.model.item_embedding.weight.data[2, 1] = torch.nan
    with pytest.raises(ValueError, match="`module` must have finite item embeddings, got NaN"):
        Recommender(module)


def test_a_module_without_a_vocabulary_is_refused():
    module = SkipCLModule(SASRec(8), None, num_items=5, embedding_size=8)
    with pytest.raises(ValueError, match="`module` must have its item vocabulary"):
        Recommender(module)


SCRIPT = """
import sys
from skipcl_lightning import Recommender
recommender = Recommender.from_checkpoint(sys.argv[1])
sessions = [sys.argv[2].split(",")]
print(recommender.recommend(sessions, top_k=10).write_csv())
assert not {"lightning", "torchmetrics"} & set(sys.modules)
"""


def test_a_checkpoint_recommends_the_same_in_a_new_process_without_data(tmp_path):
    path, module = save(tmp_path, builtin)
    session = module.encoder.vocabulary.ids[3:8]
    expected = Recommender(module).recommend([session], top_k=10).write_csv()
    arguments = [sys.executable, "-W", "error::DeprecationWarning", "-c", SCRIPT, str(path)]
    run = subprocess.run(  # noqa: S603 - our own script
        [*arguments, ",".join(map(str, session))], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert run.stdout.strip() == expected.strip()


def test_a_checkpoint_is_plain_and_whole(tmp_path):
    path, module = save(tmp_path, builtin)
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["hyper_parameters"]["backbone"]["settings"]["num_layers"] == 1
    again = SkipCLModule.load_from_checkpoint(path, weights_only=True)
    assert again.skip_head.settings == module.skip_head.settings
    assert again.next_item_loss.settings == module.next_item_loss.settings
    assert again.model.backbone.settings == module.model.backbone.settings
    assert again.encoder.vocabulary == module.encoder.vocabulary
    for name, value in module.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_a_backbone_of_ones_own_is_named_in_the_error_and_passed_again(tmp_path):
    path, module = save(tmp_path, lambda n: SkipCLModule(Average(), None, num_items=n, embedding_size=8))
    with pytest.raises(
        ValueError, match=r"`backbone` must be passed .*Average.*Load it with `backbone=Average"
    ):
        Recommender.from_checkpoint(path)
    session = module.encoder.vocabulary.ids[:4]
    loaded = Recommender.from_checkpoint(path, backbone=Average())
    assert loaded.recommend([session]).equals(Recommender(module).recommend([session]))


def test_a_subclass_that_builds_its_backbone_loads_without_arguments(tmp_path):
    path, _ = save(tmp_path, lambda n: BuildsItsOwn(num_items=n, embedding_size=8, layers=3))
    loaded = Recommender.from_checkpoint(path, module_class=BuildsItsOwn)
    assert len(loaded.scorer.model.backbone.blocks) == 3
    with pytest.raises(ValueError, match=r"got none for 'BuildsItsOwn'\. Pass `module_class=BuildsItsOwn`"):
        Recommender.from_checkpoint(path)


def test_a_recommender_says_what_it_holds():
    assert repr(recommender()) == "Recommender(SASRec, 5 items, cpu)"


def test_a_missing_checkpoint_is_a_missing_file():
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Recommender.from_checkpoint(Path("nowhere.ckpt"))


class RecordsItsMode(SASRec):
    def forward(self, *arguments, **settings):
        self.trained = self.training
        return super().forward(*arguments, **settings)


@pytest.mark.parametrize("fails", [False, True])
def test_every_part_of_the_module_keeps_its_mode(fails):
    module = SkipCLModule(RecordsItsMode(8, max_length=4), None, num_items=5, embedding_size=8)
    module.encoder = SessionEncoder(ItemVocabulary(["a", "b", "c", "d", "e"]), max_length=4)
    frozen = module.model.backbone.dropout.eval()
    recommend = Recommender(module)
    assert module.training
    assert module.model.backbone.training
    if fails:
        module.session_query = None
        with pytest.raises(TypeError):
            recommend.recommend([["a"]], top_k=1)
    else:
        recommend.recommend([["a"]], top_k=1)
        assert not module.model.backbone.trained
    assert module.training
    assert module.model.backbone.training
    assert not frozen.training


def test_a_skip_moves_the_list():
    recommend = recommender()
    recommend.scorer.model.feedback_embedding.weight.data.normal_()
    moved = recommend.after_skip(["b", "a"], "d", [1.0, 1.0], top_k=2, depth=5)
    before = recommend.recommend([["b", "a"]], [[1.0, 1.0]], top_k=5)
    after = recommend.recommend([["b", "a", "d"]], [[1.0, 1.0, -1.0]], top_k=5)
    ranks = {
        name: dict(zip(one["item_id"], one["rank"], strict=True))
        for name, one in (("before", before), ("after", after))
    }
    assert "d" not in ranks["after"]  # it was skipped
    best = {item for one in ranks.values() for item, rank in one.items() if rank <= 2}
    assert set(moved["item_id"]) == best
    for item, rank, rank_before in moved.select("item_id", "rank", "rank_before").iter_rows():
        assert rank == ranks["after"].get(item)
        assert rank_before == ranks["before"].get(item)
    assert moved["rank"][:2].to_list() == [1, 2]
    played = recommend.after_skip(["b", "a"], "d", [1.0, 1.0], track_feedback=1.0, top_k=5, depth=5)
    assert "d" in played.filter(pl.col("rank").is_not_null())["item_id"].to_list()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("track", (["a"], "nobody")),
        ("session", (["a", "nobody"], "b")),
    ],
)
def test_an_unknown_track_of_a_moved_list_is_named_by_its_own_argument(name, arguments):
    with pytest.raises(ValueError, match=rf"^`{name}` must hold tracks .* got 'nobody' [^`]*$"):
        recommender().after_skip(*arguments, top_k=2)


@pytest.mark.parametrize(
    ("session", "arguments", "message"),
    [
        ([], {}, "`session` must hold at least one track before the skipped one, got none"),
        (["a", "b"], {"feedback": [1.0]}, "`feedback` must have one value a track of `session`, got 1 for 2"),
        (["a"], {"explicit_feedback": [1, 1]}, "`explicit_feedback` must have .*, got 2 for 1"),
        (["a"], {"track_feedback": 3}, r"`track_feedback` must be in \[-1, 1\], got 3"),
    ],
)
def test_feedback_of_a_moved_list_is_named_by_its_own_argument(session, arguments, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        recommender().after_skip(session, "d", top_k=2, **arguments)


def test_similar_items_have_the_largest_cosine():
    recommend = recommender()
    found = recommend.similar_items(["c", "a"], top_k=3)
    table = recommend.scorer.model.item_embedding.weight.detach()
    for row, (name, index) in enumerate([("c", 3), ("a", 1)]):
        cosines = {}
        for other in range(1, 6):
            x, y = table[index], table[other]
            cosines["abcde"[other - 1]] = float(sum(x * y) / (sum(x * x) * sum(y * y)) ** 0.5)
        del cosines[name]
        best = sorted(cosines, key=cosines.get, reverse=True)[:3]
        one = found[row * 3 : row * 3 + 3]
        assert one["item_id"].to_list() == [name] * 3
        assert one["similar_item_id"].to_list() == best
        assert one["cosine"].to_list() == pytest.approx([cosines[item] for item in best], abs=1e-6)
    with pytest.raises(ValueError, match=r"^`items` must .* got 'nobody' [^`]*$"):
        recommend.similar_items(["nobody"], top_k=2)
    with pytest.raises(ValueError, match="`top_k` must be"):
        recommend.similar_items(["a"], top_k=5)


def test_sessions_and_items_embedded_give_the_scores():
    recommend = recommender()
    sessions = recommend.embed_sessions(SESSIONS, FEEDBACK, session_ids=["x", "y", "z"], batch_size=2)
    assert sessions["session_id"].to_list() == ["x", "y", "z"]
    items = recommend.embed_items()
    scores = sessions["embedding"].to_numpy() @ items["embedding"].to_numpy().T
    found = recommend.recommend(SESSIONS, FEEDBACK, top_k=5, exclude_skipped=False)
    for row in range(3):
        one = found.filter(session_id=row)
        expected = dict(zip(items["item_id"], scores[row], strict=True))
        assert one["score"].to_list() == pytest.approx([expected[item] for item in one["item_id"]], abs=1e-6)


def test_given_items_are_left_out_or_the_only_ones():
    recommend = recommender()
    everything = recommend.recommend(SESSIONS, FEEDBACK, top_k=5)
    without = recommend.recommend(SESSIONS, FEEDBACK, top_k=5, exclude=["c", "e"])
    expected = everything.filter(~pl.col("item_id").is_in(["c", "e"]))
    assert without.select("session_id", "item_id").equals(expected.select("session_id", "item_id"))
    only = recommend.recommend(SESSIONS, FEEDBACK, top_k=5, allowed=["a", "c", "d"], exclude=["d"])
    expected = everything.filter(pl.col("item_id").is_in(["a", "c"]))
    assert only.select("session_id", "item_id").equals(expected.select("session_id", "item_id"))
    recommend.scorer.model.retired = torch.zeros(6, dtype=torch.bool).index_fill(0, torch.tensor([1]), True)
    only = recommend.recommend(SESSIONS, FEEDBACK, top_k=5, allowed=["a", "c"])
    assert set(only["item_id"]) == {"c"}
    for name in ("exclude", "allowed"):
        with pytest.raises(
            ValueError, match=rf"`{name}` must hold tracks .* got 'nobody' \(2 unknown in all"
        ):
            recommend.recommend(SESSIONS, FEEDBACK, top_k=2, **{name: ["a", "nobody", "either"]})
    ignored = {"exclude": ["e", "nobody"], "allowed": ["nobody", "c", "e"], "unknown": "ignore"}
    assert recommend.recommend(SESSIONS, FEEDBACK, top_k=5, **ignored)["item_id"].unique().to_list() == ["c"]
    ignored = {"allowed": ["nobody"], "unknown": "ignore"}
    assert recommend.recommend(SESSIONS, FEEDBACK, top_k=5, **ignored).is_empty()


def plays(**columns):
    """Two sessions whose rows alternate."""
    return {"session_id": ["y", "x", "y", "x"], "item_id": ["b", "c", "a", "e"], **columns}


@pytest.mark.parametrize("kind", [pl.DataFrame, pl.LazyFrame, pd.DataFrame])
def test_a_table_of_plays_gives_the_same_as_lists(kind):
    recommend = recommender()
    recommend.scorer.model.feedback_embedding.weight.data.normal_()
    table = kind(plays(feedback=[1.0, -0.5, None, 1.0], explicit_feedback=[0.0, 1.0, -1.0, 0.0]))
    lists = {
        "sessions": [["b", "a"], ["c", "e"]],
        "feedback": [[1.0, 0.0], [-0.5, 1.0]],
        "explicit_feedback": [[0.0, -1.0], [1.0, 0.0]],
        "session_ids": ["y", "x"],
    }
    expected = recommend.recommend(**lists, top_k=5)
    assert recommend.recommend(table, top_k=5).equals(expected)
    assert recommend.embed_sessions(table).equals(recommend.embed_sessions(**lists))
    assert recommend.recommend(kind(plays()), top_k=5).equals(
        recommend.recommend(lists["sessions"], session_ids=["y", "x"], top_k=5)
    )


ORDERS = {
    "position": {"position": [3, 1, 2, 7], "timestamp": [0, 0, 1, 0]},
    "seconds": {"timestamp": [2.5, 0, 1, 9.5]},
    "times": {"timestamp": [datetime(2024, 5, day) for day in (2, 1, 1, 9)]},
    "ties": {"timestamp": [0, 0, 0, 1], "tie_order": [1, 0, 0, 1]},
    "equal times": {"item_id": ["a", "c", "b", "e"], "timestamp": [5, 5, 5, 5]},
    "unknown times": {"item_id": ["a", "c", "b", "e"], "timestamp": [5, 1, None, 2]},
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", [pl.DataFrame, pl.LazyFrame, pd.DataFrame])
def test_rows_of_a_session_are_sorted_as_in_training(kind, order):
    recommend = recommender()
    expected = recommend.recommend([["a", "b"], ["c", "e"]], session_ids=["y", "x"], top_k=5)
    table = kind(plays(**ORDERS[order]))
    assert recommend.recommend(table, top_k=5).equals(expected)
    assert recommend.embed_sessions(table)["session_id"].to_list() == ["y", "x"]


def test_a_table_from_the_newest_row_to_the_oldest_is_read_backwards_where_times_are_equal():
    recommend = recommender()
    rows = {"session_id": "s", "item_id": list("abcde"), "timestamp": [1, 2, 2, 3, 4]}
    table = pl.DataFrame(rows)
    expected = recommend.recommend([list("abcde")], session_ids=["s"], top_k=5)
    for one in (table, table.reverse()):
        assert recommend.recommend(one, top_k=5).equals(expected)


@pytest.mark.parametrize(
    ("table", "arguments", "kind", "message"),
    [
        ({"item_id": ["a"]}, {}, ValueError, "`sessions` must have the columns session_id, item_id, got"),
        (
            plays(feedback=[True] * 4),
            {},
            TypeError,
            "`sessions` must have numbers in 'feedback'",
        ),
        (plays(feedback=[2.0] * 4), {}, ValueError, r"`feedback` must be in \[-1, 1\]"),
        (plays(), {"session_ids": ["y", "x"]}, ValueError, "`session_ids` must be None for a table"),
        (plays(), {"feedback": [[1.0], [1.0]]}, ValueError, "`feedback` must be None for a table"),
        (plays(position=[0, 1, None, 2]), {}, ValueError, "`sessions` must have a position .* null in 1"),
        (
            plays(timestamp=["now"] * 4),
            {},
            ValueError,
            "a Datetime in column 'timestamp', .* String",
        ),
        ({"session_id": [], "item_id": []}, {}, ValueError, "at least one session"),
        ({"session_id": [1.5], "item_id": ["a"]}, {}, TypeError, "`session_id` must be strings or integers"),
        (
            {"session_id": [1], "item_id": pl.Series([object()], dtype=pl.Object)},
            {},
            TypeError,
            "`sessions` must have text or numbers in 'item_id', got objects",
        ),
    ],
)
def test_bad_tables_are_named(table, arguments, kind, message):
    frame = pl.DataFrame(table)
    if not len(frame):
        frame = frame.cast(pl.String)
    with pytest.raises(kind, match=message):
        recommender().recommend(frame, top_k=2, **arguments)


def rows_of_pandas(rows):
    """A series of lists, as `groupby` gives it."""
    flat = [(f"s{number}", value) for number, row in enumerate(rows) for value in row]
    return pd.DataFrame(flat, columns=["session", "value"]).groupby("session")["value"].agg(list)


@pytest.mark.parametrize(
    "kind",
    [
        torch.tensor,
        lambda rows: [torch.tensor(row) for row in rows],
        np.array,
        lambda rows: [np.array(row) for row in rows],
        pl.Series,
        rows_of_pandas,
    ],
)
def test_sessions_of_any_library_give_the_same_as_lists(kind):
    torch.manual_seed(0)
    encoder = SessionEncoder(ItemVocabulary([10, 20, 30, 40, 50]), max_length=4)
    recommend = Recommender(Scorer(SessionModel(SASRec(8, max_length=4), num_items=5)), encoder)
    rows, signals, ids = [[10, 20], [30, 40], [50, 10]], [[1.0, -1.0], [0.5, 1.0], [-1.0, 1.0]], [7, 8, 9]
    settings = {"top_k": 3, "batch_size": 2}
    expected = recommend.recommend(
        rows,
        signals,
        explicit_feedback=signals,
        session_ids=ids,
        exclude=[40],
        allowed=[20, 40, 50],
        **settings,
    )
    found = recommend.recommend(
        kind(rows),
        kind(signals),
        explicit_feedback=kind(signals),
        session_ids=next(iter(kind([ids]))),
        exclude=next(iter(kind([[40]]))),
        allowed=next(iter(kind([[20, 40, 50]]))),
        **settings,
    )
    assert found.equals(expected)
    assert recommend.unknown_items(kind([[10, 99], [99, 20]])).rows() == [(99, 2)]
    moved = recommend.after_skip(next(iter(kind(rows))), 30, next(iter(kind(signals))), top_k=3)
    assert moved.equals(recommend.after_skip(rows[0], 30, signals[0], top_k=3))
    similar = recommend.similar_items(next(iter(kind(rows))), top_k=2)
    assert similar.equals(recommend.similar_items(rows[0], top_k=2))


def test_unknown_tracks_are_counted():
    recommend = recommender()
    sessions = [["z", "a", "y"], ["z", "x"], ["b"]]
    assert recommend.unknown_items(sessions).rows() == [("z", 2), ("x", 1), ("y", 1)]
    assert recommend.unknown_items(pl.DataFrame(plays())).is_empty()
    with pytest.raises(TypeError, match="`sessions` must be String"):
        recommend.unknown_items([[1]])


def with_skip_penalty():
    torch.manual_seed(0)
    module = SkipCLModule(SASRec(8), SkipPrediction(), num_items=5, embedding_size=8, skip_penalty=0.5)
    module.skip_head.materialise(module.model.item_table)
    module.encoder = SessionEncoder(ItemVocabulary(["a", "b", "c", "d", "e"]), max_length=4)
    return Recommender(module.eval().requires_grad_(False))


def change_in_place(recommend):
    with torch.no_grad():
        recommend.scorer.model.item_embedding.weight[3] += 5.0


def change_head(recommend):
    with torch.no_grad():
        recommend.scorer.skip_head.bias.add_(3.0)


def load_other_weights(recommend):
    recommend.scorer.load_state_dict({k: v + 0.3 for k, v in recommend.scorer.state_dict().items()})


def replace_weight(recommend):
    weight = recommend.scorer.model.item_embedding.weight
    recommend.scorer.model.item_embedding.weight = nn.Parameter(weight.detach().flip(0))


def train_a_step(recommend):
    scorer = recommend.scorer.requires_grad_(True)
    recommend.recommend(SESSIONS, FEEDBACK, top_k=5)
    # It changes weights without a count.
    optimizer = torch.optim.Adam(scorer.parameters(), lr=0.5, fused=True)
    (scorer.skip_head.item_vectors(scorer.model.item_table).sum() + scorer.skip_head.bias.sum()).backward()
    optimizer.step()


def write_to_the_data_with_gradients(recommend):
    recommend.scorer.requires_grad_(True)
    recommend.scorer.model.item_embedding.weight.data[2] += 5.0


@pytest.mark.parametrize(
    "change",
    [
        change_in_place,
        change_head,
        load_other_weights,
        replace_weight,
        train_a_step,
        write_to_the_data_with_gradients,
    ],
)
def test_recommendations_follow_changes_of_the_weights(change):
    recommend = with_skip_penalty()
    before = recommend.recommend(SESSIONS, FEEDBACK, top_k=5)
    change(recommend)
    after = recommend.recommend(SESSIONS, FEEDBACK, top_k=5)
    assert after.equals(Recommender(recommend.scorer).recommend(SESSIONS, FEEDBACK, top_k=5))
    assert not after.equals(before)


def test_the_table_of_the_skip_penalty_is_computed_once(monkeypatch):
    recommend = with_skip_penalty()
    computed = []
    extended = SkipPrediction.extended_table
    monkeypatch.setattr(
        SkipPrediction, "extended_table", lambda *given: computed.append(1) or extended(*given)
    )
    for skip_penalty in (0.5, 0.25, 0.0, 0.5):
        found = recommend.recommend(SESSIONS, FEEDBACK, top_k=5, skip_penalty=skip_penalty)
        recommend.scorer.requires_grad_(True)
        assert found.equals(recommend.recommend(SESSIONS, FEEDBACK, top_k=5, skip_penalty=skip_penalty))
        recommend.scorer.requires_grad_(False)
    assert len(computed) == 1 + 3  # once, and with gradients each time


def test_a_new_recommender_follows_writes_to_the_data_of_a_weight():
    recommend = with_skip_penalty()
    before = recommend.recommend(SESSIONS, FEEDBACK, top_k=5)
    recommend.scorer.model.item_embedding.weight.data[2] += 5.0
    assert not Recommender(recommend.scorer).recommend(SESSIONS, FEEDBACK, top_k=5).equals(before)
