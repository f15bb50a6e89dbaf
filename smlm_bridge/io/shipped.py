"""Where the models that come with the package are."""

from pathlib import Path

import smlm_bridge
from smlm_bridge.errors import InputRejected

WEIGHTS = "weights.onnx"


def shipped_folder() -> Path:
    """The folder with one folder a model: inside the installed package, or beside it in a source tree."""
    package = Path(smlm_bridge.__file__).parent
    for folder in (package / "models", package.parent / "models"):
        if folder.is_dir():
            return folder
    raise InputRejected(
        f"the shipped models are missing: no folder 'models' in {package} or beside it. Reinstall."
    )


def shipped_names() -> list[str]:
    """Names of the shipped models, sorted."""
    return sorted(weights.parent.name for weights in shipped_folder().glob(f"*/{WEIGHTS}"))


def find_shipped(name: Path | str) -> Path | None:
    """The file of the shipped model ``name``; None if ``name`` is a path or unknown."""
    if Path(name).name != str(name) or Path(name).exists():
        return None
    weights = shipped_folder() / str(name) / WEIGHTS
    return weights if weights.is_file() else None
