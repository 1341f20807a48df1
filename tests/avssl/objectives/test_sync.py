"""Synchronization within a video against NumPy."""

import logging

import numpy as np
import pytest
import torch
from objective_steps import FixedStep, exact_batch, exact_task

from avssl.objectives.fine_grained import Sync


def numpy_sync(audio, video, index, start, temperature: float, max_overlap: float) -> tuple[float, float]:
    """The loss, and the number of clips that count."""
    audio = audio / np.linalg.norm(audio, axis=1, keepdims=True)
    video = video / np.linalg.norm(video, axis=1, keepdims=True)
    total, count = 0.0, 0
    for i in range(len(audio)):
        negatives = []
        for j in range(len(audio)):
            shared = max(0.0, min(start[i], start[j]) + 1.0 - max(start[i], start[j]))
            if index[i] == index[j] and shared <= max_overlap + 1e-6:
                negatives.append(j)
        if not negatives:
            continue
        count += 1
        own = np.exp(audio[i] @ video[i] / temperature)
        for one, others in ((audio[i], video), (video[i], audio)):
            total -= np.log(own / (own + sum(np.exp(one @ others[j] / temperature) for j in negatives))) / 2
    return total / max(count, 1), count


INDEX = [0, 0, 0, 1, 1, 2, 3, 3]
START = [0.0, 1.0, 0.4, 5.0, 5.3, 0.0, 2.0, 2.0]


def sync_step(audio, video, index=INDEX, start=START) -> FixedStep:
    return FixedStep(audio, video, index=torch.tensor(index), start=torch.tensor(start, dtype=torch.float64))


@pytest.mark.parametrize(("max_overlap", "counting"), [(0.0, 2), (0.65, 3), (0.7, 5)])
def test_value_matches_numpy(max_overlap: float, counting: int) -> None:
    torch.manual_seed(0)
    audio, video = torch.randn(8, 5, dtype=torch.float64), torch.randn(8, 5, dtype=torch.float64)
    loss, report = Sync(temperature=0.3, max_overlap=max_overlap)(sync_step(audio, video))
    wanted, count = numpy_sync(audio.numpy(), video.numpy(), INDEX, START, 0.3, max_overlap)
    assert count == counting  # the example has every kind of clip
    assert loss.item() == pytest.approx(wanted, rel=1e-9)
    assert report["clips"].item() == pytest.approx(count / 8)


def test_gradient_by_finite_differences() -> None:
    torch.manual_seed(0)
    audio = torch.randn(8, 3, dtype=torch.float64, requires_grad=True)
    video = torch.randn(8, 3, dtype=torch.float64, requires_grad=True)
    objective = Sync(temperature=0.3, max_overlap=0.65)
    assert torch.autograd.gradcheck(lambda a, v: objective(sync_step(a, v))[0], (audio, video))
    objective(sync_step(audio, video))[0].backward()
    assert audio.grad is not None
    assert torch.equal(audio.grad[3:], torch.zeros(5, 3, dtype=torch.float64))  # clips that do not count
    assert bool((audio.grad[:3] != 0).any(dim=1).all())


def test_spans_that_touch_do_not_overlap() -> None:
    rows = torch.randn(2, 3)
    _, report = Sync()(sync_step(rows, rows, index=[4, 4], start=[0.1 + 0.2, 1.3]))  # 1.3 - 0.3 is below 1
    assert report["clips"].item() == 1


def test_report_of_clips_in_time_and_out_of_time() -> None:
    eye = torch.eye(3)
    step = dict(index=[0, 0, 0], start=[0.0, 1.0, 2.0])
    loss, report = Sync()(sync_step(eye, eye, **step))
    assert report["accuracy"].item() == 1 and report["negatives"].item() == 2
    worse, report = Sync()(sync_step(eye, eye.roll(1, 0), **step))
    assert report["accuracy"].item() == 0
    assert worse > loss


def test_without_negatives_the_loss_is_zero_with_a_graph_and_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    audio, video = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    objective = Sync()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            loss, report = objective(sync_step(audio, video, index=[0, 1, 1], start=[0.0, 3.0, 3.5]))
    assert loss.item() == 0 and report["clips"].item() == 0
    loss.backward()
    assert audio.grad is not None and not audio.grad.any()
    assert [("data.train_clips" in record.message) for record in caplog.records] == [True]


def test_two_clips_of_every_row_all_count_in_a_real_step() -> None:
    losses, report = exact_task([("sync", Sync(), 1.0)])(exact_batch(8))
    assert losses["sync"].item() > 0
    assert report["sync/clips"].item() == 1 and report["sync/negatives"].item() == 1


def test_logits_are_fp32_under_autocast() -> None:
    torch.manual_seed(0)
    audio, video = torch.randn(8, 16), torch.randn(8, 16)
    exact, _ = Sync()(sync_step(audio, video))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed, _ = Sync()(sync_step(audio, video))
    assert mixed.item() == exact.item() != 0


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"max_overlap": 1.0}, {"max_overlap": -0.1}])
def test_options_out_of_range_are_named(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"sync: {next(iter(options))} must"):
        Sync(**options)
