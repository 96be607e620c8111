"""No door runs the code of a file: a hostile checkpoint from the disk or a URL is refused."""

import functools
import http.server
import pickle
import threading
from pathlib import Path

import pytest
import torch
from small_models import quiet_trainer
from small_run import make_data, make_module

from skipcl_lightning import Recommender, SkipCLModule
from skipcl_lightning.data import SessionDataModule
from skipcl_lightning.module import WholeCheckpointIO

SMALL = ["--config", "simulated/sasrec", "--trainer.accelerator", "cpu", "--trainer.logger", "false"]


class Bomb:
    """Its pickle creates a file when it is loaded."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path):
    """The file that exists if code has run."""
    return tmp_path / "code_has_run"


@pytest.fixture
def hostile(tmp_path, mark, trained):
    """Files that torch and pickle would run."""
    whole = torch.load(trained[2], weights_only=True)
    files = [tmp_path / f"{name}.ckpt" for name in ("archive", "old", "pickle")]
    torch.save({**whole, "more": Bomb(mark)}, files[0])
    torch.save({**whole, "more": Bomb(mark)}, files[1], _use_new_zipfile_serialization=False)
    files[2].write_bytes(pickle.dumps({**whole, "more": Bomb(mark)}))
    with files[2].open("rb") as stream:
        pickle.load(stream)  # noqa: S301 - to see that it would
    assert mark.exists()
    mark.unlink()
    return files


def run_trainer(method, path, **settings):
    data = make_data()
    getattr(quiet_trainer(limit_val_batches=0, max_epochs=2), method)(
        make_module(data), data, ckpt_path=path, **settings
    )


def begin(method, path, *more):
    data = make_data()
    getattr(make_module(data), method)(path, *more, data)


DOORS = {
    "load_from_checkpoint": SkipCLModule.load_from_checkpoint,
    "from_checkpoint": Recommender.from_checkpoint,
    "a class of one's own": functools.partial(Recommender.from_checkpoint, module_class=SkipCLModule),
    "fit": functools.partial(run_trainer, "fit"),
    "validate": functools.partial(run_trainer, "validate"),
    "test": functools.partial(run_trainer, "test"),
    "predict": functools.partial(run_trainer, "predict"),
    "init_from": functools.partial(begin, "init_from"),
    "extend_checkpoint": lambda path: begin("extend_checkpoint", path, Path(path).with_name("extended.ckpt")),
    "vocabulary": lambda path: SessionDataModule(make_data().log, vocabulary=path).num_items,
    "plugin": WholeCheckpointIO().load_checkpoint,
}


@pytest.mark.parametrize("door", DOORS)
def test_no_door_runs_the_code_of_a_file(door, hostile, mark):
    for file in hostile:
        with pytest.raises(ValueError, match=rf"must be .*{file.name}") as caught:
            DOORS[door](file)
        assert not mark.exists()
        assert "weights_only=False" not in str(caught.value)
    with pytest.raises(
        ValueError, match=r"with objects other than tensors and plain values; .*add_safe_globals"
    ):
        WholeCheckpointIO().load_checkpoint(hostile[0])


@pytest.fixture
def served(hostile):
    """The URL of a server with these files, and the paths of its requests."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_request(self, *args):
            asked.append(self.path)

    handler = functools.partial(Handler, directory=hostile[0].parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/{hostile[0].name}", asked
        server.shutdown()


def test_no_door_takes_a_url(served, mark):
    url, asked = served
    for door in DOORS.values():
        with pytest.raises(ValueError, match=r"must be .*, got 'http:/"):
            door(url)
    assert not mark.exists()
    assert not asked


def test_nobody_can_ask_for_code(trained):
    for door in (SkipCLModule.load_from_checkpoint, functools.partial(run_trainer, "test")):
        with pytest.raises(ValueError, match="`weights_only` must be True or None, got False"):
            door(trained[2], weights_only=False)


@pytest.mark.parametrize("command", ["test", "fit"])
def test_no_command_runs_code(command, skipcl, hostile, served, mark):
    for source in (served[0], hostile[0]):
        with pytest.raises(SystemExit, match=f"skipcl {command}: `path` must be"):
            skipcl(command, *SMALL, "--ckpt_path", source)
    assert not mark.exists()
    assert not served[1]


@pytest.mark.reliability
@pytest.mark.parametrize("command", ["validate", "predict"])
def test_no_further_command_runs_code(command, skipcl, hostile, served, mark):
    test_no_command_runs_code(command, skipcl, hostile, served, mark)


@pytest.mark.reliability
def test_no_command_begins_with_code(skipcl, hostile, mark):
    with pytest.raises(SystemExit, match="skipcl fit: `path` must be"):
        skipcl("fit", *SMALL, "--init_from", hostile[0])
    with pytest.raises(SystemExit, match="skipcl recommend: `path` must be"):
        skipcl("recommend", hostile[0], "--session", "a:1")
    assert not mark.exists()
