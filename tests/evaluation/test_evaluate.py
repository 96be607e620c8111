import math

import numpy as np
import polars as pl
import pytest
import torch
from lightning.pytorch import Trainer
from small_evaluation import SIZE, make_data, module

from skipcl_lightning.backbones import BERT4Rec, SASRec
from skipcl_lightning.data import SessionDataModule, simulate_sessions
from skipcl_lightning.evaluation import LastItemMarkov, Popularity, compare, evaluate
from skipcl_lightning.functional import top_k_items


@pytest.fixture(scope="module")
def data():
    return make_data()


def logged_by_lightning(model, data):
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    return {
        name.removeprefix("test/"): value
        for name, value in trainer.test(model, data, verbose=False)[0].items()
    }


@pytest.mark.parametrize("exclude_seen", [False, True])
@pytest.mark.parametrize("backbone", [SASRec, BERT4Rec])
def test_a_report_has_the_figures_that_the_module_logs(data, backbone, exclude_seen):
    model = module(data, backbone(SIZE, max_length=7), exclude_seen=exclude_seen)
    logged = logged_by_lightning(model, data)
    report = evaluate(model, data, num_resamples=0)
    for name, value in report.values.items():
        if not name.startswith(("coverage", "novelty", "last_item")):
            assert value == pytest.approx(logged[name], abs=1e-6, nan_ok=True), name
    counts = report.populations
    for name in ("listened", "skipped", "repeated"):
        assert counts[name] == logged[f"num_{name}"]
    assert report.settings["exclude_seen"] == exclude_seen


def test_the_threshold_of_the_data_and_the_ties_of_the_model_are_kept_to(data):
    strict = SessionDataModule(data.log, batch_size=32, max_length=6, skip_threshold=0.8)
    model = module(strict, ties="optimistic")
    logged = logged_by_lightning(model, strict)
    report = evaluate(model, strict, num_resamples=0)
    feedback = torch.cat([batch.target_feedback for batch in strict.test_dataloader()])
    assert report.populations["skipped"] == int((feedback < 0.8).sum()) == logged["num_skipped"]
    assert int((feedback < 0).sum()) < report.populations["skipped"]
    assert report["hit_rate@10"] == pytest.approx(logged["hit_rate@10"])
    model.model.item_embedding.weight.data[1:] = 1.0
    assert (evaluate(model, strict, num_resamples=0).sessions["rank"] == 1).all()
    assert (evaluate(model, strict, ties="pessimistic", num_resamples=0).sessions["rank"] == 40).all()


def test_validation_is_another_split(data):
    model = module(data)
    report = evaluate(model, data, split="validation", num_resamples=0)
    assert not report.sessions["target"].equals(evaluate(model, data, num_resamples=0).sessions["target"])


class Scores:
    """A baseline that scores by the inner products of a module, so that both ways must agree."""

    def __init__(self, model):
        self.model = model.eval()

    def scores(self, batch):
        with torch.no_grad():
            return (self.model.session_query(batch).double() @ self.model.item_table.double().T).float()


@pytest.mark.parametrize("settings", [{}, {"exclude_seen": True}, {"ties": "mean"}, {"top_k": (3, 7)}])
def test_scores_and_queries_of_one_model_give_one_report(data, settings):
    model = module(data)
    by_query = evaluate(model, data, num_resamples=0, compare_markov=False, **settings)
    by_scores = evaluate(Scores(model), data, num_resamples=0, **settings)
    assert by_scores.sessions.drop("novelty").equals(by_query.sessions.drop("novelty"))
    assert by_scores.values == pytest.approx(by_query.values, nan_ok=True)


def test_the_rows_of_sessions_say_what_happened(data):
    model = module(data).eval()
    report = evaluate(model, data, num_resamples=0)
    counts = dict(zip(data.vocabulary.ids, data.item_counts[1:].tolist(), strict=True))
    total = sum(counts.values()) + data.num_items
    rows = iter(report.sessions.iter_rows(named=True))
    for batch in data.test_dataloader():
        listed, _ = top_k_items(model.session_query(batch), model.item_table, 20)
        for b, row in zip(range(len(batch)), rows, strict=False):
            session = batch.seen_items[b][batch.seen_items[b] > 0].tolist()
            assert row["session_id"] == data.session_ids[int(batch.session_index[b])]
            assert row["target"] == data.vocabulary.decode(batch.target[b : b + 1])[0]
            assert row["skipped"] == (float(batch.target_feedback[b]) < 0)
            assert row["repeat"] == (int(batch.target[b]) in session)
            assert row["length"] == len(session)
            assert row["skip_rate"] == pytest.approx(float(batch.skip_mask[b].sum() / batch.lengths[b]))
            assert row["target_count"] == counts[row["target"]]
            names = data.vocabulary.decode(listed[b])
            bits = [-math.log2((counts[name] + 1) / total) for name in names]
            assert row["novelty"] == pytest.approx(sum(bits) / 20, rel=1e-5)
    assert next(rows, None) is None
    assert report.sessions["unscored"].sum() == 0
    everything = torch.cat(
        [
            top_k_items(model.session_query(batch), model.item_table, 20)[0].flatten()
            for batch in data.test_dataloader()
        ]
    )
    assert report["coverage@20"] == pytest.approx(len(everything.unique()) / data.num_items)


class Broken:
    """Scores NaN for the even sessions."""

    def scores(self, batch):
        scores = torch.zeros(len(batch), 41)
        scores[batch.session_index % 2 == 0] = torch.nan
        return scores


def test_sessions_without_a_score_rank_last_and_are_counted(data):
    report = evaluate(Broken(), data, ties="optimistic", num_resamples=0)
    even = report.sessions["unscored"]
    assert report.populations["unscored"] == even.sum() == math.ceil(len(even) / 2)
    assert (report.sessions.filter(even)["rank"] == 40).all()
    assert (report.sessions.filter(~even)["rank"] == 1).all()
    assert f"{even.sum()} without a score" in report.describe_protocol()


def test_segments_part_the_sessions_in_every_way(data):
    report = evaluate(module(data), data, num_resamples=50)
    rows = report.segments.filter(pl.col("metric") == "hit_rate@10")
    for (title,), part in rows.group_by(["segmented_by"]):
        assert part["targets"].sum() == report.populations["listened"], title
        hits = (part["value"].fill_nan(0) * part["targets"]).sum()
        assert hits == pytest.approx(report["hit_rate@10"] * report.populations["listened"])
    repeat = rows.filter(pl.col("segment") == "repeat")["value"].item()
    assert repeat == pytest.approx(report["hit_rate@10/repeat"])
    lengths = rows.filter(pl.col("segmented_by") == "session length")["segment"].to_list()
    assert lengths == ["1-5", "6-10", "11-20"]
    by_hand = report.sessions.filter((pl.col("length") <= 5) & ~pl.col("skipped"))
    expected = (by_hand["rank"] <= 10).mean()
    assert rows.filter(pl.col("segment") == "1-5")["value"].item() == pytest.approx(expected)


def test_intervals_are_those_of_a_mean(data):
    report = evaluate(LastItemMarkov(data), data, num_resamples=4000)
    row = report.metrics.filter(pl.col("metric") == "hit_rate@10").row(0, named=True)
    share, sessions = row["value"], row["sessions"]
    margin = 1.96 * math.sqrt(share * (1 - share) / sessions)
    assert row["low"] == pytest.approx(share - margin, abs=0.25 * margin)
    assert row["high"] == pytest.approx(share + margin, abs=0.25 * margin)
    again = evaluate(LastItemMarkov(data), data, num_resamples=4000)
    assert again.metrics.equals(report.metrics)
    wider = evaluate(LastItemMarkov(data), data, num_resamples=4000, confidence=0.999)
    wide = wider.metrics.filter(pl.col("metric") == "hit_rate@10").row(0, named=True)
    assert wide["low"] < row["low"] < row["high"] < wide["high"]


@pytest.mark.parametrize("sampler", ["uniform", "popularity"])
def test_sampled_ranks_carry_their_number_and_warn(data, sampler):
    model = module(data)
    with pytest.warns(UserWarning, match="sampled candidates order models differently"):
        report = evaluate(model, data, num_candidates=10, sampler=sampler, num_resamples=0)
    assert "hit_rate@10/sampled10" in report.values
    assert "skip_rank_percentile/sampled10" in report.values
    assert "hit_rate@10" not in report.values
    assert report.sessions["rank"].max() <= 11
    assert f"10 sampled candidates ({sampler}), which misleads" in report.describe_protocol()
    # Far fewer competitors than the catalogue has.
    full = evaluate(model, data, num_resamples=0)
    assert report["hit_rate@10/sampled10"] > full["hit_rate@10"]
    with pytest.warns(UserWarning, match="sampled candidates"):
        again = evaluate(model, data, num_candidates=10, sampler=sampler, num_resamples=0)
    assert again.sessions.equals(report.sessions)
    with pytest.warns(UserWarning, match="sampled candidates"):
        by_scores = evaluate(Scores(model), data, num_candidates=10, sampler=sampler, num_resamples=0)
    assert by_scores.sessions["rank"].equals(report.sessions["rank"])


def test_sampled_candidates_leave_out_what_was_seen_where_asked(data):
    class Seen:
        """Scores what the session held above all, and the target below."""

        def scores(self, batch):
            scores = torch.zeros(len(batch), 41).scatter_(1, batch.seen_items, 2.0)
            return scores.scatter_(1, batch.target[:, None], 1.0)

    for exclude in (True, False):
        with pytest.warns(UserWarning, match="sampled candidates"):
            report = evaluate(Seen(), data, num_candidates=10, exclude_seen=exclude, num_resamples=0)
        first = report.sessions["rank"] == 1
        if exclude:
            assert first.equals(~report.sessions["repeat"])
            assert (report.sessions.filter(~first)["rank"] == 11).all()
        else:
            assert not first.all()


@pytest.mark.parametrize("ties", ["pessimistic", "mean", "optimistic"])
def test_without_the_tracks_of_a_session_a_repeated_target_is_in_no_list(data, ties):
    models = (module(data), Scores(module(data)), LastItemMarkov(data), Popularity(data.item_counts))
    for model in models:
        report = evaluate(model, data, exclude_seen=True, top_k=(5,), ties=ties, num_resamples=0)
        rows = report.sessions
        assert 10 < rows["repeat"].sum() < rows.height
        assert (rows.filter("repeat")["rank"] == 40).all()
        assert report["hit_rate@5/repeat"] == 0
        with_all = evaluate(model, data, top_k=(5,), ties=ties, num_resamples=0)
        new = ~rows["repeat"]
        assert (rows.filter(new)["rank"] <= with_all.sessions.filter(new)["rank"]).all()


@pytest.mark.parametrize("ties", ["pessimistic", "mean", "optimistic"])
@pytest.mark.parametrize("exclude_seen", [False, True])
def test_markov_beside_a_model_is_ranked_by_the_same_rules(data, ties, exclude_seen):
    settings = {"ties": ties, "exclude_seen": exclude_seen, "num_resamples": 0}
    beside = evaluate(module(data), data, **settings).markov
    alone = evaluate(LastItemMarkov(data), data, **settings)
    assert beside == {name: alone[name] for name in beside}


def test_a_collapsed_table_ranks_last_among_sampled_candidates_too(data):
    model = module(data)
    model.model.item_embedding.weight.data[1:] = torch.randn(SIZE)
    with pytest.warns(UserWarning, match="sampled candidates"):
        report = evaluate(model, data, num_candidates=10, num_resamples=0)
    assert (report.sessions["rank"] == 11).all()


def test_no_list_holds_what_is_excluded(data):
    for model in (module(data), Scores(module(data))):
        report = evaluate(model, data, exclude_seen=True, top_k=(40,), num_resamples=0)
        lists = evaluate(model, data, exclude_seen=False, top_k=(40,), num_resamples=0)
        # Of all 40 items each, but for those that were seen.
        assert (report.sessions["novelty"] != lists.sessions["novelty"]).all()
    both = [evaluate(m, data, exclude_seen=True, top_k=(40,), num_resamples=0) for m in (model, model.model)]
    assert both[0].sessions["novelty"].to_list() == pytest.approx(both[1].sessions["novelty"].to_list())


def test_a_model_of_other_items_is_refused(data):
    model = module(data)
    logged_by_lightning(model, data)
    log = simulate_sessions(150, num_items=40, num_moods=4, min_length=4, seed=3)
    with pytest.raises(ValueError, match="`data` must have the items that the model was trained on"):
        evaluate(model, SessionDataModule(log))


def test_the_model_is_left_in_its_mode_and_without_gradients(data):
    model = module(data).train()
    model.model.backbone.dropout.eval()
    evaluate(model, data, num_resamples=0)
    assert model.training
    assert not model.model.backbone.dropout.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_figures_without_resamples_have_no_intervals(data):
    report = evaluate(Popularity(data.item_counts), data, num_resamples=0)
    assert report.metrics["low"].null_count() == report.metrics.height
    assert "no intervals" in report.describe_protocol()
    with pytest.raises(ValueError, match="`after` must have intervals, got `num_resamples` 0"):
        compare(report, report)


class Rows(torch.nn.Module):
    """A model whose table is a parameter, which a class does not show."""

    def __init__(self, table):
        super().__init__()
        self.item_table = torch.nn.Parameter(table)

    def session_query(self, batch):
        return torch.ones(len(batch), SIZE)


def test_a_table_that_is_a_parameter_makes_a_model(data):
    table = torch.zeros(41, SIZE)
    table[7] = 1.0
    report = evaluate(Rows(table), data, num_resamples=0)
    best = report.sessions.filter(pl.col("target") == data.vocabulary.decode(torch.tensor([7]))[0])
    assert (best["rank"] == 1).all()


@pytest.mark.parametrize("count", [3, 60])
def test_novelty_is_the_mean_of_the_items_that_are_listed(data, count):
    class Short:
        """Scores the first items of the catalogue, and excludes the rest."""

        def scores(self, batch):
            scores = torch.full((len(batch), 41), -torch.inf)
            scores[:, 1 : count + 1] = torch.arange(min(count, 40)).float()
            return scores

    report = evaluate(Short(), data, num_resamples=0)
    listed = range(1, 4) if count == 3 else range(21, 41)
    total = int(data.item_counts.sum()) + data.num_items
    bits = [-math.log2((int(data.item_counts[item]) + 1) / total) for item in listed]
    assert report["novelty@20"] == pytest.approx(sum(bits) / len(bits), rel=1e-6)


def test_the_sampled_percentile_is_of_the_candidates(data):
    with pytest.warns(UserWarning, match="sampled candidates"):
        report = evaluate(module(data), data, num_candidates=10, num_resamples=0)
    ranks = report.sessions.filter(pl.col("skipped"))["rank"]
    assert report["skip_rank_percentile/sampled10"] == pytest.approx((ranks.mean() - 1) / 10)


def test_another_seed_draws_other_candidates(data):
    with pytest.warns(UserWarning, match="sampled candidates"):
        ranks = [
            evaluate(module(data), data, num_candidates=10, seed=seed, num_resamples=0).sessions["rank"]
            for seed in (0, 1)
        ]
    assert not ranks[0].equals(ranks[1])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": torch.nn.Identity()}, TypeError, "`model` must have `session_query.*got Identity without"),
        ({"split": "train"}, ValueError, "`split` must be one of 'validation', 'test'"),
        ({"top_k": ()}, ValueError, "`top_k` must hold at least one cut-off"),
        ({"top_k": 10}, TypeError, r"`top_k` must be a sequence of cut-offs, got 10. Write one as `\(10,\)`"),
        ({"top_k": np.array([5, 0])}, TypeError, r"`top_k` must be an integer, got (np.int64\()?5"),
        ({"top_k": (0,)}, ValueError, "`top_k` must be at least 1"),
        ({"confidence": 1.0}, ValueError, r"`confidence` must be in \(0, 1\)"),
        ({"exclude_seen": "yes"}, TypeError, "`exclude_seen` must be True, False or None, got 'yes'"),
        ({"model": Popularity(torch.zeros(7).long())}, ValueError, r"`scores` must have shape .*V\+1=41"),
        (
            {"model": Rows(torch.zeros(12, SIZE))},
            ValueError,
            r"`item_table` must have shape \[V\+1=41, D=8\]",
        ),
        ({"num_resamples": -1}, ValueError, "`num_resamples` must be at least 0"),
        ({"seed": -1}, ValueError, "`seed` must be at least 0"),
        ({"confidence": 0}, ValueError, r"`confidence` must be in \(0, 1\)"),
        ({"num_candidates": 0}, ValueError, "`num_candidates` must be at least 1"),
        ({"ties": "best"}, ValueError, "`ties` must be one of"),
        ({"sampler": "nonsense"}, ValueError, "`sampler` must be one of"),
        ({"sampler": "popularity"}, ValueError, "`sampler` must be left alone without `num_candidates`"),
    ],
)
def test_bad_settings_are_named(data, change, error, message):
    arguments = {"model": Popularity(data.item_counts), "data": data, **change}
    with pytest.raises(error, match=message):
        evaluate(arguments.pop("model"), arguments.pop("data"), **arguments)


def test_metrics_of_an_empty_population_are_left_out_with_one_line():
    log = simulate_sessions(20, num_items=10, num_moods=2).with_columns(feedback=pl.lit(1.0))
    heard = SessionDataModule(log)
    report = evaluate(Popularity(heard.item_counts), heard, num_resamples=20)
    assert math.isnan(report["skip_mrr@10"])
    assert math.isnan(report["delta_hit_rate@10"])
    with pytest.raises(KeyError, match="skip_mmr@10"):
        report["skip_mmr@10"]
    for names in (report.values, report.metrics["metric"], report.segments["metric"]):
        assert not any("skip" in name or "delta" in name for name in names)
        assert "hit_rate@10" in names
    assert not any(math.isnan(value) for value in report.values.values())
    assert not report.segments["value"].is_nan().any()
    line = (
        "Left out, as their population is empty: skip_hit_rate, skip_mrr, delta_hit_rate, "
        "skip_rank_percentile, pairwise_skip_accuracy."
    )
    text = report.to_markdown()
    assert report.left_out == line
    assert text.count("Left out") == 1
    assert text.endswith(f"\n\n{line}\n")
    assert "nan" not in text
    assert str(report.table().caption).endswith(line)
    assert report.table().row_count == report.metrics.height == len(report.values)
    assert not any("skip" in name for name in compare(report, report)["metric"])


@pytest.mark.parametrize("attribute", ["item_table", "session_query"])
def test_a_model_with_half_of_what_is_needed_is_refused(data, attribute):
    half = torch.nn.Module()
    setattr(half, attribute, getattr(module(data), attribute))
    with pytest.raises(TypeError, match="`model` must"):
        evaluate(half, data)


class LastItem:
    """Ranks the item that just played first, in the first `share` of the rows of each batch."""

    def __init__(self, num_items, share):
        self.num_items, self.share = num_items, share

    def scores(self, batch):
        last = batch.items.gather(1, (batch.lengths - 1)[:, None])
        scores = torch.arange(self.num_items + 1).repeat(len(batch), 1).float() / 1000
        ones = (torch.arange(len(batch)) < self.share * len(batch)).float()[:, None]
        return scores.scatter_add(1, last, ones)


@pytest.mark.parametrize("of_scores", [False, True])
def test_ranks_without_recommendations_are_the_same(data, of_scores):
    model = Popularity(data.item_counts) if of_scores else module(data)
    whole = evaluate(model, data, num_resamples=50)
    ranks = evaluate(model, data, num_resamples=50, list_recommendations=False)
    of_lists = {"coverage@20", "novelty@20", "last_item_first", "last_item_next"}
    assert set(whole.values) - set(ranks.values) == of_lists
    assert ranks.values == {name: value for name, value in whole.values.items() if name not in of_lists}
    assert set(ranks.metrics["metric"]) == set(ranks.values)
    assert set(ranks.segments["metric"]) <= set(ranks.values)
    assert ranks.coverage is None
    assert not ranks.caution
    assert str(ranks).count("hit_rate@10")
    for pair in ((whole, ranks), (ranks, whole)):
        table = compare(*pair)
        assert set(table["metric"]) == set(ranks.values)
        assert (table["difference"] == 0).all()


@pytest.mark.parametrize("exclude_seen", [False, True])
def test_the_report_counts_how_often_the_item_that_just_played_comes_first(data, exclude_seen):
    report = evaluate(LastItem(data.num_items, 1.0), data, exclude_seen=exclude_seen, num_resamples=20)
    assert report["last_item_first"] == (0 if exclude_seen else 1)
    following = listened = 0
    for batch in data.test_dataloader():
        for row in range(len(batch)):
            if batch.target_feedback[row] >= 0:
                listened += 1
                following += int(batch.target[row] == batch.items[row][batch.items[row] > 0][-1])
    assert report["last_item_next"] == pytest.approx(following / listened)
    assert bool(report.caution) is not exclude_seen
    assert (report.caution in report.to_markdown()) is (not exclude_seen or not report.caution)
    row = report.metrics.filter(pl.col("metric") == "last_item_next").row(0, named=True)
    assert row["targets"] == listened


def test_a_model_that_repeats_the_last_item_is_warned_of_with_the_cure():
    many = SessionDataModule(
        simulate_sessions(1100, num_items=40, num_moods=4, min_length=4, max_length=6, seed=0),
        batch_size=100,
        max_length=6,
    )
    with pytest.warns(UserWarning, match=r"item that just played before 100% .*exclude_seen=True"):
        evaluate(LastItem(many.num_items, 1.0), many, num_resamples=0)
    report = evaluate(LastItem(many.num_items, 0.1), many, num_resamples=50)  # no warning
    assert 0.09 < report["last_item_first"] < 0.2
    assert report.caution == ""
    verdicts = compare(report, report)
    assert set(verdicts.filter(pl.col("metric").str.starts_with("last_item"))["verdict"]) <= {
        "no significant difference"
    }


@pytest.mark.parametrize("exclude_seen", [False, True])
def test_the_report_of_a_model_says_how_last_item_markov_does(data, exclude_seen):
    report = evaluate(module(data), data, num_resamples=0, exclude_seen=exclude_seen)
    markov = evaluate(LastItemMarkov(data), data, num_resamples=0, exclude_seen=exclude_seen)
    assert report.sessions["markov_rank"].to_list() == markov.sessions["rank"].to_list()
    assert report.markov == {
        name: markov[name] for name in ("hit_rate@1", "hit_rate@10", "ndcg@10", "skip_hit_rate@10")
    }
    line = f"Last-item Markov on the same targets: hit_rate@1 {markov['hit_rate@1']:.4f}, hit_rate@10"
    assert line in report.to_markdown()
    beside = ", ".join(f"{markov[name]:.4f}" for name in ("hit_rate@10", "ndcg@10", "skip_hit_rate@10"))
    assert repr(report).endswith(f"; last-item Markov {beside})")
    assert line in str(report.table().caption)


def test_markov_stands_beside_models_of_the_whole_catalogue_only(data):
    model = module(data)
    for report in (
        evaluate(model, data, num_resamples=0, compare_markov=False),
        evaluate(Popularity(data.item_counts), data, num_resamples=0),
    ):
        assert report.markov == {}
        assert "Markov" not in report.to_markdown()
    with pytest.warns(UserWarning, match="sampled"):
        report = evaluate(model, data, num_resamples=0, num_candidates=5)
    assert report.markov == {}
    assert "Markov" not in report.to_markdown()
