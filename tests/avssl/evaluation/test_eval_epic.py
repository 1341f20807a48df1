import json
import logging
import zipfile
from pathlib import Path

import numpy as np
import pytest

from avssl.data.manifest import Manifest
from avssl.evaluation.classification import multi_head_metrics
from avssl.evaluation.epic import Subsets, best_actions, is_epic, subset_metrics, validate_submission, write_submission

N, VERBS, NOUNS = 400, 97, 300
RNG = np.random.default_rng(3)


def random_case() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    labels = {"verb": RNG.integers(0, VERBS, N), "noun": RNG.integers(0, NOUNS, N)}
    scores = {"verb": RNG.normal(size=(N, VERBS)), "noun": RNG.normal(size=(N, NOUNS))}
    for head, truth in labels.items():  # right about half the time
        scores[head][np.arange(N), truth] += RNG.choice([0.0, 6.0], N)
    return scores, labels


def test_subsets_are_means_over_their_segments() -> None:
    scores, labels = random_case()
    unseen, tail_verb, tail_noun = RNG.random((3, N)) < np.array([[0.2], [0.3], [0.4]])
    metrics = subset_metrics(scores, labels, Subsets(unseen, tail_verb, tail_noun))
    verb = np.argmax(scores["verb"], 1) == labels["verb"]
    noun = np.argmax(scores["noun"], 1) == labels["noun"]
    # The pair by brute force over all 29 100 of them.
    joint = scores["verb"][:, :, None] + scores["noun"][:, None, :]
    best = joint.reshape(N, -1).argmax(1)
    action = (best // NOUNS == labels["verb"]) & (best % NOUNS == labels["noun"])
    expected = {
        "unseen/verb": verb[unseen],
        "unseen/noun": noun[unseen],
        "unseen/action": action[unseen],
        "tail/verb": verb[tail_verb],
        "tail/noun": noun[tail_noun],
        "tail/action": action[np.logical_or(tail_verb, tail_noun)],
    }
    assert {name.rsplit("/", 1)[0] for name in metrics} == set(expected)
    for name, hits in expected.items():
        assert metrics[f"{name}/top1"] == pytest.approx(hits.mean()) and 0 < hits.mean() < 1
        assert metrics[f"{name}/count"] == len(hits)
        assert metrics[f"{name}/top1_low"] < metrics[f"{name}/top1"] < metrics[f"{name}/top1_high"]
    everything = subset_metrics(scores, labels, Subsets(unseen=np.ones(N, dtype=bool)))
    overall = multi_head_metrics(scores, labels)
    for task in ("verb", "noun", "action"):
        assert everything[f"unseen/{task}/top1"] == overall[f"{task}/top1"]


def test_overall_action_top5_is_that_of_all_pairs() -> None:
    scores, labels = random_case()
    prob = {head: np.exp(values) / np.exp(values).sum(1, keepdims=True) for head, values in scores.items()}
    joint = (prob["verb"][:, :, None] * prob["noun"][:, None, :]).reshape(N, -1)
    best = np.argsort(-joint, axis=1)[:, :5]
    hits = (best == (labels["verb"] * NOUNS + labels["noun"])[:, None]).any(1)
    assert multi_head_metrics(scores, labels)["action/top5"] == pytest.approx(hits.mean())


def test_unknown_and_empty_subsets_are_left_out_and_told(caplog: pytest.LogCaptureFixture) -> None:
    scores, labels = random_case()
    labels["verb"][:10] = -1
    few = np.arange(N) < 10  # these have no label
    with caplog.at_level(logging.WARNING):
        metrics = subset_metrics(scores, labels, Subsets(unseen=few, tail_verb=~few))
    assert {name.rsplit("/", 1)[0] for name in metrics} == {"tail/verb"} and metrics["tail/verb/count"] == N - 10
    assert "unseen/verb (no such segment)" in caplog.text and "tail/action (list not found)" in caplog.text


def test_subsets_come_from_the_manifest() -> None:
    rows = [
        {"clip_id": str(k), "path": "a.mp4", "unseen": "yes" if k == 2 else "no", "tail_verb": None if k else "no"}
        for k in range(4)
    ]
    subsets = Subsets.of(Manifest.from_rows(rows, "/data"), np.array([3, 2, 0]))
    assert subsets.unseen is not None and subsets.unseen.tolist() == [False, True, False]
    assert subsets.tail_verb is None and subsets.tail_noun is None and subsets.tail_action is None
    assert is_epic({"noun": [], "verb": []}) and not is_epic({"verb": []})


def test_best_actions_are_those_of_all_pairs() -> None:
    verbs, nouns = RNG.normal(size=(7, VERBS)) * 3, RNG.normal(size=(7, NOUNS)) * 3
    pairs, products = best_actions(verbs, nouns)
    prob = [np.exp(values) / np.exp(values).sum(1, keepdims=True) for values in (verbs, nouns)]
    joint = prob[0][:, :, None] * prob[1][:, None, :]
    for row in range(7):
        order = np.argsort(-joint[row], axis=None)[:100]
        assert pairs[row].tolist() == np.stack(np.unravel_index(order, (VERBS, NOUNS)), 1).tolist()
        np.testing.assert_allclose(products[row], np.sort(joint[row], axis=None)[::-1][:100])


def test_the_submission_has_the_challenges_form(tmp_path: Path) -> None:
    count = 300  # more than one batch
    ids = [f"P33_101_{k}" for k in range(count)]
    scores = {
        "verb": RNG.normal(size=(count, VERBS)).astype("f4"),
        "noun": RNG.normal(size=(count, NOUNS)).astype("f4"),
    }
    packed = write_submission(tmp_path / "submission.json", ids, scores, sls=(4, 3, 3))
    submission = json.loads((tmp_path / "submission.json").read_text())
    validate_submission(submission, ids)
    with zipfile.ZipFile(packed) as archive:
        assert archive.namelist() == ["test.json"]
        assert json.loads(archive.read("test.json")) == submission
    assert [submission[key] for key in ("version", "challenge", "sls_pt", "sls_tl", "sls_td")] == [
        *("0.2", "action_recognition"),
        *(4, 3, 3),
    ]
    for row in (0, 299):
        entry = submission["results"][ids[row]]
        for head, values in scores.items():
            read = np.array([entry[head][str(k)] for k in range(values.shape[1])], dtype="f4")
            assert (read == values[row]).all()
        best = max(entry["action"], key=entry["action"].__getitem__)
        assert best == f"{scores['verb'][row].argmax()},{scores['noun'][row].argmax()}"


def test_the_validator_finds_what_the_server_refuses(tmp_path: Path) -> None:
    scores = {"verb": RNG.normal(size=(2, VERBS)), "noun": RNG.normal(size=(2, NOUNS))}
    write_submission(tmp_path / "s.json", ["a", "b"], scores)
    text = (tmp_path / "s.json").read_text()

    def refuse(message: str, **changes: object) -> None:
        broken = json.loads(text)
        for place, value in changes.items():
            (broken["results"]["b"] if place in ("verb", "noun", "action") else broken)[place] = value
        with pytest.raises(ValueError, match=message):
            validate_submission(broken, ["a", "b"])

    good = json.loads(text)["results"]["b"]
    validate_submission(json.loads(text), ["b", "a"])
    refuse("version must be '0.2', got '0.1'", version="0.1")
    refuse("sls_td must be 0 to 5, got 6", sls_td=6)
    refuse("1 segments are missing .'b'., 1 are not of the test set .'c'.", results={"a": good, "c": good})
    refuse("b: noun must have the scores of classes 0 to 299", noun=good["verb"])
    refuse("b: action must have 100 scores, has 99", action=dict(list(good["action"].items())[1:]))
    refuse("b: action '97,0' is not", action=dict([*list(good["action"].items())[1:], ("97,0", 0.1)]))
    refuse("b: verb 3: nan is not a finite number", verb=good["verb"] | {"3": float("nan")})


def test_what_cannot_be_submitted_is_refused(tmp_path: Path) -> None:
    scores = {"verb": np.zeros((2, VERBS)), "noun": np.zeros((2, NOUNS))}
    for changes, message in [
        ({"sls": (3, 3)}, "sls: must be three levels of 0 to 5"),
        ({"sls": (3, 3, 9)}, "sls: must be three levels of 0 to 5"),
        ({"clip_ids": ["a", "a"]}, "narration id repeats"),
        ({"clip_ids": ["a"]}, r"verb scores: shape \(2, 97\), must be \(1, 97\)"),
        ({"scores": scores | {"noun": np.zeros((2, 299))}}, r"noun scores: shape \(2, 299\)"),
        ({"scores": scores | {"noun": np.full((2, 300), np.nan)}}, "NaN"),
    ]:
        with pytest.raises(ValueError, match=message):
            write_submission(**{"path": tmp_path / "s.json", "clip_ids": ["a", "b"], "scores": scores} | changes)
    assert not list(tmp_path.iterdir())
