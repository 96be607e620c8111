"""What the skip heads do: backbones x heads x weights x seeds x data sets, with intervals over seeds."""

from skipcl_lightning.study.command import study

__all__ = ["study"]
