import io
import math

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skipcl_lightning.data import ItemVocabulary, SessionEncoder

IDS = ["a", "b", "c", "d"]
SIGNAL = st.floats(-1, 1, width=32)
TRACK = st.tuples(st.sampled_from([*IDS, "new"]), SIGNAL)


@pytest.fixture
def encoder() -> SessionEncoder:
    return SessionEncoder(ItemVocabulary(IDS), max_length=3, skip_threshold=0.25)


@given(sessions=st.lists(st.lists(TRACK, min_size=1, max_size=6), min_size=1, max_size=5))
def test_sessions_are_encoded_as_a_plain_loop_encodes_them(sessions):
    encoder = SessionEncoder(ItemVocabulary(IDS), max_length=3)
    known = [
        [(IDS.index(item) + 1, signal) for item, signal in session if item in IDS][-3:]
        for session in sessions
    ]
    items = [[item for item, _ in session] for session in sessions]
    feedback = [[signal for _, signal in session] for session in sessions]
    if not all(known):
        with pytest.raises(ValueError, match=f"got none in session {known.index([])}"):
            encoder.encode(items, feedback, unknown="ignore")
        return
    batch = encoder.encode(items, feedback, unknown="ignore")
    for row, session in enumerate(known):
        assert batch.items[row][: len(session)].tolist() == [item for item, _ in session]
        assert batch.feedback[row][: len(session)].tolist() == [signal for _, signal in session]
    assert batch.lengths.tolist() == list(map(len, known))
    assert batch.session_index.tolist() == list(range(len(sessions)))


def test_without_feedback_all_is_unknown_and_the_threshold_is_the_encoders(encoder):
    batch = encoder.encode([["a", "b"]])
    assert batch.feedback.tolist() == [[0, 0]]
    assert batch.skip_threshold == 0.25


def test_an_encoder_comes_back_whole_from_a_checkpoint(encoder):
    buffer = io.BytesIO()
    torch.save(encoder.state_dict(), buffer)
    buffer.seek(0)
    twin = SessionEncoder.from_state_dict(torch.load(buffer, weights_only=True))
    assert twin.state_dict() == encoder.state_dict()
    assert torch.equal(twin.encode([IDS]).items, encoder.encode([IDS]).items)


@pytest.mark.parametrize(
    ("sessions", "feedback", "error", "message"),
    [
        ([], None, ValueError, "at least one session"),
        ([["a"], []], None, ValueError, "session 1 without a track"),
        ([["a"], ["b", "new"]], None, ValueError, r"got 'new' in session 1 \(1 unknown in all\)"),
        ([["a"]], [[1], [1]], ValueError, "one sequence a session, got 2 for 1"),
        ([["a"], ["b"]], [[1], [1, 0]], ValueError, "got 2 for 1 in session 1"),
        ([["a"], ["b"]], [[1], [1.5]], ValueError, r"got \[1.5\] in session 1"),
        ([["a"]], [[math.nan]], ValueError, r"got \[nan\] in session 0"),
        ([["a"]], [[None]], TypeError, r"must be numbers in \[-1, 1\], got \[None\] in session 0"),
        ([["a", "b"]], [[1.0, True]], TypeError, r"got \[1.0, True\] in session 0"),
        ([["a"]], [0.5], TypeError, "got 0.5 in session 0"),
        ([["a"]], 0.5, TypeError, "one entry for each session, got float"),
        (["a"], None, TypeError, "got 'a' as session 0"),
        ([{"a", "b"}], None, TypeError, "in the order of listening, got .* as session 0"),
        ([{"a": 1}], None, TypeError, "in the order of listening, got .* as session 0"),
        ({("a",), ("b",)}, None, TypeError, "a sequence of sessions, got set"),
        ("ab", None, TypeError, "a sequence of sessions, got str"),
        (
            [["a", math.nan]],
            None,
            TypeError,
            r"`sessions` must be .*, got float, str\. .*leave missing ones \(None, NaN\) out",
        ),
        ([[1.5]], None, TypeError, r"got float\. Convert them with `str"),
        ([["a", None]], None, TypeError, "`sessions` must be .*, got NoneType, str"),
        ([["a", "\ud800"]], None, ValueError, r"got '\\ud800' with a lone surrogate"),
        ([1], None, TypeError, "got 1 as session 0"),
        ([[1]], None, TypeError, "String as in the vocabulary"),
    ],
)
def test_sessions_that_cannot_be_encoded_are_errors_with_their_number(
    encoder, sessions, feedback, error, message
):
    with pytest.raises(error, match=message):
        encoder.encode(sessions, feedback)


def test_settings_that_make_no_encoder_are_errors():
    with pytest.raises(TypeError, match="`vocabulary` must be an ItemVocabulary, got list"):
        SessionEncoder(IDS, max_length=3)
    with pytest.raises(ValueError, match="`max_length`"):
        SessionEncoder(ItemVocabulary(IDS), max_length=0)
    with pytest.raises(ValueError, match="`skip_threshold`"):
        SessionEncoder(ItemVocabulary(IDS), max_length=3, skip_threshold=-1.0)
    with pytest.raises(ValueError, match="`history_length`"):
        SessionEncoder(ItemVocabulary(IDS), max_length=3, history_length=-1)
    with pytest.raises(ValueError, match="`unknown` must be one of"):
        SessionEncoder(ItemVocabulary(IDS), max_length=3).encode([["a"]], unknown="drop")


@pytest.mark.parametrize("name", ["feedback", "explicit_feedback"])
@pytest.mark.parametrize(
    "signals",
    [
        [True, False],
        [True, 0.5],
        [np.True_, 0.5],
        np.array([True, False]),
        pl.Series([True, False]),
        torch.tensor([True, False]),
        ["1", "-1"],
        [[1.0], [1.0]],
        [[1.0], 1.0],
    ],
    ids=repr,
)
def test_feedback_of_a_session_that_is_no_number_is_refused_with_the_cure(encoder, name, signals):
    with pytest.raises(
        TypeError, match=f"`{name}` must be numbers .* in session 1. .*1.0 if listened else -1.0"
    ):
        encoder.encode([["c"], ["a", "b"]], **{name: [[1.0], signals]})


@pytest.mark.parametrize(
    "signals",
    [(1, -0.5), np.array([1, -0.5]), pl.Series([1.0, -0.5]), torch.tensor([1, -0.5]), [np.float32(1), -0.5]],
    ids=repr,
)
def test_feedback_of_a_session_may_be_any_sequence_of_numbers(encoder, signals):
    assert encoder.encode([["a", "b"]], [signals]).feedback.tolist() == [[1, -0.5]]
