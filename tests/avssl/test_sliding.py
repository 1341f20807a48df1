"""Spectrograms cut out of a stream of frames against those of the windows by themselves."""

import itertools

import numpy as np
import pytest
import torch

import mast
from avssl.data.windows import sliding_windows
from avssl.prediction import SlidingLogMel

RATE = 16000
CPU = torch.device("cpu")


@pytest.mark.parametrize(("seconds", "hop", "total"), [(1.0, 0.1, 2.57), (0.5, 0.49, 3.0), (0.975, 0.5, 0.3)])
@pytest.mark.parametrize("together", [1, 4])
def test_windows_have_the_frames_that_they_have_by_themselves(seconds, hop, total, together) -> None:
    rng = np.random.default_rng(0)
    wave = (rng.standard_normal(round(total * RATE)) * 0.1).astype(np.float32)
    frontend = mast.LogMel(num_mels=32)
    windows = list(sliding_windows([wave[:777], wave[777:]], RATE, seconds, hop))
    sliding, found = SlidingLogMel(frontend, hop), []
    for first in range(0, len(windows), together):
        found.append(sliding(windows[first : first + together], CPU))
    expected = frontend(torch.from_numpy(np.stack([window.waveform for window in windows])))
    torch.testing.assert_close(torch.cat(found), expected, rtol=0, atol=2e-6)


def test_every_frame_is_computed_once(monkeypatch) -> None:
    frontend = mast.LogMel(num_mels=32)
    computed = []
    forward = frontend.forward
    monkeypatch.setattr(frontend, "forward", lambda wave: (computed.append(wave.shape[1]), forward(wave))[1])
    windows = list(sliding_windows([np.zeros(5 * RATE, np.float32)], RATE, 1.0, 0.1))
    sliding = SlidingLogMel(frontend, 0.1)
    for window in windows:
        assert sliding([window], CPU).shape == (1, 1, 32, frontend.num_frames(RATE))
    frames = [frontend.num_frames(samples) for samples in computed]
    assert len(windows) == 41 and sum(frames) == frontend.num_frames(5 * RATE)


def test_what_shares_no_frames_is_refused() -> None:
    assert SlidingLogMel.applies(mast.LogMel(), 0.25) and SlidingLogMel.applies(mast.LogMel(), 0.01)
    assert not SlidingLogMel.applies(mast.LogMel(), 0.255)
    assert not SlidingLogMel.applies(mast.LogMel(), 0.001)
    assert not SlidingLogMel.applies(mast.LogMel(center_clips=True), 0.25)
    with pytest.raises(ValueError, match="begin at frames"):
        SlidingLogMel(mast.LogMel(), 0.333)
    gap = list(sliding_windows([np.zeros(RATE, np.float32)], RATE, 0.1, 0.2))
    with pytest.raises(ValueError, match="gap"):
        SlidingLogMel(mast.LogMel(), 0.2)(list(itertools.islice(gap, 2)), CPU)
