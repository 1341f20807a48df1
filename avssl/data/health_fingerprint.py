"""Which sounds are the same, whatever their codec, container, level or sample rate.

Haitsma & Kalker, "A Highly Robust Audio Fingerprinting System" (ISMIR 2002): every frame becomes a word of 32 bits, the
signs of the energy differences between neighbouring bands and frames (their equation 1). Copies of a recording share
whole words, by which they are found, and most bits, by which they are confirmed.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

# 33 bands from 300 to 2000 Hz and frames of 0.37 s, as in the paper. Their hop of 11.6 ms serves to find short excerpts
# at any place; here both sounds begin together, and a word every 0.1 s of the first 6.5 s will do.
WORDS = 64
_BANDS, _LOW_HZ, _HIGH_HZ = 33, 300.0, 2000.0
_FRAME_SECONDS, _HOP_SECONDS = 0.37, 0.1
# Frames without a sample above -60 dBFS say nothing; a fingerprint of fewer words than this could match by chance.
_LOUD, _FEWEST_WORDS = 1e-3, 8
# Largest share of different bits. The paper allows 0.35 within three seconds; between unlike recordings of ESC-10 and
# GRID the smallest measured share is 0.38, and between copies as mp3, aac, opus or at 8 kHz the largest is 0.18.
DIFFERENT_BITS = 0.25
# A word that this many sounds have in the same place tells nothing.
_COMMON = 64
_BATCH = 100_000
_ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1).astype(np.uint8)


def fingerprint(waveform: np.ndarray, sample_rate: int) -> np.ndarray | None:
    """(64,) uint32, one word for every 0.1 s, 0 where it is silent or over; None with less than 0.8 s of sound.

    Args:
        waveform: (S,) float32.
        sample_rate: Hz, at least 4000.
    """
    size, hop = round(_FRAME_SECONDS * sample_rate), round(_HOP_SECONDS * sample_rate)
    count = min(WORDS + 1, 1 + (len(waveform) - size) // hop)
    if count < _FEWEST_WORDS + 1:
        return None
    frames = np.lib.stride_tricks.sliding_window_view(waveform, size)[: count * hop : hop]
    power = np.abs(np.fft.rfft(frames * np.hanning(size).astype(np.float32), axis=1)) ** 2
    energies = np.add.reduceat(power, _edges(size, sample_rate), axis=1)[:, :_BANDS]  # (count, 33)
    between_bands = -np.diff(energies, axis=1)
    bits = np.diff(between_bands, axis=0) > 0  # (count - 1, 32)
    words = (bits.astype(np.uint64) << np.arange(32, dtype=np.uint64)).sum(axis=1).astype(np.uint32)
    loud = np.abs(frames).max(axis=1) >= _LOUD
    words = np.where(loud[1:] & loud[:-1], np.maximum(words, 1), 0)
    if np.count_nonzero(words) < _FEWEST_WORDS:
        return None
    result = np.zeros(WORDS, dtype=np.uint32)
    result[: len(words)] = words
    return result


@cache
def _edges(size: int, sample_rate: int) -> np.ndarray:
    """Bins of a transform of ``size`` at which the bands begin, and where the last one ends."""
    hz = np.geomspace(_LOW_HZ, _HIGH_HZ, _BANDS + 1)
    return np.round(hz * size / sample_rate).astype(int)


def same_sounds(words: np.ndarray, splits: np.ndarray) -> np.ndarray:
    """Group sounds of different splits that are the same.

    Args:
        words: (N, 64) uint32 fingerprints, all 0 where there is none.
        splits: (N,) int64.

    Returns:
        (N,) int64: sounds with the same number are the same, -1 for those that are like no other.
    """
    count = len(words)
    pairs = np.unique(np.concatenate([np.empty(0, dtype=np.int64), *_candidates(words, splits)]))
    left, right = pairs // max(count, 1), pairs % max(count, 1)
    same = np.zeros(len(pairs), dtype=bool)
    for first in range(0, len(pairs), _BATCH):
        part = slice(first, first + _BATCH)
        same[part] = different_bits(words[left[part]], words[right[part]]) <= DIFFERENT_BITS
    left, right = left[same], right[same]
    _, numbers = connected_components(coo_array((np.ones(len(left)), (left, right)), shape=(count, count)), False)
    groups = np.full(count, -1, dtype=np.int64)
    found = np.union1d(left, right)
    groups[found] = numbers[found]
    return groups


def different_bits(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Share of the bits that differ between fingerprints (P, 64) and (P, 64), over the words that either has: (P,)."""
    either = (one != 0) | (other != 0)
    both = (one != 0) & (other != 0)
    counts = _ONES[np.ascontiguousarray(one ^ other).view(np.uint8)].reshape(*one.shape, 4).sum(axis=2, dtype=np.int64)
    different = np.where(both, counts, 32 * either).sum(axis=1)
    return different / np.maximum(1, 32 * either.sum(axis=1))


def _candidates(words: np.ndarray, splits: np.ndarray) -> Iterator[np.ndarray]:
    """Pairs (as left * N + right, left < right) of different splits that have a word in common in the same place."""
    for place in range(words.shape[1]):
        rows = np.flatnonzero(words[:, place])
        order = rows[np.argsort(words[rows, place], kind="stable")]
        values = words[order, place]
        bounds = np.flatnonzero(np.diff(values)) + 1
        sizes = np.diff(np.concatenate([[0], bounds, [len(values)]]))
        starts = np.cumsum(sizes) - sizes
        for step in range(1, _COMMON):  # rows `step` apart in a run of equal words
            runs = (sizes > step) & (sizes <= _COMMON)
            if not runs.any():
                break
            first = np.concatenate([np.arange(s, s + n - step) for s, n in zip(starts[runs], sizes[runs], strict=True)])
            left, right = order[first], order[first + step]
            across = splits[left] != splits[right]
            low, high = np.minimum(left, right)[across], np.maximum(left, right)[across]
            yield low.astype(np.int64) * len(words) + high
