"""Ways of Lightning that the module's own steps do not take: other schedules, loaders, settings and doors."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from lightning.pytorch.callbacks import LearningRateFinder, ModelCheckpoint
from small_models import batch, module, quiet_trainer
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from skipcl_lightning import SkipCLModule
from skipcl_lightning.backbones import SASRec
from skipcl_lightning.batch import SessionBatch
from skipcl_lightning.callbacks import EmbeddingDiagnostics
from skipcl_lightning.data import SessionDataModule, simulate_sessions
from skipcl_lightning.heads import SampledSoftmax, SkipInfoNCE, SkipPrediction
from skipcl_lightning.module.optimizers import SparseAdamW


@pytest.fixture(scope="module")
def data():
    log = simulate_sessions(60, num_items=30, num_moods=3)
    return SessionDataModule(log, batch_size=16, max_length=12, history_length=0)


def make(data, head=None, kind=SkipCLModule, **settings):
    torch.manual_seed(0)
    return kind(SASRec(8, max_length=12), head, num_items=data.num_items, **settings)


DIALS = {"transition_weight": 2.0, "skip_penalty": 0.5, "exclude_seen": True}


@pytest.fixture(scope="module")
def chosen(data, tmp_path_factory):
    """A checkpoint whose dials were chosen after its training."""
    trained = make(data, SkipPrediction(), transition_weight=1.0)
    trainer = quiet_trainer(limit_val_batches=0)
    trainer.fit(trained, data)
    for name, value in DIALS.items():
        setattr(trained, name, value)
    path = tmp_path_factory.mktemp("chosen") / "model.ckpt"
    trainer.save_checkpoint(path)
    return path, trainer.test(trained, data, verbose=False)


@pytest.mark.parametrize("door", ["test", "load_from_checkpoint", "fit"])
def test_a_checkpoint_is_evaluated_with_what_was_chosen_before_it_was_saved(data, chosen, door):
    path, expected = chosen
    trainer = quiet_trainer(limit_val_batches=0)
    if door == "load_from_checkpoint":
        fresh = SkipCLModule.load_from_checkpoint(path)
        found = trainer.test(fresh, data, verbose=False)
    else:
        fresh = make(data, SkipPrediction(), transition_weight=1.0)
        if door == "fit":
            trainer.fit(fresh, data, ckpt_path=path)
            found = trainer.test(fresh, data, verbose=False)
        else:
            found = trainer.test(fresh, data, verbose=False, ckpt_path=path)
    assert {name: getattr(fresh, name) for name in DIALS} == DIALS
    assert found == expected


def test_settings_that_are_given_to_load_from_checkpoint_win(chosen):
    given = {"transition_weight": 0.0, "skip_penalty": 2.0, "exclude_seen": False}
    loaded = SkipCLModule.load_from_checkpoint(chosen[0], **given)
    assert {name: getattr(loaded, name) for name in DIALS} == given


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("skip_penalty", -1.0, r"`skip_penalty` must be in \[0"),
        ("transition_weight", -1.0, r"`transition_weight` must be in \[0"),
        ("exclude_seen", "no", "`exclude_seen` must be True or False, got 'no'"),
    ],
)
def test_a_dial_out_of_range_in_a_checkpoint_is_refused(data, chosen, tmp_path, name, value, message):
    checkpoint = torch.load(chosen[0], weights_only=True)
    checkpoint["hyper_parameters"][name] = value
    torch.save(checkpoint, tmp_path / "bad.ckpt")
    fresh = make(data, SkipPrediction(), transition_weight=1.0)
    with pytest.raises((TypeError, ValueError), match=message):
        quiet_trainer().test(fresh, data, verbose=False, ckpt_path=tmp_path / "bad.ckpt")


def test_a_weight_below_zero_is_refused_when_it_is_set(data):
    one = make(data)
    with pytest.raises(ValueError, match=r"`transition_weight` must be in \[0, inf\), got -3"):
        one.transition_weight = -3


class Cycle(SkipCLModule):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()["optimizer"]
        for number, group in enumerate(optimizer.param_groups):
            group["name"] = f"group {number}"
        schedule = OneCycleLR(optimizer, max_lr=0.01, total_steps=20)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def test_a_run_with_a_schedule_and_groups_of_its_own_resumes(data, tmp_path):
    trainer = quiet_trainer(max_steps=3, limit_val_batches=0)
    trainer.fit(make(data, kind=Cycle), data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    expected = trainer.optimizers[0].param_groups[0]["lr"]
    resumed = quiet_trainer(max_steps=3, limit_val_batches=0)
    resumed.fit(make(data, kind=Cycle), data, ckpt_path=tmp_path / "last.ckpt")
    group = resumed.optimizers[0].param_groups[0]
    assert (group["lr"], group["name"]) == (expected, "group 0")


def test_numbers_of_numpy_and_ranges_are_plain_in_a_checkpoint(data, tmp_path):
    (rate,) = np.logspace(-3, -2, 1)
    head = SkipInfoNCE(weight=np.float64(0.1))
    one = make(data, head, learning_rate=rate, top_k=range(1, 3), transition_weight=np.float64(1))
    trainer = quiet_trainer(limit_val_batches=0)
    trainer.fit(one, data)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = SkipCLModule.load_from_checkpoint(tmp_path / "model.ckpt")
    assert (loaded.learning_rate, loaded.hparams["top_k"], loaded.skip_head.weight) == (rate, [1, 2], 0.1)


def test_a_setting_that_no_checkpoint_can_hold_is_named_before_the_training(data):
    class Own(SkipCLModule):
        def __init__(self, folder, **settings):
            super().__init__(**settings)

        def build_backbone(self):
            return SASRec(8, max_length=12)

    one = Own(Path("music"), num_items=data.num_items, embedding_size=8)
    with pytest.raises(
        TypeError, match=r"`folder` must be a plain value.* got PosixPath.*save_hyperparameters"
    ):
        quiet_trainer(limit_val_batches=0).fit(one, data)


def test_a_checkpoint_of_another_class_loads_if_it_need_not_be_strict(chosen):
    class More(SkipCLModule):
        def __init__(self, *arguments, **settings):
            super().__init__(*arguments, **settings)
            self.layer = nn.Linear(1, 1)

    with pytest.warns(
        UserWarning, match="Found keys that are in the model state dict but not in"
    ):  # Lightning's
        loaded = More.load_from_checkpoint(chosen[0], strict=False)
    assert torch.equal(
        loaded.model.item_embedding.weight,
        SkipCLModule.load_from_checkpoint(chosen[0]).model.item_embedding.weight,
    )
    with pytest.raises(ValueError, match=r"2 missing such as 'layer\.bias'"):
        More.load_from_checkpoint(chosen[0])


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("settings", [{"warmup_steps": 5}, {"schedule": "cosine"}])
def test_the_schedule_starts_from_the_rate_that_was_found(data, tmp_path, settings):
    one = make(data, learning_rate=0.0123, **settings)
    finder = LearningRateFinder(num_training_steps=20, early_stop_threshold=None)
    trainer = quiet_trainer(callbacks=[finder], max_epochs=9, limit_val_batches=0, default_root_dir=tmp_path)
    trainer.fit(one, data)
    schedule = trainer.lr_scheduler_configs[0].scheduler
    assert set(schedule.base_lrs) == {one.learning_rate} != {0.0123}
    factor = schedule.lr_lambdas[0](trainer.global_step)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(one.learning_rate * factor)


def test_embeddings_are_described_in_double_precision_too(data):
    trainer = quiet_trainer(precision="64-true", callbacks=[EmbeddingDiagnostics()], limit_val_batches=0)
    trainer.fit(make(data), data)
    assert trainer.callback_metrics["embeddings/norm_mean"] > 0


@pytest.mark.filterwarnings("ignore")  # Lightning's, about torch
def test_several_loaders_are_refused_because_their_targets_would_be_added_up(data):
    one, trainer = make(data), quiet_trainer()
    loaders = [data.val_dataloader(), data.test_dataloader()]
    with pytest.raises(ValueError, match="`dataloaders` must be a single one, got 2"):
        trainer.validate(one, loaders, verbose=False)
    with pytest.raises(ValueError, match="`dataloaders` must be a single one, got 2"):
        trainer.test(one, loaders, verbose=False)


@pytest.mark.filterwarnings("ignore")  # Lightning's, about torch
def test_a_batch_of_another_kind_is_named(data):
    rows = torch.utils.data.TensorDataset(torch.ones(4, 3, dtype=torch.int64), torch.ones(4, 3))
    with pytest.raises(TypeError, match=r"`batch` must be a SessionBatch, got a list.*collate_fn"):
        quiet_trainer().fit(make(data), torch.utils.data.DataLoader(rows, batch_size=2))


def test_fabric_trains_the_module(data):
    fabric = Fabric(accelerator="cpu", devices=1)
    one = make(data, SkipInfoNCE())
    optimizer = one.configure_optimizers()["optimizer"]
    one, optimizer = fabric.setup(one, optimizer)
    one.mark_forward_method("training_step")
    before = one.model.item_embedding.weight.detach().clone()
    for number, sessions in enumerate(fabric.setup_dataloaders(data.train_dataloader())):
        fabric.backward(one.training_step(sessions, number))
        optimizer.step()
        optimizer.zero_grad()
    assert not torch.equal(one.model.item_embedding.weight, before)


class Manual(SkipCLModule):
    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.automatic_optimization = False

    def training_step(self, sessions, batch_idx):
        loss, optimizer = super().training_step(sessions, batch_idx), self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        self.clip_gradients(optimizer, gradient_clip_val=0.5, gradient_clip_algorithm="norm")
        optimizer.step()


def test_steps_of_ones_own_may_clip_in_mixed_precision(data):
    trainer = quiet_trainer(precision="bf16-mixed", limit_val_batches=0, max_steps=2)
    trainer.fit(make(data, kind=Manual), data)
    assert trainer.global_step == 2


def test_a_sparse_optimizer_takes_more_parameters_and_copies():
    table, layer, more = nn.Embedding(9, 2, sparse=True), nn.Linear(2, 1), nn.Linear(1, 1)
    optimizer = SparseAdamW(layer.parameters(), [table.weight], learning_rate=0.1)
    optimizer.add_param_group({"params": more.parameters(), "lr": 0.2})
    with pytest.raises(ValueError, match="must hold no table with sparse gradients"):
        optimizer.add_param_group({"params": table.weight})
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.2, 0.1]
    assert optimizer.param_groups[-1]["params"] == [table.weight]

    def step(parts, one):
        parts = nn.ModuleList(parts)
        before = copy.deepcopy(parts.state_dict())
        parts[2](parts[1](parts[0](torch.tensor([3])))).sum().backward()
        one.step()
        return {name for name, value in parts.state_dict().items() if not torch.equal(value, before[name])}

    names = {"0.weight", "1.weight", "1.bias", "2.weight", "2.bias"}
    assert step([table, layer, more], optimizer) == names
    # With the parameters, as a callback that keeps a copy of a whole run would have it.
    parts, copied = copy.deepcopy(([table, layer, more], optimizer))
    assert step(parts, copied) == names


@pytest.mark.parametrize("name", ["feedback_input", "sparse_item_table", "exclude_seen"])
def test_flags_are_no_texts(name):
    with pytest.raises(TypeError, match=f"`{name}` must be True or False, got 'no'"):
        module(SASRec(8), next_item_loss=SampledSoftmax(4), **{name: "no"})


def test_a_single_cut_off_is_named():
    with pytest.raises(TypeError, match=r"`top_k` must be a sequence of cut-offs, got 10.*`\(10,\)`"):
        module(SASRec(8), top_k=10)


def test_processes_that_only_give_weights_back_are_told_of(data):
    spawned = quiet_trainer(devices=2, strategy="ddp_spawn")
    one = make(data)
    one.trainer = spawned
    with pytest.warns(UserWarning, match=r"no item vocabulary afterwards: call `module\.take_data"):
        one.take_data(data)
    again = make(data)
    again.take_data(data)  # before the Trainer, as the warning says
    again.trainer = spawned
    again.take_data(data)
    assert again.encoder.vocabulary == data.vocabulary


def test_a_trained_step_takes_a_batch_without_a_target_only():
    with pytest.raises(ValueError, match="must give batches without a held-out target"):
        module(SASRec(8)).training_step(batch(), 0)
    assert isinstance(batch(), SessionBatch)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_best_checkpoint_is_tested_with_its_own_penalty(data, tmp_path):
    class Turn(SkipCLModule):
        def on_train_epoch_start(self):
            self.skip_penalty = float(self.current_epoch)

    saved = ModelCheckpoint(tmp_path, monitor="step", mode="min", filename="best", save_top_k=1)
    trainer = quiet_trainer(max_epochs=2, callbacks=[saved], enable_checkpointing=True)
    one = make(data, SkipPrediction(), kind=Turn)
    trainer.fit(one, data)
    assert one.skip_penalty == 1
    trainer.test(one, data, ckpt_path=saved.best_model_path, verbose=False)
    assert one.skip_penalty == 0
