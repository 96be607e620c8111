"""Which files `BestCheckpoint` keeps while its metric is missing, and after."""

import pytest
import torch
from lightning.pytorch import Callback
from watched_runs import small_data, small_module, watched_trainer

from skipcl_lightning.callbacks import BestCheckpoint


class Metric(Callback):
    """Notes the metric of each validation."""

    def __init__(self):
        self.values = {}

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.values[trainer.current_epoch] = float(trainer.callback_metrics["val/ndcg@10"])

    def best_epoch(self):
        return max(self.values, key=self.values.get)


def best(folder, **settings):
    return BestCheckpoint(folder, **{"monitor": "val/ndcg@10", "mode": "max", "filename": "best", **settings})


def fit(keep, ckpt_path=None, **settings):
    metric, data = Metric(), small_data()
    trainer = watched_trainer([metric, keep], num_sanity_val_steps=0, **settings)
    trainer.fit(small_module(data), data, ckpt_path=ckpt_path)
    return metric


def epochs(folder):
    return {path.name: torch.load(path, weights_only=True)["epoch"] for path in folder.iterdir()}


@pytest.mark.parametrize("filename", ["best", "{epoch}"])
def test_the_first_checkpoint_with_the_metric_replaces_the_one_without(tmp_path, filename):
    keep = best(tmp_path, filename=filename, save_on_train_epoch_end=True)
    metric = fit(keep, max_epochs=6, check_val_every_n_epoch=2)
    assert sorted(metric.values) == [1, 3, 5]
    epoch = metric.best_epoch()
    name = f"{filename.format(epoch=f'epoch={epoch}')}.ckpt"
    assert epochs(tmp_path) == {name: epoch}
    assert keep.best_model_path == str(tmp_path / name)


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
@pytest.mark.parametrize("filename", ["best", "{epoch}-{step}"])
def test_a_resumed_run_replaces_what_was_saved_without_the_metric(tmp_path, filename):
    fit(best(tmp_path, filename=filename, save_last=True), max_epochs=-1, max_steps=2)
    assert len(list(tmp_path.iterdir())) == 2
    keep = best(tmp_path, filename=filename, save_last=True)
    metric = fit(keep, ckpt_path="last", max_epochs=4)
    (name,) = epochs(tmp_path).keys() - {"last.ckpt"}
    assert epochs(tmp_path)[name] == metric.best_epoch()
    assert keep.best_model_path == str(tmp_path / name)
    assert keep.best_model_score == pytest.approx(max(metric.values.values()))


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_a_state_without_the_metric_does_not_replace_the_best(tmp_path):
    first = best(tmp_path, save_last=True, save_on_train_epoch_end=True)
    values = fit(first, max_epochs=2, check_val_every_n_epoch=2).values
    keep = best(tmp_path, save_last=True, save_on_train_epoch_end=True)
    fit(keep, ckpt_path="last", max_epochs=3, check_val_every_n_epoch=2)
    assert epochs(tmp_path)["best.ckpt"] == 1
    assert keep.best_model_score == pytest.approx(values[1])


@pytest.mark.parametrize(("save_top_k", "kept"), [(0, set()), (2, {1}), (-1, {0, 1})])
def test_as_many_are_kept_as_the_settings_say(tmp_path, save_top_k, kept):
    keep = best(tmp_path, filename="{epoch}", save_top_k=save_top_k, save_on_train_epoch_end=True)
    fit(keep, max_epochs=2, check_val_every_n_epoch=2)
    assert set(epochs(tmp_path).values()) == kept if kept else not tmp_path.exists() or not epochs(tmp_path)


def test_without_a_validation_the_latest_state_is_kept(tmp_path):
    keep = best(tmp_path, filename="{epoch}")
    fit(keep, max_epochs=3, limit_val_batches=0)
    assert epochs(tmp_path) == {"epoch=2.ckpt": 2}
    assert keep.best_model_path == str(tmp_path / "epoch=2.ckpt")
