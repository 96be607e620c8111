import pytest
from small_run import train


@pytest.fixture(scope="package")
def trained(tmp_path_factory):
    """A module, its data and its checkpoint: trained once for all that is damaged."""
    path = tmp_path_factory.mktemp("trained") / "model.ckpt"
    return *train(path), path
