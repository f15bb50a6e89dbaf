"""What Java, ImageJ, a display and ThunderSTORM need, looked for without starting Java."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from smlm_bridge.bridge.jars import (
    FIJI_VARIABLE,
    HEADLESS_IMAGEJ,
    JAR_VARIABLE,
    PLUGINS_VARIABLE,
    fiji_directory,
    find_thunderstorm,
    given_jar,
    maven_repository,
    snakeyaml_problem,
    system_jar,
)
from smlm_bridge.bridge.java import LEAST_JAVA, java_version
from smlm_bridge.errors import InputRejected

_EXTRA: Final = "extra 'fiji'"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for: where it was found, or None, and what to do then."""

    name: str
    needed_for: str
    found: str | None
    advice: str


def findings(*, fiji: Path | None = None, plugins: Path | None = None) -> Iterator[Finding]:
    """Everything the bridge needs, in the order in which it is needed."""
    version = java_version()
    old = version is not None and version[0] < LEAST_JAVA
    yield Finding(
        "java",
        _EXTRA,
        None if version is None or old else version[1],
        f"Java {version[0]} is too old; install a JDK 17 or 21"
        if version and old
        else "install a JDK 17 or 21 (Debian: apt install default-jdk), or set JAVA_HOME",
    )
    yield _jar()
    local = maven_repository()
    kept = [artifact for artifact in HEADLESS_IMAGEJ if (local / artifact.path).is_file()]
    yield Finding(
        "ImageJ offline",
        "ImageJ without a display and without a network",
        f"in {local}" if len(kept) == len(HEADLESS_IMAGEJ) else None,
        "run 'smlm-bridge thunderstorm run' once with a network; Maven Central's ImageJ is kept then",
    )
    display = os.environ.get("DISPLAY") or ("not needed here" if os.name == "nt" else None)
    yield Finding(
        "DISPLAY",
        "windows of ImageJ",
        display or (f"none; Xvfb: {shutil.which('Xvfb')}" if shutil.which("Xvfb") else None),
        "Debian: apt install xvfb (--mode xvfb), or log in with a display; headless needs none",
    )
    yield _fiji(fiji)
    yield _thunderstorm(fiji, plugins)


def _jar() -> Finding:
    try:
        jar = given_jar(None) or system_jar()
        found, advice = (None if jar is None else str(jar)), "Debian: apt install libij-java; else not needed"
    except InputRejected as error:
        found, advice = None, f"{JAR_VARIABLE}: {error}"
    return Finding("ij.jar", "ImageJ without Fiji, with windows", found, advice)


def _fiji(fiji: Path | None) -> Finding:
    advice = f"give a Fiji directory (--fiji, or {FIJI_VARIABLE}); not needed for ImageJ 1"
    try:
        directory = fiji_directory(fiji)
    except InputRejected as error:
        return Finding("Fiji", "the back end pyimagej", None, str(error))
    if directory is None:
        return Finding("Fiji", "the back end pyimagej", None, advice)
    problem = snakeyaml_problem(sorted((directory / "jars").rglob("*.jar")))
    return Finding("Fiji", "the back end pyimagej", f"{directory}{f'; {problem}' if problem else ''}", advice)


def _thunderstorm(fiji: Path | None, plugins: Path | None) -> Finding:
    need = "ThunderSTORM itself; our own implementation runs without it"
    try:
        plugin = find_thunderstorm(plugins, fiji=fiji)
    except InputRejected as error:
        return Finding("ThunderSTORM", need, None, str(error))
    found = None if plugin is None else f"{plugin.label} ({plugin.jar})"
    advice = f"give its jar or folder (--plugins, or {PLUGINS_VARIABLE}), or a Fiji that has it"
    return Finding("ThunderSTORM", need, found, advice)
