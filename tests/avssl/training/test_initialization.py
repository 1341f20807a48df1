"""Sizes of encoders: by name, as given, and beside a checkpoint, where what is given must be true or may be changed."""

import copy
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import mast
from avssl.commands.finetune import finetune, resolve_checkpoint
from avssl.config import AudioConfig, DataConfig, FinetuneConfig, PretrainConfig, VideoConfig
from avssl.loading import load, save_encoder
from avssl.models.pair import AudioVisualPair
from avssl.training.initialization import (
    audio_settings,
    check_random_start,
    complete_audio,
    complete_finetuning,
    complete_video,
    frame_size_for,
    initial_classifier,
    initial_pair,
    random_encoder,
    with_settings,
)

SMALL = {"embed_dim": 16, "depths": [1, 1, 1, 1], "drop_path": 0.0}


@pytest.fixture(scope="module")
def source():
    return random_encoder(AudioConfig(options=SMALL, num_mels=48))


def test_without_settings_the_encoder_is_the_checkpoints(source) -> None:
    assert with_settings(source, AudioConfig()) is source


def test_true_settings_and_other_regularization(source) -> None:
    options = {"embed_dim": 16, "depths": [1, 1, 1, 1], "drop_path": 0.3}
    changed = with_settings(source, AudioConfig(options=options, num_mels=48))
    assert changed.model.config == source.model.config | {"drop_path": 0.3}
    x = torch.randn(2, 1, 48, 60)
    assert torch.equal(changed.model.eval()(x), copy.deepcopy(source.model).eval()(x))
    torch.manual_seed(0)
    noisy = changed.model.train()
    assert not torch.equal(noisy(x), noisy(x))  # the new rate acts


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (AudioConfig(model="mast_tiny", options=SMALL, num_mels=48), "audio.model: .* 'mast_pico', not 'mast_tiny'"),
        (AudioConfig(options=SMALL, num_mels=128), "audio.num_mels: .* 48, not 128"),
        (AudioConfig(options=SMALL, num_mels=48, sample_rate=8000), "audio.sample_rate: .* 16000, not 8000"),
        (AudioConfig(options=SMALL, num_mels=48, mean=1.0), "audio.mean: "),
        (AudioConfig(options=SMALL, num_mels=48, divide_by="std"), r"audio.divide_by: .* '2\*std', not 'std'"),
        (AudioConfig(options=SMALL, num_mels=48, frame_shift_ms=5.0), "audio.frame_shift_ms: .* 10.0, not 5.0"),
        (AudioConfig(options={"embed_dim": 32}, num_mels=48), "audio.options.embed_dim: .* 16, not 32"),
        (AudioConfig(options={"depth": 3}, num_mels=48), "audio.options.depth: .* None, not 3"),
    ],
)
def test_a_false_one_is_named(source, config, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        with_settings(source, config)


def test_what_is_not_given_is_not_compared(source) -> None:
    assert with_settings(source, AudioConfig(model="mast_pico", num_mels=48)) is source
    assert with_settings(source, AudioConfig(options={"drop_path": 0.5})).model.config["drop_path"] == 0.5


def test_a_checkpoints_settings_rebuild_it_and_are_kept_in_the_config(source, tmp_path) -> None:
    known = audio_settings(source, AudioConfig(options={"drop_path": 0.2}))
    assert known.model == "mast_pico" and known.num_mels == 48 and known.sample_rate == 16000
    assert known.options == SMALL | {"drop_path": 0.2}
    assert random_encoder(known).model.config == source.model.config | {"drop_path": 0.2}
    save_encoder(tmp_path, source.model, source.frontend)
    config = complete_finetuning(FinetuneConfig(), load(tmp_path))
    assert config.audio == audio_settings(source, AudioConfig())
    assert complete_finetuning(config, load(tmp_path)) == config
    assert config.video == VideoConfig() and config.data == DataConfig()  # an audio task says nothing of video


def test_the_frontend_of_the_settings_travels_with_exports_and_pairs(tmp_path) -> None:
    given = {"divide_by": "std", "frame_shift_ms": 20.0, "fixed_frames": 70}
    audio = AudioConfig(options=SMALL, num_mels=48, mean=-4.0, std=4.5, **given)
    made = random_encoder(audio)
    waveform = torch.randn(1, 16000)
    log_mel = mast.LogMel(num_mels=48, frame_shift_ms=20.0, mean=None, std=None)(waveform)
    padded = torch.nn.functional.pad(log_mel, (0, 70 - log_mel.shape[3]))
    torch.testing.assert_close(made.frontend(waveform), (padded + 4.0) / 4.5)
    # Settings that a config does not have are kept, too.
    frontend = mast.LogMel(**made.frontend.config | {"low_hz": 50.0})
    save_encoder(tmp_path, made.model, frontend)
    config = PretrainConfig(checkpoint=str(tmp_path), video=VideoConfig("tiny"))
    pair = initial_pair(config, load(tmp_path)).pair
    assert pair.frontend.config == frontend.config
    assert AudioVisualPair.build(**pair.settings).frontend.config == frontend.config
    assert audio_settings(made, AudioConfig()).divide_by == "std"
    # The frames of a clip may be others, as where AST's weights are fine-tuned on shorter clips.
    shorter = initial_pair(replace(config, audio=AudioConfig(fixed_frames=40)), load(tmp_path)).pair.frontend
    assert shorter.config == frontend.config | {"fixed_frames": 40}


@pytest.mark.parametrize("other", [{"low_hz": 50.0}, {"mean": None, "std": None}])
def test_a_random_start_that_would_be_given_other_spectrograms_is_refused(other: dict, tmp_path) -> None:
    made = random_encoder(AudioConfig(options=SMALL, num_mels=48, frame_shift_ms=20.0))
    config = FinetuneConfig(checkpoint=str(tmp_path), compare_random=True, output=tmp_path / "run")
    save_encoder(tmp_path, made.model, made.frontend)
    source = load(tmp_path)
    check_random_start(complete_finetuning(config, source), source)
    save_encoder(tmp_path, made.model, mast.LogMel(**made.frontend.config | other))
    with pytest.raises(ValueError, match=f"^compare_random: the checkpoint's frontend has {next(iter(other))} "):
        finetune(config)
    assert not (tmp_path / "run").exists()


def test_a_published_ast_starts_a_fine_tuning_as_it_is(tmp_path) -> None:
    """The folder of a model of Hugging Face: its size, its frontend, and its classes as the former head."""
    from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    several = {"num_labels": 3, "problem_type": "multi_label_classification"}
    peer = ASTForAudioClassification(ASTConfig(**sizes, **several))
    peer.save_pretrained(tmp_path)
    ASTFeatureExtractor(mean=-5.0, std=4.0).save_pretrained(tmp_path)
    published = load(tmp_path)
    assert (published.kind, published.settings.multilabel) == ("classifier", {"label"})
    config = complete_finetuning(FinetuneConfig(head="full"), published)
    assert (config.audio.model, config.audio.options["embed_dim"], config.audio.fixed_frames) == ("ast_base", 16, 1024)
    assert (config.audio.mean, config.audio.divide_by, config.audio.pad) == (-5.0, "2*std", "zero")
    classifier = initial_classifier(config, published, {"kind": ["a", "b"]})
    weights = classifier.audio_encoder.patch_embed.proj.weight
    assert torch.equal(weights, peer.audio_spectrogram_transformer.embeddings.patch_embeddings.projection.weight)
    assert classifier.frontend(torch.zeros(1, 16000)).shape == (1, 1, 128, 1024)


@pytest.mark.parametrize("name", ["ast_base", "mast_nano"])
def test_a_variant_by_name_keeps_its_name_alone(name: str) -> None:
    encoder = random_encoder(AudioConfig(name, num_mels=64))
    assert audio_settings(encoder, AudioConfig()).options == {}


@pytest.mark.parametrize(
    ("model", "sizes"),
    [("mvit_v2_s", (16, 256, 224)), ("r2plus1d_18", (16, 128, 112)), ("tiny", (8, 56, 48)), (None, (8, 56, 48))],
)
def test_a_video_encoder_has_its_own_size_where_none_is_given(model, sizes) -> None:
    video, data = complete_video(VideoConfig(model), DataConfig())
    assert (data.num_frames, data.frame_size, video.crop_size) == sizes
    video, data = complete_video(VideoConfig(model, crop_size=96), DataConfig(num_frames=4))
    assert (data.num_frames, data.frame_size, video.crop_size) == (4, 112, 96)


def test_frames_smaller_than_the_crop_are_refused_at_the_start() -> None:
    with pytest.raises(ValueError, match=r"data\.frame_size: frames of 128 x 128 .* 224 .* --data\.frame_size 256"):
        complete_video(VideoConfig("mvit_v2_s"), DataConfig(frame_size=128))


@pytest.mark.parametrize("crop", range(1, 300, 7))
def test_frames_are_never_smaller_than_their_crop(crop: int) -> None:
    assert crop < frame_size_for(crop) < crop * 8 / 7 + 8 and frame_size_for(crop) % 8 == 0


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (
            AudioConfig("mast_bse"),
            r"audio\.model: unknown model 'mast_bse'; did you mean mast_base",
        ),
        (AudioConfig(options={"drop_pth": 0.1}), r"audio\.options: mast_pico .* did you mean drop_path\?"),
        (AudioConfig("ast_base", {"depths": [1, 1]}), r"audio\.options: ast_base .* no argument depths"),
        (AudioConfig(options={"depths": "many"}), r"audio\.options: mast_pico cannot be built"),
        (AudioConfig(options={"embed_dim": 0}), r"audio\.options: .*embed_dim=0"),
        (AudioConfig(mean=-4.0), r"audio\.mean and audio\.std: give both or neither, got -4\.0 and None"),
        (AudioConfig(options={"num_classes": 5}), r"audio\.options: num_classes is set by the data's heads"),
    ],
)
def test_a_wrong_model_or_option_is_one_line_that_names_the_setting(config, told: str) -> None:
    with pytest.raises(ValueError, match=told) as error:
        complete_audio(config)
    assert "\n" not in str(error.value)


def test_a_start_from_random_weights_says_that_there_is_a_pretraining_run(tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.chdir(tmp_path)
    config = FinetuneConfig(DataConfig("esc50"), checkpoint="none")
    with caplog.at_level(logging.INFO):
        assert resolve_checkpoint(config) is None and not caplog.records
        (tmp_path / "runs" / "pretrain-esc50" / "audio_encoder").mkdir(parents=True)
        assert resolve_checkpoint(config) is None
    assert "--checkpoint runs/pretrain-esc50 would start from that pretraining" in caplog.text
    assert resolve_checkpoint(FinetuneConfig(DataConfig("esc50"))) == Path("runs/pretrain-esc50")
