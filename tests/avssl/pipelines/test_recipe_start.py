"""A recipe beside a checkpoint: what it says of the encoder must be true, or may be changed."""

import copy

import pytest
import torch

from avssl.config import AudioConfig
from avssl.pipelines.encoders import random_encoder, with_settings

SMALL = {"embed_dim": 16, "depths": [1, 1, 1, 1], "drop_path": 0.0}


@pytest.fixture(scope="module")
def source():
    return random_encoder(AudioConfig(options=SMALL, num_mels=48))


def test_without_settings_the_encoder_is_the_checkpoints(source) -> None:
    assert with_settings(source, AudioConfig()) is source


def test_true_settings_and_other_regularization(source) -> None:
    options = {"embed_dim": 16, "depths": [1, 1, 1, 1], "drop_path": 0.3}
    changed = with_settings(source, AudioConfig(options=options, num_mels=48))
    assert changed.encoder.config == source.encoder.config | {"drop_path": 0.3}
    x = torch.randn(2, 1, 48, 60)
    assert torch.equal(changed.encoder.eval()(x), copy.deepcopy(source.encoder).eval()(x))
    torch.manual_seed(0)
    noisy = changed.encoder.train()
    assert not torch.equal(noisy(x), noisy(x))  # the new rate acts


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (AudioConfig(model="mast_tiny", options=SMALL, num_mels=48), "audio.model: .* 'mast_pico', not 'mast_tiny'"),
        (AudioConfig(options=SMALL, num_mels=128), "audio.num_mels: .* 48, not 128"),
        (AudioConfig(options=SMALL, num_mels=48, sample_rate=8000), "audio.sample_rate: .* 16000, not 8000"),
        (AudioConfig(options=SMALL, num_mels=48, mean=1.0), "audio.mean: "),
        (AudioConfig(options={"embed_dim": 32}, num_mels=48), "audio.options.embed_dim: .* 16, not 32"),
        (AudioConfig(options={"depth": 3}, num_mels=48), "audio.options.depth: .* None, not 3"),
    ],
)
def test_a_false_one_is_named(source, config, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        with_settings(source, config)
