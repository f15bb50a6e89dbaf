"""How much memory a file may claim: a few kilobytes of a crafted file can promise terabytes."""

from pathlib import Path
from typing import Final

from smlm_bridge.errors import InputRejected

#: Always allowed, in bytes.
SMALL: Final = 64 * 2**20
#: Beyond that, how many times its size a file may expand. Tables of floats compress less than tenfold.
LARGEST_RATIO: Final = 200


def largest_claim(path: str | Path) -> int:
    """Bytes that one array of the file may claim.

    Raises
    ------
    InputRejected
        If there is no such file.
    """
    try:
        return max(SMALL, LARGEST_RATIO * Path(path).stat().st_size)
    except OSError as error:
        raise InputRejected(f"table {path} cannot be read: {error.strerror or error}.") from error


def check_claim(path: str | Path, claimed_bytes: int) -> None:
    """Refuse an array that is out of proportion to its file.

    Raises
    ------
    InputRejected
        If it claims more than ``largest_claim``.
    """
    if claimed_bytes > largest_claim(path):
        raise InputRejected(
            f"table {path} claims {claimed_bytes / 1e9:.3g} GB, out of proportion to the size of the file; no "
            "table expands so much. It is damaged or was made to fill the memory; export it again."
        )
