"""LogMel equals Kaldi's filter banks as torchaudio computes them."""

import re
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch import Tensor

import mast


def kaldi(waveform: Tensor, **options) -> Tensor:
    from torchaudio.compliance.kaldi import fbank

    defaults = {"htk_compat": True, "use_energy": False, "window_type": "hanning", "dither": 0.0, "frame_shift": 10}
    defaults |= {"num_mel_bins": 128, "sample_frequency": 16000}
    return torch.stack([fbank(clip[None], **{**defaults, **options}).t() for clip in waveform])[:, None]


def synthetic(samples: int) -> Tensor:
    """Noise, a loud tone with an offset, clicks, a chirp, near silence, and digital silence."""
    generator = torch.Generator().manual_seed(0)
    time = torch.arange(samples) / 16000
    clicks = torch.zeros(samples)
    clicks[::1600] = 1.0
    return torch.stack(
        [
            0.1 * torch.randn(samples, generator=generator),
            0.5 + 0.5 * torch.sin(2 * torch.pi * 440 * time),
            clicks,
            torch.sin(2 * torch.pi * (100 + 3000 * time) * time),
            1e-5 * torch.randn(samples, generator=generator),
            torch.zeros(samples),
        ]
    )


@pytest.mark.parametrize("samples", [400, 559, 560, 16000, 50001])
def test_equals_kaldi(samples: int) -> None:
    frontend = mast.LogMel(mean=None, std=None)
    waveform = synthetic(samples)
    out = frontend(waveform)
    assert out.shape == (6, 1, 128, frontend.num_frames(samples))
    torch.testing.assert_close(out, kaldi(waveform), atol=1e-3, rtol=0)


def test_equals_kaldi_with_other_settings() -> None:
    frontend = mast.LogMel(24000, 80, 20.0, 5.0, low_hz=50.0, high_hz=10000.0, preemphasis=0.9, mean=None, std=None)
    options = {"sample_frequency": 24000, "num_mel_bins": 80, "frame_length": 20.0, "frame_shift": 5.0}
    options |= {"low_freq": 50.0, "high_freq": 10000.0, "preemphasis_coefficient": 0.9}
    waveform = synthetic(24000)
    torch.testing.assert_close(frontend(waveform), kaldi(waveform, **options), atol=1e-3, rtol=0)


@pytest.mark.realdata
def test_equals_kaldi_on_real_recordings(real_data: Path) -> None:
    files = sorted((real_data / "esc10").rglob("*.ogg"))[::40]
    assert len(files) >= 5
    clips = []
    for file in files:
        with av.open(str(file)) as container:
            resampler = av.AudioResampler(format="fltp", layout="mono", rate=16000)
            frames = [f for frame in container.decode(audio=0) for f in resampler.resample(frame)]
        clips.append(np.concatenate([frame.to_ndarray()[0] for frame in frames])[:64000])
    waveform = torch.from_numpy(np.stack([np.pad(clip, (0, 64000 - len(clip))) for clip in clips]))
    assert waveform.abs().max() > 0.1
    torch.testing.assert_close(mast.LogMel(mean=None, std=None)(waveform), kaldi(waveform), atol=1e-3, rtol=0)


def test_normalization_is_named() -> None:
    waveform = synthetic(8000)
    raw = mast.LogMel(mean=None, std=None)(waveform)
    torch.testing.assert_close(mast.LogMel(mean=-4.0, std=4.5)(waveform), (raw + 4.0) / 9.0)
    torch.testing.assert_close(mast.LogMel(mean=-4.0, std=4.5, divide_by="std")(waveform), (raw + 4.0) / 4.5)


def test_clips_can_be_centred_first() -> None:
    waveform = synthetic(8000)
    centred = waveform - waveform.mean(dim=1, keepdim=True)
    out = mast.LogMel(mean=None, std=None, center_clips=True)(waveform)
    assert torch.equal(out, mast.LogMel(mean=None, std=None)(centred))


def test_a_batch_is_its_clips() -> None:
    frontend, waveform = mast.LogMel(), synthetic(16000).repeat(4, 1)
    one_by_one = torch.cat([frontend(clip[None]) for clip in waveform])
    torch.testing.assert_close(frontend(waveform), one_by_one, atol=1e-5, rtol=0)


def test_lengths_are_consistent() -> None:
    frontend = mast.LogMel()
    for frames in (1, 2, 98, 1024):
        samples = frontend.samples_for(frames)
        assert frontend.num_frames(samples) == frames and frontend.num_frames(samples - 1) == frames - 1


def test_autocast_does_not_lower_the_precision() -> None:
    frontend, waveform = mast.LogMel(), synthetic(8000)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = frontend(waveform)
    assert out.dtype == torch.float32 and torch.equal(out, frontend(waveform))


def test_config_builds_the_same_frontend() -> None:
    frontend = mast.LogMel(num_mels=64, mean=-3.0, std=2.0, divide_by="std")
    again = mast.LogMel(**frontend.config)
    assert torch.equal(frontend(synthetic(4000)), again(synthetic(4000)))
    assert not frontend.state_dict()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"divide_by": "sigma"}, "divide_by='sigma'"),
        ({"mean": None}, "give both"),
        ({"std": 0.0}, "std > 0"),
        ({"low_hz": 9000.0}, "low_hz"),
        ({"preemphasis": 2.0}, "preemphasis"),
        ({"num_mels": 1}, "num_mels"),
    ],
)
def test_bad_settings_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mast.LogMel(**options)


def test_bad_waveforms_are_named() -> None:
    with pytest.raises(ValueError, match=r"shape \(B, samples\)"):
        mast.LogMel()(torch.zeros(2, 1, 16000))
    with pytest.raises(ValueError, match="399 samples, one window needs 400"):
        mast.LogMel()(torch.zeros(2, 399))
    with pytest.raises(ValueError, match=r"floats in \[-1, 1\], got int16: divide"):
        mast.LogMel()(torch.zeros(2, 16000, dtype=torch.int16))


@pytest.mark.gpu
def test_gpu_is_as_exact_as_kaldi() -> None:
    # Two float32 transforms agree but in bins of almost no energy, where both are noise: float64 is the judge.
    waveform = synthetic(50000)[:4]
    exact = kaldi(waveform.double())
    ours = mast.LogMel(mean=None, std=None).cuda()(waveform.cuda()).cpu()
    error, usual = (ours - exact).abs(), (kaldi(waveform) - exact).abs()
    assert error.mean() <= 2 * usual.mean()
    assert (error > 1e-3).sum() <= 2 * (usual > 1e-3).sum()


def test_fixed_frames_are_zeros_before_the_normalization_or_a_cut() -> None:
    waveform = torch.randn(2, 16000) * 0.1
    plain = mast.LogMel(num_mels=32, mean=-3.0, std=2.0)
    log_mel = mast.LogMel(num_mels=32, mean=None, std=None)(waveform)
    for frames in (40, 98, 150):
        frontend = mast.LogMel(num_mels=32, mean=-3.0, std=2.0, fixed_frames=frames)
        padded = torch.nn.functional.pad(log_mel, (0, frames - 98))
        torch.testing.assert_close(frontend(waveform), (padded + 3.0) / 4.0)
        assert frontend.num_frames(16000) == frames and frontend.samples_for(98) == plain.samples_for(98)
        assert torch.equal(frontend(waveform)[..., :98], plain(waveform)[..., :frames])
    with pytest.raises(ValueError, match="fixed_frames=0"):
        mast.LogMel(fixed_frames=0)
    with pytest.raises(ValueError, match="one window needs 400"):
        mast.LogMel(fixed_frames=10)(torch.zeros(1, 399))


def test_a_clip_that_is_cut_to_fixed_frames_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    frontend = mast.LogMel(num_mels=32, fixed_frames=98)
    frontend(torch.zeros(1, 16000))
    assert not caplog.records
    for _ in range(2):
        frontend(torch.zeros(1, 32000))
    told = "clips of 2.00 s are cut: the model is given their first 98 frames of 198 .* after the first 0.99 s"
    assert re.search(told, caplog.text) and len(caplog.records) == 1


def reference_padded(clip: Tensor, frames: int, pad: str) -> Tensor:
    """(128, frames) log-mel of a clip as published loaders pad it: torchaudio's filter banks, then NumPy."""
    bank = kaldi((clip - clip.mean())[None])[0, 0].numpy()
    behind = ((0, 0), (0, frames - bank.shape[1]))
    if pad == "edge":  # Auditory SlowFast, audio_loader_epic.py
        return torch.from_numpy(np.pad(bank, behind, "edge"))
    return torch.from_numpy(np.pad(bank, behind))  # AST and CAV-MAE, dataloader.py: ZeroPad2d before the normalization


@pytest.mark.parametrize("pad", ["zero", "edge"])
def test_frames_behind_the_sound_are_padded_as_published(pad: str) -> None:
    waveform, samples = synthetic(8000)[:5], torch.tensor([8000, 7999, 4321, 400, 560])
    for clip, size in zip(waveform, samples.tolist(), strict=True):
        clip[size:] = 0
    frontend = mast.LogMel(mean=-4.0, std=3.0, pad=pad)
    out = frontend(waveform, samples)
    pairs = zip(waveform, samples.tolist(), strict=True)
    wanted = torch.stack([reference_padded(clip[:size], out.shape[3], pad) for clip, size in pairs])[:, None]
    torch.testing.assert_close(out, (wanted + 4.0) / 6.0, atol=1e-3, rtol=0)
    torch.testing.assert_close(frontend(waveform), mast.LogMel(mean=-4.0, std=3.0)(waveform), atol=0, rtol=0)
    assert frontend(waveform, torch.tensor([0, 1, 100, 399, 400])).isfinite().all()  # less than a window: one frame


def test_a_repeated_sound_is_the_sound_again_and_silence_is_the_default() -> None:
    waveform, samples = synthetic(4000)[:3], torch.tensor([4000, 1234, 3])
    tiled = torch.from_numpy(np.stack([np.resize(x[:n], 4000) for x, n in zip(waveform.numpy(), samples, strict=True)]))
    torch.testing.assert_close(mast.LogMel(pad="repeat")(waveform, samples), mast.LogMel()(tiled))
    assert torch.equal(mast.LogMel()(waveform, samples), mast.LogMel()(waveform))
    with pytest.raises(ValueError, match="pad='mirror' must be one of wave, zero, edge, repeat"):
        mast.LogMel(pad="mirror")
