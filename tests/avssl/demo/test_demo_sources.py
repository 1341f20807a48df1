"""The set of sources: labels say what is heard and seen, sources stay on one side, options do what they say."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score

from avssl.config import DataConfig
from avssl.data.catalog import open_data
from avssl.data.failures import DataError
from avssl.data.manifest import Manifest
from avssl.data.splits import open_splits
from avssl.demo.build import build_set, set_rows
from avssl.demo.sounds import FPS, SAMPLE_RATE, frame_energy
from avssl.demo.sources import CONTENTS, FRAME_SIZE, NUM_FRAMES, NUM_SAMPLES, SourcesRecipe

PLAIN = SourcesRecipe(pretrain=0, train=48, val=4, test=8, sources=4, motion=1.0, noise=0.0, distractors=False)
OPTIONS = {"pretrain": 6, "train": 24, "val": 4, "test": 8, "sources": 4}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return open_data("demo-sources", root=tmp_path_factory.mktemp("sets") / "sources", options=OPTIONS)


def test_no_source_is_on_two_sides_of_a_split(manifest: Manifest) -> None:
    speakers = {split: set(manifest.select(split).column("speaker")) for split in ("pretrain", "train", "val", "test")}
    assert speakers["pretrain"] <= speakers["train"] and len(speakers["train"]) == 4
    assert len(speakers["val"]) == len(speakers["test"]) == 2
    sides = [speakers["train"], speakers["val"], speakers["test"]]
    assert len(set.union(*sides)) == sum(map(len, sides))


def test_training_holds_out_the_splits_that_the_set_has(manifest: Manifest) -> None:
    config = DataConfig("demo-sources", manifest.root, OPTIONS, val_fraction=0.1)
    pretraining = open_splits(config, modalities=("audio", "video"), labelled=False)
    tuning = open_splits(config, modalities=("audio",), labelled=True)
    assert pretraining.held_out == tuning.held_out == {}
    assert [len(rows) for rows in (pretraining.train, tuning.train, tuning.val, tuning.test)] == [6, 24, 4, 8]
    assert list(tuning.labels) == ["content"] and tuning.protocol.seconds == NUM_FRAMES / FPS


def test_labels_are_balanced_and_pretraining_clips_have_none(manifest: Manifest) -> None:
    assert (manifest.select("pretrain").labels("content") == -1).all()
    train = manifest.select("train")
    assert sorted(train.labels("content")) == list(range(len(CONTENTS)))
    names = manifest.heads["source"]
    assert [names[k] for k in train.labels("source")] == train.column("speaker")
    assert set(np.bincount(train.labels("source"))[:4]) == {6}
    truth = json.loads((manifest.root / "truth.json").read_text())
    assert {truth[row]["source"] for row in manifest.column("clip_id")} == set(manifest.column("speaker"))


def test_the_same_recipe_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    recipe = replace(PLAIN, train=3, val=0, test=0, noise=1.0, distractors=True)
    made = [
        [(root / row["path"]).read_bytes() for row in set_rows(build_set(each, root, workers=0), each)[0]]
        for root, each in (
            (tmp_path / "one", recipe),
            (tmp_path / "two", recipe),
            (tmp_path / "three", replace(recipe, seed=1)),
        )
    ]
    assert made[0] == made[1]
    assert not set(made[0]) & set(made[2])


@pytest.mark.parametrize("index", range(0, 24, 5))
def test_events_are_heard_when_the_truth_says(index: int) -> None:
    clip = PLAIN.make("train", index)
    assert clip.audio.shape == (NUM_SAMPLES,) and np.abs(clip.audio).max() < 1
    loud = np.convolve(np.abs(clip.audio), np.ones(160) / 160, mode="same")
    loud = loud > 0.02 * loud.max()
    rises = np.flatnonzero(loud[1:] & ~loud[:-1]) / SAMPLE_RATE
    onsets = np.array(clip.truth["onsets"])
    for onset in onsets:
        assert np.abs(rises - onset).min() < 0.012
    for rise in rises:  # the beats of a trill apart, nothing begins at another time
        assert ((rise > onsets - 0.012) & (rise < onsets + 0.3)).any()


def kinds_seen(frames: np.ndarray, onsets: list[float]) -> list[str]:
    """What the body does after each onset, from its pixels alone: flattened, open, lifted or shaken."""
    still = frames[0].astype(float)
    kinds = []
    for onset in onsets:
        first = int(onset * FPS)
        during = frames[first : first + 4].astype(float)
        differs = np.abs(during - still).max(-1) > 60
        # Rows and columns that the difference reaches: a lifted body shows above where it was, a shaken one beside it.
        body = np.abs(still - np.median(still.reshape(-1, 3), 0)).max(-1) > 45
        top, left, right = np.flatnonzero(body.any(1))[0], *np.flatnonzero(body.any(0))[[0, -1]]
        above = differs[:, : max(top - 1, 0)].any((1, 2)).sum()
        beside = np.concatenate([differs[:, :, : max(left - 1, 0)], differs[:, :, right + 2 :]], 2).any((1, 2)).sum()
        darker = (during.sum(-1) < still.sum(-1) - 90).sum((1, 2)).max()
        lighter = (during.sum(-1) > still.sum(-1) + 90).sum((1, 2)).max()
        if above:
            kinds.append("rise")
        elif beside:
            kinds.append("trill")
        else:
            kinds.append("knock" if lighter > darker else "tone")
    return kinds


def test_events_are_seen_as_the_label_says() -> None:
    right = []
    for index in range(24):
        clip = PLAIN.make("train", index)
        assert clip.frames.shape == (NUM_FRAMES, FRAME_SIZE, FRAME_SIZE, 3)
        said = clip.columns["label.content"].split(" ")[0].split("-")
        right += [a == b for a, b in zip(kinds_seen(clip.frames, clip.truth["onsets"]), said, strict=True)]
    assert np.mean(right) > 0.85


def test_motion_says_how_far_events_are_seen() -> None:
    moved = []
    for motion in (1.0, 0.5, 0.25):
        frames = [replace(PLAIN, motion=motion).make("train", index).frames.astype(float) for index in range(8)]
        moved.append(np.mean([np.abs(np.diff(each, axis=0)).mean() for each in frames]))
    assert moved[0] > 1.3 * moved[1] and moved[1] > 1.3 * moved[2] > 0


def test_rhythms_are_those_of_the_label() -> None:
    for index in range(48):
        clip = PLAIN.make("train", index)
        first, second = np.diff(clip.truth["onsets"])
        rhythm = "even" if abs(first / second - 1) < 0.2 else "short-long" if first < second else "long-short"
        assert clip.columns["label.content"].endswith(f" {rhythm}")


def spectrum(audio: np.ndarray) -> np.ndarray:
    power = np.abs(np.fft.rfft(audio)) ** 2
    edges = np.geomspace(100, 7000, 25) * NUM_SAMPLES / SAMPLE_RATE
    return np.log([power[int(a) : int(b) + 1].mean() for a, b in pairwise(edges)])


@pytest.mark.parametrize(("shortcut", "low", "high"), [(0.0, 0.0, 0.45), (1.0, 0.75, 1.0)])
def test_the_shortcut_says_how_far_looks_and_timbre_tell_the_source(shortcut: float, low: float, high: float) -> None:
    clips = [replace(PLAIN, train=96, shortcut=shortcut).make("train", index) for index in range(96)]
    sources = [clip.truth["source"] for clip in clips]
    looks = np.stack([clip.frames.mean((0, 1, 2)) for clip in clips])
    timbres = np.stack([spectrum(clip.audio) for clip in clips])
    for features in (looks, timbres):
        scaled = (features - features.mean(0)) / features.std(0)
        accuracy = cross_val_score(LogisticRegression(max_iter=500), scaled, sources, cv=4).mean()
        assert low <= accuracy <= high, accuracy  # chance is a quarter


def test_the_shortcut_joins_sound_and_picture_beyond_the_sources_of_training() -> None:
    """What is learned of timbre and look holds for other sources: the larger the body, the lower its voice."""

    def joined(shortcut: float) -> float:
        recipe = replace(PLAIN, sources=60, test=24, train=60, shortcut=shortcut)
        clips = [recipe.make("train", index) for index in range(60)]
        heights = [np.argmax(spectrum(clip.audio)[:14]) for clip in clips]
        return float(np.corrcoef(heights, [clip.truth["body"][2] for clip in clips])[0, 1])

    assert joined(1.0) < -0.5
    assert abs(joined(0.0)) < 0.35


def test_contents_do_not_tell_the_source() -> None:
    recipe = replace(PLAIN, train=960, sources=16)
    names = [recipe.make("train", index).truth for index in range(0, 960, 10)]
    table = {(each["content"], each["source"]) for each in names}
    assert len(table) > 0.7 * len(names)  # no source has its own contents


def test_noise_is_there_when_asked_for() -> None:
    plain, noisy = PLAIN.make("train", 0), replace(PLAIN, noise=1.0).make("train", 0)
    quiet = int(0.9 * plain.truth["onsets"][0] * SAMPLE_RATE)
    assert np.abs(plain.audio[:quiet]).max() < 1e-6 < 1e-4 < np.abs(noisy.audio[:quiet]).mean()


@pytest.mark.parametrize(("distractors", "low", "high"), [(False, 0, 0), (True, 3, 20)])
def test_distractors_sound_beside_the_events_of_some_clips(distractors: bool, low: int, high: int) -> None:
    strays = 0
    for index in range(48):
        clip = replace(PLAIN, distractors=distractors).make("train", index)
        between = np.ones(NUM_SAMPLES, bool)
        for onset in clip.truth["onsets"]:
            between[int((onset - 0.01) * SAMPLE_RATE) : int((onset + 0.28) * SAMPLE_RATE)] = False
        strays += np.abs(clip.audio[between]).max() > 1e-4
    assert low <= strays <= high


def test_sound_and_picture_move_together() -> None:
    found = []
    for index in range(12):
        clip = PLAIN.make("train", index)
        moved = np.abs(np.diff(clip.frames.astype(float), axis=0)).mean((1, 2, 3))
        energy = frame_energy(clip.audio)
        found.append(np.corrcoef(moved, np.maximum(energy[1:], energy[:-1]))[0, 1])
    assert np.mean(found) > 0.3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shortcut": 1.5}, r"shortcut must lie in 0\.\.1, got 1\.5"),
        ({"motion": 0}, "motion must lie above 0 and be at most 1, got 0"),
        ({"sources": 1}, "sources must be at least 2, got 1"),
        ({"train": -1}, "train must be at least 0, got -1"),
        ({"noise": float("nan")}, r"noise must lie in 0\.\.4, got nan"),
        ({"pretrain": "many"}, "demo-sources"),
    ],
)
def test_an_option_that_cannot_be_is_named(options: dict[str, object], words: str) -> None:
    with pytest.raises(DataError, match=words):
        open_data("demo-sources", options=options)
