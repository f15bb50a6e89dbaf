"""One way into ImageJ, whichever ImageJ it is: ``gateway()`` starts it, everything after is shared."""

import contextlib
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, get_args

import pandas as pd
from numpy.typing import NDArray

from smlm_bridge.bridge import back_ends, images, java
from smlm_bridge.bridge.calls import Guard, JavaError
from smlm_bridge.bridge.jars import FIJI_VARIABLE, fiji_directory, plugin_jars
from smlm_bridge.bridge.macro import Value, option_text
from smlm_bridge.errors import InputRejected, MissingDependency, SmlmError, UsageError

BackEnd = Literal["auto", "ij1", "pyimagej"]
Mode = Literal["headless", "display", "xvfb"]

_QUIT: Final = re.compile(r"""\brun\s*\(\s*["']Quit["']|\beval\s*\(\s*["']script["'].*System\.exit""", re.S)


@dataclass(frozen=True)
class GatewayOptions:
    """Which ImageJ, and how it is started.

    Parameters
    ----------
    back_end
        ``ij1``: plain ImageJ 1. ``pyimagej``: a Fiji directory or endpoints. ``auto``: ``pyimagej`` where a Fiji
        is given or named by ``SMLM_BRIDGE_FIJI``, else ``ij1``.
    mode
        ``headless``: no display at all. ``display``: on the display of this session. ``xvfb``: on a virtual
        display that is started for it.
    jar
        Of ImageJ 1; absent: ``SMLM_BRIDGE_IJ_JAR``, else Maven Central's where it must run headless, else the
        system's, else Maven Central's.
    fiji
        A Fiji directory.
    endpoint
        What pyimagej fetches, for example ``sc.fiji:fiji``; not beside ``fiji``.
    plugins
        Folders with plugins, or jars of plugins.
    memory
        Heap of Java.
    """

    back_end: BackEnd = "auto"
    mode: Mode = "headless"
    jar: Path | None = None
    fiji: Path | None = None
    endpoint: str | None = None
    plugins: tuple[Path, ...] = ()
    memory: str = "2g"

    def __post_init__(self) -> None:
        for name, kinds in (("back_end", BackEnd), ("mode", Mode)):
            if getattr(self, name) not in get_args(kinds):
                raise InputRejected(
                    f"{name} '{getattr(self, name)}' is unknown; there are {', '.join(get_args(kinds))}."
                )
        if self.fiji is not None and self.endpoint is not None:
            raise InputRejected("a Fiji directory and an endpoint were given; give one of them.")
        if not re.fullmatch(r"\d+[mMgG]", self.memory):
            raise InputRejected(f"memory '{self.memory}' is no size for Java; give for example 2g or 800m.")
        if self.back_end == "ij1" and (self.fiji is not None or self.endpoint is not None):
            raise InputRejected("the back end ij1 starts no Fiji; leave fiji and endpoint, or take pyimagej.")
        if self.back_end == "pyimagej" and self.jar is not None:
            raise InputRejected(
                "the back end pyimagej takes no ij.jar; give a Fiji directory or an endpoint."
            )


class Gateway:
    """A running ImageJ. Made by ``gateway``; there is one a process."""

    def __init__(self, started: "back_ends.Started", options: GatewayOptions) -> None:
        self.options = options
        self.back_end = started.back_end
        self.jars = started.jars
        self.headless = bool(java.java_class("java.awt.GraphicsEnvironment").isHeadless())
        self._output = java.Output()
        self._guard = Guard(self._output, headless=self.headless)
        self._ij = java.java_class("ij.IJ")
        self.imagej_version = str(self._ij.getVersion())

    def call(self, action: Any, *, what: str, timeout_s: float | None = None) -> Any:
        """Run an action that calls Java so that it can neither hang nor fail in silence (``calls.Guard``)."""
        return self._guard.call(action, what=what, timeout_s=timeout_s)

    def java_class(self, name: str) -> Any:
        """A class of Java, plugins' classes too.

        Raises
        ------
        JavaError
            If there is none of the name.
        """
        try:
            return java.java_class(name)
        except (TypeError, java.jpype().JException) as error:
            # Classes of a plugins folder are only known to ImageJ's own loader.
            with contextlib.suppress(java.jpype().JException):
                found = self._ij.getClassLoader().loadClass(name)
                return java.jpype().JClass(found)
            raise JavaError(f"Java has no class {name}; the jar it is in is not loaded.") from error

    def commands(self) -> Mapping[str, str]:
        """Names of the commands of the menus, and the class that each runs."""
        table = java.java_class("ij.Menus").getCommands()
        return {} if table is None else {str(key): str(table.get(key)) for key in table.keySet()}

    def run(
        self,
        command: str,
        options: Mapping[str, Value] | str | None = None,
        *,
        image: Any = None,
        timeout_s: float | None = None,
    ) -> Any:
        """Run a command of the menus, as a macro's ``run(command, options)`` does, and report its errors.

        Parameters
        ----------
        command
            As in the menu.
        options
            Names and values (see ``macro.option_text``), or the text as recorded.
        image
            The ImagePlus it works on. Give it: the active image may be somebody else's.
        timeout_s
            Give up after so long.

        Returns
        -------
        The image, as the command left it.

        Raises
        ------
        JavaError
            If the command does not exist, its class is missing, or it failed in any way.
        """
        text = options if isinstance(options, str) else option_text(options or {})
        self._check_command(command)

        def action() -> Any:
            if image is not None:
                self._ij.run(image, command, text)
            else:
                self._ij.run(command, text)
            return image

        return self.call(action, what=f'"{command}"', timeout_s=timeout_s)

    def _check_command(self, command: str) -> None:
        """Refuse what ImageJ would answer with a dialog or not at all."""
        if command.strip().lower() == "quit":
            raise UsageError("'Quit' would end this process; end the program instead.")
        known = self.commands()
        name = known.get(command)
        if name is None:
            import difflib

            near = difflib.get_close_matches(command, known, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise JavaError(f"ImageJ {self.imagej_version} has no command '{command}'.{hint}")
        plain = name.partition("(")[0]
        try:
            self.java_class(plain)
        except JavaError as error:
            raise JavaError(
                f"the command '{command}' needs the class {plain}, which is in no jar."
            ) from error

    def run_macro(self, code: str, argument: str = "", *, timeout_s: float | None = None) -> str | None:
        """Run a macro of ImageJ 1 and return what it returns.

        Parameters
        ----------
        code
            The macro's text.
        argument
            What ``getArgument()`` gives.
        timeout_s
            Give up after so long; a macro can loop for ever.

        Raises
        ------
        JavaError
            If it has an error (the message names the line), calls ``exit`` with a message, or a command in it
            failed.
        """
        if _QUIT.search(code):
            raise UsageError("the macro runs 'Quit', which would end this process; take that line out.")
        interpreter = java.java_class("ij.macro.Interpreter")()
        interpreter.setIgnoreErrors(True)

        def failure(reason: str) -> JavaError:
            return JavaError(f"the macro failed in line {interpreter.getLineNumber()}: {reason}")

        def action() -> str | None:
            try:
                value = interpreter.run(code, argument)
            except Exception as error:
                message = interpreter.getErrorMessage()
                text = str(message or self._ij.getErrorMessage() or self._output.drain().strip() or error)
                if "Macro canceled" in text:
                    return None  # exit; without a message
                raise failure(text) from error
            message = interpreter.getErrorMessage()
            if message is not None and str(message):
                raise failure(str(message))
            return None if value is None else str(value)

        result: str | None = self.call(action, what="the macro", timeout_s=timeout_s)
        return result

    def to_image(self, frames: NDArray[Any], *, title: str = "frames", pixel_nm: float | None = None) -> Any:
        """See ``images.to_image``."""
        return images.to_image(frames, title=title, pixel_nm=pixel_nm)

    def from_image(self, image: Any) -> NDArray[Any]:
        """See ``images.from_image``."""
        return images.from_image(image)

    def open_image(self, path: str | Path) -> Any:
        """An image file opened by ImageJ.

        Raises
        ------
        JavaError
            If ImageJ cannot open it.
        """
        place = Path(path).resolve()
        if not place.is_file():
            raise InputRejected(f"there is no file {place}.")
        image = self.call(lambda: self._ij.openImage(str(place)), what=f"opening {place}")
        if image is None:
            raise JavaError(f"ImageJ cannot open {place}: no format it knows.")
        return image

    def results_table(self) -> pd.DataFrame:
        """ImageJ's results table, as measuring fills it."""
        table = java.java_class("ij.measure.ResultsTable").getResultsTable()
        return images.from_results_table(table)

    def new_results_table(self, table: pd.DataFrame) -> Any:
        """See ``images.to_results_table``."""
        return images.to_results_table(table)


_GATEWAY: list[Gateway] = []


def gateway(options: GatewayOptions | None = None) -> Gateway:
    """Start ImageJ, or give the one that runs.

    Raises
    ------
    MissingDependency
        If Java, ImageJ, a display or a Python package is missing; the message says what to install.
    SmlmError
        If this process runs an ImageJ that was started otherwise, or ImageJ does not start.
    """
    wanted = resolved(options or GatewayOptions())
    if _GATEWAY:
        if _GATEWAY[0].options != wanted:
            raise SmlmError(
                "this process runs ImageJ already, started otherwise; a process has one. Take a new process."
            )
        return _GATEWAY[0]
    with java.stdout_kept():
        started = back_ends.start(wanted)
        running = Gateway(started, wanted)
    if wanted.mode != "headless" and running.headless:
        raise MissingDependency(
            f"ImageJ was to run with windows (mode {wanted.mode}), but Java sees no display. Take the mode "
            "headless or xvfb, or log in with a display."
        )
    _GATEWAY.append(running)
    return running


def resolved(options: GatewayOptions) -> GatewayOptions:
    """The options with ``auto`` answered, places made absolute and the display checked."""
    back_end = options.back_end
    if back_end == "auto":
        named = options.fiji or options.endpoint or (options.jar is None and os.environ.get(FIJI_VARIABLE))
        back_end = "pyimagej" if named else "ij1"
    if options.mode == "display" and sys.platform == "darwin":
        raise UsageError("macOS shows no windows of ImageJ to a plain Python; take the mode headless.")
    if options.mode == "display" and os.name != "nt" and not os.environ.get("DISPLAY"):
        raise MissingDependency("there is no display (DISPLAY is not set); take the mode headless or xvfb.")
    wanted = replace(
        options,
        back_end=back_end,
        jar=options.jar and options.jar.resolve(),
        plugins=tuple(place.resolve() for place in options.plugins),
    )
    for place in wanted.plugins:
        if not place.exists():
            raise InputRejected(f"there is no folder of plugins {place}.")
    if back_end == "pyimagej" and options.endpoint is None:
        return replace(wanted, fiji=fiji_directory(options.fiji))
    return wanted


def plugin_class_path(options: GatewayOptions) -> tuple[Path, ...]:
    """The jars of the plugins."""
    return plugin_jars(options.plugins)
