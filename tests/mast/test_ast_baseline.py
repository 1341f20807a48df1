"""AST equals Hugging Face's, weights translated, from the waveform to the logits."""

import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch

import mast
from mast.hugging_face import from_hugging_face_state


def hugging_face_ast(frames: int = 100):
    from transformers import ASTConfig, ASTForAudioClassification

    torch.manual_seed(0)
    config = ASTConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=128,
        max_length=frames,
        num_labels=7,
        initializer_range=0.3,  # far from zero, so that a wrong name can't hide
    )
    peer = ASTForAudioClassification(config)
    for parameter in peer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return peer.eval()


def small_ast(**overrides):
    return mast.create_model("ast_base", **{"embed_dim": 32, "depth": 3, "heads": 4, "num_classes": 7, **overrides})


def test_outputs_equal_hugging_face() -> None:
    peer, model = hugging_face_ast(), small_ast(frames=100).eval()
    model.load_state_dict(from_hugging_face_state(peer.state_dict()))
    x = torch.randn(2, 1, 128, 100)
    with torch.no_grad():
        expected = peer(x[:, 0].transpose(1, 2)).logits
        torch.testing.assert_close(model(x), expected, atol=1e-4, rtol=1e-4)


def test_base_has_as_many_parameters_as_hugging_face() -> None:
    from transformers import ASTConfig, ASTForAudioClassification

    with torch.device("meta"):
        peer = ASTForAudioClassification(ASTConfig(num_labels=527))
        model = mast.create_model("ast_base", num_classes=527)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in peer.parameters()) == 86_594_063


def test_features_are_the_mean_of_the_special_or_of_the_patch_tokens() -> None:
    x = torch.randn(2, 1, 128, 100)
    for pool, tokens in (("special", slice(0, 2)), ("patch", slice(2, None))):
        model = small_ast(frames=100, pool=pool).eval()
        torch.testing.assert_close(model.features(x), model.forward_features(x)[:, tokens].mean(dim=1))
    with pytest.raises(ValueError, match="pool='cls' must be special or patch"):
        small_ast(pool="cls")


@pytest.mark.parametrize("frames", [60, 160])
def test_other_lengths_interpolate_the_positions(frames: int) -> None:
    model = small_ast(frames=100).eval()
    x = torch.randn(2, 1, 128, frames)
    with torch.no_grad():
        assert model.forward_features(x).shape == (2, 2 + 12 * ((frames - 16) // 10 + 1), 32)
        assert model(x).shape == (2, 7)


def test_interface() -> None:
    model = small_ast(num_classes=0, frames=100)
    x = torch.randn(2, 1, 128, 100)
    tokens = model.forward_features(x)
    torch.testing.assert_close(model.forward_head(tokens, pre_logits=True), tokens[:, :2].mean(1))
    assert model(x).shape == (2, model.num_features) == (2, 32)
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    assert {"positions", "special_tokens"} <= model.no_weight_decay() <= set(dict(model.named_parameters()))


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="embed_dim=10"):
        mast.create_model("ast_base", embed_dim=10, heads=3)
    with pytest.raises(ValueError, match="15 frames, the patch embedding needs at least 16"):
        small_ast(frames=100)(torch.zeros(1, 1, 128, 15))


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """A folder as published ASTs come: of the original's input, but narrow and shallow."""
    from transformers import ASTFeatureExtractor

    folder = tmp_path_factory.mktemp("ast")
    hugging_face_ast(frames=1024).save_pretrained(folder)
    ASTFeatureExtractor().save_pretrained(folder)
    return folder


def expected_logits(folder: Path, waveforms: list[np.ndarray]) -> torch.Tensor:
    """By transformers: its feature extractor and its model."""
    from transformers import ASTFeatureExtractor, ASTForAudioClassification

    extractor = ASTFeatureExtractor.from_pretrained(folder)
    inputs = extractor(waveforms, sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        return ASTForAudioClassification.from_pretrained(folder).eval()(**inputs).logits


def test_a_published_folder_gives_hugging_faces_logits_of_waveforms(published: Path, tmp_path: Path) -> None:
    """Clips shorter than its 10.24 s, of 10 s, and longer; also after it was saved here."""
    loaded = mast.from_pretrained(published)
    assert loaded.labels == {"label": [f"LABEL_{index}" for index in range(7)]}
    loaded.model.save_pretrained(tmp_path, frontend=loaded.frontend, labels=loaded.labels)
    generator = torch.Generator().manual_seed(0)
    for seconds in (1.0, 5.0, 10.0, 11.0):
        size = round(16000 * seconds)
        x = torch.randn(1, size, generator=generator) * torch.linspace(0.001, 0.2, size)
        expected = expected_logits(published, [x[0].numpy()])
        for model in (loaded, mast.from_pretrained(tmp_path)):
            assert model.frontend is not None
            with torch.no_grad():
                found = model.model(model.frontend(x))
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
        with torch.no_grad():  # a batch of longer clips, in which zeros follow the sound
            padded = torch.nn.functional.pad(x, (0, 8000))
            found = loaded.model(loaded.frontend(padded, torch.tensor([size])))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
        own = mast.LogMel()(x)  # without the zeros in front of the normalization it is another input
        with torch.no_grad():
            assert seconds > 10 or (loaded.model(own) - expected).abs().max() > 1e-3


@pytest.mark.realdata
def test_real_clips_have_hugging_faces_logits(published: Path, real_data: Path) -> None:
    files = sorted((real_data / "esc10").glob("*/*.ogg"))[::57]
    loaded = mast.from_pretrained(published)
    assert files and loaded.frontend is not None
    for file in files:
        with av.open(str(file)) as container:
            resampler = av.AudioResampler(format="flt", layout="mono", rate=16000)
            frames = [out for frame in container.decode(audio=0) for out in resampler.resample(frame)]
        x = torch.from_numpy(np.concatenate([frame.to_ndarray() for frame in frames], axis=1))
        with torch.no_grad():
            found = loaded.model(loaded.frontend(x))
        torch.testing.assert_close(found, expected_logits(published, [x[0].numpy()]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("frames", [60, 77, 100, 160])
def test_positions_are_cut_as_in_the_original(frames: int) -> None:
    """``src/models/ast_models.py`` of the authors, where it loads its weights for another length."""
    model = small_ast(frames=100, short_positions="crop")
    width, length = model.grid[1], (frames - 16) // 10 + 1
    image = model.positions[:, 2:].reshape(1, 12, width, 32).permute(0, 3, 1, 2)
    if length < width:
        first = width // 2 - length // 2
        image = image[:, :, :, first : first + length]
    elif length > width:
        image = torch.nn.functional.interpolate(image, size=(12, length), mode="bilinear")
    expected = torch.cat((model.positions[:, :2], image.reshape(1, 32, -1).transpose(1, 2)), dim=1)
    torch.testing.assert_close(model.positions_at((12, length)), expected)
    if length < width:
        assert not torch.allclose(small_ast(frames=100).positions_at((12, length)), expected)


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("config.json", {"hidden_act": "relu"}, "hidden_act: AST here has 'gelu', not 'relu'"),
        ("config.json", {"time_stride": 8}, "equal strides, not 10 and 8"),
        ("preprocessor_config.json", None, "has no preprocessor_config.json, which tells how"),
        ("preprocessor_config.json", {"std": -1}, "std=-1"),
    ],
)
def test_a_published_folder_that_is_not_understood_says_why(published, tmp_path, file, values, message) -> None:
    for source in published.iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    if values is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(json.dumps(json.loads((tmp_path / file).read_text()) | values))
    with pytest.raises(mast.LoadError, match=message):
        mast.from_pretrained(tmp_path)
