"""Metrics files, and the offline W&B run read back from its file."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from wandb.proto import wandb_internal_pb2

from avssl.tracking import Tracker, default_mode, read_rows


def log_records(data: bytes) -> Iterator[bytes]:
    """Records of a LevelDB log, the format of .wandb files: blocks of 32 KiB of (crc 4, length 2, type 1, payload)."""
    assert data[:4] == b":W&B"
    position, parts = 7, b""
    while position + 7 <= len(data):
        room = 32768 - position % 32768
        if room < 7:
            position += room
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield parts
            parts = b""


def read_offline_run(folder: Path) -> dict[str, list]:
    """Records of the offline W&B files under ``folder``, by kind."""
    records: dict[str, list] = {}
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for payload in log_records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(payload)
            records.setdefault(record.WhichOneof("record_type"), []).append(record)
    return records


def history(records: dict[str, list]) -> list[dict]:
    rows = []
    for record in records.get("history", []):
        items = record.history.item
        rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return rows


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
