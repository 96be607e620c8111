import copy

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger

from skipcl_lightning import Recommender, SkipCLModule
from skipcl_lightning.backbones import BACKBONES, SASRec
from skipcl_lightning.batch import SessionBatch
from skipcl_lightning.data import SessionDataModule, simulate_sessions
from skipcl_lightning.functional import skip_info_nce, target_ranks
from skipcl_lightning.heads import (
    CombinedHead,
    FullSoftmax,
    OpposingSequences,
    SampledSoftmax,
    SkipInfoNCE,
    SkipMargin,
    SkipSoftmax,
    SkipUnlikelihood,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_a_whole_run_on_the_device_gives_finite_losses_and_the_cpus_recommendations(precision):
    seed_everything(0, verbose=False)
    data = SessionDataModule(
        simulate_sessions(200, num_items=50, num_moods=5), max_length=20, pin_memory=True
    )
    head = SkipInfoNCE(weight=0.3, negatives="batch", learn_temperature=True)
    module = SkipCLModule(SASRec(16, max_length=20), head, num_items=data.num_items, embedding_size=16)
    trainer = Trainer(
        accelerator="gpu",
        devices=1,
        precision=precision,
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
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


def test_the_formulas_agree_with_the_cpu():
    generator = torch.Generator().manual_seed(0)
    query, keys = (torch.randn(4, 6, 8, generator=generator) for _ in range(2))
    items = torch.randint(1, 30, (4, 6), generator=generator)
    feedback = torch.rand(4, 6, generator=generator) * 2 - 1
    for negatives in ("session", "past", "batch"):
        on_cpu = skip_info_nce(query, keys, items, feedback, negatives=negatives)
        on_gpu = skip_info_nce(query.cuda(), keys.cuda(), items.cuda(), feedback.cuda(), negatives=negatives)
        torch.testing.assert_close(on_gpu.cpu(), on_cpu)
    queries, table = torch.randn(9, 8, generator=generator), torch.randn(101, 8, generator=generator)
    target = torch.randint(1, 101, (9,), generator=generator)
    ranks = target_ranks(queries.cuda(), table.cuda(), target.cuda()).cpu()
    assert torch.equal(ranks, target_ranks(queries, table, target))


@pytest.mark.parametrize("name", ["BERT4Rec", "Caser", "ESASRec", "GRU4Rec", "NextItNet", "SASRec"])
def test_every_backbone_agrees_with_the_cpu(name):
    torch.manual_seed(0)
    backbone = BACKBONES[name](16).eval()
    x = torch.randn(3, 6, 16)
    mask = torch.tensor([[True] * 6, [True] * 2 + [False] * 4, [False] * 6])
    on_cpu = backbone(x, mask)
    torch.testing.assert_close(backbone.cuda()(x.cuda(), mask.cuda()).cpu(), on_cpu, rtol=1e-3, atol=1e-3)


def test_ranks_stay_exact_where_products_may_be_of_a_lower_precision():
    table = torch.randn(1001, 64, generator=torch.Generator().manual_seed(0))
    queries = torch.randn(50, 64, generator=torch.Generator().manual_seed(1))
    target = torch.arange(1, 51)
    expected = target_ranks(queries, table, target)
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        assert torch.equal(target_ranks(queries.cuda(), table.cuda(), target.cuda()).cpu(), expected)
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def test_collapsed_embeddings_rank_last_on_the_device_too():
    table = torch.randn(1, 13).repeat(1002, 1).cuda()
    target = torch.arange(1, 6).cuda()
    assert target_ranks(torch.randn(5, 13).cuda(), table, target).tolist() == [1001] * 5


@pytest.mark.parametrize(
    "make",
    [
        lambda: SkipInfoNCE(negatives="batch", bank_size=8, num_hardest=3),
        lambda: SkipUnlikelihood(),
        lambda: SkipSoftmax(num_samples=0),
        lambda: SkipMargin(loss="hinge"),
        lambda: OpposingSequences(8, sequence_weight=0.0),
        lambda: CombinedHead([SkipInfoNCE(), SkipMargin()], weighting="uncertainty"),
    ],
)
def test_every_head_agrees_with_the_cpu(make):
    torch.manual_seed(0)
    head = make()
    query, table = torch.randn(4, 6, 8), torch.randn(31, 8)
    items = torch.randint(1, 31, (4, 6))
    batch = SessionBatch(items, torch.rand(4, 6) * 2 - 1, explicit_feedback=torch.rand(4, 6) * 2 - 1)
    on_cpu = [head(query, table[items], batch, table) for _ in range(2)]
    torch.manual_seed(0)
    on_gpu = make().cuda()
    moved = [tensor.cuda() for tensor in (query, table[items], table)]
    for step in range(2):  # the second one has a bank
        loss = on_gpu(moved[0], moved[1], batch.to("cuda"), moved[2])
        torch.testing.assert_close(loss.cpu(), on_cpu[step], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("loss", [FullSoftmax, lambda: SampledSoftmax(16)])
def test_the_host_waits_for_nothing_in_a_step(loss):
    seed_everything(0, verbose=False)
    module = SkipCLModule(
        SASRec(16, max_length=20),
        SkipInfoNCE(),
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
            module.losses(batch)["loss"].backward()
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert module.item_embedding.weight.isfinite().all()


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


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("loss", [FullSoftmax, lambda: SampledSoftmax(16)])
def test_nothing_is_copied_to_the_host_between_logging_points(loss, precision, tmp_path):
    seed_everything(0, verbose=False)
    data = SessionDataModule(
        simulate_sessions(320, num_items=50, num_moods=5), batch_size=32, max_length=20, pin_memory=True
    )
    module = SkipCLModule(
        SASRec(16, max_length=20),
        SkipInfoNCE(),
        num_items=data.num_items,
        embedding_size=16,
        next_item_loss=loss(),
    )
    copies = HostCopies()
    Trainer(
        accelerator="gpu",
        devices=1,
        precision=precision,
        max_steps=9,
        gradient_clip_val=1.0,
        log_every_n_steps=50,
        limit_val_batches=0,
        logger=CSVLogger(tmp_path),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[copies],
    ).fit(module, data)
    assert any("HtoD" in name for name in copies.names)  # the batches: the trace sees copies
    assert not [name for name in copies.names if "DtoH" in name]


@pytest.mark.parametrize("mode", [None, "reduce-overhead"])
def test_a_compiled_step_has_the_losses_of_a_plain_one(mode):
    torch.manual_seed(0)
    plain = SkipCLModule(
        SASRec(16, max_length=20, dropout=0.0), SkipInfoNCE(), num_items=100, embedding_size=16
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
            module.losses(batch)["loss"].backward()
            gradients.append({name: one.grad.clone() for name, one in module.named_parameters()})
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-5)


def test_half_precision_can_be_clipped_by_norm():
    seed_everything(0, verbose=False)
    data = SessionDataModule(simulate_sessions(64, num_items=50, num_moods=5), batch_size=32, max_length=20)
    module = SkipCLModule(
        SASRec(16, max_length=20), SkipInfoNCE(), num_items=data.num_items, embedding_size=16
    )
    trainer = Trainer(
        accelerator="gpu",
        devices=1,
        precision="16-mixed",
        gradient_clip_val=1.0,
        max_steps=3,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    assert module.item_embedding.weight.isfinite().all()
