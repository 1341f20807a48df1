"""Errors of training that a user is told of in one line; those of data are with the data."""


class LostProcessError(Exception):
    """Another process of the run died or cannot be reached."""


class NonFiniteError(Exception):
    """A loss or gradient is NaN or infinite; the step was not taken and the last checkpoint is sound."""
