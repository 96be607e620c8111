"""Settle what the skip heads do: backbones, heads, weights, seeds and data sets, as `skipcl study` does.

python examples/study.py --jobs 2
python examples/study.py --datasets [ml-100k=ratings.parquet] --variants [session,batch] --seeds 5
"""

from jsonargparse import auto_cli

from skipcl_lightning.study import study

if __name__ == "__main__":
    auto_cli(study)
