"""No pickle of a file, no process, no connection and no secret, by Python's own audit events."""

import pickle
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger
from small_models import quiet_trainer
from small_run import make_data, make_module

from skipcl_lightning import Recommender, SkipCLModule, evaluate
from skipcl_lightning.callbacks import BestCheckpoint, RunFacts
from skipcl_lightning.cli.configs import check_yaml
from skipcl_lightning.data import SessionDataModule, open_store, prepare_store
from skipcl_lightning.export import export_model
from skipcl_lightning.export.hub import model_card

CODE = ("pickle.find_class", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork")
NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request")
SECRETS = {"WANDB_API_KEY": "0123456789abcdef" * 2 + "secretwb", "HF_TOKEN": "hf_secretofthetests"}
SEEN = []
# A hook stays for the rest of the process, so it does nothing outside of these tests.
LISTENING = []


def hear(event, arguments):
    if LISTENING and event in (*CODE, *NETWORK):
        SEEN.append((event, arguments))


@pytest.fixture(scope="module", autouse=True)
def hook():
    sys.addaudithook(hear)


@pytest.fixture
def seen():
    """The events since the start of the test."""
    SEEN.clear()
    LISTENING.append(True)
    yield SEEN
    LISTENING.clear()


@pytest.fixture
def whole_run(tmp_path, monkeypatch):
    """What a user does with a model, with secrets in the environment: the folder, and all steps of it."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)

    def run():
        data, logger = make_data(), CSVLogger(tmp_path / "logs")
        module = make_module(data)
        trainer = quiet_trainer(
            logger=logger, enable_checkpointing=True, callbacks=[BestCheckpoint(save_last=True), RunFacts()]
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a tiny run
            trainer.fit(module, data)
            evaluate(module, data, num_resamples=5).save(tmp_path / "report.json")
        path = trainer.checkpoint_callback.last_model_path
        recommender = Recommender.from_checkpoint(path)
        folder = export_model(
            recommender.scorer, recommender.encoder, tmp_path / "export", onnx=False, pt2=False
        )
        card = model_card(recommender.scorer, recommender.encoder, repo_id="me/it")
        (tmp_path / "card.md").write_text(card)
        prepare_store(make_data().log, tmp_path / "store")
        SkipCLModule.load_from_checkpoint(path)
        Recommender.from_export(folder).recommend(
            [[recommender.encoder.vocabulary.ids[0]]], top_k=2
        ).write_csv(tmp_path / "found.csv")
        _ = open_store(tmp_path / "store").store.ids
        _ = SessionDataModule(make_data().log, vocabulary=path).num_items
        (tmp_path / "run.yaml").write_text("data: {log: log.csv}")
        check_yaml(tmp_path / "run.yaml")

    return tmp_path, run


def test_a_run_opens_no_connection_no_pickle_and_no_process_and_writes_no_secret(
    whole_run, seen, capfd, caplog
):
    folder, run = whole_run
    run()
    assert not seen
    written = [file for file in folder.rglob("*") if file.is_file()]
    assert {"hparams.yaml", "metrics.csv", "last.ckpt", "model.json", "manifest.json", "card.md"} <= {
        file.name for file in written
    }
    shown = "".join(capfd.readouterr()) + caplog.text
    for secret in SECRETS.values():
        assert secret not in shown
        assert not [file for file in written if secret.encode() in file.read_bytes()]


def test_the_events_of_code_and_of_connections_are_heard(seen, tmp_path):
    pickle.loads(pickle.dumps(Path))  # noqa: S301 - our own bytes
    subprocess.run(["true"], check=True)  # noqa: S607
    with socket.socket() as place, pytest.raises(OSError, match=r"."):
        place.connect(("127.0.0.1", 1))
    assert {"pickle.find_class", "subprocess.Popen", "socket.connect"} <= {event for event, _ in seen}
