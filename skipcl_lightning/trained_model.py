"""How the weights of a session model are kept and updated."""

import torch
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

from skipcl_lightning.optimizers import clip_gradients_by_norm, make_adamw
from skipcl_lightning.session_model import SessionModel

__all__ = ["TrainedModel"]


class TrainedModel(SessionModel):
    """A session model with an optimizer, for a dense item table or a sparse one."""

    learning_rate: float
    weight_decay: float
    warmup_steps: int

    def configure_model(self) -> None:
        """Shard all weights, and what optimizers keep of them, under Lightning's ``ModelParallelStrategy``.

        Its ``data_parallel_size`` is how many processes share them; each step gathers them while it runs.
        Other strategies need nothing.
        """
        # Called again at each stage.
        if self.device_mesh is None or isinstance(self, FSDPModule):
            return
        fully_shard(self, mesh=self.device_mesh["data_parallel"])
        for name in ("training_step", "validation_step", "test_step", "predict_step"):
            register_fsdp_forward_method(self, name)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with a linear warm-up; ``SparseAdamW`` with ``sparse_item_table``.

        Returns:
            Lightning's dictionary of optimizer and schedule.
        """
        table = self.item_embedding.weight
        optimizer = make_adamw(
            [parameter for parameter in self.parameters() if parameter is not table],
            table,
            sparse=self.item_embedding.sparse,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            fused=self._may_fuse(),
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1.0, (step + 1) / max(1, self.warmup_steps))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Lightning's clipping, for a sparse item table and for a fused optimizer in bfloat16 too.

        Args:
            optimizer: The optimizer.
            gradient_clip_val: The Trainer's; None for no clipping.
            gradient_clip_algorithm: ``norm`` (None), or ``value``, which a sparse table does not take.

        Raises:
            ValueError: Gradients of a sparse table are to be clipped by value.
        """
        if not self.item_embedding.sparse or not gradient_clip_val:
            plugin = self.trainer.precision_plugin
            if gradient_clip_val and isinstance(plugin, MixedPrecision) and plugin.scaler is None:
                # Lightning refuses a fused optimizer here, as if there were a scale that it undoes later.
                algorithm = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
                Precision.clip_gradients(plugin, optimizer, gradient_clip_val, algorithm)
            else:
                self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_algorithm == "value":
            raise ValueError(
                "`gradient_clip_algorithm` must be 'norm' beside `sparse_item_table`, got 'value'. Leave it "
                "out."
            )
        else:
            clip_gradients_by_norm(self.parameters(), gradient_clip_val)

    def _may_fuse(self) -> bool:
        """Whether AdamW may be one kernel, which leaves a GradScaler's clipping no moment to unscale."""
        trainer = self._trainer
        if self.device.type not in ("cpu", "cuda"):
            return False
        return trainer is None or trainer.precision != "16-mixed" or not trainer.gradient_clip_val
