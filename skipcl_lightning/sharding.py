"""Weights shared by several processes, for catalogues that no device holds."""

from lightning.pytorch import LightningModule
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

__all__ = ["shard"]


def shard(module: LightningModule, mesh: DeviceMesh) -> None:
    """Shard all weights of a module; a second call does nothing.

    Args:
        module: The module; its steps gather the weights while they run.
        mesh: The processes that share them.
    """
    # Lightning configures the model at each stage.
    if isinstance(module, FSDPModule):
        return
    fully_shard(module, mesh=mesh)
    for name in ("training_step", "validation_step", "test_step", "predict_step"):
        register_fsdp_forward_method(module, name)
