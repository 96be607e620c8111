"""`skipcl fit` from a checkpoint, on a newer log with new tracks."""

import pytest
import torch

from skipcl_lightning import SkipCLModule
from skipcl_lightning.data import simulate_sessions

RUN = "lightning_logs/version_0"
OLD = f"{RUN}/checkpoints/last.ckpt"
SMALL = [
    "--config", "simulated/sasrec", "--trainer.max_epochs", 1, "--trainer.accelerator", "cpu",
    "--trainer.enable_progress_bar", "false", "--data.log.num_sessions", 60, "--data.log.num_items", 40,
]  # fmt: skip
ON = ["--config", f"{RUN}/config.yaml", "--data.log", "newer.parquet"]


def load(version):
    return SkipCLModule.load_from_checkpoint(f"lightning_logs/version_{version}/checkpoints/last.ckpt")


@pytest.mark.slow
def test_a_newer_log_trains_a_checkpoint_on(skipcl, capsys):
    skipcl("fit", *SMALL)
    old, steps = load(0), torch.load(OLD, weights_only=True)["global_step"]
    simulate_sessions(60, num_items=45, seed=5).collect().write_parquet("newer.parquet")
    # Another run with the weights: the learning rate hardly moves them.
    still = ["--model.learning_rate", 1e-12, "--model.warmup_steps", 0]
    skipcl("fit", *ON, "--init_from", "last", *still)
    begun = load(1)
    assert (old.num_items, begun.num_items, begun.growth) == (40, 45, [40, 45])
    assert begun.encoder.vocabulary.ids[:40] == old.encoder.vocabulary.ids
    torch.testing.assert_close(begun.model.item_table[:41], old.model.item_table, rtol=0, atol=1e-6)
    # The same run goes on.
    skipcl("fit", *ON, "--ckpt_path", OLD, "--trainer.max_epochs", 2)
    resumed = load(2)
    assert resumed.encoder.vocabulary == begun.encoder.vocabulary
    found = torch.load("lightning_logs/version_2/checkpoints/last.ckpt", weights_only=True)
    assert found["global_step"] > steps
    assert found["epoch"] == 1
    # What a run writes is tested without more arguments.
    config = "lightning_logs/version_1/config.yaml"
    skipcl("test", "--config", config, "--ckpt_path", "lightning_logs/version_1/checkpoints/best.ckpt")
    for arguments, message in (
        (["--init_from", "none.ckpt"], r"`--init_from` must be a file that exists, got 'none\.ckpt'"),
        (["--init_from", OLD, "--ckpt_path", OLD], "`--init_from` must be left out beside `--ckpt_path`"),
    ):
        with pytest.raises(SystemExit, match=message):
            skipcl("fit", *ON, *arguments)
