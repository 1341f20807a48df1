"""Backbones of timm and transformers: they equal the libraries' own, and the rest follows from their blocks."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import mast
from avssl.config import AudioConfig
from avssl.models.blocks import checkpoint_activations
from avssl.models.pair import AudioVisualPair
from avssl.training.initialization import complete_audio
from mast.complexity import measure

timm = pytest.importorskip("timm", reason="pip install timm")
transformers = pytest.importorskip("transformers", reason="pip install transformers")

SIZE = {"mels": 64, "frames": 96}
# Name, options of timm, grid of 64 x 96, blocks.
MODELS = [
    ("vit_tiny_patch16_224", {"depth": 3}, (4, 6), 3),
    ("deit_tiny_distilled_patch16_224", {"depth": 2}, (4, 6), 2),
    ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 2, 1), "embed_dim": 24}, (2, 3), 5),
    ("resnet18", {}, (2, 3), 8),
    ("convnext_atto", {"depths": (1, 1, 2, 1)}, (2, 3), 5),
    ("mobilenetv3_small_050", {}, (2, 3), 12),
]
SWIN = MODELS[2][1]


@pytest.fixture
def spectrogram() -> Tensor:
    return torch.randn(2, 1, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("name", "options", "grid", "blocks"), MODELS, ids=[model[0] for model in MODELS])
@torch.no_grad()
def test_timm_is_computed_as_timm_does(name, options, grid, blocks, spectrogram: Tensor) -> None:
    model = mast.create_model(f"timm/{name}", options=options, **SIZE).eval()
    sized = {"img_size": (64, 96)} if "patch" in name else {}
    own = timm.create_model(name, in_chans=1, num_classes=0, **options, **sized).eval()
    own.load_state_dict(model.body.state_dict())
    tokens, cells = model.forward_features(spectrogram), model.forward_grid(spectrogram)
    expected = own.forward_features(spectrogram)
    if expected.ndim == 4:
        expected = expected if getattr(own, "output_fmt", "") == "NHWC" else expected.movedim(1, -1)
        assert_close(cells, expected, rtol=0, atol=1e-5)
        expected = expected.flatten(1, 2)
    assert_close(tokens, expected, rtol=0, atol=1e-5)
    assert cells.shape == (2, *grid, model.num_features) and len(model.blocks) == blocks
    assert_close(cells.flatten(1, 2), tokens[:, model.num_prefix_tokens :], rtol=0, atol=0)
    assert model.stride == (64 // grid[0], 96 // grid[1])
    if model.config["pool"] == "own":
        assert_close(model.features(spectrogram), own(spectrogram), rtol=0, atol=1e-5)
    else:
        assert name.startswith("mobilenet")
    model.config["pool"] = "patch"
    assert_close(model.features(spectrogram), cells.mean(dim=(1, 2)), rtol=0, atol=1e-5)


def test_layers_decay_and_cost_follow_from_the_blocks(spectrogram: Tensor) -> None:
    model = mast.create_model("timm/vit_tiny_patch16_224", num_classes=5, options={"depth": 3}, **SIZE)
    layers = {name: model.layer_of(name) for name, _ in model.named_parameters()}
    assert layers["body.cls_token"] == layers["body.pos_embed"] == layers["body.patch_embed.proj.weight"] == 0
    assert layers["body.blocks.0.attn.qkv.weight"] == 1 and layers["body.blocks.2.mlp.fc1.bias"] == 3
    assert layers["body.norm.weight"] == layers["head.weight"] == model.num_layers == 4
    assert {"body.cls_token", "body.pos_embed", "head.bias"} <= model.no_weight_decay()
    assert not {"head.weight", "body.blocks.0.attn.qkv.weight"} & model.no_weight_decay()
    merging = mast.create_model("timm/swin_tiny_patch4_window7_224", options=SWIN, **SIZE)
    assert merging.layer_of("body.layers.1.downsample.reduction.weight") == 2  # before the block of the second stage
    complexity = measure("timm/resnet18", num_classes=5, **SIZE)
    assert complexity.grids == ((16, 24), (8, 12), (4, 6), (2, 3)) and complexity.attention_macs == 0
    model.eval()
    before = model(spectrogram)
    checkpoint_activations(model)
    assert len(model.blocks) == 3 and model.layer_of("body.blocks.1._checkpoint_wrapped_module.norm1.weight") == 2
    assert_close(model(spectrogram), before, rtol=0, atol=1e-6)


def test_weights_of_a_file_have_their_channels_summed_and_their_positions_resized(tmp_path: Path) -> None:
    name, options, file = "timm/vit_tiny_patch16_224", {"depth": 1}, str(tmp_path / "weights.pth")
    pictures = timm.create_model("vit_tiny_patch16_224", num_classes=7, **options)
    torch.save(pictures.state_dict(), file)
    square = mast.create_model(name, options=options, weights=file, mels=224, frames=224)
    assert_close(square.body.patch_embed.proj.weight, pictures.patch_embed.proj.weight.sum(dim=1, keepdim=True))
    assert_close(square.body.pos_embed, pictures.pos_embed)
    wide = mast.create_model(name, options=options, weights=file, **SIZE)
    assert wide.body.pos_embed.shape == (1, 1 + 4 * 6, 192) and "weights" not in wide.config
    assert_close(wide.body.blocks[0].attn.qkv.weight, pictures.blocks[0].attn.qkv.weight)
    named = AudioConfig(model=name, options={"weights": "not looked at before training", **SIZE})
    assert complete_audio(named).num_mels == 64
    with pytest.raises(ValueError, match=r"there is no file of weights none\.pth"):
        mast.create_model(name, options=options, weights="none.pth")
    with pytest.raises(ValueError, match="do not fit"):
        mast.create_model(name, options={"depth": 2}, weights=file)


@torch.no_grad()
def test_other_lengths_and_saving(tmp_path: Path, spectrogram: Tensor) -> None:
    model = mast.create_model("timm/vit_tiny_patch16_224", num_classes=3, options={"depth": 1}, **SIZE).eval()
    assert model.forward_grid(torch.zeros(1, 1, 64, 150)).shape == (1, 4, 10, 192)  # 150 frames fill 10 patches
    model.save_pretrained(tmp_path)
    again = mast.from_pretrained(tmp_path).model
    assert_close(again(spectrogram), model(spectrogram), rtol=0, atol=0)
    fixed = mast.create_model("timm/cait_xxs24_224", options={"depth": 1}, **SIZE)
    with pytest.raises(ValueError, match="takes 64 mel bins x 96 frames, not 64 x 128: set its options mels and"):
        fixed(torch.zeros(1, 1, 64, 128))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = transformers.ASTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_mel_bins=64, max_length=96
    )
    model = transformers.ASTModel(config)
    torch.nn.init.normal_(model.embeddings.position_embeddings)
    path = tmp_path_factory.mktemp("ast")
    model.save_pretrained(path)
    return path


@torch.no_grad()
def test_transformers_is_computed_as_transformers_does(folder: Path, spectrogram: Tensor, tmp_path: Path) -> None:
    model = mast.create_model(f"hf/{folder}").eval()
    own = transformers.ASTModel.from_pretrained(folder).eval()
    expected = own(spectrogram[:, 0].transpose(1, 2))
    assert_close(model.forward_features(spectrogram), expected.last_hidden_state, rtol=0, atol=1e-5)
    assert_close(model.features(spectrogram), expected.pooler_output, rtol=0, atol=1e-5)
    assert model.forward_grid(spectrogram).shape == (2, 5, 9, 16) and model.stride == (10, 10)
    assert model.forward_grid(torch.zeros(1, 1, 64, 200)).shape == (1, 5, 19, 16)
    with pytest.raises(ValueError, match="takes 64 mel bins and at least 16 frames, got 128 and 200"):
        model(torch.zeros(1, 1, 128, 200))
    names = [name for name, _ in model.named_parameters()]
    first, last = names.index("body.embeddings.cls_token"), names.index("body.layernorm.weight")
    assert [model.layer_of(names[at]) for at in (first, last - 1, last)] == [0, 2, 3]
    # Saved, it needs the folder no more.
    model.save_pretrained(tmp_path)
    moved = folder.rename(folder.with_name("moved"))
    try:
        again = mast.from_pretrained(tmp_path).model
        assert_close(again.forward_features(spectrogram), expected.last_hidden_state, rtol=0, atol=1e-5)
    finally:
        moved.rename(folder)


@torch.no_grad()
@pytest.mark.parametrize("frames", [60, 77, 150])
def test_positions_of_transformers_are_fitted_as_in_the_original(folder: Path, frames: int, tmp_path: Path) -> None:
    """Shorter sounds take the middle of them, longer ones stretch them, by ``ast_models.py`` of the authors."""
    own, x = transformers.ASTModel.from_pretrained(folder).eval(), torch.randn(2, 1, 64, frames)
    positions, length = own.embeddings.position_embeddings, (frames - 16) // 10 + 1
    image = positions[:, 2:].reshape(1, 5, 9, 16).permute(0, 3, 1, 2)
    if length < 9:
        image = image[..., 9 // 2 - length // 2 :][..., :length]
    else:
        image = torch.nn.functional.interpolate(image, size=(5, length), mode="bilinear")
    fitted = torch.cat((positions[:, :2], image.flatten(2).transpose(1, 2)), dim=1)
    own.embeddings.position_embeddings = torch.nn.Parameter(fitted)
    model = mast.create_model(f"hf/{folder}").eval()
    expected = own(x[:, 0].transpose(1, 2)).last_hidden_state
    assert_close(model.forward_features(x), expected, rtol=0, atol=1e-5)
    model.save_pretrained(tmp_path)
    assert_close(mast.from_pretrained(tmp_path).model.forward_features(x), expected, rtol=0, atol=1e-5)
    # What was trained when all were interpolated, and saved without saying so, still is.
    before = mast.create_model("hf/moved", settings=model.config["settings"]).eval()
    before.load_state_dict(model.state_dict())
    assert torch.allclose(before.forward_features(x), expected, atol=1e-5) == (length >= 9)


def test_a_pair_of_it_is_rebuilt_without_the_files(folder: Path, spectrogram: Tensor) -> None:
    frames = torch.rand(2, 3, 8, 48, 48)
    for name, options in ((f"hf/{folder}", {}), ("timm/resnet18", SIZE)):
        pair = AudioVisualPair.build(audio=name, audio_options=options, video="tiny").eval()
        assert pair.audio.config["pool"] == "patch"
        settings = pair.settings | ({"audio": "hf/nowhere"} if name.startswith("hf") else {})
        again = AudioVisualPair.build(**settings).eval()
        again.load_state_dict(pair.state_dict())
        for one, other in zip(pair(spectrogram, frames), again(spectrogram, frames), strict=True):
            assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("timm/resnet81", {}, "has no 'resnet81'; did you mean resnet18"),
        ("timm/hiera_tiny_224", {"options": {"stages": (1, 1, 1, 1)}}, "whose grid is not known here"),
        ("timm/mobilenetv3_small_050", {"pool": "own"}, "wider than its tokens; give pool patch"),
        ("timm/resnet18", {"pool": "mean"}, "must be own or patch"),
        ("hf/nowhere", {}, "there is no config.json in it"),
        ("hf/nowhere", {"short_positions": "cut"}, "must be crop or interpolate"),
    ],
)
def test_what_cannot_be_is_named(name: str, options: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        mast.create_model(name, **options)(torch.zeros(1, 1, 128, 1024))


def test_a_model_of_waveforms_is_refused(tmp_path: Path) -> None:
    transformers.Wav2Vec2Config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a model of type wav2vec2 does not take log-mel spectrograms"):
        mast.create_model(f"hf/{tmp_path}")


def test_without_the_libraries_the_command_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['timm'] = None; import mast; from mast.__main__ import main\n"
        "assert 'transformers' not in sys.modules\nmain(['timm/resnet18'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and "pip install 'avssl[backbones]'" in done.stderr.splitlines()[-1]
