"""A sound shorter than a clip is padded by the rule of its model, alike in every tool and in an exported file."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy.io import wavfile
from torchaudio.compliance.kaldi import fbank

import mast
from avssl.augment import SpectrogramAugment, WaveAugment
from avssl.commands.cache import cache
from avssl.commands.embed import embed_media
from avssl.commands.evaluate import evaluate
from avssl.config import (
    AudioConfig,
    CacheConfig,
    DataConfig,
    EmbedConfig,
    EmbedDataConfig,
    EvaluateConfig,
    FinetuneConfig,
    RuntimeConfig,
    Source,
    SourceConfig,
    resolve,
)
from avssl.data.batch import Batch
from avssl.evaluation.result import read_predictions
from avssl.loading import Loaded, load
from avssl.models import AudioClassifier, AudioVisualPair
from avssl.prediction import Predictor
from avssl.training.finetuning import FinetuneTask
from avssl.training.initialization import random_encoder, with_settings
from mast.export import describe

RATE, SECONDS, HEARD = 16000, 0.5, 3400  # a clip, and samples of the sound
CPU = RuntimeConfig(accelerator="cpu")
# Of few blocks: an export takes seconds for each.
ONE_BLOCK = {"embed_dim": 16, "depths": [1], "q_strides": [[1, 1]], "kv_strides": [[2, 2]]}
TWO_BLOCKS = {"embed_dim": 16, "depths": [1, 1], "q_strides": [[1, 1], [2, 2]], "kv_strides": [[2, 2], [1, 1]]}


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("short")
    rng, lines = np.random.default_rng(0), ["path,split,label"]
    for number in range(4):
        wavfile.write(root / f"{number}.wav", RATE, (rng.normal(size=HEARD) * 3000).astype(np.int16))
        lines.append(f"{number}.wav,test,{'ab'[number % 2]}")
    (root / "index.csv").write_text("\n".join(lines) + "\n")
    return root


def classifier(folder: Path, pad: str) -> Path:
    torch.manual_seed(0)
    model = mast.create_model("mast_pico", num_classes=2, **ONE_BLOCK)
    frontend = mast.LogMel(num_mels=32, pad=pad)
    mast.save_pretrained(model, folder, frontend=frontend, labels={"label": ["a", "b"]})
    return folder


def reference(model: mast.SpectrogramModel, sound: np.ndarray, pad: str) -> torch.Tensor:
    """Logits of one sound, padded by NumPy behind torchaudio's filter banks."""
    wave, frames = torch.from_numpy(sound.astype(np.float32) / 32768)[None], mast.LogMel().num_frames(RATE // 2)
    options = {"htk_compat": True, "use_energy": False, "window_type": "hanning", "dither": 0.0, "num_mel_bins": 32}
    bank = fbank(wave, **options).numpy()
    bank = np.pad(bank, ((0, frames - len(bank)), (0, 0)), **({"mode": "edge"} if pad == "edge" else {}))
    with torch.inference_mode():
        return model((torch.from_numpy(bank.T.copy())[None, None] + 4.2677393) / (2 * 4.5689974))[0]


@pytest.mark.parametrize("pad", ["edge", "zero"])
def test_every_tool_pads_alike(pad: str, sounds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVSSL_CACHE", str(tmp_path / "cache"))
    checkpoint = classifier(tmp_path / "model", pad)
    model = mast.from_pretrained(checkpoint).model
    waves = {str(k): wavfile.read(sounds / f"{k}.wav")[1] for k in range(4)}
    wanted = {name: reference(model, wave, pad) for name, wave in waves.items()}

    cache(
        CacheConfig(str(tmp_path / "shards"), SourceConfig(str(sounds / "index.csv")), modalities=["audio"], workers=0)
    )
    for number, name in enumerate((str(sounds / "index.csv"), str(tmp_path / "shards"))):
        data = DataConfig(name, clip_seconds=SECONDS, num_workers=0)
        folder = tmp_path / f"out{number}"
        result = evaluate(EvaluateConfig(str(checkpoint), data, evaluations=["accuracy"], runtime=CPU, output=folder))
        assert result["pad"] == pad
        found = read_predictions(folder / "predictions.parquet")
        for clip_id, scores in zip(found.clip_ids, found.scores["label"], strict=True):
            np.testing.assert_allclose(scores, wanted[Path(clip_id).stem], rtol=2e-3, atol=2e-4)

    data = EmbedDataConfig(str(sounds / "index.csv"), clip_seconds=SECONDS, num_workers=0)
    told = embed_media(EmbedConfig(str(checkpoint), tmp_path / "features.parquet", data, runtime=CPU))
    assert told["pad"] == pad
    for row in pq.read_table(tmp_path / "features.parquet").to_pylist():
        logits = model.head(torch.tensor(row["audio_features"]))
        torch.testing.assert_close(logits, wanted[Path(row["clip_id"]).stem], atol=1e-4, rtol=0)

    for hop in (None, 0.1):  # one window after the other, and windows that share their frames
        predictor = Predictor(load(checkpoint), window=SECONDS, hop=hop, device="cpu")
        (prediction,) = predictor.predict([waves["0"].astype(np.float32) / 32768])
        np.testing.assert_allclose(prediction.scores["label"], wanted["0"].softmax(0), atol=1e-4)

    file = mast.save_program(model, load(checkpoint).frontend, tmp_path / "model.pt2")
    exported = mast.open_exported(file)
    padded = torch.zeros(3, RATE // 2)
    for row, wave in zip(padded, waves.values(), strict=False):
        row[:HEARD] = torch.from_numpy(wave.astype(np.float32) / 32768)
    found = exported(padded, torch.full((3,), HEARD))["logits"]
    torch.testing.assert_close(found, torch.stack(list(wanted.values())[:3]), atol=1e-4, rtol=0)
    assert exported.metadata["frontend"]["pad"] == pad


def test_the_padding_of_a_recipe_holds_beside_a_checkpoint_and_what_was_trained_is_the_default() -> None:
    source = random_encoder(AudioConfig(options={"embed_dim": 16, "depths": [1, 1, 1, 1]}, pad="zero"))
    assert with_settings(source, AudioConfig()).frontend.pad == "zero"
    assert with_settings(source, AudioConfig(pad="edge")).frontend.pad == "edge"
    given = [Source("line", {"data": "epic-kitchens", "checkpoint": "somewhere"})]
    config = resolve(FinetuneConfig, given)
    assert (
        config.audio == AudioConfig(options=config.audio.options, pad="edge") and "frames" not in config.audio.options
    )


@pytest.mark.parametrize("pad", ["wave", "edge"])
def test_tokens_of_padding_leave_the_mean_in_training_tools_and_exported_files(pad: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = mast.create_model("mast_pico", num_classes=2, **TWO_BLOCKS, mask_padding=True).eval()
    frontend = mast.LogMel(num_mels=32, pad=pad)
    samples = torch.tensor([8000, 3400, 399])
    waves = torch.randn(3, 8000) * 0.1 * (torch.arange(8000) < samples[:, None])
    wanted = []
    for wave, size in zip(waves, samples.tolist(), strict=True):
        frames = max(1, 1 + (size - frontend.window) // frontend.shift)
        with torch.inference_mode():
            grid = model.forward_grid(frontend(wave[None], torch.tensor([size])))[0]  # (F', T', D)
            kept = [k for k in range(grid.shape[1]) if k * model.stride[1] < frames]
            wanted.append(grid[:, kept].mean(dim=(0, 1)))
    wanted = torch.stack(wanted)
    plain = model.forward_head(model.forward_features(frontend(waves, samples)), pre_logits=True)
    assert (wanted[1] - plain[1]).abs().max() > 1e-3

    labels = {"label": ["a", "b"]}
    classifier = AudioClassifier(model, frontend, labels)
    none = torch.zeros(3)
    batch = Batch(waves, None, {"label": torch.tensor([0, 1, 1])}, none.long(), list("abc"), none, samples=samples)
    with torch.no_grad():
        torch.testing.assert_close(classifier.features(batch), wanted)
        torch.testing.assert_close(Loaded("encoder", model, frontend).features(batch), wanted)
        torch.testing.assert_close(classifier.classify(waves, samples)["label"], model.head(wanted))
        task = FinetuneTask(classifier, WaveAugment(gain_db=0.0), SpectrogramAugment(masks=0), label_smoothing=0.0)
        classifier.eval()
        loss = torch.nn.functional.cross_entropy(model.head(wanted), batch.labels["label"])
        torch.testing.assert_close(task(batch)[0]["label"], loss)
        if pad == "wave":  # the other rules are exported above
            found = mast.open_exported(mast.save_program(model, frontend, tmp_path / "model.pt2"))(waves, samples)
            torch.testing.assert_close(found["features"], wanted, atol=1e-5, rtol=0)
    mast.save_pretrained(model, tmp_path / "model", frontend=frontend, labels=labels)
    predictor = Predictor(load(tmp_path / "model"), window=SECONDS, hop=0.1, device="cpu")
    (prediction,) = predictor.predict([waves[1, :3400].numpy()])
    np.testing.assert_allclose(prediction.scores["label"], model.head(wanted[1]).softmax(0).detach(), atol=1e-5)


def test_what_cannot_know_where_a_sound_ends_refuses_the_mask() -> None:
    options = {"embed_dim": 16, "depths": [1, 1, 1, 1], "mask_padding": True}
    model = mast.create_model("mast_pico", num_classes=2, **options)
    with pytest.raises(ValueError, match="mask_padding needs to know where a sound ends"):
        classifier = AudioClassifier(model, mast.LogMel(), {"c": ["a", "b"]})
        FinetuneTask(classifier, WaveAugment(), SpectrogramAugment(spec_warp=0.5))
    with pytest.raises(ValueError, match="mask_padding is for classifiers of sound alone"):
        AudioVisualPair.build(audio="mast_pico", audio_options=options, video="tiny")
    with pytest.raises(ValueError, match="input waveform, not spectrogram"):
        describe(model, None)
    ast = mast.create_model("ast_base", embed_dim=16, depth=1, heads=2)
    with pytest.raises(ValueError, match=r"audio\.options: AST has no argument mask_padding"):
        with_settings(Loaded("encoder", ast, mast.LogMel()), AudioConfig(options={"mask_padding": True}))


def masking(**frontend) -> AudioClassifier:
    torch.manual_seed(0)
    options = {"embed_dim": 16, "depths": [1, 1, 1, 1], "mask_padding": True}
    model = mast.create_model("mast_pico", num_classes=2, **options).eval()
    return AudioClassifier(model, mast.LogMel(num_mels=32, **frontend), {"label": ["a", "b"]})


def seen_by(task: FinetuneTask, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Spectrograms and their valid frames, as a step hands them to the classifier."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    encode = task.classifier.encode
    monkeypatch.setattr(task.classifier, "encode", lambda x, f, v: seen.append((x, v)) or encode(x, f, v))
    task(batch)
    return seen[0]


def short_batch() -> Batch:
    none, samples = torch.zeros(4), torch.tensor([16000, 4000, 4000, 8000])
    waves = torch.randn(4, 16000) * 0.1 * (torch.arange(16000) < samples[:, None])
    return Batch(waves, None, {"label": none.long()}, none.long(), list("abcd"), none, samples=samples)


def test_a_shift_carries_no_sound_to_where_the_mask_leaves_it_out(monkeypatch: pytest.MonkeyPatch) -> None:
    task = FinetuneTask(masking(pad="wave"), WaveAugment(gain_db=0.0, time_shift=1.0), SpectrogramAugment(masks=0))
    spectrogram, valid = seen_by(task.train(), short_batch(), monkeypatch)
    silence = task.classifier.frontend(torch.zeros(1, 16000))[0, 0, 0, 0]
    for clip, frames in zip(spectrogram, valid.tolist(), strict=True):
        assert (clip[..., frames + 2 :] == silence).all() and (clip[..., :frames] != silence).any(dim=1).all()


def test_a_clip_that_is_not_blended_keeps_its_own_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    task = FinetuneTask(masking(), WaveAugment(gain_db=0.0), SpectrogramAugment(masks=0), mixup_alpha=0.3)
    partner, share = torch.tensor([1, 0, 3, 2]), torch.tensor([1.0, 0.6, 1.0, 1.0])
    monkeypatch.setattr("avssl.training.finetuning.mixup", lambda x, *_: (x, partner, share))
    _, valid = seen_by(task.train(), short_batch(), monkeypatch)
    assert valid.tolist() == [98, 98, 23, 48]


def test_sound_to_the_end_of_a_clip_is_the_same_told_or_not(tmp_path: Path) -> None:
    """Also where all spectrograms have more frames than the clip: there is the padding that its model has."""
    waves = torch.randn(2, 8000) * 0.1
    whole = torch.full((2,), 8000)
    for pad in ("edge", "repeat", "zero", "wave"):
        classifier = masking(pad=pad, fixed_frames=80)
        assert torch.equal(classifier.frontend(waves), classifier.frontend(waves, whole)), pad
        with torch.no_grad():
            untold, told = classifier.classify(waves)["label"], classifier.classify(waves, whole)["label"]
        assert torch.equal(untold, told)
    mast.save_pretrained(classifier.encoder, tmp_path, frontend=classifier.frontend, labels=classifier.labels)
    torch.testing.assert_close(load(tmp_path).scores(waves)["label"], told.softmax(-1))
