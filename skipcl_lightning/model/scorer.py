"""The score of each item after a session: inner products, skip prediction and transitions."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from skipcl_lightning._checks import check_flag, check_number
from skipcl_lightning._files import check_weights
from skipcl_lightning._settings import Part, build_part, describe_part
from skipcl_lightning.backbones import BACKBONES
from skipcl_lightning.batch import SessionBatch
from skipcl_lightning.functional import SparseScores
from skipcl_lightning.heads import SKIP_HEADS, SkipPrediction
from skipcl_lightning.heads.session_head import heads_of, materialise_part
from skipcl_lightning.heads.skip_prediction import LARGEST_PENALTY
from skipcl_lightning.model.item_tower import ItemTower
from skipcl_lightning.model.session_model import SessionModel
from skipcl_lightning.model.transitions import Transitions

__all__ = ["Scorer", "Scoring", "read_transitions"]

# What `Scorer.from_settings` takes from the settings of a `SkipCLModule`, as they are.
_MODEL_SETTINGS = ("num_items", "embedding_size", "feedback_input", "context_sizes")


class Scoring(nn.Module):
    """What a trained model and a model in training share: the scores of the items.

    The score of item i is z · e(i), plus `skip_penalty` times the logit of listening to it, plus
    `transition_weight` times what its transitions add.

    Attributes:
        model: The `SessionModel`.
        skip_head: None, or a head; a `SkipPrediction` may be it or one of a `CombinedHead`.
        transition_weight: At least 0.
        exclude_seen: Whether recommendations leave out a session's own items.
    """

    model: SessionModel
    skip_head: nn.Module | None
    exclude_seen: bool
    _transition_weight: float
    _skip_penalty: float

    @property
    def num_items(self) -> int:
        """V, the number of items."""
        return self.model.num_items

    @property
    def retired(self) -> Tensor | None:
        """[V + 1] bool, the items that are not recommended (`retire_items`); None for none."""
        return self.model.retired

    @property
    def item_table(self) -> Tensor:
        """The candidates [V + 1, D], row 0 is padding; with a `skip_penalty`, [V + 1, D + M + 1]."""
        table = self.model.item_table
        return table if self.skip_penalty == 0 else self.skip_prediction.extended_table(table)

    @property
    def skip_penalty(self) -> float:
        """The weight of skip prediction in the scores, 0 to a million; it needs a `SkipPrediction` head."""
        return self._skip_penalty

    @skip_penalty.setter
    def skip_penalty(self, value: float) -> None:
        check_number("skip_penalty", value, minimum=0, maximum=LARGEST_PENALTY)
        if value > 0:
            _ = self.skip_prediction  # raises without one
        self._skip_penalty = float(value)

    @property
    def transition_weight(self) -> float:
        """The weight of the transitions of the training set in the scores, at least 0."""
        return self._transition_weight

    @transition_weight.setter
    def transition_weight(self, value: float) -> None:
        check_number("transition_weight", value, minimum=0)
        self._transition_weight = float(value)

    @contextmanager
    def at_skip_penalty(self, value: float | None) -> Iterator[None]:
        """Let the scores have another `skip_penalty` within a context; None for the present one."""
        before = self.skip_penalty
        try:
            self.skip_penalty = before if value is None else value
            yield
        finally:
            self._skip_penalty = before

    @property
    def skip_prediction(self) -> SkipPrediction:
        """The head that predicts skips; a `ValueError` if there is none."""
        head = _find_skip_prediction(self.skip_head)
        if head is not None:
            return head
        raise ValueError(
            "`skip_head` must be or contain a `SkipPrediction` for skip probabilities and a `skip_penalty` "
            f"above 0, got {'None' if self.skip_head is None else type(self.skip_head).__name__}. Train with "
            "`SkipCLModule(..., SkipPrediction())`, or leave the penalty at 0."
        )

    @property
    def predicts_skips(self) -> bool:
        """Whether there is a `SkipPrediction` head."""
        return _find_skip_prediction(self.skip_head) is not None

    def session_query(self, batch: SessionBatch) -> Tensor:
        """Return the query of each session after all of its items, whose scores are inner products.

        Args:
            batch: B sessions.

        Returns:
            [B, D], as `SessionModel.session_query`; with a `skip_penalty`, [B, D + M + 1].
        """
        query = self.model.session_query(batch)
        if self.skip_penalty == 0:
            return query
        return self.skip_prediction.extended_query(query, self.skip_penalty)

    def skip_probability(self, batch: SessionBatch, items: Tensor | None = None) -> Tensor:
        """Return the probability that items are skipped after the sessions.

        Args:
            batch: B sessions.
            items: [B, K] int64 in 0..V; None for the batch's targets.

        Returns:
            [B, K] in [0, 1], or [B] for the targets.

        Raises:
            ValueError: There is no `SkipPrediction` head, or the batch has no targets.
        """
        if items is None and batch.target is None:
            raise ValueError("`items` must be given for a batch without targets, got None.")
        wanted = items if items is not None else batch.target[:, None]  # type: ignore[index]
        query, head = self.model.session_query(batch), self.skip_prediction
        probability = head.skip_probability(query, wanted, self.model.item_table)
        return probability if items is not None else probability.squeeze(1)

    def added_scores(self, batch: SessionBatch) -> SparseScores | None:
        """Return what the transitions of the training set add to the inner products.

        Args:
            batch: B sessions.

        Returns:
            The additional scores of the last item's followers; None without a `transition_weight`.

        Raises:
            ValueError: There is a weight, but no transitions were counted.
        """
        if self.transition_weight > 0 and self.model.transitions is None:
            raise ValueError(
                f"`transition_weight` must be 0 in a module without counted transitions, got "
                f"{self.transition_weight!r}. Train with `SkipCLModule(..., transition_weight=…)` and a "
                "`SessionDataModule`."
            )
        return self.model.added_scores(batch, self.transition_weight)


class Scorer(Scoring):
    """A trained model with all that its scores depend on. It needs only torch.

    Args:
        model: The trained model.
        skip_head: None, or a head; only a `SkipPrediction`, as it or in a `CombinedHead`, has an effect.
        skip_penalty: As for `SkipCLModule`.
        transition_weight: As for `SkipCLModule`.
        exclude_seen: As for `SkipCLModule`.

    Raises:
        TypeError: A weight is no number.
        ValueError: A weight is below 0, or there is a penalty without a `SkipPrediction`.

    Examples:
        >>> import torch
        >>> from skipcl_lightning.backbones import SASRec
        >>> scorer = Scorer(SessionModel(SASRec(16), num_items=100)).eval()
        >>> batch = SessionBatch(torch.tensor([[5, 3, 4]]), torch.tensor([[1.0, -1.0, 1.0]]))
        >>> (scorer.session_query(batch) @ scorer.item_table.T).shape
        torch.Size([1, 101])
    """

    def __init__(
        self,
        model: SessionModel,
        skip_head: nn.Module | None = None,
        *,
        skip_penalty: float = 0.0,
        transition_weight: float = 0.0,
        exclude_seen: bool = False,
    ) -> None:
        super().__init__()
        check_flag("exclude_seen", exclude_seen)
        self.model = model
        self.skip_head = skip_head
        self.transition_weight = transition_weight
        self.exclude_seen = exclude_seen
        self.skip_penalty = skip_penalty

    def settings(self) -> dict[str, Any]:
        """Return what `from_settings` needs beside the weights, as plain values.

        Returns:
            The names and settings of the parts, sizes, both weights of the scores and `exclude_seen`. A part
            of your own class has a name alone.

        Examples:
            >>> from skipcl_lightning.backbones import SASRec
            >>> scorer = Scorer(SessionModel(SASRec(16), num_items=100))
            >>> scorer.settings()["num_items"]
            100
            >>> Scorer.from_settings(scorer.settings(), scorer.state_dict()).num_items
            100
        """
        model, head = self.model, self.skip_head
        return {
            "backbone": describe_part(model.backbone, BACKBONES),
            "skip_head": None if head is None else describe_part(head, SKIP_HEADS),
            "num_items": model.num_items,
            "embedding_size": model.embedding_size,
            "feedback_input": model.feedback_embedding is not None,
            "context_sizes": dict(model.context_sizes),
            "id_dropout": model.id_dropout,
            "transition_weight": self.transition_weight,
            "skip_penalty": self.skip_penalty,
            "exclude_seen": self.exclude_seen,
        }

    @classmethod
    def from_settings(
        cls,
        settings: Mapping[str, Any],
        state: Mapping[str, Tensor],
        *,
        backbone: nn.Module | None = None,
        skip_head: nn.Module | None = None,
    ) -> "Scorer":
        """Build a scorer again from the settings and weights of a `SkipCLModule` or another scorer.

        Args:
            settings: The result of `settings`, or the arguments of `SkipCLModule` as its checkpoint has them.
            state: The state dict; weights of anything but `model` and `skip_head` are ignored.
            backbone: An instance of your own class; None for a built-in backbone.
            skip_head: An instance of your own class; None for a built-in head, or none.

        Returns:
            The scorer in evaluation mode, on the CPU.

        Raises:
            ValueError: A part is of your own class and was not passed, or the weights do not fit or
                are not finite.
        """
        given: Part = settings["backbone"] if backbone is None else backbone
        head: Part | None = settings.get("skip_head") if skip_head is None else skip_head
        of_model = {
            key.removeprefix("model."): value for key, value in state.items() if key.startswith("model.")
        }
        model = SessionModel(
            build_part("backbone", given, BACKBONES),
            **{name: settings[name] for name in _MODEL_SETTINGS if name in settings},
            item_tower=_tower(of_model),
            id_dropout=settings.get("id_dropout", 0.0),
        )
        model.make_room(of_model)
        if tables := read_transitions(of_model, "transitions."):
            model.transitions = nn.ModuleList(tables)
        built = None if head is None else build_part("skip_head", head, SKIP_HEADS)
        materialise_part(built, model.item_table)
        scorer = cls(
            model,
            built,
            transition_weight=settings.get("transition_weight", 0.0),
            exclude_seen=settings.get("exclude_seen", False),
        )
        wanted = {key: value for key, value in state.items() if key.startswith(("model.", "skip_head."))}
        check_weights(wanted, scorer)
        scorer.load_state_dict(wanted)
        scorer.skip_penalty = settings.get("skip_penalty", 0.0)
        return scorer.eval()


def _tower(state: Mapping[str, Tensor]) -> ItemTower | None:
    """Return a tower for the content in a state dict of the model; None without."""
    numbers = state.get("item_tower.numbers")
    if numbers is None:
        return None
    codes: dict[str, Tensor] = {}
    while (name := f"item_tower.codes_{len(codes)}") in state:
        codes[str(len(codes))] = state[name]
    sizes = {place: len(state[f"item_tower.tables.{place}.weight"]) - 1 for place in codes}
    return ItemTower(numbers, codes, sizes, state["item_embedding.weight"].shape[1])


def _find_skip_prediction(head: nn.Module | None) -> SkipPrediction | None:
    """Return a head that predicts skips, itself or as part of a `CombinedHead`; None if there is none."""
    return next((one for one in heads_of(head) if isinstance(one, SkipPrediction)), None)


def read_transitions(state: Mapping[str, Tensor], prefix: str) -> list[Transitions]:
    """Return the tables after one item and after two that a state dict holds under a prefix; none without."""
    stored = [
        {key.removeprefix(start): value for key, value in state.items() if key.startswith(start)}
        for start in (f"{prefix}0.", f"{prefix}1.")
    ]
    return [Transitions.from_state_dict(values) for values in stored] if stored[0] else []
