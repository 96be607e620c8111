"""Models on the Hugging Face Hub: an exported folder and a model card, without pickles."""

import math
import platform
import re
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import polars as pl
import torch

from skipcl_lightning._checks import import_extra
from skipcl_lightning._settings import describe_part
from skipcl_lightning.backbones import BACKBONES
from skipcl_lightning.data import SessionEncoder
from skipcl_lightning.export.folder import DESCRIPTION, ITEMS, WEIGHTS
from skipcl_lightning.heads import SKIP_HEADS
from skipcl_lightning.model import Scoring

__all__ = ["fetch_folder", "model_card", "push_folder"]

FILES = (DESCRIPTION, WEIGHTS, ITEMS)
USE = """from skipcl_lightning import Recommender

recommender = Recommender.from_pretrained("{}")
recommender.recommend([[…]], [[1.0, …]])  # the ids and the feedback of each session"""
CITATION = """@inproceedings{seshadri2024enhancing,
  title = {Enhancing Sequential Music Recommendation with Negative Feedback-informed Contrastive Learning},
  author = {Seshadri, Pavan and Shashaani, Shahrzad and Knees, Peter},
  booktitle = {Proceedings of the 18th ACM Conference on Recommender Systems},
  year = {2024},
  doi = {10.1145/3640457.3688188}
}"""


class Report(Protocol):
    """What a card needs of an `EvaluationReport`."""

    @property
    def settings(self) -> dict[str, Any]:
        """The protocol."""

    @property
    def metrics(self) -> pl.DataFrame:
        """`metric`, `value`, `low`, `high`, `targets` and `sessions`."""

    @property
    def markov_line(self) -> str:
        """The metrics of last-item Markov, or an empty text."""

    @property
    def caution(self) -> str:
        """A warning, or an empty text."""

    def describe_protocol(self) -> str:
        """Return protocol and populations."""


def model_card(
    scorer: Scoring,
    encoder: SessionEncoder,
    *,
    repo_id: str,
    report: Report | None = None,
    dataset: str | None = None,
    licence: str | None = None,
) -> str:
    """Return a model card: Markdown behind metadata in YAML.

    Args:
        scorer: The model.
        encoder: Its item vocabulary and settings.
        repo_id: The repository's name, `user/name`.
        report: The result of `evaluate` on a test set; None leaves the metrics out.
        dataset: The name of the data on which it was trained.
        licence: The licence of the weights, as an identifier of the Hub such as `mit`.

    Returns:
        The text of `README.md`. Names are escaped.

    Raises:
        ImportError: The extra `hub` is not installed.
        ValueError: `repo_id` is no name of a repository.
    """
    hub = import_hub()
    hub.utils.validate_repo_id(repo_id)
    results = None if report is None else list(_results(hub, report, dataset))
    data = hub.ModelCardData(
        license=licence,
        library_name="skipcl_lightning",
        tags=["recommendation", "session-based-recommendation", "skip-aware"],
        model_name=repo_id if results else None,
        eval_results=results or None,
    )
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {escape(repo_id)}",
        "A session-based recommender that knows skips, trained with `skipcl_lightning`. It returns the best "
        "next items after a session of items and feedback.",
        f"```python\n{USE.format(repo_id)}\n```",
        "## Model",
        _table(("setting", "value"), _settings(scorer, encoder)),
    ]
    if dataset is not None:
        parts += ["## Data", f"Trained on {escape(dataset)}."]
    parts += ["## Evaluation", *_evaluation(report), "## Limits", *_limits(scorer, encoder)]
    parts += ["## Citation", f"```bibtex\n{CITATION}\n```"]
    return "\n\n".join(parts) + "\n"


def push_folder(
    folder: Path, repo_id: str, *, card: str, private: bool | None, token: str | None, message: str
) -> str:
    """Upload an exported folder with its card in one commit.

    Args:
        folder: The result of `export_model`.
        repo_id: The repository, `user/name`, which is made if there is none.
        card: The text of its `README.md`.
        private: Whether a new repository is private; None for the account's default.
        token: An access token; None for the one that `hf auth login` stored.
        message: The message of the commit.

    Returns:
        The address of the repository.
    """
    hub = import_hub()
    api = hub.HfApi(token=token)
    address = api.create_repo(repo_id, private=private, exist_ok=True)
    added = [hub.CommitOperationAdd(name, folder / name) for name in FILES]
    added.append(hub.CommitOperationAdd("README.md", card.encode()))
    with warnings.catch_warnings():
        # The table of items belongs to the model.
        warnings.filterwarnings("ignore", "It seems that you are about to commit a data file")
        api.create_commit(repo_id, added, commit_message=message)
    return str(address)


def fetch_folder(repo_id: str, *, revision: str | None, token: str | None) -> Path:
    """Return the folder of a repository's model in the local cache, downloaded if needed.

    Args:
        repo_id: The repository, `user/name`.
        revision: A branch, tag or commit; None for `main`.
        token: An access token; None for the one that `hf auth login` stored.

    Raises:
        ImportError: The extra `hub` is not installed.
        ValueError: The repository holds no model of this library.
    """
    hub = import_hub()
    try:
        # First, because the weights of a foreign model may be large.
        hub.hf_hub_download(repo_id, DESCRIPTION, revision=revision, token=token)
    except hub.errors.RemoteEntryNotFoundError as error:
        raise ValueError(
            f"`model` must be a folder or a repository of skipcl_lightning, got {repo_id!r}, which "
            f"has no {DESCRIPTION}. `Recommender.push_to_hub` uploads one."
        ) from error
    # Nothing else is fetched, whatever the repository holds.
    return Path(hub.snapshot_download(repo_id, revision=revision, token=token, allow_patterns=list(FILES)))


def escape(text: str) -> str:
    r"""Return a text as one line of Markdown that shows it as it is.

    Examples:
        >>> print(escape("<b>a|b</b>"))
        \<b\>a\|b\</b\>
    """
    return re.sub(r"([\\`*_{}\[\]<>()#|~!&$@:])", r"\\\1", " ".join(text.split()))


def import_hub() -> Any:
    """Return the package `huggingface_hub`, or raise an `ImportError` that names the extra."""
    return import_extra("huggingface_hub", extra="hub", user="The Hugging Face Hub")


def _results(hub: Any, report: Report, dataset: str | None) -> Iterator[Any]:
    cut_off = min(report.settings["top_k"], key=lambda k: abs(k - 10))
    names = [f"{name}@{cut_off}" for name in ("hit_rate", "ndcg", "skip_hit_rate")]
    for row in report.metrics.filter(pl.col("metric").is_in(names)).iter_rows(named=True):
        interval = {"low": row["low"], "high": row["high"]} if _has_interval(row) else {}
        yield hub.EvalResult(
            task_type="session-based-recommendation",
            dataset_type="session-log",
            dataset_name=dataset or "unnamed",
            dataset_split=str(report.settings["split"]),
            metric_type=row["metric"],
            metric_value=row["value"],
            metric_args={**interval, "confidence": report.settings["confidence"]} if interval else None,
        )


def _has_interval(row: dict[str, Any]) -> bool:
    return row["low"] is not None and math.isfinite(row["low"])


def _settings(scorer: Scoring, encoder: SessionEncoder) -> Iterator[tuple[str, str]]:
    model = scorer.model
    yield "backbone", _part(describe_part(model.backbone, BACKBONES))
    if scorer.skip_head is not None:
        yield "skip head", _part(describe_part(scorer.skip_head, SKIP_HEADS))
    yield "skip penalty", f"{scorer.skip_penalty:g}"
    yield "transition weight", f"{scorer.transition_weight:g}"
    yield "the session's own items", "left out" if scorer.exclude_seen else "recommended too"
    yield "items", f"{scorer.num_items:,} ({encoder.vocabulary.dtype})"
    yield "embedding size", str(model.item_embedding.embedding_dim)
    yield "parameters", f"{sum(weight.numel() for weight in scorer.parameters()):,}"
    yield "longest session", f"the latest {encoder.max_length} items"
    yield "a skip is", f"feedback below {encoder.skip_threshold:g}"
    if encoder.history_length:
        yield "listener history", f"the latest {encoder.history_length} items"
    if encoder.context is not None:
        yield "context", ", ".join(encoder.context.columns)
    yield "skipcl_lightning", version("skipcl-lightning")
    yield "torch", torch.__version__
    yield "Python", platform.python_version()


def _part(described: dict[str, Any]) -> str:
    settings = ", ".join(f"{name}={value!r}" for name, value in (described["settings"] or {}).items())
    return f"{described['name']}({settings})" if settings else str(described["name"])


def _evaluation(report: Report | None) -> Iterator[str]:
    if report is None:
        yield "Not evaluated in this card."
        return
    rows = [
        (
            row["metric"],
            f"{row['value']:.4f}",
            f"{row['low']:.4f} to {row['high']:.4f}" if _has_interval(row) else "",
            f"{row['targets']:,}",
        )
        for row in report.metrics.iter_rows(named=True)
    ]
    yield escape(f"Training sessions: {report.settings['training_sessions']:,}. {report.describe_protocol()}")
    yield _table(("metric", "value", "interval", "targets"), rows)
    yield from (escape(line) for line in (report.markov_line, report.caution) if line)


def _limits(scorer: Scoring, encoder: SessionEncoder) -> Iterator[str]:
    skips = (
        "- Skip probabilities are those of the log's listeners; calibrate them on a newer log."
        if scorer.predicts_skips
        else "- It does not predict skip probabilities."
    )
    yield "\n".join(
        [
            f"- It recommends only the {scorer.num_items:,} items of its vocabulary.",
            f"- It sees the latest {encoder.max_length} items of a session.",
            "- It was trained on logged plays, which depend on what was recommended or shown at that time.",
            "- Offline metrics compare models on one log; they do not predict the effect on listeners.",
            skips,
        ]
    )


def _table(header: tuple[str, ...], rows: Any) -> str:
    lines = [header, ("---",) * len(header), *(tuple(map(escape, row)) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
