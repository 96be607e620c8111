"""A model of one's own may pad on the left: the heads see tracks, and no places."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skipcl_lightning.batch import SessionBatch
from skipcl_lightning.heads import (
    CombinedHead,
    OpposingSequences,
    SkipInfoNCE,
    SkipMargin,
    SkipSoftmax,
    SkipUnlikelihood,
)

HEADS = {
    "session": lambda: SkipInfoNCE(),
    "past": lambda: SkipInfoNCE(negatives="past"),
    "passed": lambda: SkipInfoNCE(negatives="passed"),
    "batch": lambda: SkipInfoNCE(negatives="batch", bank_size=4),
    "all anchors": lambda: SkipInfoNCE(anchors="all", query="item"),
    "unlikelihood": lambda: SkipUnlikelihood(num_samples=3, negatives="past"),
    "softmax": lambda: SkipSoftmax(num_samples=4, negatives="past"),
    "bpr": lambda: SkipMargin(negatives="passed"),
    "opposing": lambda: OpposingSequences(6, num_samples=4),
    "combined": lambda: CombinedHead([SkipInfoNCE(weight=0.2), SkipMargin(weight=0.5)]),
}


@pytest.mark.parametrize("name", HEADS)
@given(
    lengths=st.lists(st.integers(0, 7), min_size=1, max_size=5),
    padding=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_sessions_padded_on_the_left_have_the_loss_of_those_padded_on_the_right(name, lengths, padding, seed):
    generator = torch.Generator().manual_seed(seed)
    rows, length = len(lengths), max(lengths) + padding
    valid_mask = torch.arange(length) < torch.tensor(lengths)[:, None]
    items = torch.randint(1, 13, (rows, length), generator=generator) * valid_mask
    feedback = (torch.rand(rows, length, generator=generator) * 2 - 1) * valid_mask
    query = torch.randn(rows, length, 6, generator=generator) * valid_mask[..., None]
    table = torch.randn(13, 6, generator=generator)
    table[0] = 0

    def loss(move):
        torch.manual_seed(seed)  # of the head's weights, and of what it samples
        sessions = SessionBatch(move(items), move(feedback))
        return HEADS[name]()(move(query), table[sessions.items], sessions, table)

    def to_the_left(tensor):
        return torch.stack([row.roll(length - n, 0) for row, n in zip(tensor, lengths, strict=True)])

    right = loss(lambda tensor: tensor)
    torch.testing.assert_close(loss(to_the_left), right)
