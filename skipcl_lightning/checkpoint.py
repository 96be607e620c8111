"""Checkpoints that load without data or arguments: settings, parts and item vocabulary in plain values."""

from typing import Any

from lightning.pytorch import LightningModule
from torch import nn

from skipcl_lightning._settings import describe_part
from skipcl_lightning.backbones import BACKBONES
from skipcl_lightning.data import SessionEncoder
from skipcl_lightning.heads import NEXT_ITEM_LOSSES, SKIP_HEADS

__all__ = ["WholeCheckpoint"]

CHECKPOINT_KEY = "skipcl_lightning"


class WholeCheckpoint(LightningModule):
    """A LightningModule whose checkpoints hold its item vocabulary and describe its parts.

    Lightning keeps a module's plain arguments, not the modules among them; and an item's index means
    nothing without the vocabulary.
    """

    num_items: int
    backbone: nn.Module
    next_item_loss: nn.Module
    skip_head: nn.Module | None
    builds_backbone: bool
    encoder: SessionEncoder | None = None

    def setup(self, stage: str) -> None:  # noqa: ARG002 - Lightning's signature
        """Take the item vocabulary from the data module, or check that it is the one trained on.

        Args:
            stage: Lightning's stage; all begin alike.

        Raises:
            ValueError: The data has another catalogue.
        """
        encoder = getattr(getattr(self.trainer, "datamodule", None), "encoder", None)
        if isinstance(encoder, SessionEncoder):
            self._adopt(encoder)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the vocabulary, in plain values.

        Args:
            checkpoint: What Lightning is about to write.
        """
        # A subclass that saves its own arguments would put modules here.
        checkpoint[self.CHECKPOINT_HYPER_PARAMS_KEY].update(self.describe_parts())
        encoder = None if self.encoder is None else self.encoder.state_dict()
        checkpoint[CHECKPOINT_KEY] = {"encoder": encoder}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the vocabulary back.

        Args:
            checkpoint: What Lightning has read.

        Raises:
            ValueError: The checkpoint's catalogue is not that of the data.
        """
        state = checkpoint.get(CHECKPOINT_KEY, {}).get("encoder")
        if state is None:
            return
        encoder = SessionEncoder.from_state_dict(state)
        if self.encoder is not None and self.encoder.vocabulary != encoder.vocabulary:
            _refuse_other_items(trained_on=encoder, data=self.encoder)
        if len(encoder.vocabulary) != self.num_items:
            raise ValueError(
                f"`num_items` must be the checkpoint's {len(encoder.vocabulary)}, got {self.num_items}. "
                "Leave it out, or build the module with the checkpoint's own."
            )
        self.encoder = self.encoder or encoder

    def describe_parts(self) -> dict[str, Any]:
        """The parts by name and settings.

        Returns:
            Plain values by argument name; a backbone of ``build_backbone`` is None, and built again.
        """
        return {
            "backbone": None if self.builds_backbone else describe_part(self.backbone, BACKBONES),
            "skip_head": None if self.skip_head is None else describe_part(self.skip_head, SKIP_HEADS),
            "next_item_loss": describe_part(self.next_item_loss, NEXT_ITEM_LOSSES),
        }

    def _adopt(self, encoder: SessionEncoder) -> None:
        """Take the data's encoder, or check that it is that of training."""
        vocabulary = encoder.vocabulary
        if self.encoder is not None and self.encoder.vocabulary != vocabulary:
            _refuse_other_items(trained_on=self.encoder, data=encoder)
        if len(vocabulary) != self.num_items:
            raise ValueError(
                f"`num_items` must be the data's {len(vocabulary)}, got {self.num_items}. "
                "Build the module with `num_items=datamodule.num_items`."
            )
        self.encoder = self.encoder or encoder


def _refuse_other_items(*, trained_on: SessionEncoder, data: SessionEncoder) -> None:
    """Say which vocabulary is whose."""
    raise ValueError(
        "The data must have the items that the model was trained on, got data with "
        f"{data.vocabulary} for a model trained on {trained_on.vocabulary}. Prepare the same log in the same "
        "way, train anew, or use `Recommender` for sessions from elsewhere."
    )
