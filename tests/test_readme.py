import re

import pytest
from markdown_blocks import code_blocks, run_python

BLOCKS = code_blocks("README.md", "python")


@pytest.mark.parametrize("block", BLOCKS[1:])
def test_code_blocks_of_the_readme_run(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_python(block)


def test_the_first_example_beats_the_simple_models(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_python(BLOCKS[0])
    shown = re.findall(r"EvaluationReport\('(\w+)', .*?hit_rate@10 ([\d.]+)", capsys.readouterr().out)
    assert [name for name, _ in shown] == ["SkipCLModule", "LastItemMarkov", "Popularity"]
    model, markov, popularity = (float(value) for _, value in shown)
    assert model > markov > popularity
