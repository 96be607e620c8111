"""The code blocks of our Markdown files, and how they are run."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def code_blocks(path, language):
    text = (ROOT / path).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def run_python(*blocks):
    """Run blocks one after the other, as one program."""
    names = {"__name__": "__main__"}
    for block in blocks:
        exec(block, names)  # noqa: S102 - our own files
    assert "loss" not in names or names["loss"].isfinite()
