import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from watched_runs import read_wandb_records, wandb_runs

EXAMPLES = Path(__file__).parents[2] / "examples"
SWEEP = yaml.safe_load((EXAMPLES / "sweep.yaml").read_text(encoding="utf-8"))


def run(arguments, folder, **environment):
    done = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "WANDB_MODE": "offline", "COLUMNS": "160", **environment},
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return done.stdout


def config_of(path):
    return {
        "/".join(list(update.nested_key) or [update.key]): json.loads(update.value_json)
        for record in read_wandb_records(path)
        if record.WhichOneof("record_type") == "config"
        for update in record.config.update
    }


def group_of(path):
    (started,) = [r.run for r in read_wandb_records(path) if r.WhichOneof("record_type") == "run"]
    return started.run_group


def sweep_example():
    sys.path.insert(0, str(EXAMPLES))
    try:
        spec = importlib.util.spec_from_file_location("sweep_optuna", EXAMPLES / "sweep_optuna.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(EXAMPLES))
    return module


@pytest.mark.slow
def test_a_trial_as_an_agent_of_wandb_starts_it_is_one_run_with_its_settings(tmp_path):
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    chosen = {"wandb": "online", "weight": 0.02, "temperature": 0.3, "learning_rate": 0.001}
    chosen["embedding_size"] = 32
    assert set(chosen) == set(SWEEP["parameters"])
    # As the agent does; it names the run beforehand.
    arguments = create_sweep_command_args({"args": {key: {"value": value} for key, value in chosen.items()}})
    program = EXAMPLES.parent / SWEEP["program"]
    run(
        [program, *arguments["args"], "--smoke=true"],
        tmp_path,
        WANDB_RUN_ID="trial1",
        WANDB_SWEEP_ID="sweep1",
    )
    (path,) = wandb_runs(tmp_path / "runs")
    assert path.name == "run-trial1.wandb"
    records = read_wandb_records(path)
    history = [
        {(list(item.nested_key) or [item.key])[0] for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
    keys = set().union(*history)
    assert SWEEP["metric"]["name"] in keys
    assert "test/ndcg@20" in keys
    config = config_of(path)
    assert config["learning_rate"] == 0.001
    assert config["skip_head"]["settings"]["weight"] == 0.02


@pytest.mark.slow
def test_optuna_searches_the_same_space_with_one_run_a_trial(tmp_path):
    script = EXAMPLES / "sweep_optuna.py"
    output = run([script, "--trials", 2, "--smoke", "true", "--name", "search"], tmp_path)
    paths = wandb_runs(tmp_path / "runs")
    assert len(paths) == 2
    assert [group_of(path) for path in paths] == ["search", "search"]
    rates = {config_of(path)["learning_rate"] for path in paths}
    assert len(rates) == 2
    assert all(0.0003 <= rate <= 0.01 for rate in rates)
    assert "val/ndcg@20" in output
    assert len(list((tmp_path / "runs/checkpoints").glob("*/*.ckpt"))) == 2


def test_parameters_are_suggested_as_wandb_describes_them():
    suggest = sweep_example().suggest
    trial = SimpleNamespace(
        suggest_categorical=lambda name, values: ("one of", values),
        suggest_float=lambda name, low, high, log: (low, high, log),
    )
    assert suggest(trial, "a", {"value": 3}) == 3
    assert suggest(trial, "a", {"values": [1, 2]}) == ("one of", [1, 2])
    assert suggest(trial, "a", {"min": 0.1, "max": 2.0}) == (0.1, 2.0, False)
    log = {"distribution": "log_uniform_values", "min": 0.1, "max": 2.0}
    assert suggest(trial, "a", log) == (0.1, 2.0, True)
    with pytest.raises(ValueError, match=r"`a` must be `uniform` or `log_uniform_values`.*got 'q_normal'"):
        suggest(trial, "a", {"distribution": "q_normal", "mu": 1.0})


def test_without_optuna_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r'pip install "\.\[sweep\]"'):
        sweep_example().import_optuna()
