"""Parts that keep the settings they were built with, so that a checkpoint can rebuild them."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import (
    Any,
    Concatenate,
    NotRequired,
    ParamSpec,
    TypedDict,
    TypeVar,
    cast,
)

from torch import nn

from skipcl_lightning._checks import check_choice

__all__ = ["Part", "PartSettings", "build_part", "describe_part", "records_settings", "records_settings_and"]


class PartSettings(TypedDict):
    """The name and settings of a part in a checkpoint or configuration."""

    name: str
    settings: NotRequired[dict[str, Any] | None]


Part = nn.Module | PartSettings
Instance = TypeVar("Instance")
Arguments = ParamSpec("Arguments")


def records_settings(
    init: Callable[Concatenate[Instance, Arguments], None],
) -> Callable[Concatenate[Instance, Arguments], None]:
    """Decorate `__init__` so that the instance keeps its arguments, defaults included, as `settings`.

    A subclass with its own `__init__` does not inherit this, because its arguments are different.

    Args:
        init: The `__init__` to wrap.

    Returns:
        The same `__init__`, which also sets `settings: dict[str, Any]`.

    Examples:
        >>> class Scale:
        ...     @records_settings
        ...     def __init__(self, factor, *, offset=0):
        ...         self.factor = factor
        >>> Scale(2).settings
        {'factor': 2, 'offset': 0}
    """
    return _recording(init, inspect.signature(init))


def records_settings_and(
    **groups: Any,
) -> Callable[
    [Callable[Concatenate[Instance, Arguments], None]], Callable[Concatenate[Instance, Arguments], None]
]:
    """Return `records_settings` for an `__init__` with `**keywords: Unpack[SomeTypedDict]`.

    The fields of a dataclass take the place of `**keywords` in the signature, so the command line, `help` and
    checkpoints know them and their defaults.

    Args:
        groups: By the name of `**keywords`, a dataclass instance with the defaults.

    Returns:
        The decorator.

    Examples:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Look:
        ...     colour: str = "red"
        >>> class Scale:
        ...     @records_settings_and(look=Look())
        ...     def __init__(self, factor, **look):
        ...         self.factor = factor
        >>> Scale(2).settings
        {'factor': 2, 'colour': 'red'}
    """

    def decorate(
        init: Callable[Concatenate[Instance, Arguments], None],
    ) -> Callable[Concatenate[Instance, Arguments], None]:
        signature = inspect.signature(init)
        parameters = [one for name, one in signature.parameters.items() if name not in groups]
        for defaults in groups.values():
            parameters += [
                inspect.Parameter(
                    field.name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=getattr(defaults, field.name),
                    annotation=field.type,
                )
                for field in dataclasses.fields(defaults)
            ]
        return _recording(init, signature.replace(parameters=parameters))

    return decorate


def _recording(
    init: Callable[Concatenate[Instance, Arguments], None], signature: inspect.Signature
) -> Callable[Concatenate[Instance, Arguments], None]:
    @functools.wraps(init)
    def wrapper(self: Instance, *args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        if type(self).__init__ is wrapper:
            bound = signature.bind(self, *args, **kwargs)
            bound.apply_defaults()
            settings: dict[str, Any] = dict(list(bound.arguments.items())[1:])
        init(self, *args, **kwargs)
        if type(self).__init__ is wrapper:
            vars(self)["settings"] = settings

    wrapper.__signature__ = signature  # type: ignore[attr-defined]
    return cast("Callable[Concatenate[Instance, Arguments], None]", wrapper)


def describe_part(part: nn.Module, registry: Mapping[str, type[nn.Module]]) -> dict[str, Any]:
    """Return the name and settings of a part, as plain values for a checkpoint.

    Args:
        part: A backbone or a loss.
        registry: The parts that can be rebuilt by name.

    Returns:
        `name` and `settings`; for a user's own part, its full name and None.

    Examples:
        >>> describe_part(nn.Identity(), {})
        {'name': 'torch.nn.modules.linear.Identity', 'settings': None}
    """
    kind = type(part)
    if registry.get(kind.__name__) is kind:
        return {"name": kind.__name__, "settings": dict(vars(part)["settings"])}
    return {"name": f"{kind.__module__}.{kind.__qualname__}", "settings": None}


def build_part(argument: str, part: Part, registry: Mapping[str, type[nn.Module]]) -> nn.Module:
    """Return a part that is given as an object, or build it from `describe_part`'s result.

    Args:
        argument: The argument's name, as the caller knows it.
        part: The part, or `{"name": ..., "settings": {...}}`.
        registry: The parts that can be built by name.

    Returns:
        The part.

    Raises:
        TypeError: It is neither.
        ValueError: The name is unknown, a setting is not one of the part's, or the part is a user's own.

    Examples:
        >>> build_part("backbone", {"name": "Identity"}, {"Identity": nn.Identity})
        Identity()
    """
    if isinstance(part, nn.Module):
        return part
    if not isinstance(part, Mapping) or not {"name"} <= set(part) <= {"name", "settings"}:
        raise TypeError(
            f"`{argument}` must be a torch module, or a mapping with 'name' and 'settings', got {part!r}."
        )
    name, settings = part["name"], part.get("settings", {})
    if settings is None and name not in registry:
        raise ValueError(
            f"`{argument}` must be passed where the checkpoint holds a part of your own, {name}, got only "
            f"its name. Load it with `{argument}={name.rpartition('.')[2]}(...)`, built as for training."
        )
    check_choice(f"{argument}['name']", name, registry)
    settings = settings or {}
    known = list(inspect.signature(registry[name]).parameters)
    for setting in settings:
        if setting not in known:
            raise ValueError(f"`{argument}` must have settings among {', '.join(known)}, got {setting!r}.")
    return registry[name](**settings)
