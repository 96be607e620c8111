"""Trivial predictors of skips: by the item, by the last feedback, and by both."""

from typing import NamedTuple

import torch
from torch import Tensor

from skipcl_lightning._checks import check_number
from skipcl_lightning.batch import SessionBatch
from skipcl_lightning.data import SessionDataModule
from skipcl_lightning.evaluation.target_rows import checked_target
from skipcl_lightning.functional import last_position

__all__ = ["ItemAndLastSkipRate", "ItemSkipRate", "LastSkipRate"]


class _SkipRates(NamedTuple):
    """Smoothed skip rates of the training set.

    Attributes:
        overall: A scalar, float64: (skips + 1) / (tracks + 2), so never 0 or 1.
        by_item: [V + 1] float64.
        by_last: [3] float64: at the start of a session, after a listened track, after a skipped one.
    """

    overall: Tensor
    by_item: Tensor
    by_last: Tensor


class ItemSkipRate:
    r"""Predicts a skip by how often the item was skipped in the training set.

    With n tracks of the item, m of them skipped, and the skip rate r of all tracks, the probability is

    $$
    \frac{m + s \, r}{n + s}
    $$

    so an item that was never played has the rate r. A track counts as skipped if `SessionBatch.rejected_mask`
    says so, as for the targets of evaluation.

    Args:
        data: The data module; the whole training set is read.
        smoothing: s > 0, in tracks.

    Raises:
        TypeError: `smoothing` is no number.
        ValueError: It is not above 0.

    Examples:
        >>> from skipcl_lightning.data import simulate_sessions
        >>> data = SessionDataModule(simulate_sessions(20, num_items=40, num_moods=4))
        >>> ItemSkipRate(data).skip_probability(next(iter(data.test_dataloader()))).shape
        torch.Size([20])
    """

    def __init__(self, data: SessionDataModule, *, smoothing: float = 10.0) -> None:
        self.rates = _count_skips(data, smoothing).by_item

    def skip_probability(self, batch: SessionBatch) -> Tensor:
        """Return the probability that each target is skipped.

        Args:
            batch: B sessions with targets.

        Returns:
            [B] float64 in (0, 1).

        Raises:
            ValueError: The batch has no targets.
        """
        return self.rates.to(batch.items.device)[checked_target(batch)]


class LastSkipRate:
    """Predicts a skip by whether the last track was skipped ("as the last one").

    The probability is the share of skips in the training set after a skipped track, after a listened track,
    or at the start of a session, smoothed as in `ItemSkipRate`. It orders targets as a copy of the last
    feedback does, and is calibrated too.

    Args:
        data: The data module; the whole training set is read.
        smoothing: s > 0, in tracks.

    Raises:
        TypeError: `smoothing` is no number.
        ValueError: It is not above 0.

    Examples:
        >>> from skipcl_lightning.data import simulate_sessions
        >>> data = SessionDataModule(simulate_sessions(20, num_items=40, num_moods=4))
        >>> len(LastSkipRate(data).skip_probability(next(iter(data.test_dataloader()))).unique()) <= 3
        True
    """

    def __init__(self, data: SessionDataModule, *, smoothing: float = 10.0) -> None:
        self.rates = _count_skips(data, smoothing).by_last

    def skip_probability(self, batch: SessionBatch) -> Tensor:
        """Return the probability that the next track of each session is skipped.

        Args:
            batch: B sessions.

        Returns:
            [B] float64 in (0, 1).
        """
        return self.rates.to(batch.items.device)[_last_feedback(batch)]


class ItemAndLastSkipRate:
    r"""Predicts a skip by the item and by the last feedback, as if they were independent given the outcome.

    With the rates of `ItemSkipRate` and `LastSkipRate` and the rate r of all tracks,

    $$
    \text{logit} \, p = \text{logit} \, p_{item} + \text{logit} \, p_{last} - \text{logit} \, r
    $$

    Args:
        data: The data module; the whole training set is read.
        smoothing: s > 0, in tracks.

    Raises:
        TypeError: `smoothing` is no number.
        ValueError: It is not above 0.

    Examples:
        >>> from skipcl_lightning.data import simulate_sessions
        >>> data = SessionDataModule(simulate_sessions(20, num_items=40, num_moods=4))
        >>> ItemAndLastSkipRate(data).skip_probability(next(iter(data.test_dataloader()))).shape
        torch.Size([20])
    """

    def __init__(self, data: SessionDataModule, *, smoothing: float = 10.0) -> None:
        self.rates = _count_skips(data, smoothing)

    def skip_probability(self, batch: SessionBatch) -> Tensor:
        """Return the probability that each target is skipped.

        Args:
            batch: B sessions with targets.

        Returns:
            [B] float64 in (0, 1).

        Raises:
            ValueError: The batch has no targets.
        """
        overall, by_item, by_last = (rate.to(batch.items.device).logit() for rate in self.rates)
        return (by_item[checked_target(batch)] + by_last[_last_feedback(batch)] - overall).sigmoid()


def _count_skips(data: SessionDataModule, smoothing: float) -> _SkipRates:
    check_number("smoothing", smoothing, minimum=0, open_minimum=True)
    by_item, by_last = torch.zeros(2, data.num_items + 1), torch.zeros(2, 3)
    by_item, by_last = by_item.long(), by_last.long()
    for batch in data.training_sessions():
        valid, skipped = batch.valid_mask, batch.rejected_mask
        # 0 at the start of a session, then 1 after a listened track and 2 after a skipped one.
        last = torch.nn.functional.pad(1 + skipped[:, :-1].long(), (1, 0))
        for row, mask in enumerate((skipped, valid)):
            by_item[row] += torch.bincount(batch.items[mask], minlength=by_item.shape[1])
            by_last[row] += torch.bincount(last[mask], minlength=3)
    skips, tracks = by_last.double().sum(dim=1)
    overall = (skips + 1) / (tracks + 2)
    smooth = [(counts[0] + smoothing * overall) / (counts[1] + smoothing) for counts in (by_item, by_last)]
    return _SkipRates(overall, *smooth)


def _last_feedback(batch: SessionBatch) -> Tensor:
    """[B] int64: 0 for an empty session, 1 if its last track was listened to, 2 if it was skipped."""
    kinds = torch.where(batch.valid_mask, 1 + batch.rejected_mask.long(), 0)
    return last_position(kinds[..., None], batch.valid_mask).squeeze(1)
