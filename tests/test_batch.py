import numpy as np
import pytest
import torch
from lightning.pytorch.plugins.precision import HalfPrecision

from skipcl_lightning._settings import records_settings
from skipcl_lightning.batch import SessionBatch, is_rejected


def two_sessions(**changes):
    fields = {
        "items": torch.tensor([[5, 3, 4], [2, 0, 0]]),
        "feedback": torch.tensor([[1.0, -0.5, 0.0], [-1.0, 0.0, 0.0]]),
        "target": torch.tensor([1, 2]),
        "target_feedback": torch.tensor([1.0, -1.0]),
        "session_index": torch.tensor([0, 1]),
    }
    return SessionBatch(**{**fields, **changes})


def test_masks_partition_the_real_positions():
    batch = two_sessions(skip_threshold=-0.7)
    assert batch.skip_mask.tolist() == [[False, False, False], [True, False, False]]
    assert batch.listened_mask.tolist() == [[True, True, True], [False, False, False]]
    assert torch.equal(batch.skip_mask | batch.listened_mask, batch.valid_mask)


def test_slicing_keeps_every_field_and_setting():
    batch = two_sessions(skip_threshold=-0.7)[torch.tensor([1])]
    assert batch.items.tolist() == [[2, 0, 0]]
    assert batch.target.tolist() == [2]
    assert batch.session_index.tolist() == [1]
    assert batch.skip_threshold == -0.7


def test_a_batch_shows_its_size_and_what_it_holds():
    assert repr(two_sessions()) == (
        "SessionBatch(2 sessions of up to 3 items, target, target_feedback, session_index; cpu)"
    )


def test_moving_moves_every_tensor():
    batch = two_sessions().to("meta")
    assert {tensor.device.type for tensor in vars(batch).values() if isinstance(tensor, torch.Tensor)} == {
        "meta"
    }


def test_lightning_leaves_the_feedback_in_float32_at_any_precision():
    batch = two_sessions()
    converted = HalfPrecision("bf16-true").convert_input(batch)
    assert converted.feedback.dtype == torch.float32
    assert two_sessions().replace(target_feedback=torch.ones(2)).target_feedback.tolist() == [1.0, 1.0]
    with pytest.raises(TypeError, match="unexpected keyword argument 'targets'"):
        batch.replace(targets=None)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"items": torch.zeros(2, 3)}, TypeError, "`items` must be of dtype torch.int64, got torch.float32"),
        (
            {"feedback": torch.zeros(2, 4)},
            ValueError,
            r"`feedback` must have shape \[B=2, L=3\], got \[2, 4\]",
        ),
        ({"target_feedback": None}, ValueError, "`target` and `target_feedback` must be given together"),
        ({"skip_threshold": float("nan")}, ValueError, "`skip_threshold` must be in"),
        ({"cold_target": torch.zeros(2)}, TypeError, "`cold_target` must be of dtype torch.bool"),
        ({"items": [[1]]}, TypeError, "`items` must be a tensor, got list"),
    ],
)
def test_bad_fields_are_named(change, error, message):
    with pytest.raises(error, match=message):
        two_sessions(**change)


def test_settings_are_not_recorded_for_a_subclass_with_other_arguments():
    class Parent:
        @records_settings
        def __init__(self, size, *, rate=0.5):
            self.size = size

    class Child(Parent):
        def __init__(self, size):
            super().__init__(size * 2)

    assert Parent(3).settings == {"size": 3, "rate": 0.5}
    assert not hasattr(Child(3), "settings")


def test_the_latest_tracks_are_kept_and_all_else_with_them():
    batch = SessionBatch(
        items=torch.tensor([[5, 3, 4, 7], [2, 1, 0, 0], [0, 0, 0, 0]]),
        feedback=torch.tensor([[1.0, -1.0, 0.5, 0.2], [0.1, 0.3, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]),
        target=torch.tensor([1, 2, 3]),
        target_feedback=torch.ones(3),
        seen=torch.tensor([[5, 3, 4, 7], [2, 1, 0, 0], [0, 0, 0, 0]]),
        cloze_mask=torch.tensor([[True, False, True, False], [True, False, False, False], [False] * 4]),
        skip_threshold=0.25,
    )
    latest = batch.latest(3)
    assert latest.items.tolist() == [[3, 4, 7], [2, 1, 0], [0, 0, 0]]
    torch.testing.assert_close(
        latest.feedback, torch.tensor([[-1.0, 0.5, 0.2], [0.1, 0.3, 0.0], [0.0, 0.0, 0.0]])
    )
    assert latest.cloze_mask.tolist() == [[False, True, False], [True, False, False], [False] * 3]
    assert torch.equal(latest.seen, batch.seen)
    assert torch.equal(latest.target, batch.target)
    assert latest.skip_threshold == 0.25
    assert batch.latest(4) is batch
    uncut = batch.replace(seen=None)
    assert torch.equal(uncut.latest(2).seen_items, batch.items)
    with pytest.raises(ValueError, match="`length` must be at least 1"):
        batch.latest(0)


def test_the_number_of_tracks_stays_known_while_the_tracks_stay():
    items = torch.tensor([[5, 3, 4], [2, 0, 0]])
    batch = SessionBatch(items, torch.zeros(2, 3), num_tracks=4)
    assert batch.to("cpu").num_tracks == 4
    assert batch.replace(feedback=torch.ones(2, 3)).num_tracks == 4
    assert batch.latest(2).num_tracks == 4  # no fewer than there are
    assert batch.replace(items=items.flip(0)).num_tracks is None
    assert batch[:1].num_tracks is None
    with pytest.raises(ValueError, match="`num_tracks` must be"):
        SessionBatch(items, torch.zeros(2, 3), num_tracks=-1)


@pytest.mark.parametrize("value", [float("nan"), 1.5, -2.0])
@pytest.mark.parametrize("name", ["feedback", "explicit_feedback"])
def test_feedback_that_is_no_number_between_minus_one_and_one_is_refused(name, value):
    wrong = torch.tensor([[1.0, -0.5, value], [-1.0, 0.0, 0.0]])
    with pytest.raises(ValueError, match=rf"`{name}` must hold numbers in \[-1, 1\], got {value}"):
        two_sessions(**{name: wrong})


def test_feedback_of_targets_is_checked_too():
    with pytest.raises(ValueError, match=r"`target_feedback` must hold numbers in .* got nan"):
        two_sessions(target=torch.tensor([1, 2]), target_feedback=torch.tensor([1.0, float("nan")]))


def test_rejected_is_skipped_or_disliked_unless_liked():
    feedback = [-1.0, -1.0, -1.0, 1.0, 1.0, 1.0, 0.0]
    explicit = [-1.0, 0.0, 1.0, -0.1, 0.0, 1.0, 0.0]
    items = torch.tensor([[1, 2, 3, 4, 5, 6, 0]])
    batch = SessionBatch(items, torch.tensor([feedback]), explicit_feedback=torch.tensor([explicit]))
    expected = [True, True, False, True, False, False, False]
    assert batch.rejected_mask.tolist() == [expected]
    arrays = is_rejected(np.array(feedback), np.array(explicit), 0.0)
    assert arrays.tolist() == expected
    assert batch.replace(explicit_feedback=None).rejected_mask.equal(batch.skip_mask)
