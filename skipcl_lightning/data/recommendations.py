"""Recommendations as a table with external ids: an item's index never reaches a user."""

import polars as pl
from torch import Tensor

from skipcl_lightning.batch import PADDING_INDEX
from skipcl_lightning.data.vocabulary import ItemVocabulary

__all__ = ["recommendation_frame"]


def recommendation_frame(
    session_ids: pl.Series, items: Tensor, scores: Tensor, vocabulary: ItemVocabulary
) -> pl.DataFrame:
    """One row a recommendation, the best of each session first.

    Args:
        session_ids: The external id of each of the N sessions.
        items: [N, k] int64 indices in 0..V; 0 where a session has no further candidate, which yields no row.
        scores: [N, k] float32.
        vocabulary: The items.

    Returns:
        A frame with `session_id`, `rank` (from 1), `item_id` and `score`.

    Examples:
        >>> import torch
        >>> sessions, items = pl.Series(["monday"]), torch.tensor([[2, 1, 0]])
        >>> scores = torch.tensor([[0.5, 0.25, -torch.inf]])
        >>> recommendation_frame(sessions, items, scores, ItemVocabulary(["song", "tune"])).rows()
        [('monday', 1, 'tune', 0.5), ('monday', 2, 'song', 0.25)]
    """
    top_k = items.shape[1]
    table = pl.DataFrame(
        {
            "row": pl.int_range(items.numel(), eager=True),
            "index": items.flatten().cpu().numpy(),
            "score": scores.flatten().float().cpu().numpy(),
        }
    ).filter(pl.col("index") != PADDING_INDEX)
    return table.select(
        session_ids.gather(table["row"] // max(top_k, 1)).alias("session_id"),
        (pl.col("row") % max(top_k, 1) + 1).alias("rank"),
        pl.Series("item_id", vocabulary.decode(table["index"].to_numpy()), dtype=vocabulary.dtype),
        pl.col("score"),
    )
