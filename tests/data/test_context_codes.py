"""The codes of a play's context: against a slow loop, from the training set alone, in memory and on disk."""

import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from skipcl_lightning.data import (
    ContextEncoder,
    ItemVocabulary,
    SessionDataModule,
    SessionEncoder,
    SplitByTime,
    open_store,
    prepare_store,
)
from skipcl_lightning.data.prepare.inputs import MOST_CATEGORIES

INPUTS = ["gap", "device", "place", "shuffle", "hour", "level", "weekday"]
START = datetime(2024, 5, 1, 22, 30, tzinfo=UTC)


def make_log(sessions=40, seed=0):
    draw = np.random.default_rng(seed)
    rows = []
    for session in range(sessions):
        moment = START + timedelta(hours=int(draw.integers(500)))
        for number in range(80 if session == 0 else int(draw.integers(4, 9))):
            moment += timedelta(seconds=int(draw.choice([0, 1, 3, 30, 200, 90_000, 2_000_000])))
            rows.append(
                {
                    "session_id": session,
                    "item_id": f"i{2 * draw.integers(6) + number % 2}",
                    "feedback": float(draw.choice([-1.0, 1.0])) if number else 1.0,
                    "timestamp": moment,
                    "device": (None, "tv", "phone")[draw.integers(3)],
                    "shuffle": bool(draw.integers(2)),
                    "level": int(draw.choice([10, -3, 7])),
                }
            )
    return pl.DataFrame(rows)


def slow_codes(rows):
    """The codes of one session's rows, by the words of the documentation."""
    codes, before = [], None
    for number, row in enumerate(rows):
        moment = row["timestamp"]
        gap = 0
        if before is not None:
            seconds = (moment - before).total_seconds()
            while gap < 40 and 2 ** (gap / 2) <= 1 + seconds:
                gap += 1
        before = moment
        codes.append(
            [
                gap,
                {None: 0, "phone": 1, "tv": 2}[row["device"]],
                min(number + 1, 64),
                2 if row["shuffle"] else 1,
                moment.hour + 1,
                {-3: 1, 7: 2, 10: 3}[row["level"]],
                moment.isoweekday(),
            ]
        )
    return codes


def test_the_codes_equal_a_slow_loop_in_every_split_and_hold_nothing_of_the_target():
    log = make_log()
    data = SessionDataModule(log, context=INPUTS, max_length=6, batch_size=7)
    assert data.context_sizes == {
        "gap": 40, "device": 2, "place": 64, "shuffle": 2, "hour": 24, "level": 3, "weekday": 7,
    }  # fmt: skip
    sessions = {key: part.to_dicts() for (key,), part in log.partition_by("session_id", as_dict=True).items()}
    for left_out, most, loader in (
        (2, 7, data.train_dataloader()),
        (2, 6, data.val_dataloader()),
        (1, 6, data.test_dataloader()),
        (0, 6, data.predict_dataloader()),
    ):
        for batch in loader:
            assert batch.context.shape == (*batch.items.shape, len(INPUTS))
            assert not batch.context[~batch.valid_mask].any()
            for number, codes, length in zip(
                batch.session_index.tolist(), batch.context.tolist(), batch.lengths.tolist(), strict=True
            ):
                rows = sessions[data.session_ids[number]]
                expected = slow_codes(rows[: len(rows) - left_out])[-most:]
                assert codes[:length] == expected


def test_categories_come_from_the_training_set_alone():
    log = pl.DataFrame(
        {
            "session_id": [1] * 5 + [2] * 8, "item_id": list("abcabcabcabca"), "feedback": 1.0,
            "position": range(13), "device": ["tv", "phone", "tv", "validation", "test", *["tv"] * 8],
        }
    )  # fmt: skip
    data = SessionDataModule(log, context=["device"])
    assert data.encoder.context.state_dict() == {"device": ["phone", "tv"]}
    assert next(iter(data.predict_dataloader())).context[0, :, 0].tolist() == [2, 1, 2, 0, 0]
    times = log.with_columns(timestamp=pl.Series([0, 10, 20, 30, 40, *range(8)]))
    split = SplitByTime(validation_from=25, test_from=35)
    assert SessionDataModule(times, context=["device"], split=split).context_sizes == {"device": 2}


def test_copies_of_a_play_are_dropped_whatever_their_context():
    log = pl.DataFrame(
        {
            "session_id": 1, "item_id": list("abbcd"), "feedback": 1.0, "timestamp": [0, 9, 9, 20, 30],
            "device": ["tv", "phone", "tv", "tv", None],
        }
    )  # fmt: skip
    data = SessionDataModule(log, context=["device"])
    assert data.drop_report.duplicate_rows == 1
    batch = next(iter(data.train_dataloader()))
    assert data.vocabulary.decode(batch.items[0].numpy()) == ["a", "b"]
    assert batch.context[0, :, 0].tolist() == [2, 1]
    history = log.drop("session_id").with_columns(user_id=pl.lit("u"))
    with tempfile.TemporaryDirectory() as folder:
        store = prepare_store(history, Path(folder) / "store", gap_minutes=5, context=["device"])
        assert store.drop_report.duplicate_rows == 1
        assert store.store.context[:, 0].tolist() == [2, 1, 2, 0]


@pytest.mark.parametrize("rows_in_memory", [30, 10_000])
def test_a_store_on_disk_holds_the_same_context(tmp_path, rows_in_memory):
    log = make_log()
    folder = tmp_path / "store"
    split = SplitByTime(validation_from=START + timedelta(hours=300), test_from=START + timedelta(hours=400))
    prepare_store(log, folder, context=INPUTS, rows_in_memory=rows_in_memory, split=split)
    data = SessionDataModule(folder)
    memory = SessionDataModule(log, context=INPUTS, split=split)
    assert data.encoder.context == memory.encoder.context == open_store(folder).context
    for one, other in zip(data.test_dataloader(), memory.test_dataloader(), strict=True):
        assert torch.equal(one.context, other.context)
    before = (folder / "manifest.json").read_bytes()
    prepare_store(log, folder, context=INPUTS, rows_in_memory=rows_in_memory, split=split)
    assert (folder / "manifest.json").read_bytes() == before
    prepare_store(log, folder, split=split)
    assert open_store(folder).context is None
    with pytest.raises(ValueError, match="`context` must be left alone with the store"):
        SessionDataModule(folder, context=["gap"])


def test_an_encoder_gives_sessions_from_elsewhere_the_codes_of_training():
    log = make_log()
    data = SessionDataModule(log, context=INPUTS, max_length=4, batch_size=100)
    (expected,) = data.predict_dataloader()
    encoder = SessionEncoder.from_state_dict(data.encoder.state_dict())
    lists = log.group_by("session_id", maintain_order=True).agg(pl.all())
    context = {name: lists[name].to_list() for name in encoder.context.columns}
    found = encoder.encode(lists["item_id"].to_list(), lists["feedback"].to_list(), context=context)
    assert torch.equal(found.context, expected.context)
    # Seconds since 1970 are times too, and unknown values have no code.
    seconds = [[None if time is None else time.timestamp() for time in row] for row in context["timestamp"]]
    again = encoder.encode(
        lists["item_id"].to_list(), context={**context, "timestamp": seconds, "level": None}
    )
    level = INPUTS.index("level")
    assert not again.context[..., level].any()
    again.context[..., level] = expected.context[..., level]
    assert torch.equal(again.context, expected.context)


def test_an_ignored_item_leaves_no_gap_behind():
    encoder = SessionEncoder(
        ItemVocabulary(["a", "b"]), 9, context=ContextEncoder({"gap": None, "place": None})
    )
    batch = encoder.encode([["a", "x", "b"]], context={"timestamp": [[0, 5, 7]]}, unknown="ignore")
    assert batch.context.tolist() == [[[0, 1], [7, 2]]]
    batch = encoder.encode([["a", "b", "a"]], context={"timestamp": [[0, None, 7]]})
    assert batch.context[0, :, 0].tolist() == [0, 0, 0]


def test_a_trained_context_keeps_its_codes_on_another_log():
    context = SessionDataModule(make_log(), context=["device", "gap"]).encoder.context
    newer = make_log(seed=1).with_columns(device=pl.lit("tv"))
    with tempfile.TemporaryDirectory() as folder:
        assert prepare_store(newer, Path(folder) / "store", context=context).context == context
    data = SessionDataModule(newer, context=context)
    assert data.encoder.context == context
    batch = next(iter(data.train_dataloader()))
    assert batch.context[..., 0].unique().tolist() == [0, 2]


def log_with(**columns):
    return pl.DataFrame(
        {"session_id": 1, "item_id": range(4), "feedback": 1.0, "position": range(4), **columns}
    )


@pytest.mark.parametrize(
    ("log", "context", "error", "message"),
    [
        (log_with(), "gap", TypeError, "`context` must be a list of names, got 'gap'"),
        (log_with(), ["place", "place"], ValueError, "name each input once"),
        (log_with(), ["hour"], ValueError, "must not have 'hour' for a log without a column 'timestamp'"),
        (log_with(), ["item_id"], ValueError, "got 'item_id', which the log uses already"),
        (log_with(), ["shufle"], ValueError, "got 'shufle' for a log with session_id"),
        (log_with(x=[0.5] * 4), ["x"], ValueError, r"got 'x' of Float64. Put numbers into ranges"),
        (log_with(x=[None] * 4), ["x"], ValueError, r"got 'x' of Null"),
        (log_with(x=pl.Series([None] * 4, dtype=pl.String)), ["x"], ValueError, "'x', which is null"),
    ],
)  # fmt: skip
def test_wrong_inputs_are_refused(log, context, error, message):
    with pytest.raises(error, match=message):
        _ = SessionDataModule(log, context=context).num_items


def test_integers_that_would_become_unknown_are_refused():
    devices = pl.DataFrame({"device": pl.Series([1, 2**64 - 1, None], dtype=pl.UInt64)})
    with pytest.raises(
        ValueError, match="fit into 64 bits with a sign, got 'device' with 18446744073709551615"
    ):
        ContextEncoder.fit(["device"], [devices])


def test_a_column_of_too_many_categories_is_refused():
    length = MOST_CATEGORIES + 3
    log = pl.DataFrame(
        {"session_id": 1, "item_id": 1, "feedback": 1.0, "position": range(length), "x": range(length)}
    )
    with pytest.raises(
        ValueError, match="at most 1,000 categories in the training set, got 1,001 or more of"
    ):
        _ = SessionDataModule(log, context=["x"]).num_items
    assert SessionDataModule(log[1:], context=["x"]).context_sizes == {"x": MOST_CATEGORIES}


@pytest.mark.parametrize(
    ("context", "error", "message"),
    [
        (
            None,
            ValueError,
            "`context` must have 'timestamp', 'shuffle', which the model was trained on, got noth",
        ),
        ({"timestamp": None}, ValueError, "`context` must have 'shuffle'"),
        ({"timestamp": None, "shuffle": None, "x": None}, ValueError, "'shuffle', got 'x'. Leave it out"),
        (
            {"timestamp": None, "shuffle": [[True]]},
            ValueError,
            r"one value a track in 'shuffle', got \[1\] for",
        ),
        ({"timestamp": None, "shuffle": [True]}, TypeError, "a sequence of values for each session"),
        (
            {"timestamp": None, "shuffle": [["yes", "no"]]},
            ValueError,
            "must have Boolean in 'shuffle', as in",
        ),
        ({"timestamp": None, "shuffle": [[True, 1]]}, TypeError, "one type in 'shuffle', got booleans"),
        ({"timestamp": [["now", "then"]], "shuffle": None}, ValueError, "`timestamp` must be a Datetime or"),
        ({"timestamp": [[1, "then"]], "shuffle": None}, TypeError, "one type in 'timestamp'"),
    ],
)
def test_wrong_context_of_given_sessions_is_refused(context, error, message):
    known = ContextEncoder({"gap": None, "shuffle": [False, True], "place": None})
    encoder = SessionEncoder(ItemVocabulary(["a", "b"]), 9, context=known)
    with pytest.raises(error, match=message):
        encoder.encode([["a", "b"]], context=context)


def test_an_encoder_checks_its_categories():
    with pytest.raises(ValueError, match="must list the values of 'device', got None"):
        ContextEncoder({"device": None})
    with pytest.raises(TypeError, match="must have one type"):
        ContextEncoder({"device": ["tv", 1]})
    assert repr(ContextEncoder({"place": None, "device": ["tv"]})) == "ContextEncoder(place: 64, device: 1)"
