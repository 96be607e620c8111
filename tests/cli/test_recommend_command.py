"""`skipcl recommend` over several processes, and what it leaves out."""

import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date

import polars as pl
import pytest
import torch
from small_models import quiet_trainer

from skipcl_lightning import ItemIndex, Recommender, SkipCLModule
from skipcl_lightning.backbones import SASRec
from skipcl_lightning.cli import recommend as command
from skipcl_lightning.cli.recommend import recommend
from skipcl_lightning.data import ItemVocabulary, SessionDataModule, SessionEncoder, simulate_sessions
from skipcl_lightning.model import Scorer, SessionModel


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    data = SessionDataModule(simulate_sessions(60, num_items=30, num_moods=3))
    module = SkipCLModule(SASRec(8, num_layers=1), num_items=data.num_items, top_k=[2])
    trainer = quiet_trainer(max_steps=1, limit_val_batches=0)
    trainer.fit(module, data)
    path = tmp_path_factory.mktemp("trained") / "model.ckpt"
    trainer.save_checkpoint(path, weights_only=True)
    return path


def write_plays(path, checkpoint, sessions=40):
    """Sessions of different lengths, whose order is not that of their names."""
    ids = Recommender.from_checkpoint(checkpoint).encoder.vocabulary.ids
    rows = [
        (f"s{7 * session % sessions}", ids[(session + 3 * n) % len(ids)], (-1.0) ** n)
        for session in range(sessions)
        for n in range(1 + session % 4)
    ]
    table = pl.DataFrame(rows, schema=["session_id", "item_id", "feedback"], orient="row")
    table.write_parquet(path)
    return table


@pytest.fixture
def threads(monkeypatch):
    """Threads in place of the processes, which take seconds to start."""
    monkeypatch.setattr(command, "ProcessPoolExecutor", lambda count, mp_context: ThreadPoolExecutor(count))
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)


@pytest.mark.parametrize("own", [False, True])
def test_the_model_says_whether_what_a_session_heard_is_recommended(checkpoint, tmp_path, own):
    trained = torch.load(checkpoint, weights_only=True)
    trained["hyper_parameters"]["exclude_seen"] = own
    torch.save(trained, tmp_path / "model.ckpt")
    plays = write_plays(tmp_path / "plays.parquet", checkpoint)

    for name, given in {
        "default": {},
        "kept": {"exclude_seen": False},
        "left_out": {"exclude_seen": True},
    }.items():
        recommend(
            tmp_path / "model.ckpt",
            file=tmp_path / "plays.parquet",
            output=tmp_path / f"{name}.parquet",
            top_k=26,
            **given,
        )

    default, kept, left_out = (
        pl.read_parquet(tmp_path / f"{name}.parquet") for name in ("default", "kept", "left_out")
    )
    heard = plays.select("session_id", "item_id")
    assert left_out.join(heard, on=["session_id", "item_id"]).is_empty()
    assert not kept.join(heard, on=["session_id", "item_id"]).is_empty()
    assert default.equals(left_out if own else kept)


@pytest.mark.usefixtures("threads")
def test_parts_of_all_processes_come_in_the_order_of_the_file(checkpoint, tmp_path, monkeypatch, capsys):
    table = write_plays(tmp_path / "plays.parquet", checkpoint)
    expected = Recommender.from_checkpoint(checkpoint).recommend(table, top_k=3)
    rank, begun = command._rank_part, []

    def the_first_takes_longest(recommender, job, place):
        begun.append(job[1])
        time.sleep(0.05 * (job[1] == 0))
        return rank(recommender, job, place)

    monkeypatch.setattr(command, "_rank_part", the_first_takes_longest)
    recommend(
        checkpoint, file=tmp_path / "plays.parquet", top_k=3, output=tmp_path / "out.parquet", processes=2
    )
    assert len(begun) == 8
    assert pl.read_parquet(tmp_path / "out.parquet").drop("score").equals(expected.drop("score"))
    assert "120 recommendations for 40 sessions" in capsys.readouterr().out


@pytest.mark.usefixtures("threads")
def test_the_error_of_a_process_is_shown_and_nothing_is_left(checkpoint, tmp_path):
    table = write_plays(tmp_path / "plays.parquet", checkpoint)
    wrong = pl.when(pl.int_range(pl.len()) == 60).then(pl.lit("nobody")).otherwise("item_id")
    table.with_columns(item_id=wrong).write_parquet(tmp_path / "plays.parquet")
    with pytest.raises(ValueError, match=r"got 'nobody' in session 's.*`--unknown ignore`"):
        recommend(checkpoint, file=tmp_path / "plays.parquet", output=tmp_path / "out.csv", processes=3)
    assert [path.name for path in tmp_path.iterdir()] == ["plays.parquet"]


def test_processes_need_a_file_that_can_be_shared(checkpoint, tmp_path):
    table = write_plays(tmp_path / "plays.parquet", checkpoint)
    table.write_csv(tmp_path / "plays.csv")
    table.sort("item_id").write_parquet(tmp_path / "mixed.parquet")
    out = tmp_path / "out.csv"
    for given in (
        {"file": tmp_path / "plays.parquet"},
        {"file": tmp_path / "plays.csv", "output": out},
        {"file": tmp_path / "mixed.parquet", "output": out},
        {"file": tmp_path / "plays.parquet", "histories": tmp_path / "plays.csv", "output": out},
        {"session": "a:1", "output": out},
    ):
        with pytest.raises(ValueError, match=r"`processes` must be 1, except .* got 2"):
            recommend(checkpoint, **given, processes=2)
    with pytest.raises(ValueError, match="`processes` must be at least 1"):
        recommend(checkpoint, file=tmp_path / "plays.parquet", output=out, processes=0)


@pytest.mark.parametrize("rows", [1, 2**18])
def test_what_the_model_does_not_know_is_left_out_and_counted(
    checkpoint, tmp_path, rows, monkeypatch, capsys
):
    monkeypatch.setattr(command, "ROWS_IN_MEMORY", rows)
    recommender = Recommender.from_checkpoint(checkpoint)
    known = recommender.encoder.vocabulary.ids[0]
    plays = {"a": ["new", known, "new"], "b": ["new"], "c": [known, "other"], "d": ["other", "new"]}
    table = pl.DataFrame({"session_id": list(plays), "item_id": list(plays.values())}).explode(
        "item_id", empty_as_null=False
    )
    expected = recommender.recommend([[known], [known]], session_ids=["a", "c"], top_k=2)
    said = "Left out: 6 plays of unknown tracks, 2 sessions without a known track."
    table.write_parquet(tmp_path / "plays.parquet")
    table.write_csv(tmp_path / "plays.csv")
    settings = {"top_k": 2, "unknown": "ignore"}
    for name in ("plays.parquet", "plays.csv"):
        recommend(checkpoint, file=tmp_path / name, output=tmp_path / "out.parquet", **settings)
        assert pl.read_parquet(tmp_path / "out.parquet").drop("score").equals(expected.drop("score"))
        out = " ".join(capsys.readouterr().out.split())
        assert "4 recommendations for 2 sessions" in out
        assert said in out
    recommend(checkpoint, session=[f"{known}:1", "new"], **settings)
    assert "1 plays of unknown tracks, 1 sessions" in " ".join(capsys.readouterr().out.split())
    table.filter(pl.col("session_id").is_in(["b", "d"])).write_parquet(tmp_path / "none.parquet")
    for given in ({"file": tmp_path / "none.parquet", "output": tmp_path / "none.csv"}, {"session": "new"}):
        with pytest.raises(ValueError, match="`unknown` must leave a session, got"):
            recommend(checkpoint, **given, **settings)
    assert not (tmp_path / "none.csv").exists()


@pytest.mark.parametrize("column", ["position", "timestamp"])
@pytest.mark.parametrize("rows", [2, 2**18])
def test_a_file_in_any_order_gives_what_the_sorted_one_gives(checkpoint, tmp_path, column, rows, monkeypatch):
    monkeypatch.setattr(command, "ROWS_IN_MEMORY", rows)
    recommender = Recommender.from_checkpoint(checkpoint)
    ids = recommender.encoder.vocabulary.ids
    sessions = {"a": ids[:5], "b": ids[7:4:-1], "c": [ids[9], ids[8], ids[10]]}
    plays = {"session_id": list(sessions), "item_id": list(sessions.values())}
    # From 9 to 11, which texts would sort otherwise. A file from the newest time on reverses equal ones.
    fourth = 10 if column == "position" else 9
    place = pl.Series(column, [7, 8, 9, fourth, 11, *[9, 10, 11] * 2])
    table = pl.DataFrame(plays).explode("item_id", empty_as_null=False).with_columns(place)
    expected = recommender.recommend(list(sessions.values()), top_k=3)["item_id"]
    for changed in (table, table.reverse()):
        changed = changed.sort("session_id", maintain_order=True)
        changed.write_parquet(tmp_path / "plays.parquet")
        changed.write_csv(tmp_path / "plays.csv")
        for name in ("plays.parquet", "plays.csv"):
            recommend(checkpoint, file=tmp_path / name, top_k=3, output=tmp_path / "out.parquet")
            assert pl.read_parquet(tmp_path / "out.parquet")["item_id"].equals(expected)


@pytest.mark.parametrize("ids", [["a", "b", "c"], [1, 2, 3]])
@pytest.mark.parametrize("rows", [1, 2**18])
def test_rows_without_a_usable_item_are_unknown_ones(tmp_path, ids, rows, monkeypatch, capsys):
    encoder = SessionEncoder(ItemVocabulary(ids), max_length=4)
    recommender = Recommender(Scorer(SessionModel(SASRec(8), num_items=3)).eval(), encoder)
    monkeypatch.setattr(Recommender, "from_checkpoint", lambda _: recommender)
    monkeypatch.setattr(command, "ROWS_IN_MEMORY", rows)
    first, second, _ = map(str, ids)
    items = [first, None, second, "xyz", "xyz", " ", first]
    feedback = [1.0, -1.0, 0.5, 1.0, 1.0, 1.0, 1.0]
    table = pl.DataFrame({"session_id": [*"sssttuv"], "item_id": items, "feedback": feedback})
    table.write_parquet(tmp_path / "plays.parquet")
    table.write_csv(tmp_path / "plays.csv")
    numbers = table.with_columns(pl.col("item_id").cast(pl.Int64, strict=False))  # as pandas writes null: 1.0
    numbers.cast({"item_id": pl.Float64}).write_parquet(tmp_path / "floats.parquet")
    expected = recommender.recommend([ids[:2], ids[:1]], [[1, 0.5], [1]], session_ids=["s", "v"], top_k=2)
    for name in ("plays.parquet", "plays.csv", "floats.parquet")[: 3 if ids[0] == 1 else 2]:
        given = {"file": tmp_path / name, "top_k": 2, "output": tmp_path / "out.parquet"}
        with pytest.raises(
            ValueError, match=r"`file` must hold .*ids that the model knows, got None in session 's'"
        ):
            recommend("model.ckpt", **given)
        recommend("model.ckpt", **given, unknown="ignore")
        assert pl.read_parquet(tmp_path / "out.parquet").drop("score").equals(expected.drop("score"))
        said = "Left out: 4 plays of unknown tracks, 2 sessions without a known track."
        assert said in " ".join(capsys.readouterr().out.split())
    given = {"session": [f"{first}:1", "xyz"], "top_k": 2}
    with pytest.raises(
        ValueError, match=r"`session` must hold .* got 'xyz' in session 1 \(1 such plays in 2\)"
    ):
        recommend("model.ckpt", **given)
    recommend("model.ckpt", **given, unknown="ignore")
    assert "1 plays of unknown tracks, 1 sessions" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("session_id,item_id\rs,a\r", "whose lines end with a line feed"),
        ("session_id;item_id\ns;a\n", "',' between the columns, got .* with ';'"),
        ("session,item_id\ns,a\n", "one column 'session_id' .* Did you mean 'session'"),
        ("session_id,item_id,position\ns,a,\n", "an integer in column 'position' .* row 2"),
        ("session_id,item_id,feedback\ns,a,true\n", "a number in .* 'feedback' .* 'true' in row 2"),
        ("session_id,item_id,explicit_feedback\ns,a,5\n", "a number in .* 'explicit_feedback' .* row 2"),
    ],
)
def test_a_file_in_another_form_is_met_with_the_cause(checkpoint, tmp_path, text, message):
    file = tmp_path / "plays.csv"
    file.write_bytes(text.encode())
    with pytest.raises(ValueError, match=f"^`file` must hold .*{message}"):
        recommend(checkpoint, file=file)


@pytest.mark.parametrize("output", [True, False])
def test_a_file_or_a_list_without_a_session_is_named(checkpoint, tmp_path, output):
    settings = {"output": tmp_path / "out.csv" if output else None}
    empty = pl.DataFrame(schema={"session_id": pl.String, "item_id": pl.String})
    empty.write_parquet(tmp_path / "plays.parquet")
    for unknown in ("error", "ignore"):
        with pytest.raises(ValueError, match="`file` must hold at least one session, got none"):
            recommend(checkpoint, file=tmp_path / "plays.parquet", unknown=unknown, **settings)
        with pytest.raises(ValueError, match="`session` must hold at least one session, got none"):
            recommend(checkpoint, session=[], unknown=unknown, **settings)


@pytest.mark.parametrize("output", [True, False])
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_likes_and_dislikes_of_a_file_count(tmp_path, output, ending, monkeypatch):
    model = SessionModel(SASRec(8), num_items=4)
    model.use_history()
    encoder = SessionEncoder(ItemVocabulary(["a", "b", "c", "d"]), max_length=4, history_length=2)
    recommender = Recommender(Scorer(model).eval(), encoder)
    monkeypatch.setattr(Recommender, "from_checkpoint", lambda _: recommender)
    shown = []
    monkeypatch.setattr(command, "_print", lambda found, _: shown.append(found))
    items, feedback, likes = ["a", "b", "c"], [1.0, -1.0, -1.0], [-1.0, 1.0, None]
    table = pl.DataFrame({"session_id": "s", "item_id": items, "feedback": feedback})
    table = table.with_columns(explicit_feedback=pl.Series(likes))
    getattr(table, f"write_{ending}")(tmp_path / f"plays.{ending}")
    given = {"file": tmp_path / f"plays.{ending}", "output": tmp_path / "out.parquet" if output else None}

    def recommended(**arguments):
        recommend("model.ckpt", top_k=4, **given, **arguments)
        return pl.read_parquet(given["output"]) if output else shown[-1]

    sessions = {"sessions": [items], "feedback": [feedback], "explicit_feedback": [[-1.0, 1.0, 0.0]]}
    for histories, arguments in ((None, {}), ([["b"]], {"histories": given["file"]})):
        expected = recommender.recommend(**sessions, histories=histories, session_ids=["s"], top_k=4)
        assert set(expected["item_id"]) == {"b", "d"}
        assert recommended(**arguments).equals(expected)


@pytest.mark.parametrize("names", [["s", None], [1.0, 2.0], [date(2026, 1, 1)] * 2])
def test_sessions_without_a_usable_name_are_refused_by_their_column(checkpoint, tmp_path, names):
    ids = Recommender.from_checkpoint(checkpoint).encoder.vocabulary.ids[:2]
    pl.DataFrame({"session_id": names, "item_id": ids}).write_parquet(tmp_path / "plays.parquet")
    for output in (None, tmp_path / "out.csv"):
        with pytest.raises(TypeError, match=r"^`file: session_id` must be all strings or all integers, got"):
            recommend(checkpoint, file=tmp_path / "plays.parquet", output=output)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_names_of_files_are_no_patterns(checkpoint, tmp_path, ending):
    table = write_plays(tmp_path / "plays.parquet", checkpoint, sessions=4)
    expected = Recommender.from_checkpoint(checkpoint).recommend(table, top_k=2)
    folder = tmp_path / "run[1]"
    folder.mkdir()
    getattr(table, f"write_{ending}")(folder / f"plays[1].{ending}")
    # What the name would stand for as a pattern.
    getattr(table.head(1), f"write_{ending}")(folder / f"plays1.{ending}")
    out = folder / "out.parquet"
    recommend(checkpoint, file=folder / f"plays[1].{ending}", top_k=2, output=out)
    assert pl.read_parquet(out, glob=False).drop("score").equals(expected.drop("score"))


def workers_of(run):
    """The processes that a run has started to share its work."""
    found = subprocess.run(  # noqa: S603
        ["ps", "-ww", "--no-headers", "-o", "pid,args", "-g", str(run.pid)],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    )
    return [int(line.split()[0]) for line in found.stdout.splitlines() if "spawn_main" in line]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent as on POSIX")
@pytest.mark.parametrize("end", ["whole", "interrupted", "killed"])
def test_real_processes_leave_a_whole_file_or_nothing(checkpoint, tmp_path, end):
    table = write_plays(tmp_path / "plays.parquet", checkpoint, 40 if end == "whole" else 200_000)
    script = tmp_path / "script.py"
    script.write_text(
        "import signal\n"
        "from skipcl_lightning.cli import main\n"
        "if __name__ == '__main__':\n"
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "    main()\n",
        encoding="utf-8",
    )
    arguments = ["--file", "plays.parquet", "--output", "out.parquet", "--processes", "2"]
    run = subprocess.Popen(  # noqa: S603
        [sys.executable, str(script), "recommend", str(checkpoint), *arguments],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    if end != "whole":
        while len(workers_of(run)) < 2:
            assert run.poll() is None
            time.sleep(0.1)
        if end == "interrupted":
            os.killpg(run.pid, signal.SIGINT)
        else:
            os.kill(workers_of(run)[0], signal.SIGKILL)
    said = run.communicate(timeout=120)[1]
    assert not workers_of(run)
    left = {path.name for path in tmp_path.iterdir()} - {"plays.parquet", "script.py"}
    if end == "whole":
        expected = Recommender.from_checkpoint(checkpoint).recommend(table, top_k=10)
        assert left == {"out.parquet"}
        assert pl.read_parquet(tmp_path / "out.parquet").drop("score").equals(expected.drop("score"))
        return
    assert not left
    assert run.returncode == 1
    messages = {
        "interrupted": "skipcl recommend: interrupted. Nothing incomplete was left.",
        "killed": "skipcl recommend: `processes` must be few enough for the memory, got 2, .* take fewer.",
    }
    assert re.fullmatch(messages[end], said.strip())


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("processes", [1, 2])
def test_an_index_is_built_once_and_read_by_each_process(tmp_path, monkeypatch, processes):
    torch.manual_seed(0)
    scorer = Scorer(SessionModel(SASRec(8), num_items=2100)).requires_grad_(False).eval()  # threads share it
    encoder = SessionEncoder(ItemVocabulary([f"t{n}" for n in range(2100)]), max_length=50)
    monkeypatch.setattr(Recommender, "from_checkpoint", lambda path: Recommender(scorer, encoder))
    build, built = ItemIndex.build, []

    def build_with_one_probe(*model):
        built.append(build(*model))
        return built[-1]

    # So that the lists are not those of an exact search.
    monkeypatch.setattr(
        ItemIndex, "num_probes", property(lambda self: 1, lambda self, value: None), raising=False
    )
    monkeypatch.setattr(ItemIndex, "build", build_with_one_probe)
    rows = [(f"s{n}", f"t{n * place}", 1.0) for n in range(1, 9) for place in (1, 2)]
    plays = pl.DataFrame(rows, schema=["session_id", "item_id", "feedback"], orient="row")
    plays.write_parquet(tmp_path / "plays.parquet")

    recommend(
        tmp_path / "model.ckpt",
        file=tmp_path / "plays.parquet",
        output=tmp_path / "found.parquet",
        processes=processes,
        index=tmp_path / "items.index",
    )

    assert len(built) == 1
    # Scores of batches of other sizes may differ in the last bit.
    found = pl.read_parquet(tmp_path / "found.parquet").drop("score")
    recommender = Recommender(scorer, encoder)
    expected = recommender.recommend(plays, index=ItemIndex.load(tmp_path / "items.index")).drop("score")
    assert found.equals(expected)
    assert not found.equals(recommender.recommend(plays).drop("score"))
