import copy

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.loggers import CSVLogger
from small_models import quiet_trainer

from skipcl_lightning import Recommender, SkipCLModule
from skipcl_lightning.backbones import SASRec
from skipcl_lightning.batch import SessionBatch
from skipcl_lightning.data import SessionDataModule, simulate_sessions
from skipcl_lightning.heads import (
    GBCE,
    BPRMax,
    FullSoftmax,
    SampledSoftmax,
    SkipInfoNCE,
    SkipPrediction,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]

HEADS = [SkipInfoNCE, SkipPrediction]
LOSSES = [FullSoftmax, lambda: SampledSoftmax(16), lambda: GBCE(16), lambda: BPRMax(16)]


def gpu_trainer(**settings):
    return quiet_trainer(accelerator="gpu", devices=1, **settings)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_a_whole_run_on_the_device_gives_finite_losses_and_the_cpus_recommendations(precision):
    seed_everything(0, verbose=False)
    data = SessionDataModule(
        simulate_sessions(200, num_items=50, num_moods=5), max_length=20, pin_memory=True
    )
    head = SkipInfoNCE(weight=0.3, negatives="batch", learn_temperature=True)
    module = SkipCLModule(SASRec(16, max_length=20), head, num_items=data.num_items, embedding_size=16)
    trainer = gpu_trainer(
        precision=precision,
        max_epochs=2,
    )
    trainer.fit(module, data)
    assert trainer.callback_metrics["train/loss"].isfinite()
    assert trainer.test(module, data, verbose=False)[0]["test/num_listened"] > 0
    session = data.vocabulary.ids[:5]
    on_cpu = Recommender(module.cpu()).recommend([session], top_k=5)
    on_gpu = Recommender(module.cuda()).recommend([session], top_k=5)
    torch.testing.assert_close(
        torch.tensor(on_gpu["score"]), torch.tensor(on_cpu["score"]), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("loss", LOSSES)
def test_the_host_waits_for_nothing_in_a_step(loss, head):
    seed_everything(0, verbose=False)
    module = SkipCLModule(
        SASRec(16, max_length=20),
        head(),
        num_items=100,
        embedding_size=16,
        next_item_loss=loss(),
    ).cuda()
    optimizer = module.configure_optimizers()["optimizer"]
    items = torch.randint(1, 101, (32, 20))
    batch = SessionBatch(items, torch.where(torch.rand(32, 20) < 0.4, -1.0, 1.0)).to("cuda")
    for number in range(3):
        # The first step allocates and loads kernels.
        torch.cuda.set_sync_debug_mode("error" if number else "default")
        try:
            optimizer.zero_grad()
            module.losses(module.part_losses(batch))["loss"].backward()
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert module.model.item_embedding.weight.isfinite().all()


class HostCopies(Callback):
    """Counts what is copied to the host from the third step of a run to the eighth."""

    def __init__(self):
        self.profile = torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        )
        self.names = None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 2:
            self.profile.start()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 8:
            torch.cuda.synchronize()
            self.profile.stop()
            self.names = [event.name for event in self.profile.events()]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("loss", LOSSES)
def test_nothing_is_copied_to_the_host_between_logging_points(loss, precision, head, tmp_path):
    seed_everything(0, verbose=False)
    data = SessionDataModule(
        simulate_sessions(320, num_items=50, num_moods=5), batch_size=32, max_length=20, pin_memory=True
    )
    module = SkipCLModule(
        SASRec(16, max_length=20),
        head(),
        num_items=data.num_items,
        embedding_size=16,
        next_item_loss=loss(),
    )
    copies = HostCopies()
    gpu_trainer(
        precision=precision,
        max_steps=9,
        gradient_clip_val=1.0,
        log_every_n_steps=50,
        limit_val_batches=0,
        logger=CSVLogger(tmp_path),
        callbacks=[copies],
    ).fit(module, data)
    assert any("HtoD" in name for name in copies.names)  # the batches: the trace sees copies
    assert not [name for name in copies.names if "DtoH" in name]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("mode", [None, "reduce-overhead"])
def test_a_compiled_step_has_the_losses_of_a_plain_one(mode, head):
    torch.manual_seed(0)
    plain = SkipCLModule(
        SASRec(16, max_length=20, dropout=0.0), head(), num_items=100, embedding_size=16
    ).cuda()
    compiled = copy.deepcopy(plain)
    compiled.part_losses = torch.compile(
        compiled.part_losses, mode=mode, fullgraph=True, dynamic=mode is None
    )
    for _ in range(3):
        items = torch.randint(1, 101, (32, 20))
        batch = SessionBatch(items, torch.where(torch.rand(32, 20) < 0.4, -1.0, 1.0)).to("cuda")
        gradients = []
        for module in (plain, compiled):
            module.zero_grad()
            module.losses(module.part_losses(batch))["loss"].backward()
            gradients.append({name: one.grad.clone() for name, one in module.named_parameters()})
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-5)


def test_penalty_and_transitions_rank_on_the_device_as_on_the_cpu():
    seed_everything(0, verbose=False)
    data = SessionDataModule(simulate_sessions(200, num_items=50, num_moods=5), max_length=20)
    module = SkipCLModule(
        SASRec(16, max_length=20),
        SkipPrediction(),
        num_items=data.num_items,
        transition_weight=1.0,
        skip_penalty=0.5,
    )
    trainer = gpu_trainer(max_epochs=1)
    trainer.fit(module, data)
    found = trainer.test(module, data, verbose=False)[0]
    expected = quiet_trainer().test(module.cpu(), data, verbose=False)[0]
    assert found == pytest.approx(expected, abs=1e-2)
    session = data.vocabulary.ids[:5]
    on_cpu = Recommender(module).recommend([session], top_k=5)
    on_gpu = Recommender(module.cuda()).recommend([session], top_k=5)
    assert on_gpu["item_id"].to_list() == on_cpu["item_id"].to_list()
    torch.testing.assert_close(
        torch.tensor(on_gpu["skip_probability"]),
        torch.tensor(on_cpu["skip_probability"]),
        rtol=1e-3,
        atol=1e-3,
    )


def test_half_precision_can_be_clipped_by_norm():
    seed_everything(0, verbose=False)
    data = SessionDataModule(simulate_sessions(64, num_items=50, num_moods=5), batch_size=32, max_length=20)
    module = SkipCLModule(
        SASRec(16, max_length=20), SkipInfoNCE(), num_items=data.num_items, embedding_size=16
    )
    trainer = gpu_trainer(
        precision="16-mixed",
        gradient_clip_val=1.0,
        max_steps=3,
        limit_val_batches=0,
    )
    trainer.fit(module, data)
    assert module.model.item_embedding.weight.isfinite().all()


def test_a_sparse_table_trains_in_half_precision():
    seed_everything(0, verbose=False)
    data = SessionDataModule(simulate_sessions(64, num_items=50, num_moods=5), batch_size=32, max_length=20)
    module = SkipCLModule(
        SASRec(16, max_length=20),
        SkipInfoNCE(),
        num_items=data.num_items,
        embedding_size=16,
        next_item_loss=SampledSoftmax(16),
        sparse_item_table=True,
    )
    before = module.model.item_embedding.weight.detach().clone()
    gpu_trainer(precision="16-mixed", gradient_clip_val=1.0, max_steps=6, limit_val_batches=0).fit(
        module, data
    )
    assert module.model.item_embedding.weight.isfinite().all()
    assert not torch.equal(module.model.item_embedding.weight.cpu(), before)


def test_items_are_appended_and_retired_on_the_device():
    seed_everything(0, verbose=False)
    data = SessionDataModule(simulate_sessions(100, num_items=50, num_moods=5), max_length=20)
    module = SkipCLModule(
        SASRec(16, max_length=20), SkipPrediction(), num_items=data.num_items, transition_weight=1.0
    )
    gpu_trainer(limit_val_batches=0).fit(module, data)
    module.cuda()
    module.extend_items(["one", "other"])
    module.retire_items([*data.vocabulary.ids[:3], "other"])
    assert all(tensor.is_cuda for tensor in [*module.parameters(), *module.buffers()])
    session = [*data.vocabulary.ids[:5], "one"]
    on_gpu = Recommender(module).recommend([session], top_k=48)
    on_cpu = Recommender(module.cpu()).recommend([session], top_k=48)
    assert not set(on_gpu["item_id"]) & set(module.retired_items)
    torch.testing.assert_close(
        torch.tensor(on_gpu["score"]), torch.tensor(on_cpu["score"]), rtol=1e-3, atol=1e-3
    )
