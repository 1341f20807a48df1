"""Plug-ins: each part of docs/extending.md as a file outside of the tree, by the shell and by a script."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from forked_tools import ForkedTools
from scipy.io import wavfile

import avssl
from avssl import plugins
from avssl.errors import SettingsError
from mast.plugins import PluginError, import_plugin, plugin_names_of

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
FILES = {
    "objective": "cosine",
    "data set": "bird_calls",
    "audio encoder": "convnet",
    "video encoder": "patches3d",
    "evaluation": "class_mean",
    "logger": "best",
}
DATA = [
    *("--data.options", "{pretrain: 8, train_per_class: 1, test_per_class: 1}"),
    *("--data.num_workers", "0", "--data.clip_seconds", "1.0"),
]
QUICK = ["--runtime.accelerator", "cpu", "--wandb.mode", "disabled", "--optim.batch_size", "4"]
COMMAND = "import sys\nfrom avssl.commands import main\nsys.exit(main())\n"  # as pip writes the command avssl

Tool = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder outside of the tree with a file for each kind of part, and the command ``avssl``."""
    folder = tmp_path_factory.mktemp("outside")
    sections = dict(re.findall(r"^## An? (.+?)\n(.*?)(?=^## |\Z)", PAGE, flags=re.DOTALL | re.MULTILINE))
    for kind, stem in FILES.items():
        (code,) = re.findall(r"```python\n(.*?)```", sections[kind], flags=re.DOTALL)
        (folder / f"{stem}.py").write_text(code)
    (folder / "avssl_command").write_text(COMMAND)
    return folder


@pytest.fixture(scope="module")
def tool(outside: Path, forked_tools: ForkedTools, tmp_path_factory: pytest.TempPathFactory) -> Tool:
    """Runs a tool of the clone by its name, or a script by its path, in the folder of the plug-ins."""
    environment = os.environ | {"AVSSL_CACHE": str(tmp_path_factory.mktemp("cache")), "OMP_NUM_THREADS": "1"}

    def run(name: str | Path, *arguments: str, cwd: Path = outside) -> subprocess.CompletedProcess[str]:
        script = name if isinstance(name, Path) else ROOT / "tools" / f"{name}.py"
        return forked_tools.run(script, list(arguments), environment=environment, cwd=cwd)

    return run


def training(output: Path) -> list[str]:
    return [
        *("--audio.model", "convnet", "--audio.options", "{width: 16}"),
        *("--video.model", "patches3d", "--video.options", "{width: 48}"),
        *("--objectives", "[{name: cosine, power: 2}, {name: vicreg}]", "--loggers", "[{name: best, prefix: train/}]"),
        *DATA,
        *QUICK,
        *("--optim.max_steps", "2", "--output", str(output)),
    ]


@pytest.fixture(scope="module")
def run(tool: Tool, outside: Path) -> Path:
    """A pretraining by a tool with four plug-ins: one by the name of a module, the others by their files."""
    given = ["--import", "cosine", *(word for stem in ("convnet", "patches3d", "best") for word in plugin(stem))]
    done = tool("pretrain", *given, *training(outside / "run"))
    assert done.returncode == 0, done.stderr
    return outside / "run"


def plugin(stem: str) -> list[str]:
    return ["--import", f"{stem}.py"]


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def test_a_run_records_its_plugins_and_is_trained_by_them(run: Path, outside: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["imports"] == [str(outside / f"{stem}.py") for stem in ("cosine", "convnet", "patches3d", "best")]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert "train/cosine/similarity" in rows[0], sorted(rows[0])
    assert json.loads((run / "best.json").read_text())["train/loss"] == rows[0]["train/loss"]


def test_the_run_is_continued_without_naming_them(tool: Tool, run: Path) -> None:
    done = tool("pretrain", *training(run))
    assert done.returncode == 0, done.stderr
    assert len(yaml.safe_load((run / "config.yaml").read_text())["imports"]) == 4


def test_an_evaluation_by_the_installed_command(tool: Tool, run: Path, outside: Path) -> None:
    words = ["--checkpoint", str(run), *plugin("class_mean"), *DATA, "--cache", "false", "--runtime.accelerator", "cpu"]
    done = tool(outside / "avssl_command", "evaluate", *words, "--evaluations", "class_mean", "--output", "evaluated")
    assert done.returncode == 0, done.stderr
    metrics = result(outside / "evaluated")["metrics"]
    assert metrics["class_mean/event/count"] == 12 and 0 <= metrics["class_mean/event/top1"] <= 1


@pytest.fixture(scope="module")
def calls(outside: Path) -> Path:
    noise = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    for name in ("robin/ann_1", "wren/ann_2", "robin/bob_1", "robin/bob_2", "wren/bob_3", "wren/eve_1"):
        file = outside / "calls" / f"{name}.wav"
        file.parent.mkdir(parents=True, exist_ok=True)
        wavfile.write(file, 16000, noise)
    return outside / "calls"


def test_a_data_set_with_decoding_processes_and_the_encoder_of_a_run(
    tool: Tool, run: Path, calls: Path, outside: Path
) -> None:
    words = ["--data", "bird-calls", "--data.root", str(calls), "--data.num_workers", "1", "--data.clip_seconds", "1"]
    words += ["--checkpoint", str(run), "--head", "full", *QUICK, "--optim.batch_size", "2", "--optim.max_steps", "1"]
    done = tool("finetune", *plugin("bird_calls"), *words, "--output", "tuned")
    assert done.returncode == 0, done.stderr
    assert result(outside / "tuned")["coverage"]["evaluated"]["evaluated"] == 2
    imports = yaml.safe_load((outside / "tuned" / "config.yaml").read_text())["imports"]
    assert {str(outside / "bird_calls.py"), str(outside / "convnet.py")} <= set(imports)
    # The classifier's run names them: nothing is given.
    done = tool("evaluate", "--checkpoint", "tuned", "--runtime.accelerator", "cpu", "--output", "tuned-evaluated")
    assert done.returncode == 0, done.stderr
    assert result(outside / "tuned-evaluated")["metrics"].keys() >= {"species/top1"}


def test_an_exported_encoder_keeps_its_plugin_and_a_missing_one_is_named(tool: Tool, run: Path, outside: Path) -> None:
    exported = outside / "elsewhere"
    shutil.copytree(run / "audio_encoder", exported)
    words = ["--checkpoint", str(exported), "--data", "demo", *DATA, "--runtime.accelerator", "cpu"]
    done = tool("embed", *words, "--output", "features.npz")
    assert done.returncode == 0, done.stderr
    file = outside / "convnet.py"
    file.rename(outside / "moved.py")
    try:
        done = tool("embed", *words, "--output", "again.npz")
        assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("error: ")
        assert f"plug-in {file}: there is no such file" in done.stderr and "Traceback" not in done.stderr
        done = tool("embed", *words, "--output", "again.npz", "--import", "moved.py")
        assert done.returncode == 0, done.stderr
    finally:
        (outside / "moved.py").rename(file)


SCRIPT = """
import avssl, cosine, best  # files beside the script

if __name__ == "__main__":
    data = {"name": "demo", "options": {"pretrain": 8, "train_per_class": 1, "test_per_class": 1}}
    run = avssl.pretrain(
        imports=["patches3d.py"],
        data=data | {"num_workers": 1, "clip_seconds": 1.0},
        audio={"options": {"embed_dim": 8, "depths": [1, 1, 1, 1]}},
        video={"model": "patches3d"},
        objectives=[{"name": "cosine"}, {"name": "vicreg"}],
        loggers=[{"name": "best"}],
        optim={"max_steps": 1, "batch_size": 4},
        runtime={"accelerator": "cpu"},
        wandb={"mode": "disabled"},
        output="of-script",
    )
    assert run.finished
"""


def test_a_script_imports_them_as_modules(tool: Tool, outside: Path) -> None:
    (outside / "script.py").write_text(SCRIPT)
    done = tool(outside / "script.py")
    assert done.returncode == 0, done.stderr
    imports = yaml.safe_load((outside / "of-script" / "config.yaml").read_text())["imports"]
    assert set(imports) == {str(outside / f"{stem}.py") for stem in ("cosine", "best", "patches3d")}


def test_an_installed_package_is_known_by_its_entry_point(tmp_path: Path, outside: Path) -> None:
    shutil.copy(outside / "cosine.py", tmp_path / "installed_cosine.py")
    info = tmp_path / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[avssl.plugins]\nmine = installed_cosine\nbroken = no_such_module\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "avssl", "pretrain", "--list-objectives"],
        env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "cosine" in [line.split()[0] for line in done.stdout.splitlines()]
    assert "the installed plug-in broken (no_such_module) cannot be imported" in done.stderr


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nothing.py", "plug-in nothing.py: there is no such file"),
        ("no_such_module", "there is no module no_such_module: install it, or give the path of its file"),
        ("needs.py", "plug-in needs.py: it needs the module some_missing_package, which is not installed"),
        ("json.py", "Python has another module json"),
    ],
)
def test_what_cannot_be_imported_is_named(name: str, told: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "needs.py").write_text("import some_missing_package\n")
    (tmp_path / "json.py").write_text("")
    with pytest.raises(PluginError, match=re.escape(told)):
        import_plugin(name)
    with pytest.raises(SettingsError, match=re.escape(told)):
        plugins.load([name])
    with pytest.raises(SettingsError, match=re.escape(told)):
        avssl.pretrain(imports=[name])
    from avssl.commands import main

    assert main(["pretrain", "--import", name]) == 2 and told in capsys.readouterr().err
    assert main(["prepare", "--data", "demo", f"--import={name}"]) == 2 and told in capsys.readouterr().err


def test_an_unknown_name_tells_of_recorded_plugins_that_are_gone(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(plugins, "wanted", {})
    monkeypatch.setattr(plugins, "registering_modules", [])
    registry: plugins.Registry[int] = plugins.Registry("part", "part")
    registry.add("known", 1, test_an_unknown_name_tells_of_recorded_plugins_that_are_gone)
    (tmp_path / "config.yaml").write_text("imports: [/gone/mine.py]\n")
    plugins.want_of(tmp_path / "checkpoints" / "last.ckpt")
    assert registry.get("known") == 1 and registry.names() == ["known"]
    with pytest.raises(
        ValueError, match=r"no part 'knwon' \(did you mean 'known'\?\); there are known; .*/gone/mine.py"
    ):
        registry.get("knwon")


def test_a_package_in_a_folder_is_found_again_by_its_place(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "parts_of_mine").mkdir()
    (tmp_path / "parts_of_mine" / "__init__.py").write_text("")
    (tmp_path / "parts_of_mine" / "inner.py").write_text("")
    import_plugin(str(tmp_path / "parts_of_mine"))
    import_plugin("parts_of_mine.inner")
    place = str(tmp_path / "parts_of_mine")
    assert plugin_names_of("parts_of_mine") == [place] and plugin_names_of("parts_of_mine.inner") == [
        place,
        "parts_of_mine.inner",
    ]
    assert plugin_names_of("yaml") == ["yaml"] and plugin_names_of("json.decoder") == ["json.decoder"]
