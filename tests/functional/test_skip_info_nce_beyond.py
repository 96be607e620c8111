"""What the contrastive loss has beyond the paper: explicit feedback, mined and shared tracks."""

import math

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from slow_contrast import batch_of, random_sessions, slow_anchors

from skipcl_lightning.functional import (
    Candidates,
    rejected_candidates,
    session_contrast,
    skip_info_nce,
)

TAU = 0.5


def similarity(one, other):
    one, other = one.tolist(), other.tolist()
    length = math.sqrt(sum(a * a for a in one)) * math.sqrt(sum(b * b for b in other))
    return math.exp(sum(a * b for a, b in zip(one, other, strict=True)) / length / TAU)


def random_items(seed, *shape):
    """Items of 0, none, to 9."""
    return torch.randint(0, 10, shape, generator=torch.Generator().manual_seed(seed + 99))


def slow_mean(
    query,
    table,
    items,
    feedback,
    said,
    *,
    shared=(),
    shared_weights=None,
    mined=None,
    positives=None,
    beta=0.5,
    hardest=None,
    own_session=True,
    **switches,
):
    total, count = 0.0, 0.0
    for (b, t), (p, weight, chosen) in slow_anchors(items, feedback, said, **switches).items():
        session, q = items[b].tolist(), query[b, t]
        rejected = {
            session[s]
            for s in range(7)
            if session[s] and (said[b, s] < 0 or (feedback[b, s] < 0 and said[b, s] == 0))
        }
        kept = {
            session[s]
            for s in range(7)
            if session[s] and (said[b, s] > 0 or (feedback[b, s] >= 0 and said[b, s] == 0))
        }
        found = [w * similarity(q, table[session[s]]) for s, w in chosen.items()] if own_session else []
        wanted = [(session[p], 1.0)]
        if positives is not None:
            wanted += [(item, beta) for item in positives[b, t].tolist() if item and item not in rejected]
        pulled = {item for item, _ in wanted[1:]}
        for place, item in enumerate(list(shared)):
            if item and item not in kept | pulled:
                scale = 1.0 if shared_weights is None else shared_weights[place]
                found.append(scale * similarity(q, table[item]))
        if mined is not None:
            own_mined = mined[b, t].tolist()
            found += [similarity(q, table[item]) for item in own_mined if item and item not in kept | pulled]
        if not found:
            continue
        sums = sorted(found, reverse=True)[:hardest]
        each = [
            (w, -math.log(similarity(q, table[i]) / (similarity(q, table[i]) + sum(sums)))) for i, w in wanted
        ]
        total += weight * sum(w * loss for w, loss in each) / sum(w for w, _ in each)
        count += weight
    return total / count if count else 0.0


@hypothesis.given(
    seed=st.integers(0, 10_000),
    negatives=st.sampled_from(["session", "past", "passed"]),
    hardest=st.sampled_from([None, 1, 2]),
    beta=st.sampled_from([0.0, 0.5]),
    parts=st.sets(st.sampled_from(["shared", "mined", "positives"])),
)
@hypothesis.settings(max_examples=80)
def test_the_loss_equals_the_slow_loop(seed, negatives, hardest, beta, parts):
    query, table, items, feedback, said = random_sessions(seed)
    shared, mined, positives = (
        random_items(seed + n, *shape) for n, shape in enumerate([(6,), (4, 7, 2), (4, 7, 3)])
    )
    batch = batch_of(
        items,
        feedback,
        said,
        mined_negatives=mined if "mined" in parts else None,
        mined_positives=positives if "positives" in parts else None,
    )
    loss = skip_info_nce(
        query,
        table[items],
        batch,
        table,
        negatives=negatives,
        like_weight=2.0,
        temperature=TAU,
        num_hardest=hardest,
        mined_positive_weight=beta,
        candidates=Candidates(shared, table[shared]) if "shared" in parts else None,
    )
    expected = slow_mean(
        query,
        table,
        items,
        feedback,
        said,
        shared=shared.tolist() if "shared" in parts else (),
        mined=mined if "mined" in parts else None,
        positives=positives if "positives" in parts else None,
        beta=beta,
        hardest=hardest,
        negatives=negatives,
        like_weight=2.0,
    )
    assert loss.item() == pytest.approx(expected, rel=1e-6, abs=1e-9)


@hypothesis.given(seed=st.integers(0, 10_000), hardest=st.sampled_from([None, 1, 3]))
@hypothesis.settings(max_examples=40)
def test_the_skips_of_the_batch_are_candidates_for_all_its_sessions(seed, hardest):
    query, table, items, feedback, said = random_sessions(seed)
    batch = batch_of(items, feedback, said)
    settings = {"temperature": TAU, "skip_weights": "strength"}
    loss = skip_info_nce(query, table[items], batch, negatives="batch", num_hardest=hardest, **settings)
    contrast = session_contrast(batch, skip_weights="strength")
    candidates = rejected_candidates(table[items], items, contrast)
    expected = slow_mean(
        query,
        table,
        items,
        feedback,
        said,
        shared=candidates.items.tolist(),
        shared_weights=candidates.log_weight.exp().tolist(),
        own_session=False,
        hardest=hardest,
    )
    assert loss.item() == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_gradients_reach_all_that_is_compared_and_pass_gradcheck():
    query, table, items, feedback, said = random_sessions(2)
    shared, mined, positives = (
        random_items(n, *shape) for n, shape in enumerate([(6,), (4, 7, 2), (4, 7, 3)])
    )

    batch = batch_of(items, feedback, said, mined_negatives=mined, mined_positives=positives)

    def loss(query, table):
        candidates = Candidates(shared, table[shared])
        return skip_info_nce(query, table[items], batch, table, candidates=candidates, temperature=TAU)

    assert torch.autograd.gradcheck(loss, (query.requires_grad_(), table.requires_grad_()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hardest": 0}, "`num_hardest` must be at least 1, got 0"),
        ({"mined_positive_weight": -0.1}, "`mined_positive_weight` must be in"),
        (
            {"candidates": Candidates(torch.ones(3).long(), torch.zeros(2, 5))},
            r"`candidates.keys` must have shape \[C=3, D=5\], got \[2, 5\]",
        ),
        ({"gather_ranks": True}, "`negatives` must be 'batch' with `gather_ranks`, got 'session'"),
    ],
)
def test_bad_arguments_are_named(change, message):
    query, table, items, feedback, _ = random_sessions(0)
    with pytest.raises(ValueError, match=message):
        skip_info_nce(query, table[items], (items, feedback), **change)


def test_candidates_join_the_skips_of_the_batch():
    query, table, items, feedback, said = random_sessions(5)
    shared, batch = torch.tensor([1, 4, 8]), batch_of(items, feedback, said)
    loss = skip_info_nce(
        query,
        table[items],
        batch,
        negatives="batch",
        candidates=Candidates(shared, table[shared]),
        temperature=TAU,
    )
    own = rejected_candidates(table[items], items, session_contrast(batch)).items
    expected = slow_mean(
        query, table, items, feedback, said, shared=[*own.tolist(), *shared.tolist()], own_session=False
    )
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_mined_items_need_the_item_table():
    query, table, items, feedback, _ = random_sessions(0)
    batch = batch_of(items, feedback, mined_negatives=random_items(0, 4, 7, 2))
    with pytest.raises(ValueError, match="`item_embeddings` must be given for mined tracks, got None"):
        skip_info_nce(query, table[items], batch)


@pytest.mark.parametrize("skip_weights", ["uniform", "strength"])
def test_the_hardest_negatives_have_the_largest_terms_weight_included(skip_weights):
    query = torch.tensor([[[1.0, 0.0]]]).expand(1, 4, 2)
    # The positive stands last; the second track is near and barely skipped, the third far and surely skipped.
    keys = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0], [0.0, 1.0]]])
    items, feedback = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[1.0, -0.01, -1.0, 1.0]])
    losses = skip_info_nce(
        query,
        keys,
        (items, feedback),
        skip_weights=skip_weights,
        temperature=1.0,
        num_hardest=1,
        reduction="none",
    )
    near, far = math.exp(1 / math.sqrt(1.01)), math.exp(-1.0)
    # The positive is at a right angle to the query: its term is exp(0) = 1.
    hardest = {"uniform": max(near, far), "strength": max(0.01 * near, far)}[skip_weights]
    assert losses[0, 0].item() == pytest.approx(math.log(1 + hardest), rel=1e-5)


def test_places_without_a_candidate_change_nothing():
    # As on a GPU, where candidates stay in their places.
    query, table, items, feedback, _ = random_sessions(4)
    contrast = session_contrast((items, feedback))
    compact = rejected_candidates(table[items], items, contrast)
    padded = Candidates(
        torch.where(contrast.rejected_mask, items, 0).flatten(),
        table[items].flatten(0, 1),
        contrast.log_weight.flatten(),
    )
    assert len(compact.items) < len(padded.items)
    losses = [
        skip_info_nce(query, table[items], (items, feedback), candidates=each, num_hardest=n, temperature=TAU)
        for each in (compact, padded)
        for n in (None, 2)
    ]
    torch.testing.assert_close(losses[:2], losses[2:])
    assert losses[0] > 0
