"""Recommend from an exported folder with numpy, onnxruntime, polars and FAISS alone: no torch.

skipcl export checkpoints/best.ckpt model
python examples/serve_onnx.py model "a:1,b:-1" --penalty 0.5
"""

import argparse
import json
from pathlib import Path

import faiss
import numpy as np
import onnxruntime
import polars as pl

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("folder", type=Path, help="what `skipcl export` wrote")
parser.add_argument("session", help="ids in the order of time, perhaps with their feedback: a:1,b:-1")
parser.add_argument(
    "--penalty", type=float, default=0.0, help="how much tracks that may be skipped are avoided"
)
parser.add_argument("--top-k", type=int, default=10)
given = parser.parse_args()

about = json.loads((given.folder / "model.json").read_text(encoding="utf-8"))
items = pl.read_parquet(given.folder / "items.parquet")
model = onnxruntime.InferenceSession(given.folder / "model.onnx", providers=["CPUExecutionProvider"])

index_of = dict(zip(items["item_id"].cast(pl.String), items["index"], strict=True))
plays = []
for play in given.session.split(","):
    item, _, feedback = (play, "", "1") if play in index_of else play.rpartition(":")
    plays.append((index_of[item], float(feedback)))
skipped = [item for item, feedback in plays if feedback < 0]
plays = plays[-about["longest_session"] :]
inputs = {"items": np.array([[item for item, _ in plays]])}
for name in about["inputs"]:  # what is unknown is 0
    spec = about["inputs"][name]
    shape = [1, *(size if isinstance(size, int) else len(plays) for size in spec["shape"][1:])]
    inputs.setdefault(name, np.zeros(shape, spec["dtype"]))
if "feedback" in inputs:
    inputs["feedback"][0] = [feedback for _, feedback in plays]
query, *skip_vector = model.run(None, inputs)
if skip_vector:
    query = np.hstack([query, given.penalty * skip_vector[0], np.full((1, 1), given.penalty, np.float32)])

# As `skipcl recommend`, which also adds the transitions of a model that has them: see the guide on export.
candidates = items.filter(~pl.col("retired"), ~pl.col("index").is_in(skipped))
vectors = np.ascontiguousarray(candidates["vector"].to_numpy())
search = faiss.IndexFlatIP(vectors.shape[1])  # any other index of inner products will do
search.add(vectors)
scores, places = search.search(query, min(given.top_k, search.ntotal))
for rank, (place, score) in enumerate(zip(places[0], scores[0], strict=True), start=1):
    print(rank, candidates["item_id"][int(place)], f"{score:.4f}")
