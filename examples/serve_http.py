"""Serve recommendations over HTTP: sessions in, next tracks with scores and skip probabilities out.

python examples/serve_http.py --path best.ckpt
curl localhost:8000/recommend --json '{"sessions": [["song", "tune"]], "feedback": [[1, -1]], "top_k": 5}'
python examples/serve_http.py --smoke true                # an untrained model of "track 0" to "track 99"

Requests that arrive at the same time share one call of the model. SIGTERM ends the service after the running
requests. It has no passwords and no encryption: put it behind a proxy that has.
"""

import asyncio
import hashlib
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from jsonargparse import auto_cli
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import ClientDisconnect

from skipcl_lightning import ItemIndex, Recommender
from skipcl_lightning.backbones import SASRec
from skipcl_lightning.data import ItemVocabulary, SessionEncoder
from skipcl_lightning.heads import SkipPrediction
from skipcl_lightning.model import Scorer, SessionModel

Items = list[dict[str, Any]]
LISTS = ("sessions", "feedback", "explicit_feedback", "histories")
LONGEST_MESSAGE = 1000  # a message repeats what came, which may be long


class Question(BaseModel):
    """The body of a request; see `Recommender.recommend`."""

    model_config = ConfigDict(strict=True, extra="forbid")

    sessions: list[list[str | int]] = Field(min_length=1)
    feedback: list[list[float]] | None = None
    explicit_feedback: list[list[float]] | None = None
    histories: list[list[str | int]] | None = None
    context: dict[str, list[list[str | int | float | bool | None]] | None] | None = None
    top_k: int = Field(10, ge=1)
    exclude_seen: bool | None = None
    exclude_skipped: bool = True
    unknown: str = "error"
    skip_penalty: float | None = Field(None, ge=0, le=1000)

    def key(self) -> tuple[Any, ...]:
        """Return what questions of one call of the model have in common."""
        context = tuple((name, values is None) for name, values in sorted((self.context or {}).items()))
        given = tuple(getattr(self, name) is not None for name in LISTS)
        return (*given, context, self.exclude_seen, self.exclude_skipped, self.unknown, self.skip_penalty)

    def check_rows(self) -> None:
        """Raise `ValueError` unless each list has a row a session: the next row may be another client's."""
        lists = [(name, getattr(self, name)) for name in LISTS]
        for name, rows in [*lists, *(self.context or {}).items()]:
            if rows is not None and len(rows) != len(self.sessions):
                raise ValueError(
                    f"`{name}` must have one list for each session, got {len(rows)} for "
                    f"{len(self.sessions)}. Leave it out, or give one each."
                )


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The largest request, and the largest batch.

    Args:
        body_bytes: The largest body of a request, in bytes.
        sessions: The most sessions of a request.
        session_length: The longest session or history, in tracks.
        top_k: The most recommendations for a session.
        batch_sessions: Requests are added to a batch until it has this many sessions.
        batch_wait: Seconds for which the first request of a batch waits for others. Those that arrive while
            the model is busy share the next batch in any case.
        waiting_requests: Requests that wait for the model; more are answered with status 503.
    """

    body_bytes: int = 1 << 20
    sessions: int = 256
    session_length: int = 1000
    top_k: int = 100
    batch_sessions: int = 256
    batch_wait: float = 0.002
    waiting_requests: int = 1000

    def check(self, question: Question) -> None:
        """Raise `ValueError` if a request asks for too much."""
        _check_most("sessions", len(question.sessions), self.sessions, "Send several requests.")
        for sessions in (question.sessions, question.histories or []):
            longest = max(map(len, sessions), default=0)
            _check_most("session", longest, self.session_length, "Send the latest tracks.")
        _check_most("top_k", question.top_k, self.top_k, "Ask for fewer tracks.")


def _check_most(name: str, number: int, most: int, cure: str) -> None:
    if number > most:
        raise ValueError(f"`{name}` must be at most {most}, got {number}. {cure}")


DEFAULTS = Limits()


async def read_question(request: Request, limits: Limits) -> Question:
    """Return the checked body of a request.

    Raises:
        HTTPException: The body is too large.
        ValueError: The body is no JSON, has a wrong type, or asks for too much.
    """
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > limits.body_bytes:
            raise HTTPException(413, f"The body must be at most {limits.body_bytes} bytes. Split it.")
    try:
        question = Question.model_validate_json(body)
    except ValidationError as errors:
        error = errors.errors(include_url=False)[0]
        known = [part for part in error["loc"] if isinstance(part, int) or part in Question.model_fields]
        name = "".join(f"[{part}]" if isinstance(part, int) else part for part in known) or "body"
        wrong = "" if error["type"] == "missing" else f", got {error['input']!r:.100}"
        where = ".".join(map(str, error["loc"]))
        raise ValueError(f"`{name}` must be valid{wrong}. {error['msg']} ({where}).") from errors
    question.check_rows()
    limits.check(question)
    return question


@dataclass
class Batcher:
    """Answers the questions that arrive at about the same time with one call of the model.

    Args:
        recommender: The model.
        limits: The largest batch, and the longest queue.
        index: Approximate search; None for exact.
    """

    recommender: Recommender
    limits: Limits
    index: ItemIndex | None = None
    queue: asyncio.Queue[tuple[Question, asyncio.Future[list[Items]]]] = field(default_factory=asyncio.Queue)

    async def recommend(self, question: Question) -> list[Items]:
        """Return the recommendations for each session of a question."""
        if self.queue.qsize() >= self.limits.waiting_requests:
            raise HTTPException(503, "Too many requests are waiting. Try again later.")
        answer: asyncio.Future[list[Items]] = asyncio.get_running_loop().create_future()
        self.queue.put_nowait((question, answer))
        return await answer

    async def run(self) -> None:
        """Answer questions until cancelled."""
        while True:
            batch = [await self.queue.get()]
            if self.limits.batch_wait and self.queue.qsize() < self.limits.batch_sessions:
                await asyncio.sleep(self.limits.batch_wait)
            sessions = len(batch[0][0].sessions)
            while not self.queue.empty() and sessions < self.limits.batch_sessions:
                batch.append(self.queue.get_nowait())
                sessions += len(batch[-1][0].sessions)
            questions = [question for question, _ in batch]
            # In a thread, so that the loop goes on to read requests; only one thread uses the model.
            answers = await asyncio.to_thread(answer_together, self.recommender, questions, self.index)
            for (_, future), answer in zip(batch, answers, strict=True):
                if future.done():  # The client has gone.
                    continue
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)


def answer_together(
    recommender: Recommender, questions: list[Question], index: ItemIndex | None = None
) -> list[list[Items] | Exception]:
    """Return for each question its recommendations, or the error that it alone raises."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for number, question in enumerate(questions):
        groups.setdefault(question.key(), []).append(number)
    answers: dict[int, list[Items] | Exception] = {}
    for members in groups.values():
        try:
            found = answer_group(recommender, [questions[number] for number in members], index)
            answers.update(zip(members, found, strict=True))
        except Exception:
            # One of them is at fault; the others still get their answer.
            for number in members:
                try:
                    answers[number] = answer_group(recommender, [questions[number]], index)[0]
                except Exception as error:
                    answers[number] = error
    return [answers[number] for number in range(len(questions))]


def answer_group(
    recommender: Recommender, questions: list[Question], index: ItemIndex | None = None
) -> list[list[Items]]:
    """Return the recommendations of questions with one `key`."""
    first = questions[0]
    lists = {name: _join([getattr(one, name) for one in questions]) for name in LISTS}
    columns = first.context or {}
    context = {name: _join([one.context[name] for one in questions if one.context]) for name in columns}
    frame = recommender.recommend(
        **lists,
        context=context or None,
        top_k=max(question.top_k for question in questions),
        exclude_seen=first.exclude_seen,
        exclude_skipped=first.exclude_skipped,
        unknown=first.unknown,
        skip_penalty=first.skip_penalty,
        index=index,
    )
    found: list[Items] = [[] for question in questions for _ in question.sessions]
    for row in frame.drop("rank").iter_rows(named=True):
        found[row.pop("session_id")].append(row)
    each = iter(found)
    return [[next(each)[: one.top_k] for _ in one.sessions] for one in questions]


def _join(parts: list[list[Any] | None]) -> Any:
    """Return the rows of all questions; None if they have none."""
    return None if parts[0] is None else [row for part in parts if part is not None for row in part]


def make_app(
    recommender: Recommender,
    *,
    digest: str = "",
    limits: Limits = DEFAULTS,
    index: ItemIndex | None = None,
) -> FastAPI:
    """Return the service as an ASGI application.

    Args:
        recommender: The model.
        digest: The SHA-256 of the model's file, for `/version`.
        limits: The largest request, and the largest batch.
        index: Approximate search; None for exact.
    """
    batcher = Batcher(recommender, limits, index)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        running = asyncio.create_task(batcher.run())
        yield
        running.cancel()

    app = FastAPI(title="skipcl_lightning", version=version("skipcl-lightning"), lifespan=lifespan)
    body = {"required": True, "content": {"application/json": {"schema": Question.model_json_schema()}}}

    @app.post("/recommend", openapi_extra={"requestBody": body})
    async def recommend(request: Request) -> JSONResponse:
        try:
            found = await batcher.recommend(await read_question(request, limits))
        except ClientDisconnect as error:  # Nobody reads the answer, but the log shows no fault of ours.
            raise HTTPException(400, "The client has gone.") from error
        except (TypeError, ValueError) as error:
            raise HTTPException(422, str(error)[:LONGEST_MESSAGE]) from error
        return JSONResponse({"recommendations": found})

    @app.get("/health")
    async def show_health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/version")
    async def show_version() -> dict[str, Any]:
        return {
            "skipcl_lightning": version("skipcl-lightning"),
            "model": type(recommender.scorer.model.backbone).__name__,
            "items": len(recommender.encoder.vocabulary),
            "digest": digest,
        }

    return app


def load(path: Path) -> tuple[Recommender, str]:
    """Return the recommender of a checkpoint or an export, and the SHA-256 of the file that describes it."""
    # The description of an export holds the digests of its other files.
    with (path / "model.json" if path.is_dir() else path).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    recommender = Recommender.from_export(path) if path.is_dir() else Recommender.from_checkpoint(path)
    return recommender, digest


def make_untrained() -> Recommender:
    """Return a model of 100 tracks that has learned nothing, to try the service with."""
    encoder = SessionEncoder(ItemVocabulary([f"track {n}" for n in range(100)]), max_length=20)
    model, head = SessionModel(SASRec(8), num_items=100), SkipPrediction()
    head.materialise(model.item_table)
    return Recommender(Scorer(model, head), encoder)


def serve(
    path: Path | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    limits: Limits = DEFAULTS,
    index: Path | None = None,
    smoke: bool = False,
) -> None:
    """Serve a trained model until SIGTERM or Ctrl-C; running requests are answered first.

    Args:
        path: A checkpoint, or the folder of an exported model.
        host: The address to listen on.
        port: The port to listen on; 0 for a free one.
        limits: The largest request, and the largest batch.
        index: The file of an `ItemIndex` for a large catalogue, which is built and written if there is none.
        smoke: Quick check that everything works: an untrained model of 100 tracks in place of `path`.
    """
    if path is None and not smoke:
        sys.exit("`path` must name a checkpoint or an export, got none. Give one, or `--smoke true`.")
    recommender, digest = (make_untrained(), "") if path is None else load(path)
    search = None
    if index is not None:
        search = ItemIndex.load_or_build(index, recommender.scorer, recommender.encoder)
    app = make_app(recommender, digest=digest, limits=limits, index=search)
    uvicorn.run(app, host=host, port=port, access_log=False)


if __name__ == "__main__":
    auto_cli(serve, as_positional=False)
