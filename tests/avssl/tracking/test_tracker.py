"""Metrics files, what is sent where, and the offline W&B run read back from its file."""

import json
import logging
from pathlib import Path

import av
import numpy as np
import pytest
from offline_runs import history, read_offline_run
from scipy.io import wavfile

from avssl.tracking import Tracker, end_failed_run, read_rows, sweep_folder


def test_offline_run_holds_what_was_logged(tmp_path) -> None:
    tracker = Tracker(tmp_path, {"optim": {"lr": 0.5}}, mode="offline", project="p", name="n", tags=["t"])
    tracker.log({"train/loss": 1.5, "train/lr": 0.1}, step=10)
    assert tracker.wandb is not None
    tracker.wandb.log_confusion("event", np.array([0, 1]), np.array([0, 0]), ["x", "y"])
    tracker.summary({"test/top1": 0.75})
    run_id = tracker.run_id
    tracker.finish()
    records = read_offline_run(tmp_path)
    run = records["run"][0].run
    assert (run.run_id, run.project, run.display_name, list(run.tags)) == (run_id, "p", "n", ["t"])
    config = {item.key: json.loads(item.value_json) for record in records["run"] for item in record.run.config.update}
    assert config["optim"] == {"lr": 0.5}
    rows = history(records)
    assert any(row.get("train/loss") == 1.5 and row.get("step") == 10 for row in rows)
    assert any("confusion_matrix/event_table/path" in row for row in rows)
    summary = {item.key: item.value_json for record in records["summary"] for item in record.summary.update}
    assert json.loads(summary["test/top1"]) == 0.75
    assert read_rows(tmp_path / "metrics.jsonl") == [{"step": 10, "train/loss": 1.5, "train/lr": 0.1}]


def test_resumed_run_keeps_id_and_rows(tmp_path) -> None:
    first = Tracker(tmp_path, {}, mode="offline")
    first.log({"train/loss": 1.0}, step=1)
    first.log({"train/loss": 2.0}, step=2)
    first.finish()
    second = Tracker(tmp_path, {}, mode="offline", run_id=first.run_id, resumed=True)
    second.rewind(1)
    second.log({"train/loss": 3.0}, step=2)
    second.finish()
    assert second.run_id == first.run_id
    assert [row["train/loss"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1.0, 3.0]
    assert {record.run.run_id for record in read_offline_run(tmp_path)["run"]} == {first.run_id}


def test_row_cut_short_by_a_crash_is_dropped(tmp_path) -> None:
    tracker = Tracker(tmp_path, {}, mode="disabled")
    tracker.log({"train/loss": 1.0}, step=1)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "train/lo')
    tracker.rewind(5)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "train/loss": 1.0}\n'


@pytest.mark.parametrize(
    "damage",
    [b"\xff\xfe", b"\0" * 40, b'{"step": 2, "train/lo', b"3", b'{"train/loss": 1.0}', b"[" * 100_000],
    ids=["foreign bytes", "zeros", "torn", "no row", "no step", "nested"],
)
def test_a_damaged_line_is_repaired_and_the_rows_behind_it_stay(tmp_path, damage: bytes, caplog) -> None:
    tracker = Tracker(tmp_path, {}, mode="disabled")
    for step in (1, 2, 3):
        tracker.log({"train/loss": float(step)}, step=step)
    path = tmp_path / "metrics.jsonl"
    first, second, third = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + damage + b"\n" + second + third)
    tracker.rewind(2)
    assert path.read_bytes() == first + second
    assert f"{path}: 1 damaged lines left out: 2" in caplog.text


def test_lost_metrics_are_told(tmp_path, caplog) -> None:
    tracker = Tracker(tmp_path, {}, mode="disabled")
    (tmp_path / "metrics.jsonl").unlink()
    tracker.rewind(7)
    assert "metrics.jsonl is missing: its rows up to step 7 are lost" in caplog.text


def test_other_processes_write_nothing(tmp_path) -> None:
    tracker = Tracker(tmp_path, {}, mode="offline", enabled=False)
    tracker.log({"train/loss": 1.0}, step=1)
    tracker.finish()
    assert list(tmp_path.iterdir()) == []


def test_clips_of_the_table_play(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path))  # where W&B keeps files to upload
    tracker = Tracker(tmp_path, {}, mode="offline")
    sound = np.array([[0.0, 0.5, -0.5, 2.0] * 4000, [0.25, 0.0, 0.0, -3.0] * 4000], np.float32)
    # Five frames in two seconds, each of one grey, in a size that H.264 does not take.
    greys = np.array([[0, 60, 120, 180, 240], [240, 180, 120, 60, 0]], np.uint8)
    frames = np.broadcast_to(greys[:, None, :, None, None], (2, 3, 5, 31, 45))
    assert tracker.wandb is not None
    tracker.wandb.log_clips("clips", sound, frames, 8000, ["a", "b"])
    tracker.finish()
    (record,) = read_offline_run(tmp_path)["artifact"]
    staged = {entry.path: Path(entry.local_path) for entry in record.artifact.manifest.contents}
    table = json.loads(staged["clips.table.json"].read_text())
    assert table["columns"] == ["clip", "video", "audio"]
    for number, (name, film, audio) in enumerate(table["data"]):
        assert (name, film["caption"]) == ("ab"[number], "ab"[number])
        assert (film["_type"], audio["_type"]) == ("video-file", "audio-file")
        rate, played = wavfile.read(staged[audio["path"]])
        assert rate == 8000
        np.testing.assert_allclose(played / 32767, sound[number].clip(-1, 1), atol=1e-4)
        with av.open(str(staged[film["path"]])) as file:
            shown = [(frame.time, frame.to_ndarray(format="rgb24").mean()) for frame in file.decode(video=0)]
            seconds = float(file.streams.audio[0].duration * file.streams.audio[0].time_base)
        np.testing.assert_allclose([time for time, _ in shown], np.arange(5) / 2.5, atol=1e-3)
        np.testing.assert_allclose([grey for _, grey in shown], greys[number], atol=6)
        assert seconds == pytest.approx(2.0, abs=0.2), "the film has its sound, of the same length"


def test_predictions_are_a_table(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path))
    tracker = Tracker(tmp_path, {}, mode="offline")
    assert tracker.wandb is not None
    scores = np.array([[0.9, 0.1, 0.0], [0.2, 0.3, 0.5], [0.0, 1.0, 0.0]], np.float32)
    tracker.wandb.log_predictions("event", ["a", "b", "c"], np.array([0, 1, -1]), scores, ["x", "y", "z"])
    several = np.array([[1, 1, 0], [0, 1, 0], [-1, -1, -1]], np.float32)
    tracker.wandb.log_predictions("tags", ["a", "b", "c"], several, scores, ["x", "y", "z"])
    tracker.finish()
    tables = {}
    for record in read_offline_run(tmp_path)["artifact"]:
        for entry in record.artifact.manifest.contents:
            tables[entry.path] = json.loads(Path(entry.local_path).read_text())
    event, tags = tables["predictions/event.table.json"], tables["predictions/tags.table.json"]
    assert event["columns"] == ["clip", "truth", "predicted", "score", "right"]
    rows = [[*row[:3], round(row[3], 4), row[4]] for row in event["data"]]
    assert rows == [["a", "x", "x", 0.9, True], ["b", "y", "z", 0.5, False], ["c", None, "y", 1.0, None]]
    rows = [[row[1], row[2], row[4]] for row in tags["data"]]
    assert rows == [["x, y", "x", True], ["y", "z", False], [None, "y", None]]


def test_what_never_changes_is_config_and_no_chart(tmp_path) -> None:
    tracker = Tracker(tmp_path, {}, mode="offline")
    row = {"val/audio_to_video/R@1": 0.5, "val/chance/R@1": 0.1, "val/count": 10.0}
    for step in (1, 2):
        tracker.log(row, step)
    tracker.summary({"test/event/top1": 0.5, "test/event/count": 7.0})
    tracker.finish()
    assert read_rows(tmp_path / "metrics.jsonl")[0] == {"step": 1} | row, "the file has all"
    records = read_offline_run(tmp_path)
    charts = set().union(*history(records))
    assert "val/audio_to_video/R@1" in charts and not {"val/chance/R@1", "val/count"} & charts
    assert json.loads(config_of(records)["constants"]) == {
        "val/chance/R@1": 0.1,
        "val/count": 10.0,
        "test/event/count": 7.0,
    }
    summary = {item.key for record in records["summary"] for item in record.summary.update}
    assert "test/event/top1" in summary and "test/event/count" not in summary


def config_of(records: dict[str, list]) -> dict[str, str]:
    """The last JSON value of each key of a run's config."""
    updates = [record.run.config for record in records["run"]] + [record.config for record in records.get("config", [])]
    return {item.key: item.value_json for update in updates for item in update.update}


def test_offline_run_says_how_to_send_it(tmp_path, caplog, monkeypatch) -> None:
    caplog.set_level(logging.INFO)
    tracker = Tracker(tmp_path, {}, mode="offline")
    tracker.finish()
    (line,) = [record.getMessage() for record in caplog.records if "wandb sync" in record.getMessage()]
    folder = Path(line.split("wandb sync ")[1])
    assert list(folder.glob("*.wandb")) == list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    monkeypatch.chdir(tmp_path)
    caplog.clear()
    Tracker(tmp_path, {}, mode="offline").finish()
    assert any("wandb sync wandb/offline-run-" in record.getMessage() for record in caplog.records)


def said(caplog) -> list[str]:
    ours = [record for record in caplog.records if record.name.startswith("avssl")]
    return [record.getMessage() for record in ours if record.levelno >= logging.WARNING]


def test_what_a_watch_says_is_warned_of_and_an_alert(tmp_path, caplog) -> None:
    seen = []

    def watch(row, step):
        seen.append((step, row["train/loss"]))
        return f"loss {row['train/loss']} at {step}" if row["train/loss"] > 1 else None

    first = Tracker(tmp_path, {}, mode="offline")
    first.watch(watch)
    first.log({"train/loss": 1.0}, step=1)
    first.log({"train/loss": 2.0}, step=2)
    first.log_speed({"clips_per_second": 3.0}, step=2)
    first.finish()
    assert said(caplog) == ["loss 2.0 at 2"]
    (alert,) = read_offline_run(tmp_path)["alert"]
    assert (alert.alert.text, alert.alert.level) == ("loss 2.0 at 2", "WARN")
    caplog.clear()
    resumed = Tracker(tmp_path, {}, mode="disabled", resumed=True)
    resumed.watch(watch)
    assert seen == [(1, 1.0), (2, 2.0), (1, 1.0), (2, 2.0)]
    assert said(caplog) == [], "what was said before the interruption is not said again"


def test_a_run_of_a_sweep_has_a_folder_of_its_own(monkeypatch) -> None:
    monkeypatch.delenv("WANDB_SWEEP_ID", raising=False)
    monkeypatch.setenv("WANDB_RUN_ID", "r1")
    assert sweep_folder() is None
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    assert sweep_folder() == Path("runs/sweep-s1/r1")


def test_after_a_failure_the_next_run_is_one_of_its_own(tmp_path) -> None:
    (tmp_path / "failed").mkdir()
    (tmp_path / "next").mkdir()
    failed = Tracker(tmp_path / "failed", {}, mode="offline")
    end_failed_run()
    after = Tracker(tmp_path / "next", {}, mode="offline")
    after.finish()
    end_failed_run()  # nothing is open
    assert after.run_id != failed.run_id
    assert {record.run.run_id for record in read_offline_run(tmp_path / "next")["run"]} == {after.run_id}
