"""What numbers may be: each class of settings declares the bounds of its own, and everything is checked against them.

The shell, the API, every run and the modules that take a setting as an argument read the same declaration::

    @bounded(alpha=Bound(0, 1000, above=True))
    @dataclass
    class MixupConfig: ...
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeVar

from avssl.errors import SettingsError

Settings = TypeVar("Settings")


@dataclass(frozen=True)
class Bound:
    """Finite numbers from ``low`` to ``high``; of a list, all of its numbers.

    Attributes:
        low, high: Least and largest value.
        above, below: Whether ``low`` and ``high`` themselves are excluded.
        ascending: Whether no number of a list may be smaller than the one before it.
    """

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False
    ascending: bool = False

    def holds(self, value: Any) -> bool:
        """Whether ``value`` is within; what is no number, such as none or a name, is not judged."""
        if isinstance(value, list | tuple):
            numbers = [item for item in value if _is_number(item)]
            return all(map(self.holds, value)) and not (self.ascending and numbers != sorted(numbers))
        if not _is_number(value):
            return True
        low = self.low < value if self.above else self.low <= value
        high = value < self.high if self.below else value <= self.high
        return low and high and math.isfinite(value)

    def __str__(self) -> str:
        order = ", the smaller first" if self.ascending else ""
        if math.isinf(self.low):
            return f"must be finite{order}"
        if math.isinf(self.high):
            return f"must be {'above' if self.above else 'at least'} {self.low:g}{order}"
        brackets = "(" if self.above else "[", ")" if self.below else "]"
        return f"must lie in {brackets[0]}{self.low:.10g}, {self.high:.10g}{brackets[1]}{order}"

    def check(self, name: str, value: Any) -> None:
        """Raises SettingsError, in one line that begins with ``name`` and says what it may be, for another value."""
        if not self.holds(value):
            shown = list(value) if isinstance(value, tuple) else value
            finite = " and finite" if value == math.inf and self.high == math.inf else ""
            raise SettingsError(f"{name}: {self}{finite}, got {shown}")


ANY = Bound()
POSITIVE = Bound(0, above=True)
NOT_NEGATIVE = Bound(0)
COUNT = Bound(1)
SHARE = Bound(0, 1)
SHARE_BELOW_1 = Bound(0, 1, below=True)
SHARE_ABOVE_0 = Bound(0, 1, above=True)
SEED = Bound(0, 2**32 - 1)  # NumPy's


def bounded(**bounds: Bound) -> Callable[[type[Settings]], type[Settings]]:
    """A class of settings with the bounds of its own numbers; it has those of its bases, too."""

    def declare(kind: type[Settings]) -> type[Settings]:
        unknown = bounds.keys() - {item.name for item in fields(kind)}  # type: ignore[arg-type]
        if unknown:
            raise TypeError(f"{kind.__name__} has no {min(unknown)}")
        kind.__bounds__ = bounds  # type: ignore[attr-defined]
        return kind

    return declare


def bounds_of(kind: type) -> dict[str, Bound]:
    """The bounds of the settings of a class, those of its parts apart."""
    return {name: one for base in reversed(kind.__mro__) for name, one in vars(base).get("__bounds__", {}).items()}


def check_bounds(config: Any, prefix: str = "") -> None:
    """Checks every number of a config.

    Args:
        config: Any config or a part of one.
        prefix: Of its settings' names, for example "data.".

    Raises:
        SettingsError: the first that is out of bounds, in one line that begins with its name and says what it may be.
    """
    for name, value, bound in _bounded(config, prefix):
        bound.check(name, value)


def _bounded(config: Any, prefix: str) -> Iterator[tuple[str, Any, Bound]]:
    bounds = bounds_of(type(config))
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            yield from _bounded(value, f"{prefix}{item.name}.")
        elif item.name in bounds:
            values = {f".{key}": one for key, one in value.items()} if isinstance(value, Mapping) else {"": value}
            for key, one in values.items():
                yield f"{prefix}{item.name}{key}", one, bounds[item.name]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
