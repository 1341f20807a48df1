"""Models on disk: a folder with ``model.safetensors`` and ``config.json``, all that is needed to use the model again.

``config.json`` holds the model's name and constructor arguments, the frontend with its normalization, the class names
of each head, and free-form extras. Nothing is pickled. Files are written beside their place and moved into it.
"""

import json
import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mast.base import SpectrogramModel
from mast.frontend import LogMel
from mast.registry import create_model

logger = logging.getLogger(__name__)

WEIGHTS, CONFIG = "model.safetensors", "config.json"
FORMAT = 1


class LoadError(ValueError):
    """A folder or a state dict that does not give the model that was asked for."""


@dataclass
class LoadReport:
    """What ``load_weights`` did: names of parameters and buffers."""

    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} tensors loaded"]
        for kind in ("missing", "unexpected", "mismatched"):
            names = getattr(self, kind)
            if names:
                parts.append(f"{len(names)} {kind}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}")
        return "; ".join(parts)


@dataclass
class Pretrained:
    """A model with what belongs to it.

    Attributes:
        model: in eval mode.
        frontend: the log-mel of its training, or None where none was saved.
        labels: head name -> ordered class names.
        extra: whatever was saved beside it.
        report: which weights were loaded.
    """

    model: SpectrogramModel
    frontend: LogMel | None
    labels: dict[str, list[str]]
    extra: dict[str, Any]
    report: LoadReport


def load_weights(model: nn.Module, state: Mapping[str, Tensor], *, head_prefix: str = "head.") -> LoadReport:
    """Copy ``state`` into ``model``. Only the head may differ.

    Args:
        model: with the usual ``state_dict``.
        state: name -> tensor.
        head_prefix: names that begin with it may be missing, left over or of another shape.

    Raises:
        LoadError: any other difference; the message is the report.
    """
    own = model.state_dict()
    report = LoadReport(
        missing=sorted(set(own) - set(state)),
        unexpected=sorted(set(state) - set(own)),
        mismatched=sorted(name for name in set(own) & set(state) if own[name].shape != state[name].shape),
    )
    refused = [n for n in report.missing + report.unexpected + report.mismatched if not n.startswith(head_prefix)]
    report.loaded = sorted(set(own) & set(state) - set(report.mismatched))
    if refused:
        shapes = [f"{n} {tuple(state[n].shape)} for {tuple(own[n].shape)}" for n in report.mismatched[:5]]
        detail = f" (shapes: {', '.join(shapes)})" if shapes else ""
        raise LoadError(f"weights are of another model than {getattr(model, 'name', '')!r}: {report}{detail}")
    model.load_state_dict({**own, **{name: state[name] for name in report.loaded}})
    return report


def save_pretrained(
    model: nn.Module,
    folder: str | Path,
    *,
    frontend: LogMel | None = None,
    labels: Mapping[str, list[str]] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model made by ``create_model`` into ``folder``, which is created.

    Args:
        model: with ``name`` and ``config``.
        frontend: the log-mel that the model expects.
        labels: head name -> ordered class names.
        extra: JSON-able values.

    Returns:
        The folder.

    Raises:
        ValueError: the model has no registry name, or no head of ``labels`` has as many classes as the model.
        TypeError: ``extra`` is not JSON-able.
    """
    if not getattr(model, "name", ""):
        raise ValueError(f"{type(model).__name__} has no registry name; build it with mast.create_model")
    counts = {head: len(names) for head, names in (labels or {}).items()}
    classes = getattr(model, "num_classes", 0)
    if counts and classes and classes not in (*counts.values(), sum(counts.values())):
        raise ValueError(f"labels have {counts} classes, the model's head has {classes}")
    config = {
        "format": FORMAT,
        "model": {"name": model.name, **model.config},  # type: ignore[dict-item]
        "frontend": None if frontend is None else frontend.config,
        "labels": {head: list(names) for head, names in (labels or {}).items()},
        "extra": dict(extra or {}),
    }
    text = json.dumps(config, indent=2) + "\n"
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_file(folder / WEIGHTS, lambda path: save_file(state, path, metadata={"format": "pt"}))
    write_file(folder / CONFIG, lambda path: Path(path).write_text(text, encoding="utf-8"))
    return folder


def load_pretrained(folder: str | Path, *, num_classes: int | None = None) -> Pretrained:
    """Read what ``save_pretrained`` wrote.

    Args:
        folder: with ``model.safetensors`` and ``config.json``.
        num_classes: None keeps the saved head. Another count than the saved one makes a new head, 0 none; the report
            then lists the head as mismatched, missing or unexpected.

    Raises:
        FileNotFoundError: a file is absent.
        LoadError: a file is unreadable, the model unknown or its weights don't match.
    """
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}; it is not a folder written by save_pretrained")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise LoadError(f"{folder / CONFIG} is not JSON: {error}") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT or "name" not in config.get("model", {}):
        raise LoadError(
            f"{folder / CONFIG}: not a format-{FORMAT} file of save_pretrained (fields: format, model.name)"
        )
    arguments = dict(config["model"])
    if num_classes is not None:
        arguments["num_classes"] = num_classes
    try:
        model = create_model(arguments.pop("name"), **arguments)
        frontend = None if config.get("frontend") is None else LogMel(**config["frontend"])
    except (TypeError, ValueError) as error:
        raise LoadError(f"{folder / CONFIG}: {error}") from error
    try:
        state = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise LoadError(f"{folder / WEIGHTS} is damaged or no safetensors file: {error}") from error
    same_head = num_classes is None or num_classes == config["model"].get("num_classes")
    try:
        report = load_weights(model, state, head_prefix="\0" if same_head else "head.")
    except LoadError as error:
        raise LoadError(f"{folder}: {error}") from error
    if not same_head:
        logger.warning("%s: the head is new (%s classes): %s", folder, num_classes, report)
    labels = {head: list(names) for head, names in (config.get("labels") or {}).items()}
    return Pretrained(model.eval(), frontend, labels, dict(config.get("extra") or {}), report)


from_pretrained = load_pretrained


def write_file(path: Path, write: Callable[[str], Any]) -> None:
    """Write beside ``path`` and move it there, so that a reader never sees half a file."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        write(temporary)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
