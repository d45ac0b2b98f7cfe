"""The few errors that a person meets, each with the exit status it ends a command with.

An error says what was wanted, what was found, and what to do. Everything that is not one of
these is a bug and keeps its traceback.
"""


class MycoError(Exception):
    """Something failed while it was being done. Exit status 1."""

    exit_status = 1


class UsageError(MycoError):
    """The command or its input makes no sense. Nothing was changed. Exit status 2."""

    exit_status = 2


class RefusedError(MycoError):
    """A preflight check refused. Nothing was changed. Exit status 3."""

    exit_status = 3
