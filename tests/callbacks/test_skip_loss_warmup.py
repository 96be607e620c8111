import math

import pytest
from watched_runs import OwnModule, small_data, small_module, watched_trainer

from skipcl_lightning.callbacks import SkipLossWarmup, TrainingSignals
from skipcl_lightning.heads import CombinedHead, SkipInfoNCE, SkipUnlikelihood


class Weights(TrainingSignals):
    """Notes what λ is in each step."""

    def __init__(self):
        self.seen = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        head = pl_module.skip_head
        self.seen.append(head.weights if isinstance(head, CombinedHead) else head.weight)


def fit(warmup, head, *, epochs=2, **settings):
    data, weights = small_data(), Weights()
    module = small_module(data, head)
    watched_trainer([warmup, weights], max_epochs=epochs, **settings).fit(module, data)  # 3 steps an epoch
    return module, weights.seen


def test_the_weight_rises_linearly_and_is_the_heads_own_afterwards():
    module, seen = fit(SkipLossWarmup(steps=4), SkipInfoNCE(weight=0.4))
    assert seen == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.4])
    assert module.skip_head.weight == 0.4


def test_the_weight_rises_along_a_cosine_over_a_share_of_the_training():
    _, seen = fit(SkipLossWarmup(fraction=0.5, shape="cosine"), SkipInfoNCE(weight=1.0))
    expected = [(1 - math.cos(math.pi * step / 3)) / 2 for step in range(3)] + [1, 1, 1]
    assert seen == pytest.approx(expected)


def test_each_head_of_a_sum_is_scheduled():
    head = CombinedHead([SkipInfoNCE(weight=0.4), SkipUnlikelihood(weight=0.2)])
    _, seen = fit(SkipLossWarmup(steps=2), head, epochs=1)
    assert [row["SkipInfoNCE"] for row in seen] == pytest.approx([0, 0.2, 0.4])
    assert [row["SkipUnlikelihood"] for row in seen] == pytest.approx([0, 0.1, 0.2])


def test_a_second_fit_starts_from_the_heads_own_weight_again():
    data, weights = small_data(), Weights()
    module, warmup = small_module(data, SkipInfoNCE(weight=0.4)), SkipLossWarmup(steps=2)
    for _ in range(2):
        watched_trainer([warmup, weights], max_epochs=1).fit(module, data)
    assert weights.seen == pytest.approx([0, 0.2, 0.4] * 2)


class Failure(TrainingSignals):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        raise RuntimeError("on purpose")


def test_an_error_in_training_leaves_the_heads_own_weight():
    data = small_data()
    module = small_module(data, SkipInfoNCE(weight=0.4))
    with pytest.raises(RuntimeError, match="on purpose"):
        watched_trainer([SkipLossWarmup(steps=9), Failure()]).fit(module, data)
    assert module.skip_head.weight == 0.4


def test_a_checkpoint_in_the_midst_holds_the_heads_own_weight(tmp_path):
    data = small_data()
    module = small_module(data, SkipInfoNCE(weight=0.4))

    class Save(TrainingSignals):
        def on_train_epoch_end(self, trainer, pl_module):
            assert pl_module.skip_head.weight < 0.4
            trainer.save_checkpoint(tmp_path / "model.ckpt")

    watched_trainer([SkipLossWarmup(steps=99), Save()], max_epochs=1).fit(module, data)
    loaded = type(module).load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert loaded.skip_head.weight == 0.4


def test_a_module_without_a_head_is_refused():
    data = small_data()
    with pytest.raises(ValueError, match="got OwnModule without a head"):
        watched_trainer([SkipLossWarmup(steps=4)]).fit(OwnModule(data.num_items), data)


def test_an_endless_training_has_no_share():
    with pytest.raises(ValueError, match="`fraction` must be a share of a training that ends"):
        fit(SkipLossWarmup(fraction=0.1), SkipInfoNCE(weight=0.4), epochs=-1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "`steps` or `fraction` must be given, and not both, got steps=None and fraction=None"),
        ({"steps": 3, "fraction": 0.1}, "`steps` or `fraction` must be given, and not both"),
        ({"steps": 0}, "`steps` must be at least 1, got 0"),
        ({"fraction": 0.0}, r"`fraction` must be in \(0, 1\], got 0.0"),
        ({"steps": 3, "shape": "square"}, "`shape` must be one of 'linear', 'cosine', got 'square'"),
    ],
)
def test_settings_without_a_meaning_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        SkipLossWarmup(**settings)
