import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
import torch

from skipcl_lightning.backbones import SASRec
from skipcl_lightning.heads import SkipInfoNCE
from skipcl_lightning.module import SkipCLModule
from skipcl_lightning.study.choices import (
    BASELINES,
    VARIANTS,
    backbone_names,
    build_backbone,
    find_recipe,
    find_variant,
    make_data,
)
from skipcl_lightning.study.pictures import _style
from skipcl_lightning.study.runs import Run, list_runs, read_record

SHARED = Path(os.environ.get("SKIPCL_DATA", Path(__file__).parents[3] / "shared" / "data"))


def make_run(**changes):
    values = {"dataset": "dense", "backbone": "SASRec", "variant": "session", "weight": 0.3}
    return Run(**{**values, "seed": 0, "epochs": 1, **changes})


def test_a_head_has_the_weight_and_its_own_negatives():
    for negatives in ("session", "past", "batch"):
        head = find_variant(negatives).build_head(0.7)
        assert isinstance(head, SkipInfoNCE)
        assert (head.weight, head.contrast.negatives) == (0.7, negatives)
    assert find_variant("none").build_head(0.7) is None


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "none"])
def test_every_variant_builds(name):
    assert isinstance(find_variant(name).build_head(0.3), torch.nn.Module)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_defined_for_a_bidirectional_backbone(name):
    parts = make_run(backbone="BERT4Rec", variant=name).build_parts()
    assert not SkipCLModule(*parts, num_items=9).model.causal


def test_a_combined_head_gives_each_part_the_weight():
    head = find_variant("session+batch").build_head(0.7)
    assert [(part.weight, part.contrast.negatives) for part in head.heads] == [
        (0.7, "session"),
        (0.7, "batch"),
    ]


def test_settings_that_are_chosen_after_training_change_the_run_but_not_the_training():
    names = ("prediction", "prediction+penalty", "prediction+counts+penalty")
    runs = [make_run(variant=name) for name in names]
    assert len({run.key for run in runs}) == 3
    assert len({run.training for run in runs}) == 1
    assert runs[0].training != make_run(variant="prediction+input").training
    assert runs[0].training != make_run(variant="prediction", seed=1).training
    # Transitions first, because both add to one score.
    assert find_variant("prediction+counts+penalty").chosen == ("transition_weight", "skip_penalty")


def test_every_variant_and_baseline_has_its_own_look_in_the_plots():
    names = [*VARIANTS, *BASELINES]
    assert len({_style(name) for name in names}) == len(names)


def test_a_baseline_has_no_head_and_takes_no_input():
    assert find_variant("SessionKNN").build_head(0.7) is None
    assert make_run(variant="SessionKNN", weight=None).key != make_run(variant="none", weight=None).key
    with pytest.raises(ValueError, match=r"or LastItemMarkov, SessionKNN, got 'SessionKNN\+input'"):
        find_variant("SessionKNN+input")


def test_the_suffix_turns_the_input_on_and_nothing_else():
    assert not any(variant.feedback_input for variant in VARIANTS.values())
    for name in VARIANTS:
        variant = find_variant(f"{name}+input")
        assert variant.feedback_input
        assert variant.parts == VARIANTS[name].parts
        assert variant.chosen == VARIANTS[name].chosen


@pytest.mark.parametrize("name", backbone_names())
def test_every_backbone_that_is_offered_builds_and_takes_the_longest_session(name):
    backbone = build_backbone(name, 7)
    # A mask token follows the session of a bidirectional one.
    length = 7 if backbone.causal else 8
    mask = torch.ones(2, length, dtype=torch.bool)
    assert backbone(torch.randn(2, length, 64), mask).shape == (2, length, 64)


def test_bidirectional_backbones_are_offered_with_the_size_of_sasrec():
    assert "BERT4Rec" in backbone_names()
    settings = build_backbone("BERT4Rec", 20).settings
    assert (settings["max_length"], settings["num_layers"], settings["dropout"]) == (21, 1, 0.1)


def test_sasrec_is_the_demos():
    settings = build_backbone("SASRec", 20).settings
    assert {name: settings[name] for name in ("embedding_size", "max_length", "num_layers", "dropout")} == {
        "embedding_size": 64,
        "max_length": 20,
        "num_layers": 1,
        "dropout": 0.1,
    }
    assert build_backbone("SASRec", 20).settings.keys() == SASRec().settings.keys()


def test_every_setting_that_matters_changes_the_key():
    keys = {make_run().key}
    for changes in (
        {"dataset": "sparse"},
        {"backbone": "GRU4Rec"},
        {"variant": "past"},
        {"variant": "session+input"},
        {"variant": "none", "weight": None},
        {"weight": 0.1},
        {"seed": 1},
        {"epochs": 2},
        {"sessions": 60},
    ):
        keys.add(make_run(**changes).key)
    assert len(keys) == 10
    # The recipe's own number of sessions is no other setting.
    assert make_run(sessions=4000).key == make_run().key


def test_a_run_is_named_by_what_it_compares():
    run = make_run(seed=1)
    assert run.label == "dense, SASRec, session, λ 0.3, seed 1"
    assert run.key.rpartition("_")[0] == "dense_SASRec_session_0.3_seed1"


def test_a_run_that_was_not_done_has_no_record(tmp_path):
    assert read_record(make_run(), tmp_path) is None


def test_a_json_without_its_sessions_is_no_record(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / f"{make_run().key}.json").write_text('{"metrics": {}}', encoding="utf-8")
    assert read_record(make_run(), tmp_path) is None


def test_runs_without_a_head_come_once_a_seed_and_each_data_set_has_its_epochs():
    variants = ["none", "none+input", "session"]
    runs = list_runs(
        datasets=["dense", "streaming=."],
        backbones=["SASRec"],
        variants=variants,
        weights=[0.1, 1.0],
        seeds=2,
    )
    assert len(runs) == 2 * 2 * (1 + 1 + 2)
    assert len(set(runs)) == len(runs)
    assert {(run.title, run.epochs) for run in runs} == {("dense", 8), ("streaming", 15)}
    assert [(run.variant, run.weight) for run in runs[:4]] == [
        ("none", None),
        ("none+input", None),
        ("session", 0.1),
        ("session", 1.0),
    ]
    assert list_runs(
        datasets=["dense", "streaming=."],
        backbones=["SASRec"],
        variants=["none"],
        weights=[],
        seeds=1,
        epochs=3,
        sessions=60,
    ) == [
        Run("dense", "SASRec", "none", None, seed=0, epochs=3, sessions=60),
        Run("streaming=.", "SASRec", "none", None, seed=0, epochs=3),
    ]


def test_each_seed_simulates_a_log_of_its_own():
    first, again, other = (make_data("dense", seed, sessions=40).log.collect() for seed in (0, 0, 1))
    assert first.equals(again)
    assert not first.equals(other)


def test_listeners_who_skip_more_skip_more():
    rates = [
        (make_data(name, 0, 500).log.collect()["feedback"] < 0).mean() for name in ("dense", "high_skip")
    ]
    assert rates[0] == pytest.approx(0.41, abs=0.05)
    assert rates[1] > rates[0] + 0.1


def test_low_ratings_are_skips_and_users_are_sessions(tmp_path):
    rows = [(user, item, 1 + (item + user) % 5, 10 * item) for user in range(6) for item in range(7)]
    table = pl.DataFrame(rows, schema=["user_id", "item_id", "rating", "timestamp"], orient="row")
    table.write_parquet(tmp_path / "ratings.parquet")
    data = make_data(f"ml-100k={tmp_path / 'ratings.parquet'}", seed=0)
    log = data.log.collect()
    assert log.filter(pl.col("session_id") == 0)["feedback"].to_list() == [-1, -0.5, 0, 0.5, 1, -1, -0.5]
    assert len(data.session_ids) == 6
    assert (data.max_length, data.batch_size) == (50, 64)


def test_several_paths_are_separated_as_in_path(tmp_path):
    header = "session_id,session_position,track_id_clean,skip_1,skip_2,skip_3,not_skipped"
    for name in ("a", "b"):
        rows = [f"{name},{position},t{position % 2},false,false,false,true" for position in range(1, 7)]
        (tmp_path / f"{name}.csv").write_text("\n".join([header, *rows]), encoding="utf-8")
    paths = os.pathsep.join(str(tmp_path / f"{name}.csv") for name in ("a", "b"))
    assert make_data(f"mssd={paths}", seed=0).session_ids.to_list() == ["a", "b"]


def test_a_part_of_a_log_that_is_too_small_is_named(tmp_path):
    rows = [f"a,{position},t,false,false,false,true" for position in range(1, 7)]
    header = "session_id,session_position,track_id_clean,skip_1,skip_2,skip_3,not_skipped"
    (tmp_path / "a.csv").write_text("\n".join([header, *rows]), encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"at least 2 items of 5 or more plays, .* got 1 in 'mssd=.*larger part"
    ):
        make_data(f"mssd={tmp_path / 'a.csv'}", seed=0)


def test_plays_of_lastfm_become_sessions_with_the_filters_of_the_configurations(tmp_path):
    start = datetime(2019, 1, 1, tzinfo=UTC)
    # Five users hear the same five tracks, and one a sixth track; the second is skipped.
    seconds = (0, 100, 110, 300, 400)
    plays = [
        (user, track, start + timedelta(seconds=at)) for user in range(5) for track, at in enumerate(seconds)
    ]
    plays.append((0, 9, start + timedelta(seconds=500)))
    lfm2b, lfm1k = tmp_path / "listening_events.tsv", tmp_path / "lfm1k.tsv"
    lines = ["user_id\ttrack_id\talbum_id\ttimestamp"]
    lines += [f"{user}\t{track}\t1\t{time:%Y-%m-%d %H:%M:%S}" for user, track, time in plays]
    lfm2b.write_text("\n".join(lines), encoding="utf-8")
    # The newest play of a user comes first.
    lines = [
        f"{user}\t{time:%Y-%m-%dT%H:%M:%SZ}\tm\tArtist\t{track}\tTrack" for user, track, time in plays[::-1]
    ]
    lfm1k.write_text("\n".join(lines), encoding="utf-8")
    for name in (f"lfm2b={lfm2b}", f"lfm1k={lfm1k}"):
        data = make_data(name, seed=0)
        assert len(data.session_ids) == 5
        assert data.num_items == 5  # without the track that was played once
        assert (data.max_length, find_recipe(name).epochs) == (50, 20)
        assert data.log.collect()["feedback"].head(5).to_list() == [1, -1, 1, 1, 1]


def test_the_filters_of_mssd_are_those_of_its_configuration(tmp_path):
    recipe = find_recipe(f"mssd={tmp_path}")
    assert (recipe.min_session_length, recipe.min_item_count, recipe.max_length) == (5, 5, 20)


@pytest.mark.real_data
@pytest.mark.skipif(
    not SHARED.is_dir(), reason="no listening logs: SKIPCL_DATA is not set and ../shared/data absent"
)
def test_real_logs_are_read():
    ratings = make_data(f"ml-100k={SHARED / 'ml-100k/ratings.parquet'}", seed=0)
    # Of 100,000 ratings, 17.5 % are 1 or 2.
    assert (ratings.log.collect()["feedback"] < 0).mean() == pytest.approx(0.175, abs=0.001)
    assert len(ratings.session_ids) == 943
    assert find_recipe(f"streaming={SHARED / 'streaming_history'}").epochs == 15
    assert make_data(f"streaming={SHARED / 'streaming_history'}", seed=0).num_items > 100
