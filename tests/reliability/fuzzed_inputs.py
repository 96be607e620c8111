"""Kinds of input with small valid examples: each kind runs cases that a generator changes."""

import asyncio
import importlib
import json
from pathlib import Path

import polars as pl
import pytest
import torch
import yaml
from hostile import (
    PYTHON,
    choose,
    encode,
    mutate_bytes,
    mutate_frame,
    mutate_lines,
    mutate_value,
    pack,
)

from skipcl_lightning import ItemIndex, Recommender
from skipcl_lightning._files import digest_json
from skipcl_lightning.backbones import SASRec
from skipcl_lightning.cli.configs import check_yaml
from skipcl_lightning.cli.recommend import recommend
from skipcl_lightning.data import (
    ContextEncoder,
    ItemFeatures,
    ItemVocabulary,
    SessionEncoder,
    open_store,
    prepare_sessions,
    prepare_store,
    read_30music,
    read_lfm1k,
    read_lfm2b,
    read_listenbrainz,
    read_movielens,
    read_mssd,
    read_streaming_history,
    read_table,
    read_yambda,
)
from skipcl_lightning.data.prepare.inputs import resolve_vocabulary
from skipcl_lightning.data.store import folder as stores
from skipcl_lightning.export import export_model
from skipcl_lightning.heads import SkipPrediction
from skipcl_lightning.model import Scorer, SessionModel

# The share of cases that change nothing, of the kinds that refuse nearly all others: a kind that also refuses
# its own example would show nothing.
UNCHANGED = 0.1


def make_recommender():
    torch.manual_seed(0)
    model = SessionModel(SASRec(8, max_length=4, num_layers=1, num_heads=1), num_items=6)
    head = SkipPrediction()
    head.materialise(model.item_table)
    encoder = SessionEncoder(ItemVocabulary([f"t{number}" for number in range(6)]), max_length=4)
    return Recommender(Scorer(model, head), encoder)


def use(table):
    """Prepare a table, as all that takes a log does."""
    prepare_sessions(table)


def text_reader(name, text, read, separator):
    """Cases of a reader of lines."""

    def make(folder, trained):
        file = folder / name

        def run(generator):
            changed = mutate_lines(text, generator, separator) if generator.random() < 0.7 else text
            content = encode(changed, generator)
            file.write_bytes(content if generator.random() < 0.7 else mutate_bytes(content, generator))
            use(read(file))

        return run

    return make


def json_reader(name, records, read, *, lines):
    """Cases of a reader of JSON, in one piece or by the line, or in an archive."""

    def make(folder, trained):
        file = folder / name

        def run(generator):
            value = (
                mutate_value(records, generator, with_root=not lines) if generator.random() < 0.8 else records
            )
            text = "\n".join(json.dumps(one) for one in value) if lines else json.dumps(value)
            if generator.random() < 0.2:
                text = mutate_lines(text, generator, ",")
            content = encode(text, generator)
            if generator.random() < 0.1:
                content = pack({f"listens/{name}": content, "readme.txt": b"no log"}, generator)
            file.write_bytes(content)
            use(read(file))

        return run

    return make


def write_parquet(frame, file, generator):
    """Write a frame, now and then damaged."""
    try:
        frame.write_parquet(file)
    except pl.exceptions.PolarsError:  # Parquet has no such type.
        PLAYS.write_parquet(file)
    if generator.random() < 0.4:
        file.write_bytes(mutate_bytes(file.read_bytes(), generator))


def parquet_reader(frame, read):
    """Cases of a reader of Parquet files."""

    def make(folder, trained):
        file = folder / "listens.parquet"

        def run(generator):
            if generator.random() < UNCHANGED:
                frame.write_parquet(file)
            else:
                write_parquet(mutate_frame(frame, generator), file, generator)
            use(read(file))

        return run

    return make


def table_in_memory(frame, read):
    """Cases of a table as a frame, or as a list of dictionaries."""

    def make(folder, trained):
        def run(generator):
            if generator.random() < 0.5:
                use(read(mutate_frame(frame, generator)))
            else:
                use(read(mutate_value(frame.to_dicts(), generator, PYTHON)))

        return run

    return make


def read_columns(source):
    return read_table(
        source, item="track", session="list", position="place", feedback="stars", timestamp="time", user="who"
    )


PLAYS = pl.DataFrame(
    {
        "list": ["a", "a", "a", "b", "b", "b"],
        "track": ["x", "y", "z", "y", "x", "w"],
        "place": [1, 2, 3, 1, 2, 3],
        "stars": [1.0, -1.0, 0.5, -1.0, 1.0, None],
        "time": [f"2024-05-01T10:0{minute}:00Z" for minute in range(6)],
        "who": ["u", "u", "u", "v", "v", "v"],
    }
)
CANONICAL = PLAYS.select(
    session_id="list",
    item_id="track",
    position="place",
    feedback="stars",
    timestamp=pl.int_range(6),
    user_id="who",
)
MSSD = (
    "session_id,session_position,session_length,track_id_clean,skip_1,skip_2,skip_3,not_skipped,premium\n"
    + "\n".join(
        f"{session},{place},3,t{place},{flags},True"
        for session in "ab"
        for place, flags in enumerate(
            ("True,True,True,False", "False,False,True,False", "False,False,False,True"), 1
        )
    )
)
LFM1K = "\n".join(
    f"user_{user}\t2009-05-04T23:{minute:02}:57Z\tmbid\tArtist\t{'id' * (minute % 2)}\tTrack {minute}"
    for user in (1, 2)
    for minute in (9, 6, 3)
)
LFM2B = "user_id\ttrack_id\talbum_id\ttimestamp\n" + "\n".join(
    f"{user}\t{10 + minute}\t5\t2019-01-01 00:0{minute}:00" for user in (1, 2) for minute in range(3)
)
RATINGS = [
    (user, item, rating, 881250949 + item) for user in (1, 2) for item, rating in ((4, 3), (5, 1), (6, 5))
]
MUSIC30 = "\n".join(
    f"event.session\t{session}\t1400000000\t{json.dumps({'numtracks': 3})} "
    + json.dumps(
        {
            "subjects": [{"type": "user", "id": 3}],
            "objects": [
                {"type": "track", "id": n, "playstart": 60 * n, "playratio": 0.4 * n} for n in range(1, 4)
            ],
        }
    )
    for session in (8, 9)
)
LISTENS = [
    {
        "user_name": "u",
        "listened_at": 1_700_000_000 + 60 * number,
        "track_metadata": {
            "artist_name": "A",
            "track_name": f"T{number}",
            "mbid_mapping": {"recording_mbid": f"m{number % 3}"},
            "additional_info": {"recording_mbid": ""},
        },
    }
    for number in range(5)
]
EXTENDED = [
    {
        "ts": f"2024-05-01T10:0{number}:00Z",
        "ms_played": 9000 * number,
        "spotify_track_uri": f"spotify:track:{number}",
        "skipped": number % 2 == 0,
        "reason_end": "fwdbtn",
        "reason_start": "trackdone",
        "shuffle": False,
        "offline": number == 3,
        "offline_timestamp": 1_714_557_600 + number,
        "platform": "tv",
    }
    for number in range(4)
]
BASIC = [
    {
        "endTime": f"2024-05-01 10:0{number}",
        "artistName": "A",
        "trackName": f"T{number}",
        "msPlayed": 20000 * number,
    }
    for number in range(4)
]
YAMBDA = pl.DataFrame(
    {
        "uid": [1, 1, 1, 2],
        "item_id": [7, 8, 9, 7],
        "timestamp": [0, 5, 10, 0],
        "played_ratio_pct": [100, 5, 60, None],
    }
)
THIRTY = pl.DataFrame(
    {
        "session_id": [1, 1, 1],
        "item_id": [7, 8, 9],
        "timestamp": [0, 5, 10],
        "user_id": [1, 1, 1],
        "play_ratio": [0.1, None, 1.0],
    }
)


def join_rows(rows, separator):
    return "\n".join(separator.join(map(str, row)) for row in rows)


def recommend_cases(folder, trained):
    """Any arguments of `Recommender.recommend`."""
    recommender = make_recommender()
    valid = {
        "sessions": [["t0", "t1", "t2"], ["t3"]],
        "feedback": [[1.0, -1.0, 0.0], [0.5]],
        "explicit_feedback": [[0.0, 1.0, 0.0], [-1.0]],
        "session_ids": ["a", "b"],
        "top_k": 3,
        "exclude_seen": False,
        "exclude_skipped": True,
        "exclude": ["t5"],
        "allowed": ["t0", "t1", "t2", "t3", "t4"],
        "unknown": "ignore",
        "skip_penalty": 0.5,
        "batch_size": 2,
        "index": None,
    }

    def run(generator):
        given = mutate_value(
            {name: valid[name] for name in valid if generator.random() < 0.6}, generator, PYTHON
        )
        given = {name: value for name, value in given.items() if name in valid}
        sessions = given.pop("sessions", valid["sessions"])
        if generator.random() < 0.2:
            rows = CANONICAL.with_columns(item_id=pl.lit("t1"))
            sessions = mutate_frame(rows, generator)
            given = {
                name: given[name]
                for name in given
                if name not in ("feedback", "explicit_feedback", "session_ids")
            }
        found = recommender.recommend(sessions, **given)
        assert found["score"].is_finite().all()
        assert found.height <= 6 * max(1, found["session_id"].n_unique())

    return run


def encoder_cases(folder, trained):
    """Arguments of `SessionEncoder.encode`, and of the methods of a recommender beside `recommend`."""
    recommender = make_recommender()
    context = ContextEncoder({"gap": None, "device": ["tv"]})
    encoder = recommender.encoder.replace(history_length=3, context=context)
    sessions = [["t0", "t1", "t2"], ["t3"]]
    batch = {
        "sessions": sessions,
        "feedback": [[1.0, -1.0, 0.0], [0.5]],
        "histories": sessions,
        "context": {"timestamp": [[0, 60, 120], [0]], "device": [["tv", None, "tv"], [None]]},
    }
    plays = {
        "session": ["t0", "t1"],
        "track": "t2",
        "feedback": [1.0, -1.0],
        "explicit_feedback": [0.0, 1.0],
        "track_feedback": 1.0,
        "top_k": 2,
        "depth": 4,
    }
    calls = (
        (encoder.encode, batch),
        (recommender.embed_sessions, {name: batch[name] for name in ("sessions", "feedback")}),
        (recommender.unknown_items, {"sessions": sessions}),
        (recommender.similar_items, {"items": ["t1", "t2"], "top_k": 2}),
        (recommender.after_skip, plays),
    )

    def run(generator):
        call, given = choose(generator, calls)
        changed = mutate_value(given, generator, PYTHON)
        # Those without a default stay.
        needed = {name: given[name] for name in ("sessions", "items", "session", "track") if name in given}
        call(**(needed | {name: value for name, value in changed.items() if name in given}))

    return run


def checkpoint_cases(folder, trained):
    """Damaged bytes of a checkpoint."""
    whole, file = trained.read_bytes(), folder / "model.ckpt"

    def run(generator):
        file.write_bytes(whole if generator.random() < UNCHANGED else mutate_bytes(whole, generator))
        Recommender.from_checkpoint(file).embed_items()

    return run


# What `torch.load(weights_only=True)` accepts.
NEWS = [None, True, -1, 0, 10**12, 10**30, float("nan"), "words", "", [], {}, 0.5, [None] * 3, {"a": 1}]
NEWS += [torch.zeros(2), torch.zeros(0), torch.full((31, 8), float("nan")), torch.zeros(31, 8).long()]


def checkpoint_value_cases(folder, trained):
    """Changed values of a checkpoint, which its checksums cover."""
    whole, file = torch.load(trained, weights_only=True), folder / "model.ckpt"

    def run(generator):
        part = choose(generator, ["hyper_parameters", "skipcl_lightning", "state_dict", None])
        mutant = dict(whole)
        if part is None:
            mutant = mutate_value(mutant, generator, NEWS)
        else:
            mutant[part] = mutate_value(dict(whole[part]), generator, NEWS)
        torch.save(mutant, file)
        Recommender.from_checkpoint(file)

    return run


def index_cases(folder, trained):
    """Changed values of a file of `ItemIndex.save`, which its checksums cover."""
    pytest.importorskip("faiss")
    torch.manual_seed(0)
    scorer = Scorer(SessionModel(SASRec(8, max_length=4, num_layers=1, num_heads=1), num_items=1000))
    recommender = Recommender(scorer, SessionEncoder(ItemVocabulary(range(1000)), max_length=4))
    file = folder / "items.index"
    ItemIndex.build(scorer, recommender.encoder).save(file)
    whole = torch.load(file, weights_only=True)

    def run(generator):
        unchanged = generator.random() < UNCHANGED
        torch.save(whole if unchanged else mutate_value(whole, generator, NEWS), file)
        if generator.random() < 0.2:
            file.write_bytes(mutate_bytes(file.read_bytes(), generator))
        recommender.recommend([[1, 2]], top_k=3, index=ItemIndex.load(file))

    return run


def vocabulary_cases(folder, trained):
    """Changed values of the checkpoint that another log takes its vocabulary from."""
    whole, file = torch.load(trained, weights_only=True), folder / "model.ckpt"
    mutant = {name: value for name, value in whole.items() if name != "state_dict"}

    def run(generator):
        own = mutate_value(whole["skipcl_lightning"], generator, NEWS, with_root=True)
        torch.save({**mutant, "skipcl_lightning": own}, file)
        resolve_vocabulary(file)

    return run


def item_feature_cases(folder, trained):
    """Tables of item features, in memory and as Parquet files."""
    frame = pl.DataFrame({"item_id": ["a", "b", "c"], "genre": ["x", "y", None], "year": [1.0, 2.0, None]})
    frame = frame.with_columns(embedding=pl.Series([[1.0, 2.0]] * 3, dtype=pl.Array(pl.Float32, 2)))
    file = folder / "items.parquet"

    def run(generator):
        table = mutate_frame(frame, generator)
        if generator.random() < 0.5:
            write_parquet(table, file, generator)
            table = file
        ItemFeatures.from_table(table, ItemVocabulary(["a", "b"]))

    return run


def store_cases(folder, trained):
    """Damaged files of a store, with checksums that fit now and then."""
    place = folder / "store"
    prepare_store(CANONICAL, place)
    whole = {file.name: file.read_bytes() for file in place.iterdir()}

    def run(generator):
        for name, content in whole.items():
            (place / name).write_bytes(content)
        if generator.random() < UNCHANGED:
            open_store(place)
            return
        name = choose(generator, sorted(whole))
        manifest = json.loads(whole["manifest.json"])
        del manifest["sha256"]
        if name == "manifest.json" and generator.random() < 0.8:
            manifest = mutate_value(manifest, generator)
        else:
            (place / name).write_bytes(mutate_bytes(whole[name], generator))
        if generator.random() < 0.7:
            if name != "manifest.json":
                manifest["files"] = stores.describe_files(place)
            text = json.dumps(manifest | {"sha256": stores.digest_json(manifest)})
            (place / "manifest.json").write_text(text)
        if generator.random() < 0.3:
            resolve_vocabulary(place)
        data = open_store(place)
        _ = data.store.ids, data.vocabulary.ids, data.vocabulary.encode(["x"], unknown="ignore")

    return run


def export_cases(folder, trained):
    """Damaged files of an export, with digests that fit now and then."""
    recommender = make_recommender()
    place = export_model(recommender.scorer, recommender.encoder, folder / "export", onnx=False, pt2=False)
    whole = {file.name: file.read_bytes() for file in place.iterdir()}

    def run(generator):
        for name, content in whole.items():
            (place / name).write_bytes(content)
        name = choose(generator, sorted(whole))
        description = json.loads(whole["model.json"])
        del description["sha256"]
        if name == "model.json" and generator.random() < 0.8:
            description = mutate_value(description, generator)
        else:
            (place / name).write_bytes(mutate_bytes(whole[name], generator))
        if generator.random() < 0.7 and isinstance(description, dict):
            if name != "model.json":
                digest = stores.digest_file(place / name)
                description["files"][name] = {"sha256": digest, "bytes": (place / name).stat().st_size}
            description["sha256"] = digest_json(description)
            (place / "model.json").write_text(json.dumps(description))
        Recommender.from_export(place).recommend([["t1"]], top_k=1)

    return run


SETTINGS = {
    "data": {
        "class_path": "skipcl_lightning.data.SessionDataModule",
        "init_args": {"log": "log.parquet", "batch_size": 4},
    },
    "model": {
        "class_path": "skipcl_lightning.SkipCLModule",
        "init_args": {
            "backbone": {"class_path": "SASRec", "init_args": {"embedding_size": 8, "max_length": 4}},
            "skip_head": {"class_path": "SkipInfoNCE", "init_args": {"weight": 0.1}},
            "learning_rate": 0.001,
        },
    },
    "trainer": {"max_epochs": 1, "accelerator": "cpu", "logger": False},
}


def change_settings(generator, log="log.parquet"):
    """A configuration as bytes."""
    text = yaml.safe_dump(mutate_value(SETTINGS, generator, with_root=True)).replace("log.parquet", str(log))
    kind = int(generator.integers(8))
    if kind == 0:
        text = mutate_lines(text, generator, ": ")
    elif kind == 1:
        deep = choose(generator, ["[", "{a: ", "- ", "&a [*a, "]) * int(choose(generator, [3, 200, 5000]))
        text += f"\nmore: {deep}"
    elif kind == 2:
        text += "".join(f"a{n}: &a{n} [{', '.join([f'*a{max(0, n - 1)}'] * 9)}]\n" for n in range(9))
    content = encode(text, generator)
    return mutate_bytes(content, generator) if generator.random() < 0.3 else content


def configuration_cases(folder, trained):
    """Configurations before a parser sees them."""
    file = folder / "run.yaml"

    def run(generator):
        file.write_bytes(change_settings(generator))
        check_yaml(file)

    return run


def command_cases(folder, trained):
    """Configurations of `skipcl fit`, up to the training."""
    from skipcl_lightning.cli.training import TrainingCLI

    CANONICAL.write_parquet(folder / "plays.parquet")
    file = folder / "run.yaml"

    class Untrained(TrainingCLI):
        def _run_subcommand(self, subcommand):
            pass

    def run(generator):
        file.write_bytes(change_settings(generator, folder / "plays.parquet"))
        try:
            check_yaml(file)
        except ValueError as error:
            raise SystemExit(f"skipcl fit: {error}") from error
        Untrained(["fit", "--config", str(file)])

    return run


def recommend_command_cases(folder, trained):
    """Files of sessions and texts for `skipcl recommend`, as its function takes them."""
    recommender = make_recommender()
    known = recommender.encoder.vocabulary.ids[0]
    sessions = CANONICAL.select("session_id", "feedback", item_id=pl.lit(known))
    files = folder / "sessions.csv", folder / "sessions.parquet"
    outputs = folder / "found.csv", folder / "found.parquet"

    def call(*sessions, **given):
        # The checkpoint is another kind of input.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Recommender, "from_checkpoint", lambda path: recommender)
            recommend(trained, *sessions, **given)

    def run(generator):
        given = {"top_k": 2, "unknown": "ignore", "output": choose(generator, outputs)}
        if generator.random() < 0.2:
            text = mutate_lines(f"{known}:1,{known}:-1,{known}", generator, choose(generator, [":", ","]))
            call(text, **given)
            return
        file = choose(generator, files)
        if file.suffix == ".csv":
            file.write_bytes(encode(mutate_lines(sessions.write_csv().rstrip(), generator, ","), generator))
        else:
            write_parquet(mutate_frame(sessions, generator), file, generator)
        call(file=file, **given)

    return run


def service_cases(folder, trained):
    """Bodies of requests to the service, as its ASGI application reads them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
        service = importlib.import_module("serve_http")
    app = service.make_app(make_recommender(), limits=service.Limits(batch_wait=0))
    question = {
        "sessions": [["t0", "t1"], ["t2"]],
        "feedback": [[1.0, -1.0], [0.5]],
        "explicit_feedback": [[0.0, 1.0], [0.0]],
        "top_k": 3,
        "exclude_seen": False,
        "unknown": "ignore",
        "skip_penalty": 0.5,
    }

    def run(generator):
        value = {name: question[name] for name in question if name == "sessions" or generator.random() < 0.5}
        body = json.dumps(mutate_value(value, generator, with_root=True)).encode()
        if generator.random() < 0.2:
            body = mutate_bytes(body, generator)
        asyncio.run(ask(app, body))

    return run


async def ask(app, body):
    """POST a body to an ASGI application, without a thread."""
    sent = []

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": "/recommend", "raw_path": b"/recommend", "query_string": b"", "root_path": "",
        "headers": [(b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
    }  # fmt: skip
    async with app.router.lifespan_context(app):
        await app(scope, receive, send)
    status, answer = sent[0]["status"], json.loads(b"".join(one.get("body", b"") for one in sent[1:]))
    if status == 422:
        raise ValueError(answer["detail"])
    assert status in (200, 413), answer


KINDS = {
    "table in CSV": text_reader("log.csv", PLAYS.write_csv().rstrip(), read_columns, ","),
    "table in Parquet": parquet_reader(PLAYS, read_columns),
    "table in memory": table_in_memory(PLAYS, read_columns),
    "canonical table": table_in_memory(CANONICAL, lambda table: table),
    "mssd": text_reader("log.csv", MSSD, read_mssd, ","),
    "lfm1k": text_reader("log.tsv", LFM1K, read_lfm1k, "\t"),
    "lfm2b": text_reader("listening_events.tsv", LFM2B, read_lfm2b, "\t"),
    "movielens 100K": text_reader("u.data", join_rows(RATINGS, "\t"), read_movielens, "\t"),
    "movielens 1M": text_reader("ratings.dat", join_rows(RATINGS, "::"), read_movielens, "::"),
    "movielens 20M": text_reader(
        "ratings.csv", "userId,movieId,rating,timestamp\n" + join_rows(RATINGS, ","), read_movielens, ","
    ),
    "movielens pairs": text_reader(
        "pairs.txt",
        join_rows([row[:2] for row in RATINGS], " "),
        lambda file: read_movielens(file, label="watched"),
        " ",
    ),
    "30music": text_reader("sessions.idomaar", MUSIC30, read_30music, ","),
    "30music in Parquet": parquet_reader(THIRTY, read_30music),
    "listenbrainz": json_reader("1.jsonl", LISTENS, read_listenbrainz, lines=True),
    "streaming history": json_reader(
        "endsong_0.json",
        EXTENDED,
        lambda file: read_streaming_history(file, columns=["platform", "shuffle"]),
        lines=False,
    ),
    "basic history": json_reader(
        "StreamingHistory0.json",
        BASIC,
        lambda file: read_streaming_history(file, skip_rule="ms_played"),
        lines=False,
    ),
    "yambda": parquet_reader(YAMBDA, read_yambda),
    "recommend": recommend_cases,
    "encoder": encoder_cases,
    "checkpoint": checkpoint_cases,
    "checkpoint values": checkpoint_value_cases,
    "index": index_cases,
    "vocabulary": vocabulary_cases,
    "item features": item_feature_cases,
    "store": store_cases,
    "export": export_cases,
    "configuration": configuration_cases,
    "skipcl recommend": recommend_command_cases,
    "service": service_cases,
}
COSTLY_KINDS = ("lfm1k", "checkpoint values", "vocabulary", "store", "export")
# Too slow for an equal share of the cases.
SLOW_KINDS = {"skipcl fit": command_cases}
