"""What a verb says: progress on stderr, one summary or one JSON object on stdout."""

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

OnStep = Callable[[int, int], None]
SECONDS_BETWEEN_LINES = 0.2


@dataclass(frozen=True)
class Summary:
    """The result of a verb: the keys of ``--json`` and the text for people.

    Parameters
    ----------
    values
        Keys of the contract; a key whose part is not built yet is None.
    text
        Lines for stdout without ``--json``.
    exit_code
        Of a verb that finished but has something to complain about (``doctor``).
    """

    values: Mapping[str, object]
    text: str = ""
    exit_code: int = 0


def plain(value: Any) -> Any:
    """Turn a value into what JSON knows: numpy to Python, paths to text, NaN and infinities to None."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    return str(value)


def to_json(values: Mapping[str, object]) -> str:
    """One JSON object on one line."""
    return json.dumps(plain(values), allow_nan=False)


def aligned(rows: Mapping[str, object]) -> str:
    """Names and values in two columns; floats to five digits."""
    width = max((len(name) for name in rows), default=0)
    return "\n".join(f"{name:<{width}}  {_shown(value)}" for name, value in rows.items())


def _shown(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_shown(item)}" for name, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(_shown(item) for item in value)
    return str(value)


@contextmanager
def progress(what: str, style: str, *, quiet: bool = False) -> Iterator[OnStep]:
    """Give a callback ``on_step(done, total)`` that shows progress on stderr.

    Parameters
    ----------
    what
        The activity, for example ``"localizing"``.
    style
        ``"bar"`` (only on a terminal), ``"jsonl"`` or ``"none"``.
    quiet
        No bar; lines are for programs and stay.
    """
    if style == "jsonl":
        yield _line_writer(what)
    elif style == "bar" and not quiet and sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=None)

            def on_step(done: int, total: int) -> None:
                bar.update(task, completed=done, total=total)

            yield on_step
    else:
        yield lambda done, total: None


def _line_writer(what: str) -> OnStep:
    last = -math.inf

    def on_step(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done < total and now - last < SECONDS_BETWEEN_LINES:
            return
        last = now
        line = to_json({"progress": {"done": done, "total": total, "what": what}})
        print(line, file=sys.stderr, flush=True)

    return on_step
