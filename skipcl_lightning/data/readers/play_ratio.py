"""Feedback from the part of a track that was played."""

import polars as pl

from skipcl_lightning._checks import check_choice, check_number

__all__ = ["PLAY_RATIO_LABELS", "feedback_from_ratio"]

PLAY_RATIO_LABELS = ("binary", "ratio")


def feedback_from_ratio(ratio: pl.Expr, *, label: str, skip_ratio: float) -> pl.Expr:
    """The part of a track that was played, as feedback.

    Args:
        ratio: The seconds played over those of the track; may pass 1. Null, NaN, an infinity or less than
            0 is unknown.
        label: `binary`: -1 up to `skip_ratio`, +1 above. `ratio`: the distance from `skip_ratio`,
            scaled so that 0 gives -1 and 1 or more gives +1; exactly `skip_ratio` is then 0, neither.
        skip_ratio: The largest part that still counts as skipped, in (0, 1).

    Returns:
        A Float32 expression in [-1, 1]; 0 where the part is unknown.

    Raises:
        TypeError: `skip_ratio` is no number.
        ValueError: `label` is unknown, or `skip_ratio` out of range.

    Examples:
        >>> played = pl.DataFrame({"part": [0.0, 0.25, 1.3, None]})
        >>> graded = feedback_from_ratio(pl.col("part"), label="ratio", skip_ratio=0.5)
        >>> played.select(graded)["part"].to_list()
        [-1.0, -0.5, 1.0, 0.0]
    """
    check_choice("label", label, PLAY_RATIO_LABELS)
    check_number("skip_ratio", skip_ratio, minimum=0, maximum=1, open_minimum=True, open_maximum=True)
    part = ratio.cast(pl.Float64)
    if label == "binary":
        known = pl.when(part <= skip_ratio).then(-1.0).otherwise(1.0)
    else:
        scale = pl.when(part <= skip_ratio).then(skip_ratio).otherwise(1 - skip_ratio)
        known = ((part - skip_ratio) / scale).clip(-1, 1)
    told = part.is_finite() & (part >= 0)
    return pl.when(told).then(known).otherwise(0.0).cast(pl.Float32).name.keep()
