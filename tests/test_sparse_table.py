"""A sparse item table: the dense one's gradients, rows left alone, and Lightning's ways around it."""

import copy
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import seed_everything
from small_models import NUM_ITEMS, ROW_HEADS, batch, module, quiet_trainer

from skipcl_lightning import SkipCLModule
from skipcl_lightning.backbones import SASRec
from skipcl_lightning.data import SessionDataModule, simulate_sessions
from skipcl_lightning.functional import sampled_softmax_loss
from skipcl_lightning.heads import (
    GBCE,
    BPRMax,
    CombinedHead,
    FullSoftmax,
    SampledSoftmax,
    SkipInfoNCE,
    SkipUnlikelihood,
)
from skipcl_lightning.module.optimizers import SparseAdamW, clip_gradients_by_norm


def model(sparse, head=None, backbone=None, **settings):
    backbone = SASRec(8, max_length=6, dropout=0.0) if backbone is None else backbone
    settings = {"next_item_loss": SampledSoftmax(4), "learning_rate": 0.05, **settings}
    return module(backbone, head, sparse_item_table=sparse, **settings)


def gradients(one, seed=1):
    torch.manual_seed(seed)
    one.losses(one.part_losses(batch()))["loss"].backward()
    table = one.model.item_embedding.weight.grad
    return table, {name: p.grad for name, p in one.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("backbone", ["causal", "bidirectional"])
@pytest.mark.parametrize("head", ROW_HEADS)
def test_gradients_are_those_of_the_dense_table_and_hold_only_rows_used(head, backbone):
    make = (lambda: SASRec(8, max_length=6, dropout=0.0)) if backbone == "causal" else lambda: None
    if head == "opposing" and backbone == "bidirectional":
        pytest.skip("the head has no meaning there")
    sparse = (
        model(True, ROW_HEADS[head](), make())
        if backbone == "causal"
        else module(None, ROW_HEADS[head](), sparse_item_table=True, next_item_loss=SampledSoftmax(4))
    )
    dense = copy.deepcopy(sparse)
    dense.model.item_embedding.sparse = False
    for part in dense.modules():
        if hasattr(part, "sparse_gradients"):
            part.sparse_gradients = False
    for _ in range(2):  # the second time a bank holds something
        sparse.zero_grad()
        dense.zero_grad()
        found, all_found = gradients(sparse)
        expected, all_expected = gradients(dense)
    assert found.is_sparse
    assert not expected.is_sparse
    torch.testing.assert_close(found.to_dense(), expected, rtol=1e-5, atol=1e-6)
    assert all_found.keys() == all_expected.keys()
    for name, gradient in all_found.items():
        if not gradient.is_sparse:
            torch.testing.assert_close(gradient, all_expected[name], rtol=1e-5, atol=1e-6)


def test_a_sampled_loss_leaves_a_gradient_of_its_candidates_alone():
    table = torch.randn(9, 4, requires_grad=True)
    target, negatives = torch.tensor([3, 5]), torch.tensor([7, 3])
    sampled_softmax_loss(torch.randn(2, 4), table, target, negatives, sparse_gradients=True).sum().backward()
    assert table.grad.coalesce().indices().flatten().tolist() == [3, 5, 7]


def test_the_first_step_moves_rows_as_adam_does_and_leaves_all_others():
    torch.manual_seed(0)
    start = torch.randn(30, 4)
    used = torch.tensor([3, 4, 4, 9])
    moved = {}
    for sparse in (True, False):
        table = torch.nn.Parameter(start.clone())
        layer = torch.nn.Linear(4, 1)
        torch.nn.init.ones_(layer.weight)
        settings = {"learning_rate": 0.1}
        optimizer = (
            SparseAdamW(layer.parameters(), [table], **settings)
            if sparse
            else torch.optim.AdamW([*layer.parameters(), table], 0.1, weight_decay=0.0)
        )
        layer(torch.nn.functional.embedding(used, table, sparse=sparse)).square().sum().backward()
        optimizer.step()
        moved[sparse] = table.detach() - start
    torch.testing.assert_close(moved[True], moved[False], rtol=1e-4, atol=1e-6)
    assert (moved[True] != 0).any(dim=1).nonzero().flatten().tolist() == [3, 4, 9]


def test_training_with_every_row_in_each_step_is_that_of_adam():
    torch.manual_seed(0)
    start = torch.randn(6, 3)
    ended = {}
    for sparse in (True, False):
        table = torch.nn.Parameter(start.clone())
        layer = torch.nn.Linear(3, 1)
        torch.nn.init.ones_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
        rest = {"params": list(layer.parameters()), "weight_decay": 0.0}
        optimizer = (
            SparseAdamW([rest], [table], learning_rate=0.1)
            if sparse
            else torch.optim.AdamW([*layer.parameters(), table], 0.1, weight_decay=0.0)
        )
        for step in range(5):
            optimizer.zero_grad()
            rows = torch.nn.functional.embedding(torch.arange(6), table, sparse=sparse)
            (layer(rows).flatten() - torch.arange(6.0) * step).square().sum().backward()
            optimizer.step()
        ended[sparse] = table.detach()
    torch.testing.assert_close(ended[True], ended[False], rtol=1e-4, atol=1e-5)


def test_clipping_counts_sparse_rows_once_and_scales_all_alike():
    torch.manual_seed(0)
    table, layer = torch.nn.Embedding(9, 4, sparse=True), torch.nn.Linear(4, 1)
    layer(table(torch.tensor([3, 3, 5]))).sum().backward()
    expected = [table.weight.grad.to_dense().clone(), *(p.grad.clone() for p in layer.parameters())]
    norm = torch.cat([one.flatten() for one in expected]).norm()
    parameters = [*table.parameters(), *layer.parameters()]
    torch.testing.assert_close(clip_gradients_by_norm(parameters, norm.item() / 3), norm)
    for parameter, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad.to_dense(), gradient / 3, rtol=1e-4, atol=1e-6)
    clip_gradients_by_norm(parameters, 1e9)
    for parameter, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad.to_dense(), gradient / 3, rtol=1e-4, atol=1e-6)


def data():
    return SessionDataModule(
        simulate_sessions(120, num_items=40, num_moods=4), batch_size=32, max_length=20, seed=0
    )


def trainable(sparse=True, **settings):
    seed_everything(0, verbose=False)
    return SkipCLModule(
        SASRec(16, max_length=20, dropout=0.0),
        SkipInfoNCE(),
        num_items=40,
        embedding_size=16,
        next_item_loss=SampledSoftmax(16),
        sparse_item_table=sparse,
        **{"learning_rate": 0.03, "warmup_steps": 2, **settings},
    )


@pytest.mark.parametrize("settings", [{}, {"gradient_clip_val": 0.5}, {"accumulate_grad_batches": 2}])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_lightning_trains_it_without_more(settings, precision):
    one = trainable()
    before = one.model.item_embedding.weight.detach().clone()
    trainer = quiet_trainer(max_epochs=4, precision=precision, **settings)
    trainer.fit(one, data())
    assert (one.model.item_embedding.weight != before).any()
    assert not one.model.item_embedding.weight[0].any()
    assert trainer.callback_metrics["train/next_item_loss"] < 2.75  # 2.83 is that of a guess, log 17


def test_a_schedule_reaches_the_table_and_a_resumed_run_goes_on_alike(tmp_path):
    whole = trainable()
    trainer = quiet_trainer(max_epochs=4)
    trainer.fit(whole, data())
    assert {group["lr"] for group in trainer.optimizers[0].param_groups} == {0.03}

    half = trainable()
    trainer = quiet_trainer(max_epochs=2)
    trainer.fit(half, data())
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed = trainable()
    torch.manual_seed(9)
    trainer = quiet_trainer(max_epochs=2)
    trainer.fit(resumed, data(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert torch.equal(resumed.model.item_embedding.weight, half.model.item_embedding.weight)
    (one,), (other,) = (optimizers.optimizers for optimizers in (trainer, _fitted(half, tmp_path)))
    assert [p["lr"] for p in one.param_groups] == [p["lr"] for p in other.param_groups]
    table = resumed.model.item_embedding.weight
    assert one.state[table]["exp_avg"].any()
    # The moments that a step works on are those that a checkpoint keeps.
    table.grad = torch.sparse_coo_tensor([[3]], torch.ones(1, 16), table.shape, check_invariants=True)
    kept = one.state[table]["exp_avg"][3].clone()
    one.step()
    assert not torch.equal(one.state[table]["exp_avg"][3], kept)


def _fitted(half, folder):
    trainer = quiet_trainer(max_epochs=2)
    trainer.fit(half, data(), ckpt_path=folder / "half.ckpt", weights_only=True)
    return trainer


@pytest.mark.parametrize("loss", [GBCE, BPRMax])
def test_every_sampled_loss_leaves_the_gradients_of_the_dense_table(loss):
    sparse = model(True, next_item_loss=loss(4))
    dense = copy.deepcopy(sparse)
    dense.model.item_embedding.sparse = dense.next_item_loss.sparse_gradients = False
    (found, _), (expected, _) = gradients(sparse), gradients(dense)
    assert found.is_sparse
    torch.testing.assert_close(found.to_dense(), expected, rtol=1e-5, atol=1e-6)


def test_a_loss_that_uses_the_whole_table_is_refused():
    with pytest.raises(ValueError, match="`next_item_loss` must be able to leave sparse gradients"):
        model(True, next_item_loss=FullSoftmax())
    with pytest.raises(ValueError, match=r"`skip_head` must be able .* got SkipUnlikelihood"):
        model(True, SkipUnlikelihood())
    with pytest.raises(ValueError, match=r"`skip_head` must be able .* got SkipUnlikelihood"):
        model(True, CombinedHead([SkipInfoNCE(), SkipUnlikelihood()]))


def test_clipping_by_value_is_refused():
    trainer = quiet_trainer(gradient_clip_val=0.1, gradient_clip_algorithm="value")
    with pytest.raises(ValueError, match="`gradient_clip_algorithm` must be 'norm'"):
        trainer.fit(trainable(), data())


def test_an_optimizer_without_a_table_is_refused():
    with pytest.raises(ValueError, match="`tables` must hold a parameter"):
        SparseAdamW(torch.nn.Linear(1, 1).parameters(), [])


def test_the_closure_is_evaluated_with_gradients():
    one = model(True)
    (optimizer,) = (one.configure_optimizers()["optimizer"],)

    def closure():
        loss = one.losses(one.part_losses(batch()))["loss"]
        loss.backward()
        return loss

    assert optimizer.step(closure).requires_grad
    assert len(one.item_table) == NUM_ITEMS + 1


@pytest.mark.parametrize(
    ("precision", "clip", "fused"),
    [("16-mixed", 1.0, False), ("16-mixed", None, True), ("32-true", 1.0, True)],
)
def test_adamw_is_one_kernel_but_where_clipping_needs_unscaled_gradients(precision, clip, fused):
    one = trainable()
    one._trainer = SimpleNamespace(precision=precision, gradient_clip_val=clip)
    groups = one.configure_optimizers()["optimizer"].param_groups
    assert bool(groups[0].get("fused")) == fused
