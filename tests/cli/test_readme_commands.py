import shlex

import polars as pl
import pytest
import yaml
from markdown_blocks import code_blocks

from skipcl_lightning.data import simulate_sessions


@pytest.mark.parametrize("page", ["README.md", "docs/guide/command-line.md"])
def test_commands_of_a_page_run(page, skipcl, tmp_path, capsys):
    blocks = [block.replace("\\\n", " ") for block in code_blocks(page, "bash")]
    commands = [line for block in blocks for line in block.splitlines()]
    assert commands
    # The reader's own file.
    simulated = simulate_sessions(300, num_items=60, seed=0).collect()
    simulated.select(
        listener="session_id",
        started=pl.col("session_id") * 9_000 + pl.col("position") * 240,
        track="item_id",
        played=(pl.col("feedback").cast(pl.Float64) + 1) * 100,
        length=pl.lit(200),
    ).write_csv("plays.csv")
    for command in commands:
        capsys.readouterr()
        name, *arguments = shlex.split(command, comments=True)
        assert name == "skipcl"
        if ">" in arguments:
            *arguments, _, file = arguments
            skipcl(*arguments)
            (tmp_path / file).write_text(capsys.readouterr().out)
        else:
            skipcl(*arguments)
    assert pl.read_parquet("next.parquet").height


def test_the_configuration_of_the_guide_is_one(skipcl, tmp_path, monkeypatch, capsys):
    (text,) = code_blocks("docs/guide/command-line.md", "yaml")
    (tmp_path / "my.yaml").write_text(text)
    (tmp_path / "my_project.py").write_text(
        "from torch import nn\nclass MyBackbone(nn.Module):\n    def __init__(self, size: int): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SystemExit) as end:
        skipcl("fit", "--config", "my.yaml", "--print_config=skip_default")
    assert end.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    backbone = printed["model"]["init_args"]["backbone"]
    assert backbone == {"class_path": "my_project.MyBackbone", "init_args": {"size": 64}}
    assert printed["data"]["init_args"]["log"]["init_args"]["paths"] == "logs"
