import math

import polars as pl
import pytest

from skipcl_lightning.study.pictures import save_skip_rate_plot, save_trade_off_plot
from skipcl_lightning.study.results import (
    METRICS,
    compare_all,
    compare_with,
    gains_by_skip_rate,
)
from skipcl_lightning.study.tables import make_markdown, make_paper_tables, make_terminal_tables

# Of Student's t with 2 degrees of freedom, from a table.
T_975_OF_2 = 4.302653
RATES = ["none", "up to 25 %", "over 75 %"]


def metric_rows(values, **names):
    """By (variant, weight), one value a seed: the rows of `read_metrics`."""
    place = {"dataset": "dense", "backbone": "SASRec", "metric": "hit_rate@10", **names}
    rows = [
        {**place, "variant": variant, "weight": weight, "seed": seed, "value": value}
        for (variant, weight), each in values.items()
        for seed, value in enumerate(each)
    ]
    return pl.DataFrame(rows, schema_overrides={"weight": pl.Float64, "value": pl.Float64})


def row_of(frame, variant):
    return frame.filter(pl.col("variant") == variant).row(0, named=True)


def test_the_interval_is_that_of_a_paired_t_test():
    plain, head = [0.50, 0.60, 0.40], [0.53, 0.61, 0.42]
    row = row_of(
        compare_with("none", metric_rows({("none", None): plain, ("session", 0.3): head})), "session"
    )
    differences = [after - before for before, after in zip(plain, head, strict=True)]
    mean = sum(differences) / 3
    deviation = math.sqrt(sum((each - mean) ** 2 for each in differences) / 2)
    margin = T_975_OF_2 * deviation / math.sqrt(3)
    assert (row["low"], row["high"]) == pytest.approx((mean - margin, mean + margin), rel=1e-5)
    assert row["mean"] == pytest.approx(0.52)
    assert row["against"] == pytest.approx(0.5)
    assert row["relative"] == pytest.approx(100 * 0.02 / 0.5)
    assert row["seeds"] == 3
    assert row["verdict"] == "no significant difference"  # 0.02 ± 0.0248


@pytest.mark.parametrize(("metric", "verdict"), [("hit_rate@10", "better"), ("skip_mrr@10", "worse")])
def test_the_verdict_knows_which_side_is_better(metric, verdict):
    frame = metric_rows(
        {("none", None): [0.5, 0.6, 0.4], ("session", 0.3): [0.6, 0.701, 0.499]}, metric=metric
    )
    assert row_of(compare_with("none", frame), "session")["verdict"] == verdict


def test_one_seed_has_a_difference_but_no_interval():
    row = row_of(
        compare_with("none", metric_rows({("none", None): [0.5], ("session", 0.3): [0.6]})), "session"
    )
    assert row["difference"] == pytest.approx(0.1)
    assert (row["low"], row["high"], row["verdict"]) == (None, None, "undefined")


def test_seeds_that_differ_alike_have_no_interval():
    row = row_of(
        compare_with("none", metric_rows({("none", None): [0.5, 0.6], ("session", 0.3): [0.6, 0.7]})),
        "session",
    )
    assert (row["low"], row["verdict"]) == (None, "undefined")


def test_a_seed_counts_only_where_both_have_a_value():
    frame = metric_rows({("none", None): [0.5, None, 0.4, 0.1], ("session", 0.3): [0.6, 0.9, 0.45, None]})
    row = row_of(compare_with("none", frame), "session")
    assert row["seeds"] == 2
    assert row["difference"] == pytest.approx(0.075)


def test_a_share_of_nothing_has_no_relative_change():
    frame = metric_rows({("none", None): [0.0, 0.0], ("session", 0.3): [0.1, 0.2]})
    assert row_of(compare_with("none", frame), "session")["relative"] is None


def test_data_sets_backbones_and_weights_are_kept_apart():
    frame = pl.concat(
        [
            metric_rows(
                {("none", None): [0.1, 0.2], ("session", 0.3): [0.2, 0.4], ("session", 1.0): [0.3, 0.5]}
            ),
            metric_rows({("none", None): [0.5, 0.6], ("session", 0.3): [0.5, 0.6]}, dataset="sparse"),
            metric_rows({("none", None): [0.7, 0.6], ("session", 0.3): [0.6, 0.6]}, backbone="GRU4Rec"),
        ]
    )
    found = compare_with("none", frame).filter(pl.col("variant") == "session")
    assert found["difference"].to_list() == pytest.approx([0.15, 0.25, 0.0, -0.05])


def test_variants_with_the_input_are_compared_with_the_plain_model_that_has_it_too():
    frame = metric_rows(
        {("none", None): [0.1, 0.2], ("none+input", None): [0.3, 0.5], ("session+input", 0.3): [0.31, 0.52]}
    )
    found = compare_all(frame).filter(pl.col("variant") == "session+input")
    assert found["compared_with"].to_list() == ["none", "none+input"]
    assert found["difference"].to_list() == pytest.approx([0.265, 0.015])


def hit_rows():
    frames = [
        metric_rows({("none", None): [0.5, 0.6, 0.4], ("session", 0.3): values})
        .drop("metric")
        .with_columns(
            pl.lit(rate, pl.Enum(RATES)).alias("segment"), pl.lit(sessions, pl.Int64).alias("sessions")
        )
        for rate, values, sessions in (
            ("over 75 %", [0.53, 0.61, 0.42], 100),
            ("none", [0.5, 0.7, 0.6], 2345),
            ("up to 25 %", [0.5, 0.7, 0.6], 7),
        )
    ]
    return pl.concat(frames)


def test_the_gain_is_told_by_segment_with_its_sessions():
    gains = gains_by_skip_rate("none", hit_rows())
    assert set(gains["variant"]) == {"session"}
    row = gains.filter(pl.col("segment") == "over 75 %").row(0, named=True)
    assert row["difference"] == pytest.approx(0.02)
    # By hand: differences .03, .01, .02; deviation .01; 4.3027 · .01 / √3.
    assert row["high"] - row["difference"] == pytest.approx(0.024841, abs=1e-5)
    assert row["sessions"] == 100


def full_metrics():
    """Every metric of a plain model, and of a head that is .1 higher at all of them."""
    values = {("none", None): [0.5, 0.6, 0.4], ("session", 0.3): [0.6, 0.701, 0.499]}
    return pl.concat([metric_rows(values, metric=metric) for metric in METRICS])


def test_the_markdown_holds_the_figures_and_makes_bold_what_is_told_from_noise():
    text = make_markdown(
        compare_all(full_metrics()),
        gains_by_skip_rate("none", hit_rows()),
        [{"data set": "dense", "runs": 6}],
    )
    # By hand: differences .1, .101, .099; 4.3027 · .001 / √3 = .0025.
    assert text.count("**+.1000 ± .0025**") == len(METRICS)
    assert "| `none` |  | .5000 | .5000 |" in text
    assert "**.6000 (+20.0)**" in text
    assert f"{len(METRICS)} of {len(METRICS)} differences are bold" in text
    assert (
        "| variant | λ | none (2,345 sessions) | up to 25 % (7 sessions) | over 75 % (100 sessions) |" in text
    )
    assert "| `session` | 0.3 | +.1000 ± .2484 | +.1000 ± .2484 | +.0200 ± .0248 |" in text
    assert "SkipMRR@10 ↓" in text
    assert "MRR@10 ↑" in text
    assert "Left out" not in text


def test_a_metric_without_a_population_in_any_run_is_one_line():
    frame = full_metrics().filter(pl.col("metric") != "skip_mrr@10")
    text = make_markdown(compare_all(frame), gains_by_skip_rate("none", hit_rows()), [{"runs": 6}])
    assert text.count("SkipMRR@10") == 1  # in the paper's columns, which are whole
    assert text.count("Left out, as their population is empty: skip_mrr.") == 1
    (table,) = make_terminal_tables(compare_all(frame))
    assert [column.header for column in table.columns][2:4] == ["HR@10 ↑", "MRR@10 ↑"]
    assert not any("SkipMRR" in str(column.header) for column in table.columns)


def test_a_metric_without_a_population_in_one_run_is_an_empty_cell():
    lacking = (pl.col("metric") == "skip_mrr@10") & (pl.col("variant") == "session")
    text = make_markdown(
        compare_all(full_metrics().filter(~lacking)),
        gains_by_skip_rate("none", hit_rows()),
        [{"runs": 6}],
    )
    assert " – |" in text  # noqa: RUF001 - the dash of an empty cell


def test_the_papers_columns_stand_in_one_table_for_each_data_set():
    frame = pl.concat(
        [
            full_metrics(),
            full_metrics()
            .with_columns(pl.lit("GRU4Rec").alias("backbone"))
            .filter(pl.col("metric") != "mrr@10"),
        ]
    )
    summary = compare_all(frame)
    text = make_markdown(summary, gains_by_skip_rate("none", hit_rows()), [{"runs": 6}])
    head = "| backbone | variant | λ | HR@1 ↑ | HR@5 ↑ | HR@10 ↑ | HR@20 ↑ | MAP@10 ↑ | SkipMRR@10 ↓ |"
    assert text.count(head) == 1
    assert "| SASRec | session | 0.3 | .6000 | .6000 | .6000 | .6000 | .6000 | .6000 |" in text
    assert "| GRU4Rec | none |  | .5000 | .5000 | .5000 | .5000 | – | .5000 |" in text  # noqa: RUF001
    (table,) = make_paper_tables(summary)
    assert [str(column.header) for column in table.columns] == head.strip("| ").split(" | ")
    assert table.row_count == 4


def test_the_papers_columns_are_whole_without_a_skipped_target():
    # As in a Last.fm log, where the last track of a session is never a skip.
    frame = full_metrics().filter(pl.col("metric") != "skip_mrr@10")
    text = make_markdown(compare_all(frame), gains_by_skip_rate("none", hit_rows()), [{"runs": 6}])
    assert "| SASRec | none |  | .5000 | .5000 | .5000 | .5000 | .5000 | – |" in text  # noqa: RUF001


def test_the_terminal_is_shown_one_table_a_data_set():
    frame = pl.concat([full_metrics(), full_metrics().with_columns(pl.lit("sparse").alias("dataset"))])
    titles = [table.title for table in make_terminal_tables(compare_all(frame))]
    assert [title.split(",")[0] for title in titles] == ["dense", "sparse"]


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("left_out", [[], ["skip_hit_rate@10"]])
def test_pictures_are_drawn_with_any_number_of_seeds_and_without_skipped_targets(tmp_path, seeds, left_out):
    frame = full_metrics().filter((pl.col("seed") < seeds) & ~pl.col("metric").is_in(left_out))
    plain = frame.filter(pl.col("variant") == "none")
    save_trade_off_plot(tmp_path / "trade.png", compare_all(frame), plain)
    gains = gains_by_skip_rate("none", hit_rows().filter(pl.col("seed") < seeds))
    save_skip_rate_plot(tmp_path / "rates.png", gains)
    for path in tmp_path.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 2


def test_a_study_of_the_plain_model_alone_has_no_gains_to_draw(tmp_path):
    frame = full_metrics().filter(pl.col("variant") == "none")
    save_trade_off_plot(tmp_path / "trade.png", compare_all(frame), frame)
    gains = gains_by_skip_rate("none", hit_rows().filter(pl.col("variant") == "none"))
    with pytest.raises(ValueError, match="`gains` must hold a variant beside the plain model"):
        save_skip_rate_plot(tmp_path / "rates.png", gains)
    assert "Difference" not in make_markdown(compare_all(frame), gains, [{"runs": 3}]).split("##", 1)[1]
    assert [path.name for path in tmp_path.iterdir()] == ["trade.png"]
