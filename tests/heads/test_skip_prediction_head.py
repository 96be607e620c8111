import copy
import math

import pytest
import torch
from lightning.pytorch import seed_everything
from small_models import MASK, NUM_ITEMS, batch, module, quiet_trainer

from skipcl_lightning import SkipCLModule
from skipcl_lightning.backbones import BERT4Rec, GRU4Rec, SASRec
from skipcl_lightning.batch import SessionBatch
from skipcl_lightning.data import SessionDataModule, SplitBySession, simulate_sessions
from skipcl_lightning.functional import skip_prediction_loss
from skipcl_lightning.heads import CombinedHead, SampledSoftmax, SkipInfoNCE, SkipPrediction
from skipcl_lightning.metrics import SkipAUC

OPTIONS = {
    "all": {},
    "own": {"project_embeddings": False},
    "projected": {"own_vectors": False},
    "without biases": {"own_bias": False},
    "projected alone": {"own_vectors": False, "own_bias": False},
}


def filled(head, table, seed=0):
    """The head for a table, with weights that are not zero."""
    head.materialise(table)
    generator = torch.Generator().manual_seed(seed)
    for parameter in head.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return head


def tensors(seed=0):
    generator = torch.Generator().manual_seed(seed)
    query, table = torch.randn(2, 5, 8, generator=generator), torch.randn(10, 8, generator=generator)
    table[0] = 0
    return query, table


def slow_logit(head, query, item, table):
    """a(t, i), number by number."""
    weights = {name: parameter.detach() for name, parameter in head.named_parameters()}
    total = float(weights["bias"])
    if head.own_bias:
        total += float(weights["biases"][item])
    for m in range(head.vector_size):
        session = sum(
            float(w) * float(z) for w, z in zip(weights["session_projection"][m], query, strict=True)
        )
        own = float(weights["vector"][m])
        if head.own_vectors:
            own += float(weights["vectors"][item, m])
        if head.project_embeddings:
            projection = weights["item_projection"][m]
            own += sum(float(p) * float(e) for p, e in zip(projection, table[item], strict=True))
        total += session * own
    return total


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_loss_and_every_view_of_the_logits_equal_the_formula(options):
    query, table = tensors()
    head = filled(SkipPrediction(vector_size=3, **options), table)
    sessions = batch()
    items = sessions.items.tolist()
    losses = []
    for b, length in enumerate(sessions.lengths.tolist()):
        for t in range(length - 1):
            logit = slow_logit(head, query[b, t], items[b][t + 1], table)
            heard = sessions.feedback[b, t + 1] >= 0
            losses.append(math.log1p(math.exp(-logit if heard else logit)))
    loss = head(query, table[sessions.items], sessions, table)
    assert loss.item() == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    logits = torch.tensor(
        [[slow_logit(head, query[0, t], item, table) for item in range(10)] for t in range(5)]
    )
    by_parts = head.session_vector(query[0]) @ head.item_vectors(table).T + head.item_bias
    torch.testing.assert_close(by_parts[:, 1:], logits[:, 1:])
    chosen = torch.tensor([[3, 9], [1, 1], [2, 4], [5, 6], [7, 8]])
    found = head.listen_logits(query[0], chosen, table)
    torch.testing.assert_close(found, logits.gather(1, chosen))
    for penalty in (0.0, 0.7):
        scores = head.extended_query(query[0], penalty) @ head.extended_table(table).T
        torch.testing.assert_close(scores[:, 1:], (query[0] @ table.T + penalty * logits)[:, 1:])


def test_settings_reach_the_loss():
    query, table = tensors()
    sessions = batch().replace(explicit_feedback=torch.tensor([[0, 0, 1.0, -1, 0], [0, 1, 0, 0, 0]]))
    settings = {"graded": True, "dislike_weight": 3.0, "like_weight": 2.0}
    head = filled(SkipPrediction(vector_size=3, **settings), table)
    expected = skip_prediction_loss(
        head.session_vector(query),
        head.item_vectors(table)[sessions.items],
        head.item_bias[sessions.items],
        sessions,
        **settings,
    )
    torch.testing.assert_close(head(query, table[sessions.items], sessions), expected)


def test_it_takes_a_batch_or_its_items_and_feedback():
    query, table = tensors()
    head, sessions = filled(SkipPrediction(), table), batch()
    keys = table[sessions.items]
    assert torch.equal(head(query, keys, sessions), head(query, keys, (sessions.items, sessions.feedback)))


def test_an_untrained_head_prefers_no_item():
    _, table = tensors()
    head = SkipPrediction()
    head.materialise(table)
    assert not head.item_vectors(table).any()
    assert not head.item_bias.any()


def test_what_depends_on_the_session_alone_changes_no_ranking():
    query, table = tensors()
    head = filled(SkipPrediction(), table)
    before = head.extended_query(query[0], 0.5) @ head.extended_table(table).T
    head.vector.data += 1
    after = head.extended_query(query[0], 0.5) @ head.extended_table(table).T
    difference = after - before
    assert (difference.abs() > 0.1).any()
    torch.testing.assert_close(difference, difference[:, :1].expand(-1, 10), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("stop", [False, True])
def test_gradients_reach_every_weight_and_stop_where_they_are_told_to(stop):
    query, table = (tensor.requires_grad_() for tensor in tensors())
    head = filled(SkipPrediction(stop_gradient=stop), table)
    head(query, table[batch().items], batch()).backward()
    assert all(parameter.grad.any() for parameter in head.parameters())
    assert (query.grad is None) == (table.grad is None) == stop


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_without_a_next_item_every_weight_still_has_a_gradient_of_zero(options):
    # DDP waits for the gradient of each weight.
    query, table = tensors()
    head = filled(SkipPrediction(**options), table)
    items = torch.tensor([[3, 0], [0, 0]])
    query = query[:, :2].requires_grad_()
    loss = head(query, table[items], (items, torch.zeros(2, 2)))
    loss.backward()
    assert loss == 0
    assert all(not parameter.grad.any() for parameter in [query, *head.parameters()])


def test_padding_has_no_own_vector():
    _, table = tensors()
    head = SkipPrediction()
    head.materialise(table)
    optimizer = torch.optim.SGD(head.parameters(), lr=1.0)
    query, _ = tensors(1)
    head(query, table[batch().items], batch()).backward()
    optimizer.step()
    assert head.vectors[1:].any()
    assert not head.vectors[0].any()
    assert head.biases[0] == 0


@pytest.fixture(scope="module")
def data():
    return SessionDataModule(simulate_sessions(40, num_items=30, num_moods=3), batch_size=16, max_length=20)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize(
    ("backbone", "combined"),
    [
        (SASRec, False),
        (BERT4Rec, True),
        (GRU4Rec, False),
        pytest.param(SASRec, True, marks=pytest.mark.slow),
        pytest.param(BERT4Rec, False, marks=pytest.mark.slow),
        pytest.param(GRU4Rec, True, marks=pytest.mark.slow),
    ],
)
def test_it_trains_any_backbone_and_comes_back_from_its_checkpoint(
    data, backbone, combined, precision, tmp_path
):
    seed_everything(0, verbose=False)
    head = SkipPrediction(weight=0.5, vector_size=4, graded=True, stop_gradient=combined)
    if combined:
        head = CombinedHead([SkipInfoNCE(weight=0.2), head], weighting="uncertainty")
    model = SkipCLModule(backbone(8), head, num_items=data.num_items, embedding_size=8)
    trainer = quiet_trainer(precision=precision)
    trainer.fit(model, data)
    assert torch.isfinite(trainer.callback_metrics["train/skip_loss"])
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = SkipCLModule.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert loaded.skip_head.settings == model.skip_head.settings
    state = loaded.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[key].float(), value.float()) for key, value in model.state_dict().items())


@pytest.mark.parametrize("sparse", [False, True])
def test_it_learns_which_tracks_are_skipped_and_the_penalty_ranks_them_lower(sparse):
    seed_everything(0, verbose=False)
    split = SplitBySession(validation_share=0.1, test_share=0.3, targets="every")
    log = simulate_sessions(300, num_items=40, num_moods=4)
    data = SessionDataModule(log, batch_size=32, max_length=20, split=split)
    model = SkipCLModule(
        SASRec(16, max_length=20, dropout=0.0),
        SkipPrediction(),
        num_items=data.num_items,
        learning_rate=0.01,
        sparse_item_table=sparse,
        next_item_loss=SampledSoftmax(16),
    )
    quiet_trainer(max_epochs=8, limit_val_batches=0).fit(model, data)
    head, auc, ranks = model.skip_head, SkipAUC(from_logits=True), {0.0: [], 2.0: []}
    model.eval()
    with torch.no_grad():
        for one in data.test_dataloader():
            query = model.session_query(one)
            auc.update(
                -head.listen_logits(query, one.target[:, None], model.item_table)[:, 0], one.target_feedback
            )
            for penalty, found in ranks.items():
                scores = head.extended_query(query, penalty) @ head.extended_table(model.item_table).T
                own = scores.gather(1, one.target[:, None])
                found.append((scores[:, 1:] >= own).sum(dim=1)[one.target_feedback < 0])
    assert auc.compute() > 0.65
    plain, penalised = (torch.cat(found).double().mean() for found in ranks.values())
    assert penalised > plain + 1


@pytest.mark.parametrize("rule", ["next_listened", "next"])
def test_a_bidirectional_backbone_hides_rejected_items_but_does_not_aim_at_them(rule):
    head = CombinedHead([SkipInfoNCE(), SkipPrediction()])
    settings = {"mask_probability": 1.0, "last_mask_probability": 0.0}
    model = module(head=head, target_rule=rule, **settings)
    hidden = model.prepare_training(batch())
    assert torch.equal(hidden.cloze_mask, batch().valid_mask)
    plain = module(head=SkipInfoNCE(), target_rule=rule, **settings)
    mask = batch().listened_mask if rule == "next_listened" else batch().valid_mask
    assert torch.equal(plain.prepare_training(batch()).cloze_mask, mask)
    seen = {}
    model.next_item_loss.register_forward_pre_hook(lambda _, arguments: seen.update(target=arguments[2]))
    model.part_losses(batch())
    assert torch.equal(seen["target"], torch.where(mask, batch().items, 0))


def test_a_hidden_item_is_predicted_in_its_place_without_its_feedback():
    model = module(head=SkipPrediction(), feedback_input=True).eval()
    filled(model.skip_head, model.item_table)
    torch.nn.init.normal_(model.model.feedback_embedding.weight)
    mask = torch.tensor([[True, False, False, True, False], [True, False, False, False, False]])
    hidden = batch().replace(cloze_mask=mask)
    model.prepare_training = lambda _: hidden
    loss = model.part_losses(batch()).parts["skip_loss"]
    feedback = torch.where(mask, 0, batch().feedback)
    items = torch.where(mask, MASK, batch().items)
    query = model(SessionBatch(items, feedback))[mask]
    head, targets = model.skip_head, torch.tensor([5, 7, 2])
    logits = head.listen_logits(query, targets[:, None], model.item_table)[:, 0]
    each = torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.tensor([1.0, 1.0, 0.0]))
    torch.testing.assert_close(loss, each)


def test_a_head_is_made_once_and_for_one_catalogue():
    _, table = tensors()
    head = SkipPrediction()
    message = "`SkipPrediction` must know the item table before it is used, got none"
    for use in (
        lambda: head.session_vector(table),
        lambda: head.item_vectors(table),
        lambda: head.item_bias,
        lambda: head.extended_query(table, 1.0),
        lambda: head.extended_table(table),
        lambda: head(table[None], table[None], (torch.ones(1, 10).long(), torch.ones(1, 10))),
    ):
        with pytest.raises(ValueError, match=message):
            use()
    head.materialise(table)
    with pytest.raises(ValueError, match="`items` must have shape"):
        head.listen_logits(table, torch.arange(len(table)), table)
    weights = copy.deepcopy(head.state_dict())
    head.materialise(table)
    assert all(torch.equal(value, weights[name]) for name, value in head.state_dict().items())
    with pytest.raises(
        ValueError, match=r"`item_embeddings` must have shape \[10, 8\], as when the head was"
    ):
        head.materialise(table[:-1])
    with pytest.raises(ValueError, match=r"`item_embeddings` must have shape \[V\+1=10, D=8\]"):
        head.extended_table(table[:-1])


def test_the_weights_are_where_the_table_is():
    head = SkipPrediction()
    head.materialise(torch.empty(10, 8, device="meta"))
    assert {parameter.device.type for parameter in head.parameters()} == {"meta"}


def test_a_module_makes_the_head_for_its_own_items():
    model = module(SASRec(8, max_length=6), SkipPrediction(vector_size=4))
    assert model.skip_head.vectors.shape == (NUM_ITEMS + 1, 4)
    # Biases do not decay.
    assert {name: p.dim() for name, p in model.skip_head.named_parameters()} == {
        "session_projection": 2,
        "item_projection": 2,
        "vectors": 2,
        "biases": 1,
        "vector": 1,
        "bias": 1,
    }


@pytest.mark.parametrize("penalty", [-0.1, math.nan, math.inf])
def test_a_penalty_below_0_is_refused(penalty):
    _, table = tensors()
    head = filled(SkipPrediction(), table)
    with pytest.raises(ValueError, match=r"`penalty` must be in \[0, 1e\+06\]"):
        head.extended_query(table, penalty)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vector_size": 0}, "`vector_size` must be at least 1, got 0"),
        ({"weight": -1.0}, "`weight` must be in"),
        ({"dislike_weight": 0.0}, "`dislike_weight` must be in"),
        ({"like_weight": math.nan}, "`like_weight` must be in"),
        (
            {"own_vectors": False, "project_embeddings": False},
            "`own_vectors` must be True without `project_embeddings`",
        ),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        SkipPrediction(**settings)
