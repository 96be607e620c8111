"""What the processes of the trade-off's distributed test run; in a file of its own, since they import it."""

import json
import sys
from pathlib import Path

import torch
from lightning.pytorch.loggers import CSVLogger
from watched_runs import small_data, small_module, watched_trainer

from skipcl_lightning.callbacks import ChooseTransitionWeight, SkipTradeOffTable
from skipcl_lightning.heads import SkipPrediction

PENALTIES = (0.5, 4.0)


def watch(devices, folder):
    """Train an epoch, without learning, on so many processes; each writes what it measured."""
    folder = Path(folder) / str(devices)
    folder.mkdir(parents=True, exist_ok=True)
    data = small_data(9, batch_size=3)  # one process gets 5 sessions of validation, the other 4
    # So that one process and two measure the same.
    module = small_module(data, SkipPrediction(vector_size=4), learning_rate=1e-12, transition_weight=1.0)
    with torch.no_grad():
        module.skip_head.biases.normal_()
    callback = SkipTradeOffTable(penalties=PENALTIES, num_resamples=20, set_penalty=True)
    trainer = watched_trainer(
        [ChooseTransitionWeight(weights=(0.0, 0.5, 2.0)), callback],
        logger=CSVLogger(folder),
        max_epochs=1,
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
    )
    trainer.fit(module, data)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    told = {"front": callback.front.table.to_dicts(), "penalty": module.skip_penalty, "logged": logged}
    told["transition_weight"] = module.transition_weight
    (folder / f"told_{trainer.global_rank}.json").write_text(json.dumps(told), encoding="utf-8")
    if torch.distributed.is_initialized():
        # A process that ends with gloo's threads still running is aborted now and then, under load.
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    watch(int(sys.argv[1]), sys.argv[2])
