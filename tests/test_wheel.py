"""A wheel, installed where no clone is beside it, has the commands, the recipes and the protocols of a clone."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from miniature import TREES, miniature

import avssl
from avssl.commands import COMMANDS

REPOSITORY = Path(__file__).parents[1]
# What a result.json says about the protocol, for every known name, and one result.json; the clone runs it, too.
PROTOCOLS = """
import avssl
from avssl.config import FinetuneConfig, Source, resolve, to_dict
from avssl.data.splits import open_splits

def protocols(trees, output):
    told = {}
    for name, root in trees.items():
        options = {"test_clips": 3} if name == "grid" else {}
        given = {"data": {"name": name, "root": root, "options": options, "num_workers": 0}}
        config = resolve(FinetuneConfig, [Source("test", given)])
        splits = open_splits(config.data, modalities=("audio",), labelled=True)
        told[name] = {
            "clip_protocol": str(splits.protocol), "coverage": splits.coverage, "manifest": splits.digest,
            "classes": splits.labels, "config": to_dict(config),
        }
    run = avssl.finetune(
        data={"name": "esc50", "root": trees["esc50"], "num_workers": 0}, checkpoint="none", head="linear",
        audio={"model": "mast_pico", "options": {"embed_dim": 16, "depths": [1, 1, 1, 1]}, "num_mels": 32},
        wandb={"mode": "disabled"}, output=f"{output}/run",
    )
    kept = ("clip_protocol", "coverage", "manifest", "classes")
    return told | {"run": {key: run.details[key] for key in kept}, "metrics": sorted(run.metrics)}
"""
INSTALLED = """
import json, sys
from pathlib import Path
import avssl.config, avssl.data.catalog

assert Path(avssl.__file__).is_relative_to(sys.argv[1]), avssl.__file__
trees = json.loads(sys.argv[2])
assert set(avssl.data.catalog.names()) == {*trees, "demo", "demo-sources"}
Path(sys.argv[3], "told.json").write_text(json.dumps(protocols(trees, sys.argv[3])))
"""


def run(*command: object, site: Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(site)} | variables
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder that the wheel is installed in, with what it depends on taken from this environment."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in ("avssl", "mast", "configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, source / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run(
        *pip,
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        source / "dist",
        source,
        site=site,
        cwd=source,
    )
    (wheel,) = (source / "dist").glob("*.whl")
    run(*pip, "install", "--no-deps", "--no-index", "--target", site, wheel, site=site, cwd=source)
    return site


def test_the_command_is_there(site: Path, tmp_path: Path) -> None:
    listed = run(site / "bin" / "avssl", "--help", site=site, cwd=tmp_path).stdout
    assert all(f"\n  {name} " in listed for name in COMMANDS)
    assert run(sys.executable, "-m", "avssl", "--version", site=site, cwd=tmp_path).stdout.strip() == avssl.__version__


def test_all_files_that_are_no_code_travel(site: Path) -> None:
    def files(root: Path) -> set[str]:
        kinds = (".yaml", ".html", ".cpp", ".h", ".cu", ".py")
        folders = [root / "avssl", root / "avssl" / "configs", root / "mast"]  # the second is a link in a clone
        found = (path for folder in folders for path in folder.rglob("*") if path.suffix in kinds)
        return {str(path.relative_to(root)) for path in found}

    assert files(site) == files(REPOSITORY)


def test_recipes_are_the_same(site: Path, tmp_path: Path) -> None:
    for data in ("vggsound", "audioset-20k", "my.csv"):
        command = [sys.executable, "-m", "avssl", "finetune", "--data", data, "--print_config"]
        installed = run(*command, site=site, cwd=tmp_path).stdout
        assert "clip_seconds" in installed
        assert installed == run(*command, site=REPOSITORY, cwd=tmp_path).stdout


def test_every_known_name_has_the_same_protocol(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVSSL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    trees = {name: str(miniature(name, tmp_path / "trees" / name)) for name in TREES}
    (tmp_path / "installed").mkdir()
    arguments = [site, json.dumps(trees), tmp_path / "installed"]
    run(sys.executable, "-c", PROTOCOLS + INSTALLED, *arguments, site=site, cwd=tmp_path)
    scope: dict[str, Any] = {}
    exec(PROTOCOLS, scope)
    here = json.loads(json.dumps(scope["protocols"](trees, str(tmp_path / "clone"))))
    assert json.loads((tmp_path / "installed" / "told.json").read_text()) == here
    assert (
        here["vggsound"]["clip_protocol"] == "1 clip of 10 s, as in CAV-MAE"
        and here["run"]["clip_protocol"] == "1 clip of 5 s, as in AST"
    )
    assert here["epic-sounds"]["clip_protocol"] == "5 clips of 2 s, probabilities averaged, as in EPIC-Sounds"
