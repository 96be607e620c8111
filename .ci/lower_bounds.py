"""Print a pip constraints file of the oldest versions that pyproject.toml declares.

python .ci/lower_bounds.py test > constraints.txt      # of the dependencies and of the extra `test`
"""

import re
import sys
import tomllib
from pathlib import Path

REQUIREMENT = re.compile(r"([\w.-]+)(?:\[([\w,-]+)\])?(?:>=([\w.]+))?$")
PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def lower_bounds(requirements: list[str]) -> dict[str, str]:
    """The oldest version of each requirement, through the extras of the package itself.

    Args:
        requirements: As ``name[extras]>=version``.

    Returns:
        Versions by name.

    Raises:
        ValueError: One has no lower bound.
    """
    bounds: dict[str, str] = {}
    for requirement in requirements:
        match = REQUIREMENT.match(requirement)
        if match is None:
            raise ValueError(f"requirements must be written `name>=version`, got {requirement!r}.")
        name, extras, version = match.groups()
        if name == PROJECT["name"]:
            for extra in extras.split(","):
                bounds |= lower_bounds(PROJECT["optional-dependencies"][extra])
        elif version is None:
            raise ValueError(f"{requirement!r} must have a lower bound. Declare the oldest version tested.")
        else:
            bounds[name] = version
    return bounds


if __name__ == "__main__":
    declared = PROJECT["dependencies"] + [f"{PROJECT['name']}[{extra}]" for extra in sys.argv[1:]]
    for package, oldest in sorted(lower_bounds(declared).items()):
        sys.stdout.write(f"{package}=={oldest}\n")
