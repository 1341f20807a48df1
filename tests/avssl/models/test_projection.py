"""Projection heads against lightly's, and pairs with one for each objective."""

from pathlib import Path

import pytest
import torch
from lightly.models.modules.heads import BarlowTwinsProjectionHead, SimCLRProjectionHead

import mast
from avssl.models import AudioVisualPair
from avssl.models.projection import Projection
from avssl.objectives.decorrelation import Barlow, VICReg

SMALL = {"audio": "mast_pico", "audio_options": {"embed_dim": 16, "depths": [1, 1, 1, 1]}, "video": "tiny"}
OTHERS = {"num_frames": 2, "crop_size": 32, "embedding_dim": 8}


def kinds(head: torch.nn.Module) -> list[str]:
    return [str(layer) for layer in head.layers]


def test_the_default_is_simclrs_head() -> None:
    mine, theirs = Projection(dim=8).build(16), SimCLRProjectionHead(16, 512, 8)
    mine.load_state_dict(theirs.state_dict())
    rows = torch.randn(6, 16)
    torch.testing.assert_close(mine(rows), theirs(rows))


@pytest.mark.parametrize("objective", [VICReg, Barlow])
def test_heads_of_statistics_are_those_of_the_papers(objective: type) -> None:
    """Three wide layers without a final norm; lightly's last layer has a bias, which the authors' code has not."""
    wanted = objective.projection
    mine = kinds(wanted.build(16))
    theirs = kinds(BarlowTwinsProjectionHead(16, wanted.width, wanted.dim))
    assert mine[:-1] == theirs[:-1] and mine[-1] == theirs[-1].replace("bias=True", "bias=False")


def test_tokens_are_projected_as_rows() -> None:
    head = Projection(layers=3, width=10, dim=4).build(6).eval()
    tokens = torch.randn(2, 3, 5, 6)
    torch.testing.assert_close(head(tokens), head(tokens.reshape(30, 6)).view(2, 3, 5, 4))


@pytest.mark.parametrize(
    ("settings", "told"),
    [({"layers": 0}, "layers .* got 0"), ({"width": "wide"}, "width .* 'wide'"), ({"norm": 1}, "norm .* got 1")],
)
def test_settings_that_make_no_head_are_refused(settings: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Projection(**settings)


def test_a_pair_has_a_projection_for_each_objective_and_embeds_by_one_of_them() -> None:
    projections = {"vicreg": {"layers": 3, "dim": 20, "norm": False, "time_bins": 2}, "infonce": {}}
    pair = AudioVisualPair.build(**SMALL, **OTHERS, projections=projections, retrieval="infonce").eval()
    wave, frames = torch.randn(2, 8000), torch.randint(256, (2, 3, 2, 32, 32), dtype=torch.uint8)
    by_time = pair.encode_audio(pair.frontend(wave))
    torch.testing.assert_close(pair.embed_audio(wave), pair.head("infonce", "audio")(by_time.mean(dim=2)))
    half = by_time.shape[2] // 2
    assert by_time.shape[2] % 2 == 0
    halves = torch.stack([by_time[..., :half].mean(dim=2), by_time[..., half:].mean(dim=2)], dim=2).flatten(1)
    torch.testing.assert_close(pair.project_audio(by_time, "vicreg"), pair.head("vicreg", "audio")(halves))
    assert pair.embed_video(frames).shape == (2, 8)
    again = AudioVisualPair.build(**pair.settings).eval()
    again.load_state_dict(pair.state_dict())
    torch.testing.assert_close(again.embed_video(frames), pair.embed_video(frames), rtol=0, atol=0)
    with pytest.raises(ValueError, match="retrieval: no projection 'moco'; there are vicreg, infonce"):
        AudioVisualPair.build(**SMALL, **OTHERS, projections=projections, retrieval="moco")


@pytest.mark.parametrize("name", ["mast_pico", "ast_base"])
def test_features_of_the_audio_encoder_are_those_that_objectives_train(name: str, tmp_path: Path) -> None:
    small = {"embed_dim": 16, "depth": 1, "heads": 2} if name == "ast_base" else SMALL["audio_options"]
    pair = AudioVisualPair.build(audio=name, audio_options=small, video="tiny", **OTHERS).eval()
    spectrogram = pair.frontend(torch.randn(2, 16000))
    trained = pair.encode_audio(spectrogram).mean(dim=2)
    pair.audio.save_pretrained(tmp_path, frontend=pair.frontend)
    for encoder in (pair.audio, mast.from_pretrained(tmp_path).model.eval()):
        torch.testing.assert_close(encoder.features(spectrogram), trained)


def former_state(pair: AudioVisualPair, name: str) -> dict[str, torch.Tensor]:
    """The weights as they were named when all objectives had one projection."""
    return {
        key.replace(f"projections.{name}.audio.", "audio_projection.").replace(
            f"projections.{name}.video.", "video_projection."
        ): value
        for key, value in pair.state_dict().items()
    }


def test_checkpoints_of_one_projection_for_all_are_loaded() -> None:
    pair = AudioVisualPair.build(**SMALL, **OTHERS)
    state = former_state(pair, "joint")
    assert "audio_projection.layers.0.weight" in state and not any(key.startswith("projections") for key in state)
    for settings in ({}, {"projections": {"infonce": {}}}):
        other = AudioVisualPair.build(**SMALL, **OTHERS, **settings)
        other.load_state_dict(dict(state))
        for modality in ("audio", "video"):
            mine, theirs = pair.head("joint", modality), other.head(other.retrieval, modality)
            assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in mine.state_dict().items())
    several = AudioVisualPair.build(**SMALL, **OTHERS, projections={"infonce": {}, "vicreg": {}})
    with pytest.raises(RuntimeError, match=r"shared one projection.*give vicreg the option projection: infonce"):
        several.load_state_dict(dict(state))
