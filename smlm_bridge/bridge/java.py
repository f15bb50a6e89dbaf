"""One Java virtual machine a process: found, started, kept off our stdout, and ended without hanging."""

import atexit
import contextlib
import importlib
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from smlm_bridge._optional import require
from smlm_bridge.errors import MissingDependency, SmlmError

_log = logging.getLogger(__name__)

#: Lets javassist and the bridge define classes; Java 17 forbids it without.
OPENS: Final = "--add-opens=java.base/java.lang=ALL-UNNAMED"
#: The virtual machine's own messages; its default is stdout.
MESSAGES_TO_STDERR: Final = "-XX:+DisplayVMOutputToStderr"
LEAST_JAVA: Final = 8

_THREADS_END_S: Final = 3.0
_INSTALL_JAVA: Final = "install a JDK 17 or 21 (Debian: apt install default-jdk) or set JAVA_HOME"


def jpype() -> ModuleType:
    """JPype, or what to install.

    Raises
    ------
    MissingDependency
        If JPype is not installed.
    """
    return require("jpype", extra="fiji")


def java_class(name: str) -> Any:
    """A class of the running virtual machine."""
    return jpype().JClass(name)


def is_running() -> bool:
    """Whether this process has a virtual machine."""
    return "jpype" in sys.modules and bool(jpype().isJVMStarted())


def find_jvm() -> Path:
    """The library of the virtual machine.

    Raises
    ------
    MissingDependency
        If there is no Java, or ``JAVA_HOME`` points to none.
    """
    try:
        return Path(str(jpype().getDefaultJVMPath()))
    except (FileNotFoundError, OSError) as error:  # JVMNotFoundException is a FileNotFoundError
        home = os.environ.get("JAVA_HOME")
        given = f" (JAVA_HOME is {home})" if home else ""
        raise MissingDependency(f"no Java was found{given}: {_INSTALL_JAVA}.") from error


def home_of(library: Path) -> Path:
    """The directory of the Java whose virtual machine's library this is (JAVA_HOME)."""
    return next((folder for folder in library.parents if (folder / "bin").is_dir()), library.parent)


def java_version() -> tuple[int, str] | None:
    """Major version and first line of ``java -version``; None without Java on the path or in JAVA_HOME."""
    home = os.environ.get("JAVA_HOME")
    program = shutil.which("java", path=os.path.join(home, "bin")) if home else None
    program = program or shutil.which("java")
    if program is None:
        return None
    try:
        answer = subprocess.run([program, "-version"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    first = next(iter((answer.stderr or answer.stdout).strip().splitlines()), "")
    match = re.search(r'"(?:1\.)?(\d+)', first)
    return (int(match[1]) if match else 0), f"{first} ({program})"


def start(jars: Sequence[Path], options: Sequence[str]) -> None:
    """Start the virtual machine with exactly these jars, nothing fetched, nothing on stdout.

    Raises
    ------
    MissingDependency
        If there is no Java.
    SmlmError
        If the process has or had a virtual machine already: there is one a process.
    """
    library = find_jvm()
    module = jpype()
    try:
        with stdout_kept():
            module.startJVM(
                str(library),
                *options,
                MESSAGES_TO_STDERR,
                classpath=[str(jar) for jar in jars],
                convertStrings=False,
                ignoreUnrecognized=True,
            )
    except OSError as error:
        raise SmlmError(
            f"Java could not be started: {error}. A process has one virtual machine, which cannot be started "
            "again; take a new process."
        ) from error
    settle()


def settle() -> None:
    """What every virtual machine needs once it runs: an end without hanging."""
    atexit.register(_end)


@contextlib.contextmanager
def stdout_kept() -> Iterator[None]:
    """Send what is written to file descriptor 1 to stderr, also by code that is not Python's."""
    sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # a program without stdout
        yield
        return
    try:
        os.dup2(2, 1)
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


class Output:
    """Java's stdout and stderr, caught in memory: they must not reach ours."""

    def __init__(self) -> None:
        self._bytes = java_class("java.io.ByteArrayOutputStream")()
        system = java_class("java.lang.System")
        stream = java_class("java.io.PrintStream")(self._bytes, True)
        system.setOut(stream)
        system.setErr(stream)

    def drain(self) -> str:
        """What was printed since the last call."""
        text = str(self._bytes.toString())
        self._bytes.reset()
        if text.strip():
            _log.debug("Java printed: %s", text.rstrip())
        return text


def _end() -> None:
    """End what would keep the process alive: ImageJ's pool, windows; then let go of what is left.

    Java waits at its end for every thread that is no daemon: ImageJ's pool after a parallel filter, AWT while a
    window is open, plugins. Whatever does not end by itself is left behind.
    """
    if not is_running():
        return
    with contextlib.suppress(Exception):
        pool = java_class("ij.util.ThreadUtil").threadPoolExecutor
        pool.shutdownNow()
    with contextlib.suppress(Exception):
        if not java_class("java.awt.GraphicsEnvironment").isHeadless():
            for window in java_class("java.awt.Window").getWindows():
                window.dispose()
    deadline = time.monotonic() + _THREADS_END_S
    while _living() and time.monotonic() < deadline:
        time.sleep(0.05)
    if _living():
        with contextlib.suppress(Exception):
            java_class("org.jpype.ref.JPypeReferenceQueue").getInstance().stop()
        config: Any = importlib.import_module("jpype.config")
        config.onexit = False


def _living() -> list[str]:
    """Names of Java's threads that would keep the process alive."""
    with contextlib.suppress(Exception):
        threads = java_class("java.lang.Thread")
        mine = threads.currentThread().getId()
        ours = {"DestroyJavaVM", "main", threading.main_thread().name}
        return [
            str(thread.getName())
            for thread in threads.getAllStackTraces().keySet()
            if not thread.isDaemon() and thread.getId() != mine and str(thread.getName()) not in ours
        ]
    return []
