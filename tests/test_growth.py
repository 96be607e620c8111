"""New items of a trained model: what is appended, what stays, and what a checkpoint keeps."""

from collections import defaultdict
from itertools import pairwise

import pytest
import torch
from small_models import quiet_trainer

from skipcl_lightning import Recommender, SkipCLModule
from skipcl_lightning.backbones import BERT4Rec, SASRec
from skipcl_lightning.data import ItemVocabulary, SessionDataModule, SessionEncoder, simulate_sessions
from skipcl_lightning.evaluation import evaluate
from skipcl_lightning.heads import CombinedHead, SampledSoftmax, SkipInfoNCE, SkipPrediction
from skipcl_lightning.model import Transitions

KNOWN = 50


@pytest.fixture(scope="module")
def data():
    log = simulate_sessions(120, num_items=60, num_moods=4, seed=0)
    return SessionDataModule(log, batch_size=32, max_length=8)


def backbone(causal=True):
    kind = SASRec if causal else BERT4Rec
    return kind(8, max_length=8, num_layers=1, num_heads=1, dropout=0.0)


def transitions(num_items):
    contexts = torch.arange(1, num_items + 1)
    counted = [contexts, contexts.flip(0), contexts]
    pairs = [contexts * (num_items + 1) + contexts.flip(0), contexts, contexts]
    return torch.nn.ModuleList([Transitions.from_counts(*counted), Transitions.from_counts(*pairs)])


def build(data, *, causal=True, **settings):
    """A module that knows the first items of the data."""
    torch.manual_seed(0)
    head = CombinedHead([SkipInfoNCE(), SkipPrediction(vector_size=4)])
    module = SkipCLModule(
        backbone(causal),
        head,
        **{"num_items": KNOWN, "transition_weight": 1.0, "skip_penalty": 0.5, **settings},
    )
    module.encoder = SessionEncoder(ItemVocabulary(data.vocabulary.ids[:KNOWN]), data.input_length)
    for name in ("vectors", "biases"):  # zero at first
        getattr(module.skip_prediction, name).data.normal_()
    module.model.transitions = transitions(KNOWN)
    return module.eval()


def old_batch(data):
    """Sessions of known items only, with padding."""
    batch = next(iter(data.test_dataloader()))
    return batch.replace(
        items=torch.where(batch.items > KNOWN, 3, batch.items), target=batch.target % KNOWN + 1
    )


@torch.no_grad()
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("sparse", [True, False])
def test_known_items_keep_their_scores_to_the_last_bit(data, causal, sparse):
    loss = SampledSoftmax(3) if sparse else None
    module = build(data, causal=causal, sparse_item_table=sparse, next_item_loss=loss)
    batch = old_batch(data)

    def found():
        query, table, added = module.session_query(batch), module.item_table, module.added_scores(batch)
        scores = (query[:, None].double() * table[: KNOWN + 1].double()).sum(dim=2)
        return query, table[: KNOWN + 1], *added, scores, module.skip_probability(batch)

    before = found()
    module.extend_items(data.vocabulary.ids)
    assert module.num_items == data.num_items == len(module.item_table) - 1 > KNOWN
    assert module.model.item_embedding.sparse is sparse
    for one, other in zip(before, found(), strict=True):
        assert torch.equal(one, other)


def test_new_items_have_rows_of_the_mean_and_neutral_skip_predictions(data):
    module = build(data)
    mean = module.model.item_table[1:].mean(dim=0)
    module.extend_items(data.vocabulary.ids[KNOWN:])
    new = slice(KNOWN + 1, None)
    torch.testing.assert_close(module.model.item_table[new], mean.expand(data.num_items - KNOWN, -1))
    assert not module.skip_prediction.vectors[new].any()
    assert not module.skip_prediction.biases[new].any()
    assert module.encoder.vocabulary == data.vocabulary
    assert module.hparams["num_items"] == data.num_items
    assert module.val_metrics["skip_rank_percentile"].num_items == data.num_items
    assert module.growth == [KNOWN, data.num_items]
    module.extend_items(data.vocabulary.ids)  # all known by now
    assert module.growth == [KNOWN, data.num_items]


def test_the_nearest_rows_are_the_weighted_mean_of_the_tracks_played_around(data):
    module = build(data, target_rule="next")
    old = module.model.item_table.detach().clone()
    weights = defaultdict(float)
    for batch in data.training_sessions():
        for items in batch.items.tolist():
            for one, other in pairwise(items):
                if one and other:
                    weights[one, other] += 1
                    weights[other, one] += 1
    module.extend_items(data.vocabulary.ids, "nearest", data=data)
    fell_back = 0
    for item in range(KNOWN + 1, data.num_items + 1):
        beside = {known: weights[item, known] for known in range(1, KNOWN + 1) if (item, known) in weights}
        fell_back += not beside
        expected = old[1:].mean(dim=0)
        if beside:
            expected = sum(weight * old[known] for known, weight in beside.items()) / sum(beside.values())
        torch.testing.assert_close(module.model.item_table[item].detach(), expected)
    assert fell_back < data.num_items - KNOWN


def test_a_tensor_gives_the_rows(data):
    module, rows = build(data), torch.randn(2, 8, dtype=torch.float64)
    module.extend_items(data.vocabulary.ids[KNOWN : KNOWN + 2], rows)
    assert torch.equal(module.model.item_table[-2:], rows.float())


def test_contexts_of_two_items_are_coded_anew(data):
    module = build(data)
    one, pair = (table(torch.tensor([2, 2 * (KNOWN + 1) + KNOWN - 1])) for table in module.model.transitions)
    module.extend_items(data.vocabulary.ids)
    recoded = torch.tensor([2, 2 * (data.num_items + 1) + KNOWN - 1])
    assert pair.scores.any()
    for before, table in zip((one, pair), module.model.transitions, strict=True):
        assert torch.equal(before.items, table(recoded).items)


def test_a_grown_model_trains_on_and_its_checkpoint_keeps_the_growth(data, tmp_path):
    module = build(data).train()
    module.extend_items(data.vocabulary.ids[KNOWN:])
    mean = module.model.item_table[-1].detach().clone()
    trainer = quiet_trainer()
    trainer.fit(module, data)
    assert not torch.equal(module.model.item_table[KNOWN + 1].detach(), mean)
    trainer.save_checkpoint(tmp_path / "grown.ckpt")
    loaded = Recommender.from_checkpoint(tmp_path / "grown.ckpt")
    again = SkipCLModule.load_from_checkpoint(tmp_path / "grown.ckpt", weights_only=True)
    assert again.growth == [KNOWN, data.num_items]
    sessions = [data.vocabulary.ids[KNOWN : KNOWN + 2], data.vocabulary.ids[:3]]
    expected = Recommender(module).recommend(sessions, top_k=20)
    assert loaded.recommend(sessions, top_k=20).equals(expected)
    assert evaluate(again, data, num_resamples=0)["hit_rate@20"] > 0


def test_what_cannot_grow_is_said(data):
    module, new = build(data), data.vocabulary.ids[KNOWN:]
    for arguments, keywords, error, message in (
        ((new, "median"), {}, ValueError, "`init` must be one of"),
        ((new, torch.zeros(3, 7)), {}, ValueError, "`init` must have shape"),
        ((new, torch.zeros(len(new), 8).long()), {}, TypeError, "`init` must"),
        ((new, torch.full((len(new), 8), torch.nan)), {}, ValueError, "`init` must be finite"),
        (
            (new[:1] + data.vocabulary.ids[:1], torch.zeros(2, 8)),
            {},
            ValueError,
            "must be unknown and different",
        ),
        ((new, "nearest"), {}, ValueError, "`data` must be given for `init='nearest'`"),
        ((new, "mean"), {"data": data}, ValueError, "`data` must be given for `init='nearest'`"),
        ((new, "nearest"), {"data": [1]}, TypeError, "`data` must be a SessionDataModule, got list"),
        (([7],), {}, TypeError, "`new_items` must be String as in the vocabulary"),
    ):
        with pytest.raises(error, match=message):
            module.extend_items(*arguments, **keywords)
    module.encoder = None
    with pytest.raises(ValueError, match="must have its item vocabulary"):
        module.extend_items(new)


def test_a_head_of_ones_own_must_say_how_it_grows(data):
    module = build(data, skip_penalty=0.0)
    module.skip_head = torch.nn.Identity()
    module.skip_head.materialise = print
    with pytest.raises(TypeError, match="must have a method `extend_items"):
        module.extend_items(data.vocabulary.ids)
    assert module.num_items == KNOWN == len(module.encoder.vocabulary)


def test_data_with_more_or_fewer_items_than_the_model_is_refused(data):
    with pytest.raises(ValueError, match=r"It has \d+ more: `module\.extend_items"):
        quiet_trainer().fit(build(data), data)
    module = build(data)
    module.extend_items([*data.vocabulary.ids, "another"])
    with pytest.raises(ValueError, match="It lacks 1:"):
        quiet_trainer().fit(module, data)
