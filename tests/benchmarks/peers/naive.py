"""The same model and task with the losses written the plain way.

The logits of all positions are made at once, and each position is paired with a copy of its session's tracks,
[B * L, L, D], as general contrastive losses do it.

An independent reference: it has our SASRec, data and Trainer, and shares no code with our losses.
"""

from typing import Any

import ours
import torch
import torch.nn.functional as F
from common import DROPOUT, HEADS, LAYERS, LEARNING_RATE, MAX_LENGTH, SIZE, TOP_K, Sessions, Task, work
from torch import Tensor, nn

from skipcl_lightning import SkipCLModule
from skipcl_lightning.backbones import SASRec
from skipcl_lightning.batch import SessionBatch

TEMPERATURE, WEIGHT = 0.1, 0.1  # as our head has them by default


class AllLogits(nn.Module):
    """Cross-entropy over [B * L, V] logits, those of padding included."""

    def forward(self, query: Tensor, item_embeddings: Tensor, target: Tensor) -> Tensor:
        logits = query @ item_embeddings[1:].T  # [B, L, V]; padding is no candidate
        return F.cross_entropy(logits.flatten(0, 1), target.flatten() - 1, ignore_index=-1)


class Tiled(nn.Module):
    """Each listened position against its next listened track and all skips of the session."""

    weight = WEIGHT

    def forward(self, query: Tensor, keys: Tensor, batch: SessionBatch) -> Tensor:
        _, length, size = keys.shape
        real = batch.items != 0
        skipped, listened = (batch.feedback < 0) & real, (batch.feedback >= 0) & real
        later = torch.ones(length, length, dtype=torch.bool).triu(1) & listened[:, None, :]
        has_next, following = later.any(dim=2), later.float().argmax(dim=2)
        # A track that was skipped once and listened to elsewhere is no negative.
        again = ((batch.items[:, :, None] == batch.items[:, None, :]) & listened[:, None, :]).any(dim=2)
        negative = skipped & ~again
        positive = keys.gather(1, following[:, :, None].expand(-1, -1, size)).reshape(-1, size)
        copies = keys.repeat_interleave(length, dim=0)  # [B * L, L, D]
        anchors = query.reshape(-1, size)
        own = F.cosine_similarity(anchors, positive, dim=1) / TEMPERATURE
        others = F.cosine_similarity(anchors[:, None, :].expand_as(copies), copies, dim=2) / TEMPERATURE
        others = others.masked_fill(~negative.repeat_interleave(length, dim=0), -torch.inf)
        losses = torch.logsumexp(torch.cat([own[:, None], others], dim=1), dim=1) - own
        counted = (listened & has_next & negative.any(dim=1, keepdim=True)).flatten()
        return losses[counted].mean()


def make_module(task: Task, num_items: int) -> SkipCLModule:
    """As ours, but for the losses."""
    with_skips = task.task == "train_skip"
    return SkipCLModule(
        SASRec(SIZE, max_length=MAX_LENGTH, num_layers=LAYERS, num_heads=HEADS, dropout=DROPOUT),
        Tiled() if with_skips else None,
        num_items=num_items,
        embedding_size=SIZE,
        next_item_loss=AllLogits(),
        target_rule="next_listened" if with_skips else "next",
        feedback_input=with_skips,
        top_k=(TOP_K,),
        learning_rate=LEARNING_RATE,
    )


def run(task: Task, sessions: Sessions) -> dict[str, Any]:
    """Train."""
    return ours.run(task, sessions, make_module)


if __name__ == "__main__":
    work(("lightning", "skipcl-lightning"), run)
