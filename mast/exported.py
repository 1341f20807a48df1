"""Exported files in use: one interface to ``torch.export`` programs and ONNX."""

import errno
import math
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mast.export import METADATA, is_sealed, read_metadata, require
from mast.frontend import all_samples

_Run = Callable[[Sequence[Tensor]], list[Tensor]]


class Exported:
    """An exported model on the CPU.

    Attributes:
        metadata: see ``mast.export.describe``.
        labels: head name -> ordered class names.

    Examples:
        >>> model = mast.open_exported("model.onnx")  # doctest: +SKIP
        >>> model(torch.zeros(2, 16000))["logits"].shape  # doctest: +SKIP
        torch.Size([2, 10])
    """

    def __init__(self, run: _Run, metadata: dict[str, Any]) -> None:
        self._run = run
        self.metadata = metadata
        self.labels: dict[str, list[str]] = metadata["labels"]

    @torch.no_grad()
    def __call__(self, x: Tensor, samples: Tensor | None = None) -> dict[str, Tensor]:
        """Waveform (B, S) or spectrogram (B, 1, mels, frames), as ``metadata["input"]`` says -> outputs by name.

        Args:
            x: the waveform or the spectrogram.
            samples: (B,) int64 samples of each clip that are sound, zeros follow; a file whose frontend pads frames
                (``metadata["frontend"]["pad"]``) replaces these zeros by its rule. None: all.

        Raises:
            ValueError: another shape, or shorter than ``metadata["shortest"]``, or longer than ``metadata["longest"]``,
                where the file has one.
        """
        kind, shortest = self.metadata["input"], self.metadata["shortest"]
        longest = self.metadata.get("longest")
        if x.ndim != (2 if kind == "waveform" else 4) or x.shape[-1] < shortest or x.shape[-1] > (longest or math.inf):
            shape = "(B, samples)" if kind == "waveform" else "(B, 1, mels, frames)"
            size = f"at least {shortest}" if longest is None else f"just {longest}"
            raise ValueError(f"expected a {kind} {shape} with {size} of the last, got {tuple(x.shape)}")
        given = [x]
        if "samples" in self.metadata.get("inputs", ()):
            given.append(all_samples(x) if samples is None else samples.long())
        return dict(zip(self.metadata["outputs"], self._run(given), strict=True))


def open_exported(path: str | Path, *, threads: int = 0) -> Exported:
    """Open a file of ``mast.export_onnx``, ``quantize_onnx`` (.onnx) or ``save_program`` (.pt2).

    Args:
        path: the file.
        threads: of onnxruntime; 0 leaves it the choice. A .pt2 file runs with torch's.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is of another kind, or damaged.
        ImportError: onnxruntime is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if path.suffix == ".pt2":
        return _open_program(path)
    if path.suffix == ".onnx":
        return _open_onnx(path, threads)
    raise ValueError(f"{path}: must end in .onnx or .pt2")


def _open_program(path: Path) -> Exported:
    extra = {METADATA: ""}
    try:  # torch would not compare the checksums, and log a traceback and try an older format where there is no archive
        with zipfile.ZipFile(path) as archive:
            if (bad := archive.testzip()) is not None:
                raise ValueError(f"the checksum of {bad} differs")
    except Exception as error:  # zipfile fails on damaged offsets with any of Python's errors
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno != errno.EINVAL):
            raise
        raise ValueError(f"{path} is damaged or no torch.export program: {error}") from error
    try:
        program = torch.export.load(path, extra_files=extra)
    except (RuntimeError, ValueError, KeyError, AssertionError) as error:
        raise ValueError(f"{path} is damaged or no torch.export program: {str(error).splitlines()[0]}") from error
    metadata = read_metadata(extra, path)
    module = program.module()
    return Exported(lambda given: list(module(*given)), metadata)


def _open_onnx(path: Path, threads: int) -> Exported:
    require("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    data = path.read_bytes()
    if is_sealed(data) is False:
        raise ValueError(f"{path} is damaged: its checksum differs; copy or export it again")
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base of their own
        raise ValueError(f"{path} is damaged or no ONNX file: {str(error).splitlines()[0]}") from error
    metadata = read_metadata(session.get_modelmeta().custom_metadata_map, path)
    names = metadata.get("inputs", [metadata["input"]])  # files of before there were several name one

    def run(given: Sequence[Tensor]) -> list[Tensor]:
        feed = {name: x.numpy() for name, x in zip(names, given, strict=True)}
        return [torch.from_numpy(y) for y in session.run(None, feed)]

    return Exported(run, metadata)
