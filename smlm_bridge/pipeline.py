"""Many movies through the same steps: what is done is skipped, what was interrupted goes on, failures are listed.

Every file of the input gets a folder of its own. ``pipeline.json`` in it records for each step a fingerprint of
everything that decides its result: the input, the options, files that options name, and the version of this
package. A step whose record agrees and whose outputs are still as it left them is not run again. Which steps
there are and how one is run is the caller's business (``cli.run``).
"""

import hashlib
import json
import os
import re
import shutil
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
)

from smlm_bridge import __version__
from smlm_bridge._optional import require
from smlm_bridge.errors import InputRejected
from smlm_bridge.io.atomic import atomic_output

RECORD: Final = "pipeline.json"
_LOCK: Final = ".pipeline.lock"
_ENDS_BYTES: Final = 2**20  # of a movie's two ends that are hashed: all of it would take minutes
_MOST_BRACKETS = 1000
_LARGEST_FILE_BYTES: Final = 2**20
_LEFT_OVER: Final = re.compile(r"\.[0-9a-f]{8}~")  # names of io.atomic's unfinished files

Value = StrictBool | StrictInt | StrictFloat | StrictStr | list[StrictStr | StrictInt | StrictFloat]
Summary = Mapping[str, object]


class Pipeline(BaseModel):
    """A pipeline file, its keys and types checked.

    Attributes
    ----------
    input
        A file, a folder or a pattern; relative to the pipeline file.
    output
        The folder of the results, likewise.
    pattern
        Which files of a folder; None for all that the first step can read.
    steps
        In their order: one name each, and its options as the command line calls them, without the dashes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: StrictStr
    output: StrictStr
    pattern: StrictStr | None = None
    steps: list[dict[StrictStr, dict[StrictStr, Value] | None]] = Field(min_length=1)

    @property
    def named_steps(self) -> list[tuple[str, dict[str, Any]]]:
        """Name and options of every step."""
        return [(name, dict(options or {})) for step in self.steps for name, options in step.items()]


@dataclass(frozen=True)
class Step:
    """One step, ready to run on any file.

    Parameters
    ----------
    label
        The beginning of the names of its outputs, for example ``2-drift``.
    outputs
        Names of its output files; the first is the main one.
    passes_on
        Whether the main output is what the next step reads; else that is what this one read.
    fingerprint
        Of its options.
    run
        Called with the input and the folder of the outputs; gives the summary that is recorded.
    """

    label: str
    outputs: tuple[str, ...]
    passes_on: bool
    fingerprint: str
    run: Callable[[Path, Path], Summary]


@dataclass(frozen=True)
class Outcome:
    """What became of one file: labels of the steps that ran and of those that were done before."""

    ran: tuple[str, ...]
    skipped: tuple[str, ...]


def load_pipeline(path: str | Path) -> Pipeline:
    """Read a pipeline from YAML (.yaml, .yml) or TOML (.toml).

    Raises
    ------
    InputRejected
        If the file cannot be read, is neither, or has a key or a value that a pipeline has not.
    MissingDependency
        If it is YAML and PyYAML is not installed.
    """
    file = Path(path)
    try:
        if file.stat().st_size > _LARGEST_FILE_BYTES:
            raise InputRejected(f"pipeline {path} has more than 1 MB; a pipeline is a page of text.")
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputRejected(f"pipeline {path} cannot be read as text: {error}.") from error
    data = _parse(text, file)
    if not isinstance(data, dict):
        raise InputRejected(f"pipeline {path} must have the keys input, output and steps.")
    try:
        pipeline = Pipeline.model_validate(data)
    except ValidationError as error:
        raise InputRejected(f"pipeline {path}: {_first_error(error)}") from error
    for number, step in enumerate(pipeline.steps, start=1):
        if len(step) != 1:
            raise InputRejected(
                f"pipeline {path}: step {number} has the names {', '.join(step) or 'none'}; each step is one "
                "entry of the list, '- drift: {...}' in YAML and [[steps]] in TOML."
            )
    return pipeline


def _parse(text: str, file: Path) -> Any:
    kind = file.suffix.lower()
    if kind == ".toml":
        try:
            return tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise InputRejected(f"pipeline {file} is not TOML: {error}.") from error
    if kind in (".yaml", ".yml"):
        yaml = require("yaml", extra="pipelines")
        if text.count("[") + text.count("{") > _MOST_BRACKETS:  # the parser is slow at deep nesting
            raise InputRejected(f"pipeline {file} has over {_MOST_BRACKETS} brackets; it is a page of text.")
        try:
            return yaml.safe_load(text)
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            raise InputRejected(f"pipeline {file} is not YAML: {error}.") from error
    raise InputRejected(
        f"pipeline {file} is a {kind or 'nameless'} file; a pipeline is .yaml, .yml or .toml."
    )


def _first_error(error: ValidationError) -> str:
    """The first complaint in words, without the values of the file."""
    complaints = error.errors(include_url=False, include_input=False)
    # A key that is not known explains one that is missing.
    first = min(complaints, key=lambda complaint: complaint["type"] != "extra_forbidden")
    # Of a union pydantic appends the alternative it tried, which is no key of the file.
    keys = [part for part in first["loc"] if isinstance(part, int) or re.fullmatch(r"[\w-]+", str(part))]
    place = ".".join(str(part + 1) if isinstance(part, int) else part for part in keys if part not in _KINDS)
    allowed = ", ".join(Pipeline.model_fields)
    return f"{place}: {first['msg'].lower()}. The keys are {allowed}; an option is a text, a number or true."


_KINDS: Final = ("str", "int", "float", "bool", "dict")


def fingerprint(*parts: object) -> str:
    """One name for everything that decides a result: JSON values, in their order, and this package's version."""
    text = json.dumps([__version__, *parts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def source_fingerprint(path: Path) -> str:
    """Name of a movie's content: sizes, times of change, and both ends of a file; of a folder, of all in it.

    Raises
    ------
    FileNotFoundError
        If it is not there.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return fingerprint([(str(file.relative_to(path)), *_stat(file)) for file in files])
    with path.open("rb") as file:
        first = file.read(_ENDS_BYTES)
        file.seek(-min(_ENDS_BYTES, path.stat().st_size), os.SEEK_END)
        ends = hashlib.sha256(first + file.read()).hexdigest()
    return fingerprint(*_stat(path), ends)


def content_fingerprint(path: Path) -> str:
    """Name of a file's whole content; a folder as in ``source_fingerprint``."""
    if path.is_dir():
        return source_fingerprint(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stat(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def process(
    source: Path,
    folder: Path,
    steps: Sequence[Step],
    *,
    again: bool = False,
    on_step: Callable[[str], None] | None = None,
) -> Outcome:
    """Take one file through the steps that are not done yet.

    Parameters
    ----------
    source
        The movie or table.
    folder
        Where its outputs and its record are; made if need be.
    steps
        In their order.
    again
        Run all of them.
    on_step
        Called with the label of a step before it runs.

    Raises
    ------
    Exception
        Whatever a step raises; the record keeps what was done before.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record = {} if again else _read_record(folder / RECORD)
    current, state = source, source_fingerprint(source)
    ran, skipped = [], []
    for step in steps:
        print_of_step = fingerprint(state, step.fingerprint, step.label)
        if _is_done(record.get(step.label), print_of_step, step, folder):
            skipped.append(step.label)
        else:
            if on_step is not None:
                on_step(step.label)
            _run_step(step, current, folder, record, print_of_step)
            ran.append(step.label)
        if step.passes_on:
            current, state = folder / step.outputs[0], print_of_step
    return Outcome(tuple(ran), tuple(skipped))


def _run_step(
    step: Step, source: Path, folder: Path, record: dict[str, dict[str, Any]], print_of_step: str
) -> None:
    """Run a step; what it left when it was interrupted in the same state stays, for it to go on with."""
    interrupted = record.get(step.label, {}).get("fingerprint") == print_of_step
    _remove_outputs(folder, step, keep_parts=interrupted)
    began = time.monotonic()
    record[step.label] = {"fingerprint": print_of_step}
    _write_record(folder / RECORD, record)
    summary = dict(step.run(source, folder))
    record[step.label] |= {
        "input": source.name,
        "outputs": {name: content_fingerprint(folder / name) for name in step.outputs},
        "summary": summary,
        "seconds": round(time.monotonic() - began, 3),
        "version": __version__,
    }
    _write_record(folder / RECORD, record)


def _is_done(entry: Mapping[str, Any] | None, print_of_step: str, step: Step, folder: Path) -> bool:
    """Whether the record agrees and the outputs are as the step left them."""
    if not entry or entry.get("fingerprint") != print_of_step or "outputs" not in entry:
        return False
    if set(entry["outputs"]) != set(step.outputs):
        return False
    return all(
        (folder / name).is_file() and content_fingerprint(folder / name) == content
        for name, content in entry["outputs"].items()
    )


def _remove_outputs(folder: Path, step: Step, *, keep_parts: bool) -> None:
    """Remove what an earlier run of this step left, and unfinished files of a run that was killed."""
    beginnings = (f"{step.label}.", f"{Path(step.outputs[0]).stem}.")
    for path in folder.iterdir():
        own = path.name in step.outputs or (path.name != RECORD and path.name.startswith(beginnings))
        if path.is_dir():
            if own and not keep_parts:
                shutil.rmtree(path)
        elif own or _LEFT_OVER.match(path.name):
            path.unlink()


def _read_record(path: Path) -> dict[str, dict[str, Any]]:
    """The record, empty where there is none or it cannot be read: then everything is done again."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict) or not all(isinstance(entry, dict) for entry in found.values()):
        return {}
    return found


def _write_record(path: Path, record: Mapping[str, Any]) -> None:
    with atomic_output(path, overwrite=True) as temporary:
        temporary.write_text(json.dumps(record, indent=2, default=str) + "\n", encoding="utf-8")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a second run out of the same folder, where the system can (POSIX).

    Raises
    ------
    InputRejected
        If another run works there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with open(folder / _LOCK, "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputRejected(
                f"another run works in {folder}; wait for it, or choose another output."
            ) from error
        yield


def arrivals(
    find: Callable[[], Sequence[Path]],
    *,
    settle_s: float,
    poll_s: float,
    idle_s: float | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Path]:
    """Files of a folder as they are finished, for ever or until none has come for ``idle_s``.

    A file is finished when neither its size nor its time of change has moved for ``settle_s``; one that is
    changed afterwards comes again.
    """
    seen: dict[Path, tuple[object, float]] = {}
    given: dict[Path, object] = {}
    last = clock()
    while True:
        for path in find():
            state = _state(path)
            if state is None or given.get(path) == state:
                continue
            if seen.get(path, (None, 0.0))[0] != state:
                seen[path] = state, clock()
                last = clock()
            if clock() - seen[path][1] >= settle_s:
                given[path] = state
                yield path
                last = clock()
        if idle_s is not None and clock() - last >= idle_s:
            return
        sleep(poll_s)


def _state(path: Path) -> object:
    """Sizes and times of a file or of all in a folder; None where it has gone."""
    try:
        if path.is_dir():
            return [_stat(file) for file in sorted(path.rglob("*")) if file.is_file()]
        return _stat(path)
    except FileNotFoundError:
        return None
