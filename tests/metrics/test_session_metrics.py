import itertools
import pickle

import lightning
import pytest
import torch
from torchmetrics import MetricCollection

from skipcl_lightning.metrics import (
    MAP,
    MRR,
    NDCG,
    DeltaHitRate,
    HitRate,
    PairwiseSkipAccuracy,
    SkipHitRate,
    SkipMRR,
    SkipRankPercentile,
    TargetCount,
    session_metrics,
)


def sessions(ranks, feedback):
    rows = len(ranks)
    generator = torch.Generator().manual_seed(rows)
    return {
        "ranks": torch.tensor(ranks),
        "target_feedback": torch.tensor(feedback),
        "target_seen": torch.arange(rows) % 3 == 0,
        "target_scores": torch.randn(rows, generator=generator),
        "skip_scores": torch.randn(rows, 3, generator=generator),
        "skip_mask": torch.rand(rows, 3, generator=generator) < 0.5,
    }


# Nobody is in either population, so that every state of every metric is zero: all values coincide.
BATCH_OF_NOBODY = sessions([1, 2, 3], [float("nan")] * 3)
BATCH = sessions([1, 2, 7, 2, 11, 30], [1.0, -0.1, -1.0, 0.3, 0.8, -0.6])


def groups_of(metrics):
    return {frozenset(group) for group in metrics.compute_groups.values()}


def equal(left, right):
    return left.keys() == right.keys() and all(
        torch.equal(value.nan_to_num(-9), right[name].nan_to_num(-9)) for name, value in left.items()
    )


def test_metrics_of_one_population_and_cut_off_share_their_update():
    metrics = MetricCollection([HitRate(10), NDCG(10), MRR(10), MAP(10), SkipHitRate(10), SkipMRR(10)])
    metrics.update(**BATCH)
    assert groups_of(metrics) == {
        frozenset({"HitRate", "NDCG", "MRR", "MAP"}),
        frozenset({"SkipHitRate", "SkipMRR"}),
    }


@pytest.mark.parametrize("first", [BATCH_OF_NOBODY, BATCH], ids=["nobody", "somebody"])
def test_a_first_batch_on_which_metrics_coincide_does_not_merge_them(first):
    settings = itertools.product(
        (HitRate, SkipHitRate, DeltaHitRate),
        (1, 5),
        ("pessimistic", "mean", "optimistic"),
        (0.0, 0.1, 0.10000001, -0.1),
        ("all", "repeat", "explore"),
    )
    different = {
        str(number): metric(top_k, ties=ties, skip_threshold=threshold, among=among)
        for number, (metric, top_k, ties, threshold, among) in enumerate(settings)
    }
    different |= {f"count {name}": TargetCount(name) for name in ("listened", "skipped")}
    different |= {f"pairs {ties}": PairwiseSkipAccuracy(ties=ties) for ties in ("pessimistic", "mean")}
    different |= {"percentile": SkipRankPercentile(50)}
    metrics = MetricCollection(different)
    metrics.update(**first)
    assert groups_of(metrics) == {frozenset({name}) for name in different}


def test_tie_rules_stay_apart_when_the_first_scores_have_no_ties():
    rules = ("pessimistic", "mean", "optimistic")
    metrics = MetricCollection({ties: MRR(3, ties=ties) for ties in rules})
    metrics.update(torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([0]))
    metrics.update(torch.tensor([[1.0, 1.0, 1.0]]), torch.tensor([0]))
    values = {name: value.item() for name, value in metrics.compute().items()}
    assert values == pytest.approx({"pessimistic": 2 / 3, "mean": 3 / 4, "optimistic": 1})


def test_one_call_feeds_every_metric_as_it_would_alone():
    metrics = session_metrics(num_items=50, top_k=[1, 10])
    for batch in (BATCH_OF_NOBODY, BATCH, BATCH):
        metrics.update(**batch)
    alone = {
        "num_listened": TargetCount("listened"),
        "num_skipped": TargetCount("skipped"),
        "num_repeated": TargetCount("listened", among="repeat"),
        "pairwise_skip_accuracy": PairwiseSkipAccuracy(),
        "skip_rank_percentile": SkipRankPercentile(50),
    }
    names = {
        "hit_rate": HitRate,
        "ndcg": NDCG,
        "mrr": MRR,
        "skip_hit_rate": SkipHitRate,
        "skip_mrr": SkipMRR,
        "delta_hit_rate": DeltaHitRate,
    }
    alone |= {f"{name}@{k}": metric(k) for (name, metric), k in itertools.product(names.items(), (1, 10))}
    for k, among in itertools.product((1, 10), ("repeat", "explore")):
        alone[f"hit_rate@{k}/{among}"] = HitRate(k, among=among)
    for metric in alone.values():
        for _ in range(2):
            metric.update(**metric._filter_kwargs(**BATCH))
    assert equal(metrics.compute(), {name: metric.compute() for name, metric in alone.items()})


def test_settings_reach_every_metric():
    metrics = session_metrics(num_items=50, top_k=(2,), ties="mean", skip_threshold=0.5)
    assert {metric.skip_threshold for metric in metrics.values()} == {0.5}
    assert {metric.ties for name, metric in metrics.items() if not name.startswith("num_")} == {"mean"}
    metrics.update(**BATCH)
    assert metrics.compute()["num_skipped"].item() == 4


def test_both_populations_empty_is_nan_without_a_warning():
    metrics = session_metrics(num_items=50)
    metrics.update(**BATCH_OF_NOBODY)
    values = metrics.compute()
    counts = {"num_listened", "num_skipped", "num_repeated"}
    assert all(values[name].item() == 0 for name in counts)
    assert all(value.isnan() for name, value in values.items() if name not in counts)


def test_a_batch_without_rows_changes_nothing():
    metrics = session_metrics(num_items=50, top_k=[5])
    metrics.update(**BATCH)
    before = metrics.compute()
    metrics.update(**{name: tensor[:0] for name, tensor in BATCH.items()})
    assert equal(metrics.compute(), before)


def test_forward_yields_the_batch_and_accumulates_the_epoch():
    metrics, reference = (session_metrics(num_items=50, top_k=[5]) for _ in range(2))
    other = sessions([3, 4], [1.0, -1.0])
    metrics(**other)
    reference.update(**BATCH)
    assert equal(metrics(**BATCH), reference.compute())
    reference.update(**other)
    assert equal(metrics.compute(), reference.compute())


def test_clones_pickles_checkpoints_and_resets_keep_to_themselves():
    metrics = session_metrics(num_items=50, top_k=[5])
    metrics.persistent(True)
    metrics.update(**BATCH)
    values = metrics.compute()
    clone = metrics.clone(prefix="test/")
    pickled = pickle.loads(pickle.dumps(metrics))  # noqa: S301 - our own bytes
    loaded = session_metrics(num_items=50, top_k=[5])
    loaded.persistent(True)
    loaded.load_state_dict(metrics.state_dict())
    metrics.reset()
    metrics.update(**BATCH_OF_NOBODY)
    assert metrics.compute()["num_listened"].item() == 0
    assert equal(clone.compute(), {f"test/{name}": value for name, value in values.items()})
    assert equal(pickled.compute(), values)
    loaded.update(**BATCH_OF_NOBODY)  # a state alone does not count as an update to torchmetrics
    assert equal(loaded.compute(), values)


def test_no_metric_leaves_a_key_in_the_state_dict_of_its_module():
    assert not session_metrics(num_items=50).state_dict()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"top_k": []}, ValueError, "`top_k` must hold at least one cut-off, got"),
        ({"top_k": [0]}, ValueError, "`top_k` must be at least 1, got 0"),
        ({"num_items": 1}, ValueError, "`num_items` must be at least 2, got 1"),
        ({"ties": "best"}, ValueError, "`ties` must be one of"),
    ],
)
def test_bad_settings_are_named(change, error, message):
    with pytest.raises(error, match=message):
        session_metrics(**{"num_items": 50, **change})


class Batches:
    """A loader that is no DataLoader: Lightning has no advice on its workers."""

    def __iter__(self):
        yield {name: tensor[:4] for name, tensor in BATCH.items()}
        yield {name: tensor[4:] for name, tensor in BATCH.items()}


class ForeignModule(lightning.LightningModule):
    """Somebody else's module, which knows of this package only its metrics."""

    def __init__(self):
        super().__init__()
        self.hit_rate = HitRate(2)
        self.metrics = session_metrics(num_items=50, top_k=[2], prefix="val/")

    def validation_step(self, batch, _):
        self.hit_rate.update(ranks=batch["ranks"], target_feedback=batch["target_feedback"])
        self.log("hit_rate", self.hit_rate)
        self.metrics.update(**batch)
        self.log_dict(self.metrics)
        # Lightning warns of integers among the values that it averages.
        targets = TargetCount()(ranks=batch["ranks"])
        self.log("mean_batch", targets, batch_size=1)


# Lightning 2.6.6 asks for a class that torch 2.13 deprecates; until a Lightning that does not.
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_a_foreign_module_logs_the_right_numbers():
    trainer = lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = ForeignModule()
    for _ in range(2):  # the second run must not remember the first
        (logged,) = trainer.validate(module, Batches(), verbose=False)
    # Listened: ranks 1, 2, 11; skipped: 2, 7, 30. A mean of batch means would say 1/2 for the first.
    assert logged["hit_rate"] == pytest.approx(2 / 3)
    assert logged["val/hit_rate@2"] == pytest.approx(2 / 3)
    assert logged["val/skip_hit_rate@2"] == pytest.approx(1 / 3)
    assert logged["val/delta_hit_rate@2"] == pytest.approx(1 / 3)
    assert logged["mean_batch"] == 3
    assert logged["val/num_listened"] == logged["val/num_skipped"] == 3
