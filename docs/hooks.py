"""Hooks of mkdocs: formulas become MathML and Mermaid diagrams SVG, which browsers draw without a script."""

import re
from itertools import count
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from latex2mathml.converter import convert
from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor
from merman import Merman

DIAGRAM = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Formulas(Extension):
    """Reads `$…$` within a line and `$$…$$` as a block."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802 - Markdown's own name
        """Add the two patterns, after code spans (190) and before backslash escapes (180)."""
        md.inlinePatterns.register(Formula(r"\$\$(.+?)\$\$", md, "block"), "block formula", 186)
        md.inlinePatterns.register(Formula(r"(?<![\w$])\$([^$\n]+)\$(?!\w)", md, "inline"), "formula", 185)


class Formula(InlineProcessor):
    """Turns one kind of formula into MathML."""

    def __init__(self, pattern: str, md: Markdown, display: str) -> None:
        super().__init__(pattern, md)
        self.display = display

    def handleMatch(self, m: Any, data: str) -> tuple[Element | str, int, int]:  # noqa: ARG002, N802
        """Convert one match."""
        mathml = convert(" ".join(m[1].split()), display=self.display)
        return self.md.htmlStash.store(mathml), m.start(0), m.end(0)


def on_config(config: Any) -> Any:
    """Add the extension to those of mkdocs.yml.

    Args:
        config: The configuration of mkdocs.

    Returns:
        The same configuration.
    """
    config.markdown_extensions.append(Formulas())
    return config


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Draw the diagrams of a page, and let the page on the architecture say what CONTRIBUTING.md says.

    Args:
        markdown: The page.
        kwargs: More of mkdocs.

    Returns:
        The page with an SVG in place of each Mermaid block.
    """
    if kwargs["page"].file.src_uri == "architecture.md":
        contributing = (
            Path(kwargs["config"].docs_dir).with_name("CONTRIBUTING.md").read_text(encoding="utf-8")
        )
        markdown += contributing.partition("\n")[2]
    client, numbers = Merman(), count()

    def draw(match: re.Match[str]) -> str:
        svg = client.render_svg(match[1], f'{{"svg": {{"diagram_id": "diagram-{next(numbers)}"}}}}')
        # One line, because an empty line would end the block of HTML.
        return f'<div class="diagram">{" ".join(svg.split())}</div>'

    return DIAGRAM.sub(draw, markdown)
