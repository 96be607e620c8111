"""A training step as a compiler and an accelerator see it: one graph, and nothing to wait for."""

import copy

import pytest
import torch
from lightning.pytorch import seed_everything
from small_models import module, quiet_trainer

from skipcl_lightning import SkipCLModule
from skipcl_lightning.backbones import BERT4Rec, ESASRec, NextItNet, SASRec
from skipcl_lightning.batch import SessionBatch
from skipcl_lightning.callbacks import SkipLossWarmup
from skipcl_lightning.data import SessionDataModule, simulate_sessions
from skipcl_lightning.heads import (
    GBCE,
    BPRMax,
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

HEADS = {
    "none": lambda: None,
    "contrast": SkipInfoNCE,
    "margin": SkipMargin,
    "prediction": SkipPrediction,
    "softmax": SkipSoftmax,
    "unlikelihood": SkipUnlikelihood,
    "sampled unlikelihood": lambda: SkipUnlikelihood(num_samples=4),
    "opposing": lambda: OpposingSequences(8),
    "two": lambda: CombinedHead([SkipInfoNCE(), SkipMargin()]),
}
LOSSES = [FullSoftmax, lambda: SampledSoftmax(4), lambda: GBCE(4), lambda: BPRMax(4)]
# Beside a head or none; the contrast stands beside a full softmax.
LOSS_BESIDE = {"none": LOSSES[1], "softmax": LOSSES[2], "prediction": LOSSES[3]}


def sessions(count, length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    real = torch.arange(length) < torch.randint(3, length + 1, (count, 1), generator=generator)
    items = torch.randint(1, 10, (count, length), generator=generator) * real
    skips = torch.rand(count, length, generator=generator) < 0.4
    return SessionBatch(items, torch.where(skips, -1.0, 1.0) * real, num_tracks=int(real.sum()))


def model(backbone=SASRec, head=None, loss=None, **settings):
    # One layer: a compiler reads the second as it reads the first.
    size = {"dilations": (1,)} if backbone is NextItNet else {"max_length": 12, "num_layers": 1}
    part = backbone(8, dropout=0.0, **size)
    return module(part, head, next_item_loss=loss, **settings)


def steps(one, loss_of):
    torch.manual_seed(3)
    losses = []
    for number, (count, length) in enumerate([(8, 9), (5, 11), (7, 6)]):
        parts = loss_of(sessions(count, length, number)).parts
        total = torch.stack(list(parts.values())).sum()
        total.backward()
        losses.append(total.detach())
    return torch.stack(losses), {name: p.grad for name, p in one.named_parameters()}


@pytest.fixture
def one_graph(monkeypatch):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield torch._dynamo.utils.counters
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("backbone", "head"),
    # torch does not compile the recurrent network of opposing sequences.
    [(SASRec, "contrast"), (SASRec, "prediction")]
    + [
        pytest.param(*case, marks=pytest.mark.slow)
        for case in [(BERT4Rec, "contrast"), (NextItNet, "contrast"), (ESASRec, "contrast")]
        + [
            (SASRec, head)
            for head in ("none", "softmax", "margin", "unlikelihood", "sampled unlikelihood", "two")
        ]
    ],
)
def test_batches_of_any_size_are_one_graph_with_the_plain_losses(backbone, head, one_graph):
    plain = model(backbone, HEADS[head](), LOSS_BESIDE.get(head, FullSoftmax)())
    compiled = copy.deepcopy(plain)
    if backbone is BERT4Rec:
        for one in (plain, compiled):
            one.mask_probability, one.last_mask_probability = 1.0, 0.0  # nothing to draw
    expected, gradients = steps(plain, plain.part_losses)
    # What makes backward graphs takes three times as long, so that one case must do for it.
    backend = "aot_eager" if head == "two" else "eager"
    found, others = steps(
        compiled, torch.compile(compiled.part_losses, backend=backend, fullgraph=True, dynamic=True)
    )
    assert one_graph["stats"]["unique_graphs"] == 1
    torch.testing.assert_close(found, expected)
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("backbone", [SASRec, BERT4Rec])
def test_batches_of_one_size_are_one_graph_however_many_tracks_they_hold(backbone, one_graph):
    one = model(backbone, SkipInfoNCE())
    compiled = torch.compile(one.part_losses, backend="eager", fullgraph=True, dynamic=False)
    counts = set()
    for seed in range(3):
        batch = sessions(8, 15, seed)  # longer than the backbone takes
        counts.add(batch.num_tracks)
        compiled(batch)
    assert len(counts) == 3
    assert one_graph["stats"]["unique_graphs"] == 1


@pytest.mark.slow
def test_a_warm_up_compiles_nothing_anew_in_a_run(one_graph):
    seed_everything(0, verbose=False)
    data = SessionDataModule(simulate_sessions(80, num_items=30, num_moods=3), batch_size=32, max_length=20)
    backbone = SASRec(8, max_length=20, num_layers=1)
    one = SkipCLModule(backbone, SkipInfoNCE(), num_items=data.num_items)
    one.part_losses = torch.compile(one.part_losses, backend="eager", fullgraph=True, dynamic=True)
    trainer = quiet_trainer(max_epochs=2, limit_val_batches=0, callbacks=[SkipLossWarmup(steps=4)])
    trainer.fit(one, data)
    assert one_graph["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("weighted", [False, True])
def test_what_an_accelerator_computes_at_all_places_is_the_loss_at_those_with_a_target(loss, weighted):
    """On the meta device the places without a target cannot be left out; here the same code is compiled."""
    head = loss()
    query = torch.randn(3, 5, 4, dtype=torch.float64)
    table = torch.randn(9, 4, dtype=torch.float64)
    target = torch.tensor([[3, 0, 4, 1, 0], [0, 0, 0, 0, 0], [8, 8, 1, 0, 2]])
    query[target == 0] = torch.nan
    weight = (torch.rand(3, 5, dtype=torch.float64) + 0.5,) if weighted else ()
    torch.manual_seed(0)
    expected = head(query, table, target, *weight)
    torch.manual_seed(0)
    found = torch.compile(head, backend="eager", fullgraph=True)(query, table, target, *weight)
    torch.testing.assert_close(found, expected)


# The sum of a loss and a head: each head stands beside one loss, and each loss beside some head.
@pytest.mark.parametrize(("head", "loss"), [*zip(HEADS, LOSSES * 3, strict=False)])
@pytest.mark.parametrize("backbone", [SASRec, BERT4Rec])
def test_a_step_asks_the_device_for_nothing(head, backbone, loss):
    """Tensors on the meta device have no values: whoever asks for one, or for how many, is told so."""
    one = model(backbone, HEADS[head](), loss()).to("meta")
    losses = one.losses(one.part_losses(sessions(4, 9).to("meta")))
    losses["loss"].backward()
    assert losses["loss"].device.type == "meta"
    assert one.model.item_embedding.weight.grad.shape == (10, 8)
