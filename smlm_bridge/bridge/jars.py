"""Where Java's parts are: ImageJ's jar, a Fiji directory, the ThunderSTORM plugin."""

import hashlib
import os
import re
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from smlm_bridge._optional import require
from smlm_bridge.errors import InputRejected, MissingDependency

#: Environment variables that say where things are.
FIJI_VARIABLE: Final = "SMLM_BRIDGE_FIJI"
PLUGINS_VARIABLE: Final = "SMLM_BRIDGE_THUNDERSTORM"
JAR_VARIABLE: Final = "SMLM_BRIDGE_IJ_JAR"
SYSTEM_JARS: Final = (Path("/usr/share/java/ij.jar"), Path("/usr/share/imagej/ij.jar"))

Version = Literal["1.3", "dev"]


@dataclass(frozen=True)
class Artifact:
    """One file of Maven Central, and what it must hash to."""

    group: str
    name: str
    version: str
    sha256: str

    @property
    def coordinate(self) -> str:
        """As ``group:name:version``."""
        return f"{self.group}:{self.name}:{self.version}"

    @property
    def path(self) -> Path:
        """Within a Maven repository."""
        folder = Path(*self.group.split("."), self.name, self.version)
        return folder / f"{self.name}-{self.version}.jar"


#: ImageJ 1 and what makes it run without a display; later versions of ImageJ need a later patcher.
HEADLESS_IMAGEJ: Final = (
    Artifact("net.imagej", "ij", "1.54p", "2e1a09961dfb41cee66ddc821b2577a41a072566ce45a49bae69267099741e20"),
    Artifact(
        "net.imagej",
        "ij1-patcher",
        "2.0.0",
        "b68810263f9521ddb34bac272816613ebb71607775c1fc337079a0476c2b581a",
    ),
    Artifact(
        "org.javassist",
        "javassist",
        "3.30.2-GA",
        "eba37290994b5e4868f3af98ff113f6244a6b099385d9ad46881307d3cb01aaf",
    ),
    Artifact(
        "io.github.classgraph",
        "classgraph",
        "4.8.162",
        "ea30b2d5e29e89d52706bcecf7a6ae3b44682d4a1566a5f22b9453f9be2a970c",
    ),
)


@dataclass(frozen=True)
class Plugin:
    """A ThunderSTORM jar and which ThunderSTORM it is."""

    jar: Path
    version: Version
    label: str


def maven_repository() -> Path:
    """The local Maven repository: ``M2_REPO``, else ``~/.m2/repository``."""
    given = os.environ.get("M2_REPO")
    return Path(given) if given else Path.home() / ".m2" / "repository"


def maven_central(artifacts: Sequence[Artifact] = HEADLESS_IMAGEJ) -> tuple[Path, ...]:
    """The jars of Maven Central, from the local Maven repository or fetched into it.

    Raises
    ------
    MissingDependency
        If a jar is neither here nor can be fetched.
    InputRejected
        If a jar is not the one that was published (its SHA-256 differs).
    """
    paths = tuple(maven_repository() / artifact.path for artifact in artifacts)
    if not all(path.is_file() for path in paths):
        _fetch(artifacts)
    for artifact, path in zip(artifacts, paths, strict=True):
        if not path.is_file():
            raise MissingDependency(
                f"Maven Central gave no {artifact.coordinate}. Without a network give the jar of an ImageJ "
                f"(jar=..., or {JAR_VARIABLE}) or a Fiji directory (fiji=..., or {FIJI_VARIABLE})."
            )
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != artifact.sha256:
            raise InputRejected(
                f"{path} is not the published {artifact.coordinate}: its SHA-256 is {found}. Delete the file "
                "and try again."
            )
    return paths


def _fetch(artifacts: Sequence[Artifact]) -> None:
    """Fetch into the local Maven repository; of all repositories jgo knows, only Maven Central is asked."""
    jgo = require("jgo", extra="fiji")
    try:
        jgo.build("+".join(artifact.coordinate for artifact in artifacts))
    except Exception as error:
        raise MissingDependency(
            f"ImageJ could not be fetched from Maven Central ({type(error).__name__}: {error}). Without a "
            f"network give the jar of an ImageJ (jar=..., or {JAR_VARIABLE}), or a Fiji directory "
            f"(fiji=..., or {FIJI_VARIABLE})."
        ) from error


def system_jar() -> Path | None:
    """ImageJ's jar of this system (Debian's libij-java), or None."""
    return next((path.resolve() for path in SYSTEM_JARS if path.is_file()), None)


def given_jar(jar: str | Path | None) -> Path | None:
    """The jar that was given, by argument or environment variable, checked.

    Raises
    ------
    InputRejected
        If the file is no ImageJ 1.
    """
    named = jar or os.environ.get(JAR_VARIABLE)
    if not named:
        return None
    path = Path(named).resolve()
    if "ij/IJ.class" not in _names(path):
        raise InputRejected(f"{path} is no jar of ImageJ 1: the class ij.IJ is not in it. Give an ij.jar.")
    return path


def fiji_directory(fiji: str | Path | None) -> Path | None:
    """The Fiji directory that was given, by argument or environment variable, checked.

    Raises
    ------
    InputRejected
        If it is no directory with the jars of an ImageJ2.
    """
    named = fiji or os.environ.get(FIJI_VARIABLE)
    if not named:
        return None
    path = Path(named).resolve()
    if not (path / "jars").is_dir():
        inside = next((child for child in path.glob("*/jars") if child.is_dir()), None)
        hint = f" Did you mean {inside.parent}?" if inside else ""
        raise InputRejected(f"{path} is no Fiji directory: it has no folder 'jars'.{hint}")
    jars = [jar.name for jar in (path / "jars").rglob("*.jar")]
    for wanted in (r"imagej-\d", r"imagej-legacy-\d", r"ij-1\.\d", r"imglib2-imglyb-\d"):
        if not any(re.match(wanted, name) for name in jars):
            raise InputRejected(
                f"{path} is no Fiji that Python can drive: no {wanted.split('-')[0]} jar like "
                f"'{wanted}...' in {path / 'jars'}. Take a complete Fiji (for imglib2-imglyb: put the jars "
                "imglib2-imglyb and imglib2-unsafe there), or the back end ij1."
            )
    return path


def plugin_jars(folders: Iterable[Path]) -> tuple[Path, ...]:
    """Every jar ImageJ would take for a plugin (with _ in its name) in folders, or given itself."""
    found: list[Path] = []
    for folder in folders:
        found += [folder] if folder.suffix == ".jar" else sorted(folder.rglob("*_*.jar"))
    return tuple(dict.fromkeys(path.resolve() for path in found))


def find_thunderstorm(plugins: str | Path | None = None, *, fiji: str | Path | None = None) -> Plugin | None:
    """The ThunderSTORM plugin, or None where there is none.

    Looked for in ``plugins`` (a jar or a folder), in the environment variable ``SMLM_BRIDGE_THUNDERSTORM``
    (likewise), and in the ``plugins`` of a Fiji directory (given, or ``SMLM_BRIDGE_FIJI``).

    Raises
    ------
    InputRejected
        If what was given is not there or holds no ThunderSTORM.
    """
    named = plugins or os.environ.get(PLUGINS_VARIABLE)
    if named:
        place = Path(named).resolve()
        if not place.exists():
            raise InputRejected(f"there is no {place}; give the ThunderSTORM jar or the folder it is in.")
        plugin = _first_plugin(place)
        if plugin is None:
            raise InputRejected(
                f"there is no ThunderSTORM in {place}; give its jar (Thunder_STORM.jar) or the folder it is in."
            )
        return plugin
    folder = _plugins_of(fiji)
    return None if folder is None else _first_plugin(folder)


def _plugins_of(fiji: str | Path | None) -> Path | None:
    """The plugins of a Fiji directory; it need not be one that pyimagej can drive."""
    named = fiji or os.environ.get(FIJI_VARIABLE)
    if not named:
        return None
    folder = Path(named).resolve() / "plugins"
    if not folder.is_dir():
        fiji_directory(named)  # says what is wrong with it
        raise InputRejected(f"{Path(named).resolve()} is no Fiji directory: it has no folder 'plugins'.")
    return folder


def _first_plugin(place: Path) -> Plugin | None:
    return next((plugin for jar in plugin_jars([place]) if (plugin := recognise(jar))), None)


def recognise(jar: Path) -> Plugin | None:
    """Which ThunderSTORM a jar is, without Java; None where it is none.

    ``dev`` has the module of biplane analysis, ``1.3`` has not.
    """
    names = _names(jar)
    root = "cz/cuni/lf1/lge/ThunderSTORM/"
    if f"{root}AnalysisPlugIn.class" not in names:
        return None
    if f"{root}BiplaneAnalysisPlugIn.class" not in names:
        return Plugin(jar, "1.3", "1.3")
    label = "dev"
    if "thunderstorm.properties" in names:
        with zipfile.ZipFile(jar) as archive:
            text = archive.read("thunderstorm.properties").decode("utf-8", "replace")
        match = re.search(r"^\s*version\s*=\s*(\S+)", text, re.M)
        label = match[1] if match and "$" not in match[1] else label
    return Plugin(jar, "dev", label)


def snakeyaml_problem(jars: Iterable[Path]) -> str | None:
    """Why 3-D calibrations cannot be read with these jars, or None.

    ThunderSTORM brings SnakeYAML 1 with it; where SnakeYAML 2 wins, a calibration is refused ("Global tag is
    not allowed") and dev cannot save one.
    """
    for jar in jars:
        match = re.match(r"snakeyaml-(\d+)", jar.name)
        if match and int(match[1]) >= 2:
            return (
                f"{jar.name} in {jar.parent} shadows ThunderSTORM's SnakeYAML 1: 3-D calibrations can be "
                "neither loaded nor, by dev, saved (issue 78 of ThunderSTORM). Take the back end ij1 for 3-D."
            )
    return None


def _names(jar: Path) -> frozenset[str]:
    try:
        with zipfile.ZipFile(jar) as archive:
            return frozenset(archive.namelist())
    except (OSError, zipfile.BadZipFile) as error:
        raise InputRejected(f"{jar} cannot be read as a jar: {error}.") from error
