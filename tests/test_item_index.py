import copy
import sys

import numpy as np
import polars as pl
import pytest
import torch

from skipcl_lightning import ItemIndex, Recommender
from skipcl_lightning.backbones import SASRec
from skipcl_lightning.data import ItemVocabulary, SessionEncoder
from skipcl_lightning.export import item_index
from skipcl_lightning.functional import top_k_items
from skipcl_lightning.heads import SkipPrediction
from skipcl_lightning.model import Scorer, SessionModel
from skipcl_lightning.model.transitions import Transitions

NUM_ITEMS, SIZE = 3000, 8
SESSIONS = [[f"t{(7 * row + 31 * place) % NUM_ITEMS}" for place in range(5)] for row in range(40)]
FEEDBACK = [[1.0, -1.0, 0.5, -1.0, 1.0]] * len(SESSIONS)


def make_recommender(head=True, ids="t"):
    """Items in clusters with lengths that differ, and a head whose weights are not 0."""
    torch.manual_seed(0)
    scorer = Scorer(SessionModel(SASRec(SIZE, max_length=5), num_items=NUM_ITEMS))
    with torch.no_grad():
        centres = torch.randn(50, SIZE)[torch.arange(NUM_ITEMS) % 50]
        lengths = (0.1 * torch.randn(NUM_ITEMS, 1)).exp()
        scorer.model.item_embedding.weight[1:] = lengths * (centres + 0.4 * torch.randn(NUM_ITEMS, SIZE))
        if head:
            scorer.skip_head = SkipPrediction(vector_size=3)
            scorer.skip_head.materialise(scorer.model.item_table)
            for weight in scorer.skip_head.parameters():
                weight.normal_()
    vocabulary = ItemVocabulary([f"{ids}{n}" for n in range(NUM_ITEMS)])
    return Recommender(scorer.eval().requires_grad_(False), SessionEncoder(vocabulary, max_length=5))


@pytest.fixture(scope="module")
def recommender():
    return make_recommender()


@pytest.fixture(scope="module")
def built(recommender):
    return ItemIndex.build(recommender.scorer, recommender.encoder)


@pytest.fixture
def index(built):
    """A copy whose settings a test may change."""
    return copy.copy(built)


@pytest.fixture
def no_exact_search(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("exact search")

    monkeypatch.setattr(item_index, "top_k_items", refuse)


def in_all_lists(index):
    index.num_probes = len(index._state["centres"])
    return index


@pytest.mark.usefixtures("no_exact_search")
@pytest.mark.parametrize("penalty", [0.0, 0.5, 3.0])
def test_almost_all_of_the_best_items_are_found_at_a_penalty_chosen_at_the_request(
    recommender, index, penalty
):
    sessions, feedback = SESSIONS[:12], FEEDBACK[:12]

    found = recommender.recommend(sessions, feedback, skip_penalty=penalty, index=index)

    queries = recommender.embed_sessions(sessions, feedback, skip_penalty=penalty)["embedding"].to_numpy()
    scorer = recommender.scorer
    table = scorer.model.item_table.detach()
    if penalty:
        table = scorer.skip_prediction.extended_table(table).detach()
    table = table.double().numpy()
    hits = 0
    for row, query in enumerate(queries.astype(np.float64)):
        scores = {
            f"t{item - 1}": sum(a * b for a, b in zip(query, table[item], strict=True))
            for item in range(1, NUM_ITEMS + 1)
        }
        for place in (1, 3):  # which were skipped
            del scores[SESSIONS[row][place]]
        best = sorted(scores, key=scores.get, reverse=True)[:10]
        mine = found.filter(pl.col("session_id") == row)
        assert mine["score"].to_list() == pytest.approx([scores[one] for one in mine["item_id"]], rel=1e-5)
        assert mine["rank"].to_list() == list(range(1, 11))
        hits += len(set(best) & set(mine["item_id"]))
    assert hits >= 0.95 * 10 * len(sessions)


REQUESTS = {
    "plain": {},
    "without the session's own": {"exclude_seen": True},
    "without given ones": {"exclude": [f"t{n}" for n in range(0, NUM_ITEMS, 3)]},
    "only given ones": {"allowed": [f"t{n}" for n in range(0, NUM_ITEMS, 2)], "exclude": ["t4", "t6"]},
    "at a penalty": {"skip_penalty": 0.7, "top_k": 20},
    "with rejected ones": {"exclude_skipped": False, "batch_size": 7},
}


@pytest.mark.usefixtures("no_exact_search")
@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_a_search_in_all_lists_gives_the_table_of_exact_search(recommender, index, request_):
    expected = recommender.recommend(SESSIONS, FEEDBACK, **request_)

    found = recommender.recommend(SESSIONS, FEEDBACK, **request_, index=in_all_lists(index))

    assert found.equals(expected)


@pytest.mark.usefixtures("no_exact_search")
@pytest.mark.parametrize("request_", [{}, {"exclude": ["t4"]}])
def test_more_probes_than_lists_read_all_of_them(recommender, index, request_):
    expected = recommender.recommend(SESSIONS, FEEDBACK, **request_)
    index.num_probes = 2**70

    assert recommender.recommend(SESSIONS, FEEDBACK, **request_, index=index).equals(expected)


@pytest.mark.usefixtures("no_exact_search")
def test_transitions_and_retired_items_count_as_in_exact_search(index, monkeypatch):
    recommender = make_recommender()
    contexts = torch.arange(1, NUM_ITEMS + 1)
    nothing = torch.zeros(0, dtype=torch.int64)
    model = recommender.scorer.model
    model.transitions = torch.nn.ModuleList(
        [
            Transitions.from_counts(contexts, contexts.flip(0), torch.full_like(contexts, 20)),
            Transitions.from_counts(nothing, nothing, nothing),
        ]
    )
    recommender.scorer.transition_weight = 50.0
    # The follower of the last item is first, unless it is retired.
    firsts = [NUM_ITEMS - int(session[-1][1:]) for session in SESSIONS]
    model.retired = torch.zeros(NUM_ITEMS + 1, dtype=torch.bool).index_fill(0, torch.tensor(firsts[:9]), True)

    found = recommender.recommend(SESSIONS, FEEDBACK, index=in_all_lists(index))

    assert found.equals(recommender.recommend(SESSIONS, FEEDBACK))
    tops = found.filter(pl.col("rank") == 1)["item_id"].to_list()
    assert [top == f"t{first - 1}" for top, first in zip(tops, firsts, strict=True)] == [False] * 9 + [
        True
    ] * 31
    assert not set(found["item_id"]) & {f"t{first - 1}" for first in firsts[:9]}

    # One list has less than ten of these, so that each session is searched exactly.
    index.num_probes = 1
    few = {"allowed": [f"t{n}" for n in range(0, NUM_ITEMS, 9)], "exclude_seen": True}
    monkeypatch.undo()
    found = recommender.recommend(SESSIONS, FEEDBACK, **few, index=index)
    assert found.equals(recommender.recommend(SESSIONS, FEEDBACK, **few))


@pytest.mark.usefixtures("no_exact_search")
def test_the_index_also_finds_what_takes_the_place_of_excluded_items(recommender, index):
    torch.manual_seed(1)
    table, queries = recommender.scorer.item_table, torch.randn(4, SIZE)
    best = top_k_items(queries, table, 205)[0]
    index.num_candidates = 100

    exclude = torch.nn.functional.pad(best[:, :195], (300, 300))  # with zeros, which exclude nothing
    found, _ = in_all_lists(index).top_k_items(queries, table, 10, exclude=exclude)

    assert torch.equal(found, best[:, 195:])
    retired = torch.zeros(len(table), dtype=torch.bool).index_fill(0, best[0, :195], True)
    found, _ = index.top_k_items(queries[:1], table, 10, retired=retired)
    assert torch.equal(found, best[:1, 195:])


@pytest.mark.usefixtures("no_exact_search")
def test_at_least_ten_candidates_are_scored_for_each_item_of_a_list(recommender, index):
    index.num_candidates = 1

    found = recommender.recommend(SESSIONS, FEEDBACK, index=in_all_lists(index))

    assert found.equals(recommender.recommend(SESSIONS, FEEDBACK))


def test_lists_are_full_if_the_lists_that_are_read_have_too_few_items(recommender, index):
    index.num_probes = 1

    found = recommender.recommend(SESSIONS, FEEDBACK, top_k=25, index=index)

    fewest = int(index._search.invlists.list_size(0))
    for number in range(len(index._state["centres"])):
        fewest = min(fewest, int(index._search.invlists.list_size(number)))
    assert fewest < 25
    assert found["session_id"].value_counts()["count"].unique().to_list() == [25]


@pytest.mark.parametrize("request_", [{"allowed": ["t5", "t77", "t3"], "top_k": 2}, {"top_k": 400}])
def test_a_search_for_which_an_index_is_no_help_is_exact(recommender, index, request_, monkeypatch):
    monkeypatch.setattr(ItemIndex, "_candidates", None)

    found = recommender.recommend(SESSIONS, FEEDBACK, **request_, index=index)

    assert found.equals(recommender.recommend(SESSIONS, FEEDBACK, **request_))


def test_a_loaded_index_finds_the_same(recommender, index, tmp_path):
    path = tmp_path / "items.index"
    path.write_text("an older one")
    index.save(path)

    loaded = ItemIndex.load(path)

    assert list(tmp_path.iterdir()) == [path]
    assert repr(loaded) == "ItemIndex(3,000 items, 76 lists)"
    expected = recommender.recommend(SESSIONS, FEEDBACK, index=index)
    assert recommender.recommend(SESSIONS, FEEDBACK, index=loaded).equals(expected)


def test_an_index_is_built_once_and_kept_in_a_file(recommender, tmp_path, monkeypatch):
    path = tmp_path / "items.index"
    built = ItemIndex.load_or_build(path, recommender.scorer, recommender.encoder)
    monkeypatch.setattr(ItemIndex, "build", None)

    loaded = ItemIndex.load_or_build(path, recommender.scorer, recommender.encoder)

    assert torch.equal(loaded._state["codes"], built._state["codes"])
    other = make_recommender(ids="s")
    with pytest.raises(ValueError, match="other ids"):
        ItemIndex.load_or_build(path, other.scorer, other.encoder)


def test_an_index_without_skip_prediction_has_the_plain_vectors():
    recommender = make_recommender(head=False)
    index = ItemIndex.build(recommender.scorer, recommender.encoder, num_lists=1)

    assert index._state["centres"].shape == (1, SIZE)
    found = recommender.recommend(SESSIONS, FEEDBACK, index=index)
    assert found.equals(recommender.recommend(SESSIONS, FEEDBACK))


def change_vectors(recommender):
    with torch.no_grad():
        recommender.scorer.model.item_embedding.weight[5] += 1


def change_bias(recommender):
    with torch.no_grad():
        recommender.scorer.skip_head.biases[5] += 1


def lose_head(recommender):
    recommender.scorer.skip_head = None


@pytest.mark.parametrize(
    ("other", "change", "message"),
    [
        ({}, change_vectors, "other vectors"),
        ({}, change_bias, "other vectors"),
        ({}, lose_head, "other vectors"),
        ({"ids": "s"}, None, "other ids"),
    ],
)
def test_an_index_of_another_model_is_refused(index, other, change, message):
    recommender = make_recommender(**other)
    sessions = [[recommender.encoder.vocabulary.ids[0]]]
    if change is not None:
        recommender.recommend(sessions, index=index)  # which fits so far
        change(recommender)

    with pytest.raises(
        ValueError, match=f"`index` must be built from this model, .*{message}. Build it again"
    ):
        recommender.recommend(sessions, index=index)


def test_ids_that_are_the_same_text_without_their_ends_are_others():
    ids = [["ab", "c"], ["a", "bc"], ["abc"], [1, 2], [2, 1]]
    digests = {item_index._digest(item_index._id_bytes(pl.Series(one))) for one in ids}
    assert len(digests) == len(ids)


def test_the_table_is_read_once_for_the_same_weights(recommender, index, monkeypatch):
    index.check(recommender.scorer, recommender.encoder)
    with torch.no_grad():
        recommender.scorer.skip_head.temperature.fill_(1.0)  # as a calibration does, which changes no item
    monkeypatch.setattr(item_index, "_digest", None)

    index.check(recommender.scorer, recommender.encoder)

    # A fused optimizer changes such weights without a count.
    recommender.scorer.requires_grad_(True)
    try:
        with pytest.raises(TypeError):
            index.check(recommender.scorer, recommender.encoder)
    finally:
        recommender.scorer.requires_grad_(False)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "harm", [cut, flip, lambda path: path.write_bytes(b""), lambda path: torch.save([1], path)]
)
def test_a_damaged_file_is_refused(index, tmp_path, harm):
    path = tmp_path / "items.index"
    index.save(path)
    harm(path)

    with pytest.raises(
        ValueError, match=r"`path` must be a file of `ItemIndex.save`, got '.*items.index'.*anew"
    ):
        ItemIndex.load(path)


WRONG = {
    "another format": {"format": 2},
    "no codes": {"codes": None},
    "no digest": {"ids_digest": 5},
    "lists that there are not": {"codes": torch.full((NUM_ITEMS, 7), 255, dtype=torch.uint8)},
    "codes of another size": {"codes": torch.zeros(NUM_ITEMS, 5, dtype=torch.uint8)},
    "codes without storage": {"codes": torch.zeros(1, dtype=torch.uint8).expand(10**5, 7)},
    "no number": {"centres": torch.full((76, SIZE + 4), torch.nan)},
    "another type": {"levels": torch.zeros(SIZE + 4, 16, dtype=torch.float64)},
    "more levels": {"levels": torch.zeros(SIZE + 4, 17)},
    "no lists": {"centres": torch.zeros(0, SIZE + 4)},
    "vectors without a number": {
        "centres": torch.zeros(76, 0),
        "levels": torch.zeros(0, 16),
        "codes": torch.zeros(NUM_ITEMS, 1, dtype=torch.uint8),
    },
    "centres in one dimension": {"centres": torch.zeros(SIZE + 4)},
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_a_file_with_parts_that_do_not_fit_is_refused_before_faiss_sees_them(
    index, tmp_path, change, monkeypatch
):
    path = tmp_path / "items.index"
    torch.save({**index._state, **change}, path)

    def refuse(state):
        raise AssertionError("FAISS")

    monkeypatch.setattr(item_index, "_assemble", refuse)

    with pytest.raises(ValueError, match=r"`path` must be a file of `ItemIndex.save`"):
        ItemIndex.load(path)


def test_without_faiss_the_error_names_the_extra(recommender, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)

    for use in (
        lambda: ItemIndex.build(recommender.scorer, recommender.encoder),
        lambda: ItemIndex.load(tmp_path / "items.index"),
    ):
        with pytest.raises(ImportError, match=r"skipcl-lightning\[faiss\]"):
            use()


def test_a_large_batch_is_scored_in_parts(recommender, index, monkeypatch):
    expected = recommender.recommend(SESSIONS, FEEDBACK, exclude_seen=True, index=index)
    monkeypatch.setattr(item_index, "_MOST_NUMBERS", 5000)

    found = recommender.recommend(SESSIONS, FEEDBACK, exclude_seen=True, index=index)

    assert found.equals(expected)


@pytest.mark.parametrize("name", ["num_probes", "num_candidates"])
def test_settings_that_search_nothing_are_refused(recommender, index, name):
    setattr(index, name, 0)

    with pytest.raises(ValueError, match=f"`{name}` must be"):
        recommender.recommend(SESSIONS, index=index)


def test_wrong_arguments_of_build_are_refused(recommender):
    few = SessionEncoder(ItemVocabulary(["a", "b"]), max_length=5)
    small = Scorer(SessionModel(SASRec(SIZE), num_items=2))

    with pytest.raises(ValueError, match=r"`encoder` must have the 3,000 items of the model, got 2"):
        ItemIndex.build(recommender.scorer, few)
    with pytest.raises(ValueError, match=r"`num_items` must be .*1000"):
        ItemIndex.build(small, few)
    with pytest.raises(ValueError, match="`num_lists`"):
        ItemIndex.build(recommender.scorer, recommender.encoder, num_lists=3001)
    with pytest.raises(FileNotFoundError):
        ItemIndex.load("missing.index")
