"""What the processes of the callbacks' distributed test run; in a file of its own, since they import it."""

import json
import sys
from pathlib import Path

import torch
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from watched_runs import OwnModule, all_callbacks, small_data, watched_trainer


class Still(OwnModule):
    """Does not learn, so that one process and two measure the same."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def validation_step(self, batch, batch_idx):
        # So that a checkpoint can be chosen by it.
        self.log("val/ndcg@20", 0.5, batch_size=len(batch), sync_dist=True)


def watch(devices, folder):
    """Train and test an epoch on so many processes; rank 0 writes what was measured."""
    torch.manual_seed(0)
    folder = Path(folder) / str(devices)
    data = small_data(9, batch_size=3)  # one process gets 5 sessions of validation, the other 4
    trainer = watched_trainer(
        all_callbacks(folder),
        logger=[CSVLogger(folder), WandbLogger(project="skipcl", save_dir=folder)],
        max_epochs=1,
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
    )
    folder.mkdir(parents=True, exist_ok=True)
    trainer.fit(Still(data.num_items), data)
    metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
    trainer.test(trainer.lightning_module, data, verbose=False)
    plot, table = (
        next(one for one in trainer.callbacks if type(one).__name__ == name)
        for name in ("RankPlot", "RecommendationTable")
    )
    if trainer.is_global_zero:
        told = {
            "embeddings": {key: value for key, value in metrics.items() if key.startswith("embeddings/")},
            "counts": {stage: frame.rows() for stage, frame in plot.frames.items()},
            "shown": table.frame.height,
        }
        (folder / "told.json").write_text(json.dumps(told), encoding="utf-8")
        trainer.loggers[1].experiment.finish()
    else:
        assert not plot.frames
        assert table.frame.is_empty()
    if torch.distributed.is_initialized():
        # A process that ends with gloo's threads still running is aborted now and then, under load.
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    watch(int(sys.argv[1]), sys.argv[2])
