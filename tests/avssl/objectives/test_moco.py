"""Momentum contrast against NumPy with a deque for a queue."""

from collections import deque

import numpy as np
import pytest
import torch
from objective_steps import SHAPES, FixedStep

from avssl.objectives import create_objective
from avssl.objectives.banks import KeyQueue
from avssl.objectives.contrastive import MoCo


def rows_of_length_one(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def numpy_contrast(queries: np.ndarray, keys: np.ndarray, past: list, temperature: float) -> tuple[float, np.ndarray]:
    """Loss of He et al. 2020, eq. 1, and its gradient with respect to ``queries`` before normalization."""
    unit, keys = rows_of_length_one(queries), rows_of_length_one(keys)
    everything = np.concatenate([keys, np.array(past).reshape(-1, keys.shape[1])])
    exponentials = np.exp(unit @ everything.T / temperature)
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    loss = -np.log(np.diag(probabilities[:, : len(keys)])).mean()
    to_unit = (probabilities @ everything - keys) / temperature / len(keys)
    radial = (to_unit * unit).sum(axis=1, keepdims=True) * unit
    return loss, (to_unit - radial) / np.linalg.norm(queries, axis=1, keepdims=True)


@pytest.mark.parametrize("queue", [1, 5, 7, 12])
def test_values_and_gradients_of_four_steps_match_numpy(queue: int) -> None:
    generator = np.random.default_rng(0)
    objective = MoCo(dim=6, queue=queue, temperature=0.2).double()
    past_audio: deque = deque(maxlen=queue)
    past_video: deque = deque(maxlen=queue)
    for _ in range(4):
        audio, video, teacher_audio, teacher_video = generator.normal(size=(4, 3, 6))
        queries = [torch.tensor(rows, requires_grad=True) for rows in (audio, video)]
        keys = [torch.tensor(rows, requires_grad=True) for rows in (teacher_audio, teacher_video)]
        loss, report = objective(FixedStep(*queries, *keys))
        loss.backward()
        to_video, audio_gradient = numpy_contrast(audio, teacher_video, list(past_video), 0.2)
        to_audio, video_gradient = numpy_contrast(video, teacher_audio, list(past_audio), 0.2)
        assert loss.item() == pytest.approx((to_video + to_audio) / 2, rel=1e-9)
        np.testing.assert_allclose(queries[0].grad, audio_gradient / 2, rtol=1e-8, atol=1e-12)
        np.testing.assert_allclose(queries[1].grad, video_gradient / 2, rtol=1e-8, atol=1e-12)
        assert keys[0].grad is None and keys[1].grad is None
        past_audio.extend(rows_of_length_one(teacher_audio))
        past_video.extend(rows_of_length_one(teacher_video))
        assert report["queue_filled"].item() == len(past_audio)


@pytest.mark.parametrize("size", [1, 4, 5, 6])
def test_a_queue_keeps_the_last_keys_whatever_the_batch(size: int) -> None:
    queue, expected = KeyQueue(size, 1), deque(maxlen=size)
    for count in (3, 1, 4, 9, 2, 5):
        keys = torch.rand(count, 1)
        queue.enqueue(keys)
        expected.extend(keys.flatten().tolist())
        kept = queue.keys[~queue.empty_slots].flatten()
        assert sorted(kept.tolist()) == sorted(expected)
        if len(expected) == size:  # from the pointer on, oldest first
            assert kept.roll(-int(queue.pointer)).tolist() == list(expected)


def test_accuracy_counts_both_directions() -> None:
    keys = torch.eye(4)
    # Audio finds all four; of the videos, two are swapped.
    step = FixedStep(keys, keys[[0, 1, 3, 2]], keys, keys)
    _, report = MoCo(dim=4)(step)
    assert report["accuracy"].item() == pytest.approx(0.75)


def test_only_training_fills_the_queues() -> None:
    rows = torch.randn(3, 6)
    objective = MoCo(dim=6, queue=4).eval()
    objective(FixedStep(rows, rows, rows, rows))
    assert objective.audio_queue.filled == 0 and not objective.audio_queue.keys.any()
    objective.train()(FixedStep(rows, rows, rows, rows))
    assert objective.audio_queue.filled == 3 and objective.video_queue.filled == 3


def test_logits_are_fp32_under_autocast() -> None:
    torch.manual_seed(0)
    rows = [torch.randn(8, 6) for _ in range(4)]
    exact, mixed = MoCo(dim=6, queue=10), MoCo(dim=6, queue=10)
    for _ in range(2):
        expected, _ = exact(FixedStep(*rows))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, _ = mixed(FixedStep(*rows))
        assert loss.dtype == torch.float32 and loss.item() == expected.item()


def test_built_from_shapes_and_errors() -> None:
    objective = create_objective("moco", SHAPES, queue=9)
    assert objective.needs_teacher and objective.video_queue.keys.shape == (9, SHAPES.joint)
    with pytest.raises(ValueError, match="moco: queue must be at least 1, got 0"):
        create_objective("moco", SHAPES, queue=0)
    with pytest.raises(ValueError, match="moco: temperature must be above 0"):
        create_objective("moco", SHAPES, temperature=0.0)
