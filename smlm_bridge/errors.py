"""Errors a user can act on; the command line turns each into its exit code.

Every message says what was given, what is allowed and what to do next.
"""


class SmlmError(Exception):
    """Failed while working (exit code 1)."""

    exit_code = 1


class UsageError(SmlmError):
    """Wrong usage: an option that does not exist, contradicts another or is not built yet (exit code 2)."""

    exit_code = 2


class InputRejected(SmlmError, ValueError):
    """An input is rejected: its content, not its syntax, is wrong (exit code 3)."""

    exit_code = 3


class MissingDependency(SmlmError, ImportError):
    """A needed program or package is missing; the message says what to install (exit code 4)."""

    exit_code = 4
