"""Parts that remember the settings they were built with, so that a checkpoint can rebuild them."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

__all__ = ["records_settings"]

Part = TypeVar("Part")
Arguments = ParamSpec("Arguments")


def records_settings(
    init: Callable[Concatenate[Part, Arguments], None],
) -> Callable[Concatenate[Part, Arguments], None]:
    """Decorate ``__init__`` so that the instance keeps its arguments, defaults included, as ``settings``.

    A subclass with an ``__init__`` of its own does not inherit this: its arguments are other ones, and a
    part rebuilt from the parent's would silently be another part.

    Args:
        init: The ``__init__`` to wrap.

    Returns:
        The same ``__init__``, which also sets ``settings: dict[str, Any]``.

    Example:
        >>> class Scale:
        ...     @records_settings
        ...     def __init__(self, factor, *, offset=0):
        ...         self.factor = factor
        >>> Scale(2).settings
        {'factor': 2, 'offset': 0}
    """
    signature = inspect.signature(init)

    @functools.wraps(init)
    def wrapper(self: Part, *args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        init(self, *args, **kwargs)
        if type(self).__init__ is wrapper:
            bound = signature.bind(self, *args, **kwargs)
            bound.apply_defaults()
            settings: dict[str, Any] = dict(list(bound.arguments.items())[1:])
            vars(self)["settings"] = settings

    return cast("Callable[Concatenate[Part, Arguments], None]", wrapper)
