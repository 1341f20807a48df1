"""Cross-modal agreement against NumPy."""

import numpy as np
import pytest
import torch
from nce_reference import numpy_nce, unit_rows
from objective_steps import SHAPES, FixedStep

from avssl.objectives import create_objective
from avssl.objectives.avid import AVID, CMA, agreeing_rows
from avssl.objectives.banks import draw_rows

SMALL = {"dim": 5, "clips": 9, "temperature": 0.3}


# Three of nine rows a step.
ROWS = [[0, 3, 3, 7], [1, 4, 8, 8], [2, 5, 5, 6]]


def numpy_agreeing_rows(
    audio: np.ndarray, video: np.ndarray, count: int, visited: set[int] | None = None
) -> list[list[int]]:
    found = []
    candidates = set(range(len(audio))) if visited is None else visited
    for i in range(len(audio)):
        agreement = {j: min(audio[i] @ audio[j], video[i] @ video[j]) for j in candidates if j != i}
        best = sorted(agreement, key=lambda j: -agreement[j])[:count]
        found.append(best if i in candidates else [-1] * count)
    return found


def trained_steps(objective: CMA, steps: int, first: int = 1) -> None:
    for number in range(first, first + steps):
        index = torch.tensor(ROWS[(number - 1) % 3])
        objective(FixedStep(torch.randn(4, 5).double(), torch.randn(4, 5).double(), index=index))
        objective.after_step(number, 100)


@pytest.mark.parametrize("cells", [1, 40, 10_000])
def test_agreeing_rows_match_numpy_in_chunks_of_any_size(cells: int) -> None:
    generator = np.random.default_rng(0)
    audio, video = unit_rows(generator.normal(size=(17, 4))), unit_rows(generator.normal(size=(17, 4)))
    found = agreeing_rows(torch.from_numpy(audio), torch.from_numpy(video), 5, cells=cells)
    assert found.tolist() == numpy_agreeing_rows(audio, video, 5)
    visited = {0, 1, 3, 4, 8, 9, 12, 16}
    mask = torch.tensor([row in visited for row in range(17)])
    found = agreeing_rows(torch.from_numpy(audio), torch.from_numpy(video), 5, mask, cells)
    assert found.tolist() == numpy_agreeing_rows(audio, video, 5, visited)


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_positives_of_a_perfect_encoder_are_all_of_the_right_class_however_few_rows_were_visited(share: float) -> None:
    """Clips of a class have one embedding; a row that was not visited has a random vector."""
    rows, classes, dim = 2000, 10, 128
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(rows) % classes
    prototypes = torch.nn.functional.normalize(torch.randn(2, classes, dim, generator=generator), dim=2)
    objective = CMA(dim, rows, positives=4, warmup=share, refresh=1, coverage=share, negatives=4)
    seen = torch.randperm(rows // classes, generator=generator)[: int(share * rows / classes)]
    order = (seen[:, None] * classes + torch.arange(classes)).flatten()  # as many of each class
    for number, index in enumerate(order.split(20), start=1):
        objective(FixedStep(prototypes[0, labels[index]], prototypes[1, labels[index]], index=index))
        objective.after_step(number, 1000)
    assert objective.visited.nonzero()[:, 0].tolist() == sorted(order.tolist())

    def right(positives: torch.Tensor) -> float:
        has = positives[:, 0] >= 0
        return (labels[positives[has]] == labels[has][:, None]).float().mean().item()

    assert right(objective.positives) == 1.0
    assert ((objective.positives[:, 0] >= 0) == objective.visited).all()
    # The bank moves by half towards what is seen, from a random vector: of all rows as candidates most are wrong.
    assert right(agreeing_rows(objective.audio_bank.entries, objective.video_bank.entries, 4)) < 0.5


def test_only_rows_that_look_and_sound_alike_agree() -> None:
    # Rows 0 and 1 share only the sound, 0 and 2 only the picture, 0 and 3 resemble each other in both.
    audio = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0.8, 0.6]])
    video = torch.tensor([[1.0, 0], [0, 1], [1, 0], [0.8, 0.6]])
    assert agreeing_rows(audio, video, 1)[0].tolist() == [3]


def test_is_avid_during_warmup() -> None:
    torch.manual_seed(0)
    objective, avid = CMA(**SMALL, positives=2, warmup=1).double(), AVID(**SMALL).double()
    for number, index in enumerate(ROWS, start=1):
        step = FixedStep(torch.randn(4, 5).double(), torch.randn(4, 5).double(), index=torch.tensor(index))
        (loss, report), (expected, _) = objective(step), avid(step)
        assert loss.item() == expected.item() and "agreement_loss" not in report
        assert report["visited"].item() == pytest.approx(number / 3)
        objective.after_step(number, 100)
    assert objective.found
    assert objective(step)[0].item() != avid(step)[0].item()


@pytest.mark.parametrize("within_of", [2, 64])
def test_loss_and_gradient_match_numpy(within_of: int) -> None:
    torch.manual_seed(0)
    objective = CMA(**SMALL, positives=3, warmup=1, agreement_weight=0.7, num_negatives_within=within_of).double()
    trained_steps(objective, 3)
    audio_bank, video_bank = objective.audio_bank.entries.numpy().copy(), objective.video_bank.entries.numpy().copy()
    similar = numpy_agreeing_rows(audio_bank, video_bank, 3)
    index = [4, 0, 4]
    own, positives = [[i] for i in index], [similar[i] for i in index]
    negatives = [sorted(set(range(9)) - {i} - set(similar[i])) for i in index]
    some = negatives
    if within_of < 5:
        torch.manual_seed(3)
        some = draw_rows(objective.excluded(torch.tensor(index)), 9, within_of).tolist()
    partition = objective.nce.log_partition.exp().item()
    generator = np.random.default_rng(0)
    audio, video = generator.normal(size=(2, 3, 5))
    expected, gradients = 0.0, []
    for queries, same, other in ((audio, audio_bank, video_bank), (video, video_bank, audio_bank)):
        across, across_gradient = numpy_nce(queries, other, own, negatives, 0.3, partition)
        within, within_gradient = numpy_nce(queries, same, positives, some, 0.3, partition)
        expected += (across + 0.7 * within) / 2
        gradients.append((across_gradient + 0.7 * within_gradient) / 2)
    tensors = [torch.tensor(rows, requires_grad=True) for rows in (audio, video)]
    torch.manual_seed(3)
    loss, _ = objective(FixedStep(*tensors, index=torch.tensor(index)))
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    for tensor, gradient in zip(tensors, gradients, strict=True):
        np.testing.assert_allclose(tensor.grad, gradient, rtol=1e-8, atol=1e-12)


def test_negatives_within_a_modality_are_any_rows_also_of_few() -> None:
    """Where all rows are negatives across modalities, those within one are not just the first of them."""
    torch.manual_seed(0)
    objective = CMA(**SMALL, positives=3, warmup=1, num_negatives_within=2).double()
    trained_steps(objective, 3)
    scores, unwanted, found = objective.scores, {4, *objective.positives[4].tolist()}, set()

    def kept(queries, bank, rows):
        if rows.shape[1] == 2:
            found.update(rows.flatten().tolist())
        return scores(queries, bank, rows)

    objective.scores = kept
    for _ in range(40):
        objective.eval()(FixedStep(*torch.randn(2, 1, 5).double(), index=torch.tensor([4])))
    assert found == set(range(9)) - unwanted


def test_positives_are_searched_for_after_the_warmup_and_every_refresh_epochs() -> None:
    torch.manual_seed(0)
    objective = CMA(**SMALL, positives=2, warmup=4 / 3, refresh=2 / 3).double()
    searched = []
    for number in range(1, 9):
        before = int(objective.searched)
        trained_steps(objective, 1, number)
        searched.append(int(objective.searched) != before)
    assert searched == [False, False, False, True, False, True, False, True]
    # What is stored belongs to the banks of that moment, not to those of later steps.
    banks = [bank.entries.numpy().copy() for bank in (objective.audio_bank, objective.video_bank)]
    rows = torch.randn(4, 5).double()
    objective(FixedStep(rows, -rows))
    assert objective.positives.tolist() == numpy_agreeing_rows(*banks, 2)


def test_the_search_waits_for_the_coverage() -> None:
    torch.manual_seed(0)
    objective = CMA(**SMALL, positives=2, warmup=0.1, coverage=0.6).double()
    trained_steps(objective, 1)
    assert not objective.found, "3 of 9 rows were visited"
    trained_steps(objective, 1, 2)
    assert objective.found and set(objective.positives[2].tolist()) == {-1}
    trained_steps(objective, 1, 3)  # rows 2, 5 and 6, which were not visited before the search
    visited = {0, 1, 3, 4, 7, 8}
    assert {row for row in range(9) if objective.positives[row, 0] >= 0} == visited
    assert set(objective.positives.flatten().tolist()) <= visited | {-1}


def test_a_clip_without_positives_is_contrasted_across_modalities_alone() -> None:
    torch.manual_seed(0)
    objective = CMA(**SMALL, positives=2, warmup=0.1, coverage=0.6, agreement_weight=0.7).double()
    trained_steps(objective, 2)
    index = torch.tensor([2, 3])
    assert objective.positives[2, 0] == -1 < objective.positives[3, 0]
    audio = torch.randn(2, 5).double()
    loss, _ = objective.eval()(FixedStep(audio, audio, index=index))
    banks = [bank.entries.numpy() for bank in (objective.audio_bank, objective.video_bank)]
    left_out = objective.excluded(index).tolist()
    negatives = [sorted(set(range(9)) - set(rows)) for rows in left_out]
    partition = objective.nce.log_partition.exp().item()
    across = [numpy_nce(audio.numpy(), bank, [[2], [3]], negatives, 0.3, partition)[0] for bank in banks]
    positives = [objective.positives[3].tolist()]
    within = [numpy_nce(audio[1:].numpy(), bank, positives, negatives[1:], 0.3, partition)[0] for bank in banks]
    assert loss.item() == pytest.approx(np.mean(across) + 0.7 * np.mean(within) / 2, rel=1e-9)
    assert len(set(left_out[0])) == 3 and left_out[0][0] == 2
    loss, _ = objective(FixedStep(audio[:1], audio[:1], index=index[:1]))
    assert torch.isfinite(loss)


def test_a_run_that_ends_before_the_first_search_is_told(caplog: pytest.LogCaptureFixture) -> None:
    objective = CMA(**SMALL, positives=2, warmup=1).double()
    trained_steps(objective, 1)
    objective.after_step(1, 1)
    assert "was AVID alone: no positives were searched for in 0.333 epochs that visited 33 % of the rows" in caplog.text


def test_negatives_are_neither_the_row_nor_its_positives() -> None:
    torch.manual_seed(0)
    objective = CMA(**SMALL, positives=3, negatives=2, warmup=1).double()
    trained_steps(objective, 3)
    excluded = objective.excluded(torch.arange(9))
    assert excluded.tolist() == [[i, *objective.positives[i].tolist()] for i in range(9)]


def test_without_weight_only_the_excluded_positives_differ_from_avid() -> None:
    torch.manual_seed(0)
    objective = CMA(**SMALL, positives=2, warmup=1, agreement_weight=0.0).double()
    trained_steps(objective, 3)
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
        ({"positives": 2, "warmup": 0}, "cma: warmup must be above 0 epochs, got 0"),
        ({"positives": 2, "refresh": 0}, "cma: refresh must be above 0 epochs, got 0"),
        ({"positives": 2, "coverage": 0.0}, r"cma: coverage must lie in \(0, 1\], got 0"),
        ({"positives": 2, "num_negatives_within": 0}, "cma: num_negatives_within must be at least 1, got 0"),
        ({"positives": 2, "agreement_weight": -1.0}, "cma: agreement_weight must be at least 0"),
        ({"positives": 2, "negatives": 0}, "cma: negatives must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            create_objective("cma", SHAPES, **options)
    objective = create_objective("cma", SHAPES, positives=2)
    rows = torch.randn(2, SHAPES.joint)
    with pytest.raises(ValueError, match=r"cma: step.index .*got -1"):
        objective(FixedStep(rows, rows, index=torch.tensor([-1, 0])))
