"""The context of a play on the command line: prepared from a log, trained, and given with sessions."""

import json
import re
from datetime import datetime

import polars as pl
import pytest
from mssd_logs import write_mssd_logs
from small_models import quiet_trainer

from skipcl_lightning import Recommender, SkipCLModule
from skipcl_lightning.backbones import SASRec
from skipcl_lightning.cli import recommend as recommend_command
from skipcl_lightning.cli.configs import read_configuration
from skipcl_lightning.cli.recommend import recommend
from skipcl_lightning.data import (
    ItemVocabulary,
    SessionDataModule,
    SessionEncoder,
    open_store,
    read_mssd,
    read_streaming_history,
    read_table,
)
from skipcl_lightning.model import Scorer, SessionModel


def test_the_inputs_of_the_data_suffice_for_training(skipcl, tmp_path):
    skipcl(
        "fit", "--config", "simulated/sasrec", "--data.context", "[place, item_mood]",
        "--data.log.num_sessions", 60, "--data.log.num_items", 40, "--trainer.max_epochs", 1,
        "--trainer.accelerator", "cpu", "--trainer.callbacks", "null", "--trainer.logger", "false",
        "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false",
    )  # fmt: skip
    (checkpoint,) = tmp_path.glob("checkpoints/*.ckpt")
    recommender = Recommender.from_checkpoint(checkpoint)
    assert list(recommender.scorer.model.context_sizes) == ["place", "item_mood"]
    assert recommender.encoder.context.columns == ["item_mood"]


def test_a_store_is_prepared_with_columns_that_its_reader_keeps(skipcl, tmp_path):
    write_mssd_logs(tmp_path / "logs", num_sessions=60, num_items=40, sessions_per_file=60)
    # The inputs that the ready configuration names.
    named = re.search(r'--context "(\[.*\])"', read_configuration("mssd/sasrec"))[1]
    skipcl("prepare", "mssd", tmp_path / "logs", "--folder", "store", "--context", named)
    inputs = ["place", "context_type", "hist_user_behavior_is_shuffle", "hour_of_day", "premium"]
    context = open_store(tmp_path / "store").context
    assert list(context.sizes) == inputs
    kept = read_mssd(tmp_path / "logs", columns=inputs[1:]).collect()
    assert set(context.categories["context_type"]) <= set(kept["context_type"])
    assert [kept.schema[name] for name in inputs[1:]] == [pl.String, pl.Boolean, pl.Int64, pl.Boolean]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    rows = [
        (session, f"t{n % 5}", 1.0, 100 * session + 7 * n, n % 2 == 0, n % 3, "ab"[n % 2])
        for session in range(9)
        for n in range(6)
    ]
    columns = ["session_id", "item_id", "feedback", "timestamp", "shuffle", "level", "device"]
    log = pl.DataFrame(rows, schema=columns, orient="row")
    data = SessionDataModule(log, context=["gap", "shuffle", "level", "device"])
    module = SkipCLModule(
        SASRec(8, max_length=6), num_items=data.num_items, context_sizes=data.context_sizes, top_k=[2]
    )
    trainer = quiet_trainer()
    trainer.fit(module, data)
    path = tmp_path_factory.mktemp("trained") / "model.ckpt"
    trainer.save_checkpoint(path, weights_only=True)
    return path


def test_a_file_of_sessions_gives_the_context_typed_or_as_text(checkpoint, tmp_path):
    context = {"timestamp": [[0, 7]], "shuffle": [[True, None]], "level": [[2, 0]], "device": [["b", "a"]]}
    expected = Recommender.from_checkpoint(checkpoint).recommend([["t0", "t1"]], context=context, top_k=2)
    table = pl.DataFrame({"session_id": "s", "item_id": ["t0", "t1"]}).with_columns(
        pl.Series(name, values[0]) for name, values in context.items()
    )
    table.write_parquet(tmp_path / "typed.parquet")
    table.write_csv(tmp_path / "seconds.csv")
    times = pl.Series("timestamp", [datetime(1970, 1, 1), datetime(1970, 1, 1, 0, 0, 7)])
    table.with_columns(times).write_csv(tmp_path / "times.csv")
    for name in ("typed.parquet", "seconds.csv", "times.csv"):
        recommend(checkpoint, file=tmp_path / name, top_k=2, output=tmp_path / "found.parquet")
        found = pl.read_parquet(tmp_path / "found.parquet")
        assert found["score"].to_list() == expected["score"].to_list()
    table.drop("level").write_csv(tmp_path / "less.csv")
    with pytest.raises(ValueError, match="columns session_id, item_id, timestamp, shuffle, level, device"):
        recommend(checkpoint, file=tmp_path / "less.csv")
    table.with_columns(shuffle=pl.Series(["true", "perhaps"])).write_csv(tmp_path / "wrong.csv")
    with pytest.raises(ValueError, match="column 'shuffle' of every row, got 'perhaps' in row 3 of"):
        recommend(checkpoint, file=tmp_path / "wrong.csv")
    with pytest.raises(ValueError, match="`file` must be given for a model with the context timestamp"):
        recommend(checkpoint, session="t0:1")


@pytest.mark.parametrize("rows", [1, 3, 7, 100])
def test_a_file_is_read_in_parts_of_whole_sessions(checkpoint, tmp_path, rows, monkeypatch, capsys):
    monkeypatch.setattr(recommend_command, "ROWS_IN_MEMORY", rows)
    ids = ["x"] * 5 + ["a"] + ["m"] * 4 + ["b"] * 2
    table = pl.DataFrame(
        {
            "session_id": ids,
            "item_id": [f"t{number % 3}" for number in range(12)],
            "feedback": [1.0, -1.0, 0.5] * 4,
            "timestamp": range(12),
            "shuffle": [True, None, False] * 4,
            "level": [2, 0, 1] * 4,
            "device": ["a", "b", None] * 4,
        }
    )
    table.write_parquet(tmp_path / "sessions.parquet")
    sizes = []
    read = recommend_command._to_given

    def watched(argument, file, part, *settings):
        sizes.append(len(part))
        return read(argument, file, part, *settings)

    monkeypatch.setattr(recommend_command, "_to_given", watched)
    expected = Recommender.from_checkpoint(checkpoint).recommend(table, top_k=2)
    for name, load in (("found.parquet", pl.read_parquet), ("found.csv", pl.read_csv)):
        sizes.clear()
        recommend(checkpoint, file=tmp_path / "sessions.parquet", top_k=2, output=tmp_path / name)
        assert load(tmp_path / name).drop("score").equals(expected.drop("score"))
        assert sizes == {1: [5, 1, 4, 2], 3: [5, 1, 4, 2], 7: [10, 2], 100: [12]}[rows]
    assert f"{len(expected)} recommendations for 4 sessions" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "found.csv",
        "found.parquet",
        "sessions.parquet",
    ]
    # Rows that are no neighbours are read at once.
    table.with_columns(session_id=pl.Series(["x", "a"] * 6)).write_parquet(tmp_path / "mixed.parquet")
    sizes.clear()
    recommend(checkpoint, file=tmp_path / "mixed.parquet", top_k=2, output=tmp_path / "found.parquet")
    assert sizes == [12]


def test_readers_keep_the_columns_that_are_named_and_refuse_others(tmp_path):
    table = pl.DataFrame(
        {"id": ["a", "b"], "n": [1, 2], "device": ["tv", None], "level": [3, 4], "played": [1, 2]}
    )
    roles = {"item": "id", "session": "level", "position": "n"}
    kept = read_table(table, columns=["level", "device"], **roles).collect()
    assert kept.columns == ["session_id", "item_id", "feedback", "position", "level", "device"]
    assert kept["level"].to_list() == [3, 4]
    table.write_csv(tmp_path / "table.csv")
    texts = read_table(tmp_path / "table.csv", columns=["level", "device"], **roles).collect()
    assert texts.select("level", "device").rows() == [("3", "tv"), ("4", None)]
    for wrong, message in (
        ("levle", "`source` must have the column 'levle'"),
        ("played", "`columns` must not name a column like one of the table's own, got 'played'"),
    ):
        with pytest.raises(ValueError, match=message):
            read_table(table, columns=[wrong], **roles)
    with pytest.raises(ValueError, match=r"`columns` must be one of .*context_switch"):
        read_mssd(tmp_path, columns=["hour"])
    play = {
        "ts": "2024-05-01T10:00:00Z",
        "ms_played": 9,
        "spotify_track_uri": "a",
        "skipped": True,
        "shuffle": None,
    }
    file = tmp_path / "endsong_0.json"
    file.write_text(json.dumps([play, {**play, "ts": "2024-05-01T10:03:00Z", "shuffle": True}]))
    assert read_streaming_history(file, columns=["shuffle"]).collect()["shuffle"].to_list() == [None, True]
    with pytest.raises(ValueError, match=r"`columns` must be one of .*shuffle"):
        read_streaming_history(file, columns=["skipped"])
    play = {"artistName": "A", "trackName": "T", "endTime": "2024-05-01 10:00", "msPlayed": 9000}
    file.write_text(json.dumps([play]))
    with pytest.raises(ValueError, match="`columns` must be empty for the basic export, got"):
        read_streaming_history(file, skip_rule="ms_played", columns=["shuffle"])


@pytest.mark.parametrize("as_text", [False, True])
def test_integer_ids_are_read_from_parts_too(tmp_path, as_text, monkeypatch):
    encoder = SessionEncoder(ItemVocabulary([30, 10, 20]), max_length=4)
    recommender = Recommender(Scorer(SessionModel(SASRec(8), num_items=3)).eval(), encoder)
    monkeypatch.setattr(Recommender, "from_checkpoint", lambda _: recommender)
    monkeypatch.setattr(recommend_command, "ROWS_IN_MEMORY", 2)
    table = pl.DataFrame({"session_id": [7, 7, 5], "item_id": [10, 30, 20]})
    expected = recommender.recommend(table, top_k=2)
    table = table.cast({"item_id": pl.String}) if as_text else table
    table.write_parquet(tmp_path / "sessions.parquet")
    recommend("model.ckpt", file=tmp_path / "sessions.parquet", top_k=2, output=tmp_path / "found.parquet")
    assert pl.read_parquet(tmp_path / "found.parquet").drop("score").equals(expected.drop("score"))
    table.clear().write_parquet(tmp_path / "none.parquet")
    with pytest.raises(ValueError, match="at least one session"):
        recommend("model.ckpt", file=tmp_path / "none.parquet", top_k=2, output=tmp_path / "none.csv")
    assert not (tmp_path / "none.csv").exists()
