"""Audio encoders and pairs from what ``--checkpoint`` names: a run folder, an export, a .ckpt file, or none."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mast
from avssl.checkpoint import read_checkpoint
from avssl.config import AudioConfig
from avssl.data.batch import Batch
from avssl.models.pair import AudioVisualPair

logger = logging.getLogger(__name__)

EXPORT = "audio_encoder"
# Options of a model that its weights do not depend on.
REGULARIZATION = ("drop_path",)


@dataclass
class AudioEncoder:
    """An audio encoder with the frontend that it was trained with, and the class names of its head."""

    encoder: mast.SpectrogramModel
    frontend: mast.LogMel
    labels: dict[str, list[str]]

    def features(self, batch: Batch) -> Tensor:
        """Features (B, D), before any head, of a batch on the encoder's device."""
        assert batch.audio is not None
        return self.encoder.forward_head(self.encoder.forward_features(self.frontend(batch.audio)), pre_logits=True)


def frontend_options(config: AudioConfig) -> dict[str, Any]:
    """Keyword arguments of the frontend."""
    options: dict[str, Any] = {"sample_rate": config.sample_rate, "num_mels": config.num_mels}
    return options | {key: value for key in ("mean", "std") if (value := getattr(config, key)) is not None}


def random_encoder(config: AudioConfig) -> AudioEncoder:
    """The encoder of ``config`` with random weights."""
    frontend = mast.LogMel(**frontend_options(config))
    return AudioEncoder(mast.create_model(config.model, num_classes=0, **config.options), frontend, {})


def load_audio_encoder(path: Path) -> AudioEncoder:
    """The audio encoder of ``path``.

    Args:
        path: A run folder, an exported encoder, or a .ckpt file of a pretraining run.

    Raises:
        FileNotFoundError: when there is nothing at ``path``, or its run is not finished.
        ValueError: when it holds another kind of model.
    """
    if path.suffix == ".ckpt":
        pair = load_pair(path)
        return AudioEncoder(pair.audio, pair.frontend, {})
    folder = path / EXPORT if (path / EXPORT).is_dir() else path
    if not (folder / "config.json").is_file():
        if (path / "checkpoints").is_dir():
            raise FileNotFoundError(
                f"checkpoint: the run {path} is not finished; resume it, or name {path / 'checkpoints' / 'last.ckpt'}"
            )
        raise FileNotFoundError(
            f"checkpoint: {path} is neither a run folder, nor an exported encoder, nor a .ckpt file"
        )
    loaded = mast.from_pretrained(folder)
    if loaded.frontend is None:
        raise ValueError(f"checkpoint: {folder} was exported without its frontend; its spectrograms cannot be remade")
    return AudioEncoder(loaded.model, loaded.frontend, loaded.labels or {})


def with_settings(source: AudioEncoder, config: AudioConfig) -> AudioEncoder:
    """A checkpoint's encoder under the audio settings that are given beside it, as a recipe gives them.

    Regularization is changed to what they say; everything else they say must be true of the encoder already.

    Raises:
        ValueError: it is not; the message names the first such setting.
    """
    if config == AudioConfig():  # nothing was given
        return source
    encoder, frontend = source.encoder, source.frontend.config
    pairs: dict[str, tuple[Any, Any]] = {"model": (encoder.name, config.model)}
    pairs |= {key: (frontend[key], value) for key, value in frontend_options(config).items()}
    pairs |= {f"options.{key}": (encoder.config.get(key), value) for key, value in config.options.items()}
    for key, (own, given) in pairs.items():
        if own != given and key.removeprefix("options.") not in REGULARIZATION:
            raise ValueError(
                f"audio.{key}: the checkpoint's encoder has {own!r}, not {given!r}; beside a checkpoint leave audio "
                "settings out, or give its own"
            )
    changed = {key: value for key, value in config.options.items() if key in REGULARIZATION}
    twin = mast.create_model(encoder.name, **encoder.config | changed)
    twin.load_state_dict(encoder.state_dict())
    return AudioEncoder(twin, source.frontend, source.labels)


def load_pair(path: Path) -> AudioVisualPair:
    """The audio-visual pair of a pretraining run's folder or .ckpt file.

    Raises:
        FileNotFoundError: when there is no such checkpoint.
        ValueError: when it is no checkpoint of a pair.
    """
    file = path if path.suffix == ".ckpt" else path / "checkpoints" / "last.ckpt"
    if not file.is_file():
        raise FileNotFoundError(f"checkpoint: there is no {file}")
    state = read_checkpoint(file)
    if state["settings"].get("kind") != "pair":
        raise ValueError(f"checkpoint: {file} holds a {state['settings'].get('kind')}, not an audio-visual pair")
    pair = AudioVisualPair.build(**state["settings"]["pair"])
    prefix, weights = ("module.", state["average"]) if state["average"] else ("pair.", state["task"])
    weights = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    try:
        pair.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise ValueError(f"checkpoint: the weights of {file} do not fit its settings: {error}") from error
    return pair


def is_pair(path: Path) -> bool:
    """Whether ``path`` is a pretraining run or its .ckpt, which has a video encoder too."""
    file = path if path.suffix == ".ckpt" else path / "checkpoints" / "last.ckpt"
    return file.is_file() and read_checkpoint(file)["settings"].get("kind") == "pair"


def export_audio_encoder(
    folder: Path,
    encoder: mast.SpectrogramModel,
    frontend: mast.LogMel,
    labels: dict[str, list[str]],
    extra: dict[str, Any],
) -> None:
    """Writes the encoder, frontend and labels where ``load_audio_encoder`` and ``mast.from_pretrained`` find them."""
    with torch.no_grad():
        mast.save_pretrained(encoder, folder, frontend=frontend, labels=labels, extra=extra)
    logger.info("exported the audio encoder to %s", folder)
