"""How much memory a program has had, for the scripts beside this one."""

import re
from pathlib import Path

__all__ = ["peak_mebibytes"]


def peak_mebibytes() -> float:
    """The most memory that this program has had; `ru_maxrss` would start with that of its parent."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(r"VmHWM:\s*(\d+)", status)[1]) / 1024  # type: ignore[index]
