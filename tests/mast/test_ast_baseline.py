"""AST equals Hugging Face's, weights translated."""

import pytest
import torch

import mast
from mast.ast import from_hugging_face_state


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
