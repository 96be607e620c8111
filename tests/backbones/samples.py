"""A small one of every backbone, and sessions for them."""

import torch

from skipcl_lightning.backbones import BERT4Rec, Caser, ESASRec, GRU4Rec, HFBackbone, NextItNet, SASRec

SIZE = 8
GPT2 = {"model_type": "gpt2", "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 10, "vocab_size": 9}
BERT = {
    "model_type": "bert",
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 10,
    "vocab_size": 9,
}

CAUSAL = {
    "GRU4Rec": lambda: GRU4Rec(8, embedding_dropout=0.3, hidden_dropout=0.3),
    "GRU4Rec of two wide layers": lambda: GRU4Rec(8, hidden_size=12, num_layers=2, hidden_dropout=0.3),
    "Caser": lambda: Caser(8, window=4, num_horizontal_filters=3, num_vertical_filters=2),
    "NextItNet": lambda: NextItNet(8, dilations=(1, 2), dropout=0.2),
    "SASRec": lambda: SASRec(8, max_length=10, num_heads=2),
    "post-norm SASRec": lambda: SASRec(8, max_length=10, norm="post"),
    "ESASRec": lambda: ESASRec(8, max_length=10, num_heads=2),
    "GPT-2": lambda: HFBackbone(GPT2, causal=True),
    "GPT-2 of another size": lambda: HFBackbone({**GPT2, "n_embd": 12}, causal=True, embedding_size=8),
}
BIDIRECTIONAL = {
    "BERT4Rec": lambda: BERT4Rec(8, max_length=10),
    "BERT": lambda: HFBackbone(BERT, causal=False),
}
EVERY = {**CAUSAL, **BIDIRECTIONAL}


def build(name, seed=0):
    torch.manual_seed(seed)
    return EVERY[name]().eval()


def random_sessions(*shape, seed=0):
    return torch.randn(*shape, SIZE, generator=torch.Generator().manual_seed(seed))


def all_valid(*shape):
    return torch.ones(*shape, dtype=torch.bool)
