"""Reads offline W&B runs back from their files."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from wandb.proto import wandb_internal_pb2


def log_records(data: bytes) -> Iterator[bytes]:
    """Records of a LevelDB log, the format of .wandb files: blocks of 32 KiB of (crc 4, length 2, type 1, payload)."""
    assert data[:4] in (b":W&B", b"")
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
    """Records of the finished offline W&B runs under ``folder``, by kind."""
    files = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    # finish() returns before W&B's own process has written all: on a busy machine the file is empty for a moment.
    deadline = time.monotonic() + 120
    records = _read(files)
    while len(records.get("exit", [])) < len(files) and time.monotonic() < deadline:
        time.sleep(0.05)
        records = _read(files)
    return records


def _read(files: list[Path]) -> dict[str, list]:
    records: dict[str, list] = {}
    for file in files:
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
