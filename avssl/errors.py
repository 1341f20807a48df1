"""Errors of settings and of training that a user is told of in one line; those of data are with the data."""

import errno

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE)


class SettingsError(ValueError):
    """A setting that does not exist, or a value that it cannot have; the message is one line."""


class LostProcessError(Exception):
    """Another process of the run died or cannot be reached."""


class NonFiniteError(Exception):
    """A loss or gradient is NaN or infinite; the step was not taken and the last checkpoint is sound."""


def is_of_machine(error: BaseException) -> bool:
    """Whether ``error``, or what it was raised from, tells of the machine, and is no verdict on a file, fold or clip.

    That is a full disk, too many open files, a disk that cannot be read, no memory, be it a GPU's, or a lost process of
    the run. It ends a job, which can be continued.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError | LostProcessError) or type(cause).__name__ == "OutOfMemoryError":  # torch's
            return True
        if isinstance(cause, OSError) and cause.errno in (*FULL, errno.EIO, errno.ENOMEM):
            return True
        if isinstance(cause, RuntimeError) and "can't allocate memory" in str(cause):  # torch's of a processor
            return True
        cause = cause.__cause__
    return False


def machine_error(code: int, message: str) -> OSError:
    """An OSError of :func:`is_of_machine` whose text is ``message`` alone."""
    error = OSError(message)
    error.errno = code
    return error


def printable(name: str) -> str:
    """A file name as text that can be written anywhere: bytes that are not UTF-8 become ``\\xff`` and the like."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
