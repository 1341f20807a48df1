"""The demo clips themselves: seen when heard, the same loudness to eye and ear, nothing given away by the scenery."""

from pathlib import Path

import av
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score

from avssl.data.media.write import write_mp4
from avssl.demo.events import CLASSES, make_clip
from avssl.demo.kinds import KINDS, Ball
from avssl.demo.sounds import (
    FPS,
    FRAME_SIZE,
    NUM_FRAMES,
    NUM_SAMPLES,
    SAMPLE_RATE,
    Style,
    frame_energy,
    frame_times,
    pluck,
)


def decode(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with av.open(str(path)) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    with av.open(str(path)) as container:
        sound = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    return frames, sound


@pytest.mark.parametrize("pitch", [0.1, 0.5, 0.9])
def test_a_ball_is_heard_in_the_file_when_it_touches_the_floor(tmp_path: Path, pitch: float) -> None:
    style = Style(pitch=pitch, tempo=0.3, loudness=0.8)
    performance = KINDS["ball"].perform(np.random.default_rng(3), style)
    height = Ball.height(np.linspace(0, 2.4, 2401), performance)
    for onset in performance.onsets:
        assert height[round(onset * 1000)] < 0.03  # the contact, from the ball's own path
    frames = np.zeros((NUM_FRAMES, FRAME_SIZE, FRAME_SIZE, 3), np.uint8)
    low = Ball.height(frame_times(), performance)
    frames[:] = (255 * (1 - low / low.max()))[:, None, None, None]
    write_mp4(
        tmp_path / "ball.mp4", frames, (0.5 * performance.audio).astype(np.float32), fps=FPS, sample_rate=SAMPLE_RATE
    )
    seen, heard = decode(tmp_path / "ball.mp4")

    envelope = np.abs(heard[:NUM_SAMPLES])
    for onset in performance.onsets[:4]:
        start = int((onset - 0.03) * SAMPLE_RATE)
        window = envelope[start : start + int(0.06 * SAMPLE_RATE)]
        attack = (start + np.argmax(window > 0.3 * window.max())) / SAMPLE_RATE
        assert attack == pytest.approx(onset, abs=0.01)
        brightness = seen.mean((1, 2, 3))
        frame = int(onset * FPS)
        lowest = max(range(max(0, frame - 2), min(NUM_FRAMES, frame + 3)), key=lambda i: brightness[i])
        assert abs(lowest - frame) <= 1


def test_sound_survives_the_file_without_a_shift(tmp_path: Path) -> None:
    clip = make_clip(0, "train", CLASSES.index("drum"))
    write_mp4(tmp_path / "clip.mp4", clip.frames, clip.audio, fps=FPS, sample_rate=SAMPLE_RATE)
    _, heard = decode(tmp_path / "clip.mp4")
    heard = heard[:NUM_SAMPLES]
    spectrum = np.fft.rfft(heard) * np.conj(np.fft.rfft(clip.audio))
    lag = np.argmax(np.fft.irfft(spectrum))
    assert min(lag, NUM_SAMPLES - lag) <= 2  # samples


@pytest.mark.parametrize("kind", CLASSES)
def test_the_picture_brightens_when_the_sound_swells(kind: str) -> None:
    correlations = []
    for index in range(3):
        clip = make_clip(1, "train", CLASSES.index(kind) + index * len(CLASSES))
        x, y, size = clip.box
        rows = slice(max(0, int(y - size)), int(y + size) + 1)
        columns = slice(max(0, int(x - size)), int(x + size) + 1)
        brightness = clip.frames[:, rows, columns].mean((1, 2, 3))
        correlations.append(np.corrcoef(brightness, frame_energy(clip.audio))[0, 1])
    assert np.mean(correlations) > 0.2


def test_clips_are_determined_by_seed_split_and_index() -> None:
    one, same = make_clip(5, "test", 7), make_clip(5, "test", 7)
    np.testing.assert_array_equal(one.frames, same.frames)
    np.testing.assert_array_equal(one.audio, same.audio)
    for other in (make_clip(6, "test", 7), make_clip(5, "train", 7), make_clip(5, "test", 8)):
        assert np.abs(one.audio - other.audio).max() > 0.01


def test_audio_is_in_range_and_every_frame_is_painted() -> None:
    for index in range(len(CLASSES)):
        clip = make_clip(2, "train", index)
        assert clip.frames.shape == (NUM_FRAMES, FRAME_SIZE, FRAME_SIZE, 3)
        assert clip.audio.shape == (NUM_SAMPLES,)
        assert np.isfinite(clip.audio).all()
        assert np.abs(clip.audio).max() < 1
        assert 0.005 < clip.audio.std() < 0.4
        x, y, size = clip.box
        assert size < min(x, y) and max(x, y) < FRAME_SIZE - size


def test_test_clips_have_registers_and_tempos_that_training_never_has() -> None:
    rng = np.random.default_rng(0)
    for unseen in (False, True):
        styles = [Style.draw(rng, unseen) for _ in range(200)]
        places = np.array([(5 * s.pitch % 1, 5 * s.tempo % 1) for s in styles])
        assert ((places >= 0.7 - 1e-9) == unseen).all()


def test_scenery_and_mean_colour_do_not_tell_the_kind() -> None:
    clips = [make_clip(4, "train", index) for index in range(12 * len(CLASSES))]
    labels = np.arange(len(clips)) % len(CLASSES)
    frames = np.stack([clip.frames.mean(0) for clip in clips]) / 255
    corners = np.stack([frames[:, a : a + 6, b : b + 6].mean((1, 2)) for a in (0, -6 % 80) for b in (0, -6 % 80)], 1)
    scenery = {
        "corners": corners.reshape(len(clips), -1),
        "mean colour": frames.mean((1, 2)),
        "place and size": np.array([clip.box for clip in clips]) / FRAME_SIZE,
        "loudness": np.array([[clip.style.loudness] for clip in clips]),
    }
    chance = 1 / len(CLASSES)
    for name, features in scenery.items():
        scaled = (features - features.mean(0)) / features.std(0)
        accuracy = cross_val_score(LogisticRegression(C=0.1, max_iter=200), scaled, labels, cv=4).mean()
        assert accuracy < chance + 0.1, f"{name} tells the kind: {accuracy:.2f}"


def test_a_plucked_string_has_the_pitch_asked_for() -> None:
    for frequency in (196.0, 440.0, 700.0):
        sound = pluck(np.random.default_rng(0), frequency, 1.0, loss=0.998)
        spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound))))
        fundamental = spectrum[int(frequency * 0.7) : int(frequency * 1.4)].argmax() + int(frequency * 0.7)
        assert fundamental == pytest.approx(frequency, rel=0.02)  # one bin is 1 Hz
