"""Cross-modal agreement against NumPy."""

import numpy as np
import pytest
import torch
from nce_reference import numpy_nce, unit_rows
from objective_steps import SHAPES, FixedStep

from avssl.objectives import create_objective
from avssl.objectives.avid import AVID
from avssl.objectives.cma import CMA, agreeing_rows

SMALL = {"dim": 5, "clips": 9, "temperature": 0.3}


def numpy_agreeing_rows(audio: np.ndarray, video: np.ndarray, count: int) -> list[list[int]]:
    found = []
    for i in range(len(audio)):
        agreement = {j: min(audio[i] @ audio[j], video[i] @ video[j]) for j in range(len(audio)) if j != i}
        found.append(sorted(agreement, key=lambda j: -agreement[j])[:count])
    return found


def trained_steps(objective: CMA, steps: int) -> None:
    for number in range(1, steps + 1):
        objective(FixedStep(torch.randn(4, 5).double(), torch.randn(4, 5).double(), index=torch.tensor([0, 2, 2, 7])))
        objective.after_step(number, 100)


@pytest.mark.parametrize("cells", [1, 40, 10_000])
def test_agreeing_rows_match_numpy_in_chunks_of_any_size(cells: int) -> None:
    generator = np.random.default_rng(0)
    audio, video = unit_rows(generator.normal(size=(17, 4))), unit_rows(generator.normal(size=(17, 4)))
    found = agreeing_rows(torch.from_numpy(audio), torch.from_numpy(video), 5, cells)
    assert found.tolist() == numpy_agreeing_rows(audio, video, 5)


def test_only_rows_that_look_and_sound_alike_agree() -> None:
    # Rows 0 and 1 share only the sound, 0 and 2 only the picture, 0 and 3 resemble each other in both.
    audio = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0.8, 0.6]])
    video = torch.tensor([[1.0, 0], [0, 1], [1, 0], [0.8, 0.6]])
    assert agreeing_rows(audio, video, 1)[0].tolist() == [3]


def test_is_avid_during_warmup() -> None:
    torch.manual_seed(0)
    objective, avid = CMA(**SMALL, positives=2, warmup=3).double(), AVID(**SMALL).double()
    for number in range(1, 4):
        step = FixedStep(torch.randn(4, 5).double(), torch.randn(4, 5).double())
        (loss, report), (expected, _) = objective(step), avid(step)
        assert loss.item() == expected.item() and "agreement_loss" not in report
        objective.after_step(number, 100)
    assert objective.found
    assert objective(step)[0].item() != avid(step)[0].item()


def test_loss_and_gradient_match_numpy() -> None:
    torch.manual_seed(0)
    objective = CMA(**SMALL, positives=3, warmup=2, agreement_weight=0.7).double()
    trained_steps(objective, 2)
    audio_bank, video_bank = objective.audio_bank.entries.numpy().copy(), objective.video_bank.entries.numpy().copy()
    similar = numpy_agreeing_rows(audio_bank, video_bank, 3)
    index = [4, 0, 4]
    own, positives = [[i] for i in index], [similar[i] for i in index]
    negatives = [sorted(set(range(9)) - {i} - set(similar[i])) for i in index]
    partition = objective.nce.log_partition.exp().item()
    generator = np.random.default_rng(0)
    audio, video = generator.normal(size=(2, 3, 5))
    expected, gradients = 0.0, []
    for queries, same, other in ((audio, audio_bank, video_bank), (video, video_bank, audio_bank)):
        across, across_gradient = numpy_nce(queries, other, own, negatives, 0.3, partition)
        within, within_gradient = numpy_nce(queries, same, positives, negatives, 0.3, partition)
        expected += (across + 0.7 * within) / 2
        gradients.append((across_gradient + 0.7 * within_gradient) / 2)
    tensors = [torch.tensor(rows, requires_grad=True) for rows in (audio, video)]
    loss, _ = objective(FixedStep(*tensors, index=torch.tensor(index)))
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    for tensor, gradient in zip(tensors, gradients, strict=True):
        np.testing.assert_allclose(tensor.grad, gradient, rtol=1e-8, atol=1e-12)


def test_positives_are_searched_for_after_the_warmup_and_every_refresh_steps() -> None:
    torch.manual_seed(0)
    objective = CMA(**SMALL, positives=2, warmup=3, refresh=2).double()
    searched = []
    for number in range(1, 9):
        objective.positives.fill_(-1)
        objective.after_step(number, 100)
        searched.append(objective.found)
    assert searched == [False, False, True, False, True, False, True, False]
    # What is stored belongs to the banks of that moment, not to those of later steps.
    trained_steps(objective, 3)
    banks = [bank.entries.numpy().copy() for bank in (objective.audio_bank, objective.video_bank)]
    rows = torch.randn(4, 5).double()
    objective(FixedStep(rows, -rows))
    assert objective.positives.tolist() == numpy_agreeing_rows(*banks, 2)


def test_negatives_are_neither_the_row_nor_its_positives() -> None:
    torch.manual_seed(0)
    objective = CMA(**SMALL, positives=3, negatives=2, warmup=1).double()
    trained_steps(objective, 1)
    excluded = objective.excluded(torch.arange(9))
    assert excluded.tolist() == [[i, *objective.positives[i].tolist()] for i in range(9)]


def test_without_weight_only_the_excluded_positives_differ_from_avid() -> None:
    torch.manual_seed(0)
    objective = CMA(**SMALL, positives=2, warmup=1, agreement_weight=0.0).double()
    trained_steps(objective, 1)
    audio = torch.randn(3, 5).double()
    loss, report = objective.eval()(FixedStep(audio, audio))
    similar = objective.positives.tolist()
    banks = [bank.entries.numpy() for bank in (objective.audio_bank, objective.video_bank)]
    negatives = [sorted(set(range(9)) - {i} - set(similar[i])) for i in range(3)]
    partition = objective.nce.log_partition.exp().item()
    expected = [numpy_nce(audio.numpy(), bank, [[0], [1], [2]], negatives, 0.3, partition)[0] for bank in banks]
    assert loss.item() == pytest.approx(np.mean(expected), rel=1e-9)
    assert report["agreement_loss"] > 0


def test_errors_name_option_and_range() -> None:
    for options, message in (
        ({"positives": 0}, r"cma: positives must lie in \[1, 14\]"),
        ({"positives": 15}, r"cma: positives must lie in \[1, 14\]"),
        ({"positives": 2, "warmup": 0}, "cma: warmup must be at least 1, got 0"),
        ({"positives": 2, "refresh": 0}, "cma: refresh must be at least 1, got 0"),
        ({"positives": 2, "agreement_weight": -1.0}, "cma: agreement_weight must be at least 0"),
        ({"positives": 2, "negatives": 0}, "cma: negatives must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            create_objective("cma", SHAPES, **options)
    objective = create_objective("cma", SHAPES, positives=2)
    rows = torch.randn(2, SHAPES.joint)
    with pytest.raises(ValueError, match=r"cma: step.index .*got -1"):
        objective(FixedStep(rows, rows, index=torch.tensor([-1, 0])))
