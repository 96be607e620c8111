"""Each backbone behind a history: what it computes is the session alone, with its history in front."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from samples import BIDIRECTIONAL, EVERY, SIZE, build

from skipcl_lightning.batch import SessionBatch
from skipcl_lightning.functional.backbone_input import history_places
from skipcl_lightning.model import SessionModel

LENGTHS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 5)), min_size=1, max_size=5)


@given(lengths=LENGTHS, limit=st.integers(5, 12) | st.none(), more=st.integers(0, 2))
def test_the_places_are_those_of_a_list_that_loses_its_oldest(lengths, limit, more):
    wide, long = max(h for h, _ in lengths) + more, max(n for _, n in lengths) + more
    history_mask = torch.arange(wide) < torch.tensor([[h] for h, _ in lengths])
    valid_mask = torch.arange(long) < torch.tensor([[n] for _, n in lengths])
    places, mask, of_session = history_places(history_mask, valid_mask, limit)
    for row, (history, session) in enumerate(lengths):
        joined = [*range(history), *range(wide, wide + session)]
        joined = joined if limit is None else joined[max(0, len(joined) - limit) :]
        assert places[row][mask[row]].tolist() == joined
        assert mask[row].tolist() == [True] * len(joined) + [False] * (mask.shape[1] - len(joined))
        found = [joined[place] for place in of_session[row, :session].tolist()]
        assert found == list(range(wide, wide + session))


def model(name):
    torch.manual_seed(0)
    one = SessionModel(build(name), num_items=30, embedding_size=SIZE).eval().double()
    torch.nn.init.normal_(one.feedback_embedding.weight)
    one.use_history()
    torch.nn.init.normal_(one.history_embedding)
    return one


def batch():
    """A long session and history together, a session alone, one of a track, and one longer than a history."""
    history = [[7, 8, 9, 10, 11, 12], [], [13], [14, 15]]
    items = [[1, 2, 3, 4, 5, 6, 1], [2, 4, 6], [5], [9, 9, 3, 1]]
    feedback = torch.linspace(-1, 1, 28).view(4, 7)
    return SessionBatch(pad(items), feedback * (pad(items) > 0), history=pad(history))


def pad(rows):
    width = max(map(len, rows))
    return torch.tensor([row + [0] * (width - len(row)) for row in rows])


def expected_rows(one, sessions, hidden=None):
    """The output for each session by itself, as a list without padding."""
    explicit = torch.nn.functional.pad  # for the two inputs without likes
    rows = []
    for number in range(len(sessions)):
        items = sessions.items[number][sessions.items[number] > 0]
        history = sessions.history[number][sessions.history[number] > 0]
        feedback = sessions.feedback[number, : len(items)].double()
        vectors = one.item_embedding.weight[items]
        signals = explicit(torch.stack([feedback.clamp(min=0), (-feedback).clamp(min=0)], dim=1), (0, 2))
        if hidden is not None:
            vectors = torch.where(hidden[number, : len(items), None], one.mask_embedding, vectors)
            signals = torch.where(hidden[number, : len(items), None], 0, signals)
        own = vectors + signals @ one.feedback_embedding.weight.T
        before = one.item_embedding.weight[history] + one.history_embedding
        x = torch.cat([before, own])[-(one.max_length or 100) :][None]
        output = one.backbone(x, torch.ones(x.shape[:2], dtype=torch.bool))[0]
        rows.append(output[-len(items) :])
    return rows


@pytest.mark.parametrize("name", EVERY)
@torch.no_grad()
def test_every_backbone_sees_the_history_in_front_of_the_session(name):
    one, sessions = model(name), batch()
    output = one(sessions)
    assert output.shape == (4, 7, SIZE)
    for row, expected in enumerate(expected_rows(one, sessions)):
        torch.testing.assert_close(output[row, : len(expected)], expected)
        assert not output[row, len(expected) :].any()


@pytest.mark.parametrize("name", EVERY)
@torch.no_grad()
def test_a_query_is_the_output_after_the_last_item_of_the_session(name):
    one, sessions = model(name), batch()
    found = one.session_query(sessions)
    if name in BIDIRECTIONAL:
        items = [[*row[row > 0].tolist(), one.mask_index] for row in sessions.items]
        hidden = pad(items) == one.mask_index
        sessions = sessions.replace(
            items=pad(items).masked_fill(hidden, 1),
            feedback=torch.nn.functional.pad(sessions.feedback, (0, 1)),
        )
        expected = expected_rows(one, sessions, hidden)
    else:
        expected = expected_rows(one, sessions)
    torch.testing.assert_close(found, torch.stack([row[-1] for row in expected]))


@pytest.mark.parametrize("name", BIDIRECTIONAL)
@torch.no_grad()
def test_the_cloze_task_hides_items_of_the_session_alone(name):
    one, sessions = model(name), batch()
    hidden = (sessions.items % 2 == 1) & sessions.valid_mask
    output = one(sessions.replace(cloze_mask=hidden))
    for row, expected in enumerate(expected_rows(one, sessions, hidden)):
        torch.testing.assert_close(output[row, : len(expected)], expected)


@torch.no_grad()
def test_an_empty_session_has_no_query_even_behind_a_history():
    one = model("SASRec")
    sessions = SessionBatch(torch.tensor([[0], [3]]), torch.zeros(2, 1), history=torch.tensor([[4], [4]]))
    query = one.session_query(sessions)
    assert not query[0].any()
    assert query[1].any()
