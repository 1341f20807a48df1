"""Rows of the training split: draws, means and banks, against NumPy and sets."""

import numpy as np
import pytest
import torch

from avssl.objectives.banks import MemoryBank, check_rows, draw_rows, mean_by_row


def test_all_other_rows_are_the_complement_of_the_excluded_ones() -> None:
    generator = np.random.default_rng(0)
    excluded = np.stack([generator.choice(9, size=4, replace=False) for _ in range(50)])
    rows = draw_rows(torch.from_numpy(excluded), clips=9, count=5)
    for mine, others in zip(rows.tolist(), excluded.tolist(), strict=True):
        assert mine == sorted(set(range(9)) - set(others))


def test_taking_all_rows_draws_nothing() -> None:
    before = torch.get_rng_state()
    assert draw_rows(torch.tensor([[2], [0]]), clips=4, count=100).tolist() == [[0, 1, 3], [1, 2, 3]]
    torch.testing.assert_close(torch.get_rng_state(), before)


def test_draws_are_uniform_over_the_rows_left_and_follow_the_seed() -> None:
    excluded = torch.tensor([[0, 5, 2], [7, 1, 6]]).repeat(2000, 1)
    torch.manual_seed(0)
    rows = draw_rows(excluded, clips=8, count=4)
    assert rows.shape == (4000, 4)
    for start, left in ((0, [1, 3, 4, 6, 7]), (1, [0, 2, 3, 4, 5])):
        found, counts = np.unique(rows[start::2].numpy(), return_counts=True)
        assert found.tolist() == left
        # 8000 draws of one in five: 1600 +- 36 (one standard deviation).
        assert (abs(counts - 1600) < 5 * 36).all()
    torch.manual_seed(0)
    assert draw_rows(excluded, clips=8, count=4).equal(rows)


def test_mean_by_row() -> None:
    rows, means = mean_by_row(torch.tensor([5, 1, 5, 5]), torch.tensor([[1.0, 0], [7, 7], [2, 0], [3, 6]]))
    assert rows.tolist() == [1, 5]
    assert means.tolist() == [[7, 7], [2, 2]]


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_update_matches_numpy_and_ignores_the_order_of_a_batch(momentum: float) -> None:
    torch.manual_seed(0)
    index, embeddings = torch.tensor([3, 0, 3, 5]), torch.nn.functional.normalize(torch.randn(4, 6), dim=1)
    bank, shuffled = MemoryBank(7, 6, momentum, seed=1), MemoryBank(7, 6, momentum, seed=1)
    expected = bank.entries.numpy().copy()
    for row, members in ((0, [1]), (3, [0, 2]), (5, [3])):
        moved = momentum * expected[row] + (1 - momentum) * embeddings.numpy()[members].mean(axis=0)
        expected[row] = moved / np.linalg.norm(moved)
    bank.update(index, embeddings)
    np.testing.assert_allclose(bank.entries.numpy(), expected, rtol=1e-5, atol=1e-6)
    order = torch.tensor([2, 3, 0, 1])
    shuffled.update(index[order], embeddings[order])
    torch.testing.assert_close(shuffled.entries, bank.entries)


def test_banks_begin_as_the_same_random_unit_vectors_wherever_they_are_made() -> None:
    torch.manual_seed(1)
    first, other = MemoryBank(50, 8, 0.5, seed=3), MemoryBank(50, 8, 0.5, seed=4)
    torch.manual_seed(2)
    assert MemoryBank(50, 8, 0.5, seed=3).entries.equal(first.entries)
    torch.testing.assert_close(first.entries.norm(dim=1), torch.ones(50))
    assert abs((first.entries * other.entries).sum(dim=1).mean().item()) < 0.2
    assert first.entries.unique(dim=0).shape == (50, 8)


@pytest.mark.parametrize("row", [-1, 4])
def test_rows_outside_the_split_are_refused(row: int) -> None:
    check_rows(torch.tensor([0, 3]), 4, "some")
    with pytest.raises(
        ValueError, match=rf"some: step.index must be rows of the training split, in \[0, 3\], got {row}"
    ):
        check_rows(torch.tensor([0, row]), 4, "some")
