"""Compiling with numba, once for all runs where there is a place to keep what was compiled."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import numba

P = ParamSpec("P")
R = TypeVar("R")

#: Sums may be taken in any order; not-a-number and infinity keep their meaning.
_FREEDOM = {"reassoc", "contract", "nsz"}


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compile at the first call; numba has no types of its own."""
    return _made(function, False)


def compiled_freely(function: Callable[P, R]) -> Callable[P, R]:
    """The same where sums may be taken in any order, which a processor does several at a time."""
    return _made(function, _FREEDOM)


def _made(function: Callable[P, R], fastmath: bool | set[str]) -> Callable[P, R]:
    try:
        made = numba.njit(cache=True, nogil=True, fastmath=fastmath)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        made = numba.njit(nogil=True, fastmath=fastmath)(function)
    return cast("Callable[P, R]", made)
