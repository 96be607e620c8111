import os
import sys

import pytest


@pytest.fixture(autouse=True, scope="module")
def wandb_ends_here():
    """End W&B's service with the module: processes that later tests start would go on in it, elsewhere."""
    before = dict(os.environ)
    yield
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()
    for name in set(os.environ) - set(before):
        if name.startswith("WANDB_"):
            del os.environ[name]
    os.environ.update({name: value for name, value in before.items() if name.startswith("WANDB_")})
