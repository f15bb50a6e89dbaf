"""The command line ``smlm-bridge``: parses, calls one public function a verb, reports."""

import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from types import FrameType

import click

from smlm_bridge.cli.reporting import Summary, to_json
from smlm_bridge.errors import InputRejected, SmlmError

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code.

    Parameters
    ----------
    argv
        Arguments without the name of the program; None takes those of the process.

    Returns
    -------
    int
        0 done, 1 failed while working, 2 wrong usage, 3 an input is rejected, 4 a needed program or package
        is missing, 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Read before parsing: an error of the parser itself must obey them too.
    as_json, debug, quiet = (flag in arguments for flag in ("--json", "--debug", "--quiet"))
    try:
        with _terminated_as_interrupt(), _warnings_on_stderr(quiet):
            summary = _run(arguments, as_json)
            if summary is None:
                return 0
            _write(to_json(summary.values) if as_json else summary.text)
            return summary.exit_code
    except BrokenPipeError:
        # The reader has gone; nothing more can be said on stdout, also not by the interpreter at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except BaseException as error:
        code, message = _answer(error)
        if debug:
            traceback.print_exc()
        print(f"smlm-bridge: {message}", file=sys.stderr)
        if as_json:
            _write(to_json({"error": message, "exit_code": code}))
        return code


def _run(arguments: list[str], as_json: bool) -> Summary | None:
    from smlm_bridge.cli.verbs import program

    # Whatever a library prints must not stand beside the one object on stdout.
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        try:
            # Not program.main: that writes lines of its own when it is interrupted.
            with program.make_context("smlm-bridge", arguments or ["--help"]) as context:
                result = program.invoke(context)
        except click.exceptions.Exit as end:  # of --help and --version
            return None if end.exit_code == 0 else Summary({}, exit_code=end.exit_code)
    return result if isinstance(result, Summary) else None


def _write(text: str) -> None:
    if text:
        print(text, flush=True)


def _answer(error: BaseException) -> tuple[int, str]:
    """Exit code and one line for whatever ended the verb."""
    if isinstance(error, KeyboardInterrupt | click.exceptions.Abort):
        return EXIT_INTERRUPTED, "interrupted; no output was left incomplete."
    if isinstance(error, click.ClickException):
        hint = ""
        if isinstance(error, click.UsageError) and error.ctx is not None:
            hint = f" See '{error.ctx.command_path} --help'."
        return error.exit_code, _one_line(error.format_message()) + hint
    if isinstance(error, SmlmError):
        return error.exit_code, _one_line(str(error))
    if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError | PermissionError):
        named = f" '{error.filename}'" if error.filename else ""
        return (
            InputRejected.exit_code,
            f"cannot open{named}: {error.strerror}. Give a path that can be opened.",
        )
    if isinstance(error, SystemExit):
        return (error.code if isinstance(error.code, int) else EXIT_FAILED), "ended early."
    if isinstance(error, MemoryError):
        return EXIT_FAILED, f"out of memory: {_one_line(str(error))} Give fewer frames or a smaller region."
    text = _one_line(str(error)) or "no message"
    return EXIT_FAILED, f"failed while working: {type(error).__name__}: {text} (--debug shows where)"


def _one_line(text: str) -> str:
    return " ".join(text.split())


@contextmanager
def _terminated_as_interrupt() -> Iterator[None]:
    """Let SIGTERM unwind the stack as Ctrl-C does, so that temporary files are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _warnings_on_stderr(quiet: bool) -> Iterator[None]:
    """One line on stderr for each warning and entry of the log; none with ``--quiet``."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: object = None,
        line: str | None = None,
    ) -> None:
        # A library's plans for its own interface are no news for people who localize.
        if not quiet and not issubclass(category, DeprecationWarning | FutureWarning):
            print(f"smlm-bridge: WARNING: {_one_line(str(message))}", file=sys.stderr)

    log = logging.getLogger("smlm_bridge")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("smlm-bridge: %(levelname)s: %(message)s"))
    handler.setLevel(logging.ERROR if quiet else logging.WARNING)
    log.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show
            yield
    finally:
        log.removeHandler(handler)
