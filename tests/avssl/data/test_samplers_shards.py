"""Training order by shards: every row once, a few shards at a time, the same for any number of processes."""

import itertools

import numpy as np
import pytest

from avssl.data.failures import DataError
from avssl.data.loader import make_train_loader
from avssl.data.samplers import ShardSampler
from avssl.data.shards.index import shard_numbers

SHARDS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 12))  # 120 rows, in no order


def rows(sampler: ShardSampler, steps: int) -> list[int]:
    return [row for batch in itertools.islice(iter(sampler), steps) for _, row in batch]


def test_an_epoch_holds_every_row_once_and_few_shards_at_a_time() -> None:
    sampler = ShardSampler(SHARDS, 2, 6, seed=1)
    first, second = rows(sampler, 20), rows(ShardSampler(SHARDS, 2, 6, seed=1, start_step=20), 20)
    for epoch in (first, second):
        assert sorted(epoch) == list(range(120))
        assert all(len(set(SHARDS[epoch[k : k + 24]])) == 2 for k in range(0, 120, 24))
        assert len(set(SHARDS[epoch[:6]])) == 2, "the two are mixed, not one after the other"
    assert first != second and first != rows(ShardSampler(SHARDS, 2, 6, seed=2), 20)


def test_processes_share_the_epoch_and_a_resumed_run_draws_the_same() -> None:
    one = ShardSampler(SHARDS, 3, 6, seed=4)
    ranks = [ShardSampler(SHARDS, 3, 3, seed=4, rank=rank, world=2) for rank in range(2)]
    for step in range(40):
        parts = [rank.batch(step) for rank in ranks]
        assert one.batch(step) == parts[0] + parts[1], "the same global batch, whatever the number of processes"
    seen = [{row for step in range(20) for _, row in rank.batch(step)} for rank in ranks]
    assert not seen[0] & seen[1] and len(seen[0] | seen[1]) == 120
    resumed = ShardSampler(SHARDS, 3, 3, seed=4, rank=1, world=2, start_step=27)
    assert list(itertools.islice(resumed, 5)) == [ranks[1].batch(step) for step in range(27, 32)]


def test_what_cannot_be_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="buffer"):
        ShardSampler(SHARDS, 0, 6)
    with pytest.raises(ValueError, match=r"data\.shard_buffer: must be at least 1"):  # also where it is not used
        make_train_loader(None, 6, shard_buffer=0)
    from loading_samples import wav_manifest

    with pytest.raises(DataError, match=r"needs a cache, which avssl cache makes"):
        shard_numbers(wav_manifest(tmp_path, 2))
