"""Writes `docs/tutorial.ipynb` from `docs/tutorial.md`: Python blocks become cells, outputs are left out."""

import json
import re
from pathlib import Path

DOCS = Path(__file__).parent
PARTS = re.compile(
    r"^```(python|text)\n(.*?)^```\n|^!\[[^\]]*\]\(tutorial/(\S+)\)\n", re.DOTALL | re.MULTILINE
)


def make_notebook(markdown: str) -> str:
    """Convert a page.

    Args:
        markdown: The page. A picture in the folder `tutorial` becomes a cell that shows the file of its name.

    Returns:
        The notebook, as JSON of nbformat 4.5.
    """
    cells: list[tuple[str, str]] = []
    end = 0
    for match in PARTS.finditer(markdown):
        cells.append(("markdown", markdown[end : match.start()]))
        end = match.end()
        language, block, picture = match.groups()
        if language == "python":
            cells.append(("code", block))
        elif picture:
            cells.append(("code", f'from IPython.display import Image\n\nImage("{picture}")'))
    cells.append(("markdown", markdown[end:]))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = {
        "cells": [
            {
                "cell_type": kind,
                "id": f"cell-{number}",
                "metadata": {},
                "source": text.strip().splitlines(keepends=True),
                **({"execution_count": None, "outputs": []} if kind == "code" else {}),
            }
            for number, (kind, text) in enumerate((kind, text) for kind, text in cells if text.strip())
        ],
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    page = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    (DOCS / "tutorial.ipynb").write_text(make_notebook(page), encoding="utf-8")
