"""Shared steps of the training examples: fit, test, save and recommend, logged to W&B."""

from pathlib import Path
from typing import Literal

import polars as pl
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger

from skipcl_lightning import Recommender, SkipCLModule
from skipcl_lightning.backbones import SASRec
from skipcl_lightning.data import SessionDataModule
from skipcl_lightning.heads import SkipInfoNCE


def train(
    log: pl.LazyFrame,
    *,
    output: Path = Path("runs"),
    wandb: Literal["offline", "online"] = "offline",
    epochs: int = 10,
    batch_size: int = 128,
    max_length: int = 20,
    min_session_length: int = 5,
    min_item_count: int = 1,
    embedding_size: int = 64,
    weight: float = 0.3,
    temperature: float = 0.1,
    negatives: Literal["session", "past", "batch"] = "session",
    learning_rate: float = 0.003,
    accelerator: str = "auto",
    seed: int = 0,
    smoke: bool = False,
) -> Path:
    """Train SASRec with the skip-contrastive head, test it, and recommend items for one session.

    Args:
        log: A canonical table.
        output: The folder for checkpoints and W&B's files.
        wandb: Where to log the run; offline needs no account, and `wandb sync` uploads it later.
        epochs: Epochs of training.
        batch_size: Sessions in a batch.
        max_length: Longest session; longer sessions keep their latest items.
        min_session_length: Shortest session to keep.
        min_item_count: Fewest occurrences of an item to keep.
        embedding_size: The size of the item embeddings.
        weight: λ, the weight of the skip-contrastive loss.
        temperature: τ of the skip-contrastive loss.
        negatives: Where the skipped items that serve as negatives come from.
        learning_rate: The learning rate of AdamW.
        accelerator: The accelerator of Lightning's Trainer.
        seed: Random seed of initialisation and shuffling.
        smoke: Quick check that everything works: one epoch of a small model, on simulated files by default.

    Returns:
        The checkpoint with the best validation NDCG@20.
    """
    if smoke:
        epochs, embedding_size = 1, 8
    seed_everything(seed)
    data = SessionDataModule(
        log,
        batch_size=batch_size,
        max_length=max_length,
        min_session_length=min_session_length,
        min_item_count=min_item_count,
    )
    module = SkipCLModule(
        SASRec(embedding_size, max_length=max_length),
        SkipInfoNCE(weight=weight, temperature=temperature, negatives=negatives),
        num_items=data.num_items,
        embedding_size=embedding_size,
        learning_rate=learning_rate,
    )
    output.mkdir(parents=True, exist_ok=True)
    logger = WandbLogger(project="skipcl", save_dir=output, offline=wandb == "offline")
    best = ModelCheckpoint(dirpath=output / "checkpoints", monitor="val/ndcg@20", mode="max")
    trainer = Trainer(
        accelerator=accelerator,
        devices=1,
        max_epochs=epochs,
        logger=logger,
        callbacks=[best],
        log_every_n_steps=1,
    )
    trainer.fit(module, data)
    trainer.test(module, data, ckpt_path="best", weights_only=True)
    checkpoint = Path(best.best_model_path)
    recommend_for_last_session(checkpoint, data)
    return checkpoint


def recommend_for_last_session(checkpoint: Path, data: SessionDataModule) -> None:
    """Print the ten best next items for the last session of `data`, using only the checkpoint."""
    batch = next(iter(data.predict_dataloader()))[-1:]
    session_id = data.session_ids[int(batch.session_index)]
    items = data.vocabulary.decode(batch.items[batch.valid_mask])
    feedback = batch.feedback[batch.valid_mask].tolist()
    recommendations = Recommender.from_checkpoint(checkpoint).recommend(
        [items], [feedback], session_ids=[session_id], top_k=min(10, data.num_items)
    )
    print(f"Checkpoint: {checkpoint}")
    print(f"Session {session_id}, what was heard last:")
    print(pl.DataFrame({"item_id": items, "feedback": feedback}).tail(5))
    print("What to play next:")
    with pl.Config(tbl_rows=10, fmt_str_lengths=60):
        print(recommendations.select("rank", "item_id", "score"))
