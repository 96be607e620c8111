"""A checkpoint that cannot be used is one `ValueError` that names the file and the cure."""

import copy
import functools
import zipfile

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from small_models import quiet_trainer
from small_run import make_data, make_module

from skipcl_lightning import Recommender, SkipCLModule

MUTANTS = 15
MANY_MUTANTS = 500


class Foreign(LightningModule):
    """Another library's module."""

    def __init__(self, width=3):
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(width, 1)


def unusable(folder, path):
    """Files by what is wrong with them."""
    whole = torch.load(path, weights_only=True)
    found = {name: folder / f"{name}.ckpt" for name in ("empty", "cut", "text", "weights", "list", "foreign")}
    found["empty"].touch()
    found["cut"].write_bytes(path.read_bytes()[:2000])
    found["text"].write_text("no checkpoint")
    torch.save(whole["state_dict"], found["weights"])
    torch.save([1, 2], found["list"])
    trainer = quiet_trainer()
    trainer.strategy.connect(Foreign())
    trainer.save_checkpoint(found["foreign"])
    for key in ("state_dict", "hyper_parameters", "pytorch-lightning_version"):
        found[f"without {key}"] = folder / f"without_{key}.ckpt"
        torch.save({name: value for name, value in whole.items() if name != key}, found[f"without {key}"])
    found["folder"] = folder / "folder.ckpt"
    found["folder"].mkdir()
    found["bomb"] = folder / "bomb.ckpt"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(found["bomb"], "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name) if not name.endswith("/data/0") else bytes(10_000_000))
    found["later"] = folder / "later.ckpt"
    later = copy.deepcopy(whole)
    later["state_dict"]["model.invention.weight"] = torch.ones(3)
    torch.save(later, found["later"])
    found["size"] = folder / "size.ckpt"
    size = copy.deepcopy(whole)
    size["hyper_parameters"]["num_items"] = 10**9
    torch.save(size, found["size"])
    return found


# A module of a trainer has its own settings, and only Lightning needs its version.
HARMLESS = {
    *((kind, door) for kind in ("without hyper_parameters", "size") for door in ("test", "fit", "init_from")),
    *(("without pytorch-lightning_version", door) for door in ("from_checkpoint", "init_from")),
}


def run_trainer(data, method, path, **settings):
    trainer = quiet_trainer(limit_val_batches=0, max_epochs=2, limit_train_batches=1)
    getattr(trainer, method)(make_module(data), data, ckpt_path=path, **settings)


def doors(data):
    return {
        "load_from_checkpoint": SkipCLModule.load_from_checkpoint,
        "from_checkpoint": Recommender.from_checkpoint,
        "test": functools.partial(run_trainer, data, "test", verbose=False),
        "fit": functools.partial(run_trainer, data, "fit"),
        "init_from": lambda path: make_module(data).init_from(path, data),
    }


@pytest.mark.filterwarnings("ignore:.*contains no parameters", "ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize(
    "names",
    [
        ("load_from_checkpoint", "from_checkpoint"),
        pytest.param(("test", "fit", "init_from"), marks=pytest.mark.reliability),
    ],
    ids=", ".join,
)
def test_what_is_no_checkpoint_of_this_model_is_one_error(tmp_path, trained, names):
    data, files = make_data(), unusable(tmp_path, trained[2])
    for door in names:
        load = doors(data)[door]
        for kind, file in files.items():
            if (kind, door) in HARMLESS:
                continue
            with pytest.raises(ValueError, match=r"^`path` must be a checkpoint ") as caught:
                load(file)
            assert str(file) in str(caught.value)
            assert "weights_only=False" not in str(caught.value)
        with pytest.raises(FileNotFoundError, match=r"absent\.ckpt"):
            load(tmp_path / "absent.ckpt")


def mutate(value, generator, *, tensors=True):
    """Change one thing at a random depth, in place."""
    while True:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = keys[generator.integers(len(keys))]
        if key == "lr_lambdas":  # torch's own, of every schedule that has them
            continue
        inner = value[key]
        if isinstance(inner, dict | list) and inner and generator.random() < 0.85:
            value = inner
            continue
        choice = generator.integers(6)
        if choice == 0:
            del value[key]
        elif choice == 1 and isinstance(inner, torch.Tensor):
            value[key] = inner.double().reshape(-1)[: generator.integers(max(1, inner.numel()))]
        else:
            news = [
                None,
                -1,
                10**12,
                float("nan"),
                "words",
                [],
                {},
                torch.zeros(2) if tensors else 0.5,
                True,
                [None] * 3,
                {"a": 1},
            ]
            value[key] = news[generator.integers(len(news))]
        return


def fuzz(folder, path, generator, count):
    """How many of the changed checkpoints load, and how many are refused."""
    whole, data = torch.load(path, weights_only=True), make_data()
    loads, refused, file = list(doors(data).items()), 0, folder / "mutant.ckpt"
    for number in range(count):
        mutant = copy.deepcopy(whole)
        mutate(mutant, generator)
        torch.save(mutant, file)
        door, load = loads[number % len(loads)]
        try:
            load(file)
        except ValueError as error:
            refused += 1
            message = str(error)
            if str(file) not in message or "weights_only=False" in message:
                pytest.fail(f"{door}: {message}")
    return refused


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_changed_checkpoints_load_or_are_refused(tmp_path, trained):
    assert fuzz(tmp_path, trained[2], np.random.default_rng(0), MUTANTS)


@pytest.mark.reliability
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_many_changed_checkpoints(tmp_path, trained, record):
    refused = fuzz(tmp_path, trained[2], np.random.default_rng(1), MANY_MUTANTS)
    record(f"{MANY_MUTANTS} changed checkpoints: {refused} refused with the file's name, the others load")
