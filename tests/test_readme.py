import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(
    r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
)


@pytest.mark.parametrize("block", BLOCKS)
def test_code_blocks_of_the_readme_run(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(block, names)  # noqa: S102 - our own file
    assert "loss" not in names or names["loss"].isfinite()


def test_the_readme_has_code_blocks():
    assert BLOCKS
