"""Options of ImageJ's commands as macro text: the one place that knows its traps."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from smlm_bridge.errors import InputRejected

Value = str | bool | int | float | Path

_KEY: Final = re.compile(r"[a-z][a-z0-9_.]*")
_PLAIN: Final = re.compile(r"[\w.:;+\-/*<>=|&!^%,()]+")


def option_text(options: Mapping[str, Value]) -> str:
    """The text ``key=value key=[a value]`` for ImageJ's ``run``.

    Keys are lower-cased by ImageJ when it looks them up, so a key with a capital is never found and refused
    here. Booleans are written out (``flag=true``), so that absent does not mean false in one plugin and
    default in another. Values with spaces stand in brackets, and a value with brackets cannot be written.

    Raises
    ------
    InputRejected
        If a key or a value cannot be written so that ImageJ reads the same.
    """
    for key in options:
        if not _KEY.fullmatch(key):
            raise InputRejected(
                f"the option '{key}' of ImageJ must be written with lower-case letters: others are ignored in "
                "silence."
            )
        shadowed = [
            other for other in options if other != key and re.search(rf"[._]{re.escape(key)}$", other)
        ]
        if shadowed:
            raise InputRejected(
                f"the option '{key}' would be found inside '{shadowed[0]}', as ImageJ looks it up; rename one."
            )
    return " ".join(f"{key}={value_text(key, value)}" for key, value in options.items())


def value_text(key: str, value: Value) -> str:
    """One value as macro text.

    Raises
    ------
    InputRejected
        If it holds brackets, quotes or line breaks, or is no number.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float | int):
        if value != value or value in (float("inf"), float("-inf")):
            raise InputRejected(f"the option '{key}' is {value}; ImageJ gets finite numbers.")
        text = repr(float(value)) if isinstance(value, float) else str(value)
        return text
    text = str(value)
    if re.search(r"[\[\]\"\r\n]", text):
        raise InputRejected(
            f"the option '{key}' is {text!r}, and an option of ImageJ holds no brackets, quotes or line breaks; "
            "rename the file or folder."
        )
    return text if text and _PLAIN.fullmatch(text) and "=" not in text else f"[{text}]"
