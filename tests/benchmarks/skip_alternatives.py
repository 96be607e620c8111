"""Other ways than skip prediction to rank skipped items lower, on the validation set of real sessions.

python tests/benchmarks/skip_alternatives.py sessions.parquet      # about 40 minutes on one core

The columns of the log, the split and the training are those of transitions.py. Prints a Markdown row for each
model: SASRec with another input or loss, beside the plain model and skip prediction at several penalties.
"""

import copy
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor, nn
from transitions import read

from skipcl_lightning import SessionBatch, SkipCLModule, evaluate
from skipcl_lightning.backbones import SASRec
from skipcl_lightning.data import SessionDataModule
from skipcl_lightning.heads import (
    CombinedHead,
    SampledSoftmax,
    SkipMargin,
    SkipPrediction,
    SkipSoftmax,
    SkipUnlikelihood,
)

METRICS = ("hit_rate@1", "hit_rate@10", "ndcg@10", "skip_hit_rate@10", "skip_mrr@10")
LENGTH = 50


class RunFeatures(SkipCLModule):
    """Three additional inputs: the share skipped so far, the plays since the last listen, their product."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.features = nn.Linear(3, self.model.embedding_size, bias=False)
        nn.init.zeros_(self.features.weight)

    def embed(self, batch: SessionBatch, keys: Tensor) -> Tensor:
        """Add the features of each position to the items and their feedback."""
        skipped, listened = batch.skip_mask, batch.listened_mask
        place = torch.arange(1, skipped.shape[1] + 1, device=skipped.device)
        share = skipped.cumsum(1) / place
        last = torch.where(listened, place, 0).cummax(1).values
        since = (place - last).log1p()
        return super().embed(batch, keys) + self.features(torch.stack([share, since, share * since], dim=2))


class ActionTokens(nn.Module):
    """A backbone that reads each item and then, as a token of its own, the feedback on it."""

    causal = True

    def __init__(self, backbone: nn.Module, size: int, max_length: int) -> None:
        super().__init__()
        self.backbone, self.embedding_size, self.max_length = backbone, size, max_length
        self.actions: Tensor | None = None

    def forward(self, x: Tensor, valid_mask: Tensor) -> Tensor:
        """Return the output at the feedback tokens, [B, L, D]."""
        actions = torch.zeros_like(x) if self.actions is None else self.actions[:, : x.shape[1]]
        tokens = torch.stack([x, actions], dim=2).flatten(1, 2)
        output: Tensor = self.backbone(tokens, valid_mask.repeat_interleave(2, dim=1))
        return output[:, 1::2]


class WithActionTokens(SkipCLModule):
    """The feedback as tokens of their own instead of an addition to the items."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        nn.init.normal_(self.model.feedback_embedding.weight, std=self.model.embedding_size**-0.5)

    def embed(self, batch: SessionBatch, keys: Tensor) -> Tensor:
        """Return the items, and hand their feedback to the backbone."""
        self.model.backbone.actions = super().embed(batch, keys) - keys
        return keys


class Preference(SkipCLModule):
    """The loss of direct preference optimisation (Rafailov et al., NeurIPS 2023, arXiv 2305.18290).

    At each position, the next listened item is preferred to the next skipped one, relative to a frozen
    reference. The softmax's normalisers cancel.
    """

    reference: list[SkipCLModule]
    strength = 1.0
    factor = 0.3

    def training_step(self, batch: SessionBatch, batch_idx: int) -> Tensor:
        """Return the next-item loss and the loss of the pairs."""
        states = self.part_losses(batch)
        winner, loser = following(batch, batch.listened_mask), following(batch, batch.skip_mask)
        real = (winner > 0) & (loser > 0) & batch.valid_mask
        with torch.no_grad():
            reference = self.reference[0]
            before = reference.model.encode(batch, reference.model.embed_items(batch.items))
            expected = gap(before, reference.model.item_table, winner, loser)
        found = gap(states.query, self.model.item_table, winner, loser)
        pairs = F.softplus(self.strength * (expected - found))[real].mean()
        return self.losses(states)["next_item_loss"] + self.factor * pairs.nan_to_num()


def following(batch: SessionBatch, wanted: Tensor) -> Tensor:
    """Return the next item after each position that is wanted, [B, L]; 0 for none."""
    length = wanted.shape[1]
    place = torch.where(wanted, torch.arange(length), length)
    nearest = F.pad(place, (0, 1), value=length).flip(1).cummin(1).values.flip(1)[:, 1:]
    return F.pad(batch.items, (0, 1)).gather(1, nearest)


def gap(query: Tensor, table: Tensor, winner: Tensor, loser: Tensor) -> Tensor:
    """Return the difference of two items' scores, [B, L]."""
    return (query * (F.embedding(winner, table) - F.embedding(loser, table))).sum(-1)


def skip_alternatives(sessions: Path, seed: int = 0, epochs: int = 8, only: tuple[str, ...] = ()) -> None:
    """Print a row for each model.

    Args:
        sessions: The Parquet file.
        seed: The seed of each training.
        epochs: The epochs of each.
        only: The models to train; none for all.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    data = read(sessions)
    print(f"| model | {' | '.join(METRICS)} |\n|---|{'---:|' * len(METRICS)}", flush=True)

    trained = None
    for name, make in choose_models(data, only).items():
        seed_everything(seed, verbose=False)
        module = train(make(), data, epochs)
        if name == "feedback input":
            trained = module
        show(name, module, data)
        for penalty in (0.25, 0.5, 1.0, 2.0) if module.predicts_skips else ():
            module.skip_penalty = penalty
            show(f"{name}, penalty {penalty:g}", module, data)
    if trained is not None:
        for strength in (0.0, 0.1, 1.0):  # 0: two more epochs alone
            seed_everything(seed, verbose=False)
            module = build(data, Preference, learning_rate=0.001)
            module.load_state_dict(trained.state_dict())
            module.reference, module.strength = [copy.deepcopy(trained).eval()], strength
            show(
                f"feedback input, 2 epochs of preferences, strength {strength:g}",
                train(module, data, 2),
                data,
            )


def choose_models(data: SessionDataModule, only: tuple[str, ...]) -> dict[str, Callable[[], SkipCLModule]]:
    """Return what makes each model, by name."""
    rankers: dict[str, Callable[..., nn.Module]] = {
        "SkipMargin": SkipMargin,
        "SkipSoftmax": SkipSoftmax,
        "SkipUnlikelihood": partial(SkipUnlikelihood, num_samples=1000),
    }
    models: dict[str, Callable[[], SkipCLModule]] = {
        "plain": partial(build, data, feedback_input=False),
        "feedback input": partial(build, data),
        "feedback input, share skipped and time since the last listen": partial(build, data, RunFeatures),
        "feedback as tokens": partial(build, data, WithActionTokens),
        "feedback input, SkipPrediction": partial(build, data, head=SkipPrediction()),
    }
    for name, head in rankers.items():
        for weight in (0.1, 0.3):
            # The order within a run of skips is not known in this log.
            made = head(weight=weight, negatives="session")
            models[f"feedback input, {name}, weight {weight:g}"] = partial(build, data, head=made)
    both = CombinedHead([SkipMargin(weight=0.3, negatives="session"), SkipPrediction()])
    models["feedback input, SkipMargin 0.3 and SkipPrediction"] = partial(build, data, head=both)
    return {name: make for name, make in models.items() if not only or name in only}


def build(
    data: SessionDataModule,
    kind: type[SkipCLModule] = SkipCLModule,
    head: nn.Module | None = None,
    *,
    learning_rate: float = 0.003,
    feedback_input: bool = True,
) -> SkipCLModule:
    """Return an untrained model."""
    with_tokens = kind is WithActionTokens
    return kind(
        ActionTokens(sasrec(2 * LENGTH), 64, LENGTH) if with_tokens else sasrec(LENGTH),
        head,
        num_items=data.num_items,
        next_item_loss=SampledSoftmax(1000),
        learning_rate=learning_rate,
        feedback_input=feedback_input,
    )


def sasrec(max_length: int) -> SASRec:
    """Return the backbone of transitions.py."""
    return SASRec(64, max_length=max_length, num_layers=1, dropout=0.1)


def train(module: SkipCLModule, data: SessionDataModule, epochs: int) -> SkipCLModule:
    """Train a module without validation."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    Trainer(max_epochs=epochs, limit_val_batches=0, enable_model_summary=False, **quiet).fit(module, data)
    return module


def show(name: str, module: SkipCLModule, data: SessionDataModule) -> None:
    """Print one row."""
    report = evaluate(module, data, split="validation", num_resamples=0, compare_markov=False)
    print(f"| {name} | {' | '.join(f'{report[metric]:.4f}' for metric in METRICS)} |", flush=True)


if __name__ == "__main__":
    auto_cli(skip_alternatives, as_positional=True)
