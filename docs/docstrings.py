"""Docstrings for the reference: their formulas as MathML, their roles as links, and their example as one."""

import re
from typing import Any

import griffe
from latex2mathml.converter import convert

MATH = re.compile(r"^\.\. math::[ \t]*(.*(?:\n[ \t]+\S.*)*)", re.MULTILINE)
ROLE = re.compile(r":(?:class|func|meth):`(~?)([\w.]+)`")


class ReadableDocstrings(griffe.Extension):
    """Turns what Markdown does not know in docstrings into what it does."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:  # noqa: ARG002 - griffe's signature
        """Rewrite the docstring of one object.

        Args:
            obj: A module, class, function or attribute.
            kwargs: Griffe's own.
        """
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """A docstring that Markdown and Griffe's Google style read as it is meant.

    Args:
        text: The docstring, without its indentation.

    Returns:
        The same, with formulas as MathML, which browsers draw without a script.
    """
    text = MATH.sub(_formula, text)
    text = ROLE.sub(_link, text)
    # Griffe reads `Examples` as doctests, and `Example` as a note whose `>>>` would be quotations.
    return re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)


def _formula(match: re.Match[str]) -> str:
    # One line, since a line that is indented would be code; a block, since Markdown leaves those alone.
    mathml = convert(" ".join(match[1].split()), display="block")
    return f'<div class="formula">{mathml}</div>'


def _link(match: re.Match[str]) -> str:
    path = match[2]
    # Short names are for readers of the code: what they name is often private.
    return f"[`{path.rsplit('.', 1)[-1]}`][{path}]" if path.startswith("skipcl_lightning.") else f"`{path}`"
