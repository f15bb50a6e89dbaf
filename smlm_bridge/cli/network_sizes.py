"""The sizes of a network that ``train`` reads from a file."""

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from smlm_bridge.errors import InputRejected

#: Options that a file may set beside those that decide the shape of a network.
HOW_TO_LEARN = ("patch_px", "reach_px", "batch", "learning_rate", "weight_decay")
HOW_TO_LEARN_BOXES = ("recordings", "emitters", "batch", "learning_rate", "weight_decay")


def read_sizes(path: Path | None, allowed: Iterable[str]) -> dict[str, Any]:
    """Options of a training from a TOML file; none without a file.

    Raises
    ------
    InputRejected
        If the file cannot be read, is no TOML, or has a key that is not allowed.
    """
    if path is None:
        return {}
    try:
        given = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise InputRejected(
            f"the network '{path}' cannot be read ({error.strerror}). Give a TOML file."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputRejected(f"the network '{path}' is not TOML: {error}.") from error
    known = tuple(allowed)
    if unknown := sorted(set(given) - set(known)):
        raise InputRejected(
            f"the network '{path}' has unknown keys {unknown}; allowed are {', '.join(known)}."
        )
    return {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
