"""The batch that all layers exchange, its targets, the legend of shapes and the polarity of masks.

Letters of shapes, in every comment and docstring of the package:

| letter | meaning |
|---|---|
| `B` | sessions in a batch |
| `L` | positions in a session, padding included |
| `D` | size of an embedding |
| `V` | items in the catalogue; tables over it have `V + 1` rows |
| `N` | queries: positions or sessions for which something is ranked |
| `K` | sampled negatives |

Polarity: a mask says what is true of a position (`valid_mask`: the position holds an item). True never means
"ignore".

Indices: 0 is padding in every tensor of item indices ("no item", "no target", "nothing to exclude"). Items
have the indices 1 to V. Sessions are padded on the right.
"""

from collections.abc import Callable, Iterator
from typing import Any, Final, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from skipcl_lightning._checks import check_choice, check_integer, check_number, check_shape

# The functions of targets are public in `functional`.
__all__ = ["PADDING_INDEX", "SessionBatch", "Sessions", "as_batch", "is_rejected"]

PADDING_INDEX = 0

TargetRule = Literal["next_listened", "next"]

# The shape and dtype of each tensor of a batch.
_TENSORS = {
    "items": ("B L", torch.int64),
    "feedback": ("B L", torch.float32),
    "cloze_mask": ("B L", torch.bool),
    "explicit_feedback": ("B L", torch.float32),
    "mined_negatives": ("B L M", torch.int64),
    "mined_positives": ("B L P", torch.int64),
    "context": ("B L C", torch.int64),
    "target": ("B", torch.int64),
    "target_feedback": ("B", torch.float32),
    "session_index": ("B", torch.int64),
    "seen": ("B S", torch.int64),
    "cold_target": ("B", torch.bool),
    "history": ("B H", torch.int64),
}


class SessionBatch:
    """Sessions padded on the right, with the listener's feedback at each position.

    On a CPU, feedback outside [-1, 1] or NaN is refused. Other contents, such as padding only on the right,
    are checked once, when the data is prepared. A batch is immutable; `replace` returns another one. The
    feedback stays float32 under any precision of Lightning's `Trainer`.

    Args:
        items: [B, L] int64 item indices in 0..V; 0 is padding.
        feedback: [B, L] float32 in [-1, 1]: below `skip_threshold` skipped (-1: at once), else listened (+1:
            to the end); 0 is unknown, and padding.
        target: [B] int64, the held-out item after each session; at evaluation only.
        target_feedback: [B] float32, the feedback on the target; at evaluation only. The data module gives -1
            for a disliked target and +1 for a liked skip, so this value alone says whether the target was
            rejected.
        session_index: [B] int64, the number of each row's session in the data.
        seen: [B, S] int64, all items of each session so far, if `items` holds only the latest; filled with 0.
        cloze_mask: [B, L] bool, True where the item is hidden from a bidirectional backbone, which must
            predict it; in training only.
        explicit_feedback: [B, L] float32 in [-1, 1]: below 0 disliked, above 0 liked, 0 unknown or padding;
            None if the data has none.
        cold_target: [B] bool, True if the held-out item never occurs in the training set; it then ranks last.
            None if unknown.
        mined_negatives: [B, L, M] int64, sampled items that are often skipped right after this one in the
            training set; 0 is none; in training only.
        mined_positives: [B, L, P] int64, sampled items that are often listened to after it.
        history: [B, H] int64, the items that the listener listened to in earlier sessions, the oldest first;
            filled with 0 at the end. Only the model sees them: they are no part of the session, and so no
            targets, anchors, negatives or seen items. None if unknown.
        context: [B, L, C] int64, a code for each of C inputs of a play's context, such as the hour; 0 is
            unknown or padding. None if the data has none.
        skip_threshold: Feedback below it is a skip, in (-1, 1].
        num_tracks: An upper bound of the number of items in the batch, 0 or more; None if unknown. With it,
            the host need not ask a GPU for that number.

    Raises:
        TypeError: A tensor has the wrong dtype, or the number of tracks is no integer.
        ValueError: Shapes disagree, only one of the two targets is given, feedback is NaN or outside [-1, 1],
            or the threshold is out of range.

    Examples:
        >>> batch = SessionBatch(
        ...     items=torch.tensor([[5, 3, 4], [2, 0, 0]]),
        ...     feedback=torch.tensor([[1.0, -1.0, 0.0], [0.5, 0.0, 0.0]]),
        ... )
        >>> batch.skip_mask
        tensor([[False,  True, False],
                [False, False, False]])
        >>> batch.lengths
        tensor([3, 1])
        >>> len(batch[:1])
        1
    """

    # No dataclass: Lightning would convert its feedback to the precision of the weights, which could move
    # values across the threshold.
    def __init__(
        self,
        items: Tensor,
        feedback: Tensor,
        target: Tensor | None = None,
        target_feedback: Tensor | None = None,
        session_index: Tensor | None = None,
        seen: Tensor | None = None,
        cloze_mask: Tensor | None = None,
        explicit_feedback: Tensor | None = None,
        mined_negatives: Tensor | None = None,
        mined_positives: Tensor | None = None,
        cold_target: Tensor | None = None,
        history: Tensor | None = None,
        context: Tensor | None = None,
        *,
        skip_threshold: float = 0.0,
        num_tracks: int | None = None,
    ) -> None:
        self.items: Final = items
        self.feedback: Final = feedback
        self.target: Final = target
        self.target_feedback: Final = target_feedback
        self.session_index: Final = session_index
        self.seen: Final = seen
        self.cloze_mask: Final = cloze_mask
        self.explicit_feedback: Final = explicit_feedback
        self.mined_negatives: Final = mined_negatives
        self.mined_positives: Final = mined_positives
        self.cold_target: Final = cold_target
        self.history: Final = history
        self.context: Final = context
        self.skip_threshold: Final = skip_threshold
        self.num_tracks: Final = num_tracks
        if (target is None) != (target_feedback is None):
            raise ValueError("`target` and `target_feedback` must be given together, got only one of them.")
        sizes: dict[str, int] = {}
        for name, (shape, dtype) in _TENSORS.items():
            tensor = getattr(self, name)
            if tensor is None and name not in ("items", "feedback"):
                continue
            sizes = check_shape(name, tensor, shape, sizes, dtype=dtype)
            if dtype == torch.float32:
                _check_signal(name, tensor)
        check_number("skip_threshold", skip_threshold, minimum=-1, maximum=1, open_minimum=True)
        if num_tracks is not None:
            check_integer("num_tracks", num_tracks, minimum=0)

    @property
    def valid_mask(self) -> Tensor:
        """[B, L] bool: the position holds an item."""
        return self.items != PADDING_INDEX

    @property
    def skip_mask(self) -> Tensor:
        """[B, L] bool: the item was skipped."""
        return self.valid_mask & (self.feedback < self.skip_threshold)

    @property
    def listened_mask(self) -> Tensor:
        """[B, L] bool: the item was neither skipped nor disliked."""
        listened = self.valid_mask & (self.feedback >= self.skip_threshold)
        return listened if self.explicit_feedback is None else listened & (self.explicit_feedback >= 0)

    @property
    def rejected_mask(self) -> Tensor:
        """[B, L] bool: the item was skipped or disliked, and not liked (`is_rejected`)."""
        rejected: Tensor = is_rejected(self.feedback, self.explicit_feedback, self.skip_threshold)
        return self.valid_mask & rejected

    @property
    def lengths(self) -> Tensor:
        """[B] int64: the number of items of each session."""
        return self.valid_mask.sum(dim=1)

    @property
    def seen_items(self) -> Tensor:
        """[B, S] int64: all items of each session so far, even if `items` holds only the latest."""
        return self.items if self.seen is None else self.seen

    def __len__(self) -> int:
        return self.items.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        """Iterate over the tensors, of which Lightning's `log` reads the number of sessions."""
        return iter(self._tensors().values())

    def __repr__(self) -> str:
        present = "".join(f", {name}" for name in self._tensors() if name not in ("items", "feedback"))
        sessions, positions = self.items.shape
        return f"SessionBatch({sessions} sessions of up to {positions} items{present}; {self.items.device})"

    def __getitem__(self, rows: slice | Tensor) -> "SessionBatch":
        """Return some of the sessions, by a slice, a [N] int64 tensor of rows or a [B] bool mask."""
        return self._map(lambda tensor: tensor[rows])

    def worst_if_cold(self, values: Tensor, worst: float) -> Tensor:
        """Return ranks or scores of the targets, with the worst value for targets that training never saw.

        Args:
            values: [B] ranks or scores.
            worst: V for ranks in a whole catalogue, -inf for scores.

        Returns:
            [B] of the same dtype.

        Examples:
            >>> items = torch.tensor([[5], [2]])
            >>> cold = torch.tensor([False, True])
            >>> batch = SessionBatch(items, torch.zeros(2, 1), cold_target=cold)
            >>> batch.worst_if_cold(torch.tensor([3, 1]), 9)
            tensor([3, 9])
        """
        return values if self.cold_target is None else values.masked_fill(self.cold_target, worst)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "SessionBatch":
        """Return the same batch on another device."""
        return self._map(
            lambda tensor: tensor.to(device, non_blocking=non_blocking), num_tracks=self.num_tracks
        )

    def pin_memory(self) -> "SessionBatch":
        """Return the same batch in page-locked memory, from which a copy to a GPU need not wait."""
        return self._map(Tensor.pin_memory, num_tracks=self.num_tracks)

    def latest(self, length: int) -> "SessionBatch":
        """Return the same sessions, each cut to its latest items.

        Args:
            length: The largest number of items of a session, at least 1.

        Returns:
            A batch of at most `length` positions; `seen_items` stay whole.

        Raises:
            ValueError: `length` is below 1.

        Examples:
            >>> batch = SessionBatch(torch.tensor([[5, 3, 4], [2, 0, 0]]), torch.zeros(2, 3))
            >>> batch.latest(2).items
            tensor([[3, 4],
                    [2, 0]])
        """
        check_integer("length", length)
        if self.items.shape[1] <= length:
            return self
        start = (self.lengths - length).clamp(min=0)
        positions = start[:, None] + torch.arange(length, device=start.device)  # [B, length]
        rows = torch.arange(len(self), device=start.device)[:, None]
        cut = {
            name: tensor[rows, positions]
            for name, tensor in self._tensors().items()
            if _TENSORS[name][0].startswith("B L")
        }
        return self.replace(num_tracks=self.num_tracks, seen=self.seen_items, **cut)

    def replace(self, **changes: Any) -> "SessionBatch":
        """Return the same batch with other values of some arguments.

        With other `items`, `num_tracks` becomes unknown unless it is given too.

        Args:
            changes: New values by argument name.

        Returns:
            Another batch.

        Raises:
            TypeError: A name is no argument, or a tensor has the wrong dtype.
            ValueError: Shapes disagree.
        """
        if torch.compiler.is_compiling():
            # A compiler would make a graph for each number.
            changes["num_tracks"] = None
        elif "items" in changes:
            changes.setdefault("num_tracks", None)
        same = {"skip_threshold": self.skip_threshold, "num_tracks": self.num_tracks}
        return SessionBatch(**{**self._tensors(), **same, **changes})

    def _tensors(self) -> dict[str, Tensor]:
        """Return the tensors that the batch has, by name."""
        # By name: compilers of torch before 2.13 cannot read an object's `vars`.
        return {name: value for name in _TENSORS if (value := getattr(self, name)) is not None}

    def _map(self, function: Callable[[Tensor], Tensor], *, num_tracks: int | None = None) -> "SessionBatch":
        tensors = {name: function(tensor) for name, tensor in self._tensors().items()}
        return self.replace(num_tracks=num_tracks, **tensors)


def _check_signal(name: str, signal: Tensor) -> None:
    """Raise unless feedback holds numbers in [-1, 1]; on a CPU only, where the check costs no wait."""
    if signal.device.type != "cpu" or torch.compiler.is_compiling():
        return
    values = signal.detach().numpy()  # the tensor's own memory
    right = abs(values) <= 1  # False for NaN
    if not right.all():
        raise ValueError(
            f"`{name}` must hold numbers in [-1, 1], got {float(values[~right][0])}. "
            "Use 0 where nothing is known, and scale other feedback."
        )


def is_rejected(feedback: Any, explicit_feedback: Any | None, skip_threshold: float) -> Any:
    """Return which items the listener rejected: those skipped or disliked, but not liked.

    Heads push from these items, mining counts them as skips, and evaluation counts rejected targets in the
    skip metrics.

    Args:
        feedback: Floating-point tensor or NumPy array of any shape, in [-1, 1].
        explicit_feedback: The same shape: below 0 disliked, above 0 liked; None if there is none.
        skip_threshold: Feedback below it is a skip, in (-1, 1].

    Returns:
        A bool tensor or array of the same shape.

    Examples:
        >>> feedback, explicit = torch.tensor([1.0, -1.0, 1.0, -1.0]), torch.tensor([0.0, 0.0, -1.0, 1.0])
        >>> is_rejected(feedback, explicit, 0.0)
        tensor([False,  True,  True, False])
    """
    skipped = feedback < skip_threshold
    if explicit_feedback is None:
        return skipped
    return (explicit_feedback < 0) | (skipped & ~(explicit_feedback > 0))


# What the skip losses take: a batch, or its items and feedback.
Sessions = SessionBatch | tuple[Tensor, Tensor]


def as_batch(sessions: Sessions) -> SessionBatch:
    """Return a `SessionBatch`, made of items and feedback if these are given.

    Args:
        sessions: A `SessionBatch`, or the pair `(items, feedback)`: [B, L] int64 item indices padded on the
            right with 0, and [B, L] floating point in [-1, 1].

    Returns:
        The batch; feedback is float32.

    Raises:
        TypeError: `sessions` is neither, or a tensor has the wrong dtype.
        ValueError: Shapes disagree, or feedback is outside [-1, 1].

    Examples:
        >>> as_batch((torch.tensor([[1, 2]]), torch.tensor([[1.0, -1.0]]))).skip_mask
        tensor([[False,  True]])
    """
    if isinstance(sessions, SessionBatch):
        return sessions
    if not isinstance(sessions, tuple | list) or len(sessions) != 2:
        raise TypeError(
            "`sessions` must be a SessionBatch or the pair `(items, feedback)`, got "
            f"{type(sessions).__name__}. Pass both tensors as a tuple."
        )
    items, feedback = sessions
    check_shape("feedback", feedback, "B L", floating=True)
    return SessionBatch(items, feedback.float())


def next_listened(feedback: Tensor, valid_mask: Tensor, *, skip_threshold: float = 0.0) -> Tensor:
    """Return the position p(t) of the next listened item after each position t.

    p(t) = min {s > t : position s holds an item and f_s ≥ `skip_threshold`}, and -1 if there is no such s.

    Args:
        feedback: [B, L] floating point, in [-1, 1].
        valid_mask: [B, L] bool, True at items.
        skip_threshold: Feedback below it is a skip.

    Returns:
        [B, L] int64 positions in 0..L-1, or -1. Also defined at skipped and padded positions, because the
        rule depends only on later positions.

    Raises:
        TypeError: `valid_mask` is not bool.
        ValueError: The shapes disagree.

    Reference:
        Seshadri, Shashaani, Knees: Enhancing Sequential Music Recommendation with Negative Feedback-informed
        Contrastive Learning, RecSys 2024, doi 10.1145/3640457.3688188.

    Examples:
        >>> next_listened(torch.tensor([[1.0, -1.0, 0.0, -0.5]]), torch.ones(1, 4, dtype=torch.bool))
        tensor([[ 2,  2, -1, -1]])
    """
    sizes = check_shape("feedback", feedback, "B L", floating=True)
    check_shape("valid_mask", valid_mask, "B L", sizes, dtype=torch.bool)
    length = feedback.shape[1]
    positions = torch.arange(length, device=feedback.device)
    listened = valid_mask & (feedback >= skip_threshold)
    candidates = torch.where(listened, positions, length)
    at_or_after = candidates.flip(1).cummin(dim=1).values.flip(1)
    # Not `pad`, which would fix the length in a compiled step.
    after = torch.cat([at_or_after, at_or_after.new_full((len(feedback), 1), length)], dim=1)[:, 1:]
    return torch.where(after < length, after, -1)


def target_positions(
    items: Tensor,
    feedback: Tensor,
    *,
    explicit_feedback: Tensor | None = None,
    rule: TargetRule = "next_listened",
    skip_threshold: float = 0.0,
) -> Tensor:
    """Return the position of each position's target.

    Args:
        items: [B, L] int64 item indices; 0 is padding.
        feedback: [B, L] floating point, in [-1, 1].
        explicit_feedback: [B, L] floating point in [-1, 1]; an item below 0 was disliked, and is never a
            target.
        rule: As for `next_item_targets`.
        skip_threshold: Feedback below it is a skip; unused by `next`.

    Returns:
        [B, L] int64 positions in 0..L-1, or -1 without a target.

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: The rule is unknown or the shapes disagree.

    Examples:
        >>> items, feedback = torch.tensor([[5, 3, 4, 0]]), torch.tensor([[1.0, -1.0, 1.0, 0.0]])
        >>> target_positions(items, feedback)
        tensor([[ 2,  2, -1, -1]])
    """
    check_choice("rule", rule, get_args(TargetRule))
    sizes = check_shape("items", items, "B L", dtype=torch.int64)
    valid_mask = items != PADDING_INDEX
    disliked = torch.zeros_like(valid_mask)
    if explicit_feedback is not None:
        check_shape("explicit_feedback", explicit_feedback, "B L", sizes, floating=True)
        disliked = explicit_feedback < 0
    if rule == "next_listened":
        heard = feedback.masked_fill(disliked, -1.0)
        position = next_listened(heard, valid_mask, skip_threshold=skip_threshold)
        return torch.where(valid_mask, position, -1)
    following = torch.arange(1, sizes["L"] + 1, device=items.device)
    wanted = F.pad(valid_mask & ~disliked, (0, 1))[:, 1:]
    return torch.where(valid_mask & wanted, following, -1)


def next_item_targets(
    items: Tensor,
    feedback: Tensor,
    *,
    explicit_feedback: Tensor | None = None,
    rule: TargetRule = "next_listened",
    skip_threshold: float = 0.0,
) -> Tensor:
    """Return the target item of each position.

    `next_listened`: i_{p(t)}, so a skipped item is never a target (the paper's text). `next`: i_{t+1},
    whatever its feedback, as in most sequence recommenders. A disliked item is never a target: the first rule
    takes a later one, the second has no target there.

    Args:
        items: [B, L] int64 item indices; 0 is padding.
        feedback: [B, L] floating point, in [-1, 1].
        explicit_feedback: [B, L] floating point in [-1, 1], below 0 for a disliked item.
        rule: `next_listened` or `next`.
        skip_threshold: Feedback below it is a skip; unused by `next`.

    Returns:
        [B, L] int64 item indices; 0 without a target.

    Raises:
        ValueError: The rule is unknown or the shapes disagree.

    Examples:
        >>> items, feedback = torch.tensor([[5, 3, 4, 0]]), torch.tensor([[1.0, -1.0, 1.0, 0.0]])
        >>> next_item_targets(items, feedback)
        tensor([[4, 4, 0, 0]])
        >>> next_item_targets(items, feedback, rule="next")
        tensor([[3, 4, 0, 0]])
    """
    position = target_positions(
        items, feedback, explicit_feedback=explicit_feedback, rule=rule, skip_threshold=skip_threshold
    )
    return torch.where(position >= 0, items.gather(1, position.clamp(min=0)), PADDING_INDEX)


def possible_targets(batch: SessionBatch, rule: TargetRule) -> Tensor:
    """Return the items that may be targets of the cloze task, [B, L] bool.

    By `next_listened` they are the listened items, by `next` all. A disliked item is never a target.

    Examples:
        >>> batch = SessionBatch(torch.tensor([[5, 3, 0]]), torch.tensor([[1.0, -1.0, 0.0]]))
        >>> possible_targets(batch, "next_listened")
        tensor([[ True, False, False]])
    """
    wanted = batch.listened_mask if rule == "next_listened" else batch.valid_mask
    return wanted if batch.explicit_feedback is None else wanted & (batch.explicit_feedback >= 0)


def training_targets(batch: SessionBatch, rule: TargetRule) -> Tensor:
    """Return the position of each position's target in a training step.

    With a `cloze_mask`, each hidden item that may be a target is the target of its own position.

    Returns:
        [B, L] int64 positions in 0..L-1, or -1 without a target.

    Examples:
        >>> batch = SessionBatch(torch.tensor([[5, 3, 4]]), torch.tensor([[1.0, -1.0, 1.0]]))
        >>> training_targets(batch, "next_listened")
        tensor([[ 2,  2, -1]])
    """
    if batch.cloze_mask is not None:
        positions = torch.arange(batch.items.shape[1], device=batch.items.device)
        return torch.where(batch.cloze_mask & possible_targets(batch, rule), positions, -1)
    return target_positions(
        batch.items,
        batch.feedback,
        explicit_feedback=batch.explicit_feedback,
        rule=rule,
        skip_threshold=batch.skip_threshold,
    )


def target_weights(batch: SessionBatch, positions: Tensor, like_weight: float) -> Tensor:
    """Return the weight of the targets at `positions` in the next-item loss, [B, L] float32: 1 if not liked.

    Examples:
        >>> likes = torch.tensor([[0.0, 1.0]])
        >>> batch = SessionBatch(torch.tensor([[5, 3]]), torch.ones(1, 2), explicit_feedback=likes)
        >>> target_weights(batch, torch.tensor([[1, -1]]), 3.0)
        tensor([[3., 1.]])
    """
    if batch.explicit_feedback is None:
        return torch.ones_like(batch.feedback)
    liked = batch.explicit_feedback.gather(1, positions.clamp(min=0)) > 0
    return torch.where(liked, like_weight, 1.0)


def last_position(sequence: Tensor, valid_mask: Tensor) -> Tensor:
    """Return the entry at the last item of each session.

    A session without an item yields zeros, whatever a backbone computed from padding.

    Args:
        sequence: [B, L, D] of any dtype.
        valid_mask: [B, L] bool, True at items; padding is on the right.

    Returns:
        [B, D].

    Raises:
        ValueError: The shapes disagree.

    Examples:
        >>> last_position(torch.tensor([[[1.0], [2.0], [9.0]]]), torch.tensor([[True, True, False]]))
        tensor([[2.]])
    """
    sizes = check_shape("sequence", sequence, "B L D")
    check_shape("valid_mask", valid_mask, "B L", sizes, dtype=torch.bool)
    lengths = valid_mask.sum(dim=1)
    rows = torch.arange(sequence.shape[0], device=sequence.device)  # `len` would be fixed by an export
    return torch.where((lengths > 0)[:, None], sequence[rows, (lengths - 1).clamp(min=0)], 0)


def is_among(items: Tensor, others: Tensor | None) -> Tensor:
    """[N, K] bool: which `items` [N, K] are in the same row of `others` [N, S]; None for no others."""
    if others is None or not others.shape[1]:
        return torch.zeros_like(items, dtype=torch.bool)
    others = others.sort(dim=1).values
    place = torch.searchsorted(others, items.contiguous()).clamp(max=others.shape[1] - 1)
    return others.gather(1, place) == items
