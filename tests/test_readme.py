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
    model, popularity = capsys.readouterr().out.split("EvaluationReport(")[1:3]
    number = r"([\d.]+)"
    hits, ndcg, skips, *of_markov = map(
        float,
        re.search(
            rf"hit_rate@10 {number}, ndcg@10 {number}, skip_hit_rate@10 {number}; "
            rf"last-item Markov {number}, {number}, {number}\)",
            model,
        ).groups(),
    )
    markov_hits, markov_ndcg, markov_skips = of_markov
    assert hits > markov_hits > float(re.search(f"hit_rate@10 {number}", popularity)[1])
    assert ndcg > markov_ndcg
    assert skips < markov_skips
