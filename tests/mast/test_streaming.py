"""The streaming frontend against LogMel of the whole."""

import pytest
import torch

import mast


def pieces(total: int, sizes: list[int]) -> list[int]:
    """``sizes`` over and over until they make ``total``."""
    out: list[int] = []
    while sum(out) < total:
        out.append(min(sizes[len(out) % len(sizes)], total - sum(out)))
    return out


@pytest.mark.parametrize("sizes", [[1, 399, 400, 0, 161, 5000], [160], [16001], [7919, 3]])
def test_frames_of_all_pieces_are_those_of_the_whole(sizes: list[int]) -> None:
    torch.manual_seed(0)
    waveform = torch.randn(2, 16123) * torch.linspace(1e-4, 0.5, 16123)
    frontend = mast.LogMel(num_mels=64)
    stream = mast.StreamingLogMel(frontend)
    for _ in range(2):  # reset makes it as new
        found = [stream.push(piece) for piece in waveform.split(pieces(16123, sizes), dim=1)]
        whole = frontend(waveform)
        joined = torch.cat(found, dim=-1)
        assert joined.shape == whole.shape
        torch.testing.assert_close(joined, whole, rtol=0, atol=2e-6)
        stream.reset()


def test_a_frame_comes_with_its_last_sample() -> None:
    stream = mast.StreamingLogMel(mast.LogMel())
    counts = [stream.push(torch.zeros(1, size)).shape[-1] for size in (399, 1, 159, 1, 320)]
    assert counts == [0, 1, 0, 1, 2]


def test_frames_further_apart_than_they_last() -> None:
    torch.manual_seed(0)
    frontend = mast.LogMel(frame_length_ms=10.0, frame_shift_ms=25.0, num_mels=16)
    stream, waveform = mast.StreamingLogMel(frontend), torch.randn(1, 4000)
    joined = torch.cat([stream.push(piece) for piece in waveform.split(170, dim=1)], dim=-1)
    torch.testing.assert_close(joined, frontend(waveform), rtol=0, atol=2e-6)


def test_what_a_stream_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match="fixed_frames=100: each whole clip is filled up"):
        mast.StreamingLogMel(mast.LogMel(fixed_frames=100))
    with pytest.raises(ValueError, match="center_clips"):
        mast.StreamingLogMel(mast.LogMel(center_clips=True))
    stream = mast.StreamingLogMel(mast.LogMel())
    with pytest.raises(ValueError, match="shape"):
        stream.push(torch.zeros(100))
    with pytest.raises(ValueError, match="got int16"):
        stream.push(torch.zeros(1, 100, dtype=torch.int16))
    stream.push(torch.zeros(2, 100))
    with pytest.raises(ValueError, match=r"reset\(\)"):
        stream.push(torch.zeros(1, 100))
