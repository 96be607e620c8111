"""Cosines without normalised copies, against torch's own on one pair at a time."""

import pytest
import torch
import torch.nn.functional as F

from skipcl_lightning.functional import products
from skipcl_lightning.functional.products import cosine

KINDS = {"session": (3, 5, 4), "shared": (7, 4), "own": (3, 6, 5, 4)}


def make(kind, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    query = torch.randn(3, 6, 4, generator=generator, dtype=dtype, requires_grad=True)
    keys = torch.randn(*KINDS[kind], generator=generator, dtype=dtype, requires_grad=True)
    query_mask = torch.rand(3, 6, generator=generator) < 0.7
    keys_mask = torch.rand(3, 5, generator=generator) < 0.7 if kind == "session" else None
    return query, keys, query_mask, keys_mask


def plain(query, keys, query_mask, keys_mask):
    """One pair at a time, by torch's formula."""
    query = query * query_mask[..., None]
    keys = keys if keys_mask is None else keys * keys_mask[..., None]
    sessions, length, _ = query.shape
    of_session = [keys if keys.dim() == 2 else keys[session] for session in range(sessions)]
    rows = [
        torch.stack(
            [
                F.cosine_similarity(query[session, place], key, dim=0, eps=1e-12)
                for key in (
                    of_session[session][place] if of_session[session].dim() == 3 else of_session[session]
                )
            ]
        )
        for session in range(sessions)
        for place in range(length)
    ]
    return torch.stack(rows).view(sessions, length, -1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cached", [1, 1 << 18])
def test_values_and_gradients_equal_torch_pair_by_pair(kind, cached, monkeypatch):
    monkeypatch.setattr(products, "_CACHED", cached)  # one group at a time, and all at once
    query, keys, query_mask, keys_mask = make(kind)
    found = cosine(query, keys, 0.5, query_mask=query_mask, keys_mask=keys_mask)
    expected = plain(query, keys, query_mask, keys_mask) / 0.5
    torch.testing.assert_close(found, expected)
    slope = torch.randn_like(found)
    for one, other in zip(
        torch.autograd.grad(found, (query, keys), slope),
        torch.autograd.grad(expected, (query, keys), slope),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    "kind", ["session", *(pytest.param(k, marks=pytest.mark.slow) for k in ("shared", "own"))]
)
def test_the_formula_that_compilers_get_is_the_same(kind):
    query, keys, query_mask, keys_mask = make(kind)
    compiled = torch.compile(cosine, backend="eager", fullgraph=True)
    found = compiled(query, keys, 0.5, query_mask=query_mask, keys_mask=keys_mask)
    expected = cosine(query, keys, 0.5, query_mask=query_mask, keys_mask=keys_mask)
    torch.testing.assert_close(found, expected)
    slope = torch.randn_like(found)
    for one, other in zip(
        torch.autograd.grad(found, (query, keys), slope),
        torch.autograd.grad(expected, (query, keys), slope),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_pass_gradcheck_and_reach_the_temperature(kind):
    query, keys, query_mask, keys_mask = make(kind)
    temperature = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda *tensors: cosine(*tensors, query_mask=query_mask, keys_mask=keys_mask),
        (query, keys, temperature),
    )


def test_what_stands_behind_a_mask_counts_as_nothing():
    query, keys, query_mask, keys_mask = make("session")
    dirty_query = query.detach().masked_fill(~query_mask[..., None], torch.nan).requires_grad_()
    dirty_keys = keys.detach().masked_fill(~keys_mask[..., None], torch.inf).requires_grad_()
    found = cosine(dirty_query, dirty_keys, query_mask=query_mask, keys_mask=keys_mask)
    assert (found[~query_mask] == 0).all()
    assert (found.mT[~keys_mask] == 0).all()
    found.sum().backward()
    assert (dirty_query.grad[~query_mask] == 0).all()
    assert (dirty_keys.grad[~keys_mask] == 0).all()
    assert dirty_query.grad.isfinite().all()


DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_vector_of_zeros_is_like_nothing_and_has_no_gradient(dtype, compiled):
    query = torch.zeros(1, 2, 3, dtype=dtype)
    query[0, 1] = 1
    keys = torch.tensor([[[1.0, 2.0, 2.0], [0.0, 0.0, 0.0]]], dtype=dtype)
    query.requires_grad_()
    keys.requires_grad_()
    found = (products._plain_cosine(query, keys, None, None) if compiled else cosine(query, keys)) * 10
    assert found.flatten().tolist() == pytest.approx([0, 0, 50 / 3 / 3**0.5, 0])
    found.sum().backward()
    assert not query.grad[0, 0].any()
    assert not keys.grad[0, 1].any()
    assert query.grad[0, 1].any()
    assert keys.grad[0, 0].isfinite().all()
    # A little longer than nothing is nothing too: a gradient beyond float16 would be no use.
    tiny = torch.full((1, 1, 3), torch.finfo(dtype).tiny / 8, dtype=dtype, requires_grad=True)
    cosine(tiny, keys.detach()).sum().backward()
    assert not tiny.grad.any()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("exponent", [-30, -11, -6, 0, 19, 30, 38])
def test_long_and_short_vectors_are_compared_without_an_overflow(exponent, compiled):
    query, keys, *_ = (tensor.detach().float() for tensor in make("session"))
    sizes = [10.0**exponent, 10.0**-exponent] if abs(exponent) < 38 else [1e37, 1e-6]
    long, short = (
        (tensor * size).requires_grad_() for tensor, size in zip((query, keys), sizes, strict=True)
    )
    found = products._plain_cosine(long, short, None, None) if compiled else cosine(long, short)
    expected = F.cosine_similarity(query[:, :, None], keys[:, None], dim=-1)
    nothing = min(sizes) < 1e-12
    torch.testing.assert_close(found, torch.zeros_like(expected) if nothing else expected)
    found.sum().backward()
    plain = query.requires_grad_()
    F.cosine_similarity(plain[:, :, None], keys[:, None], dim=-1).sum().backward()
    assert long.grad.isfinite().all()
    assert short.grad.isfinite().all()
    if not nothing:
        torch.testing.assert_close(long.grad * sizes[0], plain.grad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_compared_in_float32_under_autocast_too(dtype):
    query, keys, query_mask, keys_mask = (
        tensor.detach().to(dtype) if tensor.is_floating_point() else tensor for tensor in make("session")
    )
    expected = cosine(query.float(), keys.float(), query_mask=query_mask, keys_mask=keys_mask)
    query.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = cosine(query, keys, query_mask=query_mask, keys_mask=keys_mask)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    found.sum().backward()
    assert query.grad.dtype == dtype


def test_a_second_derivative_is_refused_rather_than_wrong():
    query, keys, _, _ = make("session")
    (gradient,) = torch.autograd.grad(cosine(query, keys).square().sum(), query, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_other_devices_take_all_groups_at_once():
    query = torch.empty(1000, 50, 64, device="meta")
    assert products._pieces(query, query) == [slice(0, 1000)]
