import re

import pytest

from skipcl_lightning.data import read_mssd


def test_the_command_writes_logs_and_says_how_much(skipcl, tmp_path, capsys):
    small = ["--sessions", "250", "--items", "40", "--sessions_per_file", "100", "--seed", "3"]
    skipcl("simulate", "logs", *small)
    done = capsys.readouterr()
    assert done.err == ""
    said = re.search(r"3 files, 250 sessions, ([\d,]+) rows, ([\d.]+) MB: logs", done.out)
    files = list((tmp_path / "logs").iterdir())
    assert len(files) == 3
    table = read_mssd(tmp_path / "logs").collect()
    assert table["session_id"].n_unique() == 250
    assert table["item_id"].n_unique() == 40
    assert int(said[1].replace(",", "")) == table.height
    assert float(said[2]) == pytest.approx(sum(file.stat().st_size for file in files) / 1e6, abs=0.06)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["logs", "--sessions", "0"], "`sessions` must be at least 1, got 0"),
        (["logs", "--items", "5"], "`num_items` must be at least 20, got 5. Every mood needs an item."),
        (["file"], "`folder` must be a folder, got the file"),
    ],
)
def test_bad_settings_stop_the_command_before_it_writes(skipcl, tmp_path, arguments, message):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stopped:
        skipcl("simulate", *arguments)
    assert str(stopped.value).startswith(f"skipcl simulate: {message}")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
