import importlib

import pytest

# A name that goes, or comes, is a decision: it is made here too.
PUBLIC = {
    "skipcl_lightning": ["Recommender", "SkipCLModule"],
    "skipcl_lightning.backbones": [
        "BACKBONES",
        "BERT4Rec",
        "Caser",
        "ESASRec",
        "GRU4Rec",
        "HFBackbone",
        "NextItNet",
        "SASRec",
        "check_backbone",
        "clean_input",
        "is_causal",
    ],
    "skipcl_lightning.batch": ["PADDING_INDEX", "SessionBatch"],
    "skipcl_lightning.data": [
        "DropReport",
        "EvaluationSampler",
        "ItemVocabulary",
        "SessionDataModule",
        "SessionDataset",
        "SessionEncoder",
        "SessionFilter",
        "SessionStore",
        "SessionView",
        "keep_batch",
        "leave_one_out",
        "prepare_sessions",
        "read_mssd",
        "read_streaming_history",
        "read_table",
        "recommendation_frame",
        "sessionise",
        "simulate_sessions",
    ],
    "skipcl_lightning.evaluation": ["Baseline", "LastItemMarkov", "Popularity", "evaluate_baseline"],
    "skipcl_lightning.functional": [
        "append_mask_token",
        "average_precision",
        "cloze_positives",
        "draw_cloze_mask",
        "full_softmax_loss",
        "hide_masked",
        "hit_rate",
        "last_position",
        "mrr",
        "ndcg",
        "next_item_targets",
        "next_listened",
        "pairwise_wins",
        "rank_percentile",
        "sample_items",
        "sampled_softmax_loss",
        "sampling_log_probability",
        "score_ranks",
        "skip_info_nce",
        "skip_pair_mask",
        "skip_pair_scores",
        "target_ranks",
        "top_k_items",
    ],
    "skipcl_lightning.heads": [
        "NEXT_ITEM_LOSSES",
        "SKIP_HEADS",
        "FullSoftmax",
        "SampledSoftmax",
        "SkipInfoNCE",
    ],
    "skipcl_lightning.metrics": [
        "MAP",
        "MRR",
        "NDCG",
        "DeltaHitRate",
        "HitRate",
        "PairwiseSkipAccuracy",
        "SkipHitRate",
        "SkipMRR",
        "SkipRankPercentile",
        "TargetCount",
        "session_metrics",
    ],
}


@pytest.mark.parametrize("name", PUBLIC)
def test_the_public_names_are_these(name):
    module = importlib.import_module(name)
    assert module.__all__ == PUBLIC[name]
    assert all(hasattr(module, public) for public in PUBLIC[name])
