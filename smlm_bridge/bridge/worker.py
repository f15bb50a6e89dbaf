"""The text protocol by which Fiji, or any Appose service, runs verbs: one JSON message a line.

The messages are those of Appose (https://github.com/apposed/appose, Workers), so its clients in Java and Python
drive this worker; ``script`` is not code but the name of a verb. docs/reference/worker.md lists them. Every task
runs in a process of its own: whatever it prints or however it dies, the protocol's stdout stays clean, and a
cancel ends it. Its stdin is its lifeline: when that closes, because of a cancel or because the worker died, the
verb is interrupted and cleans up.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TextIO

from smlm_bridge.errors import InputRejected

GRACE_S: Final = 20.0
LOG_LINES: Final = 200
#: What the worker says itself on the command line of every verb.
OWN_OPTIONS: Final = ("json", "progress")


@dataclass(frozen=True)
class Request:
    """One line of the service.

    Parameters
    ----------
    task
        The name that the service gave the task.
    kind
        EXECUTE or CANCEL.
    verb
        What is run, as ``smlm-bridge VERB``.
    words
        Its command line; an array in shared memory is a mapping as Appose describes it.
    """

    task: str
    kind: str
    verb: str = ""
    words: tuple[Any, ...] = ()


def parse_request(line: str) -> Request:
    """Read one message.

    Raises
    ------
    InputRejected
        If it is no JSON object, or names no task, no known request or no verb.
    """
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputRejected(f"a request is one JSON object a line; this is none: {error}.") from error
    if not isinstance(message, dict) or not isinstance(message.get("task"), str):
        raise InputRejected("a request is a JSON object with a text 'task'.")
    kind = message.get("requestType")
    if kind == "CANCEL":
        return Request(message["task"], "CANCEL")
    if kind != "EXECUTE":
        raise InputRejected(f"requestType is EXECUTE or CANCEL, got {kind!r}.")
    verb = message.get("script")
    if not isinstance(verb, str) or not verb.strip() or verb.strip().startswith("-"):
        raise InputRejected(
            f"'script' is the name of a verb ('smlm-bridge --help' lists them), got {verb!r}."
        )
    return Request(message["task"], "EXECUTE", verb.strip(), words_of(message.get("inputs") or {}))


def words_of(inputs: Mapping[str, Any]) -> tuple[Any, ...]:
    """The command line that inputs stand for.

    ``arguments`` (a list) comes first, as it is; every other key is an option: true is a flag, false and null
    leave it out, a list repeats it. Values are texts, numbers, or arrays in shared memory.

    Raises
    ------
    InputRejected
        If ``inputs`` is no object, an option is the worker's own, or a value is an object of another kind.
    """
    if not isinstance(inputs, Mapping):
        raise InputRejected(f"'inputs' is a JSON object, got {inputs!r}.")
    arguments = inputs.get("arguments", [])
    if not isinstance(arguments, list):
        raise InputRejected("'arguments' is a list of texts, as on the command line.")
    words = [_word("arguments", value) for value in arguments]
    for key, value in inputs.items():
        name = key.replace("_", "-")
        if key == "arguments" or value is None or value is False:
            continue
        if name in OWN_OPTIONS:
            raise InputRejected(f"the option --{name} is the worker's own; leave it out.")
        for item in value if isinstance(value, list) else [value]:
            if item is True:
                words.append(f"--{name}")
            else:
                shown = _word(key, item)
                words += [f"--{name}={shown}"] if isinstance(shown, str) else [f"--{name}", shown]
    return tuple(words)


def _word(key: str, value: Any) -> Any:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return repr(value)
    if isinstance(value, Mapping) and value.get("appose_type") == "ndarray":
        return dict(value)
    raise InputRejected(
        f"'{key}' takes texts, numbers and arrays in shared memory (appose_type ndarray), got {value!r}."
    )


def serve(
    requests: Iterable[str], responses: TextIO, *, child: Sequence[str], grace_s: float = GRACE_S
) -> int:
    """Answer requests until their stream ends and the tasks in progress are done.

    Parameters
    ----------
    requests, responses
        Lines of JSON in and out.
    child
        Command that runs one task: ``worker_child.run_task`` with the program's ``main``.
    grace_s
        A cancelled task is killed, and its temporary files removed, when it has not ended after this time.

    Returns
    -------
    int
        Number of tasks that were run.
    """
    worker = _Worker(responses, tuple(child), grace_s)
    try:
        for line in requests:
            if line.strip():
                worker.take(line)
        worker.wait()
    except BaseException:
        worker.cancel_all()
        raise
    return worker.taken


class _Worker:
    """The tasks, and the one place that writes messages."""

    def __init__(self, responses: TextIO, child: tuple[str, ...], grace_s: float) -> None:
        self.tasks: dict[str, _Task] = {}
        self.taken = 0
        self.child, self.grace_s = child, grace_s
        self._responses, self._lock = responses, threading.Lock()
        self._gone = False

    def take(self, line: str) -> None:
        try:
            request = parse_request(line)
        except InputRejected as error:
            self.respond(_task_of(line), "FAILURE", error=str(error), exit_code=error.exit_code, log=[])
            return
        known = self.tasks.get(request.task)
        if request.kind == "CANCEL":
            if known is not None:  # one that is not known any more has answered already
                known.cancel()
        elif known is not None and known.thread.is_alive():
            # An answer would pass for that of the task in progress.
            print(f"smlm-bridge: there is a task {request.task} already; left out.", file=sys.stderr)
        else:
            self.tasks[request.task] = task = _Task(self, request)
            self.taken += 1
            task.thread.start()

    def respond(self, task: str | None, kind: str, **values: Any) -> None:
        """Write one message; when nobody listens any more, every task is cancelled."""
        text = json.dumps({**values, "task": task, "responseType": kind})
        with self._lock:
            if self._gone:
                return
            try:
                self._responses.write(text + "\n")
                self._responses.flush()
                return
            except (OSError, ValueError):
                self._gone = True
        for other in list(self.tasks.values()):
            other.cancel()

    def wait(self) -> None:
        for task in list(self.tasks.values()):
            task.thread.join()

    def cancel_all(self) -> None:
        for task in list(self.tasks.values()):
            task.cancel()
        self.wait()


def _task_of(line: str) -> str | None:
    """The task of a message that is otherwise wrong, so that its service hears of it."""
    try:
        task = json.loads(line)["task"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return task if isinstance(task, str) else None


@dataclass
class _Task:
    """One verb in a process of its own."""

    worker: _Worker
    request: Request
    log: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._run, name=f"task-{self.request.task}", daemon=True)
        self._cancelled = self._killed = False
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def cancel(self) -> None:
        """Close the lifeline, which interrupts the verb; kill it where that does not help in time."""
        with self._lock:
            if self._cancelled:
                return
            self._cancelled = True
            process = self._process
        if process is not None:
            _close(process)
            threading.Thread(target=self._kill_late, args=(process,), daemon=True).start()

    def _run(self) -> None:
        self._respond("LAUNCH")
        began = time.time()
        words = ("--json", "--progress=jsonl", *self.request.words)
        outputs = _Outputs(self.request.words)
        with tempfile.TemporaryDirectory(prefix="smlm-bridge-", ignore_cleanup_errors=True) as folder:
            try:
                code, text = self._call([self.request.verb, *words], folder)
            except OSError as error:
                self._respond("FAILURE", error=f"Python cannot be started: {error}.", exit_code=1, log=[])
                return
        if self._cancelled and code != 0:
            if self._killed:
                outputs.sweep(since=began)
            outputs.remove_new_parts()
            self._respond("CANCELATION")
            return
        self._answer(code, text)

    def _call(self, words: list[Any], folder: str) -> tuple[int, str]:
        """Exit code and stdout of the verb; its stderr becomes UPDATE messages."""
        process = _start(self.worker.child)
        with self._lock:
            self._process = process
            cancelled = self._cancelled
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            process.stdin.write(json.dumps({"words": words, "folder": folder}) + "\n")
            process.stdin.flush()
        except OSError:
            pass  # it died at once; its stderr and exit code say why
        if cancelled:
            _close(process)
            threading.Thread(target=self._kill_late, args=(process,), daemon=True).start()
        answer: list[str] = []
        stdout = process.stdout
        reader = threading.Thread(target=lambda: answer.append(stdout.read()), daemon=True)
        reader.start()
        with process.stderr, stdout:
            for line in process.stderr:
                self._said(line.rstrip())
            reader.join()
        code = process.wait()
        _close(process)
        return code, "".join(answer)

    def _said(self, line: str) -> None:
        """One line of the verb's stderr: progress, or the log."""
        if line.startswith('{"progress"'):
            try:
                step = json.loads(line)["progress"]
                self._respond(
                    "UPDATE", message=step["what"], current=step["done"], maximum=step["total"], info=None
                )
                return
            except (ValueError, KeyError, TypeError):
                pass
        if line:
            self.log.append(line)
            del self.log[:-LOG_LINES]
            self._respond("UPDATE", message=line, info=None)

    def _answer(self, code: int, text: str) -> None:
        last = text.strip().splitlines()[-1:]
        try:
            values = json.loads(last[0]) if last else None
        except ValueError:
            values = None
        if isinstance(values, dict) and "error" not in values:
            # A verb that finished and complains (doctor, run) still has results.
            self._respond("COMPLETION", outputs=values if code == 0 else {**values, "exit_code": code})
        elif code == 0:  # --help
            self._respond("COMPLETION", outputs={"text": text})
        else:
            error = values["error"] if isinstance(values, dict) else _ended(code)
            self._respond("FAILURE", error=error, exit_code=code, log=self.log)

    def _respond(self, kind: str, **values: Any) -> None:
        self.worker.respond(self.request.task, kind, **values)

    def _kill_late(self, process: "subprocess.Popen[str]") -> None:
        try:
            process.wait(self.worker.grace_s)
        except subprocess.TimeoutExpired:
            self._killed = True
            if sys.platform != "win32":
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()


def _start(child: Sequence[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        child,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        start_new_session=True,  # a Ctrl-C is the worker's, which cancels; kill reaches processes of --workers
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
    )


def _close(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError):  # it had ended before it read everything
        process.stdin.close()


def _ended(code: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name if -code in {int(one) for one in signal.Signals} else str(-code)
        return f"Python was ended by signal {name} (SIGKILL often means that the memory was used up)."
    return f"Python ended with exit code {code} and no answer; its log says why."


class _Outputs:
    """The files that words of a command line may name: what a task leaves beside them when it is stopped."""

    def __init__(self, words: Sequence[Any]) -> None:
        texts = [
            word.partition("=")[2] if word.startswith("--") else word
            for word in words
            if isinstance(word, str)
        ]
        self._paths = [Path(text) for text in texts if text and len(text) < 4096 and "\0" not in text]
        self._keep = any(str(word).startswith(("--resume", "--shard")) for word in words)
        self._before = {path for path in self._parts() if path.exists()}

    def _parts(self) -> list[Path]:
        return [path.with_name(path.name + ".parts") for path in self._paths if path.name]

    def sweep(self, *, since: float) -> None:
        """Remove the temporary files of a task that was killed (see ``io.atomic``)."""
        for path in self._paths:
            try:
                found = [one for one in path.parent.iterdir() if one.name[9:] == f"~{path.name}"]
                for temporary in found:
                    if temporary.name.startswith(".") and temporary.stat().st_mtime >= since - 1:
                        temporary.unlink()
            except OSError:
                continue  # no folder, or gone meanwhile

    def remove_new_parts(self) -> None:
        """Remove parts of a table that this task began; those of a run to be resumed stay."""
        if self._keep:
            return
        for parts in self._parts():
            if parts not in self._before and parts.is_dir():
                shutil.rmtree(parts, ignore_errors=True)
