"""The contrast of a session in plain loops, which the tests of every skip head share."""

import torch

from skipcl_lightning.batch import SessionBatch


def random_sessions(seed, *, sessions=4, length=7, num_items=9, explicit=True, dtype=torch.float64):
    """Query, table, items, feedback and explicit feedback, with repeats, unknowns and padding."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(num_items + 1, 5, generator=generator, dtype=dtype)
    items = torch.randint(1, num_items + 1, (sessions, length), generator=generator)
    lengths = torch.randint(0, length + 1, (sessions,), generator=generator)
    items[torch.arange(length) >= lengths[:, None]] = 0
    levels = torch.tensor([-1.0, -0.5, -0.25, 0.0, 0.25, 1.0], dtype=dtype)
    feedback = levels[torch.randint(0, len(levels), items.shape, generator=generator)]
    spoken = torch.tensor([-1.0, -0.5, 0.0, 0.0, 0.0, 1.0], dtype=dtype)
    said = spoken[torch.randint(0, len(spoken), items.shape, generator=generator)] * explicit
    feedback[items == 0] = 0
    said[items == 0] = 0
    query = torch.randn(sessions, length, 5, generator=generator, dtype=dtype)
    return query, table, items, feedback, said


def batch_of(items, feedback, said=None, *, threshold=0.0, **more):
    """The sessions as the library takes them: float32 feedback, which holds the levels exactly."""
    explicit = None if said is None else said.float()
    return SessionBatch(items, feedback.float(), explicit_feedback=explicit, skip_threshold=threshold, **more)


def slow_anchors(  # noqa: C901 - the definitions, one after the other, as a reader would check them
    items,
    feedback,
    said,
    *,
    anchors="listened",
    negatives="session",
    skip_weights="uniform",
    threshold=0.0,
    dislike_weight=1.0,
    like_weight=1.0,
    positives=None,
):
    """{(session, position): (position of the positive, weight of the anchor, {position: weight})}."""
    found = {}
    for b, session in enumerate(items.tolist()):
        heard, opinion = feedback[b].tolist(), said[b].tolist()
        real = [t for t, item in enumerate(session) if item]
        listened = [t for t in real if heard[t] >= threshold and opinion[t] >= 0]
        rejected = {}
        for s in real:
            if opinion[s] < 0:
                rejected[s] = dislike_weight * (-opinion[s] if skip_weights == "strength" else 1.0)
            elif heard[s] < threshold and opinion[s] == 0:
                strength = (threshold - heard[s]) / (threshold + 1)
                rejected[s] = strength if skip_weights == "strength" else 1.0
        kept_items = {session[t] for t in real if t not in rejected}
        for t in listened if anchors == "listened" else real:
            later = [s for s in listened if s > t] if positives is None else [int(positives[b, t])]
            if not later or later[0] < 0:
                continue
            p = later[0]
            before = max((s for s in listened if s < p), default=-1)
            chosen = {s: w for s, w in rejected.items() if session[s] not in {*kept_items, session[p]}}
            if negatives == "past":
                chosen = {s: w for s, w in chosen.items() if s < p}
            if negatives == "passed":
                chosen = {s: w for s, w in chosen.items() if before < s < p}
            found[b, t] = (p, like_weight if opinion[p] > 0 else 1.0, chosen)
    return found
