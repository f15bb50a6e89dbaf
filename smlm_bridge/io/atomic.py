"""Outputs that are either complete or not there: written beside the target, then renamed."""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from smlm_bridge.errors import InputRejected, SmlmError

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NAME_BYTES = 255  # the longest file name of common file systems


def check_output(path: str | Path, *, overwrite: bool = False) -> Path:
    """Refuse an output that cannot be written, before any work starts.

    Returns
    -------
    Path
        The place that will be written, with symbolic links followed.

    Raises
    ------
    InputRejected
        If the target exists and ``overwrite`` is false, is a folder or a device, or its folder is missing or
        may not be written.
    """
    if not str(path):
        raise InputRejected("the output has an empty name; give a file name.")
    try:
        target = Path(os.path.realpath(path))
        if target.is_dir():
            raise InputRejected(f"output {path} is a folder; give the name of a file in it.")
        if target.exists() and not target.is_file():
            raise InputRejected(f"output {path} is not a regular file; give the name of a file.")
        if not target.parent.is_dir():
            raise InputRejected(f"the folder {target.parent} of output {path} does not exist; make it first.")
        if target.exists() and not overwrite:
            raise InputRejected(f"output {path} exists; choose another name or give --overwrite.")
    except InputRejected:
        raise
    except (OSError, ValueError) as error:
        raise InputRejected(f"output {path} cannot be a file name here: {error}.") from error
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise InputRejected(
            f"the folder {target.parent} of output {path} may not be written; choose another."
        )
    return target


@contextmanager
def atomic_output(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends well, and vanishes otherwise.

    The temporary name ends like the target's, so that writers that look at the extension treat both alike.

    Raises
    ------
    InputRejected
        As ``check_output``, before the block runs, and if the target appeared meanwhile.
    SmlmError
        If the disk is full, the place cannot be written, or the block wrote nothing.
    """
    target = check_output(path, overwrite=overwrite)
    prefix = f".{secrets.token_hex(4)}~"
    kept = os.fsencode(target.name)[-(_NAME_BYTES - len(prefix)) :]
    temporary = target.with_name(prefix + os.fsdecode(kept))
    try:
        yield temporary
        if not temporary.exists():
            raise SmlmError(f"nothing was written to {path}.")
        check_output(path, overwrite=overwrite)
        os.replace(temporary, target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno in _NO_ROOM or "errno = 28" in str(error):
            raise SmlmError(
                f"no room left for {path}: {error.strerror or error}. Free some space first."
            ) from error
        if error.filename is None or os.fspath(error.filename) != os.fspath(temporary):
            raise
        raise SmlmError(f"{path} could not be written: {error.strerror or error}.") from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
