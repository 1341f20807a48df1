"""Models on disk: a folder with ``model.safetensors`` and ``config.json``, all that is needed to use the model again.

``config.json`` holds the model's name and constructor arguments, the frontend with its normalization, the class names
of each head, free-form extras, and the SHA-256 of the weights and of itself, which are checked on loading. Nothing is
pickled; but a model of a plug-in names the module that registers it, which is imported where the name is not known.
Files are written beside their place and moved into it.
"""

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn

from mast.base import SpectrogramModel
from mast.files import atomic_path
from mast.frontend import LogMel
from mast.hugging_face import from_hugging_face_state, hugging_face_arguments, hugging_face_frontend
from mast.plugins import PluginError, import_plugin, plugin_names_of
from mast.registry import author_of, create_model, is_registered

logger = logging.getLogger(__name__)

WEIGHTS, CONFIG = "model.safetensors", "config.json"
HUGGING_FACE_AST, PREPROCESSOR = "audio-spectrogram-transformer", "preprocessor_config.json"
FORMAT = 1
# So often, and so many seconds apart, a reader looks again while another process is saving.
_LOOKS, _PAUSE = 20, 0.05


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
    if author := author_of(model.name):  # type: ignore[arg-type]
        config["plugins"] = plugin_names_of(author)
    config = json.loads(json.dumps(config))  # as it is read again; what is not JSON fails before anything is written
    folder = Path(folder)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    # The weights come into place first, and right after them what describes them.
    with atomic_path(folder / CONFIG) as described, atomic_path(folder / WEIGHTS) as temporary:
        save_file(state, temporary, metadata={"format": "pt"})
        with temporary.open("rb") as file:
            weights = hashlib.file_digest(file, "sha256").hexdigest()
        config["sha256"] = {"weights": weights, "config": _digest(config)}
        described.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return folder


def load_pretrained(folder: str | Path, *, num_classes: int | None = None) -> Pretrained:
    """Read what ``save_pretrained`` wrote, or the folder of an AST in Hugging Face's format.

    The latter becomes an ``ast_base`` of its size, with the frontend of its feature extractor: spectrograms filled up
    with 0 before the normalization to its number of frames, or cut.

    Args:
        folder: with ``model.safetensors`` and ``config.json``.
        num_classes: None keeps the saved head. Another count than the saved one makes a new head, 0 none; the report
            then lists the head as mismatched, missing or unexpected.

    Raises:
        FileNotFoundError: a file is absent.
        LoadError: a file is unreadable or not as it was written, the model unknown or its weights don't match. A folder
            without checksums, as other tools write it, is taken as it is.
    """
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}; it is not a folder written by save_pretrained")
    config, data = _of_one_save(folder)
    try:
        state = load(data)
        if config.get("format") == HUGGING_FACE_AST:
            state = from_hugging_face_state(state)
            classifier = state.get("head.1.weight")
            config["model"]["num_classes"] = 0 if classifier is None else len(classifier)
    except (SafetensorError, KeyError, RuntimeError) as error:
        if "can't allocate memory" in str(error):  # torch's word for a machine without memory
            raise
        raise LoadError(f"{folder / WEIGHTS} is damaged or no safetensors file: {error}") from error
    del data
    arguments = dict(config["model"])
    if num_classes is not None:
        arguments["num_classes"] = num_classes
    _import_author(folder, config)
    try:
        model = create_model(arguments.pop("name"), **arguments)
        frontend = None if config.get("frontend") is None else LogMel(**config["frontend"])
    except (TypeError, ValueError) as error:
        raise LoadError(f"{folder / CONFIG}: {error}") from error
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


def _import_author(folder: Path, config: Mapping[str, Any]) -> None:
    """Imports the plug-in that registers the model of ``config``, where it has not been imported.

    Raises:
        LoadError: it is not there, and nothing else has registered the model.
    """
    name = config["model"]["name"]
    if not config.get("plugins") or is_registered(name):
        return
    try:
        for plugin in config["plugins"]:
            import_plugin(plugin)
    except PluginError as error:
        raise LoadError(
            f"{folder / CONFIG}: its model {name} is of a plug-in; {error}: if it has moved, import it first"
        ) from error


def _of_one_save(folder: Path) -> tuple[dict[str, Any], bytes]:
    """``config.json`` and the bytes of the weights that it describes, also while another process saves anew.

    Raises:
        LoadError: they do not fit each other, or cannot be read.
    """
    config = read_config(folder)
    for _ in range(_LOOKS):
        try:
            data = (folder / WEIGHTS).read_bytes()  # read once, for both the checksum and the weights
        except FileNotFoundError as error:
            raise LoadError(f"{folder / WEIGHTS} is damaged or no safetensors file: {error}") from error
        if config["sha256"].get("weights", "") in ("", hashlib.sha256(data).hexdigest()):
            return config, data
        before, config = config, read_config(folder)
        if config == before:
            if not any(folder.glob(f".{Path(CONFIG).stem}.*.tmp{Path(CONFIG).suffix}")):  # nobody is saving
                break
            time.sleep(_PAUSE)
    raise LoadError(
        f"{folder / WEIGHTS} is damaged, or of another save than {CONFIG} (its checksum differs): copy the folder again"
    )


def read_config(folder: Path) -> dict[str, Any]:
    """What ``config.json`` of a folder of ``save_pretrained`` says, compared with its checksum.

    Raises:
        LoadError: it is damaged, or another file.
        OSError: it cannot be read.
    """
    config = _read_json(folder / CONFIG)
    if isinstance(config, dict) and config.get("model_type") == HUGGING_FACE_AST:
        return _hugging_face_config(folder, config)
    described = isinstance(config, dict) and isinstance(config.get("model"), dict) and "name" in config["model"]
    if not described or config.get("format") != FORMAT:
        raise LoadError(
            f"{folder / CONFIG}: not a format-{FORMAT} file of save_pretrained (fields: format, model.name)"
        )
    sums = config.get("sha256") if isinstance(config.get("sha256"), dict) else {}
    if sums.get("config", _digest(config)) != _digest(config):
        raise LoadError(
            f"{folder / CONFIG} is not as it was written (its checksum differs): copy the folder again; if you changed "
            'it yourself, take its entry "sha256" out'
        )
    return config | {"sha256": sums}


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise LoadError(f"{file} is not JSON: {error}") from error


def _hugging_face_config(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """An AST of transformers as ``save_pretrained`` would describe it; the number of classes is in its weights."""
    if not (folder / PREPROCESSOR).is_file():
        raise LoadError(f"{folder} has no {PREPROCESSOR}, which tells how its spectrograms are made: copy it, too")
    names = config.get("id2label") or {}
    try:
        labels = [str(names[key]) for key in sorted(names, key=int)]
        if "ASTModel" in (config.get("architectures") or ()):  # without a head; the names are a default
            labels = []
        frontend = hugging_face_frontend(_read_json(folder / PREPROCESSOR))
        model = {"name": "ast_base", **hugging_face_arguments(config)}
    except (TypeError, ValueError, AttributeError) as error:
        raise LoadError(f"{folder}: {error}") from error
    return {
        "format": HUGGING_FACE_AST,
        "model": model,
        "frontend": frontend,
        "labels": {"label": labels} if labels else {},
        "extra": {"multilabel": ["label"]} if config.get("problem_type") == "multi_label_classification" else {},
        "sha256": {},
    }


def _digest(config: Mapping[str, Any]) -> str:
    """SHA-256 of all entries but the checksums, however the file is laid out."""
    entries = {key: value for key, value in config.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()
