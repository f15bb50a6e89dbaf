"""Starting ImageJ: plain ImageJ 1 through JPype, or a Fiji through pyimagej. Nothing else differs."""

import atexit
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smlm_bridge._optional import require
from smlm_bridge.bridge import java
from smlm_bridge.bridge.jars import given_jar, maven_central, plugin_jars, snakeyaml_problem, system_jar
from smlm_bridge.errors import InputRejected, MissingDependency, SmlmError

if TYPE_CHECKING:
    from smlm_bridge.bridge.gateway import GatewayOptions


@dataclass(frozen=True)
class Started:
    """What was started."""

    back_end: str
    jars: tuple[Path, ...]
    imagej2: Any = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What will not work with these jars."""
        problem = snakeyaml_problem(self.jars)
        return (problem,) if problem else ()


def start(options: "GatewayOptions") -> Started:
    """Start Java and ImageJ.

    Raises
    ------
    MissingDependency, InputRejected, SmlmError
        See ``gateway``.
    """
    if java.is_running():
        raise SmlmError(
            "a Java virtual machine runs in this process already, started by somebody else; ImageJ needs its "
            "own options from the start. Take a new process."
        )
    if options.mode == "xvfb":
        start_xvfb()
    return _start_pyimagej(options) if options.back_end == "pyimagej" else _start_ij1(options)


def _virtual_machine(options: "GatewayOptions") -> list[str]:
    headless = "true" if options.mode == "headless" else "false"
    # AWT on macOS and Windows needs no DISPLAY; on Linux false without one would end in HeadlessException.
    return [java.OPENS, f"-Xmx{options.memory}", f"-Djava.awt.headless={headless}"]


def _plugins_directory(plugins: tuple[Path, ...]) -> list[str]:
    """Where ImageJ looks for plugins: it knows one folder, and takes jars with _ in their names."""
    if not plugins:
        return []
    if len(plugins) == 1 and plugins[0].is_dir():
        return [f"-Dplugins.dir={plugins[0]}"]
    folder = Path(tempfile.mkdtemp(prefix="smlm_bridge_plugins_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for jar in plugin_jars(plugins):
        name = jar.name if "_" in jar.name else f"_{jar.name}"
        try:
            (folder / name).symlink_to(jar)
        except OSError:  # Windows without the right to make links
            shutil.copy2(jar, folder / name)
    return [f"-Dplugins.dir={folder}"]


def _start_ij1(options: "GatewayOptions") -> Started:
    headless = options.mode == "headless"
    jars = _imagej_jars(options)
    plugins = plugin_jars(options.plugins)
    java.start([*jars, *plugins], [*_virtual_machine(options), *_plugins_directory(options.plugins)])
    if headless:
        _patch(jars)
    else:
        main = java.java_class("ij.ImageJ")
        try:
            main(main.NO_SHOW)
        except java.jpype().JException as error:
            raise MissingDependency(
                f"ImageJ needs a display and Java cannot use this one ({error}). Take the mode headless or xvfb."
            ) from error
    return Started("ij1", (*jars, *plugins))


def _imagej_jars(options: "GatewayOptions") -> tuple[Path, ...]:
    """ImageJ's jar, and the patcher where it must run without a display."""
    jar = given_jar(options.jar)
    if options.mode != "headless":
        chosen = jar or system_jar()
        return (chosen,) if chosen else maven_central()[:1]
    central = maven_central()
    return central if jar is None else (jar, *central[1:])


def _patch(jars: tuple[Path, ...]) -> None:
    """Make ImageJ 1 run without a display; before any other class of it is touched."""
    try:
        java.java_class("net.imagej.patcher.LegacyInjector").preinit()
        _initialise(java.java_class("ij.IJ"))
    except java.jpype().JException as error:
        reason = str(error).splitlines()[0]  # of a VerifyError the rest is the code of the class
        raise InputRejected(
            f"the ImageJ in {jars[0]} cannot be made to run without a display ({reason}). Leave the jar away "
            "(Maven Central's can), or take the mode xvfb."
        ) from error


def _initialise(imagej: Any) -> None:
    """Read the menus and make the loader of plugins, which ImageJ puts off until its first command."""
    menus = java.java_class("ij.Menus")
    if menus.getCommands() is None:
        method = imagej.class_.getDeclaredMethod("init")
        method.setAccessible(True)
        method.invoke(None)


def _start_pyimagej(options: "GatewayOptions") -> Started:
    scyjava = require("scyjava", extra="fiji")
    imagej = require("imagej", extra="fiji")
    library = java.find_jvm()
    # Importing imagej adds an endpoint, which would make a local Fiji ask the network for it.
    scyjava.config.endpoints.clear()
    # "always", the default, downloads a JDK; "never" fails inside pyimagej 1.8; "auto" takes JAVA_HOME.
    os.environ.setdefault("JAVA_HOME", str(java.home_of(library)))
    scyjava.config.set_java_constraints(fetch="auto")
    scyjava.config.add_options([*_virtual_machine(options), java.MESSAGES_TO_STDERR])
    plugins = plugin_jars(options.plugins)
    scyjava.config.add_classpath(*map(str, plugins))
    mode = "headless" if options.mode == "headless" else "interactive"
    place = str(options.fiji) if options.fiji else (options.endpoint or "sc.fiji:fiji")
    imagej2 = _initialised(imagej, place, mode)
    java.settle()
    with contextlib.suppress(Exception):  # its own end would wait for threads that ours lets go of
        atexit.unregister(scyjava.shutdown_jvm)
    jars = tuple(sorted(options.fiji.glob("jars/**/*.jar"))) if options.fiji else ()
    started = Started("pyimagej", (*jars, *plugins), imagej2)
    for text in started.warnings:
        print(text, file=sys.stderr)
    return started


def _initialised(imagej: Any, place: str, mode: str) -> Any:
    """``imagej.init``, whose failures differ: exceptions of three languages, or False."""
    advice = (
        "Without a network give a complete Fiji directory (fiji=...), or take the back end ij1, which needs "
        "only an ij.jar"
    )
    try:
        found = imagej.init(place, mode=mode)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        told = " ".join(str(error).split())[:300]
        raise MissingDependency(
            f"pyimagej could not start '{place}' ({type(error).__name__}: {told}). {advice}."
        ) from error
    if found is None or found is False:
        raise MissingDependency(f"pyimagej found no ImageJ2 in '{place}'. {advice}.")
    if found.legacy is None or not found.legacy.isActive():
        raise SmlmError(
            f"the ImageJ of '{place}' came up without ImageJ 1 (its legacy layer); take a new process, and "
            "touch no class of ImageJ before."
        )
    return found


def start_xvfb() -> None:
    """Start a virtual display, set ``DISPLAY``, and end it with this process.

    Raises
    ------
    MissingDependency
        If Xvfb is not installed or does not come up.
    """
    program = shutil.which("Xvfb")
    if program is None:
        raise MissingDependency(
            "Xvfb is not installed (Debian: apt install xvfb); or take the mode headless."
        )
    read, write = os.pipe()
    server = subprocess.Popen(
        [program, "-displayfd", str(write), "-screen", "0", "1280x1024x24", "-nolisten", "tcp", "-terminate"],
        pass_fds=[write],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(write)
    with os.fdopen(read) as answer:
        number = answer.readline().strip()
    if not number:
        server.kill()
        raise MissingDependency("Xvfb did not start; try it by itself: Xvfb :99")
    os.environ["DISPLAY"] = f":{number}"
    atexit.register(_end_server, server)


def _end_server(server: "subprocess.Popen[bytes]") -> None:
    """End the display, unless a Java that was let go still uses it: it would end this process with code 1.

    The server ends by itself when its last client has gone (``-terminate``).
    """
    if java.is_running():
        return
    server.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(5)
