"""Our commands and models in a Fiji directory: what was put there is listed, and only that is removed."""

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import smlm_bridge
from smlm_bridge.errors import InputRejected
from smlm_bridge.io.atomic import atomic_output

MANIFEST: Final = "smlm_bridge.json"
_FORMAT: Final = "smlm_bridge in Fiji"
_VERSION: Final = 1
#: The folders of Fiji that we write into, and those that make a directory a Fiji.
_OURS: Final = ("scripts", "macros", "models", "jars")
_OF_FIJI: Final = ("jars", "plugins")


@dataclass(frozen=True)
class Installed:
    """What was done to a Fiji directory.

    Parameters
    ----------
    written, removed
        Files, relative to the directory.
    kept
        Files that are listed as ours but were changed since, so they stayed.
    """

    written: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()


def scripts_folder() -> Path:
    """The folder ``fiji_scripts``: inside the installed package, or beside it in a source tree.

    Raises
    ------
    InputRejected
        If this installation has none.
    """
    package = Path(smlm_bridge.__file__).parent
    for folder in (package / "fiji_scripts", package.parent / "fiji_scripts"):
        if folder.is_dir():
            return folder
    raise InputRejected(f"the scripts for Fiji are missing in {package}. Reinstall smlm_bridge.")


def script_files() -> dict[str, bytes]:
    """The commands and macros, by their place in Fiji."""
    root = scripts_folder()
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for kind in ("scripts", "macros")
        for path in sorted((root / kind).rglob("*"))
        if path.is_file() and path.suffix in (".groovy", ".txt", ".ijm")
    }


def install(
    directory: Path | str,
    files: Mapping[str, bytes],
    *,
    python: str | None = sys.executable,
    overwrite: bool = False,
) -> Installed:
    """Write files into a Fiji directory and list them there; files of a former installation are replaced.

    Parameters
    ----------
    directory
        Of Fiji (it has ``jars`` and ``plugins``).
    files
        Content by relative place, below ``scripts``, ``macros``, ``models`` or ``jars``.
    python
        The Python that the commands will use where nothing else is chosen; None leaves it open.
    overwrite
        Replace files that are not ours or were changed.

    Raises
    ------
    InputRejected
        If it is no Fiji directory, or has a file of that name with other content and ``overwrite`` is false.
    """
    root = _fiji(directory)
    before = _read_manifest(root)
    known: dict[str, str] = dict(before["files"]) if before else {}
    hashes = {_checked(name): _hash(content) for name, content in files.items()}
    foreign = [name for name in hashes if not _may_write(root / name, hashes[name], known.get(name))]
    if foreign and not overwrite:
        raise InputRejected(
            f"{root} has {len(foreign)} file(s) that are not ours or were changed since: "
            f"{', '.join(foreign[:3])}. Move them away, or give --overwrite."
        )
    mine = {name: mark for name, mark in hashes.items() if name in known or not _same(root / name, mark)}
    folders = set(before["folders"] if before else ()) | set(_missing_folders(root, mine))
    old = {name: mark for name, mark in known.items() if name not in hashes}
    # Listed before it is written: an interrupted installation can be removed, too.
    _write_manifest(root, python, {**old, **mine}, folders)
    written = [name for name in hashes if not _same(root / name, hashes[name])]
    for name in written:
        target = root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_output(target, overwrite=True) as temporary:
            temporary.write_bytes(files[name])
    removed, kept = _remove(root, old)
    left = _remove_empty(root, folders)
    _write_manifest(root, python, {**mine, **{name: old[name] for name in kept}}, left)
    return Installed(tuple(written), tuple(removed), tuple(kept))


def uninstall(directory: Path | str) -> Installed:
    """Remove the files that ``install`` wrote, and the folders it made where they are empty.

    Raises
    ------
    InputRejected
        If it is no Fiji directory, or nothing of ours is listed there.
    """
    root = _fiji(directory)
    manifest = _read_manifest(root)
    if manifest is None:
        raise InputRejected(f"{root} has no {MANIFEST}, so nothing was installed there by smlm_bridge.")
    removed, kept = _remove(root, manifest["files"])
    (root / MANIFEST).unlink()
    _remove_empty(root, manifest["folders"])
    return Installed((), tuple(removed), tuple(kept))


def _fiji(directory: Path | str) -> Path:
    root = Path(directory).expanduser().resolve()
    if _is_fiji(root):
        return root
    # Since 2025 the folder Fiji holds the launcher Fiji.app on macOS; before, Fiji.app was the folder.
    above = next((folder for folder in root.parents if _is_fiji(folder)), None)
    raise InputRejected(
        f"{directory} is no Fiji directory: it has no folder jars or plugins. "
        + (
            f"Give {above}, which has."
            if above
            else "Give the folder with Fiji's launcher (Fiji.app or Fiji)."
        )
    )


def _is_fiji(folder: Path) -> bool:
    return any((folder / name).is_dir() for name in _OF_FIJI)


def _checked(name: str) -> str:
    """A relative place below our folders; a manifest may have been edited."""
    place = PurePosixPath(name)
    if (
        place.is_absolute()
        or ".." in place.parts
        or "\\" in name
        or not place.parts
        or place.parts[0] not in _OURS
    ):
        raise InputRejected(
            f"{MANIFEST}: '{name}' is no place of ours ({', '.join(_OURS)}); nothing was done."
        )
    return name


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _same(path: Path, mark: str) -> bool:
    return path.is_file() and _hash(path.read_bytes()) == mark


def _may_write(path: Path, mark: str, listed: str | None) -> bool:
    return not path.exists() or _same(path, mark) or (listed is not None and _same(path, listed))


def _missing_folders(root: Path, names: Iterable[str]) -> list[str]:
    parents = {parent.as_posix() for name in names for parent in PurePosixPath(name).parents}
    return [name for name in parents - {"."} if not (root / name).exists()]


def _remove(root: Path, files: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Those removed, and those kept because they were changed."""
    there = [name for name in files if (root / _checked(name)).is_file()]
    mine = [name for name in there if _same(root / name, files[name])]
    for name in mine:
        (root / name).unlink()
    return mine, [name for name in there if name not in mine]


def _remove_empty(root: Path, folders: Iterable[str]) -> list[str]:
    """Remove those of our folders that are empty; returns the others."""
    for name in sorted(folders, key=len, reverse=True):
        folder = root / _checked(name)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    return [name for name in folders if (root / name).is_dir()]


def _read_manifest(root: Path) -> dict[str, Any] | None:
    path = root / MANIFEST
    if not path.exists():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        wrong = manifest["format"] != _FORMAT or manifest["version"] != _VERSION
        files, folders = manifest["files"], manifest["folders"]
        wrong |= not isinstance(files, dict) or not isinstance(folders, list)
        wrong = wrong or not all(isinstance(text, str) for text in [*files, *files.values(), *folders])
    except (OSError, ValueError, KeyError, TypeError):
        wrong = True
    if wrong:
        raise InputRejected(f"{path} is damaged or of a newer smlm_bridge; install and remove with that one.")
    for name in (*files, *folders):
        _checked(name)
    return {"files": files, "folders": folders}


def _write_manifest(root: Path, python: str | None, files: Mapping[str, str], folders: Iterable[str]) -> None:
    values = {
        "format": _FORMAT,
        "version": _VERSION,
        "smlm_bridge": smlm_bridge.__version__,
        "python": python,
        "files": dict(sorted(files.items())),
        "folders": sorted(folders),
    }
    with atomic_output(root / MANIFEST, overwrite=True) as temporary:
        temporary.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
