"""Two processes, the second of which fails in its third step: it raises, is killed, or is stopped."""

import os
import signal
import sys
from datetime import timedelta
from pathlib import Path

from lightning.pytorch import Callback
from lightning.pytorch.strategies import DDPStrategy

sys.path.append(str(Path(__file__).parent.parent))
import resumed_runs

# More than two processes need to find each other on a busy machine.
TIMEOUT = timedelta(seconds=45)


class Fail(Callback):
    def __init__(self, way):
        self.way = way

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if (trainer.global_rank, trainer.global_step) != (1, 2):
            return
        if self.way == "raises":
            raise ValueError("this track does not exist")
        os.kill(os.getpid(), {"is killed": signal.SIGKILL, "is stopped": signal.SIGSTOP}[self.way])


if __name__ == "__main__":
    strategy = DDPStrategy(timeout=TIMEOUT)
    resumed_runs.train("causal", resumed_runs.make_data(2), Fail(sys.argv[1]), devices=2, strategy=strategy)
