"""Named configurations of `reproduce.py`: a backbone, its loss and its published results."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from skipcl_lightning.backbones import BERT4Rec, Caser, ESASRec, GRU4Rec, HFBackbone, NextItNet, SASRec
from skipcl_lightning.heads import SampledSoftmax

EMBEDDING_SIZE = 64


@dataclass(frozen=True)
class Configuration:
    """Configuration of a backbone and its training.

    Args:
        backbone: Builds the backbone for a maximum session length.
        loss: Builds the next-item loss; full softmax if None.
        published: For each data set, HitRate@10 and NDCG@10 of a paper that follows this protocol.
        settings: More arguments of `SkipCLModule`.
        epochs: The maximum number of epochs.
        patience: Epochs without a better validation result before training stops.
    """

    backbone: Callable[[int], nn.Module]
    loss: Callable[[], nn.Module] | None = None
    published: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    epochs: int = 100
    patience: int = 10


# Published results and settings are from Klenitskiy and Vasilev, RecSys 2023, arXiv 2309.07602: 2 blocks,
# 1 head (2 for BERT4Rec), dropout 0.1, 100 epochs (200 for BERT4Rec). Their sampled softmax draws negatives
# for each user separately, without replacement and without seen items; ours shares one sample per batch. The
# other backbones have the settings of their papers, except for the dropout.
CONFIGURATIONS = {
    "GRU4Rec": Configuration(
        lambda _: GRU4Rec(EMBEDDING_SIZE, embedding_dropout=0.1, hidden_dropout=0.1),
        published={"ml-1m": (0.2811, 0.1648)},
    ),
    "Caser": Configuration(lambda _: Caser(EMBEDDING_SIZE, dropout=0.2)),
    "NextItNet": Configuration(lambda _: NextItNet(EMBEDDING_SIZE, dilations=(1, 4, 1, 4))),
    "SASRec": Configuration(
        lambda length: SASRec(EMBEDDING_SIZE, max_length=length, dropout=0.1),
        published={"ml-1m": (0.3152, 0.1821)},
    ),
    "SASRec-sampled": Configuration(
        lambda length: SASRec(EMBEDDING_SIZE, max_length=length, dropout=0.1),
        loss=lambda: SampledSoftmax(3000),
        published={"ml-1m": (0.3159, 0.1857)},
    ),
    "ESASRec": Configuration(
        lambda length: ESASRec(EMBEDDING_SIZE, max_length=length, dropout=0.1),
        loss=lambda: SampledSoftmax(256),
    ),
    "BERT4Rec": Configuration(
        lambda length: BERT4Rec(EMBEDDING_SIZE, max_length=length + 1, dropout=0.1),
        published={"ml-1m": (0.2843, 0.1537)},
        # Mask each item with the same probability; never mask only the last one.
        settings={"mask_probability": 0.2, "last_mask_probability": 0.0},
        epochs=200,
        patience=20,
    ),
    "GPT-2": Configuration(
        lambda length: HFBackbone(
            {
                "model_type": "gpt2",
                "n_embd": EMBEDDING_SIZE,
                "n_layer": 2,
                "n_head": 2,
                "n_positions": length,
            },
            causal=True,
        )
    ),
    "BERT": Configuration(
        lambda length: HFBackbone(
            {
                "model_type": "bert",
                "hidden_size": EMBEDDING_SIZE,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 4 * EMBEDDING_SIZE,
                "max_position_embeddings": length + 1,
            },
            causal=False,
        ),
        epochs=200,
        patience=20,
    ),
}


def fits(name: str, num_items: int) -> bool:
    """Return whether a configuration's loss needs fewer negatives than the catalogue has items."""
    loss = CONFIGURATIONS[name].loss
    return loss is None or loss().num_negatives < num_items
