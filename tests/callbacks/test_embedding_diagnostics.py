import math
import warnings

import pytest
import torch
from lightning.pytorch import Callback
from watched_runs import OwnModule, same_scalar, small_data, small_module, watched_trainer

from skipcl_lightning.callbacks import EmbeddingDiagnostics
from skipcl_lightning.heads import SkipPrediction


class Still(OwnModule):
    """Does not learn, so that what is measured is known."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def measure(module, data, callback=None, *others, **settings):
    trainer = watched_trainer([callback or EmbeddingDiagnostics(), *others], **{"max_epochs": 1, **settings})
    trainer.fit(module, data)
    return {
        key.removeprefix("embeddings/"): float(value)
        for key, value in trainer.callback_metrics.items()
        if key.startswith("embeddings/")
    }


def test_norms_are_those_of_all_items_but_the_padding():
    data = small_data()
    module = Still(data.num_items)
    values = measure(module, data, EmbeddingDiagnostics(num_items=3))
    lengths = [math.sqrt(sum(x * x for x in row)) for row in module.item_table.tolist()[1:]]
    mean = sum(lengths) / len(lengths)
    assert values["norm_mean"] == pytest.approx(mean, rel=1e-5)
    assert values["norm_max"] == pytest.approx(max(lengths), rel=1e-5)
    deviation = math.sqrt(sum((one - mean) ** 2 for one in lengths) / (len(lengths) - 1))
    assert values["norm_std"] == pytest.approx(deviation, rel=1e-4)
    assert values["drift"] == pytest.approx(0.0, abs=1e-6)


def cosine(left, right):
    product = sum(a * b for a, b in zip(left, right, strict=True))
    return product / math.sqrt(sum(a * a for a in left) * sum(b * b for b in right))


def test_alignment_is_over_the_listened_targets_of_all_batches():
    data = small_data()
    module = Still(data.num_items)
    values = measure(module, data)
    distances = []
    for batch in data.val_dataloader():
        listened = (batch.target_feedback >= batch.skip_threshold).tolist()
        queries = module.session_query(batch).tolist()
        for query, target, counts in zip(queries, batch.target.tolist(), listened, strict=True):
            if counts:
                distances.append(2 - 2 * cosine(query, module.item_table.tolist()[target]))
    assert len(distances) not in (0, 40)
    assert values["alignment"] == pytest.approx(sum(distances) / len(distances), rel=1e-4)


def test_no_more_sessions_are_looked_at_than_asked_but_for_whole_batches():
    data = small_data(batch_size=8)
    module = Still(data.num_items)
    asked = []
    query = module.session_query
    module.session_query = lambda batch: (asked.append(len(batch)), query(batch))[1]
    callback = EmbeddingDiagnostics(num_sessions=10)
    watched_trainer([callback]).validate(module, data, verbose=False)
    assert asked == [8, 8]


def slow_drift(before, after):
    distances = [1 - cosine(a, b) for a, b in zip(before.tolist()[1:], after.tolist()[1:], strict=True)]
    return sum(distances) / len(distances)


def test_drift_is_the_cosine_distance_to_where_training_began():
    data = small_data()
    module = small_module(data)
    before = module.item_table.detach().clone()
    values = measure(module, data, max_epochs=2)
    assert values["drift"] == pytest.approx(slow_drift(before, module.item_table), rel=1e-3)
    assert values["drift"] > 1e-3


def test_the_sample_does_not_touch_what_training_draws():
    data = small_data()
    plain = small_module(data)
    watched_trainer([], max_epochs=1).fit(plain, data)
    watched = small_module(data)
    measure(watched, data)
    assert torch.equal(plain.item_table, watched.item_table)


def test_a_resumed_run_measures_drift_from_the_first_start(tmp_path):
    data = small_data()
    module = small_module(data)
    before = module.item_table.detach().clone()
    trainer = watched_trainer([EmbeddingDiagnostics()], max_epochs=1)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    trainer = watched_trainer([EmbeddingDiagnostics()], max_epochs=2)
    resumed = small_module(data)
    trainer.fit(resumed, data, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    drift = float(trainer.callback_metrics["embeddings/drift"])
    assert drift == pytest.approx(slow_drift(before, resumed.item_table), rel=1e-3)
    assert drift > 1.2 * slow_drift(module.item_table, resumed.item_table)


def test_a_second_run_with_the_same_callback_starts_anew():
    callback = EmbeddingDiagnostics()
    for sessions in (40, 60):
        data = small_data(sessions)
        assert measure(Still(data.num_items), data, callback)["drift"] == pytest.approx(0.0, abs=1e-6)


def collapsed(data, spread):
    module = Still(data.num_items)
    with torch.no_grad():
        module.table.weight.copy_(spread(module.table.weight))
    return module


COLLAPSES = {
    "one point": lambda table: torch.ones_like(table) + 1e-3 * table,
    "one line": lambda table: table[:, :1] * torch.ones_like(table) + 1e-4 * table,
    "no numbers": lambda table: table.where(torch.arange(len(table))[:, None] != 5, torch.nan),
}


@pytest.mark.parametrize("kind", COLLAPSES)
def test_a_collapse_is_warned_of_once_with_a_cure(kind):
    data = small_data()
    module = collapsed(data, COLLAPSES[kind])
    with pytest.warns(UserWarning, match="item embeddings have collapsed.*lower the learning rate") as told:
        measure(module, data, max_epochs=3)
    assert len([one for one in told if "collapsed" in str(one.message)]) == 1


def test_what_is_spread_is_not_warned_of():
    data = small_data()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = measure(small_module(data), data)
    assert values["uniformity"] < -1
    assert values["effective_rank"] > 4


def test_the_thresholds_decide_what_a_collapse_is():
    data = small_data()
    for settings in ({"collapse_uniformity": -8}, {"collapse_rank": 1.0}):
        with pytest.warns(UserWarning, match="have collapsed"):
            measure(Still(data.num_items), data, EmbeddingDiagnostics(**settings))


def test_a_penalty_that_comes_during_the_training_changes_no_value():
    class Penalty(Callback):
        def on_validation_epoch_start(self, trainer, pl_module):
            pl_module.skip_penalty = 0.5 if trainer.current_epoch % 2 == 0 else 0.0

    found = []
    for callbacks in ([], [Penalty()]):
        data = small_data()
        module = small_module(data, SkipPrediction(vector_size=4))
        trainer = watched_trainer([*callbacks, EmbeddingDiagnostics(num_items=20)], max_epochs=3)
        trainer.fit(module, data)
        values = trainer.callback_metrics.items()
        found.append({name: float(value) for name, value in values if name.startswith("embeddings/")})
    assert module.skip_penalty == 0.5
    assert found[0] == found[1]
    assert len(found[0]) == 8


def test_a_module_without_the_parts_is_named_with_what_it_lacks():
    data = small_data()
    broken = type("Broken", (OwnModule,), {"session_query": property(lambda self: self.missing)})
    with pytest.raises(TypeError, match="for EmbeddingDiagnostics, got Broken without `session_query`"):
        measure(broken(data.num_items), data)


def test_a_validation_alone_has_no_drift_but_an_alignment():
    data = small_data()
    trainer = watched_trainer([EmbeddingDiagnostics()])
    (values,) = trainer.validate(Still(data.num_items), data, verbose=False)
    assert "embeddings/alignment" in values
    assert "embeddings/drift" not in values
    assert not same_scalar(values["embeddings/query_uniformity"], math.nan)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_items": 1}, "`num_items` must be at least 2, got 1"),
        ({"num_sessions": 0}, "`num_sessions` must be at least 2"),
        ({"collapse_uniformity": 0.5}, r"`collapse_uniformity` must be in \[-8, 0\], got 0.5"),
        ({"collapse_rank": 2.0}, r"`collapse_rank` must be in \[0, 1\], got 2.0"),
    ],
)
def test_settings_out_of_range_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        EmbeddingDiagnostics(**settings)
