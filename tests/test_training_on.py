"""Training on with a newer log: what was learned of known tracks stays, and new tracks are appended."""

from collections import Counter

import pytest
import torch
from small_models import quiet_trainer

from skipcl_lightning import Recommender, SkipCLModule
from skipcl_lightning.backbones import SASRec
from skipcl_lightning.data import ItemVocabulary, SessionDataModule, simulate_sessions
from skipcl_lightning.heads import CombinedHead, SampledSoftmax, SkipInfoNCE, SkipPrediction
from skipcl_lightning.model import Transitions
from skipcl_lightning.module.checkpoint import load_list

KNOWN, ALL = 40, 46
WEIGHT = 1.0


def log(seed, num_items):
    return simulate_sessions(60, num_items=num_items, num_moods=4, seed=seed)


def prepare(table, known=None):
    given = {} if known is None else {"vocabulary": known, "new_items": "append"}
    return SessionDataModule(table, batch_size=16, max_length=8, **given)


@pytest.fixture(scope="module")
def old_data():
    return prepare(log(0, KNOWN))


@pytest.fixture(scope="module")
def new_data(old_data):
    data = prepare(log(1, ALL), old_data.vocabulary)
    assert old_data.num_items < data.num_items
    assert data.vocabulary.ids[: old_data.num_items] == old_data.vocabulary.ids
    return data


def build(data, *, sparse=False, **settings):
    torch.manual_seed(0)
    head = CombinedHead([SkipInfoNCE(), SkipPrediction(vector_size=4)])
    backbone = settings.pop("backbone", None) or SASRec(
        8, max_length=8, num_layers=1, num_heads=1, dropout=0.0
    )
    loss = SampledSoftmax(4) if sparse else None
    return SkipCLModule(
        backbone,
        head,
        **{
            "num_items": data.num_items,
            "transition_weight": WEIGHT,
            "next_item_loss": loss,
            "sparse_item_table": sparse,
            **settings,
        },
    )


def train(data, path, **settings):
    module, trainer = build(data, **settings), quiet_trainer()
    trainer.fit(module, data)
    module.retire_items(data.vocabulary.ids[:2])
    trainer.save_checkpoint(path)
    return module, trainer.optimizers[0].state_dict()["state"]


@pytest.fixture(scope="module")
def old(old_data, tmp_path_factory):
    path = tmp_path_factory.mktemp("old") / "old.ckpt"
    return *train(old_data, path), path


def resume(module, data, path, **settings):
    """Load everything, and train no step."""
    trainer = quiet_trainer(max_epochs=1, **settings)
    trainer.fit(module, data, ckpt_path=path, weights_only=True)
    return trainer


@pytest.mark.parametrize("sparse", [False, True])
def test_a_resumed_run_keeps_rows_and_moments_and_appends_zeros(old_data, new_data, tmp_path, sparse):
    path = tmp_path / "old.ckpt"
    before, moments = train(old_data, path, sparse=sparse)
    module = build(new_data, sparse=sparse)
    trainer = resume(module, new_data, path)
    assert (module.num_items, module.growth) == (new_data.num_items, [old_data.num_items, new_data.num_items])
    old_rows = old_data.num_items + 1
    for name, weight in before.named_parameters():
        assert torch.equal(weight, module.get_parameter(name)[: len(weight)]), name
    assert module.retired_items == old_data.vocabulary.ids[:2]
    found = trainer.optimizers[0].state_dict()["state"]
    assert found.keys() == moments.keys()
    grown = 0
    for number, state in moments.items():
        for name, value in state.items():
            now, shape = found[number][name], getattr(value, "shape", ())
            assert torch.equal(now[: len(value)], value) if shape else now == value, name
            if shape and now.shape != value.shape:
                assert (len(value), len(now)) == (old_rows, new_data.num_items + 1)
                assert not now[old_rows:].any()
                grown += 1
    assert grown == 6  # two moments of the table, of the head's vectors and of its biases
    quiet_trainer(max_epochs=2).fit(module, new_data)


def test_new_rows_begin_at_their_neighbours_or_as_extended(old, old_data, new_data):
    before, _, path = old
    extended = SkipCLModule.load_from_checkpoint(path, weights_only=True)
    extended.extend_items(new_data.vocabulary.ids, "nearest", data=new_data)
    fresh = build(new_data)
    resume(fresh, new_data, path)
    new = slice(old_data.num_items + 1, None)
    torch.testing.assert_close(fresh.model.item_table[new], extended.model.item_table[new])
    rows = torch.randn(new_data.num_items - old_data.num_items, 8)
    own = SkipCLModule.load_from_checkpoint(path, weights_only=True)
    own.extend_items(new_data.vocabulary.ids[old_data.num_items :], rows)
    resume(own, new_data, path)
    assert torch.equal(own.model.item_table[new], rows)
    assert own.growth == fresh.growth == [old_data.num_items, new_data.num_items]
    assert torch.equal(own.model.item_table[: new.start], before.model.item_table)


def counts_by_hand(old_data, new_data, order):
    """How often an item follows a context in both logs; old indices are new ones too."""
    counts = Counter()
    for data in (old_data, new_data):
        found = data.transition_counts("next_listened", order=order)
        for context, follower, number in zip(*(column.tolist() for column in found), strict=True):
            before, last = divmod(context, data.num_items + 1)
            counts[before * (new_data.num_items + 1) + last, follower] += number
    return counts


def stored_counts(module, order):
    contexts, followers, counts = (column.tolist() for column in module.model.transitions[order - 1].counts())
    return dict(zip(zip(contexts, followers, strict=True), counts, strict=True))


def test_transitions_of_the_new_log_are_added_once(old, old_data, new_data, tmp_path):
    path = old[2]
    expected = [counts_by_hand(old_data, new_data, order) for order in (1, 2)]
    fresh = build(new_data)
    trainer = resume(fresh, new_data, path)
    loaded = SkipCLModule.load_from_checkpoint(path, weights_only=True)
    loaded.extend_items(new_data.vocabulary.ids)
    quiet_trainer(limit_train_batches=1, limit_val_batches=0).fit(loaded, new_data)
    both = SkipCLModule.load_from_checkpoint(path, weights_only=True)
    both.extend_items(new_data.vocabulary.ids)
    resume(both, new_data, path)
    for module in (fresh, loaded, both):
        assert [stored_counts(module, order) for order in (1, 2)] == expected
    trainer.save_checkpoint(tmp_path / "new.ckpt")
    again = build(new_data)
    resume(again, new_data, tmp_path / "new.ckpt")
    assert [stored_counts(again, order) for order in (1, 2)] == expected
    assert again.counted_logs == fresh.counted_logs


def test_the_sum_keeps_the_most_frequent_followers():
    one = Transitions.from_counts(*torch.tensor([[1, 1, 3], [2, 5, 4], [3, 1, 2]]))
    other = Transitions.from_counts(*torch.tensor([[1, 2, 3], [5, 1, 4], [4, 1, 1]]))
    contexts, followers, counts = (one + other).counts()
    assert contexts.tolist() == [1, 1, 2, 3]
    assert followers.tolist() == [2, 5, 1, 4]
    assert counts.tolist() == [3, 5, 1, 3]


def test_a_vocabulary_with_fewer_tracks_than_the_checkpoint_is_refused(old, old_data):
    data = SessionDataModule(log(0, KNOWN), vocabulary=ItemVocabulary(old_data.vocabulary.ids[:-3]))
    with pytest.raises(ValueError, match="It lacks 3:"):
        resume(build(data), data, old[2])


def test_only_training_may_grow_a_checkpoint(old, new_data):
    with pytest.raises(ValueError, match=r"It has \d+ more"):
        quiet_trainer().test(build(new_data), new_data, ckpt_path=old[2], weights_only=True, verbose=False)


def test_weights_of_a_checkpoint_begin_another_run(old, old_data, new_data):
    before, _, path = old
    module = build(new_data, learning_rate=0.5, transition_weight=2.0)
    module.init_from(path, new_data)
    for name, weight in before.named_parameters():
        assert torch.equal(weight, module.get_parameter(name)[: len(weight)]), name
    resumed = build(new_data)
    resume(resumed, new_data, path)
    assert torch.equal(module.model.item_table, resumed.model.item_table)
    assert (module.learning_rate, module.transition_weight) == (0.5, 2.0)
    assert module.growth == [old_data.num_items, new_data.num_items]
    assert module.retired_items == old_data.vocabulary.ids[:2]
    trainer = quiet_trainer()
    trainer.fit(module, new_data)
    assert trainer.current_epoch == 1
    assert stored_counts(module, 1) == counts_by_hand(old_data, new_data, 1)


@pytest.mark.parametrize("weight", [0.0, WEIGHT])
def test_a_checkpoint_is_extended_for_a_sharded_run(old, old_data, new_data, tmp_path, weight):
    # The moments of such a run are in the test of sharding.
    module = build(new_data, transition_weight=weight)
    module.extend_checkpoint(old[2], tmp_path / "extended.ckpt", new_data)
    begun = build(new_data, transition_weight=weight)
    begun.init_from(old[2], new_data)
    loaded = SkipCLModule.load_from_checkpoint(tmp_path / "extended.ckpt", weights_only=True)
    assert loaded.state_dict().keys() == begun.state_dict().keys() == module.state_dict().keys()
    for name, value in begun.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
        assert value.shape == module.state_dict()[name].shape, name
    assert loaded.growth == [old_data.num_items, new_data.num_items]
    assert stored_counts(loaded, 2) == counts_by_hand(old_data, new_data, 2)
    seeds = [
        load_list(torch.load(path, weights_only=True), "batch_seed")
        for path in (old[2], tmp_path / "extended.ckpt")
    ]
    assert len(seeds[0]) == 1
    assert seeds[0] == seeds[1]


def test_weights_of_another_model_are_refused(old, old_data, new_data):
    with pytest.raises(
        ValueError, match=r"fits the model, got .*old\.ckpt'.* got 12 missing such as 'model\."
    ):
        build(new_data, backbone=SASRec(16, max_length=8)).init_from(old[2], new_data)
    other = prepare(log(5, KNOWN + 1))
    with pytest.raises(ValueError, match="numbers a log by the model"):
        build(other).init_from(old[2], other)
    with pytest.raises(FileNotFoundError):
        build(new_data).init_from("none.ckpt", new_data)


def test_a_resumed_run_can_be_recommended_from(old, new_data, tmp_path):
    module = build(new_data)
    trainer = quiet_trainer(max_epochs=2)
    trainer.fit(module, new_data, ckpt_path=old[2], weights_only=True)
    trainer.save_checkpoint(tmp_path / "new.ckpt")
    sessions = [new_data.vocabulary.ids[-3:]]
    found = Recommender.from_checkpoint(tmp_path / "new.ckpt").recommend(sessions, top_k=5)
    assert found.equals(Recommender(module).recommend(sessions, top_k=5))
