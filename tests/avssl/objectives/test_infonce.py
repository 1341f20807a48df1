"""InfoNCE against NumPy."""

import math

import numpy as np
import pytest
import torch
from memory_watch import Largest, saved_elements
from objective_steps import SHAPES, FixedStep

from avssl.objectives import create_objective, list_objectives
from avssl.objectives.contrastive import InfoNCE, contrast
from avssl.objectives.functional import effective_negatives


def numpy_info_nce(audio: np.ndarray, video: np.ndarray, temperature: float) -> tuple[float, float]:
    audio = audio / np.linalg.norm(audio, axis=1, keepdims=True)
    video = video / np.linalg.norm(video, axis=1, keepdims=True)
    logits = audio @ video.T / temperature
    rows = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    columns = logits - np.log(np.exp(logits).sum(axis=0, keepdims=True))
    return -np.diag(rows).mean(), -np.diag(columns).mean()


@pytest.mark.parametrize("audio_weight", [0.0, 0.3, 0.5, 1.0])
def test_value_matches_numpy(audio_weight: float) -> None:
    torch.manual_seed(0)
    audio, video = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    loss, report = InfoNCE(temperature=0.2, audio_weight=audio_weight).double()(FixedStep(audio, video))
    a2v, v2a = numpy_info_nce(audio.numpy(), video.numpy(), 0.2)
    assert loss.item() == pytest.approx(audio_weight * a2v + (1 - audio_weight) * v2a, rel=1e-6)
    assert report["temperature"].item() == pytest.approx(0.2, rel=1e-6)
    assert report["negatives"].item() == 5


def test_gradient_by_finite_differences() -> None:
    torch.manual_seed(0)
    objective = InfoNCE(temperature=0.3).double()
    audio = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    video = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, v: objective(FixedStep(a, v))[0], (audio, video))


@pytest.mark.parametrize("chunk", [1, 4, 5, 12])
def test_chunks_change_nothing(chunk: int) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(12, 5, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    whole, chunked = (InfoNCE(temperature=0.2, chunk=size).double() for size in (12, chunk))
    (expected, report), (found, same) = whole(FixedStep(*inputs)), chunked(FixedStep(*inputs))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(same, report, rtol=1e-12, atol=0)
    wanted = torch.autograd.grad(expected, [*inputs, whole.log_scale])
    for one, other in zip(torch.autograd.grad(found, [*inputs, chunked.log_scale]), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_the_logits_are_never_held_whole() -> None:
    torch.manual_seed(0)
    clips, width, chunk = 64, 4, 8
    rows, columns = torch.randn(clips, width, requires_grad=True), torch.randn(clips, width, requires_grad=True)
    scale = torch.tensor(5.0, requires_grad=True)
    assert saved_elements(lambda: contrast(rows, columns, scale)[0]) >= clips * clips
    # The embeddings, and a few scalars and row numbers.
    assert saved_elements(lambda: contrast(rows, columns, scale, chunk=chunk)[0]) < 2 * clips * width + 2 * clips
    with Largest() as parts:
        contrast(rows, columns, scale, chunk=chunk)[0].backward()
    assert parts.elements == clips * chunk


def test_temperature_is_learned_and_clamped() -> None:
    objective = InfoNCE(temperature=0.07, min_temperature=0.05)
    perfect = torch.eye(4)
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        loss, report = objective(FixedStep(perfect, perfect))
        loss.backward()
        optimizer.step()
    # Perfect pairs push the temperature down, to the clamp and no further.
    _, report = objective(FixedStep(perfect, perfect))
    assert report["temperature"].item() == pytest.approx(0.05, rel=1e-5)


def test_logits_are_fp32_under_autocast() -> None:
    torch.manual_seed(0)
    audio, video = torch.randn(8, 16), torch.randn(8, 16)
    exact, _ = InfoNCE()(FixedStep(audio, video))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed, _ = InfoNCE()(FixedStep(audio, video))
    assert mixed.dtype == torch.float32
    assert mixed.item() == exact.item()


def test_collapsed_embeddings_give_the_loss_of_chance() -> None:
    constant = torch.ones(7, 4)
    loss, _ = InfoNCE()(FixedStep(constant, constant))
    assert loss.item() == pytest.approx(math.log(7), rel=1e-5)


def test_report_says_how_many_negatives_count() -> None:
    torch.manual_seed(0)
    audio, video = torch.randn(6, 5), torch.randn(6, 5)
    perplexities = []
    for one, other in ((audio, video), (video, audio)):
        logits = torch.nn.functional.cosine_similarity(one[:, None], other[None], dim=2).double().numpy() / 0.2
        for i, row in enumerate(logits):
            weights = np.exp(np.delete(row, i))
            weights /= weights.sum()
            perplexities.append(math.exp(-(weights * np.log(weights)).sum()))
    _, report = InfoNCE(temperature=0.2)(FixedStep(audio, video))
    assert report["effective_negatives"].item() == pytest.approx(np.mean(perplexities), rel=1e-5)
    _, alike = InfoNCE()(FixedStep(torch.ones(7, 4), torch.ones(7, 4)))
    assert alike["effective_negatives"].item() == pytest.approx(alike["negatives"].item(), rel=1e-5)


def test_errors_name_the_fix() -> None:
    with pytest.raises(ValueError, match="did you mean 'infonce'"):
        create_objective("infonec", SHAPES)
    with pytest.raises(ValueError, match=r"infonce: .*temprature"):
        create_objective("infonce", SHAPES, temprature=1.0)
    with pytest.raises(ValueError, match="min_temperature"):
        InfoNCE(temperature=0.001)
    assert list_objectives()["infonce"].startswith("Cross-modal InfoNCE")


def rows(count: int, width: int) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(0))


def test_effective_negatives_match_numpy_and_known_softmaxes() -> None:
    logits = rows(6, 6) * 3
    expected = []
    for i, row in enumerate(logits.double().numpy()):
        weights = np.exp(np.delete(row, i))
        weights /= weights.sum()
        expected.append(math.exp(-(weights * np.log(weights)).sum()))
    assert effective_negatives(logits).item() == pytest.approx(np.mean(expected), rel=1e-5)
    assert effective_negatives(torch.zeros(6, 6)).item() == pytest.approx(5, rel=1e-6)
    # The positives do not count, the hardest negative alone does.
    hard = torch.zeros(4, 4).fill_diagonal_(1e4)
    hard[range(4), [1, 2, 3, 0]] = 1e3
    assert effective_negatives(hard).item() == pytest.approx(1)
    assert effective_negatives(torch.zeros(1, 1)).item() == 0
    with pytest.raises(ValueError, match=r"\(N, N\)"):
        effective_negatives(torch.zeros(2, 3))


def test_effective_negatives_are_the_shares_of_the_gradient() -> None:
    logits = rows(5, 5).double().requires_grad_()
    torch.nn.functional.cross_entropy(logits, torch.arange(5), reduction="sum").backward()
    pushed = logits.grad.masked_select(~torch.eye(5, dtype=torch.bool)).view(5, 4)
    share = pushed / pushed.sum(dim=1, keepdim=True)
    expected = (-(share * share.log()).sum(dim=1)).exp().mean()
    assert effective_negatives(logits).item() == pytest.approx(expected.item(), rel=1e-9)
