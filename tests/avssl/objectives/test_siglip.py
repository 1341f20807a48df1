"""The sigmoid loss against NumPy and a dense formula, and what it keeps in memory."""

import numpy as np
import pytest
import torch
from memory_watch import Largest, saved_elements
from objective_steps import FixedStep

from avssl.objectives.contrastive import SigLIP, sigmoid_loss


def numpy_siglip(audio: np.ndarray, video: np.ndarray, scale: float, bias: float) -> float:
    audio = audio / np.linalg.norm(audio, axis=1, keepdims=True)
    video = video / np.linalg.norm(video, axis=1, keepdims=True)
    total = 0.0
    for i in range(len(audio)):
        for j in range(len(video)):
            sign = 1 if i == j else -1
            total += np.log1p(np.exp(-sign * (scale * audio[i] @ video[j] + bias)))
    return total / len(audio)


def dense(audio: torch.Tensor, video: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, first: int = 0):
    target = torch.zeros(len(audio), len(video), dtype=audio.dtype)
    target[torch.arange(len(audio)), torch.arange(len(audio)) + first] = 1
    logits = scale * audio @ video.T + bias
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="sum") / len(audio)


def rows(*shape: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, dtype=torch.float64), dim=1).requires_grad_()


@pytest.mark.parametrize("chunk", [1, 2, 5, 7, 100])
def test_value_matches_numpy(chunk: int) -> None:
    torch.manual_seed(0)
    audio, video = torch.randn(7, 5, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64)
    loss, report = SigLIP(temperature=3.0, bias=-2.0, chunk=chunk).double()(FixedStep(audio, video))
    assert loss.item() == pytest.approx(numpy_siglip(audio.numpy(), video.numpy(), 3.0, -2.0), rel=1e-6)
    assert report["temperature"].item() == pytest.approx(3.0, rel=1e-6)
    assert report["bias"].item() == -2.0
    cosine = torch.nn.functional.cosine_similarity(audio, video).mean().item()
    assert report["similarity"].item() == pytest.approx(cosine, rel=1e-9)


@pytest.mark.parametrize("chunk", [1, 3, 4, 12, 1024])
@pytest.mark.parametrize("first", [0, 4, 8])
def test_gradients_match_the_dense_formula(chunk: int, first: int) -> None:
    # Four clips of the process that holds rows 4 to 7 of 12, and of those before and after it.
    torch.manual_seed(0)
    inputs = [rows(4, 6), rows(12, 6)]
    inputs += [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (5.0, -3.0)]
    mine = sigmoid_loss(*inputs, first=first, chunk=chunk)
    reference = dense(*inputs, first=first)
    torch.testing.assert_close(mine, reference, rtol=1e-12, atol=0)
    for one, other in zip(torch.autograd.grad(mine, inputs), torch.autograd.grad(reference, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_the_logits_are_never_held_whole() -> None:
    torch.manual_seed(0)
    clips, width, chunk = 64, 4, 8
    audio, video = rows(clips, width), rows(clips, width)
    scale, bias = torch.tensor(5.0, requires_grad=True), torch.tensor(-3.0, requires_grad=True)
    assert saved_elements(lambda: dense(audio, video, scale, bias)) >= clips * clips
    chunked = saved_elements(lambda: sigmoid_loss(audio, video, scale, bias, chunk=chunk))
    # The embeddings, and a few scalars and row numbers.
    assert 2 * clips * width <= chunked < 2 * clips * width + 2 * clips
    with Largest() as whole:
        dense(audio, video, scale, bias).backward()
    assert whole.elements == clips * clips
    with Largest() as parts:
        sigmoid_loss(audio, video, scale, bias, chunk=chunk).backward()
    assert parts.elements == clips * chunk


def test_temperature_and_bias_are_learned_from_where_the_paper_starts() -> None:
    torch.manual_seed(0)
    objective = SigLIP()
    assert objective.log_scale.exp().item() == pytest.approx(10.0)
    assert objective.bias.item() == -10.0
    perfect = torch.eye(8)
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.1)
    first = objective(FixedStep(perfect, perfect))[0].item()
    for _ in range(30):
        optimizer.zero_grad()
        loss, report = objective(FixedStep(perfect, perfect))
        loss.backward()
        optimizer.step()
    assert loss.item() < first / 2
    assert report["temperature"].item() > 10
    assert not any(value.requires_grad for value in report.values())


def test_logits_are_fp32_under_autocast_in_the_recomputation_too() -> None:
    torch.manual_seed(0)
    data = torch.randn(8, 16), torch.randn(8, 16)
    results = []
    for enabled in (False, True):
        audio, video = (tensor.clone().requires_grad_() for tensor in data)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss, _ = SigLIP(chunk=3)(FixedStep(audio, video))
        loss.backward()  # outside, as everywhere: in it, autocast would round the gradients' own products
        assert loss.dtype == torch.float32
        results.append((loss, audio.grad, video.grad))
    for exact, mixed in zip(*results, strict=True):
        torch.testing.assert_close(mixed, exact, rtol=0, atol=0)


def test_errors_name_the_option() -> None:
    with pytest.raises(ValueError, match="siglip: chunk must be at least 1, got 0"):
        SigLIP(chunk=0)
    with pytest.raises(ValueError, match="siglip: temperature must be above 0"):
        SigLIP(temperature=0.0)
