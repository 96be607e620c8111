"""Optimizers for an item table beside other weights, gradient clipping, and sharding."""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import chain
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.optim import AdamW, Optimizer, SparseAdam
from torch.optim.lr_scheduler import LambdaLR

from skipcl_lightning._files import named_in_errors

__all__ = [
    "Schedule",
    "SparseAdamW",
    "append_moments",
    "check_loaded_groups",
    "check_optimizer_state",
    "check_when_loaded",
    "clip_gradients",
    "clip_gradients_by_norm",
    "follow_found_rate",
    "make_adamw",
    "make_schedule",
    "may_fuse",
    "shard",
]

Schedule = Literal["constant", "cosine"]


class SparseAdamW(Optimizer):
    """`SparseAdam` for tables with sparse gradients and `AdamW` for all other weights, as one optimizer.

    Lightning's automatic optimisation takes one optimizer, and torch's Adam refuses sparse gradients. The
    moments of a row change only in steps that use the row, so the cost of a step does not grow with the
    table. This differs from Adam, whose moments decay and move every row in every step. Tables have no weight
    decay.

    Args:
        dense: The parameters or parameter groups of AdamW.
        tables: Parameters with sparse gradients; at least one.
        learning_rate: Above 0.
        fused: Whether AdamW runs as one kernel.

    Raises:
        ValueError: There is no table.

    Examples:
        >>> table, layer = nn.Embedding(9, 2, sparse=True), nn.Linear(2, 1)
        >>> optimizer = SparseAdamW(layer.parameters(), [table.weight], learning_rate=0.1)
        >>> before = table.weight.detach().clone()
        >>> layer(table(torch.tensor([3]))).sum().backward()
        >>> _ = optimizer.step()
        >>> (table.weight != before).any(dim=1).nonzero().flatten()
        tensor([3])
    """

    _parts: tuple[Optimizer, ...] = ()

    def __init__(
        self,
        dense: Iterable[Tensor] | Iterable[dict[str, Any]],
        tables: Iterable[Tensor],
        *,
        learning_rate: float = 1e-3,
        fused: bool = False,
    ) -> None:
        tables = list(tables)
        if not tables:
            raise ValueError("`tables` must hold a parameter, got none. Use `torch.optim.AdamW` alone.")
        parts = AdamW(dense, learning_rate, fused=fused), SparseAdam(tables, learning_rate)
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._parts = parts
        self._share()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_parts": self._parts}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Let AdamW train more parameters, such as a layer that was frozen.

        Args:
            param_group: `params` and other settings, as for AdamW, whose defaults apply to the rest.

        Raises:
            ValueError: A parameter is in another group.
        """
        if not self._parts:  # torch adds the first groups
            super().add_param_group(param_group)
            return
        dense, tables = self._parts
        known = {id(one) for group in tables.param_groups for one in group["params"]}
        given = param_group["params"]
        given = [given] if isinstance(given, Tensor) else list(given)
        if any(id(one) in known for one in given):
            raise ValueError("`param_group` must hold no table with sparse gradients, got one. Leave it out.")
        dense.add_param_group({**param_group, "params": given})
        self.param_groups.insert(-1, dense.param_groups[-1])
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Run a step of both optimizers.

        Args:
            closure: Evaluates the model again and returns the loss, or None.

        Returns:
            The closure's loss, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore the state of `state_dict`.

        Args:
            state_dict: The state of an optimizer with the same groups.

        Raises:
            ValueError: The groups differ.
        """
        super().load_state_dict(dict(state_dict))
        self._share()

    def _share(self) -> None:
        """Share groups and moments, which schedules change and checkpoints keep, between both."""
        for part, groups in zip(self._parts, (self.param_groups[:-1], self.param_groups[-1:]), strict=True):
            part.param_groups, part.state = groups, self.state


def make_adamw(
    parameters: Iterable[Tensor],
    table: Tensor,
    *,
    sparse: bool,
    learning_rate: float,
    weight_decay: float,
    fused: bool,
) -> Optimizer:
    """Return AdamW without weight decay for biases, norms, temperatures and the item table.

    Args:
        parameters: All but the table; only those with two or more dimensions decay.
        table: The item table.
        sparse: Whether its gradients are sparse.
        learning_rate: Above 0.
        weight_decay: 0 or more.
        fused: Whether AdamW runs as one kernel.

    Returns:
        The optimizer; the table is in its last group.

    Examples:
        >>> layer, table = nn.Linear(2, 2), nn.Embedding(9, 2)
        >>> settings = {"sparse": False, "learning_rate": 0.1, "weight_decay": 0.01, "fused": False}
        >>> optimizer = make_adamw(layer.parameters(), table.weight, **settings)
        >>> [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups]
        [(1, 0.01), (2, 0.0)]
    """
    parameters = list(parameters)
    matrices = [parameter for parameter in parameters if parameter.dim() >= 2]
    others = [parameter for parameter in parameters if parameter.dim() < 2]
    if not sparse:
        others.append(table)
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if sparse:
        return SparseAdamW(groups, [table], learning_rate=learning_rate, fused=fused)
    return AdamW(groups, learning_rate, fused=fused)


def append_moments(
    owner: Optimizer | nn.Module, state_dict: Mapping[str, Any], *, old_items: int, num_items: int
) -> dict[str, Any]:
    """Return the state of an optimizer with zeros for new items, for parameters with a row for each item.

    Args:
        owner: The optimizer, of parameters with `num_items` + 1 rows; or the module with these parameters,
            for a state of `ModelParallelStrategy`, which numbers the parameters in the order of the module.
        state_dict: Of the optimizer when there were `old_items` + 1 rows.
        old_items: The old V.
        num_items: The new V.

    Returns:
        The state dict; all other values are the same.

    Examples:
        >>> old, new = (AdamW([nn.Parameter(torch.ones(rows, 2))]) for rows in (3, 4))
        >>> old.param_groups[0]["params"][0].sum().backward()
        >>> old.step()
        >>> append_moments(new, old.state_dict(), old_items=2, num_items=3)["state"][0]["exp_avg"].shape
        torch.Size([4, 2])
    """
    numbered: Iterable[tuple[int, Tensor]]
    if isinstance(owner, Optimizer):
        numbers = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        numbered = zip(
            numbers, chain.from_iterable(group["params"] for group in owner.param_groups), strict=False
        )
    else:
        numbered = enumerate(owner.parameters())
    states = dict(state_dict["state"])
    for number, parameter in numbered:
        if len(parameter.shape) and len(parameter) == num_items + 1:
            states[number] = {
                name: torch.cat([value, value.new_zeros(num_items - old_items, *value.shape[1:])])
                if isinstance(value, Tensor) and value.shape == (old_items + 1, *parameter.shape[1:])
                else value
                for name, value in states.get(number, {}).items()
            }
    return {**state_dict, "state": states}


def check_loaded_groups(optimizer: Optimizer, state_dict: Mapping[str, Any]) -> None:
    """Raise unless a state has the groups of an optimizer, which is about to load it.

    Args:
        optimizer: The optimizer.
        state_dict: The state.

    Raises:
        ValueError: It has other groups, or is none.
    """
    own = [len(group["params"]) for group in optimizer.param_groups]
    try:
        found = [len(group["params"]) for group in state_dict["param_groups"]]
        whole = found == own and all(_is_number(one["step"]) for one in state_dict["state"].values())
        for group, known in zip(state_dict["param_groups"], optimizer.param_groups, strict=False):
            whole = whole and {"lr", "betas", "eps", "weight_decay"} & known.keys() <= group.keys()
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"`optimizer_states` must be states, got others ({error!r}). {_CURE}") from error
    if not whole:
        raise ValueError(
            f"`optimizer_states` must have groups of {own} parameters, got {found}. The optimizer or the "
            f"model was another. {_CURE}"
        )


def check_optimizer_state(optimizer: Optimizer) -> None:
    """Raise unless the state that an AdamW or `SparseAdamW` has loaded fits its parameters.

    A fused kernel does not check shapes: it would read and write memory beyond moments of another shape.

    Args:
        optimizer: The optimizer, after `load_state_dict`.

    Raises:
        ValueError: Moments are missing or of another shape, or a setting is of another kind.
    """
    for parameter, values in optimizer.state.items():
        shapes = {name: value.shape if isinstance(value, Tensor) else None for name, value in values.items()}
        moments = [shapes.get(name) for name in ("exp_avg", "exp_avg_sq")]
        if moments != [parameter.shape] * 2 or not _is_number(values.get("step")):
            raise ValueError(
                f"`optimizer_states` must hold moments of shape {list(parameter.shape)} and a step, got "
                f"{ {name: shape and list(shape) for name, shape in shapes.items()} }. {_CURE}"
            )
    for group in optimizer.param_groups:
        for name in group.keys() & {*_NUMBERS, *_FLAGS}:  # others are a schedule's, or of the user's own
            value = group[name]
            numbers = list(value) if name == "betas" and isinstance(value, list | tuple) else [value]
            of_number = all(map(_is_number, numbers)) and len(numbers) == 1 + (name == "betas")
            if not (of_number if name in _NUMBERS else isinstance(value, bool | None)):
                raise ValueError(
                    f"`optimizer_states` must hold numbers and flags, got {value!r} for `{name}`. {_CURE}"
                )


_CURE = "Take another checkpoint, or begin another run with its weights: `init_from`."
_NUMBERS = ("lr", "initial_lr", "swa_lr", "betas", "eps", "weight_decay")
_FLAGS = (
    "amsgrad",
    "capturable",
    "decoupled_weight_decay",
    "differentiable",
    "foreach",
    "fused",
    "maximize",
)


def check_when_loaded(optimizer: Optimizer, module: LightningModule) -> None:
    """Let an AdamW or `SparseAdamW` check each state that it loads, before and after.

    Args:
        optimizer: The optimizer.
        module: The trained module, whose Trainer knows the file of the state.
    """
    check = partial(_check_loaded, module)
    optimizer.register_load_state_dict_pre_hook(check)
    optimizer.register_load_state_dict_post_hook(check)


def _check_loaded(
    module: LightningModule, optimizer: Optimizer, state_dict: Mapping[str, Any] | None = None
) -> None:
    """Check a state before an optimizer loads it, or without one, what the optimizer has loaded."""
    with named_in_errors(None if module._trainer is None else module._trainer.ckpt_path):
        if state_dict is None:
            check_optimizer_state(optimizer)
        else:
            check_loaded_groups(optimizer, state_dict)


def make_schedule(
    optimizer: Optimizer, trainer: Trainer | None, schedule: Schedule, *, warmup_steps: int
) -> LambdaLR | None:
    """Return the schedule of the learning rate; None for a constant rate without a warm-up.

    Args:
        optimizer: The optimizer.
        trainer: The Trainer, which knows the steps over which a `cosine` falls to 0; None without one.
        schedule: `constant`, or `cosine`.
        warmup_steps: Steps over which the rate rises first, 0 or more.

    Raises:
        ValueError: The `schedule` is `cosine`, but the run has no end.
    """
    if schedule == "constant" and not warmup_steps:
        return None  # a schedule would undo what others set, such as a rate finder
    steps = None
    if schedule == "cosine":
        steps = math.inf if trainer is None else trainer.estimated_stepping_batches
        if math.isinf(steps):
            raise ValueError(
                "`schedule` must be 'constant' in a run without an end, got 'cosine'. Give the Trainer "
                "`max_epochs` or `max_steps`."
            )
    return LambdaLR(optimizer, partial(_rate_factor, warmup_steps=warmup_steps, steps=steps))


def _rate_factor(step: int, *, warmup_steps: int, steps: float | None) -> float:
    """Return the factor of the learning rate at a step; a module-level function, so it can be pickled."""
    warm_up = min(1.0, (step + 1) / max(1, warmup_steps))
    return warm_up if steps is None else warm_up * (1 + math.cos(math.pi * min(1.0, step / steps))) / 2


def follow_found_rate(trainer: Trainer, learning_rate: float) -> None:
    """Let the schedule of `make_schedule` start from a rate that `LearningRateFinder` has found.

    Args:
        trainer: The Trainer, at the start of a training.
        learning_rate: The rate at which the module's factor is 1.
    """
    for config in trainer.lr_scheduler_configs:
        schedule = config.scheduler
        if not isinstance(schedule, LambdaLR) or schedule.base_lrs[0] == learning_rate:
            continue
        (factor, *_) = schedule.lr_lambdas
        if not isinstance(factor, partial) or factor.func is not _rate_factor:
            continue
        schedule.base_lrs = [learning_rate for _ in schedule.base_lrs]
        for group in schedule.optimizer.param_groups:
            group["initial_lr"], group["lr"] = learning_rate, learning_rate * factor(0)


def _is_number(value: object) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and bool(value.isfinite().all())
    return isinstance(value, int | float) and math.isfinite(value)


def clip_gradients_by_norm(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale gradients, sparse ones included, to a total norm of at most `max_norm`.

    Repeated rows of a sparse gradient are added up first. The host waits for nothing.

    Args:
        parameters: The parameters; their gradients are scaled in place.
        max_norm: Above 0.

    Returns:
        The norm before, a scalar.

    Reference:
        `torch.nn.utils.clip_grad_norm_`, which takes dense gradients only.

    Examples:
        >>> table = nn.Embedding(9, 1, sparse=True)
        >>> (3 * table(torch.tensor([3, 3]))).sum().backward()
        >>> clip_gradients_by_norm(table.parameters(), 1.0), table.weight.grad.to_dense()[3]
        (tensor(6.), tensor([1.0000]))
    """
    gradients = []
    for parameter in parameters:
        if parameter.grad is None:
            continue
        if parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
        gradients.append(parameter.grad.values() if parameter.grad.is_sparse else parameter.grad)
    if not gradients:
        return torch.zeros(())
    norm = nn.utils.get_total_norm(gradients)
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.detach().mul_(scale.to(gradient.device))
    return norm


def clip_gradients(
    module: LightningModule,
    optimizer: Optimizer,
    value: float,
    algorithm: str | None,
    *,
    sparse: bool,
) -> None:
    """Clip as Lightning does, also for a sparse item table and a fused optimizer in bfloat16.

    Args:
        module: The trained module.
        optimizer: Its optimizer.
        value: The Trainer's `gradient_clip_val`, above 0.
        algorithm: `norm` (or None), or `value`, which is not possible with a sparse table.
        sparse: Whether the item table has sparse gradients.

    Raises:
        ValueError: Gradients of a sparse table are to be clipped by value.
    """
    if sparse:
        if algorithm == "value":
            raise ValueError(
                "`gradient_clip_algorithm` must be 'norm' beside `sparse_item_table`, got 'value'. Leave it "
                "out."
            )
        clip_gradients_by_norm(module.parameters(), value)
        return
    plugin = module.trainer.precision_plugin
    if isinstance(plugin, MixedPrecision) and plugin.scaler is None:
        # Lightning refuses fused optimizers here, although there is no scale to undo.
        Precision.clip_gradients(plugin, optimizer, value, GradClipAlgorithmType(algorithm or "norm"))
    else:
        module.clip_gradients(optimizer, value, algorithm)


def may_fuse(module: LightningModule) -> bool:
    """Return whether AdamW may run as one kernel.

    Args:
        module: The trained module.

    Returns:
        False on devices without that kernel, if a GradScaler must unscale gradients before clipping, and in
        mixed precision where the user's own steps call `clip_gradients`, which Lightning refuses.
    """
    trainer = module._trainer
    if module.device.type not in ("cpu", "cuda"):
        return False
    if trainer is None or "mixed" not in str(trainer.precision):
        return True
    return module.automatic_optimization and (
        trainer.precision != "16-mixed" or not trainer.gradient_clip_val
    )


def shard(module: LightningModule, mesh: DeviceMesh) -> None:
    """Shard all weights of a module; a second call does nothing.

    Args:
        module: The module; its steps gather the weights while they run.
        mesh: The processes that share them.
    """
    # Lightning configures the model at each stage.
    if isinstance(module, FSDPModule):
        return
    fully_shard(module, mesh=mesh)
    for name in ("training_step", "validation_step", "test_step", "predict_step"):
        register_fsdp_forward_method(module, name)
