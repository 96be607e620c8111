"""How initialisation, optimizer and dropout change the validation curve, one line for each run.

python tests/benchmarks/learning_curves.py sessions.parquet SASRec --settings "['',initial_std=0.02]"
python tests/benchmarks/learning_curves.py ml-100k/u.data NextItNet --settings "[dropout=0]" --epochs 20
python tests/benchmarks/learning_curves.py ml-100k/u.data BERT --settings "[learning_rate=0.001]"

The Parquet file is that of transitions.py. Prints the validation metrics after a few epochs, the training
loss at the end, and the seconds. `BERT` and `GPT-2` are Hugging Face's, with the settings of
`examples/reproduce.py`.
"""

import logging
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import nn
from transitions import make_backbone, read

from skipcl_lightning import SkipCLModule, evaluate
from skipcl_lightning.backbones import BACKBONES
from skipcl_lightning.data import SessionDataModule
from skipcl_lightning.heads import FullSoftmax, SampledSoftmax

METRICS = ("hit_rate@1", "hit_rate@10", "ndcg@10")
PARTS = ("dropout", "embedding_dropout", "hidden_dropout", "num_layers")  # of the backbone
MASKS = ("mask_probability", "last_mask_probability")  # of a bidirectional backbone
SETTINGS = (
    "initial_std",  # of the items
    "linear_std",  # of all linear maps
    "position_std",
    "scale",  # of the items at the input; the square root of D by default
    "post_norm",
    "cosine",  # falls to 0 at the last epoch
    "beta2",
    "warmup_steps",
    "learning_rate",
    "weight_decay",  # of all matrices but the item table
    "bucket_batches",
    *MASKS,
    *PARTS,
)


class Curve(Callback):
    """Evaluates the validation set after some epochs."""

    def __init__(self, data: SessionDataModule, epochs: int) -> None:
        self.data = data
        self.epochs = (epochs // 4, epochs // 2, epochs)
        self.values: dict[int, list[float]] = {}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate if it is one of these epochs."""
        epoch = trainer.current_epoch + 1
        if epoch in self.epochs:
            report = evaluate(pl_module, self.data, split="validation", num_resamples=0, compare_markov=False)
            self.values[epoch] = [round(report[metric], 4) for metric in METRICS]
            pl_module.train()


def learning_curves(
    log: Path, backbone: str, settings: tuple[str, ...] = ("",), epochs: int = 8, seeds: int = 1
) -> None:
    """Train a backbone with one setting changed, and print a line for each seed and setting.

    Args:
        log: The Parquet file of transitions.py, or MovieLens-100K's `u.data`.
        backbone: The class of a built-in backbone, `BERT` or `GPT-2`.
        settings: Each `name=value` of one of SETTINGS, or empty for no change.
        epochs: The epochs.
        seeds: The number of trainings with each.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    data = read(log) if log.suffix == ".parquet" else read_ratings(log)
    for setting in filter(None, settings):
        if setting.partition("=")[0] not in SETTINGS:
            raise SystemExit(f"`settings` must begin with one of {', '.join(SETTINGS)}, got {setting!r}.")
    for seed, setting in product(range(seeds), settings):
        name, _, value = setting.partition("=")
        seed_everything(seed, verbose=False)
        started = time.time()
        data.bucket_batches = int(value) if name == "bucket_batches" else 0
        module = build(log, backbone, data, {name: float(value)} if setting else {})
        curve = Curve(data, epochs)
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = Trainer(
            max_epochs=epochs, limit_val_batches=0, enable_model_summary=False, callbacks=[curve], **quiet
        )
        trainer.fit(module, data)
        loss = float(trainer.callback_metrics["train/loss"])
        print(backbone, setting, seed, curve.values, f"{loss:.3f}", round(time.time() - started), flush=True)


def read_ratings(log: Path) -> SessionDataModule:
    """Return the data of `examples/reproduce.py`."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
    from reproduce import make_data

    data: SessionDataModule = make_data("ml-100k", log, 64)
    return data


def build(log: Path, backbone: str, data: SessionDataModule, setting: dict[str, float]) -> SkipCLModule:
    """Return an untrained module of D 64."""
    sessions = log.suffix == ".parquet"
    parts: dict[str, Any] = {name: setting[name] for name in PARTS if name in setting}
    if "post_norm" in setting:
        parts["norm"] = "post"
    part = make_part(backbone, parts, max_length=data.max_length) if parts or not sessions else None
    module = SkipCLModule(
        make_backbone(backbone) if part is None else part,
        num_items=data.num_items,
        next_item_loss=SampledSoftmax(1000) if sessions else FullSoftmax(),
        feedback_input=sessions,
        exclude_seen=not sessions,
        learning_rate=setting.get("learning_rate", 0.003),
        weight_decay=setting.get("weight_decay", 0.0),
        warmup_steps=int(setting.get("warmup_steps", 0)),
        schedule="cosine" if "cosine" in setting else "constant",
        **{name: setting[name] for name in MASKS if name in setting},
    )
    initialise(module, setting)
    if "beta2" in setting:
        make = module.configure_optimizers

        def configure() -> Any:
            made = make()
            for group in made["optimizer"].param_groups:
                group["betas"] = (0.9, setting["beta2"])
            return made

        module.configure_optimizers = configure  # type: ignore[method-assign]
    return module


def initialise(module: SkipCLModule, setting: dict[str, float]) -> None:
    """Draw weights with another standard deviation, or set the scale of the input."""
    if "initial_std" in setting:
        module.model.item_embedding.weight.data[1:].normal_(std=setting["initial_std"])
    if "linear_std" in setting:
        for part in module.model.backbone.modules():
            if isinstance(part, nn.Linear):
                part.weight.data.normal_(std=setting["linear_std"])
    if "position_std" in setting:
        module.model.backbone.positions.weight.data.normal_(std=setting["position_std"])
    if "scale" in setting:
        module.model.backbone.scale = setting["scale"]


def make_part(backbone: str, settings: dict[str, Any], *, max_length: int) -> nn.Module:
    """Return a backbone with these settings and, where it has one, a length."""
    whole = {name: int(value) if name == "num_layers" else value for name, value in settings.items()}
    if backbone in ("BERT", "GPT-2"):
        from helpers.configurations import CONFIGURATIONS

        return CONFIGURATIONS[backbone].backbone(max_length)
    try:
        return BACKBONES[backbone](64, max_length=max_length, **whole)
    except TypeError:
        return BACKBONES[backbone](64, **whole)


if __name__ == "__main__":
    auto_cli(learning_curves, as_positional=True)
