import math
import warnings

import lightning
import polars as pl
import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import LearningRateFinder
from torch import nn

from skipcl_lightning import SkipCLModule
from skipcl_lightning.backbones import SASRec
from skipcl_lightning.batch import SessionBatch
from skipcl_lightning.data import SessionDataModule, simulate_sessions
from skipcl_lightning.functional import full_softmax_loss, skip_info_nce
from skipcl_lightning.heads import GBCE, BPRMax, FullSoftmax, SampledSoftmax, SkipInfoNCE


@pytest.fixture(scope="module")
def data():
    return SessionDataModule(simulate_sessions(300, num_items=60, num_moods=6), batch_size=64, max_length=20)


def small_module(data=None, head="default", **settings):
    backbone = settings.pop("backbone", None) or SASRec(16, max_length=20)
    head = SkipInfoNCE(weight=0.3) if head == "default" else head
    num_items = 60 if data is None else data.num_items
    return SkipCLModule(backbone, head, **{"num_items": num_items, "embedding_size": 16, **settings})


def quiet_trainer(**settings):
    return Trainer(
        **{
            "accelerator": "cpu",
            "max_epochs": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            **settings,
        }
    )


def session_batch(**changes):
    fields = {
        "items": torch.tensor([[5, 3, 4, 7], [2, 1, 6, 0]]),
        "feedback": torch.tensor([[1.0, -0.5, 0.5, 1.0], [-1.0, 1.0, 0.2, 0.0]]),
        "target": torch.tensor([9, 8]),
        "target_feedback": torch.tensor([1.0, -1.0]),
    }
    return SessionBatch(**{**fields, **changes})


class MeanOfThePast(nn.Module):
    """A user's own backbone, with nothing of ours."""

    def __init__(self, size):
        super().__init__()
        self.output = nn.Linear(size, size)

    def forward(self, x, valid_mask):
        count = torch.arange(1, x.shape[1] + 1, device=x.device)[:, None]
        return self.output(x.cumsum(dim=1) / count)


@pytest.mark.parametrize("rule", ["next", "next_listened"])
def test_the_loss_is_the_next_item_loss_plus_the_weighted_skip_loss(rule):
    module = small_module(target_rule=rule).eval()
    batch = session_batch()
    keys, query = module.model.item_embedding(batch.items), module(batch)
    # By hand: what each position should predict under the two rules.
    targets = {"next": [[3, 4, 7, 0], [1, 6, 0, 0]], "next_listened": [[4, 4, 7, 0], [1, 6, 0, 0]]}[rule]
    target = torch.tensor(targets)
    next_item = full_softmax_loss(
        query[target > 0], module.model.item_embedding.weight, target[target > 0]
    ).mean()
    skip = skip_info_nce(query, keys, batch)
    assert skip > 0
    torch.testing.assert_close(module.losses(module.part_losses(batch))["loss"], next_item + 0.3 * skip)


def test_without_a_head_only_the_next_item_task_is_left():
    module = small_module(head=None, next_item_loss=FullSoftmax()).eval()
    target = torch.tensor([[4, 4, 7, 0], [1, 6, 0, 0]])
    query = module(session_batch())
    expected = full_softmax_loss(
        query[target > 0], module.model.item_embedding.weight, target[target > 0]
    ).mean()
    torch.testing.assert_close(module.losses(module.part_losses(session_batch()))["loss"], expected)


def test_a_head_of_ones_own_needs_no_weight():
    class Head(nn.Module):
        def forward(self, query, keys, batch):
            return query.new_tensor(7.0)

    module = small_module(head=Head()).eval()
    without = small_module(head=None).eval()
    without.load_state_dict(module.state_dict(), strict=False)
    torch.testing.assert_close(
        module.losses(module.part_losses(session_batch()))["loss"],
        without.losses(without.part_losses(session_batch()))["loss"] + 7,
    )


def test_feedback_of_past_tracks_reaches_the_output_only_when_asked_for_and_starts_from_nothing():
    batch, other = session_batch(), session_batch(feedback=torch.full((2, 4), 0.5))
    assert torch.equal(*(small_with_seed(feedback_input=False)(b) for b in (batch, other)))
    module = small_with_seed(feedback_input=True)
    assert torch.equal(module(batch), module(other))
    assert module.losses(module.part_losses(batch))["loss"].requires_grad
    module.losses(module.part_losses(batch))["loss"].backward()
    assert module.model.feedback_embedding.weight.grad.any()
    nn.init.normal_(module.model.feedback_embedding.weight)
    assert not torch.equal(module(batch), module(other))


def small_with_seed(**settings):
    torch.manual_seed(0)
    return small_module(**settings).eval()


def test_training_learns_the_next_track_and_logs_every_part(data):
    seed_everything(0, verbose=False)
    module = small_module(data, learning_rate=5e-3)
    trainer = quiet_trainer(max_epochs=12, num_sanity_val_steps=0)
    before = trainer.validate(module, data, verbose=False)[0]
    trainer.fit(module, data)
    logged = {key: float(value) for key, value in trainer.callback_metrics.items()}
    assert {"train/loss", "train/next_item_loss", "train/skip_loss"} <= set(logged)
    assert before["val/hit_rate@10"] < 0.3
    assert logged["val/hit_rate@10"] > before["val/hit_rate@10"] + 0.2
    assert logged["val/num_listened"] + logged["val/num_skipped"] == len(data.session_ids)


def test_evaluation_equals_ranks_counted_by_hand(data):
    module = small_module(data).eval()
    logged = quiet_trainer().test(module, data, verbose=False)[0]
    hits, skipped_hits, wins, pairs = [], [], 0, 0
    for batch in data.test_dataloader():
        for b in range(len(batch)):
            row = batch[b : b + 1]
            query = module(row)[0, int(row.lengths) - 1]
            scores = (module.model.item_embedding.weight @ query).tolist()
            target, session = int(row.target), row.items[0].tolist()
            rank = 1 + sum(s >= scores[target] for i, s in enumerate(scores) if i not in (0, target))
            if row.target_feedback < 0:
                skipped_hits.append(rank <= 10)
                continue
            hits.append(rank <= 10)
            listened = {i for i, heard in zip(session, row.listened_mask[0], strict=True) if heard}
            for item, skipped in zip(session, row.skip_mask[0], strict=True):
                if skipped and item not in listened and item != target:
                    wins, pairs = wins + (scores[target] > scores[item]), pairs + 1
    assert logged["test/hit_rate@10"] == pytest.approx(sum(hits) / len(hits))
    assert logged["test/skip_hit_rate@10"] == pytest.approx(sum(skipped_hits) / len(skipped_hits))
    assert logged["test/pairwise_skip_accuracy"] == pytest.approx(wins / pairs)
    assert (logged["test/num_listened"], logged["test/num_skipped"]) == (len(hits), len(skipped_hits))


def test_results_do_not_depend_on_the_batch_size(data):
    # Error 6 of the authors' code: its candidates were the batch's own targets.
    module = small_module(data)
    logged = []
    for batch_size in (7, 64):
        again = SessionDataModule(data.log, batch_size=batch_size, max_length=20)
        logged.append(quiet_trainer().test(module, again, verbose=False)[0])
    assert logged[0] == logged[1]


def test_seen_tracks_can_be_left_out_of_the_candidates(data):
    batch = next(iter(data.predict_dataloader()))
    names = dict(enumerate(data.session_ids))
    module = small_module(data, exclude_seen=True)
    frame = quiet_trainer().predict(module, data)[0]
    for row, items in zip(batch.session_index.tolist(), batch.items.tolist(), strict=True):
        seen = set(data.vocabulary.decode([i for i in items if i]))
        recommended = frame.filter(frame["session_id"] == names[row])
        assert recommended["rank"].to_list() == list(range(1, 21))
        assert not seen & set(recommended["item_id"])


def test_what_a_session_rejected_is_not_predicted(data):
    frame = quiet_trainer().predict(small_module(data), data)[0]
    batch = next(iter(data.predict_dataloader()))
    names = dict(enumerate(data.session_ids))
    repeated = 0
    for row, items, rejected in zip(
        batch.session_index.tolist(), batch.items, batch.rejected_mask, strict=True
    ):
        recommended = set(frame.filter(session_id=names[row])["item_id"])
        assert not recommended & set(data.vocabulary.decode(items[rejected]))
        repeated += len(recommended & set(data.vocabulary.decode(items[~rejected & (items > 0)])))
    assert batch.rejected_mask.any()
    assert repeated


@pytest.mark.parametrize(
    "loss",
    [
        FullSoftmax(),
        SampledSoftmax(10, sampler="log_uniform", correct_sampling=True),
        GBCE(10),
        BPRMax(10),
    ],
)
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_every_precision_trains_with_finite_losses(data, loss, precision):
    module = small_module(data, next_item_loss=loss, feedback_input=True, transition_weight=1.0)
    trainer = quiet_trainer(precision=precision, limit_val_batches=1)
    trainer.fit(module, data)
    assert trainer.callback_metrics["train/loss"].isfinite()
    assert all(parameter.isfinite().all() for parameter in module.parameters())


def test_the_same_seed_gives_the_same_losses(data):
    losses = []
    for _ in range(2):
        seed_everything(3, verbose=False)
        trainer = quiet_trainer(limit_val_batches=0)
        trainer.fit(small_module(data), data)
        losses.append(trainer.callback_metrics["train/loss"])
    assert torch.equal(*losses)


def test_warm_up_and_decay_touch_what_they_should(data):
    module = small_module(
        data, learning_rate=0.01, weight_decay=0.1, warmup_steps=4, head=SkipInfoNCE(learn_temperature=True)
    )
    configured = module.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(5):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01])
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    assert id(module.model.item_embedding.weight) not in decayed
    assert id(module.skip_head.log_temperature) not in decayed
    assert id(module.model.backbone.blocks[0].attention.query_key_value.weight) in decayed
    covered = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(covered) == len(list(module.parameters()))


def test_a_rate_finder_sets_the_rate_of_the_training(data, tmp_path):
    module = small_module(data, learning_rate=0.0123)  # none that the finder tries
    assert module.configure_optimizers().keys() == {"optimizer"}
    finder = LearningRateFinder(num_training_steps=40, early_stop_threshold=None)
    trainer = quiet_trainer(callbacks=[finder], max_epochs=9, limit_val_batches=0, default_root_dir=tmp_path)
    trainer.fit(module, data)
    assert trainer.optimizers[0].param_groups[0]["lr"] == module.learning_rate != 0.0123


@pytest.mark.parametrize("loss", [SampledSoftmax, GBCE, BPRMax])
def test_more_negatives_than_items_are_named_as_the_setting(loss):
    module = small_module(next_item_loss=loss(num_negatives=60), num_items=60)
    with pytest.raises(ValueError, match=r"`num_negatives` must be at most 59, got 60. With 60 items, pass"):
        module.part_losses(session_batch(target=None, target_feedback=None))


class Logging(Callback):
    def on_validation_batch_end(self, trainer, pl_module, *_):
        pl_module.log("val/one", 1.0)


def test_values_are_logged_without_the_size_of_the_batch(data):
    class Logged(SkipCLModule):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.log("train/again", loss, on_epoch=True)
            return loss

    trainer = quiet_trainer(callbacks=[Logging()], limit_train_batches=2)
    trainer.fit(Logged(SASRec(16, max_length=20), num_items=data.num_items), data)
    assert trainer.callback_metrics["val/one"] == 1
    assert trainer.callback_metrics["train/again"] > 0


class Rates(Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, *_):
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


@pytest.mark.parametrize("limit", [{"max_epochs": 2}, {"max_epochs": -1, "max_steps": 5}])
def test_a_cosine_schedule_falls_to_zero_at_the_end_of_the_run(data, limit):
    module = small_module(data, learning_rate=0.01, warmup_steps=2, schedule="cosine")
    rates = Rates()
    quiet_trainer(limit_val_batches=0, callbacks=[rates], **limit).fit(module, data)
    steps = len(rates.seen)
    expected = [
        0.01 * min(1, (step + 1) / 2) * math.cos(math.pi / 2 * step / steps) ** 2 for step in range(steps)
    ]
    assert rates.seen == pytest.approx(expected)
    assert module.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0)


def test_a_schedule_that_is_unknown_or_has_no_end_is_an_error(data):
    with pytest.raises(ValueError, match=r"`schedule` must be one of .*got 'linear'"):
        small_module(data, schedule="linear")
    module = small_module(data, schedule="cosine")
    with pytest.raises(ValueError, match="`schedule` must be 'constant' in a run without an end"):
        module.configure_optimizers()
    with pytest.raises(ValueError, match="`schedule` must be 'constant' in a run without an end"):
        quiet_trainer(limit_val_batches=0, max_epochs=-1).fit(module, data)


def test_the_padding_row_stays_zero(data):
    module = small_module(data, weight_decay=0.1)
    quiet_trainer(limit_val_batches=0).fit(module, data)
    assert not module.model.item_embedding.weight[0].any()


def test_any_module_is_a_backbone(data):
    module = small_module(data, backbone=MeanOfThePast(16))
    trainer = quiet_trainer()
    trainer.fit(module, data)
    assert "test/hit_rate@10" in trainer.test(module, data, verbose=False)[0]


class Bidirectional(nn.Module):
    def forward(self, x, valid_mask):
        return x.mean(dim=1, keepdim=True).expand_as(x)


class Wrong(nn.Module):
    def forward(self, x, valid_mask):
        return x[:, 0]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: small_module(backbone=Bidirectional()), "`backbone` must be causal, got Bidirectional"),
        (
            lambda: small_module(backbone=Wrong()),
            r"`backbone` must return finite values of shape \[2, 4, 16\]",
        ),
        (lambda: small_module(backbone=SASRec(8)), "Is its embedding size the module's `embedding_size`"),
        (
            lambda: small_module(backbone={"name": "SASRek"}),
            r"`backbone\['name'\]` must be one of .*'SASRec', got 'SASRek'",
        ),
        (
            lambda: small_module(backbone={"name": "SASRec", "settings": {"layers": 2}}),
            "`backbone` must have settings among .*num_layers.*, got 'layers'",
        ),
        (lambda: small_module(num_items=1), "`num_items` must be at least 2"),
        (lambda: small_module(target_rule="any"), "`target_rule` must be one of"),
        (lambda: small_module(learning_rate=float("nan")), "`learning_rate` must be in"),
        (lambda: SkipCLModule(None, None, num_items=5), "`backbone` must be given, got None"),
    ],
)
def test_bad_settings_and_backbones_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_data_with_another_catalogue_is_refused(data):
    with pytest.raises(ValueError, match=r"`num_items` must be the data's 60, got 7"):
        quiet_trainer().fit(small_module(num_items=7), data)
    module = small_module(data)
    quiet_trainer(limit_train_batches=1, limit_val_batches=0).fit(module, data)
    other = SessionDataModule(simulate_sessions(300, num_items=60, num_moods=6, seed=5), max_length=20)
    assert other.num_items == 60
    with pytest.raises(ValueError, match="must have the items that the model was trained on"):
        quiet_trainer().test(module, other, verbose=False)


def test_data_and_checkpoint_of_different_sizes_are_each_named_as_what_they_are(data, tmp_path):
    module = small_module(data)
    trainer = quiet_trainer(limit_train_batches=1, limit_val_batches=0)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "small.ckpt")
    larger = SessionDataModule(simulate_sessions(100, num_items=90, num_moods=6), max_length=20)
    sizes = rf"data with ItemVocabulary\({larger.num_items} .*trained on ItemVocabulary\(60 items"
    with pytest.raises(ValueError, match=sizes):
        quiet_trainer().test(small_module(larger), larger, ckpt_path=tmp_path / "small.ckpt", verbose=False)
    with pytest.raises(ValueError, match=sizes):
        quiet_trainer().test(
            SkipCLModule.load_from_checkpoint(tmp_path / "small.ckpt"), larger, verbose=False
        )
    with pytest.raises(ValueError, match=r"`num_items` must be the checkpoint's 60, got 7"):
        SkipCLModule.load_from_checkpoint(tmp_path / "small.ckpt", num_items=7)


def test_evaluation_without_targets_is_refused():
    with pytest.raises(ValueError, match="`batch` must have targets, got none"):
        small_module().validation_step(session_batch(target=None, target_feedback=None), 0)


def test_training_on_batches_with_held_out_targets_is_refused(data, monkeypatch):
    monkeypatch.setattr(data, "train_dataloader", data.val_dataloader)
    message = "`train_dataloaders` must give batches without a held-out target"
    with pytest.raises(ValueError, match=message):
        quiet_trainer().fit(small_module(data), data)


@pytest.mark.parametrize(
    ("feedback", "explicit", "head", "warns"),
    [
        ([1.0, 1.0], None, SkipInfoNCE(), True),
        ([0.0, 0.0], [1.0, 0.0], SkipInfoNCE(), True),
        ([1.0, 1.0], [-1.0, 0.0], SkipInfoNCE(), False),
        ([1.0, -1.0], None, SkipInfoNCE(), False),
        ([1.0, 1.0], None, None, False),
    ],
)
def test_a_skip_head_without_a_rejected_track_warns_once(feedback, explicit, head, warns):
    log = pl.DataFrame(
        {
            "session_id": ["s"] * 6,
            "item_id": ["a", "b"] * 3,
            "feedback": feedback * 3,
            "position": range(6),
        }
    )
    if explicit is not None:
        log = log.with_columns(explicit_feedback=pl.Series(explicit * 3))
    data = SessionDataModule(log, max_length=4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quiet_trainer(max_epochs=2).fit(small_module(data, head), data)
    found = [warning for warning in caught if "No track of the log was skipped" in str(warning.message)]
    assert len(found) == warns


def test_feedback_that_varies_above_the_threshold_is_left_to_the_preparation():
    columns = {"session_id": ["s"] * 6, "item_id": ["a", "b"] * 3, "position": range(6)}
    varied = pl.DataFrame({**columns, "feedback": [0.0, 1.0] * 3})
    low = pl.DataFrame({**columns, "feedback": [-0.2, 1.0] * 3})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        SessionDataModule(varied).warn_without_rejected()
        assert not [warning for warning in caught if "No track of the log was" in str(warning.message)]
        SessionDataModule(low, skip_threshold=-0.5).warn_without_rejected()
    assert len([warning for warning in caught if "No track of the log was" in str(warning.message)]) == 1


def test_a_validation_that_begins_at_a_later_batch_is_logged_whole(data):
    class Later(SkipCLModule):
        def validation_step(self, batch, batch_idx):
            return super().validation_step(batch, batch_idx + 3)

    logged = quiet_trainer().validate(Later(SASRec(64), num_items=data.num_items), data, verbose=False)[0]
    assert logged["val/num_listened"] + logged["val/num_skipped"] == len(data.session_ids)


@pytest.mark.parametrize("stage", ["validation", "test"])
def test_an_interrupted_evaluation_leaves_nothing_to_the_next(data, stage):
    class Interrupted(Callback):
        def stop(self, *_, **__):
            raise RuntimeError("stopped")

        on_validation_batch_end = on_test_batch_end = stop

    module = small_module(data)
    run = {"validation": "validate", "test": "test"}[stage]
    expected = getattr(quiet_trainer(), run)(module, data, verbose=False)
    with pytest.raises(RuntimeError, match="stopped"):
        getattr(quiet_trainer(callbacks=[Interrupted()]), run)(module, data, verbose=False)
    assert getattr(quiet_trainer(), run)(module, data, verbose=False) == expected


def test_a_module_as_an_argument_of_a_subclass_is_not_in_the_checkpoint(data, tmp_path):
    class Projected(SkipCLModule):
        def __init__(self, *args, projector=None, **settings):
            super().__init__(*args, **settings)
            self.projector = projector

    path = tmp_path / "model.ckpt"
    with pytest.warns(
        UserWarning, match="Attribute 'projector' is an instance of `nn.Module`"
    ):  # Lightning's
        module = Projected(SASRec(8), num_items=data.num_items, projector=nn.Linear(8, 8))
    trainer = quiet_trainer(max_steps=1)
    trainer.fit(module, data)
    trainer.save_checkpoint(path)
    with pytest.warns(UserWarning, match="Attribute 'projector' is an instance of `nn.Module`"):
        loaded = Projected.load_from_checkpoint(path, projector=nn.Linear(8, 8))
    assert loaded.projector.weight.equal(module.projector.weight)
    quiet_trainer(max_steps=2).fit(module, data, ckpt_path=path)
    quiet_trainer().test(module, data, ckpt_path=path, verbose=False)


def test_a_subclass_that_cannot_be_built_from_its_settings_says_why(data, tmp_path):
    class Fixed(SkipCLModule):
        def __init__(self, num_items, hidden=16, **settings):
            super().__init__(SASRec(hidden, max_length=20), num_items=num_items, **settings)

    class Named(SkipCLModule):
        def __init__(self, num_items, hidden=16, learning_rate=0.1):
            backbone = SASRec(hidden, max_length=20)
            super().__init__(backbone, num_items=num_items, learning_rate=learning_rate)

    for subclass in (Fixed, Named):
        trainer = quiet_trainer(max_steps=1)
        trainer.fit(subclass(num_items=data.num_items, hidden=8, learning_rate=0.2), data)
        trainer.save_checkpoint(tmp_path / f"{subclass.__name__}.ckpt")
    with pytest.raises(
        ValueError, match=r"must name the others in its `__init__`, in place of `\*\*settings`"
    ):
        Fixed.load_from_checkpoint(tmp_path / "Fixed.ckpt")
    loaded = Named.load_from_checkpoint(tmp_path / "Named.ckpt")
    assert (loaded.model.embedding_size, loaded.learning_rate) == (8, 0.2)


def test_it_subclasses_like_any_lightning_module(data):
    class Doubled(SkipCLModule):
        def losses(self, states):
            losses = super().losses(states)
            return {**losses, "loss": 2 * losses["loss"], "extra": losses["loss"].detach()}

    assert issubclass(Doubled, lightning.LightningModule)
    trainer = quiet_trainer(limit_train_batches=1, limit_val_batches=0)
    trainer.fit(Doubled(SASRec(16), None, num_items=data.num_items, embedding_size=16), data)
    logged = trainer.callback_metrics
    torch.testing.assert_close(logged["train/loss"], 2 * logged["train/extra"])
