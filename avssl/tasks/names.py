"""Names of the terms of a loss."""

from collections.abc import Sequence


def unique_names(names: Sequence[str]) -> list[str]:
    """Numbers repeated names, so that two terms of one kind log two curves."""
    return [name if names.count(name) == 1 else f"{name}_{names[:i].count(name) + 1}" for i, name in enumerate(names)]
