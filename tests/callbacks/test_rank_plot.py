from collections import Counter

import polars as pl
import pytest
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.loggers import CSVLogger
from watched_runs import OwnModule, small_data, small_module, watched_trainer

from skipcl_lightning.callbacks import RankPlot


def slow_ranks(module, batch):
    """Ranks by sorting, and whether each target was skipped; no two scores are equal."""
    scores = (module.session_query(batch) @ module.item_table[1:].T).tolist()
    targets = batch.target.tolist()
    ranks = [sum(s >= row[target - 1] for s in row) for row, target in zip(scores, targets, strict=True)]
    return list(zip(ranks, (batch.target_feedback < 0).tolist(), strict=True))


def expected_counts(module, loader):
    module.eval()
    with torch.no_grad():
        counted = Counter(pair for batch in loader for pair in slow_ranks(module, batch))
    last = len(module.item_table) - 1
    return [(rank, counted[rank, False], counted[rank, True]) for rank in range(1, last + 1)]


@pytest.mark.parametrize("kind", ["SkipCLModule", "OwnModule"])
def test_counts_are_those_of_all_targets_at_validation_and_test(kind):
    data, callback = small_data(), RankPlot()
    module = small_module(data) if kind == "SkipCLModule" else OwnModule(data.num_items)
    trainer = watched_trainer([callback])
    trainer.validate(module, data, verbose=False)
    trainer.test(module, data, verbose=False)
    assert callback.frames["val"].rows() == expected_counts(module, data.val_dataloader())
    assert callback.frames["test"].rows() == expected_counts(module, data.test_dataloader())
    assert callback.frames["test"].select(pl.sum("listened", "skipped")).sum_horizontal().item() == 40


def test_a_module_that_hands_its_ranks_over_is_not_asked_again():
    data = small_data()
    module = small_module(data)
    asked = []
    query = module.session_query
    module.session_query = lambda batch: (asked.append(len(batch)), query(batch))[1]
    watched_trainer([RankPlot()]).validate(module, data, verbose=False)
    assert sum(asked) == 40


class LastStep(OwnModule):
    def validation_step(self, batch, batch_idx):
        return {"ranks": torch.full((len(batch),), 7)}


def test_between_the_grid_of_a_big_catalogue_ranks_count_where_the_curve_comes_next():
    data, callback = small_data(), RankPlot(top_k=7)
    watched_trainer([callback]).validate(LastStep(100_000), data, verbose=False)
    frame = callback.frames["val"]
    assert frame.height < 450
    assert frame["rank"][-1] == 100_000
    counted = frame.filter((pl.col("listened") > 0) | (pl.col("skipped") > 0))
    assert counted["rank"].to_list() == [7]


def test_pictures_are_drawn_in_the_epochs_that_are_asked_for(tmp_path, monkeypatch):
    drawn = []

    def note(self, trainer, key, frame):
        drawn.append((key, trainer.current_epoch))

    monkeypatch.setattr(RankPlot, "_publish", note)
    data = small_data()
    trainer = watched_trainer([RankPlot(every_n_epochs=2)], logger=CSVLogger(tmp_path), max_epochs=3)
    trainer.fit(small_module(data), data)
    assert drawn == [("val/ranks", 0), ("val/ranks", 2)]


def test_without_a_logger_counts_are_kept_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data, callback = small_data(), RankPlot()
    watched_trainer([callback], max_epochs=1).fit(small_module(data), data)
    assert callback.frames["val"].height == data.num_items
    assert not list(tmp_path.iterdir())


class Untargeted(LightningDataModule):
    def __init__(self, data):
        super().__init__()
        self.data = data

    def setup(self, stage):
        self.data.setup(stage)  # which keeps Lightning's own warnings quiet

    def teardown(self, stage):
        self.data.teardown(stage)

    def on_exception(self, exception):
        self.data.on_exception(exception)

    def val_dataloader(self):
        return self.data.predict_dataloader()


def test_sessions_without_targets_are_named():
    data = small_data()
    with pytest.raises(ValueError, match="`batch` must have targets, got none"):
        watched_trainer([RankPlot()]).validate(OwnModule(data.num_items), Untargeted(data), verbose=False)


@pytest.mark.parametrize("name", ["top_k", "every_n_epochs"])
def test_settings_out_of_range_are_named(name):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1, got 0"):
        RankPlot(**{name: 0})
