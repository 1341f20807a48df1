"""avssl.load: every kind of path, each read once; and what does not belong together is refused or told."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import avssl
import mast
from avssl.commands.average import average_checkpoints
from avssl.config import AudioConfig, FinetuneConfig, PretrainConfig, VideoConfig
from avssl.data.batch import Batch
from avssl.files import seal_text
from avssl.loading import Loaded, checkpoint_settings, save_classifier, save_encoder
from avssl.models.classifier import AudioClassifier
from avssl.models.pair import AudioVisualPair
from avssl.models.visual_classifier import build_visual_classifier
from avssl.saved_runs import training_settings
from avssl.training.initialization import initial_classifier, initial_pair, read_start

SIZES = {"embed_dim": 8, "depths": [1, 1, 1, 1]}
LABELS = {"verb": ["cut", "wash", "pour"], "noun": ["knife", "cup"]}
DATA = {"name": "esc50", "clip_seconds": 1.5, "channel": "mean", "num_frames": 2}


def audio_classifier(labels: dict[str, list[str]] = LABELS) -> AudioClassifier:
    encoder = mast.create_model("mast_pico", num_classes=0, mels=32, **SIZES)
    return AudioClassifier(encoder, mast.LogMel(num_mels=32, mean=-4.0, std=3.0), labels).eval()


def write(file: Path, settings: dict[str, Any], module: torch.nn.Module, prefix: str, data: dict = DATA) -> Path:
    """A checkpoint as a training writes it, without the states that only a resumed run needs."""
    task = {f"{prefix}.{name}": value for name, value in module.state_dict().items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"settings": settings | {"config": {"data": data}}, "task": task, "average": None}, file)
    return file


@pytest.fixture(scope="module")
def pair_run(tmp_path_factory) -> Path:
    """A finished pretraining: its checkpoint, the export of its audio encoder, and its settings."""
    run = tmp_path_factory.mktemp("runs") / "pair"
    torch.manual_seed(0)
    sizes = {"audio_options": SIZES | {"mels": 32}, "num_frames": 2, "crop_size": 24}
    pair = AudioVisualPair.build(audio="mast_pico", video="tiny", frontend_options={"num_mels": 32}, **sizes)
    write(run / "checkpoints" / "last.ckpt", {"kind": "pair", "pair": pair.settings}, pair, "pair")
    save_encoder(run, pair.audio, pair.frontend, extra={"clip_seconds": 1.5, "channel": "mean"})
    (run / "config.yaml").write_text(seal_text(yaml.safe_dump({"data": DATA})))
    return run


@pytest.fixture(scope="module")
def classifier_run(tmp_path_factory) -> Path:
    """A finished fine-tuning on audio; a clip may have several nouns."""
    run = tmp_path_factory.mktemp("runs") / "classifier"
    torch.manual_seed(0)
    model, extra = audio_classifier(), {"multilabel": ["noun"], "clip_seconds": 1.5, "channel": "mean"}
    write(run / "checkpoints" / "last.ckpt", checkpoint_settings(model, extra), model, "classifier")
    save_classifier(run, model, extra)
    (run / "config.yaml").write_text(seal_text(yaml.safe_dump({"data": DATA})))
    return run


def clips(loaded: Loaded) -> Batch:
    torch.manual_seed(1)
    frames, side = loaded.frames or (1, 1)
    video = torch.randint(0, 256, (2, 3, frames, side + 8, side + 8), dtype=torch.uint8)
    zero = torch.zeros(2)
    return Batch(torch.randn(2, 16000) * 0.1, video, {}, zero.long(), ["a", "b"], zero.double())


@pytest.mark.parametrize("path", ["", "checkpoints/last.ckpt"])
def test_a_pair_by_its_run_or_file(path: str, pair_run: Path) -> None:
    loaded = avssl.load(pair_run / path)
    assert (loaded.kind, loaded.name, loaded.labels) == ("pair", "pair", {}) and not loaded.model.training
    assert (loaded.frames, loaded.sample_rate, loaded.settings.clip_seconds) == ((2, 24), 16000, 1.5)
    batch = clips(loaded)
    found = loaded.embeddings(batch)
    with torch.no_grad():
        torch.testing.assert_close(found["audio_embedding"], loaded.pair.embed_audio(batch.audio))
        torch.testing.assert_close(found["video_embedding"], loaded.pair.embed_video(batch.video))
        torch.testing.assert_close(loaded.features(batch), loaded.pair.audio.features(loaded.frontend(batch.audio)))
    torch.testing.assert_close(found["audio_features"], loaded.features(batch.audio), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="has no classes: fine-tune it first"):
        loaded.scores(batch)
    torch.testing.assert_close(avssl.load(pair_run / "audio_encoder").features(batch), loaded.features(batch))


@pytest.mark.parametrize("path", ["", "audio_encoder", "checkpoints/last.ckpt"])
def test_a_classifier_by_its_run_export_or_file(path: str, classifier_run: Path) -> None:
    """Softmax where a clip has one class, sigmoid where it may have several."""
    loaded = avssl.load(str(classifier_run / path))
    assert (loaded.kind, loaded.labels, loaded.modalities) == ("classifier", LABELS, ("audio",))
    waveform = clips(loaded).audio
    with torch.no_grad():
        logits = loaded.classifier.classify(waveform)
    scores = loaded.scores(waveform)
    torch.testing.assert_close(scores["verb"], logits["verb"].softmax(-1))
    torch.testing.assert_close(scores["noun"], logits["noun"].sigmoid())
    with pytest.raises(ValueError, match=r"waveforms must be \(B, S\), got \(16000,\)"):
        loaded.scores(waveform[0])
    with pytest.raises(ValueError, match=r"waveforms must be in \[-1, 1\], got 20000: samples of 16 bits"):
        loaded.scores(torch.full((1, 16000), 20000.0))
    with pytest.raises(ValueError, match=r"floats in \[-1, 1\], got int16: divide"):
        loaded.scores(torch.ones(1, 16000, dtype=torch.int16))
    with pytest.raises(ValueError, match="got nan"):
        loaded.scores(torch.full((1, 16000), torch.nan))
    with pytest.raises(TypeError, match=r"give waveforms \(B, S\), or an avssl.data.batch.Batch, not a dict"):
        loaded.scores({"audio": waveform})


@pytest.mark.parametrize("path", ["", "classifier"])
def test_a_classifier_that_sees_keeps_its_settings_where_it_is_moved(path: str, tmp_path: Path) -> None:
    model = build_visual_classifier(labels=LABELS, video="tiny", num_frames=2, crop_size=24).eval()
    save_classifier(
        tmp_path / "run", model, {"clip_seconds": 2.5, "channel": 1, "frame_size": 40, "multilabel": ["noun"]}
    )
    shutil.copytree(tmp_path / "run", tmp_path / "moved")
    loaded = avssl.load(tmp_path / "moved" / path)
    assert (loaded.settings.clip_seconds, loaded.settings.channel, loaded.settings.multilabel) == (2.5, 1, {"noun"})
    assert loaded.settings.frame_size == 40
    batch = clips(loaded)
    with torch.no_grad():
        torch.testing.assert_close(loaded.scores(batch)["verb"], model(batch)["verb"].softmax(-1))
    for frames in (batch.video / 255, batch.video.transpose(1, 2), batch.video[:, 0]):
        with pytest.raises(ValueError, match=r"frames must be uint8 RGB as they are decoded, \(B, 3, T, H, W\), got"):
            loaded.scores(replace(batch, video=frames))
    with pytest.raises(ValueError, match="has no audio encoder"):
        loaded.audio_alone()


def test_a_checkpoint_is_read_once(pair_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    whole = torch.load

    def reading(file: Any, *rest: Any, **how: Any) -> dict[str, Any]:
        read.append(file if isinstance(file, Path) else Path(file.name))
        return whole(file, *rest, **how)

    monkeypatch.setattr(torch, "load", reading)
    source = read_start(pair_run)
    initial_pair(PretrainConfig(checkpoint=str(pair_run)), source)
    assert read == [pair_run / "checkpoints" / "last.ckpt"]


def test_the_average_along_the_training_is_taken(pair_run: Path, tmp_path: Path) -> None:
    state = torch.load(pair_run / "checkpoints" / "last.ckpt", weights_only=True)
    state["average"] = {name.replace("pair.", "module.", 1): value + 1 for name, value in state["task"].items()}
    torch.save(state, tmp_path / "last.ckpt")
    raw, averaged = avssl.load(pair_run).model.state_dict(), avssl.load(tmp_path / "last.ckpt").model.state_dict()
    assert all(torch.equal(averaged[name], value + 1) for name, value in raw.items())


@pytest.mark.parametrize(
    ("change", "told"), [("missing", "Missing .*proj.bias"), ("unexpected", "Unexpected .*gate.bias")]
)
def test_other_weights_than_the_models_are_refused(
    change: str, told: str, classifier_run: Path, tmp_path: Path
) -> None:
    state = torch.load(classifier_run / "checkpoints" / "last.ckpt", weights_only=True)
    if change == "missing":
        del state["task"]["classifier.encoder.patch_embed.proj.bias"]
    else:
        state["task"]["classifier.encoder.gate.bias"] = torch.zeros(3)
    torch.save(state, tmp_path / "last.ckpt")
    with pytest.raises(
        ValueError, match=rf"settings and weights of .*last\.ckpt do not fit a model: .*{told}"
    ) as raised:
        avssl.load(tmp_path / "last.ckpt")
    assert "\n" not in str(raised.value)


def test_another_kind_than_is_needed_is_named(pair_run: Path, classifier_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"pair holds a pair, not a classifier: it has no classes; fine-tune it first"):
        avssl.load(pair_run, kind="classifier")
    with pytest.raises(ValueError, match=r"last\.ckpt holds a classifier, not a pair"):
        avssl.load(classifier_run / "checkpoints" / "last.ckpt", kind="pair")
    with pytest.raises(ValueError, match=r"audio_encoder holds an encoder, not a pair"):
        avssl.load(pair_run / "audio_encoder", kind="pair")
    for path in ("nowhere", "nowhere.ckpt"):
        with pytest.raises(FileNotFoundError, match=f"there is no .*{path}; give a run"):
            avssl.load(tmp_path / path)


def test_an_unfinished_run_is_told_and_starts_no_training(pair_run, classifier_run, tmp_path, caplog) -> None:
    shutil.copytree(pair_run, tmp_path / "pair", ignore=shutil.ignore_patterns("audio_encoder"))
    assert avssl.load(tmp_path / "pair").kind == "pair" and "is not finished: taking the weights of" in caplog.text
    with pytest.raises(FileNotFoundError, match=r"is not finished; resume it, or name .*last\.ckpt"):
        read_start(tmp_path / "pair")
    shutil.copytree(classifier_run, tmp_path / "tuned", ignore=shutil.ignore_patterns("audio_encoder"))
    with pytest.raises(FileNotFoundError, match=r"is not finished; resume it, or name .*last\.ckpt"):
        avssl.load(tmp_path / "tuned")


def test_settings_of_another_run_beside_a_checkpoint_are_left_out(pair_run: Path, tmp_path: Path, caplog) -> None:
    """Of clips of another length it would be evaluated, and other channels heard."""
    file = tmp_path / "checkpoints" / "pair.ckpt"
    file.parent.mkdir()
    shutil.copy(pair_run / "checkpoints" / "last.ckpt", file)
    assert training_settings(file) == training_settings(pair_run) == avssl.load(file).settings, "away from its run"
    other = yaml.safe_dump({"data": DATA | {"clip_seconds": 9.0, "name": "grid"}})
    (tmp_path / "config.yaml").write_text(seal_text(other))
    assert avssl.load(file).settings.clip_seconds == training_settings(file).clip_seconds == 1.5
    assert avssl.load(file).settings.data == "esc50"
    assert "config.yaml is of another run: data.name is 'grid' there, and was 'esc50'" in caplog.text
    (tmp_path / "config.yaml").write_text(other)  # without its checksum, by which somebody says that it counts
    assert avssl.load(file).settings.clip_seconds == 9.0


def test_settings_of_another_run_beside_an_export_are_left_out(pair_run: Path, tmp_path: Path, caplog) -> None:
    shutil.copytree(pair_run / "audio_encoder", tmp_path / "audio_encoder")
    (tmp_path / "config.yaml").write_text(seal_text(yaml.safe_dump({"data": DATA | {"channel": 1}})))
    assert avssl.load(tmp_path).settings.channel == "mean"
    assert "data.channel is 1 there, and was 'mean'" in caplog.text


@pytest.mark.parametrize("change", ["classes", "heads", "names", None])
def test_a_head_goes_on_for_the_same_classes_in_the_same_order_alone(change: str | None, classifier_run: Path) -> None:
    """As many classes are no reason: fine-tuning would begin with what other classes, or another head, have learned."""
    labels = {
        "classes": {"verb": ["wash", "cut", "pour"], "noun": LABELS["noun"]},
        "heads": dict(reversed(LABELS.items())),
        "names": {"verb": ["a", "b", "c"], "noun": ["d", "e"]},
        None: LABELS,
    }[change]
    source = avssl.load(classifier_run)
    made = initial_classifier(FinetuneConfig(head="full"), source, labels)
    weights = source.classifier.state_dict()
    for name, value in made.state_dict().items():
        assert torch.equal(value, weights[name]) == (change is None or "head" not in name or "bias" in name), name
    assert made.audio_encoder is not source.audio_encoder, "a copy, whose training leaves the source as it is"


def test_a_start_takes_all_weights_of_an_encoder_or_none() -> None:
    encoder = mast.create_model("mast_pico", num_classes=0, **SIZES)
    config = PretrainConfig(audio=AudioConfig(), video=VideoConfig("tiny"))
    assert initial_pair(config, Loaded("encoder", encoder, mast.LogMel())).report["audio"] == 1.0
    encoder.norm.bias = None  # 0.01 % of its weights, which would be random
    with pytest.raises(ValueError, match=r"checkpoint: 1 of the \d+ weights of the audio encoder .*norm\.bias"):
        initial_pair(config, Loaded("encoder", encoder, mast.LogMel()))


@pytest.mark.parametrize("change", ["labels", "frontend"])
def test_models_of_other_classes_or_frontends_have_no_mean(change: str, tmp_path: Path) -> None:
    one, other = (
        audio_classifier(),
        audio_classifier(LABELS if change == "frontend" else dict(reversed(LABELS.items()))),
    )
    if change == "frontend":
        other.frontend = mast.LogMel(num_mels=32, mean=-5.0, std=3.0)
    files = [
        write(tmp_path / f"{number}.ckpt", checkpoint_settings(model), model, "classifier")
        for number, model in enumerate((one, one, other))
    ]
    mean = average_checkpoints(files[:2])["task"]
    assert all(torch.equal(mean[f"classifier.{name}"], value) for name, value in one.state_dict().items())
    with pytest.raises(ValueError, match=rf"2\.ckpt has other {change}.* than .*0\.ckpt"):
        average_checkpoints([files[0], files[2]])


def test_an_export_with_fewer_names_than_classes_is_refused(classifier_run: Path, tmp_path: Path) -> None:
    shutil.copytree(classifier_run / "audio_encoder", tmp_path / "edited")
    file = tmp_path / "edited" / "config.json"
    config = json.loads(file.read_text())
    config["labels"]["noun"] = ["knife"]
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config\.json is not as it was written"):
        avssl.load(tmp_path / "edited")
    del config["sha256"]
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="names 4 classes, its model has 5"):
        avssl.load(tmp_path / "edited")


def test_random_weights_follow_from_the_seed(pair_run: Path, caplog) -> None:
    caplog.set_level(logging.INFO)
    state = torch.random.get_rng_state()
    loaded = avssl.load(pair_run)
    batch = clips(loaded)
    torch.random.set_rng_state(state)
    features = [loaded.reinitialized(seed).features(batch) for seed in (5, 5, 6)]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(features[0], features[1]) and not torch.allclose(features[0], features[2])
    assert not torch.allclose(features[0], loaded.features(batch)) and loaded.reinitialized(0).frames == loaded.frames
