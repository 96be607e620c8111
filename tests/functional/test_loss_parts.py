import pytest
import torch

from skipcl_lightning.functional import Candidates, session_contrast
from skipcl_lightning.functional.next_item.full_softmax import log_partition, normalised_weights
from skipcl_lightning.functional.next_item.look_up import gather_gradients, look_up, require_table
from skipcl_lightning.functional.products import cosine
from skipcl_lightning.functional.skip_losses.contrast import (
    _fill,
    absent_mask,
    candidate_similarity,
    gather_candidates,
    is_distributed,
    reduce_anchors,
    settings_within_session,
    weighted_mean,
)
from skipcl_lightning.functional.skip_losses.score_losses import mean_over_negatives, session_scores

SESSIONS = torch.tensor([[1, 2, 3]]), torch.tensor([[1.0, -1.0, 1.0]])


def test_candidates_are_compared_by_direction():
    one = Candidates(torch.tensor([4]), torch.tensor([[0.0, 2.0]]))
    found = candidate_similarity("candidates", torch.ones(1, 1, 2), one, 1.0, torch.ones(1, 1).bool())
    assert found.flatten().tolist() == pytest.approx([0.5**0.5])
    keys = torch.tensor([[3.0, 3.0], [-1.0, -1.0]])
    assert cosine(torch.ones(1, 1, 2), keys).flatten().tolist() == pytest.approx([1.0, -1.0])


def test_a_session_is_not_pushed_from_what_it_keeps():
    two = Candidates(torch.tensor([4, 5]), torch.ones(2, 3))
    assert absent_mask(two, torch.tensor([[5, 1]])).tolist() == [[[True, False]]]


def test_one_process_gathers_its_own_candidates():
    assert not is_distributed()
    one = Candidates(torch.tensor([3]), torch.ones(1, 2), torch.zeros(1))
    assert gather_candidates(one).items.tolist() == [3]
    assert _fill(torch.ones(1, 2), 3).tolist() == [[1, 1], [0, 0], [0, 0]]
    assert _fill(torch.tensor([3]), 2).tolist() == [3, 0]


def test_means_are_weighted_and_exactly_0_without_weights():
    assert reduce_anchors(torch.tensor([[2.0, 4.0]]), torch.tensor([[1.0, 3.0]]), "mean") == 3.5
    assert weighted_mean(torch.ones(2), torch.zeros(2)) == 0
    assert normalised_weights(torch.ones(2, 4), torch.tensor([1.0, 3.0])).tolist() == [0.25, 0.75]


def test_losses_within_a_session_look_at_passed_skips():
    assert settings_within_session({"like_weight": 2.0}).negatives == "passed"
    losses, weights = mean_over_negatives(torch.full((1, 3, 3), 5.0), session_contrast(SESSIONS))
    assert losses[0, 0] == 5.0
    assert weights.tolist() == [[1.0, 0.0, 0.0]]


def test_scores_are_inner_products_and_those_of_the_positive_come_apart():
    items, keys = torch.tensor([[1, 2]]), torch.tensor([[[1.0], [2.0]]])
    scores, own = session_scores(keys, keys, items, session_contrast((items, torch.ones(1, 2))))
    assert scores.tolist() == [[[1.0, 2.0], [2.0, 4.0]]]
    assert own.tolist() == [[2.0, 2.0]]


def test_the_partition_leaves_padding_out():
    found = log_partition(torch.ones(2, 1), torch.tensor([[9.0], [1.0], [1.0]]))
    assert found.tolist() == pytest.approx([1.6931, 1.6931], abs=1e-4)


def test_lookups_share_a_gradient_and_need_a_table():
    assert look_up(torch.tensor([[2, 0]]), torch.tensor([[0.0], [1.0], [2.0]])).tolist() == [[[2.0], [0.0]]]
    table = torch.ones(3, 1, requires_grad=True)
    gathered = gather_gradients(table)
    twice = look_up(torch.tensor([1, 2]), gathered) + look_up(torch.tensor([1, 1]), gathered)
    twice.sum().backward()
    assert table.grad.tolist() == [[0.0], [3.0], [1.0]]
    with pytest.raises(ValueError, match=r"`item_embeddings` must be given for a memory bank, got None\."):
        require_table(None, "a memory bank")
