"""Models by name: a decorated class or function is a variant."""

import difflib
import inspect
import sys
from collections.abc import Callable, Mapping
from functools import partial, wraps
from typing import Any, TypeVar

from mast.base import SpectrogramModel
from mast.plugins import import_installed

Builder = Callable[..., SpectrogramModel]
AnyBuilder = TypeVar("AnyBuilder", bound=Builder)

BUILDERS: dict[str, Builder] = {}  # what `register_model` has made known, by name
_FAMILIES: dict[str, Callable[..., SpectrogramModel]] = {}
# What imports further models; called before a name is said to be unknown.
more_models: list[Callable[[], object]] = [import_installed]


def register_model(name: str, **defaults: Any) -> Callable[[AnyBuilder], AnyBuilder]:
    """Makes ``create_model(name, ...)`` call the decorated class or function, with its model's constructor arguments.

    Args:
        name: of the model. One class may have several, each with its size.
        defaults: arguments that have other values under this name than the class or function gives them.

    Raises:
        ValueError: the name is taken.
    """

    def register(builder: AnyBuilder) -> AnyBuilder:
        if name in BUILDERS:
            raise ValueError(f"a model named {name!r} is registered already")

        @wraps(builder, updated=())
        def build(**given: Any) -> SpectrogramModel:
            check_arguments(builder, given)
            return builder(**{**defaults, **given})

        BUILDERS[name] = build
        return builder

    return register


def check_arguments(builder: Builder, given: Mapping[str, Any]) -> None:
    """Raise TypeError where ``builder`` does not take all of ``given``; it names the nearest argument and lists all."""
    parameters = inspect.signature(builder).parameters
    unknown = sorted(set(given) - set(parameters))
    if unknown and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        close = difflib.get_close_matches(unknown[0], parameters, n=1)
        hint = f"; did you mean {close[0]}?" if close else ";"
        known = ", ".join(parameters)
        raise TypeError(f"{builder.__name__} has no argument {', '.join(unknown)}{hint} it takes {known}")


def register_family(prefix: str) -> Callable[[Callable[..., SpectrogramModel]], Callable[..., SpectrogramModel]]:
    """Makes ``create_model("PREFIX/NAME", ...)`` call the decorated class or function with NAME first."""

    def register(builder: Callable[..., SpectrogramModel]) -> Callable[..., SpectrogramModel]:
        if prefix in _FAMILIES:
            raise ValueError(f"a family of models named {prefix!r} is registered already")
        _FAMILIES[prefix] = builder
        return builder

    return register


def list_models() -> list[str]:
    """Names of all registered models, sorted."""
    _import_more()
    return sorted(BUILDERS)


def authors() -> list[str]:
    """The modules outside of ``mast`` that have registered models."""
    modules = dict.fromkeys(builder.__module__ for builder in BUILDERS.values())
    return [name for name in modules if name in sys.modules and name.split(".")[0] not in ("mast", "__main__")]


def author_of(name: str) -> str | None:
    """The module outside of ``mast`` that has registered the model ``name``; None for one of mast's own."""
    return next((module for module in authors() if name in BUILDERS and BUILDERS[name].__module__ == module), None)


def is_registered(name: str) -> bool:
    """Whether ``create_model`` knows ``name``, once what can bring further models has been imported."""
    if _family_of(name) is not None:
        return True
    if name not in BUILDERS:
        _import_more()
    return name in BUILDERS


def _family_of(name: str) -> Builder | None:
    prefix, slash, rest = name.partition("/")
    family = _FAMILIES.get(prefix)
    return partial(family, rest) if slash and family is not None else None


def _import_more() -> None:
    for bring in more_models:
        bring()


def create_model(name: str, *, num_classes: int = 0, backend: str | None = None, **overrides: Any) -> SpectrogramModel:
    """Build a model with fresh weights.

    Args:
        name: one of ``list_models()``, or ``timm/NAME``, ``hf/PATH``: see ``mast.adapters``.
        num_classes: width of the head; 0 for features.
        backend: what computes the blocks, see ``mast.accelerate``. Default: what ``mast.set_backend`` chose, else
            "auto", the fastest that equals the plain code. "reference" is the plain code itself, which is also what a
            class called directly, as ``mast.MAST()``, gives.
        overrides: constructor arguments of the model that replace the variant's.

    Returns:
        The model; ``model(x)`` takes (B, 1, mels, frames).

    Raises:
        ValueError: unknown name, or a value that the model refuses.
        TypeError: an argument that the model does not have.
    """
    from mast.fast import accelerate, default_backend  # it knows the models, which register themselves here

    if not is_registered(name):
        close = difflib.get_close_matches(name, BUILDERS, n=3, cutoff=0.4)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise ValueError(f"unknown model {name!r}{hint} (models: {', '.join(list_models())})")
    model = (_family_of(name) or BUILDERS[name])(num_classes=num_classes, **overrides)
    model.name = name  # type: ignore[assignment]
    return accelerate(model, backend or default_backend())  # type: ignore[arg-type]
