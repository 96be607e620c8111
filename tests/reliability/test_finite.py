"""Finite input gives finite losses, gradients and metrics, over random batches and lengths of vectors."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skipcl_lightning import SkipCLModule
from skipcl_lightning.backbones import BERT4Rec, Caser, ESASRec, GRU4Rec, NextItNet, SASRec
from skipcl_lightning.batch import SessionBatch
from skipcl_lightning.functional import rank_batch
from skipcl_lightning.functional.products import cosine
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
from skipcl_lightning.metrics import session_metrics

NUM_ITEMS = 12
SIZE = 4
HEADS = {
    "contrast": SkipInfoNCE,
    "hardest": lambda: SkipInfoNCE(negatives="batch", num_hardest=2, bank_size=3, learn_temperature=True),
    "all anchors": lambda: SkipInfoNCE(anchors="all", query="item", skip_weights="strength"),
    "unlikelihood": SkipUnlikelihood,
    "sampled unlikelihood": lambda: SkipUnlikelihood(num_samples=3),
    "softmax": lambda: SkipSoftmax(num_samples=3),
    "margin": SkipMargin,
    "prediction": SkipPrediction,
    "opposing": lambda: OpposingSequences(SIZE),
    "two": lambda: CombinedHead([SkipInfoNCE(), SkipMargin()]),
}
LOSSES = {
    "full": FullSoftmax,
    "sampled": lambda: SampledSoftmax(3),
    "gbce": lambda: GBCE(3),
    "bpr-max": lambda: BPRMax(3),
}
BACKBONES = (
    lambda: SASRec(SIZE, max_length=6),
    lambda: ESASRec(SIZE, max_length=6),
    lambda: BERT4Rec(SIZE, max_length=6),
    lambda: GRU4Rec(SIZE),
    lambda: NextItNet(SIZE),
    lambda: Caser(SIZE),
)


@st.composite
def batches(draw, with_target=False):
    """Sessions of any length, without skips or of skips alone, with dislikes, and with repeats."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    sessions, length = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    items = torch.randint(1, NUM_ITEMS + 1, (sessions, length), generator=generator)
    lengths = torch.randint(1, length + 1, (sessions,), generator=generator)
    items[torch.arange(length) >= lengths[:, None]] = 0
    strength = torch.rand(sessions, length, generator=generator) * draw(st.sampled_from([1.0, 1e-30, 0.5]))
    skips = torch.rand(sessions, length, generator=generator) < draw(st.sampled_from([0.0, 0.5, 1.0]))
    more = {}
    if draw(st.booleans()):
        explicit = torch.randint(-1, 2, (sessions, length), generator=generator).float()
        more["explicit_feedback"] = explicit * (items > 0)
    if with_target:
        more["target"] = torch.randint(1, NUM_ITEMS + 1, (sessions,), generator=generator)
        more["target_feedback"] = torch.randint(0, 2, (sessions,), generator=generator) * 2.0 - 1
    return SessionBatch(items, torch.where(skips, -strength, strength) * (items > 0), **more)


@st.composite
def vectors(draw, *shapes, least, most):
    """Tensors of random directions and of lengths 10^least to 10^most, zero and equal vectors among them."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    made = []
    for shape in shapes:
        values = torch.randn(*shape, SIZE, generator=generator)
        values = values * 10.0 ** draw(st.integers(least, most))
        zero = torch.rand(shape, generator=generator) < draw(st.sampled_from([0.0, 0.0, 0.3, 1.0]))
        values = values.masked_fill(zero[..., None], 0)
        made.append((values[:1].expand_as(values) if draw(st.booleans()) else values).clone())
    return [one.requires_grad_() for one in made]


def assert_finite(loss, tensors):
    assert loss.isfinite().all()
    if loss.requires_grad:
        gradients = torch.autograd.grad(loss.sum(), tensors, allow_unused=True)
        assert all(one is None or one.isfinite().all() for one in gradients)


@st.composite
def loss_cases(draw):
    batch = draw(batches())
    # Products of these are finite in float32, and so are the squares of scores that `BPRMax` has.
    tensors = draw(vectors(batch.items.shape, batch.items.shape, (NUM_ITEMS + 1,), least=-30, most=8))
    return draw(st.sampled_from([*HEADS, *LOSSES])), batch, *tensors


def check_loss(case):
    name, batch, query, keys, table = case
    torch.manual_seed(0)
    if name in LOSSES:
        loss = LOSSES[name]()(query, table, batch.items)
    else:
        head = HEADS[name]()
        if hasattr(head, "materialise"):
            head.materialise(table.detach())
        takes_table = getattr(head, "uses_item_table", False)
        loss = head(query, keys, batch, *((table,) if takes_table else ()))
    assert_finite(loss, (query, keys, table))


@st.composite
def cosine_cases(draw):
    shape = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    return draw(vectors(shape, shape, least=-30, most=30)), draw(st.sampled_from([0.01, 0.1, 1.0]))


def check_cosine(case):
    tensors, temperature = case
    found = cosine(*tensors, temperature)
    assert_finite(found, tensors)
    assert (found.abs() * temperature <= 1 + 1e-5).all()


@st.composite
def metric_cases(draw):
    batch = draw(batches(with_target=True))
    ties = draw(st.sampled_from(["pessimistic", "optimistic", "mean"]))
    return ties, batch, draw(vectors((len(batch),), (NUM_ITEMS + 1,), least=-15, most=12))


def check_metrics(case):
    ties, batch, (query, table) = case
    ranked = rank_batch(query.detach(), table.detach(), batch, ties=ties)
    metrics = session_metrics(NUM_ITEMS, top_k=[1, 5], ties=ties)
    metrics.update(**ranked._asdict())
    found = metrics.compute()
    listened, skipped = found["num_listened"], found["num_skipped"]
    assert listened + skipped == len(batch)
    for name, value in found.items():
        missing = (
            "/" in name  # repeats, or none
            or name == "pairwise_skip_accuracy"
            or (name.startswith("skip_") and not skipped)
            or (name.startswith("delta_") and not (skipped and listened))
            or (name.startswith(("hit_", "mrr", "ndcg")) and not listened)
        )
        assert missing or value.isfinite(), name


@st.composite
def module_cases(draw):
    return draw(st.sampled_from(BACKBONES)), draw(st.sampled_from(list(LOSSES))), draw(batches())


@functools.cache
def build_module(backbone):
    torch.manual_seed(0)
    return SkipCLModule(backbone(), SkipInfoNCE(), num_items=NUM_ITEMS)


def check_module(case):
    backbone, loss, batch = case
    torch.manual_seed(0)
    module = build_module(backbone)
    module.next_item_loss = LOSSES[loss]()
    losses = module.losses(module.part_losses(batch))
    assert_finite(losses["loss"], list(module.parameters()))


CHECKS = {
    "losses": (loss_cases, check_loss, 60),
    "cosines": (cosine_cases, check_cosine, 100),
    "metrics": (metric_cases, check_metrics, 20),
    "modules": (module_cases, check_module, 20),
}


@pytest.mark.parametrize("name", CHECKS)
def test_finite_input_gives_finite_numbers(name):
    cases, check, examples = CHECKS[name]
    settings(max_examples=examples)(given(cases())(check))()


@pytest.mark.reliability
@pytest.mark.parametrize("name", CHECKS)
def test_finite_input_gives_finite_numbers_in_thousands_of_cases(name, record):
    cases, check, _ = CHECKS[name]
    settings(max_examples=2500)(given(cases())(check))()
    record(f"2,500 examples of {name}: no NaN from finite input")
