"""Calls into ImageJ that can neither hang nor fail in silence.

ImageJ reports errors in many ways: as an exception, as a dialog that waits for somebody, in a text window, on
stdout, or to a handler. A guarded call listens to all of them and raises one Python exception.
"""

import logging
import re
import threading
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

from smlm_bridge.bridge.java import Output, java_class, jpype
from smlm_bridge.errors import SmlmError

_log = logging.getLogger(__name__)

T = TypeVar("T")

#: A modal dialog that stands for so long waits for somebody who is not there.
DIALOG_S: Final = 1.0
ABORT_S: Final = 3.0

_POLL_S: Final = 0.02
# Dialogs of ImageJ that wait for somebody without being modal.
_WAITING: Final = ("ij.gui.WaitForUserDialog", "ij.gui.NonBlockingGenericDialog")
_ESCAPE: Final = 27
_WINDOW_CLOSING: Final = 201
_PAINTING: Final = "AWT-EventQueue"
_CANCELED: Final = "Macro canceled"
# The first line of a stack trace, followed by where it happened.
_TRACE: Final = re.compile(
    r'^(?:Exception in thread "(?!AWT-EventQueue)[^"]*" )?'
    r"((?:[\w$]+\.)+[\w$]*(?:Exception|Error)\b[^\n]*)\n\s+at ",
    re.M,
)


class JavaError(SmlmError):
    """Something failed in Java; the message is Java's own."""


class DialogOpened(JavaError):
    """A dialog waited for somebody; it was closed and the call given up. The message is its text."""


class JavaTimeout(JavaError):
    """A call did not come back in time; it was told to stop and left behind."""


class Guard:
    """Runs calls into ImageJ one at a time and finds out whether they failed."""

    def __init__(self, output: Output, *, headless: bool) -> None:
        self._output = output
        self._headless = headless
        self._lock = threading.RLock()
        self._ij = java_class("ij.IJ")
        self._raised: list[str] = []
        proxy = jpype().JProxy
        handler = proxy("ij.IJ$ExceptionHandler", dict={"handle": self._note})
        uncaught = proxy(
            "java.lang.Thread$UncaughtExceptionHandler",
            dict={"uncaughtException": self._note_uncaught},
        )
        self._ij.setExceptionHandler(handler)
        java_class("java.lang.Thread").setDefaultUncaughtExceptionHandler(uncaught)
        self._handler = handler

    def _note(self, error: Any) -> None:
        text = message_of(error)
        if _CANCELED not in text:
            self._raised.append(text)

    def _note_uncaught(self, thread: Any, error: Any) -> None:
        # A window that is repainted while its table changes; nothing of the call failed.
        if str(thread.getName()).startswith(_PAINTING):
            _log.debug("while painting: %s", message_of(error))
        else:
            self._note(error)

    def call(self, action: Callable[[], T], *, what: str, timeout_s: float | None = None) -> T:
        """Run an action that calls Java, in a thread of its own.

        Raises
        ------
        JavaError
            If Java raised, or ImageJ reported an error in any of its ways.
        DialogOpened
            If a dialog opened that would wait for ever.
        JavaTimeout
            If it took longer than ``timeout_s``.
        """
        with self._lock:
            self._prepare()
            done: list[T] = []
            failed: list[BaseException] = []
            thread = threading.Thread(target=_run, args=(action, done, failed), daemon=True)
            thread.start()
            try:
                self._wait(thread, what, timeout_s)
            except BaseException:
                self._abort(thread)
                self._output.drain()
                raise
            return self._result(done, failed, what)

    def _prepare(self) -> None:
        self._output.drain()
        self._raised.clear()
        self._ij.getErrorMessage()
        self._ij.resetEscape()
        self._ij.setExceptionHandler(self._handler)  # ImageJ forgets it after its first use
        # ImageJ forgets this too, after every error.
        self._ij.redirectErrorMessages(True)

    def _wait(self, thread: threading.Thread, what: str, timeout_s: float | None) -> None:
        start = time.monotonic()
        since: float | None = None
        pause = _POLL_S / 4
        while True:
            thread.join(pause)
            if not thread.is_alive():
                return
            pause = min(pause * 2, _POLL_S * 5)
            now = time.monotonic()
            dialogs = [] if self._headless else modal_dialogs()
            since = (since or now) if dialogs else None
            if since is not None and now - since > DIALOG_S:
                text = "; ".join(text_of(dialog) for dialog in dialogs)
                for dialog in reversed(dialogs):
                    close(dialog)
                raise DialogOpened(f"{what}: a dialog opened and would wait for ever: {text}")
            if timeout_s is not None and now - start > timeout_s:
                raise JavaTimeout(
                    f"{what} did not end within {timeout_s:g} s and was told to stop. Open windows: "
                    f"{', '.join(window_titles()) or 'none'}."
                )

    def _abort(self, thread: threading.Thread) -> None:
        """Press Escape, which ImageJ's loops and ThunderSTORM look at, and close dialogs that follow."""
        interpreter = java_class("ij.macro.Interpreter")
        deadline = time.monotonic() + ABORT_S
        while thread.is_alive() and time.monotonic() < deadline:
            self._ij.setKeyDown(_ESCAPE)
            interpreter.abort()
            if not self._headless:
                for dialog in modal_dialogs():
                    close(dialog)
            thread.join(0.1)
        self._ij.setKeyUp(_ESCAPE)
        self._ij.resetEscape()

    def _result(self, done: list[T], failed: list[BaseException], what: str) -> T:
        printed = self._output.drain()
        last = self._ij.getErrorMessage()
        self._ij.redirectErrorMessages(False)
        if failed and not isinstance(failed[0], Exception):
            raise failed[0]
        if failed and isinstance(failed[0], SmlmError):
            raise failed[0]
        reported = [str(last)] if last is not None and str(last) else []
        thrown = [message_of(error) for error in failed]
        traced = [match[1] for match in _TRACE.finditer(printed) if _CANCELED not in match[1]]
        texts = [*self._raised, *reported, *thrown, *traced]
        if not texts:
            return done[0]
        told = next((text for text in texts if _CANCELED not in text), None)
        if told is None:
            said = printed.strip()
            told = said.splitlines()[-1] if said else "ImageJ cancelled the call without a reason"
        raise JavaError(f"{what}: {told}") from (failed[0] if failed else None)


def _run(action: Callable[[], T], done: list[T], failed: list[BaseException]) -> None:
    try:
        done.append(action())
    except BaseException as error:
        failed.append(error)


def message_of(error: Any) -> str:
    """Type and message of an exception of Java or Python, and of its innermost cause."""
    get_cause = getattr(error, "getCause", None)
    text = str(error.toString()) if hasattr(error, "toString") else f"{type(error).__name__}: {error}"
    seen = 0
    while get_cause is not None and (cause := get_cause()) is not None and seen < 10:
        text = f"{text.split(chr(10))[0]} (cause: {cause.toString()})" if seen == 0 else text
        get_cause, seen = cause.getCause, seen + 1
    return " ".join(text.split())


def modal_dialogs() -> list[Any]:
    """Visible dialogs that block."""
    dialog = java_class("java.awt.Dialog")
    shown = [window for window in java_class("java.awt.Window").getWindows() if window.isVisible()]
    return [
        window
        for window in shown
        if isinstance(window, dialog) and (window.isModal() or str(window.getClass().getName()) in _WAITING)
    ]


def window_titles() -> list[str]:
    """Titles of visible windows; none without a display."""
    if java_class("java.awt.GraphicsEnvironment").isHeadless():
        return []
    titled = [window for window in java_class("java.awt.Window").getWindows() if window.isVisible()]
    return [str(window.getTitle()) for window in titled if hasattr(window, "getTitle")]


def text_of(dialog: Any) -> str:
    """Title and labels of a dialog."""
    texts = [str(dialog.getTitle() or "")]
    waiting = list(dialog.getComponents())
    label = java_class("java.awt.Label")
    swing = java_class("javax.swing.JLabel")
    area = java_class("java.awt.TextComponent")
    lines = java_class("ij.gui.MultiLineLabel")
    container = java_class("java.awt.Container")
    while waiting:
        part = waiting.pop(0)
        if isinstance(part, label | swing | area):
            texts.append(str(part.getText() or ""))
        elif isinstance(part, lines):
            texts.append(_multi_line(part))
        elif isinstance(part, container):
            waiting += list(part.getComponents())
    return " | ".join(" ".join(text.split()) for text in texts if text.strip())


def _multi_line(label: Any) -> str:
    """The text of ImageJ's own label, which keeps it in a private field."""
    for name in ("text2", "lines"):
        try:
            field = label.getClass().getDeclaredField(name)
            field.setAccessible(True)
            value = field.get(label)
        except Exception:  # another version of ImageJ names it otherwise
            continue
        if value is not None:
            return " ".join(str(line) for line in value) if name == "lines" else str(value)
    return ""


def close(dialog: Any) -> None:
    """Close a dialog as its button does: that cancels, where disposing of it would let a plugin run on."""
    event = java_class("java.awt.event.WindowEvent")(dialog, _WINDOW_CLOSING)
    java_class("java.awt.Toolkit").getDefaultToolkit().getSystemEventQueue().postEvent(event)
