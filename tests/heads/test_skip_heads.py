"""Every skip head through the one contract: settings, cloze, weights, tables, combinations."""

import pytest
import torch
from small_models import batch, module, quiet_trainer

from skipcl_lightning import SkipCLModule
from skipcl_lightning.backbones import BERT4Rec, SASRec
from skipcl_lightning.batch import SessionBatch
from skipcl_lightning.data import SessionDataModule, simulate_sessions
from skipcl_lightning.functional import (
    Candidates,
    ContrastSettings,
    next_item_targets,
    sample_items,
    skip_info_nce,
    skip_margin,
    skip_softmax,
    skip_unlikelihood,
)
from skipcl_lightning.heads import (
    SKIP_HEADS,
    CombinedHead,
    FullSoftmax,
    OpposingSequences,
    SampledSoftmax,
    SkipInfoNCE,
    SkipMargin,
    SkipPrediction,
    SkipSoftmax,
    SkipUnlikelihood,
)
from skipcl_lightning.heads.session_head import heads_of

PAIR = [SkipInfoNCE(weight=0.2), SkipMargin(weight=0.5)]
HEADS = {
    "info_nce": lambda: SkipInfoNCE(),
    "bank": lambda: SkipInfoNCE(bank_size=5, negatives="batch", num_hardest=2),
    "unlikelihood": lambda: SkipUnlikelihood(negatives="past"),
    "sampled unlikelihood": lambda: SkipUnlikelihood(num_samples=3, negatives="session"),
    "softmax": lambda: SkipSoftmax(num_samples=4),
    "plain softmax": lambda: SkipSoftmax(num_samples=0, negatives="session"),
    "bpr": lambda: SkipMargin(),
    "hinge": lambda: SkipMargin(loss="hinge", margin=0.5, negatives="session"),
    "opposing": lambda: OpposingSequences(8, num_samples=4),
    "combined": lambda: CombinedHead([SkipInfoNCE(weight=0.2), SkipMargin(weight=0.5)]),
    "uncertain": lambda: CombinedHead(
        [SkipInfoNCE(weight=0.2), SkipMargin(weight=0.5)], weighting="uncertainty"
    ),
}


def tensors(seed=0):
    generator = torch.Generator().manual_seed(seed)
    query, table = torch.randn(2, 5, 8, generator=generator), torch.randn(10, 8, generator=generator)
    return query, table


@pytest.fixture(scope="module")
def data():
    return SessionDataModule(simulate_sessions(40, num_items=30, num_moods=3), batch_size=16, max_length=20)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("backbone", [SASRec, BERT4Rec])
def test_every_head_trains_any_backbone_and_comes_back_from_its_checkpoint(data, name, backbone, tmp_path):
    torch.manual_seed(0)
    model = SkipCLModule(
        backbone(8, max_length=21, num_layers=1), HEADS[name](), num_items=data.num_items, embedding_size=8
    )
    trainer = quiet_trainer()
    trainer.fit(model, data)
    assert torch.isfinite(trainer.callback_metrics["train/skip_loss"])
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = SkipCLModule.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert loaded.skip_head.settings == model.skip_head.settings
    assert loaded.hparams["backbone"] == model.hparams["backbone"]
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


@pytest.mark.parametrize("name", HEADS)
def test_the_loss_of_a_batch_without_skips_is_zero_with_a_zero_gradient(name):
    query, table = tensors()
    query.requires_grad_()
    heard = batch().replace(feedback=torch.ones(2, 5) * (batch().items > 0))
    loss = HEADS[name]()(query, table[heard.items], heard, table)
    loss.backward()
    assert loss == 0
    assert query.grad is None or not query.grad.any()


def test_settings_reach_the_formulas():
    query, table = tensors()
    sessions = batch().replace(explicit_feedback=torch.tensor([[0, 0, 1.0, -1, 0], [0, 1, 0, 0, 0]]))
    keys = table[sessions.items]
    contrast_settings = {
        "anchors": "all",
        "negatives": "session",
        "skip_weights": "strength",
        "dislike_weight": 3.0,
        "like_weight": 2.0,
    }
    cases = [
        (
            SkipMargin(loss="hinge", margin=0.3, **contrast_settings),
            skip_margin,
            {"loss": "hinge", "margin": 0.3},
        ),
        (SkipSoftmax(num_samples=0, **contrast_settings), skip_softmax, {}),
    ]
    for head, function, settings in cases:
        expected = function(query, keys, sessions, **settings, **contrast_settings)
        torch.testing.assert_close(head(query, keys, sessions), expected)
    head = SkipUnlikelihood(**contrast_settings)
    expected = skip_unlikelihood(query, keys, sessions, table, **contrast_settings)
    torch.testing.assert_close(head(query, keys, sessions, table), expected)
    info = SkipInfoNCE(**contrast_settings, num_hardest=1, mined_positive_weight=0.25)
    mined = torch.tensor([[[1, 2]] * 5, [[0, 9]] * 5])
    with_mined = sessions.replace(mined_negatives=mined, mined_positives=mined.flip(2))
    expected = skip_info_nce(
        query, keys, with_mined, table, mined_positive_weight=0.25, num_hardest=1, **contrast_settings
    )
    torch.testing.assert_close(info(query, keys, with_mined, table), expected)


@pytest.mark.parametrize("name", HEADS)
def test_a_head_takes_a_batch_or_its_items_and_feedback(name):
    query, table = tensors()
    sessions = batch()
    torch.manual_seed(0)
    head = HEADS[name]().eval()
    losses = []
    for one in (sessions, (sessions.items, sessions.feedback)):
        torch.manual_seed(1)
        losses.append(head(query, table[sessions.items], one, table))
    assert losses[0] > 0
    assert torch.equal(*losses)


def test_the_settings_of_the_contrast_are_one_frozen_object():
    head = SkipMargin(like_weight=2.0)
    assert head.contrast == ContrastSettings(negatives="passed", like_weight=2.0)
    assert head.settings == {"weight": 0.1, "loss": "bpr", "margin": None} | head.contrast.options
    with pytest.raises(
        ValueError, match="`negatives` must be one of 'session', 'past', 'passed', got 'batch'"
    ):
        SkipMargin(negatives="batch")
    with pytest.raises(TypeError, match="negative"):
        SkipMargin(negative="past")


def test_the_opposing_encoder_must_have_the_size_of_the_model():
    query, table = tensors()
    sessions = batch()
    with pytest.raises(ValueError, match="`embedding_size` must be the item table's 8, got 64"):
        OpposingSequences(num_samples=6)(query, table[sessions.items], sessions, table)


def test_the_opposing_encoder_learns_the_next_skip_besides_the_contrast():
    query, table = tensors()
    skips = torch.tensor([[1.0, -1, 1, -1, 1], [1, -1, -1, 0, 0]])
    sessions = batch().replace(feedback=skips)
    torch.manual_seed(0)
    head = OpposingSequences(8, num_samples=6, sequence_weight=0.0)
    without = head(query, table[sessions.items], sessions, table)
    head.sequence_weight = 0.5
    torch.manual_seed(1)
    with_sequence = head(query, table[sessions.items], sessions, table)
    # By hand: after 3 comes 7 in the first session, after 1 comes 6 in the second.
    torch.manual_seed(1)
    samples = torch.randint(1, 10, (6,))
    losses = []
    for first, second in ((3, 7), (1, 6)):
        state = head.encoder(table[torch.tensor([[first]])])[0][0, 0]
        others = [k for k in samples.tolist() if k != second]
        logits = torch.stack([state @ table[second], *(state @ table[k] for k in others)])
        losses.append(-logits.log_softmax(0)[0])
    torch.testing.assert_close(with_sequence - without, 0.5 * torch.stack(losses).mean())
    with_sequence.backward()
    assert head.encoder.weight_hh_l0.grad.any()


def test_a_bank_keeps_the_latest_skips_and_pushes_from_them_in_later_steps():
    query, table = tensors()
    head = SkipInfoNCE(bank_size=3)
    sessions = batch()  # skips 3 and 2
    first = head(query, table[sessions.items], sessions, table)
    assert head.bank.tolist() == [3, 2, 0]
    second = head(query, table[sessions.items], sessions, table)
    assert head.bank.tolist() == [3, 2, 3]
    bank = torch.tensor([3, 2, 0])
    expected = skip_info_nce(
        query,
        table[sessions.items],
        sessions,
        candidates=Candidates(bank, table[bank]),
    )
    torch.testing.assert_close(second, expected)
    assert second > first
    head.eval()
    head(query, table[sessions.items], sessions, table)
    assert head.bank.tolist() == [3, 2, 3]
    with pytest.raises(ValueError, match="`item_embeddings` must be given for a memory bank, got None"):
        head(query, table[sessions.items], sessions)


def test_a_bank_keeps_nothing_of_an_evaluation():
    query, table = tensors()
    head = SkipInfoNCE(bank_size=3).eval()
    head(query, table[batch().items], batch(), table)
    assert not head.bank.any()


@pytest.mark.parametrize("head", [SkipSoftmax(num_samples=2), SkipUnlikelihood(num_samples=2)])
def test_every_item_of_the_catalogue_can_be_sampled(head):
    items, feedback = torch.tensor([[1, 2, 3]]), torch.tensor([[1.0, -1.0, 1.0]])
    sessions = SessionBatch(items, feedback)
    reached = torch.zeros(5, dtype=torch.bool)
    for seed in range(40):
        torch.manual_seed(seed)
        table = torch.randn(5, 8).requires_grad_()
        head(torch.randn(1, 3, 8), table.detach()[items], sessions, table).backward()
        reached |= table.grad.any(dim=1)
    # Item 4, the last, is in no session: only a sample reaches it.
    assert reached[4]


def test_fixed_weights_add_up():
    query, table = tensors()
    sessions = batch()
    keys = table[sessions.items]
    parts = [SkipInfoNCE(weight=0.2), SkipMargin(weight=0.5, negatives="session")]
    head = CombinedHead(parts)
    losses = head.losses(query, keys, sessions, table)
    assert list(losses) == ["SkipInfoNCE", "SkipMargin"]
    one, other = (part(query, keys, sessions) for part in parts)
    torch.testing.assert_close(head(query, keys, sessions, table), 0.2 * one + 0.5 * other)
    parts[0].weight = 0.1
    torch.testing.assert_close(head.combine(losses), 0.1 * one + 0.5 * other)
    assert head.weights == {"SkipInfoNCE": 0.1, "SkipMargin": 0.5}
    assert list(CombinedHead([*parts, SkipMargin()]).losses(query, keys, sessions, table)) == [
        "SkipInfoNCE",
        "SkipMargin",
        "SkipMargin_2",
    ]


def test_uncertainty_weighs_each_loss_by_what_is_learned():
    head = CombinedHead(PAIR, weighting="uncertainty")
    head.log_variance.data = torch.tensor([0.5, -1.0])
    losses = {"a": torch.tensor(2.0), "b": torch.tensor(3.0)}
    by_hand = torch.tensor(0.2 * 2.0 * 2.718281828459045**-0.5 + 0.25 + 0.5 * 3.0 * 2.718281828459045 - 0.5)
    torch.testing.assert_close(head.combine(losses), by_hand)
    # Each loss is divided by its learned variance.
    weights = list(head.weights.values())
    torch.testing.assert_close(
        torch.stack(weights), torch.tensor([0.2, 0.5]) * torch.tensor([-0.5, 1.0]).exp()
    )
    head.combine(losses).backward()
    # The gradient is zero where exp(s) is twice the weighted loss.
    torch.testing.assert_close(head.log_variance.grad[0], torch.tensor(0.5 - 0.4 * 2.718281828459045**-0.5))


def test_a_combination_is_rebuilt_from_names_and_settings():
    head = CombinedHead(PAIR, weighting="uncertainty")
    again = CombinedHead(**head.settings)
    assert again.settings == head.settings
    assert [type(part) for part in again.heads] == [SkipInfoNCE, SkipMargin]


def test_the_parts_of_a_combination_are_logged():
    model = module(SASRec(8, max_length=6), CombinedHead(PAIR))
    losses = model.losses(model.part_losses(batch()))
    assert {"skip_loss", "skip_loss/SkipInfoNCE", "skip_loss/SkipMargin"} < set(losses)
    expected = losses["next_item_loss"] + losses["skip_loss"]
    torch.testing.assert_close(losses["loss"], expected)
    torch.testing.assert_close(
        losses["skip_loss"],
        0.2 * losses["skip_loss/SkipInfoNCE"] + 0.5 * losses["skip_loss/SkipMargin"],
    )


def test_a_liked_target_weighs_more_and_a_disliked_one_is_none():
    said = torch.tensor([[0.0, 0, 1, -1, 0], [0, 1, 0, 0, 0]])
    sessions = batch().replace(explicit_feedback=said)
    model = module(SASRec(8, max_length=6, dropout=0.0), None, like_weight=3.0)
    target = next_item_targets(sessions.items, sessions.feedback, explicit_feedback=said)
    assert target.tolist() == [[4, 4, 5, 5, 0], [1, 6, 0, 0, 0]]
    losses = model.losses(model.part_losses(sessions))["next_item_loss"]
    query = model(sessions)
    each = torch.nn.functional.cross_entropy(
        (query @ model.item_table[1:].T)[target > 0], target[target > 0] - 1, reduction="none"
    )
    weights = torch.tensor([3.0, 3, 1, 1, 3, 1])
    torch.testing.assert_close(losses, (weights * each).sum() / weights.sum())
    with pytest.raises(ValueError, match="`like_weight` must be in"):
        module(SASRec(8, max_length=6), None, like_weight=0.0)


def test_explicit_feedback_is_an_input_of_its_own():
    model = module(SASRec(8, max_length=6), None, feedback_input=True).eval()
    torch.nn.init.normal_(model.model.feedback_embedding.weight)
    sessions = batch()
    unknown = sessions.replace(explicit_feedback=torch.zeros(2, 5))
    liked = sessions.replace(explicit_feedback=torch.tensor([[1.0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]))
    disliked = sessions.replace(explicit_feedback=-liked.explicit_feedback)
    plain = model(sessions)
    assert torch.equal(plain, model(unknown))
    assert not torch.allclose(plain[0], model(liked)[0])
    assert not torch.allclose(model(disliked)[0], model(liked)[0])
    assert torch.equal(plain[1], model(liked)[1])


def test_weights_of_the_next_item_loss_are_checked():
    query, table = tensors()
    target = next_item_targets(batch().items, batch().feedback)
    with pytest.raises(ValueError, match="`weight` must have shape"):
        FullSoftmax()(query, table, target, torch.ones(2, 4))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SkipInfoNCE(gather_ranks=True), "`negatives` must be 'batch' with `gather_ranks`"),
        (lambda: SkipInfoNCE(bank_size=-1), "`bank_size` must be at least 0"),
        (lambda: SkipInfoNCE(num_hardest=0), "`num_hardest` must be at least 1"),
        (lambda: SkipMargin(margin=0.5), "`margin` must be None for 'bpr', got 0.5"),
        (lambda: SkipMargin(loss="hinge", margin=0.0), "`margin` must be in"),
        (lambda: SkipSoftmax(num_samples=-1), "`num_samples` must be at least 0"),
        (lambda: SkipUnlikelihood(num_samples=0), "`num_samples` must be at least 1"),
        (lambda: OpposingSequences(8, sequence_weight=-1.0), "`sequence_weight` must be in"),
        (lambda: CombinedHead([SkipInfoNCE()]), "`heads` must hold at least two heads, got 1"),
        (lambda: CombinedHead(PAIR, weighting="equal"), "`weighting` must be one of"),
        (lambda: SkipMargin(dislike_weight=0.0), "`dislike_weight` must be in"),
        (lambda: SkipMargin(anchors="every"), "`anchors` must be one of"),
        (lambda: SkipMargin(skip_weights="odd"), "`skip_weights` must be one of"),
        (lambda: SkipMargin(negatives="batch"), "`negatives` must be one of"),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("head", [SkipMargin, SkipSoftmax, SkipUnlikelihood, SkipInfoNCE])
def test_all_anchors_have_no_meaning_beside_a_bidirectional_backbone(head):
    with pytest.raises(ValueError, match="`anchors` must be 'listened' for a bidirectional backbone"):
        module(None, CombinedHead([head(anchors="all"), SkipInfoNCE()]))


def test_the_registry_names_every_head():
    assert set(SKIP_HEADS) == {
        "CombinedHead",
        "OpposingSequences",
        "SkipInfoNCE",
        "SkipMargin",
        "SkipPrediction",
        "SkipSoftmax",
        "SkipUnlikelihood",
    }


def test_a_head_of_ones_own_needs_only_three_arguments():
    class Plain(torch.nn.Module):
        def forward(self, query, keys, sessions: SessionBatch):
            return query.square().mean()

    model = module(SASRec(8, max_length=6), Plain())
    assert model.losses(model.part_losses(batch()))["skip_loss"] > 0
    both = module(SASRec(8, max_length=6), CombinedHead([Plain(), SkipInfoNCE()]))
    assert "skip_loss/Plain" in both.losses(both.part_losses(batch()))


def test_a_hidden_track_is_contrasted_with_what_follows_the_track_before_it():
    query, table = tensors()
    mined = torch.zeros(2, 5, 1, dtype=torch.int64)
    hidden = batch().replace(
        cloze_mask=torch.tensor([[False, False, True, False, False], [False] * 5]), mined_negatives=mined
    )
    keys = table[hidden.items]
    plain = SkipInfoNCE()(query, keys, hidden, table)
    for position, changes in ((1, True), (2, False), (3, False)):
        drawn = mined.clone()
        drawn[0, position] = 9
        loss = SkipInfoNCE()(query, keys, hidden.replace(mined_negatives=drawn), table)
        assert (loss != plain) == changes


def test_no_head_leaves_sparse_gradients_unless_it_is_told_to():
    for head in (SkipInfoNCE(), SkipSoftmax(), SkipUnlikelihood(), OpposingSequences(4)):
        assert getattr(head, "sparse_gradients", False) is False


def test_a_softmax_draws_at_most_all_other_items():
    head, table = SkipSoftmax(num_samples=50), torch.randn(6, 4)
    drawn = []

    def keep(num, num_items, **settings):
        drawn.append((num, num_items))
        return sample_items(num, num_items, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("skipcl_lightning.heads.score_heads.sample_items", keep)
        items = torch.tensor([[1, 2, 3]])
        head(table[items], table[items], (items, torch.tensor([[1.0, -1.0, 1.0]])), table)
    assert drawn == [(4, 5)]  # of 5 items, all but the target


def test_heads_of_the_users_own_need_no_item_hidden():
    heads = CombinedHead([torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)])
    assert heads.hides_rejected is False


def test_heads_within_a_head_within_a_head_are_found():
    inner = CombinedHead([SkipPrediction(), SkipInfoNCE()])
    nested = CombinedHead([inner, SkipInfoNCE(negatives="batch")])
    assert [type(one) for one in heads_of(nested)] == [SkipPrediction, SkipInfoNCE, SkipInfoNCE]
    one = module(
        SASRec(8), nested, skip_penalty=0.5, sparse_item_table=True, next_item_loss=SampledSoftmax(2)
    )
    assert one.predicts_skips
