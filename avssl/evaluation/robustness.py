"""The same clips under noise, in rooms, over telephones and codecs, with gaps."""

import functools
import io
import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import av
import numpy as np
import soxr
import torch
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from matplotlib.ticker import PercentFormatter
from scipy.signal import butter, fftconvolve, sosfilt
from torch import Tensor

from avssl.data.batch import Batch
from avssl.evaluation.arrays import FloatArray
from avssl.evaluation.base import EvaluationResult, register_evaluation
from avssl.evaluation.classification import HEADLINES, head_metrics, headline
from avssl.evaluation.embeddings import embed_many
from avssl.evaluation.plots import INK, PALETTE, drawn, new_figure, save, styled
from avssl.evaluation.report import Section, Table

if TYPE_CHECKING:
    from avssl.evaluation.context import EvaluationContext

Codec = Literal["mp3", "opus"]
_CONTAINERS = {"mp3": ("libmp3lame", "mp3"), "opus": ("libopus", "ogg")}
# What the encoders take, in Hz; other rates are converted to the largest.
_RATES = {"mp3": (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000), "opus": (48000,)}


def through_codec(waveform: FloatArray, sample_rate: int, codec: Codec, bit_rate: int) -> FloatArray:
    """What is left of a mono waveform after encoding and decoding.

    The containers carry the encoder's delay, which the decoder takes off again: the result lies on the samples of the
    input and is as long.

    Args:
        waveform: (S,) float32 in about [-1, 1], not empty; values beyond are clipped.
        sample_rate: in Hz.
        bit_rate: in bits a second; encoders take the nearest that they have.
    """
    rates = _RATES[codec]
    rate = sample_rate if sample_rate in rates else rates[-1]
    sound = np.clip(waveform, -1, 1).astype(np.float32)
    sound = soxr.resample(sound, sample_rate, rate) if rate != sample_rate else sound
    decoded, decoded_rate = _decode(_encode(sound, rate, codec, bit_rate))
    back = soxr.resample(decoded, decoded_rate, sample_rate) if decoded_rate != sample_rate else decoded
    result = np.zeros(len(waveform), np.float32)
    result[: len(back)] = back[: len(result)]
    return result


def _encode(waveform: FloatArray, rate: int, codec: Codec, bit_rate: int) -> io.BytesIO:
    name, container = _CONTAINERS[codec]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as file:
        assert isinstance(file, OutputContainer)
        stream = file.add_stream(name, rate=rate, layout="mono")
        assert isinstance(stream, AudioStream)
        stream.bit_rate = bit_rate
        stream.codec_context.thread_count = 1
        resampler = av.AudioResampler(format=stream.codec_context.format.name, layout="mono", rate=rate)
        frame = AudioFrame.from_ndarray(np.ascontiguousarray(waveform[None]), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = rate, 0
        for converted in [*resampler.resample(frame), *resampler.resample(None)]:
            file.mux(stream.encode(converted))
        file.mux(stream.encode())
    buffer.seek(0)
    return buffer


def _decode(buffer: io.BytesIO) -> tuple[FloatArray, int]:
    with av.open(buffer) as file:
        assert isinstance(file, InputContainer)
        stream = file.streams.audio[0]
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=stream.rate)
        parts = [converted.to_ndarray()[0] for frame in file.decode(stream) for converted in resampler.resample(frame)]
        parts += [converted.to_ndarray()[0] for converted in resampler.resample(None)]
        return np.concatenate(parts), stream.rate


Change = Callable[[FloatArray, int, np.random.Generator], FloatArray]


@dataclass(frozen=True)
class Degradation:
    """One condition.

    Attributes:
        group: kind of damage, "noise" for example.
        name: within all conditions, with its strength: "noise, SNR 10 dB".
        change: waveform (S,), sample rate in Hz and a generator -> waveform (S,).
    """

    group: str
    name: str
    change: Change

    def __call__(self, waveform: FloatArray, sample_rate: int, key: str, seed: int = 0) -> FloatArray:
        """The degraded waveform; all that is random in it depends on ``seed``, ``key`` (a clip's id) and the name."""
        if not len(waveform):
            return waveform
        rng = np.random.default_rng((seed, zlib.crc32(key.encode()), zlib.crc32(self.name.encode())))
        return self.change(waveform, sample_rate, rng).astype(np.float32)


def degradations(sample_rate: int) -> list[Degradation]:
    """All conditions that make sense at a sample rate: no filter whose edge lies beyond half of it."""
    conditions = [Degradation("noise", f"noise, SNR {snr} dB", _noise(snr)) for snr in (20, 10, 0, -5)]
    conditions += [Degradation("room", f"reverberation, {time:g} s", _room(time)) for time in (0.3, 0.8, 2.0)]
    bands = {"low-pass 4 kHz": (None, 4000.0), "high-pass 500 Hz": (500.0, None), "telephone band": (300.0, 3400.0)}
    conditions += [
        Degradation("band", name, _band(low, high))
        for name, (low, high) in bands.items()
        if max(low or 0, high or 0) < 0.475 * sample_rate
    ]
    conditions += [Degradation("level", f"gain {gain:+d} dB", _gain(gain)) for gain in (-40, -20)]
    conditions += [Degradation("level", f"clipped, {share:.0%} of samples", _clip(share)) for share in (0.05, 0.25)]
    codecs: tuple[tuple[Codec, int], ...] = (("mp3", 32), ("mp3", 16), ("opus", 12), ("opus", 6))
    conditions += [Degradation("codec", f"{codec} {rate} kbit/s", _codec(codec, rate)) for codec, rate in codecs]
    return conditions + [Degradation("gap", f"{share:.0%} missing", _gap(share)) for share in (0.2, 0.5)]


def _noise(snr: float) -> Change:
    """White noise at a signal-to-noise ratio in dB over the clip; digital silence stays as it is."""

    def change(waveform: FloatArray, _: int, rng: np.random.Generator) -> FloatArray:
        power = float(np.mean(np.square(waveform, dtype=np.float64)))
        return waveform + np.sqrt(power / 10 ** (snr / 10)) * rng.standard_normal(len(waveform))

    return change


def _room(seconds: float) -> Change:
    """A synthetic room: direct sound, then noise that falls by 60 dB in ``seconds``, as loud as the direct sound.

    Exponentially decaying noise is Polack's model of late reverberation (1988). The result has the power of the input.
    """

    def change(waveform: FloatArray, sample_rate: int, rng: np.random.Generator) -> FloatArray:
        time = np.arange(round(seconds * sample_rate)) / sample_rate
        tail = rng.standard_normal(len(time)) * np.exp(-np.log(1000) * time / seconds)
        tail[: round(0.002 * sample_rate)] = 0  # no wall is nearer
        response = tail / max(np.linalg.norm(tail), 1e-12)
        response[0] = 1.0
        wet = fftconvolve(waveform.astype(np.float64), response)[: len(waveform)]
        before, after = (float(np.mean(np.square(part, dtype=np.float64))) for part in (waveform, wet))
        return wet * np.sqrt(before / after) if after > 0 else wet

    return change


def _band(low: float | None, high: float | None) -> Change:
    """Butterworth filter of order 8 with edges in Hz (order 4 at each edge of a band-pass)."""

    def change(waveform: FloatArray, sample_rate: int, _: np.random.Generator) -> FloatArray:
        return sosfilt(_butterworth(low, high, sample_rate), waveform.astype(np.float64))

    return change


@functools.lru_cache
def _butterworth(low: float | None, high: float | None, sample_rate: int) -> FloatArray:
    if low and high:
        return butter(4, (low, high), "bandpass", fs=sample_rate, output="sos")
    return butter(8, low or high, "highpass" if low else "lowpass", fs=sample_rate, output="sos")


def _gain(decibels: float) -> Change:
    """Quieter, then rounded to 16 bits, as a recording at that level is: what is too quiet is gone."""
    return lambda waveform, _, rng: np.round(waveform * 10 ** (decibels / 20) * 32768) / 32768


def _clip(share: float) -> Change:
    """Hard clipping at the level that this share of the samples is above."""

    def change(waveform: FloatArray, _: int, rng: np.random.Generator) -> FloatArray:
        limit = float(np.quantile(np.abs(waveform), 1 - share))
        return np.clip(waveform, -limit, limit)

    return change


def _codec(codec: Codec, kilobits: int) -> Change:
    """Encoded at a low bit-rate and decoded."""
    return lambda waveform, rate, _: through_codec(waveform, rate, codec, 1000 * kilobits)


def _gap(share: float) -> Change:
    """One gap of silence, anywhere."""

    def change(waveform: FloatArray, _: int, rng: np.random.Generator) -> FloatArray:
        length = round(share * len(waveform))
        start = int(rng.integers(len(waveform) - length + 1))
        result = waveform.copy()
        result[start : start + length] = 0
        return result

    return change


def condition_bars(
    values: Mapping[str, tuple[float, float, float]],
    groups: Mapping[str, str],
    path: str | os.PathLike[str],
    *,
    title: str,
    xlabel: str,
    reference: float,
) -> None:
    """A bar for each condition, coloured by its group, with its interval as a whisker.

    Args:
        values: condition -> (value 0..1, low, high), drawn from top to bottom; NaN bounds draw no whisker.
        groups: condition -> group.
        reference: value without damage, a dashed line.

    Raises:
        ValueError: nothing to draw, or a condition without a group.
    """
    if not values:
        raise ValueError("values: nothing to draw")
    missing = [name for name in values if name not in groups]
    if missing:
        raise ValueError(f"groups: none for {', '.join(missing)}")
    order = list(dict.fromkeys(groups[name] for name in values))
    with styled():
        figure = new_figure(7.4, 1.2 + 0.27 * len(values), title)
        axes = figure.add_subplot()
        for row, (name, (value, low, high)) in enumerate(values.items()):
            axes.barh(row, value, 0.72, color=PALETTE[order.index(groups[name]) % len(PALETTE)], alpha=0.85)
            end = value
            if low == low and high == high:  # not NaN
                axes.hlines(row, low, high, color=INK, linewidth=1)
                end = max(value, high)
            axes.annotate(f"{100 * value:.1f}", (end, row), (4, 0), textcoords="offset points", va="center", fontsize=8)
        axes.axvline(reference, color=INK, linestyle="--", linewidth=1, label=f"undamaged {reference:.1%}")
        axes.set_yticks(range(len(values)), list(values), fontsize=8.5)
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        axes.set(xlabel=xlabel)
        axes.set_xlim(0, max(1.12 * max(high if high == high else value for value, _, high in values.values()), 0.05))
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.grid(True, axis="x")
        figure.legend(loc="outside lower right", fontsize=8.5)
        save(figure, path)


TEXT = (
    "The same clips, damaged before the classifier hears them. What is random in a damage depends on the seed and the "
    "clip alone, so that two checkpoints hear the same. Frames, where the classifier sees them, are left as they are."
)


@register_evaluation("robustness", needs=("labels", "scores", "audio"))
def robustness(context: "EvaluationContext") -> EvaluationResult:
    """Top-1, or mAP, of every head under every condition; of linear probes where the checkpoint has no classes."""
    conditions = degradations(context.model.sample_rate)
    clean = head_metrics(context, context.scores())
    damaged = {name: head_metrics(context, scores) for name, scores in _scores(context, conditions).items()}
    metrics: dict[str, float] = {}
    tables: list[Table] = []
    pictures: list[tuple[Path, str]] = []
    for head in context.heads:
        name = headline(clean, head)
        key, unit = f"{head}/{name}", HEADLINES[name]
        bars, rows = {}, [["none", f"{clean[key]:.1%}", None, None]]
        for condition, found in damaged.items():
            low, high = (found.get(f"{key}_{side}", float("nan")) for side in ("low", "high"))
            bars[condition] = found[key], low, high
            interval = f"{low:.1%} to {high:.1%}" if low == low else None
            rows.append([condition, f"{found[key]:.1%}", interval, f"{100 * (found[key] - clean[key]):+.1f}"])
            metrics |= {f"robustness/{condition}/{key}": found[key]}
            metrics |= {f"robustness/{condition}/{key}_{side}": v for side, v in (("low", low), ("high", high))}
        columns = ["damage", f"{unit}, {context.scored_clips}", "95 % interval", "points lost or won"]
        tables.append(Table(f"Robustness of {head}", columns, rows))
        path = context.picture(f"robustness-{head}")
        groups = {condition.name: condition.group for condition in conditions}
        label = f"{unit}, {context.scored_clips}"
        caption = f"{unit} of {head} under each condition, with 95 % intervals"
        options = {"title": f"{head} under damage", "xlabel": label, "reference": clean[key]}
        pictures += drawn(path, caption, condition_bars, bars, groups, path, **options)
    return EvaluationResult(Section("Robustness", TEXT, tables, pictures), metrics)


def _scores(context: "EvaluationContext", conditions: list[Degradation]) -> dict[str, dict[str, FloatArray]]:
    """condition -> head -> (N, classes), from one reading of the clips."""
    seed, rate = context.config.seed, context.model.sample_rate

    def encode(batch: Batch) -> dict[str, Tensor]:
        assert batch.audio is not None
        outputs = {}
        for condition in conditions:
            heard = damaged(batch, condition, rate, seed).to(context.device)
            outputs[condition.name] = context.to_average(heard)
        return outputs

    with context.autocast():
        found = embed_many(encode, context.loaders.evaluate(context.split), description="damaged clips")
    return {name: context.scores(averaged) for name, averaged in found.items()}


def damaged(batch: Batch, condition: Degradation, sample_rate: int, seed: int) -> Batch:
    """The batch with its sound damaged; the zeros that fill up a short clip are no sound and stay."""
    assert batch.audio is not None and batch.samples is not None
    audio = torch.zeros_like(batch.audio)
    for row, (clip_id, start, samples) in enumerate(
        zip(batch.clip_ids, batch.start.tolist(), batch.samples.tolist(), strict=True)
    ):
        waveform = batch.audio[row, :samples].numpy()
        audio[row, :samples] = torch.from_numpy(condition(waveform, sample_rate, f"{clip_id}@{start:.3f}", seed))
    return replace(batch, audio=audio)
