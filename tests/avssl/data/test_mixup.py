"""Mixup with a clip from anywhere in the set: AST's numbers, the same clips after a resume, every failure counted."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import wavfile
from torchaudio.compliance.kaldi import fbank

from avssl.cli import read_settings
from avssl.commands.cache import cache
from avssl.config import AugmentConfig, CacheConfig, FinetuneConfig, MixupConfig, SourceConfig
from avssl.data.catalog import open_data
from avssl.data.clips import ClipDataset
from avssl.data.failures import FailureMonitor
from avssl.data.loader import make_train_loader
from avssl.data.mixup import SetMixup, mix_frames, mix_waveforms
from avssl.errors import SettingsError

RATE, COUNT = 8000, 12


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise of 0.25 and 0.5 s with an offset of its own, of three classes, and with tags."""
    root = tmp_path_factory.mktemp("sounds")
    rng, lines = np.random.default_rng(0), ["path,split,label,tags"]
    for number in range(COUNT):
        noise = rng.normal(size=RATE // (2 + 2 * (number % 2))) * 2000 + 300 * number
        wavfile.write(root / f"{number:02}.wav", RATE, noise.astype(np.int16))
        lines.append(f"{number:02}.wav,train,{'abc'[number % 3]},{'x|y' if number % 4 else 'z'}")
    (root / "index.csv").write_text("\n".join(lines) + "\n")
    return root


HEADS = {"label": {"label": ["label"]}, "tags": {"label": ["tags"], "separator": "|"}}  # one label, and several


def dataset(root: Path, head: str = "label", **options) -> ClipDataset:
    manifest = open_data(str(root), options=HEADS[head] if root.suffix else {})
    return ClipDataset(manifest, modalities=["audio"], clip_seconds=0.5, sample_rate=RATE, **options)


def asts(own: np.ndarray, other: np.ndarray, share: float) -> np.ndarray:
    """Waveform mixing as in AST's dataloader.py, written anew: lengths fitted after the means are taken."""
    own, other = own - own.mean(), other - other.mean()
    fitted = np.zeros_like(own)
    fitted[: min(len(own), len(other))] = other[: len(own)]
    mixed = share * own + (1 - share) * fitted
    return mixed - mixed.mean()


@pytest.mark.parametrize(("own", "other"), [(4000, 4000), (4000, 2500), (2500, 4000), (1, 4000)])
def test_a_blend_is_asts(own: int, other: int) -> None:
    rng = np.random.default_rng(1)
    waves = [rng.normal(loc=0.3, size=size).astype(np.float32) for size in (own, other)]
    padded = [np.concatenate([wave, np.zeros(4000 - len(wave), np.float32)]) for wave in waves]
    mixed = mix_waveforms(padded[0], own, padded[1], other, 0.3)
    np.testing.assert_allclose(mixed[:own], asts(*waves, 0.3), atol=1e-6)
    assert not mixed[own:].any() and mixed.dtype == np.float32
    if own > 2000:  # and so are the filter banks, which take a mean of their own from each frame
        options = {"htk_compat": True, "window_type": "hanning", "dither": 0.0, "num_mel_bins": 64}
        banks = [
            fbank(torch.from_numpy(x.astype(np.float32))[None], **options) for x in (mixed[:own], asts(*waves, 0.3))
        ]
        torch.testing.assert_close(*banks, atol=1e-3, rtol=0)


def test_shares_are_of_beta_10_10_for_half_of_the_clips() -> None:
    rng, mixup = np.random.default_rng(0), SetMixup()
    drawn = [mixup.share(rng) for _ in range(20_000)]
    shares = np.array([share for share in drawn if share is not None])
    assert len(shares) / len(drawn) == pytest.approx(0.5, abs=0.02)
    assert shares.mean() == pytest.approx(0.5, abs=0.005) and shares.var() == pytest.approx(1 / 84, rel=0.05)
    assert np.minimum(shares, 1 - shares).mean() == pytest.approx(
        0.41, abs=0.005
    )  # what batch mixup at 0.5 has at 0.18


def names(labels: dict[str, torch.Tensor], row: int, heads: dict[str, list[str]]) -> set[str]:
    """The classes of a clip of a batch."""
    ((head, values),) = labels.items()
    chosen = values[row].nonzero().flatten().tolist() if values.ndim > 1 else [int(values[row])]
    return {heads[head][k] for k in chosen}


@pytest.mark.parametrize("head", ["label", "tags"])
def test_a_training_batch_holds_blends_with_both_labels_the_same_in_processes_caches_and_after_a_resume(
    head: str, sounds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AVSSL_CACHE", str(tmp_path / "cache"))
    mixup = SetMixup(probability=0.7)
    mixed = dataset(sounds / "index.csv", head, mixup=mixup)
    heads = mixed.manifest.heads
    truth = {k: {"abc"[k % 3]} if head == "label" else ({"x", "y"} if k % 4 else {"z"}) for k in range(COUNT)}
    batches = iter(make_train_loader(mixed, 4, seed=3))
    first = [next(batches) for _ in range(6)]
    waves = {k: wavfile.read(sounds / f"{k:02}.wav")[1].astype(np.float32) / 32768 for k in range(COUNT)}
    seen, partners = 0, set()
    for batch in first:
        assert batch.mixed_share is not None and batch.samples is not None
        for b, row in enumerate(batch.index.tolist()):
            share = batch.mixed_share[b].item()
            wanted = {k: asts(waves[row], waves[k], share) for k in range(COUNT)}
            heard = batch.audio[b, : batch.samples[b]].numpy()
            assert names(batch.labels, b, heads) == truth[row]
            other = names(batch.mixed_labels, b, heads)
            if share == 1.0:
                np.testing.assert_allclose(heard, waves[row], atol=1e-6)
                assert other == truth[row]
                continue
            (partner,) = [k for k, x in wanted.items() if np.allclose(heard, x, atol=1e-5)]
            assert other == truth[partner]
            seen, partners = seen + 1, partners | {partner}
    assert 0.5 < seen / 24 < 0.9 and len(partners) > 6

    source = SourceConfig(str(sounds / "index.csv"), options=HEADS[head])
    cache(CacheConfig(str(tmp_path / "shards"), source, modalities=["audio"], workers=0, sample_rate=RATE))
    for loader in (
        make_train_loader(mixed, 4, seed=3, start_step=2),
        make_train_loader(dataset(sounds / "index.csv", head, mixup=mixup), 4, seed=3, start_step=2, num_workers=1),
        make_train_loader(dataset(tmp_path / "shards", mixup=mixup), 4, seed=3, start_step=2),
    ):
        resumed = iter(loader)
        for batch, before in zip(resumed, first[2:4], strict=False):
            assert batch.clip_ids == before.clip_ids and torch.equal(batch.mixed_share, before.mixed_share)
            torch.testing.assert_close(batch.audio, before.audio, atol=1e-4, rtol=0)
            assert torch.equal(batch.mixed_labels[head], before.mixed_labels[head])


def test_a_partner_that_cannot_be_read_is_a_counted_failure_and_another_is_drawn(sounds: Path, monkeypatch) -> None:
    mixed = dataset(sounds / "index.csv", mixup=SetMixup(probability=1.0))
    mixed.given_up = {k: "decoder hung" for k in range(1, COUNT - 1)}
    items = [mixed[epoch, 0] for epoch in range(20)]
    assert all(len(item.clips) == 1 and item.clips[0].index == 0 for item in items)
    assert sum(len(item.failures) for item in items) > 20
    assert {failure.reason for item in items for failure in item.failures} == {"decoder hung"}
    blended = [item.clips[0] for item in items if item.clips[0].share < 1]
    assert len(blended) > 10  # with one of the two that can be read
    with pytest.raises(ValueError, match="mixup is for training"):
        dataset(sounds / "index.csv", mode="center", mixup=SetMixup())


def test_a_share_of_failures_is_one_of_all_that_was_read_partners_included(sounds: Path) -> None:
    mixed = dataset(sounds / "index.csv", mixup=SetMixup(probability=1.0))
    mixed.given_up = {0: "decoder hung"}
    monitor = FailureMonitor(max_share=1.0)
    batches = [mixed.collate([mixed[epoch, row] for row in range(COUNT)]) for epoch in range(30)]
    for batch in batches:
        assert batch.rows_read == 2 * COUNT  # each clip, or the one in its place, and its partner
        monitor.update(batch)
    counts = monitor.summary()
    assert counts["seen"] == 2 * COUNT * 30 + counts["failed"]
    assert counts["share"] == pytest.approx(1 / COUNT, rel=0.2)  # not twice as much
    several = ClipDataset(mixed.manifest, modalities=("audio",), clip_seconds=0.1, sample_rate=RATE, clips_per_item=3)
    assert several.collate([several[0, 1], several[0, 2]]).rows_read == 2


def test_frames_are_blended_alike() -> None:
    own, other = np.full((2, 3, 3, 3), 200, np.uint8), np.full((2, 3, 3, 3), 101, np.uint8)
    assert (mix_frames(own, other, 0.25) == round(0.25 * 200 + 0.75 * 101)).all()


def test_a_number_is_refused_with_what_to_write_and_kinds_have_their_own_numbers(tmp_path: Path) -> None:
    words = (
        r"the number 0\.5 was Beta's alpha .* \{kind: batch, alpha: 0\.5\}; .* \{kind: waveform, probability: 0\.5\}"
    )
    file = tmp_path / "old.yaml"
    file.write_text("data: {name: esc50}\naugment: {mixup: 0.5}\n")
    with pytest.raises(SettingsError, match=f"old.yaml: augment.mixup: {words}"):
        read_settings(FinetuneConfig, ["--config", str(file)])
    with pytest.raises(SettingsError, match=words):
        read_settings(FinetuneConfig, ["--data", "esc50", "--augment.mixup", "0.5"])
    with pytest.raises(ValueError, match=words):
        AugmentConfig(mixup=0.5)
    assert SetMixup.of(MixupConfig("waveform")) == SetMixup(0.5, 10.0)
    assert MixupConfig("batch", alpha=0.4).within_batch() == (0.4, 1.0)
    assert SetMixup.of(AugmentConfig().mixup) is None and AugmentConfig().mixup.within_batch()[0] == 0
    config = read_settings(FinetuneConfig, ["--data", "audioset", "--augment.mixup.kind", "batch"])
    assert config.augment.mixup == MixupConfig("batch")  # a recipe's numbers are of its kind
