"""Train on simulated sessions, and log the run to Weights & Biases, offline and without an account.

python examples/train_with_wandb.py
python examples/train_with_wandb.py --smoke true          # seconds
wandb sweep examples/sweep.yaml                           # a sweep; then run the `wandb agent` it prints
"""

from helpers.wandb_training import train_with_wandb
from jsonargparse import auto_cli

if __name__ == "__main__":
    auto_cli(train_with_wandb, as_positional=False)
