"""Fail unless the wheel and the sdist of a folder hold what they should, and nothing else.

python .ci/check_archives.py dist
"""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[1]
PACKAGE = "skipcl_lightning"
OTHER_IN_SDIST = ("tests/", "docs/", "examples/")
FILES_IN_SDIST = {
    ".gitignore",  # hatchling adds it, so that a wheel built from the sdist leaves out the same
    "CHANGELOG.md",
    "CITATION.cff",
    "CONTRIBUTING.md",
    "LICENSE",
    "PKG-INFO",
    "README.md",
    "mkdocs.yml",
    "pyproject.toml",
}


def tracked_files() -> set[str]:
    """What git knows, or is about to know."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)  # noqa: S603
    return {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}


def wheel_faults(names: set[str], tracked: set[str]) -> list[str]:
    """What a wheel lacks, and what it has too much.

    Args:
        names: The files in the wheel.
        tracked: The files in the repository.

    Returns:
        A line for each; none for a good one.
    """
    expected = {name for name in tracked if name.startswith(f"{PACKAGE}/")}
    packaged = {name for name in names if ".dist-info/" not in name}
    information = {PurePosixPath(name).name for name in names - packaged}
    faults = [f"wheel: {name} is missing" for name in sorted(expected - packaged)]
    faults += [f"wheel: {name} should not be there" for name in sorted(packaged - expected)]
    needed = {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "LICENSE"}
    faults += [f"wheel: {name} should be in its .dist-info alone" for name in sorted(needed ^ information)]
    # Said once more by name: git forgetting them would hide them from the comparison.
    if f"{PACKAGE}/py.typed" not in packaged:
        faults.append("wheel: py.typed is missing")
    if not any(name.startswith(f"{PACKAGE}/cli/configurations/") for name in packaged):
        faults.append("wheel: the ready configurations are missing")
    return faults


def sdist_faults(names: set[str], tracked: set[str]) -> list[str]:
    """What an sdist lacks, and what it has too much.

    Args:
        names: The files in the sdist, without its top folder.
        tracked: The files in the repository.

    Returns:
        A line for each; none for a good one.
    """
    folders = (f"{PACKAGE}/", *OTHER_IN_SDIST)
    expected = {name for name in tracked if name.startswith(folders)} | FILES_IN_SDIST
    faults = [f"sdist: {name} is missing" for name in sorted(expected - names)]
    return faults + [f"sdist: {name} should not be there" for name in sorted(names - expected)]


def main(folder: Path) -> int:
    """Check the only wheel and the only sdist of a folder.

    Args:
        folder: Where they were built.

    Returns:
        The exit status.
    """
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    tracked = tracked_files()
    in_wheel = set(zipfile.ZipFile(wheel).namelist())
    with tarfile.open(sdist) as archive:
        in_sdist = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    lines = [*sorted(f"{wheel.name}: {name}" for name in in_wheel)]
    lines += sorted(f"{sdist.name}: {name}" for name in in_sdist)
    faults = wheel_faults(in_wheel, tracked) + sdist_faults(in_sdist, tracked)
    sys.stdout.write("\n".join([*lines, *faults, f"{len(faults)} faults"]) + "\n")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
