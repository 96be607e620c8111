import pytest
from markdown_blocks import code_blocks, run_python

BLOCKS = code_blocks("README.md", "python")


@pytest.mark.parametrize("block", BLOCKS)
def test_code_blocks_of_the_readme_run(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_python(block)


def test_the_readme_has_code_blocks():
    assert BLOCKS
