"""Metrics files, and the offline W&B run read back from its file."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from offline_runs import history, read_offline_run
from PIL import Image
from scipy.io import wavfile

from avssl.tracking import Tracker, default_mode, end_failed_run, read_rows, sweep_folder


def test_offline_run_holds_what_was_logged(tmp_path) -> None:
    tracker = Tracker(tmp_path, {"optim": {"lr": 0.5}}, mode="offline", project="p", name="n", tags=["t"])
    tracker.log({"train/loss": 1.5, "train/lr": 0.1}, step=10)
    tracker.log_clips("clips", np.zeros((1, 1600), np.float32), np.zeros((1, 3, 2, 8, 8), np.uint8), 16000, ["a"])
    tracker.log_confusion("event", np.array([0, 1]), np.array([0, 0]), ["x", "y"])
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
    assert any("clips/path" in row for row in rows)
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


def test_other_processes_write_nothing(tmp_path) -> None:
    tracker = Tracker(tmp_path, {}, mode="offline", enabled=False)
    tracker.log({"train/loss": 1.0}, step=1)
    tracker.finish()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("netrc", ["", "machine api.wandb.ai login user password x"])
def test_offline_without_login_or_network(netrc, tmp_path, monkeypatch) -> None:
    # With a login but a server that does not answer, and without a login, the default is offline.
    (tmp_path / ".netrc").write_text(netrc)
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "https://localhost:1")
    monkeypatch.setattr("socket.create_connection", lambda *a, **k: (_ for _ in ()).throw(OSError("no network")))
    assert default_mode() == "offline"


def test_online_with_login_and_network(monkeypatch) -> None:
    class Connection:
        def close(self) -> None: ...

    monkeypatch.setenv("WANDB_API_KEY", "x")
    monkeypatch.setattr("socket.create_connection", lambda *a, **k: Connection())
    assert default_mode() == "online"


def test_table_of_clips_holds_sound_and_picture(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path))  # where W&B keeps files to upload
    tracker = Tracker(tmp_path, {}, mode="offline")
    sound = np.array([[0.0, 0.5, -0.5, 2.0] * 400, [0.25, 0.0, 0.0, -3.0] * 400], np.float32)
    frames = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 8, 10), dtype=np.uint8)
    tracker.log_clips("clips", sound, frames, 16000, ["a", "b"])
    tracker.finish()
    (record,) = read_offline_run(tmp_path)["artifact"]
    staged = {entry.path: Path(entry.local_path) for entry in record.artifact.manifest.contents}
    table = json.loads(staged["clips.table.json"].read_text())
    assert table["columns"] == ["clip", "audio", "frame"]
    for number, (name, audio, picture) in enumerate(table["data"]):
        assert (name, audio["caption"], audio["_type"]) == ("ab"[number], "ab"[number], "audio-file")
        rate, played = wavfile.read(staged[audio["path"]])
        assert rate == 16000
        np.testing.assert_allclose(played / 32767, sound[number].clip(-1, 1), atol=1e-4)
        shown = np.asarray(Image.open(staged[picture["path"]]))
        np.testing.assert_array_equal(shown, frames[number, :, 2].transpose(1, 2, 0))


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
