import asyncio
import contextlib
import hashlib
import importlib
import json
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx2 as httpx
import polars as pl
import pytest
import torch
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from skipcl_lightning import ItemIndex, Recommender
from skipcl_lightning.backbones import SASRec
from skipcl_lightning.data import ItemVocabulary, SessionDataModule, SessionEncoder
from skipcl_lightning.export import export_model
from skipcl_lightning.heads import SkipPrediction
from skipcl_lightning.model import Scorer, SessionModel

EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = ["a", "<script>alert('b')</script>", '"c"\\', "d\u2028\n", "é\x00", *"fghijkl"]
SESSIONS, FEEDBACK = [[NAMES[1], NAMES[0]], [NAMES[2]]], [[-1.0, 1.0], [0.5]]


@pytest.fixture(scope="module")
def service():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        yield importlib.import_module("serve_http")


@pytest.fixture(scope="module")
def recommender():
    torch.manual_seed(0)
    model, head = SessionModel(SASRec(8, max_length=4), num_items=12), SkipPrediction()
    head.materialise(model.item_table)
    with torch.no_grad():
        for weight in head.parameters():
            weight.normal_()
    return Recommender(Scorer(model, head), SessionEncoder(ItemVocabulary(NAMES), max_length=4))


@pytest.fixture(scope="module")
def client(service, recommender):
    limits = service.Limits(body_bytes=2000, sessions=3, session_length=12, top_k=11)
    with TestClient(service.make_app(recommender, digest="f00d", limits=limits)) as client:
        yield client


def ask(client, **question):
    answer = client.post("/recommend", json=question)
    assert answer.status_code == 200, answer.text
    return answer.json()["recommendations"]


def test_an_answer_is_what_the_recommender_returns(client, recommender):
    expected = recommender.recommend(
        SESSIONS, FEEDBACK, explicit_feedback=[[1, 0], [0]], top_k=10, exclude_skipped=True, skip_penalty=0.5
    )
    rows = list(expected.drop("session_id", "rank").iter_rows(named=True))
    lists = {"sessions": SESSIONS, "feedback": FEEDBACK, "explicit_feedback": [[1, 0], [0]]}
    assert ask(client, **lists, skip_penalty=0.5) == [rows[:10], rows[10:]]


def make_large():
    model = SessionModel(SASRec(8, max_length=4), num_items=2100)
    encoder = SessionEncoder(ItemVocabulary(range(2100)), max_length=4)
    return Recommender(Scorer(model).requires_grad_(False), encoder)


def test_a_service_searches_with_its_index(service):
    recommender = make_large()
    index = ItemIndex.build(recommender.scorer, recommender.encoder)
    index.num_probes = 1

    with TestClient(service.make_app(recommender, index=index)) as client:
        (found,) = ask(client, sessions=[[7, 3]], top_k=5)

    expected = recommender.recommend([[7, 3]], top_k=5, index=index)
    assert found == list(expected.drop("session_id", "rank").iter_rows(named=True))
    # Of one list of 54, so that they are not those of an exact search.
    assert not expected.equals(recommender.recommend([[7, 3]], top_k=5))


def test_exclusions_shorten_a_list_and_may_empty_it(client):
    (others,) = ask(client, sessions=[NAMES[:4]], exclude_seen=True)
    assert {row["item_id"] for row in others} == set(NAMES[4:])
    assert ask(client, sessions=[NAMES], exclude_seen=True) == [[]]
    assert ask(client, sessions=[["a", "nowhere"]], unknown="ignore") == ask(client, sessions=[["a"]])


def test_the_model_says_whether_its_service_recommends_what_a_session_heard(
    service, recommender, monkeypatch
):
    monkeypatch.setattr(recommender.scorer, "exclude_seen", True)
    with TestClient(service.make_app(recommender)) as client:
        lists = [ask(client, sessions=[NAMES[:4]], **own)[0] for own in ({}, {"exclude_seen": False})]
    assert [len(found) for found in lists] == [len(NAMES) - 4, 10]


def test_names_arrive_as_they_are_in_json_and_nothing_else(client):
    answer = client.post("/recommend", json={"sessions": [["a"]], "top_k": 11, "exclude_seen": True})
    assert answer.headers["content-type"] == "application/json"
    assert sorted(row["item_id"] for row in answer.json()["recommendations"][0]) == sorted(NAMES[1:])
    assert "\n" not in answer.text


def test_health_and_version_say_what_serves(client):
    assert client.get("/health").json() == {"status": "ok"}
    schema = client.get("/openapi.json").json()["paths"]["/recommend"]["post"]["requestBody"]
    assert "skip_penalty" in schema["content"]["application/json"]["schema"]["properties"]
    version = client.get("/version").json()
    assert re.fullmatch(r"\d+\.\d+\.\d+", version.pop("skipcl_lightning"))
    assert version == {"model": "SASRec", "items": 12, "digest": "f00d"}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "`body` must be valid.*Invalid JSON"),
        ("\udcff{", "`body` must be valid.*Invalid JSON"),
        ("[" * 1900, "`body` must be valid.*recursion limit"),
        ("[]", r"`body` must be valid, got \[\]\. Input should be an object"),
        ('{"top_k": 1}', r"`sessions` must be valid\. Field required"),
        ('{"sessions": [["a"]], "sesions": 1}', r"got 1\. Extra inputs are not permitted \(sesions\)"),
        ('{"sessions": []}', "`sessions` must be valid.*at least 1 item"),
        ('{"sessions": [[]]}', "got session 0 without a track"),
        ('{"sessions": ["a"]}', r"`sessions\[0\]` must be valid, got 'a'"),
        ('{"sessions": [[null]]}', r"`sessions\[0\]\[0\]` must be valid, got None"),
        ('{"sessions": [["a", 1]]}', "must be all strings or all integers, got int, str"),
        ('{"sessions": [[1]]}', "must be String as in the vocabulary, got Int64"),
        ('{"sessions": [["\\ud800"]]}', "Invalid JSON"),
        ('{"sessions": [["' + "x" * 1500 + '"]]}', "got 'xxx"),
        ('{"sessions": [["a"], ["nowhere"]]}', "got 'nowhere' in session 1"),
        ('{"sessions": [["a"]], "feedback": [[NaN]]}', r"`feedback` must be in \[-1, 1\], got .nan"),
        ('{"sessions": [["a"]], "feedback": [[1e999]]}', r"`feedback` must be in \[-1, 1\], got .inf"),
        ('{"sessions": [["a"]], "feedback": [[true]]}', r"`feedback\[0\]\[0\]` must be valid, got True"),
        ('{"sessions": [["a"]], "feedback": [["1"]]}', r"`feedback\[0\]\[0\]` must be valid, got '1'"),
        ('{"sessions": [["a"]], "feedback": [[1, 1]]}', "`feedback` must"),
        ('{"sessions": [["a"]], "feedback": [[1], [1]]}', "one list for each session, got 2 for 1"),
        ('{"sessions": [["a"]], "histories": [["a"]]}', "`histories` must be None for a model"),
        ('{"sessions": [["a"]], "context": {"hour": null}}', "`context` must have only what"),
        ('{"sessions": [["a"]], "top_k": 0}', "`top_k` must be valid, got 0"),
        ('{"sessions": [["a"]], "top_k": true}', "`top_k` must be valid, got True"),
        ('{"sessions": [["a"]], "unknown": "x"}', "`unknown` must be"),
        ('{"sessions": [["a"]], "skip_penalty": -1}', "`skip_penalty` must be valid, got -1"),
        ('{"sessions": [["a"]], "skip_penalty": NaN}', "`skip_penalty` must be valid, got nan"),
        ('{"sessions": [["a"],["a"],["a"],["a"]]}', "`sessions` must be at most 3, got 4. Send several"),
        (
            '{"sessions": [["a","a","a","a","a","a","a","a","a","a","a","a","a"]]}',
            "`session` must be at most 12, got 13",
        ),
        ('{"sessions": [["a"]], "top_k": 12}', "`top_k` must be at most 11, got 12"),
    ],
)
def test_a_malformed_request_gets_422_and_what_to_change(client, body, message):
    answer = client.post("/recommend", content=body.encode("utf-8", "surrogateescape"))
    assert answer.status_code == 422
    assert re.search(message, answer.json()["detail"])
    assert len(answer.text) < 1500


def test_a_body_that_is_too_large_is_refused(client):
    answer = client.post("/recommend", content=b" " * 3000)
    assert (answer.status_code, answer.json()["detail"]) == (
        413,
        "The body must be at most 2000 bytes. Split it.",
    )


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(NAMES) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)
ids = st.lists(st.lists(st.sampled_from(NAMES), max_size=3), max_size=3)
fields = {
    "feedback": st.lists(st.lists(st.floats(-1, 1), max_size=3), max_size=3),
    "explicit_feedback": st.lists(st.lists(st.sampled_from([-1, 0, 1, 2]), max_size=3), max_size=3),
    "context": st.dictionaries(st.sampled_from(["hour", "gap"]), json_values, max_size=2),
    "top_k": st.integers(-1, 13),
    "skip_penalty": st.floats(0, 1000),
    "exclude_seen": st.booleans(),
    "unknown": st.sampled_from(["error", "ignore"]),
}
bodies = st.fixed_dictionaries(
    {"sessions": ids | json_values},
    optional={name: values | json_values for name, values in fields.items()},
)


@given(st.binary(max_size=20) | bodies.map(lambda body: json.dumps(body).encode()))
@settings(max_examples=150)
def test_no_body_is_a_fault_of_the_server(client, body):
    # The client raises what the application raises.
    answer = client.post("/recommend", content=body)
    assert answer.status_code in (200, 422)
    if answer.status_code == 200:
        sessions = json.loads(body)["sessions"]
        assert len(answer.json()["recommendations"]) == len(sessions)
    else:
        assert answer.json()["detail"]


VALID = [
    {}, {"top_k": 1}, {"top_k": 5}, {"exclude_seen": True},
    {"exclude_skipped": False, "feedback": [[-1.0, 1.0]]},
    {"skip_penalty": 0.5}, {"sessions": [["f"], ["a", "g"]]}, {"feedback": [[1.0, -1.0]]},
    {"sessions": [["a", "nowhere"]], "unknown": "ignore"}, {"explicit_feedback": [[-1.0, 1.0]]},
]  # fmt: skip
INVALID = [{"top_k": 13}, {"sessions": [["a", "nowhere"]]}, {"sessions": [[]]}, {"feedback": [[1.0]]}]


@pytest.mark.parametrize("changes", [VALID, VALID[1:] + VALID[:1], VALID + INVALID, INVALID + VALID])
def test_a_question_is_answered_as_if_it_were_alone(service, recommender, changes):
    asked = [service.Question(**{"sessions": [["h", "i"]], **change}) for change in changes]
    together = service.answer_together(recommender, asked)
    for question, answer in zip(asked, together, strict=True):
        (alone,) = service.answer_together(recommender, [question])
        assert str(flat(answer, "item_id")) == str(flat(alone, "item_id"))
        if not isinstance(alone, Exception):
            assert [len(rows) for rows in answer] == [len(rows) for rows in alone]
            for name in ("score", "skip_probability"):
                assert flat(answer, name) == pytest.approx(flat(alone, name), abs=1e-5)
    assert sum(isinstance(answer, Exception) for answer in together) == sum(map(INVALID.count, changes))


def flat(answer, name):
    return answer if isinstance(answer, Exception) else [row[name] for rows in answer for row in rows]


def test_columns_of_a_context_keep_the_types_of_each_question(service):
    times = list(range(0, 2000, 200))
    log = {"session_id": [1] * 5 + [2] * 5, "item_id": list("abcdeacbed"), "feedback": [1.0, -1.0] * 5}
    table = pl.DataFrame({**log, "timestamp": times, "shuffle": ["1", "2"] * 5})
    data = SessionDataModule(table, context=["gap", "shuffle"])
    model = SessionModel(SASRec(8), num_items=5, context_sizes=data.context_sizes)
    with torch.no_grad():
        for embedding in model.context_embeddings:
            embedding.weight.normal_()
    recommender = Recommender(Scorer(model), data.encoder)
    columns = ["1", "2"], [1, 2], [None, "2"], [1.0, 2], [True, False], None
    asked = [
        service.Question(
            sessions=[["a", "b"]],
            context={"timestamp": [[0, 300]], "shuffle": column if column is None else [column]},
            top_k=3,
        )
        for column in columns
    ]
    together = service.answer_together(recommender, asked)
    alone = [service.answer_together(recommender, [question])[0] for question in asked]
    for answer, expected in zip(together, alone, strict=True):
        assert str(flat(answer, "item_id")) == str(flat(expected, "item_id"))
        if not isinstance(expected, Exception):
            assert flat(answer, "score") == pytest.approx(flat(expected, "score"), abs=1e-5)
    assert flat(alone[0], "score") != pytest.approx(flat(alone[-1], "score"), abs=1e-2)
    assert isinstance(alone[4], ValueError)


class Slow:
    """A recommender that waits until it may answer, and counts its calls."""

    def __init__(self, recommender):
        self.encoder, self.scorer, self.inner = recommender.encoder, recommender.scorer, recommender
        self.calls, self.go = [], threading.Event()

    def recommend(self, **settings):
        self.calls.append(len(settings["sessions"]))
        assert self.go.wait(10)
        return self.inner.recommend(**settings)


async def at_once(app, questions, meanwhile):
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://x") as client,
    ):
        tasks = [asyncio.create_task(client.post("/recommend", json=question)) for question in questions]
        await meanwhile(client)
        return await asyncio.gather(*tasks)


def test_requests_that_arrive_while_the_model_is_busy_share_its_next_call(service, recommender):
    slow = Slow(recommender)
    app = service.make_app(slow, limits=service.Limits(batch_sessions=4, waiting_requests=6))
    questions = [{"sessions": [[name]], "top_k": 2} for name in NAMES]

    async def meanwhile(client):
        # The event loop is free while the model works.
        while not slow.calls:
            await client.get("/health")
            await asyncio.sleep(0.001)
        slow.go.set()

    answers = asyncio.run(at_once(app, questions, meanwhile))
    refused = [answer for answer in answers if answer.status_code == 503]
    assert {answer.json()["detail"] for answer in refused} == {
        "Too many requests are waiting. Try again later."
    }
    served = len(questions) - len(refused)
    assert slow.calls[0] < served
    assert sum(slow.calls) == served
    assert max(slow.calls) == 4
    for question, answer in zip(questions, answers, strict=True):
        if answer.status_code == 200:
            expected = recommender.recommend(question["sessions"], top_k=2)["item_id"].to_list()
            assert [row["item_id"] for row in answer.json()["recommendations"][0]] == expected


def test_a_client_that_goes_away_stops_nobody_else(service, recommender):
    slow = Slow(recommender)

    async def run():
        batcher = service.Batcher(slow, service.Limits())
        running = asyncio.create_task(batcher.run())
        gone, stays = (
            asyncio.create_task(batcher.recommend(service.Question(sessions=[["a"]]))) for _ in range(2)
        )
        while not slow.calls:
            await asyncio.sleep(0.001)
        gone.cancel()
        slow.go.set()
        found = await asyncio.wait_for(stays, 10)
        running.cancel()
        return found

    assert len(asyncio.run(run())[0]) == 10


def test_a_client_that_goes_away_within_its_body_is_no_fault_of_the_server(client):
    sent = []

    async def receive():
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/recommend", "headers": [], "query_string": b""}
    asyncio.run(client.app(scope, receive, send))
    assert sent[0]["status"] == 400


def test_an_export_is_served_with_the_digest_of_its_description(service, recommender, tmp_path):
    folder = export_model(
        recommender.scorer, recommender.encoder, tmp_path / "exported", onnx=False, pt2=False
    )
    loaded, digest = service.load(folder)
    assert loaded.encoder.vocabulary == recommender.encoder.vocabulary
    assert digest == hashlib.sha256((folder / "model.json").read_bytes()).hexdigest()


def test_a_checkpoint_is_named_or_the_service_does_not_start(service):
    with pytest.raises(SystemExit, match="`path` must name a checkpoint"):
        service.serve()


@pytest.mark.slow
def test_a_process_serves_over_the_network_and_ends_after_the_last_answer():
    command = [sys.executable, str(EXAMPLES / "serve_http.py"), "--smoke", "true", "--port", "0"]
    question = {"sessions": [["track 1", "track 2"]], "feedback": [[1.0, -1.0]]}
    with subprocess.Popen(  # noqa: S603 - our own script
        [*command, "--limits.batch_wait", "1.5"], stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            for line in process.stderr:
                if found := re.search(r"running on (http://127\.0\.0\.1:\d+)", line):
                    break
            url = found[1]
            assert httpx.get(f"{url}/health").json() == {"status": "ok"}
            assert httpx.post(f"{url}/recommend", content=b"{").status_code == 422
            answers = []
            thread = threading.Thread(
                target=lambda: answers.append(httpx.post(f"{url}/recommend", json=question, timeout=20))
            )
            thread.start()
            time.sleep(0.5)
            process.send_signal(signal.SIGTERM)
            thread.join(20)
            assert [row["item_id"] for row in answers[0].json()["recommendations"][0]] != []
            assert process.wait(20) in (0, -signal.SIGTERM)
            with pytest.raises(httpx.ConnectError):
                httpx.get(f"{url}/health")
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
