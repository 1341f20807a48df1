"""Processes of scans, loaders and the demo set do not run the user's script again."""

import subprocess
import sys
from pathlib import Path

import pytest
from loading_samples import write_ramp_wav

# Without a guard `if __name__ == "__main__"`, as most scripts are written; it notes each time that it is run.
SCRIPT = """
from pathlib import Path

folder = Path(__file__).parent
with (folder / "runs.txt").open("a") as file:
    file.write("run, ")

from avssl.data.catalog import open_data
from avssl.data.clips import ClipDataset
from avssl.data.demo import build
from avssl.data.loader import make_eval_loader
from avssl.data.media.pool import probe_all

files = [str(path) for path in sorted((folder / "media").glob("*.wav"))]
infos = list(probe_all(files, workers=1, timeout=120))
assert sorted(info.path for info in infos) == files and not any(info.error for info in infos), infos

manifest = open_data(str(folder / "media"))
dataset = ClipDataset(manifest, modalities=["audio"], clip_seconds=0.5, mode="center")
for epoch in range(2):
    batches = list(make_eval_loader(dataset, 2, num_workers=1, timeout=120))
    assert [len(batch) for batch in batches] == [2, 1], batches

build.IN_PROCESS = 0
build.build_demo(folder / "demo", pretrain=2, train_per_class=0, test_per_class=0, workers=2)
assert len(list((folder / "demo").rglob("*.mp4"))) == 2
print("done")
"""
OWN_FUNCTION = """
from avssl.data.media.pool import run_all

def mine(job):
    return job

list(run_all(mine, ["a"], lambda job, reason: reason, workers=1))
"""
OWN_DATASET = """
from avssl.data.clips import ClipDataset
from avssl.data.loader import make_eval_loader
from avssl.data.manifest import Manifest

class Mine(ClipDataset):
    pass

rows = Manifest.from_rows([{"clip_id": "a", "path": "a.wav"}], ".")
make_eval_loader(Mine(rows, clip_seconds=1.0, mode="center"), 1, num_workers=1)
"""


def run_script(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> subprocess.CompletedProcess[str]:
    monkeypatch.setenv("AVSSL_CACHE", str(folder / "cache"))
    (folder / "script.py").write_text(text)
    return subprocess.run([sys.executable, str(folder / "script.py")], capture_output=True, text=True, timeout=250)


def test_a_script_without_a_guard_is_run_once(tmp_path, monkeypatch) -> None:
    for name in "abc":
        write_ramp_wav(tmp_path / "media" / f"{name}.wav", 1.0)
    done = run_script(SCRIPT, tmp_path, monkeypatch)
    assert done.returncode == 0 and done.stdout == "done\n", done.stderr
    assert (tmp_path / "runs.txt").read_text() == "run, "


@pytest.mark.parametrize(
    ("script", "told"),
    [
        (OWN_FUNCTION, "must be importable, not defined in the script"),
        (OWN_DATASET, "Mine is defined in the script that is run"),
    ],
)
def test_work_that_only_the_script_has_fails_at_once_and_says_why(
    script: str, told: str, tmp_path, monkeypatch
) -> None:
    done = run_script(script, tmp_path, monkeypatch)
    assert done.returncode == 1 and told in done.stderr
