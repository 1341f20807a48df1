"""Models as files that need neither this package nor its Python: ``torch.export`` programs and ONNX.

Batch and length are dynamic, from one clip to many and from a part of the reference length to many times as much; the
number of mels is that of the frontend. Of a model that is not ``any_length``, such as a backbone of another library,
the length is fixed: what a tracer has seen at one length may be wrong at another. A file carries what is needed to use
it: the frontend's settings, the class names, the names of input and outputs, the shortest input
(``mast.open_exported`` reads them), and its checksum.
"""

import hashlib
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from mast.base import SpectrogramModel
from mast.exportable import ExportableLogMel, Transform, exportable
from mast.files import atomic_path
from mast.frontend import LogMel
from mast.model import PatchEmbed

INSTALL = "pip install 'avssl[export]'"
METADATA = "mast.json"
CHECKSUM = b"mast.sha256"
_METADATA_PROPS = 14  # number of ModelProto's field
FORMAT = 1
# Not 1, which a tracer would take for a constant.
_TRACED_BATCH = 2


class _Traced(nn.Module):
    """Input -> (logits, features), or (features,) without a head."""

    def __init__(self, model: SpectrogramModel, frontend: LogMel | None, transform: Transform) -> None:
        super().__init__()
        self.frontend = None if frontend is None else ExportableLogMel(frontend, transform)
        self.model = exportable(model)

    def forward(self, x: Tensor, samples: Tensor | None = None) -> tuple[Tensor, ...]:
        frames = None
        if self.frontend is not None:
            frames = None if samples is None else self.frontend.valid_frames(samples)
            x = self.frontend(x, samples)
        features = self.model.features(x, frames)
        return (self.model.head(features), features) if self.model.num_classes else (features,)


def describe(
    model: SpectrogramModel,
    frontend: LogMel | None,
    labels: Mapping[str, Sequence[str]] | None = None,
    length: int | None = None,
) -> dict[str, Any]:
    """What an exported file says of itself, JSON-able.

    Args:
        model: with the ``name`` and ``config`` of ``create_model``.
        frontend: part of the graph; None where the graph takes a spectrogram.
        labels: head name -> ordered class names; the heads lie side by side in the logits.
        length: see ``export_program``.

    Raises:
        ValueError: there are not as many classes as logits; or no length is known, where it is fixed.
    """
    frames = 1
    if isinstance(patches := getattr(model, "patch_embed", None), PatchEmbed):
        frames = max(1, patches.proj.kernel_size[1] - 2 * int(patches.proj.padding[1]))
    bounds = {"shortest": frames if frontend is None else frontend.samples_for(frames)}
    if not model.any_length:
        bounds = dict.fromkeys(("shortest", "longest"), _traced_length(model, frontend, length))
    classes = sum(len(names) for names in (labels or {}).values())
    if labels and classes != model.num_classes:
        raise ValueError(f"labels name {classes} classes, the model's head has {model.num_classes}")
    return {
        "format": FORMAT,
        "model": {"name": model.name, **model.config},
        "frontend": None if frontend is None else frontend.config,
        "labels": {head: list(names) for head, names in (labels or {}).items()},
        "input": "spectrogram" if frontend is None else "waveform",
        "inputs": _inputs(model, frontend),
        **bounds,
        "outputs": ["logits", "features"] if model.num_classes else ["features"],
        "quantization": None,
    }


def _inputs(model: SpectrogramModel, frontend: LogMel | None) -> list[str]:
    """Names of a file's inputs: one that pads or masks frames also takes how many samples of each clip are sound.

    Raises:
        ValueError: the model masks padding, and the file would take spectrograms, which do not tell of it.
    """
    masks = bool(model.config.get("mask_padding"))
    if frontend is None:
        if masks:
            raise ValueError("a model with mask_padding is exported with its frontend: input waveform, not spectrogram")
        return ["spectrogram"]
    return ["waveform", "samples"] if masks or frontend.pad != "wave" else ["waveform"]


def _traced_length(model: SpectrogramModel, frontend: LogMel | None, length: int | None) -> int:
    """Samples, or frames of a spectrogram, of what is traced."""
    if length is not None:
        return length
    if (frames := model.config.get("frames")) is None:
        raise ValueError(f"{model.name or 'the model'} has no frames of its own: give the length of the file's inputs")
    return int(frames) if frontend is None else frontend.samples_for(int(frames))


def export_program(
    model: SpectrogramModel,
    frontend: LogMel | None = None,
    *,
    transform: Transform = "fft",
    mels: int | None = None,
    length: int | None = None,
) -> ExportedProgram:
    """Trace ``model``, with ``frontend`` before it where there is one.

    Args:
        model: of this package; a copy of it is traced, in eval mode.
        frontend: makes the program take a waveform (B, S) instead of a spectrogram (B, 1, mels, frames).
        transform: how the frontend takes its Fourier transforms; see ``mast.exportable.ExportableLogMel``.
        mels: of a spectrogram; default: the model's reference.
        length: samples, or frames of a spectrogram, of every input of a model that is not ``any_length``; default: the
            model's reference.

    Returns:
        A program of one input, and a second one, samples (B,) int64, where the frontend pads frames; its outputs are
        logits (B, num_classes), where there is a head, and features (B, num_features). Every grid in it has at least
        two tokens along time: see ``shortest_input``.

    Raises:
        ValueError: the length, or the mels, are neither given nor the model's.
    """
    shape = [_TRACED_BATCH, _traced_length(model, frontend, None if model.any_length else length)]
    if frontend is None:
        mels = mels or model.config.get("mels")
        if mels is None:
            raise ValueError(f"{model.name or 'the model'} has no mels of its own: give those of the spectrograms")
        shape[1:1] = [1, int(mels)]
    device = next(model.parameters()).device
    traced = _Traced(model, frontend, transform)
    given: tuple[Tensor, ...] = (torch.zeros(shape, device=device),)
    dimensions: tuple[dict[int, Any], ...] = ({0: Dim.DYNAMIC},)
    if model.any_length:
        dimensions[0][len(shape) - 1] = Dim.DYNAMIC
    if len(_inputs(model, frontend)) > 1:
        given += (torch.full((_TRACED_BATCH,), shape[1], device=device),)
        dimensions += ({0: Dim.DYNAMIC},)
    with torch.no_grad():
        return torch.export.export(traced, given, dynamic_shapes=dimensions)


def shortest_input(program: ExportedProgram) -> int:
    """Samples, or frames, of the shortest input that a program of ``export_program`` takes."""
    given = next(node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs)
    size = given.meta["val"].shape[-1]
    return size if isinstance(size, int) else int(program.range_constraints[size.node.expr].lower)


def save_program(
    model: SpectrogramModel,
    frontend: LogMel | None,
    path: str | Path,
    *,
    labels: Mapping[str, Sequence[str]] | None = None,
    mels: int | None = None,
    length: int | None = None,
) -> Path:
    """Write what ``export_program`` gives as a .pt2 file, which ``torch.export.load`` reads without this package."""
    metadata = describe(model, frontend, labels, length)
    program = export_program(model, frontend, mels=mels, length=length)
    metadata |= {"shortest": shortest_input(program)}
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={METADATA: json.dumps(metadata)})
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getvalue())
    return Path(path)


def export_onnx(
    model: SpectrogramModel,
    frontend: LogMel | None,
    path: str | Path,
    *,
    labels: Mapping[str, Sequence[str]] | None = None,
    mels: int | None = None,
    length: int | None = None,
) -> Path:
    """Write ``model``, with ``frontend`` before it where there is one, as one ONNX file with dynamic batch and length.

    Args:
        model, frontend, mels, length: see ``export_program``.
        path: of the file.
        labels: see ``describe``.

    Raises:
        ImportError: onnx or onnxscript is not installed.
        ValueError: see ``describe``.
    """
    require("onnx", "onnxscript")
    metadata = describe(model, frontend, labels, length)
    program = export_program(model, frontend, transform="product", mels=mels, length=length)
    quiet = logging.getLogger("onnxscript"), logging.getLogger("onnx_ir")
    levels = [logger.level for logger in quiet]
    names = {"input_names": metadata["inputs"], "output_names": metadata["outputs"]}
    try:
        for logger in quiet:
            logger.setLevel(logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of torch about itself
            exported = torch.onnx.export(program, dynamo=True, verbose=False, **names)
    finally:
        for logger, level in zip(quiet, levels, strict=True):
            logger.setLevel(level)
    assert exported is not None
    file = exported.model_proto
    _name_dimensions(file.graph, "samples" if frontend is not None else "frames")
    _set_metadata(file, metadata)
    with atomic_path(path) as temporary:
        temporary.write_bytes(sealed(file.SerializeToString()))
    return Path(path)


def quantize_onnx(source: str | Path, path: str | Path) -> Path:
    """Write a file of ``export_onnx`` again with the weights of its linear layers in 8 bits, their inputs on the fly.

    The frontend, the patch embedding, the attention products and the head stay in float32: they hold few weights, and
    the logarithm of the one and the softmax of the other would show the rounding.

    Raises:
        ImportError: onnx or onnxruntime is not installed.
        ValueError: ``source`` is damaged, not of ``export_onnx``, or in 8 bits already.
    """
    require("onnx", "onnxruntime")
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    data = Path(source).read_bytes()
    if is_sealed(data) is False:
        raise ValueError(f"{source} is damaged: its checksum differs; copy or export it again")
    file = onnx.load_from_string(data)
    metadata = read_metadata({entry.key: entry.value for entry in file.metadata_props}, source)
    if metadata["quantization"]:
        raise ValueError(f"{source} is quantized already; start from the float32 file")
    linear = list(_linear_nodes(file.graph))
    settings: dict[str, Any] = {"op_types_to_quantize": ["MatMul"], "nodes_to_quantize": linear}
    level = logging.getLogger().level
    with atomic_path(path) as temporary:
        try:  # it warns through the root logger that shapes were not inferred, which dynamic quantization does not need
            logging.getLogger().setLevel(logging.ERROR)
            # Signed weights overflow sixteen bits on x86 without VNNI: logits are then wrong by a tenth.
            quantize_dynamic(file, str(temporary), per_channel=True, weight_type=QuantType.QUInt8, **settings)
        finally:
            logging.getLogger().setLevel(level)
        quantized = onnx.load(str(temporary))
        _set_metadata(quantized, metadata | {"quantization": "int8"})
        temporary.write_bytes(sealed(quantized.SerializeToString()))
    return Path(path)


def read_metadata(properties: Mapping[str, str], source: str | Path) -> dict[str, Any]:
    """The description within a file's ``properties``. ValueError names a ``source`` that this package did not write."""
    try:
        found = json.loads(properties[METADATA])
    except (KeyError, ValueError):
        found = {}
    if found.get("format") != FORMAT:
        raise ValueError(f"{source}: no file of mast.export ({METADATA} of format {FORMAT} is missing in its metadata)")
    return found


def sealed(data: bytes) -> bytes:
    """The bytes of an ONNX file with their SHA-256 as the last entry of its metadata. Protocol buffers that follow each
    other are one, so that any reader takes it, and ``is_sealed`` finds it without a parser.
    """
    digest = hashlib.sha256(data).hexdigest().encode()
    return data + _field(_METADATA_PROPS, _field(1, CHECKSUM) + _field(2, digest))


def is_sealed(data: bytes) -> bool | None:
    """Whether the bytes of an ONNX file are as ``sealed`` gave them; None where it did not, as before there was one."""
    size = len(sealed(b""))
    if CHECKSUM not in data[-size:]:
        return None
    return sealed(data[:-size])[-size:] == data[-size:]


def _field(number: int, value: bytes) -> bytes:
    """A field of a protocol buffer, of fewer than 128 bytes."""
    return bytes([number << 3 | 2, len(value)]) + value


def _linear_nodes(graph: Any) -> Iterable[str]:
    """Names of the products with a constant matrix, the frontend's two left out."""
    matrices = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 2}
    for node in graph.node:
        constant = matrices.intersection(node.input)
        if node.op_type == "MatMul" and constant and not any(name.startswith("frontend.") for name in constant):
            yield node.name


def _name_dimensions(graph: Any, length: str) -> None:
    """Give the dynamic dimensions names that a reader understands; others are results of computations."""
    shape = graph.input[0].type.tensor_type.shape.dim
    renamed = {shape[0].dim_param: "batch", shape[len(shape) - 1].dim_param: length}
    renamed.pop("", None)  # of a size that is fixed
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param in renamed:
                dimension.dim_param = renamed[dimension.dim_param]


def _set_metadata(file: Any, metadata: Mapping[str, Any]) -> None:
    import onnx

    onnx.helper.set_model_props(file, {METADATA: json.dumps(metadata)})


def require(*packages: str) -> None:
    """Raises ImportError with the command that installs them where some of ``packages`` are missing."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed: {INSTALL}")
