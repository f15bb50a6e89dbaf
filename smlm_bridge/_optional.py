"""The one place where optional dependencies are answered, with the name of the extra in the message."""

import importlib
from types import ModuleType

from smlm_bridge.errors import MissingDependency


def require(module: str, *, extra: str) -> ModuleType:
    """Import ``module`` or say which extra of this package brings it.

    Raises
    ------
    MissingDependency
        If the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise MissingDependency(
            f"{module.split('.')[0]} is not installed, and this step needs it. "
            f"Install the extra '{extra}': pip install 'smlm_bridge[{extra}]'."
        ) from error
