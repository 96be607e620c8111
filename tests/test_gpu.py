import pytest
import torch

from skipcl_lightning.backbones import BACKBONES
from skipcl_lightning.batch import SessionBatch
from skipcl_lightning.functional import chunked_softmax_loss, skip_info_nce, target_ranks
from skipcl_lightning.heads import (
    CombinedHead,
    FullSoftmax,
    OpposingSequences,
    SkipInfoNCE,
    SkipMargin,
    SkipSoftmax,
    SkipUnlikelihood,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


def test_the_formulas_agree_with_the_cpu():
    generator = torch.Generator().manual_seed(0)
    query, keys = (torch.randn(4, 6, 8, generator=generator) for _ in range(2))
    items = torch.randint(1, 30, (4, 6), generator=generator)
    feedback = torch.rand(4, 6, generator=generator) * 2 - 1
    for negatives in ("session", "past", "batch"):
        on_cpu = skip_info_nce(query, keys, (items, feedback), negatives=negatives)
        on_gpu = skip_info_nce(
            query.cuda(), keys.cuda(), (items.cuda(), feedback.cuda()), negatives=negatives
        )
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


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("loss", [FullSoftmax, lambda: FullSoftmax(chunk_size=9)])
def test_only_places_that_may_have_a_target_are_computed_at(loss, weighted):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(40, 21, 8, generator=generator)
    table = torch.randn(31, 8, generator=generator)
    target = torch.randint(1, 31, (40, 21), generator=generator)
    target[torch.rand(40, 21, generator=generator) < 0.5] = 0
    query[target == 0] = torch.nan
    weight = (torch.rand(40, 21, generator=generator) + 0.5,) if weighted else ()
    expected = loss()(query, table, target, *weight)
    moved = [one.cuda() for one in (query, table, target, *weight)]
    for most in (None, int((target != 0).sum()), 600):
        leaf = moved[0].clone().requires_grad_()
        found = loss()(leaf, *moved[1:], most_targets=most)
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-5)
        found.backward()
        assert leaf.grad[moved[2] == 0].eq(0).all()
        assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("size", [5, 64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_over_a_large_catalogue_comes_near_float64(dtype, size):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2000, size, generator=generator).cuda()
    table = (size**-0.5 * torch.randn(20_001, size, generator=generator)).cuda()
    target = torch.randint(1, 20_001, (2000,), generator=generator).cuda()
    weight = torch.rand(2000, generator=generator).cuda()

    def gradients(query, table, **settings):
        leaves = [one.clone().requires_grad_() for one in (query, table)]
        loss = chunked_softmax_loss(*leaves, target, weight.to(query), **settings)
        return loss, *torch.autograd.grad(loss, leaves)

    expected = gradients(query.double(), table.double())
    for chunk_size in (600, 2000):
        with torch.autocast("cuda", dtype=dtype):
            found = gradients(query, table, chunk_size=chunk_size)
        torch.testing.assert_close(found[0].double(), expected[0], rtol=1e-3, atol=0)
        for one, right in zip(found[1:], expected[1:], strict=True):
            assert one.dtype == torch.float32
            assert (one - right).norm() < 0.01 * right.norm()
