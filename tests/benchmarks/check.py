"""Whether a change made anything slower: ratios to plain torch, beside those on record.

python tests/benchmarks/check.py                     # two minutes on one core; exit status 1 if slower
python tests/benchmarks/check.py --record true       # after a change that is meant: rewrites check.json

Each part is measured in turns with the same work written in plain torch, on one thread and in processor time,
so other programs disturb both alike. A part is slower if its ratio to plain torch is above the recorded one
by more than the noise: 10 %, or the half width of the middle half of the rounds, now and on record, if more.
Not for CI, whose machines differ: record on the machine that is compared.
"""

import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from torch import Tensor, nn

from skipcl_lightning import SkipCLModule
from skipcl_lightning.backbones import SASRec
from skipcl_lightning.batch import SessionBatch
from skipcl_lightning.functional import rank_batch
from skipcl_lightning.heads import FullSoftmax, SampledSoftmax, SkipInfoNCE

RECORD = Path(__file__).with_suffix(".json")
SESSIONS, LENGTH, ITEMS, SIZE, NEGATIVES = 256, 20, 10_000, 64, 1000
LEAST_NOISE = 0.1


class PlainModel(nn.Module):
    """SASRec of the same size from torch's own layers; it stays as it is, so that ratios can be compared."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(ITEMS + 1, SIZE)
        self.positions = nn.Parameter(torch.zeros(LENGTH, SIZE))
        layer = nn.TransformerEncoderLayer(SIZE, 2, SIZE, dropout=0.2, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(LENGTH))

    def forward(self, items: Tensor) -> Tensor:
        """[B, L] to [B, L, D]."""
        output: Tensor = self.blocks(self.items(items) + self.positions, mask=self.mask, is_causal=True)
        return output


def make_batch() -> SessionBatch:
    """Sessions of 5 to 20 tracks, two of five skipped, with a target each."""
    lengths = torch.randint(5, LENGTH + 1, (SESSIONS, 1))
    items = torch.randint(1, ITEMS + 1, (SESSIONS, LENGTH)) * (torch.arange(LENGTH) < lengths)
    feedback = torch.where(torch.rand(SESSIONS, LENGTH) < 0.4, -1.0, 1.0) * (items > 0)
    target = torch.randint(1, ITEMS + 1, (SESSIONS,))
    return SessionBatch(items, feedback, target=target, target_feedback=torch.ones(SESSIONS))


def our_step(batch: SessionBatch, **settings: Any) -> Callable[[], object]:
    """A training step of this library."""
    backbone = SASRec(SIZE, max_length=LENGTH, num_layers=2, num_heads=2, dropout=0.2)
    head = settings.pop("skip_head", None)
    module = SkipCLModule(backbone, head, num_items=ITEMS, **settings).train()
    optimizer = module.configure_optimizers()["optimizer"]

    def step() -> None:
        optimizer.zero_grad()
        module.losses(module.part_losses(batch))["loss"].backward()
        optimizer.step()

    return step


def plain_step(batch: SessionBatch, negatives: int | None) -> Callable[[], object]:
    """The same step with all logits at once; None for those of the whole catalogue."""
    model = PlainModel().train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    target = F.pad(batch.items[:, 1:], (0, 1)).flatten()
    places = target.nonzero().squeeze(1)

    def step() -> None:
        optimizer.zero_grad()
        query, wanted = model(batch.items).flatten(0, 1)[places], target[places]
        if negatives is None:
            loss = F.cross_entropy(query @ model.items.weight[1:].T, wanted - 1)
        else:
            drawn = torch.randint(1, ITEMS + 1, (negatives,))
            own = (query * model.items(wanted)).sum(dim=1, keepdim=True)
            logits = torch.cat([own, query @ model.items(drawn).T], dim=1)
            loss = F.cross_entropy(logits, torch.zeros_like(wanted))
        loss.backward()
        optimizer.step()

    return step


def our_evaluation(batch: SessionBatch) -> Callable[[], object]:
    """The metrics of a batch with this library, which also ranks exactly and counts what is skipped."""
    module = SkipCLModule(SASRec(SIZE, max_length=LENGTH, num_layers=2, num_heads=2), num_items=ITEMS).eval()

    @torch.inference_mode()
    def evaluate() -> None:
        ranked = rank_batch(module.session_query(batch), module.item_table, batch)
        module.test_metrics.update(**ranked._asdict())

    return evaluate


def plain_evaluation(batch: SessionBatch) -> Callable[[], object]:
    """HitRate@10 and NDCG@10 from the list of the first 10."""
    model = PlainModel().eval()
    rows, last = torch.arange(SESSIONS), batch.lengths - 1
    assert batch.target is not None
    target = batch.target

    @torch.inference_mode()
    def evaluate() -> Tensor:
        query = model(batch.items)[rows, last]
        hits = (query @ model.items.weight.T).topk(10, dim=1).indices == target[:, None]
        return hits.any(dim=1).float().mean() + (hits / torch.arange(2, 12).log2()).sum(dim=1).mean()

    return evaluate


def check(rounds: int = 31, record: bool = False) -> None:
    """Measure, compare with the record, and print Markdown.

    Args:
        rounds: How often each part is measured, in turns.
        record: Whether to write the ratios as the new record instead.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    batch = make_batch()
    training = batch.replace(target=None, target_feedback=None)
    sampled, full = plain_step(training, NEGATIVES), plain_step(training, None)
    ways = {
        "sampled softmax, a step": (our_step(training, next_item_loss=SampledSoftmax(NEGATIVES)), sampled),
        "sampled softmax and skip head, a step": (
            our_step(training, next_item_loss=SampledSoftmax(NEGATIVES), skip_head=SkipInfoNCE()),
            sampled,
        ),
        "full softmax, a step": (our_step(training, next_item_loss=FullSoftmax()), full),
        "evaluation of a batch": (our_evaluation(batch), plain_evaluation(batch)),
    }
    found = {name: measure(*pair, rounds) for name, pair in ways.items()}
    if record:
        RECORD.write_text(json.dumps(describe() | {"ratios": found}, indent=2) + "\n", encoding="utf-8")
    known = json.loads(RECORD.read_text(encoding="utf-8"))
    print(f"On record: {known['date']}, commit {known['commit']}, {known['machine']}. Now: {describe()}\n")
    print("| part | of plain torch | on record | noise | |\n|---|---:|---:|---:|---|")
    slower = []
    for name, now in found.items():
        before = known["ratios"][name]
        noise = max(LEAST_NOISE, *(one["half_width"] / one["median"] for one in (now, before)))
        change = now["median"] / before["median"] - 1
        if change > noise:
            slower.append(name)
        verdict = f"{change:+.0%}" + (", slower" if change > noise else "")
        print(f"| {name} | {now['median']:.2f} | {before['median']:.2f} | {noise:.0%} | {verdict} |")
    if slower:
        sys.exit(f"\nSlower than on record by more than the noise: {'; '.join(slower)}.")


def measure(ours: Callable[[], object], plain: Callable[[], object], rounds: int) -> dict[str, float]:
    """The median of the rounds' ratios, and half the distance of their quartiles."""
    ratios = []
    for number in range(rounds + 2):
        seconds = []
        for way in (ours, plain):
            start = time.process_time()
            way()
            seconds.append(time.process_time() - start)
        if number > 1:  # after two for warming
            ratios.append(seconds[0] / seconds[1])
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {"median": round(middle, 3), "half_width": round((high - low) / 2, 3)}


def describe() -> dict[str, str]:
    """When, of which state, and where."""
    command = ["git", "-C", str(RECORD.parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()  # noqa: S603
    machine = f"{platform.machine()}, torch {torch.__version__}"
    return {"date": date.today().isoformat(), "commit": commit, "machine": machine}


if __name__ == "__main__":
    auto_cli(check)
