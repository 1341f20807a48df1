"""Errors of settings and of training that a user is told of in one line; those of data are with the data."""


class SettingsError(ValueError):
    """A setting that does not exist, or a value that it cannot have; the message is one line."""


class LostProcessError(Exception):
    """Another process of the run died or cannot be reached."""


class NonFiniteError(Exception):
    """A loss or gradient is NaN or infinite; the step was not taken and the last checkpoint is sound."""


def user_errors() -> tuple[type[Exception], ...]:
    """What a user can cause and mend, told in one line without a traceback; anything else is a defect."""
    from avssl.data.failures import DataError  # with the reader of media, which a parser need not wait for
    from avssl.data.media import MediaError

    return OSError, ValueError, KeyError, DataError, MediaError, NonFiniteError, LostProcessError


def printable(name: str) -> str:
    """A file name as text that can be written anywhere: bytes that are not UTF-8 become ``\\xff`` and the like."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
