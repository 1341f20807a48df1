"""Masked modelling against loops over units and pixels."""

import pytest
import torch
from objective_steps import SHAPES, FixedStep, exact_batch, exact_task
from torch import Tensor, nn

import avssl.training.pretraining
from avssl.models.fusion import position_code
from avssl.objectives import create_objective
from avssl.objectives.base import Shapes
from avssl.objectives.masked import Masked

SMALL = Shapes(joint=2, audio=3, video=4, clips=2, audio_stride=(2, 4))
HIDDEN = 99.0  # a value of masked input that tells it from data


class Encoder(nn.Module):
    """Gives what it is told to, and keeps what it was shown."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward_grid(self, x: Tensor) -> Tensor:
        self.shown = x.detach()
        return self.output

    forward = forward_grid


class MapStep(FixedStep):
    def __init__(self, encoder: Encoder, inputs: Tensor) -> None:
        super().__init__(inputs, inputs)
        self.encoder, self.inputs = encoder, inputs

    def map_audio(self, function, view=0):
        return function(self.encoder, self.inputs)

    map_video = map_audio


def told_apart(objective: Masked) -> Masked:
    objective = objective.double()
    for name, parameter in objective.named_parameters():
        if name.endswith(("pattern", "color")):
            parameter.data.fill_(HIDDEN)
    return objective


def unit_target(pixels: Tensor, normalize: bool) -> Tensor:
    return (pixels - pixels.mean()) / (pixels.var(correction=0) + 1e-6).sqrt() if normalize else pixels


def assert_same(mine: Tensor, wanted: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(mine, wanted, rtol=1e-9, atol=1e-12)
    gradients = [torch.autograd.grad(loss, inputs, retain_graph=True) for loss in (mine, wanted)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("share", [0.4, 1.0])
@pytest.mark.parametrize("grid", [(3, 3), (2, 4)])  # that of the units, and one that differs from it
def test_audio_matches_loops_over_pixels(normalize: bool, share: float, grid: tuple[int, int]) -> None:
    torch.manual_seed(0)
    objective = told_apart(Masked(SMALL, share=share, normalize=normalize))
    spectrogram = torch.randn(2, 1, 5, 10, dtype=torch.float64) * 2 + 1  # no multiples of the unit
    tokens = torch.randn(2, *grid, 3, dtype=torch.float64, requires_grad=True)
    encoder = Encoder(tokens)
    loss, report = objective(MapStep(encoder, spectrogram))

    masked = encoder.shown == HIDDEN
    torch.testing.assert_close(encoder.shown[~masked], spectrogram[~masked], rtol=0, atol=0)
    clips = []
    for clip in range(2):
        errors = []
        units = 0
        for row in range(3):
            for column in range(3):
                top, left = 2 * row, 4 * column
                hidden = masked[clip, 0, top : top + 2, left : left + 4]
                assert hidden.all() or not hidden.any()
                units += int(hidden.any())
                if not hidden.any() or row >= grid[0] or column >= grid[1]:
                    continue
                predicted = objective.audio.head(tokens[clip, row, column]).view(2, 4)
                target = unit_target(spectrogram[clip, 0, top : top + 2, left : left + 4], normalize)
                height, width = target.shape
                errors += [(predicted[y, x] - target[y, x]) ** 2 for y in range(height) for x in range(width)]
        assert units == round(share * 9)
        clips.append(torch.stack(errors).mean())
    assert_same(loss, torch.stack(clips).mean(), [tokens, *objective.audio.head.parameters()])
    assert report["audio_loss"].item() == loss.item()
    if grid == (3, 3):
        assert report["audio_share"].item() == pytest.approx(round(share * 9) / 9)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_video_matches_loops_over_cubes(normalize: bool, share: float) -> None:
    torch.manual_seed(0)
    objective = told_apart(Masked(SMALL, "video", share, normalize, cube=[2, 8, 4], hidden=5))
    frames = torch.rand(2, 3, 5, 17, 10, dtype=torch.float64)  # 2 x 2 x 2 cubes and edges
    features = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    encoder = Encoder(features)
    loss, report = objective(MapStep(encoder, frames))

    masked = encoder.shown == HIDDEN
    torch.testing.assert_close(encoder.shown[~masked], frames[~masked], rtol=0, atol=0)
    assert masked.float().mean().item() == pytest.approx(round(8 * share) * 64 / (5 * 17 * 10))
    video = objective.video
    code = position_code((2, 2, 2), frames)
    clips = []
    for clip in range(2):
        errors = []
        for t, y, x in [(t, y, x) for t in range(2) for y in range(2) for x in range(2)]:
            place = (slice(2 * t, 2 * t + 2), slice(8 * y, 8 * y + 8), slice(4 * x, 4 * x + 4))
            hidden = masked[(clip, slice(None), *place)]
            assert hidden.all() or not hidden.any()
            if not hidden.any():
                continue
            pixels = frames[(clip, slice(None), *place)].mean(dim=1)  # (3, 8, 4)
            small = [pixels[c, 2 * i : 2 * i + 2, j].mean() for c in range(3) for i in range(4) for j in range(4)]
            predicted = video.decode(video.feature(features[clip]) + video.place(code[t, y, x]))
            errors.append((predicted - unit_target(torch.stack(small), normalize)).square().mean())
        clips.append(torch.stack(errors).mean())
    own = [p for name, p in video.named_parameters() if name != "color"]
    assert_same(loss, torch.stack(clips).mean(), [features, *own])
    assert report["video_share"].item() == share


def test_every_cube_has_a_place_of_its_own() -> None:
    code = position_code((2, 14, 14), torch.zeros(())).flatten(0, 2)
    assert code.shape == (2 * 14 * 14, 36)
    distance = torch.cdist(code, code) + 9 * torch.eye(len(code))
    assert distance.min().item() > 0.5
    first = code.view(2, 14, 14, 3, 12)[1, 3, 5]  # along time, height, width
    for axis, (position, size) in enumerate([(1, 2), (3, 14), (5, 14)]):
        angle = torch.pi * (position + 0.5) / size * 2 ** torch.arange(6)
        torch.testing.assert_close(first[axis], torch.cat([angle.sin(), angle.cos()]), rtol=1e-4, atol=1e-4)


def test_predicting_the_mean_is_the_yardstick() -> None:
    torch.manual_seed(0)
    spectrogram = torch.randn(2, 1, 4, 8) * 3 + 5
    step = MapStep(Encoder(torch.zeros(2, 2, 2, 3)), spectrogram)
    _, report = Masked(SMALL, share=1.0)(step)
    assert report["audio_loss_of_mean"].item() == pytest.approx(1, rel=1e-4)
    _, report = Masked(SMALL, share=1.0, normalize=False)(step)
    wanted = spectrogram.var(dim=(1, 2, 3), correction=0).mean().item()
    assert report["audio_loss_of_mean"].item() == pytest.approx(wanted, rel=1e-5)


def test_silence_and_stills_have_finite_gradients() -> None:
    tokens = torch.zeros(2, 2, 2, 3, requires_grad=True)
    loss, _ = Masked(SMALL)(MapStep(Encoder(tokens), torch.zeros(2, 1, 4, 8)))
    loss.backward()
    assert loss.isfinite() and tokens.grad is not None and tokens.grad.isfinite().all()


def test_under_autocast_the_error_is_float32() -> None:
    torch.manual_seed(0)
    objective = Masked(SMALL, share=1.0)
    step = MapStep(Encoder(torch.randn(2, 2, 2, 3)), torch.randn(2, 1, 4, 8))
    exact, _ = objective(step)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed, _ = objective(step)
    assert mixed.dtype == torch.float32 and mixed.item() == pytest.approx(exact.item(), rel=0.01)


def test_masks_are_the_same_when_chunks_are_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def gradients() -> dict[str, Tensor]:
        torch.manual_seed(5)
        objective = create_objective("masked", SHAPES, modality="both", share=0.5, cube=[2, 8, 8], hidden=8)
        task = exact_task([("masked", objective, 1.0)], chunk=3)
        torch.manual_seed(7)
        losses, _ = task(exact_batch(8))
        losses["masked"].backward()
        return {name: p.grad for name, p in task.named_parameters() if p.grad is not None}

    again = gradients()
    monkeypatch.setattr(
        avssl.training.pretraining, "checkpoint", lambda function, *given, use_reentrant, context_fn: function(*given)
    )
    once = gradients()
    assert again.keys() == once.keys()
    assert {"pair.audio.patch_embed.proj.weight", "pair.video.backbone.2.weight"} < once.keys()
    assert {"objectives.0.audio.pattern", "objectives.0.video.color"} < once.keys()
    for name in once:
        torch.testing.assert_close(again[name], once[name], rtol=1e-9, atol=1e-12)


def test_both_modalities_add_up() -> None:
    task = exact_task([("masked", create_objective("masked", SHAPES, modality="both", cube=[2, 8, 8]), 1.0)])
    losses, report = task(exact_batch(4))
    added = report["masked/audio_loss"] + report["masked/video_loss"]
    torch.testing.assert_close(losses["masked"].detach(), added)


def test_a_little_training_beats_the_mean() -> None:
    torch.manual_seed(0)
    ramp = torch.linspace(0, 1, 8).repeat(4, 1) * torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    spectrogram = ramp.expand(2, 1, 4, 8)
    objective = Masked(SMALL, share=1.0)
    step = MapStep(Encoder(torch.ones(2, 2, 2, 3)), spectrogram)
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.05)
    for _ in range(60):
        loss, report = objective(step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert report["audio_loss"].item() < 0.05 * report["audio_loss_of_mean"].item()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"modality": "text"}, "modality must"),
        ({"share": 0.0}, "share must"),
        ({"share": 1.1}, "share must"),
        ({"cube": [2, 16, 16]}, "modality audio has no option cube"),
        ({"modality": "video", "cube": [0, 16, 16]}, "cube must"),
        ({"modality": "video", "cube": [2, 16, 6]}, "cube must"),
        ({"modality": "video", "cube": [16, 16]}, "cube must"),
        ({"modality": "video", "hidden": 0}, "hidden must"),
        ({"modality": "video", "cubes": [2, 16, 16]}, "cubes"),
    ],
)
def test_options_out_of_range_are_named(options: dict, named: str) -> None:
    with pytest.raises(ValueError, match=f"masked: .*{named}"):
        create_objective("masked", SHAPES, **options)


def test_what_does_not_fit_the_clip_is_said() -> None:
    step = MapStep(Encoder(torch.zeros(1, 2, 2, 3)), torch.zeros(1, 1, 4, 8))
    with pytest.raises(ValueError, match=r"share of 0.1 masks none of 4 units; raise it above 0.125"):
        Masked(SMALL, share=0.1)(step)
    step = MapStep(Encoder(torch.zeros(1, 4)), torch.zeros(1, 3, 2, 8, 8))
    with pytest.raises(ValueError, match=r"cube \[2, 16, 16\] is larger than the clip"):
        Masked(SMALL, "video")(step)
