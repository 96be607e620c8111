"""What the processes of the test across ranks run; in a file of its own, since they import it."""

import gc
import json
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from skipcl_lightning.backbones import GRU4Rec
from skipcl_lightning.batch import SessionBatch
from skipcl_lightning.heads import SkipInfoNCE

NUM_ITEMS = 12


class Model(torch.nn.Module):
    """A table, a backbone and a head whose negatives all processes share."""

    def __init__(self, dtype):
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(NUM_ITEMS + 1, 6, padding_idx=0)
        self.backbone = GRU4Rec(6)
        self.head = SkipInfoNCE(negatives="batch", gather_ranks=True, learn_temperature=True)
        self.to(dtype)

    def forward(self, batch):
        keys = self.table(batch.items)
        return self.head(self.backbone(keys, batch.valid_mask), keys, batch)


def sessions():
    """Seven sessions; the last ones are longer, and skip more."""
    generator = torch.Generator().manual_seed(1)
    items = torch.randint(1, NUM_ITEMS + 1, (7, 9), generator=generator)
    lengths = torch.tensor([4, 3, 5, 9, 8, 9, 7])
    items[torch.arange(9) >= lengths[:, None]] = 0
    feedback = torch.where(torch.rand(7, 9, generator=generator) < 0.5, -1.0, 1.0) * (items > 0)
    return SessionBatch(items, feedback)


def shard(rank, ranks):
    """Uneven in sessions, in length and in anchors."""
    whole = sessions()
    if ranks == 1:
        return whole
    rows = [slice(0, 2), slice(2, 7)][rank]
    part = whole[rows]
    longest = int(part.lengths.max())
    return part.replace(items=part.items[:, :longest], feedback=part.feedback[:, :longest])


def compute(rank, ranks, folder):
    """The loss and all gradients, as DDP has them after the backward pass, and a bank."""
    if ranks > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=ranks
        )
    found = train(rank, ranks) | {"bank": fill_bank(rank, ranks)}
    (Path(folder) / f"head_{ranks}_{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    if ranks > 1:
        # A process that ends with gloo's threads still running is aborted now and then, under load. DDP is
        # part of a reference cycle and holds the process group, whose threads run until it is collected.
        gc.collect()
        dist.barrier()
        dist.destroy_process_group()


def train(rank, ranks):
    model = Model(torch.float64)
    wrapped = DistributedDataParallel(model) if ranks > 1 else model
    loss = wrapped(shard(rank, ranks))
    loss.backward()
    mean = loss.detach().clone()
    if ranks > 1:
        dist.all_reduce(mean)
        mean /= ranks
    gradients = {name: parameter.grad.tolist() for name, parameter in model.named_parameters()}
    return {"loss": float(mean), "gradients": gradients}


def fill_bank(rank, ranks):
    """A memory bank after two steps under DDP, which sends the buffers of process 0 to all before each."""
    head = SkipInfoNCE(bank_size=60, negatives="batch", learn_temperature=True)
    wrapped = DistributedDataParallel(head) if ranks > 1 else head
    part, table = shard(rank, ranks), torch.ones(NUM_ITEMS + 1, 2)
    for _ in range(2):
        wrapped(table[part.items], table[part.items], part, table).backward()
    return head.bank.tolist()
