"""Scans that continue: killed in the middle, the journal torn, a file changed, other settings."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from loading_samples import write_ramp_wav

from avssl.commands.prepare import PrepareOptions, prepare
from avssl.data import scan as scan_module
from avssl.data.journal import Journal, file_key
from avssl.data.manifest import Manifest
from avssl.data.media.pool import probe_all
from avssl.data.scan import scan, scan_rules

TOOL = Path(__file__).resolve().parents[3] / "tools" / "prepare.py"
FILES = 800


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVSSL_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Records which paths a scan in this process opens."""
    seen: list[str] = []

    def recording(paths, **options):
        seen.extend(paths := list(paths))
        return probe_all(paths, **options)

    monkeypatch.setattr(scan_module, "probe_all", recording)
    return seen


def test_a_killed_run_continues(tmp_path: Path, probed: list[str]) -> None:
    first = write_ramp_wav(tmp_path / "media" / "0.wav", 0.5)
    for k in range(1, FILES):
        os.link(first, first.with_name(f"{k}.wav"))
    output = tmp_path / "out.parquet"
    journal = output.with_name(".out.parquet.scan")
    command = [sys.executable, str(TOOL), "--data", str(tmp_path / "media"), "--output", str(output), "--workers", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (journal.exists() and journal.stat().st_size > 10_000) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = journal.read_text().count("\n") - 1
    assert 0 < kept < FILES and not output.exists()

    options = PrepareOptions(str(tmp_path / "media"), output, workers=0)
    report = prepare(options, lambda line: None)
    assert len(probed) == FILES - kept and not journal.exists()
    assert report["clips"] == report["usable"]["audio"] == FILES
    probed.clear()
    assert prepare(options, lambda line: None)["digest"] == report["digest"]
    assert len(probed) == FILES, "a finished scan leaves nothing behind"


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    for k in range(3):
        write_ramp_wav(tmp_path / f"{k}.wav", 0.5 + k)
    rows = [{"clip_id": str(k), "path": f"{k}.wav"} for k in range(3)]
    return Manifest.from_rows([*rows, {"clip_id": "gone", "path": "gone.wav"}], tmp_path)


def interrupted(manifest: Manifest, path: Path, deep: bool | None = None) -> None:
    """Leaves the journal that a scan writes, as if it had been killed before its end."""
    with Journal(path, scan_rules(deep)) as journal:
        scan_module.scan_files(manifest, 0, False, deep, journal)


def test_what_is_known_is_not_read_again(manifest: Manifest, tmp_path: Path, probed: list[str]) -> None:
    whole = scan(manifest, workers=0)
    interrupted(manifest, tmp_path / "journal")
    (manifest.root / "1.wav").write_bytes((manifest.root / "2.wav").read_bytes())
    probed.clear()
    result = scan(manifest, workers=0, journal=tmp_path / "journal")
    assert [Path(path).name for path in probed] == ["1.wav", "gone.wav"], "the changed one and the missing one"
    assert result.column("duration")[1] == whole.column("duration")[2]
    assert result.select(mask=[True, False, True, True]).digest == whole.select(mask=[True, False, True, True]).digest
    assert not (tmp_path / "journal").exists()


@pytest.mark.parametrize("cut", [1, 20])
def test_a_torn_line_costs_one_file(manifest: Manifest, tmp_path: Path, probed: list[str], cut: int) -> None:
    whole = scan(manifest, workers=0).digest
    journal = tmp_path / "journal"
    interrupted(manifest, journal)
    journal.write_bytes(journal.read_bytes()[:-cut])
    for missing in (["2.wav", "gone.wav"] if cut > 1 else ["gone.wav"], ["gone.wav"]):
        probed.clear()
        with Journal(journal, scan_rules(None)) as kept:
            facts = scan_module.scan_files(manifest, 0, False, None, kept)
        assert [Path(path).name for path in probed] == missing
        assert scan_module.fill(manifest, facts).digest == whole


def test_a_flipped_bit_in_a_journal_costs_its_line(tmp_path: Path) -> None:
    results = {f"file {k}": [0.5 + k, "", True, None] for k in range(5)}
    path = tmp_path / "journal"
    with Journal(path, "1") as journal:
        for key, result in results.items():
            journal.add(key, result)
    whole = path.read_bytes()
    lost = 0
    for bit in np.random.default_rng(5).integers(8 * len(whole), size=200).tolist():
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        with Journal(path, "1") as journal:
            found = {key: journal.take(key) for key in results}
            assert len(journal) == 0, "no result of another name"
        lost += list(found.values()).count(None)
        assert all(value in (None, results[key]) for key, value in found.items())
    assert lost >= 200


def test_other_settings_or_other_files_start_over(manifest: Manifest, tmp_path: Path, probed: list[str]) -> None:
    for content in (None, "no journal at all\n", "", json.dumps({"version": "scan 0"}) + "\n"):
        journal = tmp_path / "journal"
        if content is None:
            interrupted(manifest, journal, deep=True)
        else:
            journal.write_text(content)
        probed.clear()
        scan(manifest, workers=0, journal=journal)
        assert len(probed) == 4


def test_without_a_file_nothing_is_kept(tmp_path: Path) -> None:
    with Journal(None, "x") as journal:
        journal.add("key", [1])
        assert journal.take("key") is None and len(journal) == 0
        journal.remove()
    assert file_key("probe", tmp_path / "gone") is None
