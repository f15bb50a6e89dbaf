"""Checkpoints of a training: written whole or not at all, read without running code from the file."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smlm_bridge._optional import require
from smlm_bridge.errors import InputRejected
from smlm_bridge.io.atomic import atomic_output


def save_checkpoint(path: Path | str, state: Mapping[str, Any]) -> None:
    """Write tensors, numbers, strings and containers of them; an older checkpoint is replaced.

    Raises
    ------
    MissingDependency
        If torch is not installed.
    """
    torch = require("torch", extra="train")
    with atomic_output(path, overwrite=True) as temporary:
        torch.save(dict(state), temporary)


def load_checkpoint(path: Path | str) -> dict[str, Any]:
    """Read what ``save_checkpoint`` wrote.

    Raises
    ------
    InputRejected
        If there is no such file, or it is not a checkpoint.
    MissingDependency
        If torch is not installed.
    """
    torch = require("torch", extra="train")
    if not Path(path).is_file():
        raise InputRejected(f"no checkpoint '{path}' to resume from; start the training without --resume.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputRejected(f"'{path}' is not a checkpoint of a training: {text}") from error
    if not isinstance(state, dict) or "progress" not in state:
        raise InputRejected(f"'{path}' is not a checkpoint of a training: it has no progress.")
    return state
