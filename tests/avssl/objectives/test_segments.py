"""Masked audio segments against loops over clips and parts."""

import pytest
import torch
from objective_steps import Grid, GridStep

from avssl.objectives import Shapes
from avssl.objectives.fine_grained import Segments

SMALL = Shapes(joint=3, audio=3, video=3, clips=4, audio_stride=(2, 4))


def test_value_and_gradients_match_loops_and_hidden_parts_are_hidden() -> None:
    """12 frames are 3 steps of the encoder and 3 parts; a fourth, cut-off step has no token and goes with the last."""
    torch.manual_seed(0)
    whole = torch.randn(3, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    guessed = torch.randn(3, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    spectrogram = torch.randn(3, 1, 5, 14, dtype=torch.float64)
    encoder = Grid(whole, guessed)
    step = GridStep(encoder, spectrogram=spectrogram, index=torch.tensor([0, 1, 2]))
    objective = Segments(SMALL, count=3, share=0.67, temperature=0.4).double()
    objective.pattern.data.fill_(99.0)
    loss, report = objective(step)
    shown, masked = encoder.shown
    torch.testing.assert_close(shown, spectrogram)
    hidden = []
    for clip in range(3):
        parts = [masked[clip, 0, :, 4 * k : 4 * k + 4 if k < 2 else 14] for k in range(3)]
        plain = [spectrogram[clip, 0, :, 4 * k : 4 * k + 4 if k < 2 else 14] for k in range(3)]
        hidden.append([k for k in range(3) if bool((parts[k] == 99.0).all())])
        assert len(hidden[-1]) == 2
        assert all(torch.equal(parts[k], plain[k]) for k in range(3) if k not in hidden[-1])
    losses = []
    heard, told = whole.mean(dim=1), guessed.mean(dim=1)
    for clip, parts in enumerate(hidden):
        for part in parts:
            cosines = torch.stack([torch.cosine_similarity(told[clip, part], t, dim=0) for t in heard.flatten(0, 1)])
            losses.append(torch.logsumexp(cosines / 0.4, 0) - cosines[3 * clip + part] / 0.4)
    wanted = torch.stack(losses).mean()
    torch.testing.assert_close(loss, wanted, rtol=1e-9, atol=1e-12)
    gradients = [torch.autograd.grad(value, [whole, guessed], retain_graph=True) for value in (loss, wanted)]
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-12)
    assert report["share"].item() == pytest.approx(2 / 3)


def test_what_is_known_again_is_found() -> None:
    tokens = torch.eye(8).view(2, 1, 4, 8)
    encoder = Grid(tokens, tokens.clone())
    step = GridStep(encoder, spectrogram=torch.randn(2, 1, 4, 16))
    loss, report = Segments(SMALL, count=4, temperature=0.05)(step)
    assert report["accuracy"] == 1 and loss < 1e-3


def test_bad_options_are_refused() -> None:
    for options in ({"count": 0}, {"share": 0.0}, {"share": 0.1}, {"temperature": 0.0}):
        with pytest.raises(ValueError, match=f"segments: {next(iter(options))}"):
            Segments(SMALL, **options)
    encoder = Grid(torch.randn(2, 1, 2, 3), torch.randn(2, 1, 2, 3))
    with pytest.raises(ValueError, match="4 segments of a clip of which an encoder has 2 steps in time"):
        Segments(SMALL)(GridStep(encoder, spectrogram=torch.randn(2, 1, 4, 8)))
