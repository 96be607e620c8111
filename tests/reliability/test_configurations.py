"""A configuration that is no good is refused at once, and never run as code."""

import pytest
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule

from skipcl_lightning.cli.configs import check_yaml, parser_mode

FILES = {
    "bomb": "a0: &a0 [x, x]\n"
    + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)),
    "cycle": "data: &a\n  log: *a\n",
    "latin": "data:\n  log: café.csv\n".encode("latin-1"),
    "bytes": bytes(range(256)),
    "open": "a: [1",
    "deep": "[" * 2_000,
    "large": "a: " + "x" * 1_000_000,
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("command", ["fit", "recommend"])
def test_a_configuration_that_cannot_be_read_is_refused_at_once(skipcl, tmp_path, kind, command):
    content = FILES[kind]
    (tmp_path / "run.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    message = rf"skipcl {command}: `--config` must be a configuration in YAML, got '?run\.yaml"
    for arguments in (["--config", "run.yaml"], ["--config=run.yaml"]):
        with pytest.raises(SystemExit, match=message):
            skipcl(command, *arguments)


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_a_configuration_names_is_refused_at_once_too(tmp_path, monkeypatch, capsys, kind):
    monkeypatch.chdir(tmp_path)
    content = FILES[kind]
    (tmp_path / "part.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    (tmp_path / "run.yaml").write_text("data: part.yaml\n")
    parser = ArgumentParser(parser_mode=parser_mode())
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(LightningDataModule, "data")
    for arguments in (["--config", "run.yaml"], ["--data", "part.yaml"]):
        with pytest.raises(SystemExit):
            parser.parse_args(arguments)
        assert 'Parser key "data"' in capsys.readouterr().err


def test_a_training_refuses_such_a_file(skipcl, tmp_path, capsys):
    (tmp_path / "part.yaml").write_text(FILES["bomb"])
    with pytest.raises(SystemExit):
        skipcl("fit", "--model.init_args.backbone", "part.yaml")
    assert "YAML must be small and without cycles" in capsys.readouterr().err


def test_a_number_in_place_of_settings_is_refused(skipcl, tmp_path):
    (tmp_path / "run.yaml").write_text("trainer: 0.5\n")
    with pytest.raises(SystemExit, match=r"skipcl fit: `--trainer` must be a mapping of settings, got 0\.5"):
        skipcl("fit", "--config", "simulated/sasrec", "--config", "run.yaml")


def test_tags_of_yaml_run_no_code(skipcl, tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("data: !!python/object/apply:os.mkdir [made]\n")
    with pytest.raises(SystemExit):
        skipcl("fit", "--config", "run.yaml")
    assert "could not determine a constructor for the tag" in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


def test_aliases_are_welcome(tmp_path):
    (tmp_path / "run.yaml").write_text("a: &a [1, 2]\nb: [*a, *a]\nc: &b x\nd: *b\n")
    check_yaml(tmp_path / "run.yaml")
