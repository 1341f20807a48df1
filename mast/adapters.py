"""Backbones of other libraries as audio encoders, by name as any other: ``timm/NAME`` and ``hf/PATH``.

A timm model sees a spectrogram as an image of one channel; a transformers model is an Audio Spectrogram Transformer
with the code of that library. Neither library is imported before it is asked for, and nothing is downloaded: weights
are random, or of a local file. What is computed is the library's own forward pass, layer for layer.
"""

import difflib
import math
import sys
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mast.ast import fitted_positions
from mast.base import SpectrogramModel, check_spectrogram
from mast.registry import register_family

_POOLS = ("own", "patch")
_INSTALL = "it is not installed: pip install 'avssl[backbones]' or pip install {}"


class Backbone(SpectrogramModel):
    """A model of another library in ``body``, whose parameters keep their names.

    Args:
        config: constructor arguments, without those that load weights: a saved model brings its own.
        body: the model.
        num_features: channels of its tokens.
        num_prefix_tokens: class tokens and the like before the patches' tokens.
        pool: what features are: "own", the library's, or "patch", the mean of the patch tokens.
    """

    def __init__(
        self, config: dict[str, Any], body: nn.Module, num_features: int, num_prefix_tokens: int, pool: str
    ) -> None:
        if pool not in _POOLS:
            raise ValueError(f"pool={pool!r} must be own or patch")
        super().__init__({"num_classes": 0, **config, "pool": pool}, num_features)
        self.body: Any = body
        self.num_prefix_tokens = num_prefix_tokens

    @property
    @abstractmethod
    def blocks(self) -> list[nn.Module]:  # type: ignore[override]  # found anew: they may have been wrapped
        """The repeated blocks of ``body``, from the input on."""

    @abstractmethod
    def own_features(self, tokens: Tensor) -> Tensor:
        """Features (B, num_features) of the output (B, N, num_features), as the library pools it."""

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens (B, prefix + N, num_features) -> logits (B, num_classes), or features (B, num_features)."""
        own = self.config["pool"] == "own"
        features = self.own_features(tokens) if own else tokens[:, self.num_prefix_tokens :].mean(dim=1)
        return features if pre_logits else self.head(features)

    def layer_of(self, name: str) -> int:
        """The layer of a parameter; one between two blocks, such as a merging of patches, is of the second one's."""
        inside = {id(value): number for number, block in enumerate(self.blocks, 1) for value in block.parameters()}
        last, layers = 0, {}
        for own_name, value in self.named_parameters():
            last = max(last, inside.get(id(value), 0))
            layers[own_name] = inside.get(id(value), last + 1 if last else 0)
        return layers[name]

    def rebuilding_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in self.config.items() if key != "num_classes"}


class TimmModel(Backbone):
    """A backbone of timm on spectrograms of one channel.

    Positions are resized to the spectrogram's grid, and weights of three input channels are summed, both by timm.
    Inputs are filled up with zeros to whole patches.

    Args:
        architecture: a name of ``timm.list_models()``.
        num_classes: width of the head; 0 for features.
        weights: file of weights for it, as timm reads them; None for random ones.
        options: further arguments of the architecture, for example ``{"drop_path_rate": 0.1}``.
        pool: "own", what timm pools, or "patch", the mean of the patch tokens; None: own, where that is as wide.
        mels, frames: reference input size, the only one for architectures whose windows or positions are fixed.

    Raises:
        ImportError: timm is missing.
        ValueError: an architecture that timm does not have, that gives no grid, or weights that do not fit it.
    """

    def __init__(
        self,
        architecture: str,
        *,
        num_classes: int = 0,
        weights: str | None = None,
        options: Mapping[str, Any] | None = None,
        pool: str | None = None,
        mels: int = 128,
        frames: int = 1024,
    ) -> None:
        try:
            import timm
            from timm.layers import PatchEmbed
        except ImportError as error:
            raise ImportError(f"timm/{architecture}: {_INSTALL.format('timm')}") from error
        if not timm.is_model(architecture):
            near = difflib.get_close_matches(architecture, timm.list_models(), n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise ValueError(f"timm {timm.__version__} has no {architecture!r}{hint}")
        body, self_sized = _timm_body(timm, architecture, (mels, frames), dict(options or {}))
        device = torch.get_default_device()
        if weights is not None and device.type != "meta":
            _load_timm_weights(body, architecture, weights)
        body = body.to(device)
        prefix = int(getattr(body, "num_prefix_tokens", 0))
        wide = getattr(body, "head_hidden_size", body.num_features) == body.num_features
        if pool == "own" and not wide:
            raise ValueError(f"timm/{architecture}: its own features are wider than its tokens; give pool patch")
        config = {"options": dict(options or {}), "mels": mels, "frames": frames}
        super().__init__(config, body, int(body.num_features), prefix, pool or ("own" if wide else "patch"))
        self.architecture, self.self_sized = architecture, self_sized
        self.channels_first = getattr(body, "output_fmt", "NCHW") != "NHWC"
        patches = getattr(body, "patch_embed", None)
        reduction = _feature_info(body)[-1]["reduction"]
        self._stride = (reduction, reduction)
        if isinstance(patches, PatchEmbed) and hasattr(body, "num_prefix_tokens"):
            self._stride = (int(patches.proj.stride[0]), int(patches.proj.stride[1]))
        self.is_sequence = isinstance(patches, PatchEmbed) and hasattr(body, "num_prefix_tokens")
        if not self.blocks:
            raise ValueError(f"timm/{architecture}: its blocks are not known here; wrap it in a SpectrogramModel")
        self.reset_classifier(num_classes)

    @property
    def blocks(self) -> list[nn.Module]:  # type: ignore[override]
        tops = dict.fromkeys(info["module"].split(".")[0] for info in _feature_info(self.body))
        kept = [getattr(self.body, top) for top in tops if not top.startswith(_STEMS)]
        return [block for part in kept for block in _blocks_of(part)]

    @property
    def stride(self) -> tuple[int, int]:
        """Mel bins and frames between neighbouring tokens of ``forward_grid``."""
        return self._stride

    def _output(self, x: Tensor) -> Tensor:
        check_spectrogram(x, self.name or self.architecture)
        if not self.self_sized and tuple(x.shape[2:]) != (self.config["mels"], self.config["frames"]):
            raise ValueError(
                f"timm/{self.architecture}: takes {self.config['mels']} mel bins x {self.config['frames']} frames, not "
                f"{x.shape[2]} x {x.shape[3]}: set its options mels and frames"
            )
        rest = [-size % step for size, step in zip(x.shape[2:], self._stride, strict=True)]
        if any(rest):
            x = F.pad(x, (0, rest[1], 0, rest[0]))
        output: Tensor = self.body.forward_features(x)
        if output.ndim == 3 and not self.is_sequence:
            raise ValueError(f"timm/{self.architecture}: gives tokens whose grid is not known here")
        return output

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, 1, mels, frames) -> timm's ``forward_features`` as tokens (B, prefix + N, num_features)."""
        output = self._output(x)
        return output if output.ndim == 3 else self._cells(output).flatten(1, 2)

    def forward_grid(self, x: Tensor) -> Tensor:
        """(B, 1, mels, frames) -> patch tokens on their grid of frequency and time (B, F', T', num_features)."""
        output = self._output(x)
        if output.ndim == 4:
            return self._cells(output)
        return output[:, self.num_prefix_tokens :].unflatten(1, (math.ceil(x.shape[2] / self._stride[0]), -1))

    def _cells(self, output: Tensor) -> Tensor:
        return output.movedim(1, -1) if self.channels_first else output

    def own_features(self, tokens: Tensor) -> Tensor:
        if self.is_sequence:
            return self.body.forward_head(tokens, pre_logits=True)
        cells = tokens.unsqueeze(1)  # (B, 1, N, C): pooled over all places, whatever their arrangement
        return self.body.forward_head(cells.movedim(-1, 1) if self.channels_first else cells, pre_logits=True)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay should leave alone: biases, norms, and those that timm names."""
        named: set[str] = getattr(self.body, "no_weight_decay", set)()
        return super().no_weight_decay() | {f"body.{name}" for name in named}


# What precedes the blocks, by the beginning of its name, where timm counts it as a level of features.
_STEMS = ("stem", "conv", "bn", "act", "patch", "norm", "maxpool", "features_stem")


def _feature_info(body: Any) -> Sequence[Mapping[str, Any]]:
    info = getattr(body, "feature_info", None) or []
    found = info if isinstance(info, list) else info.info
    if not found:
        raise ValueError(f"{type(body).__name__} of timm tells no feature_info; wrap it in a SpectrogramModel")
    return found


def _blocks_of(module: nn.Module) -> list[nn.Module]:
    """The blocks of a stage, or of a list of stages; a block that has no list of others inside is one itself."""
    if not hasattr(module, "_checkpoint_wrapped_module"):
        listed = getattr(module, "blocks", module)
        if isinstance(listed, nn.Sequential | nn.ModuleList):
            return [block for child in listed for block in _blocks_of(child)]
    return [module]


def _timm_body(timm: Any, architecture: str, size: tuple[int, int], options: dict[str, Any]) -> tuple[Any, bool]:
    """The model, and whether it takes inputs of other sizes; built on the CPU, since timm computes while it builds."""
    ways: tuple[dict[str, Any], ...] = ({"img_size": size, "dynamic_img_size": True}, {"img_size": size}, {})
    for sized in ways:
        try:
            with torch.device("cpu"):
                return timm.create_model(architecture, in_chans=1, num_classes=0, **sized, **options), sized != ways[1]
        except TypeError as error:
            if not any(f"'{key}'" in str(error) for key in sized):
                raise TypeError(f"timm/{architecture}: {error}") from error
    raise AssertionError("the last way names no size")


def _load_timm_weights(body: Any, architecture: str, file: str) -> None:
    """Loads a file of weights as timm does for one input channel and no classes, but every tensor must be there.

    Raises:
        ValueError: it is no such file, or of another model.
    """
    from timm.models import adapt_input_conv, load_state_dict

    path = Path(file).expanduser()
    if not path.is_file():
        raise ValueError(f"timm/{architecture}: there is no file of weights {file}")
    settings = body.pretrained_cfg
    try:
        state = load_state_dict(str(path), device="cpu", weights_only=True)
        if rename := getattr(sys.modules[type(body).__module__], "checkpoint_filter_fn", None):
            state = rename(state, body)
        first = settings.get("first_conv") or ()
        for name in (first,) if isinstance(first, str) else first:
            state[f"{name}.weight"] = adapt_input_conv(1, state[f"{name}.weight"])
        heads = settings.get("classifier") or ()
        heads = (heads,) if isinstance(heads, str) else tuple(heads)
        own = body.state_dict()
        kept = {key: value for key, value in state.items() if key in own or key.rpartition(".")[0] not in heads}
        body.load_state_dict(kept)
    except Exception as error:  # whatever timm and the unpickler make of another file
        told = next(iter(str(error).splitlines()[1:2] or str(error).splitlines()), repr(error)).strip()
        raise ValueError(f"timm/{architecture}: the weights of {file} do not fit it: {told}") from error


class HuggingFaceAST(Backbone):
    """transformers' ``ASTModel``; its positions are fitted where a spectrogram is not of its own length.

    Args:
        folder: what ``save_pretrained`` of transformers wrote; not looked at where there are ``settings``.
        num_classes: width of the head; 0 for features.
        pretrained: load the weights of the folder; False leaves random ones.
        settings: what the folder's ``config.json`` holds, for a model with random weights, which a checkpoint fills.
        pool: "own", the mean of the two special tokens, or "patch", that of the patch tokens.
        short_positions: what a shorter spectrogram takes of the positions: "crop", their middle, as in the original, or
            "interpolate"; None: crop, but interpolate with ``settings``, which were kept without it when all were
            interpolated.

    Raises:
        ImportError: transformers is missing.
        ValueError: a folder of another kind of model: wav2vec 2.0 and its like hear waveforms, and Whisper has a
            log-mel of its own, which ``mast.LogMel`` does not make.
    """

    def __init__(
        self,
        folder: str,
        *,
        num_classes: int = 0,
        pretrained: bool = True,
        settings: Mapping[str, Any] | None = None,
        pool: str = "own",
        short_positions: str | None = None,
    ) -> None:
        if short_positions not in (None, "crop", "interpolate"):
            raise ValueError(f"short_positions={short_positions!r} must be crop or interpolate")
        short_positions = short_positions or ("crop" if settings is None else "interpolate")
        try:
            from transformers import ASTConfig, ASTModel, PretrainedConfig
        except ImportError as error:
            raise ImportError(f"hf/{folder}: {_INSTALL.format('transformers')}") from error
        pretrained = pretrained and settings is None
        if settings is None:
            if not (Path(folder).expanduser() / "config.json").is_file():
                raise ValueError(f"hf/{folder}: there is no config.json in it; give a local folder of transformers")
            settings = PretrainedConfig.get_config_dict(str(Path(folder).expanduser()), local_files_only=True)[0]
        kind = settings.get("model_type")
        if kind != "audio-spectrogram-transformer":
            raise ValueError(
                f"hf/{folder}: a model of type {kind} does not take log-mel spectrograms as mast.LogMel makes them; "
                "audio-spectrogram-transformer does"
            )
        device = torch.get_default_device()
        with torch.device("cpu"):
            if pretrained and device.type != "meta":
                body = ASTModel.from_pretrained(str(Path(folder).expanduser()), local_files_only=True)
            else:
                body = ASTModel(ASTConfig.from_dict(dict(settings)))
        kept = {"settings": _plain(settings), "short_positions": short_positions}
        super().__init__(kept, nn.Module.to(body, device), int(body.config.hidden_size), 2, pool)
        self.reset_classifier(num_classes)

    @property
    def blocks(self) -> list[nn.Module]:  # type: ignore[override]
        body = self.body
        return list(body.layers if hasattr(body, "layers") else body.encoder.layer)  # transformers 5, 4

    @property
    def stride(self) -> tuple[int, int]:
        """Mel bins and frames between neighbouring tokens of ``forward_grid``."""
        return self.body.config.frequency_stride, self.body.config.time_stride

    def _grid(self, mels: int, frames: int) -> tuple[int, int]:
        config = self.body.config
        steps = ((mels, config.frequency_stride), (frames, config.time_stride))
        rows, columns = ((size - config.patch_size) // step + 1 for size, step in steps)
        return rows, columns

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, 1, mels, frames) -> transformers' ``last_hidden_state`` (B, 2 + N, num_features)."""
        check_spectrogram(x, self.name or "ASTModel")
        config, positions = self.body.config, self.body.embeddings.position_embeddings
        own, grid = self._grid(config.num_mel_bins, config.max_length), self._grid(x.shape[2], x.shape[3])
        if x.shape[2] != config.num_mel_bins or min(grid) < 1:
            raise ValueError(
                f"{self.name}: takes {config.num_mel_bins} mel bins and at least {config.patch_size} frames, got "
                f"{x.shape[2]} and {x.shape[3]}"
            )
        inputs = x[:, 0].transpose(1, 2)  # (B, frames, mels)
        if grid == own:
            return self.body(inputs).last_hidden_state
        image = positions[:, 2:].transpose(1, 2).unflatten(2, own)
        if self.config["short_positions"] == "crop":
            for axis, length in enumerate(grid):
                image = fitted_positions(image, axis, length, cut=True)
        else:
            image = F.interpolate(image, size=grid, mode="bilinear", align_corners=False)
        resized = torch.cat((positions[:, :2], image.flatten(2).transpose(1, 2)), dim=1)
        swapped = {"embeddings.position_embeddings": resized}
        return torch.func.functional_call(self.body, swapped, (inputs,)).last_hidden_state

    def forward_grid(self, x: Tensor) -> Tensor:
        """(B, 1, mels, frames) -> patch tokens on their grid of frequency and time (B, F', T', num_features)."""
        return self.forward_features(x)[:, 2:].unflatten(1, self._grid(x.shape[2], x.shape[3]))

    def own_features(self, tokens: Tensor) -> Tensor:
        return (tokens[:, 0] + tokens[:, 1]) / 2

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay should leave alone: biases, norms, tokens, positions."""
        names = ("cls_token", "distillation_token", "position_embeddings")
        return super().no_weight_decay() | {f"body.embeddings.{name}" for name in names}


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if not key.startswith("_") and key != "transformers_version"}


register_family("timm")(TimmModel)
register_family("hf")(HuggingFaceAST)
