"""How much memory a program has had, for the scripts beside this one."""

import re
from pathlib import Path

__all__ = ["memory_mebibytes", "peak_mebibytes"]


def memory_mebibytes(kind: str) -> float:
    """A line of the kernel's status of this program, such as `VmRSS`, the memory that it has now."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(rf"{kind}:\s*(\d+)", status)[1]) / 1024  # type: ignore[index]


def peak_mebibytes() -> float:
    """The most memory that this program has had; `ru_maxrss` would start with that of its parent."""
    return memory_mebibytes("VmHWM")
