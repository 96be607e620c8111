"""Train a model that predicts skips, choose its skip penalty on the validation set, and test it once.

python examples/skip_dial.py
python examples/skip_dial.py --store STORE                # from `skipcl prepare` or `prepare_store`
python examples/skip_dial.py --smoke true                 # seconds
"""

from pathlib import Path

import polars as pl
from jsonargparse import auto_cli
from lightning.pytorch import Trainer, seed_everything

from skipcl_lightning import Recommender, SkipCLModule
from skipcl_lightning.backbones import SASRec
from skipcl_lightning.data import SessionDataModule, SplitBySession, simulate_sessions
from skipcl_lightning.evaluation import (
    calibrate_skip_prediction,
    choose_transition_weight,
    evaluate,
    skip_trade_off,
)
from skipcl_lightning.heads import SkipPrediction


def turn_dial(
    *,
    store: Path | None = None,
    sessions: int = 3000,
    items: int = 300,
    epochs: int = 12,
    max_length: int = 20,
    embedding_size: int = 32,
    learning_rate: float = 0.003,
    plot: Path | None = None,
    accelerator: str = "auto",
    seed: int = 0,
    smoke: bool = False,
) -> None:
    """Train SASRec with skip prediction, choose transitions and penalty on the validation set, and test it.

    Args:
        store: The folder of a session store; None for simulated sessions.
        sessions: Simulated sessions; two fifths of them are held out.
        items: Simulated items.
        epochs: Epochs of training.
        max_length: Longest session; longer sessions keep their latest items.
        embedding_size: The size of the item embeddings.
        learning_rate: The learning rate of AdamW.
        plot: A PNG file for the plot of the trade-off; None for no plot.
        accelerator: The accelerator of Lightning's Trainer.
        seed: Random seed of simulation, initialisation and shuffling.
        smoke: Quick check that everything works: few sessions, one epoch.
    """
    if smoke:
        sessions, items, epochs, embedding_size = 150, 40, 1, 8
    seed_everything(seed)
    # A store has its own split. Here every track of a held-out session is a target.
    data = SessionDataModule(
        simulate_sessions(sessions, num_items=items, seed=seed) if store is None else store,
        max_length=max_length,
        split=SplitBySession(0.2, 0.2, targets="every") if store is None else None,
    )
    module = SkipCLModule(
        SASRec(embedding_size, max_length=max_length),
        SkipPrediction(),
        num_items=data.num_items,
        learning_rate=learning_rate,
        transition_weight=1.0,  # counts the transitions; the weight itself is chosen below
    )
    trainer = Trainer(
        accelerator=accelerator, devices=1, max_epochs=epochs, logger=False, enable_checkpointing=False
    )
    trainer.fit(module, data)

    # The validation set chooses everything.
    choose_transition_weight(module, data)
    front = skip_trade_off(module, data)
    module.skip_penalty = front.penalty
    temperature = calibrate_skip_prediction(module, data)
    print(f"Validation: transition weight {module.transition_weight:g}, temperature {temperature:.2f}")
    with pl.Config(tbl_width_chars=110, float_precision=3):
        print(
            front.table.select(
                "skip_penalty", "hit_rate@10", "skip_hit_rate@10", "hit_rate_low", "hit_rate_high"
            )
        )
    if plot is not None:
        print(f"Plot: {front.save_plot(plot)}")

    # The test set is read once.
    report = evaluate(module, data)
    print(f"Test at a skip penalty of {front.penalty:g}:")
    print(report.metrics.filter(pl.col("metric").is_in(["hit_rate@10", "skip_hit_rate@10", "skip_mrr@10"])))

    batch = next(iter(data.predict_dataloader()))[:1]
    heard = data.vocabulary.decode(batch.items[batch.valid_mask])
    feedback = batch.feedback[batch.valid_mask].tolist()
    print(f"What to play after {', '.join(map(str, heard[-3:]))}:")
    print(Recommender(module).recommend([heard], [feedback], top_k=5))


if __name__ == "__main__":
    auto_cli(turn_dial, as_positional=False)
