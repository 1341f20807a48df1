"""The contact sheet: what is written, what it says, and recipes of training runs as its settings."""

import logging
from pathlib import Path

import matplotlib as mpl
import matplotlib.image
import media_factory
import numpy as np
import pytest
import torch
import yaml
from scipy.io import wavfile

from avssl.cli import parse
from avssl.commands import augment as sheet_module
from avssl.commands.augment import View, augment_sheet, contact_sheet, describe_settings, write_wave
from avssl.config import (
    AugmentConfig,
    AugmentSheetConfig,
    DataConfig,
    FinetuneConfig,
    MixupConfig,
    PretrainConfig,
    to_yaml,
)
from avssl.evaluation.plots import save

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Path:
    """Three short videos and one that is none."""
    folder = tmp_path_factory.mktemp("media")
    for i in range(3):
        media_factory.write_media(
            folder / "train" / f"clip {i}.mp4", seconds=1.2, size=(80, 80), frequency=300 * (i + 1)
        )
    (folder / "train" / "broken.mp4").write_bytes(b"no video")
    return folder


@pytest.fixture
def sheet_config(media, tmp_path, monkeypatch) -> AugmentSheetConfig:
    monkeypatch.setenv("AVSSL_CACHE", str(tmp_path / "cache"))
    data = DataConfig(name=str(media), clip_seconds=1.0, num_workers=0)
    augment = AugmentConfig(gain_db=0.0, mix=1.0, mix_db=(6.0, 6.0), mixup=MixupConfig("batch", alpha=0.4))
    return AugmentSheetConfig(data=data, augment=augment, clips=3, views=2, output=tmp_path / "sheet")


def test_a_sheet_is_a_picture_and_waveforms_as_augmented(sheet_config: AugmentSheetConfig) -> None:
    result = augment_sheet(sheet_config)
    assert len(result["waves"]) == 3 * (1 + 2) and result["clipped"] == 0
    names = {path.name for path in result["waves"]}
    assert {"1-train-clip-0-as-it-is.wav", "3-train-clip-2-view-2.wav"} <= {n.replace(".mp4", "") for n in names}
    for clip in range(3):
        rates, (plain, *views) = zip(*map(wavfile.read, result["waves"][3 * clip : 3 * clip + 3]), strict=True)
        assert set(rates) == {16000}
        for view in views:
            assert view.dtype == np.int16 and view.shape == (16000,)
            added = view.astype(float) - plain
            assert 10 * np.log10((plain.astype(float) ** 2).mean() / (added**2).mean()) == pytest.approx(6, abs=0.1)
    picture = matplotlib.image.imread(result["sheet"])
    assert (picture[..., :3].min(axis=2) < 0.97).mean() > 0.3
    written = yaml.safe_load((sheet_config.output / "config.yaml").read_text())
    assert written["augment"]["mix_db"] == [6.0, 6.0]


def test_the_same_seed_makes_the_same_sheet(sheet_config: AugmentSheetConfig, tmp_path) -> None:
    sheet_config.augment = AugmentConfig(noise_db=0.0)
    sheet_config.clips = 2
    first = augment_sheet(sheet_config)["waves"]
    sheet_config.output = tmp_path / "again"
    torch.rand(7)
    second = augment_sheet(sheet_config)["waves"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


@pytest.mark.parametrize("name", ["clips", "views"])
def test_nothing_to_show_is_refused(name: str, sheet_config: AugmentSheetConfig) -> None:
    setattr(sheet_config, name, 0)
    with pytest.raises(ValueError, match=f"{name}: must be at least 1, got 0"):
        augment_sheet(sheet_config)


def test_sound_without_pictures_makes_a_sheet_and_clipping_is_told(tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setenv("AVSSL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "wavs" / "train").mkdir(parents=True)
    tone = (0.99 * np.sin(np.arange(16000) / 5) * 32767).astype(np.int16)
    wavfile.write(tmp_path / "wavs" / "train" / "tone.wav", 16000, tone)
    data = DataConfig(name=str(tmp_path / "wavs"), clip_seconds=1.0, num_workers=0)
    augment = AugmentConfig(noise_db=0.0)
    config = AugmentSheetConfig(data=data, augment=augment, clips=1, views=2, output=tmp_path / "out")
    with caplog.at_level(logging.WARNING):
        result = augment_sheet(config)
    assert result["clipped"] > 0 and result["sheet"].is_file() and len(result["waves"]) == 3
    assert "of 16000 samples are clipped" in caplog.text


def test_waves_are_16_bit_and_count_what_they_clip(tmp_path) -> None:
    clipped = write_wave(tmp_path / "a" / "b.wav", np.array([0.0, 0.5, 1.0, -1.0, 1.5, -3.0], dtype=np.float32), 8000)
    rate, samples = wavfile.read(tmp_path / "a" / "b.wav")
    assert clipped == 2 and rate == 8000 and samples.tolist() == [0, 16384, 32767, -32767, 32767, -32767]


def test_settings_in_words_leave_out_what_is_off() -> None:
    off = AugmentConfig(crop_scale=1.0, flip=0.0, color=0.0, gain_db=0.0)
    assert describe_settings(off) == "Nothing is turned on."
    off.blur, off.noise_db, off.time_mask = 0.5, 10.0, 0.1
    assert describe_settings(off) == (
        "blur 0.5, blur_sigma 0.1 to 2, noise_db 10.0, noise_color white, time_mask 0.1, masks 1"
    )


def test_recipes_of_training_runs_are_cut_to_what_a_sheet_shows(tmp_path) -> None:
    recipe = PretrainConfig(augment=AugmentConfig(hue=0.2), output=tmp_path / "run", seed=5)
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(recipe))
    config = parse(AugmentSheetConfig, ["--config", str(file), "--views", "7"])
    assert config == AugmentSheetConfig(augment=AugmentConfig(hue=0.2), seed=5, views=7)
    file.write_text(to_yaml(FinetuneConfig(augment=AugmentConfig(mix=0.2))))
    assert parse(AugmentSheetConfig, [f"--config={file}"]).augment.mix == 0.2


@pytest.mark.parametrize(
    "recipe", sorted(ROOT.glob("configs/pretrain/*.yaml")) + sorted(ROOT.glob("configs/finetune/*.yaml"))
)
def test_recipes_of_the_repository_can_be_looked_at(recipe: Path) -> None:
    values = yaml.safe_load(recipe.read_text())
    config = parse(AugmentSheetConfig, ["--config", str(recipe)])
    told = {name: value for name, value in values.get("augment", {}).items() if name != "mixup"}
    assert all(getattr(config.augment, name) == value for name, value in told.items())
    if mixup := values.get("augment", {}).get("mixup"):
        assert config.augment.mixup == MixupConfig(**mixup)


def test_a_sheets_own_file_is_taken_whole_and_typos_are_errors(tmp_path, capsys) -> None:
    file = tmp_path / "sheet.yaml"
    file.write_text("views: 2\noutput: here\naugment: {hue: 0.1}\n")
    config = parse(AugmentSheetConfig, ["--config", str(file)])
    assert (config.views, config.output, config.augment.hue) == (2, Path("here"), 0.1)
    for text in ("augment: {hew: 0.1}", "optim: {lr: 1}\naugment: {hew: 0.1}", "optin: {lr: 1}"):
        file.write_text(text)
        with pytest.raises(SystemExit) as stop:
            parse(AugmentSheetConfig, ["--config", str(file)])
        assert stop.value.code == 2 and ("hew" if "hew" in text else "optin") in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse(AugmentSheetConfig, ["--config", str(tmp_path / "nowhere.yaml")])


def test_defaults_are_those_of_pretraining() -> None:
    assert AugmentSheetConfig().augment == PretrainConfig().augment
    assert AugmentSheetConfig().data == PretrainConfig().data


def test_sheet_draws_what_it_is_given(tmp_path, monkeypatch) -> None:
    figures = []
    monkeypatch.setattr(sheet_module, "save", lambda figure, path: (figures.append(figure), save(figure, path)))
    frames = np.zeros((9, 6, 6, 3), dtype=np.uint8)
    frames[:, :, :, 0] = np.arange(9)[:, None, None] * 25
    loud = np.sin(np.arange(1600) / 10) * 1.5
    mel = np.arange(40.0).reshape(4, 10)
    views = [View("plain", loud / 3, mel, frames, crop=0.5), View("view 1", loud, mel + 50, frames, "told")]
    contact_sheet(tmp_path / "sheet.png", [("a", views)], seconds=0.1, title="T", notes=["n"])
    axes = [axes for part in figures[0].subfigs for axes in part.axes]
    shown, waves, mels = axes[0::3], axes[1::3], axes[2::3]
    assert [int(image.get_array()[0, 0, 0]) for image in shown[0].images] == [0, 75, 125, 200]  # spread over the clip
    assert len(shown[0].patches) == 8 and not shown[1].patches  # the outline of the crop, black and white
    assert [len(wave.collections) for wave in waves] == [1, 3]  # beyond full scale in another colour
    assert waves[0].get_ylim() == waves[1].get_ylim()
    assert mels[0].images[0].get_clim() == mels[1].images[0].get_clim()
    np.testing.assert_array_equal(mels[1].images[0].get_array(), mel + 50)
    assert mels[1].get_xlabel() == "told"
    assert mpl.image.imread(tmp_path / "sheet.png").size


@pytest.mark.parametrize("clips", [[], [("a", [])], [("a", [View("x", [0.0], [[0.0]])]), ("b", [])]])
def test_sheets_that_cannot_be_are_refused(clips, tmp_path) -> None:
    with pytest.raises(ValueError, match="clips: need at least one"):
        contact_sheet(tmp_path / "sheet.png", clips, seconds=1.0)
