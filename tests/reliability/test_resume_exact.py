"""A resumed run has the losses and the weights of one that was not broken off, to the last bit."""

import pytest
from resumed_runs import BATCHES, STEPS, make_data, resume_exactly, train

# The run that resumes writes into the folder of the one that was broken off, and names its checkpoint.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
    pytest.mark.filterwarnings("ignore:.*ckpt_path"),
]


@pytest.fixture(scope="module")
def data():
    return make_data()


@pytest.fixture(scope="module")
def whole(data):
    """Each kind of run, without an interruption."""
    return {kind: train(kind, data) for kind in ("causal", "bidirectional")}


@pytest.mark.parametrize(
    ("way", "kind", "step"),
    [
        ("saved", "causal", 2),
        ("max_steps", "bidirectional", 2),
        ("exception", "causal", 3),
        ("every 2 steps", "bidirectional", 3),
        ("epoch", "causal", BATCHES + 2),
    ],
)
def test_a_resumed_run_is_exact(tmp_path, data, whole, way, kind, step):
    resume_exactly(way, kind, data, step, tmp_path, whole[kind])


@pytest.mark.reliability
@pytest.mark.parametrize("kind", ["causal", "bidirectional"])
@pytest.mark.parametrize("way", ["saved", "max_steps", "exception", "every 2 steps", "validation", "epoch"])
def test_a_run_resumes_exactly_from_any_step(tmp_path, data, whole, way, kind):
    first = {"every 2 steps": 2, "validation": BATCHES + 1, "epoch": BATCHES + 1}.get(way, 1)
    for step in range(first, STEPS):
        resume_exactly(way, kind, data, step, tmp_path, whole[kind])
    print(f"{STEPS - first} runs resumed exactly: {kind}, {way}")  # noqa: T201 - the counts of the suite
