"""A published AST, of transformers' ``ASTForAudioClassification`` and its feature extractor, as AST and LogMel of mast.

``mast.from_pretrained`` reads its folder through these functions; waveforms then get its logits.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mast.ast import NORM_EPS

# transformers 4 and 5 differ in the names of the layers' parts; both are understood.
_RENAMES = [
    (r"^audio_spectrogram_transformer\.", ""),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "positions"),
    (r"^(encoder\.)?layers?\.(\d+)\.", r"blocks.\2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.output\.dense\.", ".proj."),
    (r"\.attention\.o_proj\.", ".proj."),
    (r"\.attention\.attention\.(query|key|value)\.", r".attention.\1."),
    (r"\.attention\.q_proj\.", ".attention.query."),
    (r"\.attention\.k_proj\.", ".attention.key."),
    (r"\.attention\.v_proj\.", ".attention.value."),
    (r"\.(intermediate\.dense|mlp\.fc1)\.", ".mlp.fc1."),
    (r"\.(output\.dense|mlp\.fc2)\.", ".mlp.fc2."),
    (r"^layernorm\.", "norm."),
    (r"^classifier\.layernorm\.", "head.0."),
    (r"^classifier\.dense\.", "head.1."),
]


def from_hugging_face_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names and shapes of an ``ASTForAudioClassification.state_dict()`` turned into those of ``AST``.

    Transformers' model takes (B, frames, mels), this one (B, 1, mels, frames).
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for pattern, replacement in _RENAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    out = {name: tensor for name, tensor in renamed.items() if ".attention." not in name}
    specials = [out.pop(f"embeddings.{token}_token") for token in ("cls", "distillation")]
    out["special_tokens"] = torch.cat(specials, dim=1)
    for name in renamed:
        if ".attention.query." in name:
            parts = [renamed[name.replace("query", part)] for part in ("query", "key", "value")]
            out[name.replace("attention.query", "qkv")] = torch.cat(parts)
    return out


def hugging_face_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """``config.json`` of transformers' AST -> arguments of :class:`AST`, the number of classes apart.

    Shorter inputs take the middle of the positions, as in the original.

    Raises:
        ValueError: a setting that :class:`AST` does not have.
    """
    fixed = {"hidden_act": "gelu", "qkv_bias": True, "layer_norm_eps": NORM_EPS}
    for key, value in fixed.items():
        if config.get(key, value) != value:
            raise ValueError(f"{key}: AST here has {value!r}, not {config[key]!r}")
    strides = config.get("frequency_stride", 10), config.get("time_stride", 10)
    if strides[0] != strides[1]:
        raise ValueError(
            f"frequency_stride, time_stride: AST here has equal strides, not {strides[0]} and {strides[1]}"
        )
    width = int(config.get("hidden_size", 768))
    return {
        "embed_dim": width,
        "depth": int(config.get("num_hidden_layers", 12)),
        "heads": int(config.get("num_attention_heads", 12)),
        "mlp_ratio": int(config.get("intermediate_size", 4 * width)) / width,
        "patch_size": int(config.get("patch_size", 16)),
        "patch_stride": int(strides[0]),
        "short_positions": "crop",
        "mels": int(config.get("num_mel_bins", 128)),
        "frames": int(config.get("max_length", 1024)),
    }


def hugging_face_frontend(config: Mapping[str, Any]) -> dict[str, Any]:
    """``preprocessor_config.json`` of transformers' ``ASTFeatureExtractor`` -> arguments of ``mast.LogMel``."""
    normalize = config.get("do_normalize", True)
    return {
        "sample_rate": int(config.get("sampling_rate", 16000)),
        "num_mels": int(config.get("num_mel_bins", 128)),
        "mean": float(config.get("mean", -4.2677393)) if normalize else None,
        "std": float(config.get("std", 4.5689974)) if normalize else None,
        "divide_by": "2*std",
        "fixed_frames": int(config.get("max_length", 1024)),
        "pad": "zero",
    }
