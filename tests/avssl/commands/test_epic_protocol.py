"""EPIC-Kitchens from fine-tuning to the file for its challenge, on kitchens of noise."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.io import wavfile

from avssl.commands.evaluate import evaluate
from avssl.commands.finetune import finetune
from avssl.config import AudioConfig, DataConfig, EvaluateConfig, FinetuneConfig, RuntimeConfig, WandbConfig
from avssl.evaluation.epic import validate_submission

COLUMNS = "narration_id,participant_id,video_id,start_timestamp,stop_timestamp"
SEGMENTS = 6


def write_segments(file: Path, videos: list[str], labels: bool = True) -> None:
    lines = [COLUMNS + (",verb_class,noun_class" if labels else "")]
    for number, video in enumerate(videos):
        for k in range(SEGMENTS):
            label = f",{(number + k) % 3},{k % 2}" if labels else ""
            lines.append(f"{video}_{k},{video[:3]},{video},00:00:0{k}.00,00:00:0{k}.90{label}")
    file.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def kitchens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("epic")
    (root / "annotations").mkdir()
    for name, count in (("verb", 97), ("noun", 300)):
        rows = [f"{k},{name}{k}" for k in range(count)]
        (root / "annotations" / f"EPIC_100_{name}_classes.csv").write_text("\n".join(["id,key", *rows]) + "\n")
    write_segments(root / "annotations" / "EPIC_100_train.csv", ["P01_01", "P02_01"])
    write_segments(root / "annotations" / "EPIC_100_validation.csv", ["P01_11", "P18_01"])
    write_segments(root / "annotations" / "EPIC_100_test_timestamps.csv", ["P01_21", "P33_01"], labels=False)
    for name, text in (
        ("tail_verbs", "verb\n2\n"),
        ("tail_nouns", "noun\n1\n"),
        ("unseen_participant_ids_validation", "participant_id\nP18\n"),
    ):
        (root / "annotations" / f"EPIC_100_{name}.csv").write_text(text)
    rng = np.random.default_rng(0)
    for video in ("P01_01", "P02_01", "P01_11", "P18_01", "P01_21"):  # P33_01 was not downloaded
        sound = rng.normal(size=SEGMENTS * 16000) * np.repeat(rng.random(SEGMENTS), 16000) * 3000
        wavfile.write(root / f"{video}.wav", 16000, sound.astype(np.int16))
    return root


def data(root: Path, test: str) -> DataConfig:
    options = {"test": test}
    return DataConfig("epic-kitchens", root=root, options=options, clip_seconds=0.5, num_workers=0)


@pytest.fixture(scope="module")
def run(kitchens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "epic"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AVSSL_CACHE", str(folder.parent / "cache"))
        # The challenge's test split cannot judge a training: the validation segments do.
        finetune(
            FinetuneConfig(
                data=data(kitchens, "challenge"),
                checkpoint="none",
                audio=AudioConfig(options={"embed_dim": 16, "depths": [1, 1, 1, 1]}),
                runtime=RuntimeConfig(accelerator="cpu"),
                wandb=WandbConfig(mode="disabled"),
                output=folder,
            )
        )
    return folder


def evaluated(run: Path, kitchens: Path, test: str, monkeypatch: pytest.MonkeyPatch, **options: object) -> dict:
    monkeypatch.setenv("AVSSL_CACHE", str(run.parent / "cache"))
    folder = run.parent / f"evaluated-{test}"
    config = EvaluateConfig(
        str(run), data(kitchens, test), output=folder, runtime=RuntimeConfig(accelerator="cpu"), **options
    )
    evaluate(config)
    return json.loads((folder / "result.json").read_text())


SUBSETS = {f"{subset}/{task}/top1" for subset in ("unseen", "tail") for task in ("verb", "noun", "action")}


def test_the_official_metrics_are_in_both_results(run: Path, kitchens: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = json.loads((run / "result.json").read_text())["metrics"]
    asked = ["accuracy", "unseen_tail"]  # by default there are others, too, which take longer
    metrics = evaluated(run, kitchens, "validation", monkeypatch, evaluations=asked)["metrics"]
    for found in (trained, metrics):
        assert found.keys() >= SUBSETS | {f"{task}/top{k}" for task in ("verb", "noun", "action") for k in (1, 5)}
        assert found["verb/count"] == 12 and found["unseen/action/count"] == 6
        assert found["tail/verb/count"] == 4 and found["tail/noun/count"] == 6 and found["tail/action/count"] == 8
    assert {key: metrics[key] for key in SUBSETS} == {key: trained[key] for key in SUBSETS}
    page = (run.parent / "evaluated-validation" / "report.html").read_text()
    assert "Unseen participants and tail classes" in page


def test_a_split_without_labels_gives_the_file_to_submit(
    run: Path, kitchens: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    result = evaluated(run, kitchens, "challenge", monkeypatch, sls=[4, 3, 3])
    assert result["evaluations"] == ["submission"] and result["metrics"] == {}
    assert result["details"]["submission"] == {"segments": SEGMENTS, "missing": SEGMENTS}
    submission = json.loads((run.parent / "evaluated-challenge" / "submission.json").read_text())
    validate_submission(submission, [f"P01_21_{k}" for k in range(SEGMENTS)])
    assert submission["sls_pt"] == 4
    with pytest.raises(ValueError, match="6 segments are missing"):  # what the server would say
        validate_submission(submission, [f"{video}_{k}" for video in ("P01_21", "P33_01") for k in range(SEGMENTS)])
    assert "6 segments are missing; the challenge's server will refuse the file" in caplog.text
    assert (run.parent / "evaluated-challenge" / "submission.zip").is_file()


def test_what_is_not_possible_is_told(run: Path, kitchens: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"submission is not possible here: split 'test' has labels"):
        evaluated(run, kitchens, "validation", monkeypatch, evaluations=["submission"])
    with pytest.raises(ValueError, match=r"unseen_tail is not possible here: split 'test' has no labelled clip"):
        evaluated(run, kitchens, "challenge", monkeypatch, evaluations=["unseen_tail"])
