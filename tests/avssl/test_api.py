"""avssl.pretrain() and the others: the settings, recipes and errors of the shell, and a typed result."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

import avssl
from avssl.cli import parse
from avssl.config import EvaluateConfig, FinetuneConfig, PretrainConfig, Source, resolve, to_dict
from avssl.data.failures import DataError
from avssl.errors import SettingsError

CLIPS = {"pretrain": 8, "train_per_class": 1, "test_per_class": 1}
DATA = {"name": "demo", "options": CLIPS, "num_workers": 0, "clip_seconds": 1.0}
AUDIO = {"model": "mast_pico", "options": {"embed_dim": 16, "depths": [1, 1, 1, 1]}}
QUICK = {"runtime": {"accelerator": "cpu"}, "wandb": {"mode": "disabled"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("api")


@pytest.fixture(scope="module", autouse=True)
def cache(folder: Path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AVSSL_CACHE", str(folder / "cache"))
        yield


@pytest.fixture(scope="module")
def pretrained(folder: Path) -> avssl.Result:
    optim = {"max_steps": 2, "batch_size": 4}
    return avssl.pretrain(data=DATA, audio=AUDIO, optim=optim, output=folder / "pretrained", **QUICK)


@pytest.fixture(scope="module")
def tuned(folder: Path, pretrained: avssl.Result) -> avssl.Result:
    return avssl.finetune(data=DATA, checkpoint=pretrained.checkpoint, output=folder / "tuned", **QUICK)


def test_pretraining_returns_numbers_and_paths(pretrained: avssl.Result, folder: Path) -> None:
    assert pretrained.finished and pretrained.folder == pretrained.checkpoint == folder / "pretrained"
    saved = json.loads((folder / "pretrained" / "result.json").read_text())
    assert pretrained.metrics == saved["metrics"] and 0 <= pretrained.metrics["audio_to_video/R@1"] <= 1
    assert pretrained.report is not None and pretrained.report.is_file()
    assert saved["clip_protocol"] == pretrained.details["clip_protocol"]


def test_the_checkpoint_of_a_result_is_what_the_next_call_takes(pretrained: avssl.Result, tuned: avssl.Result) -> None:
    config = yaml.safe_load((tuned.folder / "config.yaml").read_text())
    assert config["checkpoint"] == str(pretrained.checkpoint)
    assert 0 <= tuned.metrics["event/top1"] <= 1
    evaluated = avssl.evaluate(data=DATA, checkpoint=tuned.checkpoint, evaluations=["accuracy"], cache=False)
    assert evaluated.metrics["event/top1"] == pytest.approx(tuned.metrics["event/top1"])
    assert evaluated.checkpoint == tuned.folder and evaluated.folder.parent == tuned.folder
    assert evaluated.report == evaluated.folder / "report.html"


def test_media_are_embedded_and_classified(tuned: avssl.Result, folder: Path) -> None:
    media = sorted((folder / "cache").rglob("test/*.mp4"))[:2]
    (folder / "own").mkdir()
    for file in media:
        (folder / "own" / file.name).write_bytes(file.read_bytes())
    (folder / "own" / "broken.mp4").write_bytes(b"no media" * 50)
    output = folder / "features.parquet"
    data = {"name": folder / "own", "num_workers": 0}
    embedded = avssl.embed(checkpoint=str(tuned.checkpoint), data=data, output=output, windows="all")
    assert embedded.file == output and pq.read_table(output).num_rows == embedded.embedded == 6
    assert sum(embedded.left_out.values()) == 1

    files = [folder / "own" / "broken.mp4", *sorted((folder / "own").glob("[0-9]*.mp4"))]
    found = avssl.predict(files, tuned.checkpoint, device="cpu")
    assert list(found.files) == list(map(str, files)) and list(found.failed) == [str(files[0])]
    assert found.files[str(files[0])] == []
    for file in files[1:]:
        first, second = found.files[str(file)][:2]
        assert (first.start, first.end, second.start) == (0.0, 1.0, 1.0)
        assert first.scores["event"].shape == (len(found.labels["event"]),)
        assert np.isclose(first.scores["event"].sum(), 1.0)
    assert list(avssl.predict(str(files[1]), tuned.folder).files) == [str(files[1])]


@pytest.mark.parametrize(
    ("settings", "argv"),
    [
        ({"data": "esc50"}, ["--data", "esc50"]),
        ({"data": {"name": "esc50", "root": Path("a/b")}}, ["--data", "esc50", "--data.root", "a/b"]),
        ({"audio": {"model": "ast_base"}}, ["--audio.model", "ast_base"]),
        ({"audio.options": {"drop_path": 0.2}}, ["--audio.options", "{drop_path: 0.2}"]),
        ({"audio": {"options": {"drop_path": 0.2}}}, ["--audio.options.drop_path", "0.2"]),
        ({"optim": {"epochs": 3, "betas": (0.8, 0.9)}}, ["--optim.epochs", "3", "--optim.betas", "[0.8, 0.9]"]),
        ({"optim.max_steps": None, "head": "full"}, ["--optim.max_steps", "null", "--head", "full"]),
    ],
)
def test_settings_mean_what_they_mean_in_the_shell(settings: dict, argv: list[str], monkeypatch) -> None:
    read: list[FinetuneConfig] = []
    monkeypatch.setattr("avssl.commands.finetune.finetune", lambda config: read.append(config) or {"folder": "."})
    avssl.finetune(**settings)
    assert to_dict(read[0]) == to_dict(parse(FinetuneConfig, argv))


def test_recipes_and_config_objects_are_taken(monkeypatch, tmp_path) -> None:
    read: list[PretrainConfig] = []
    monkeypatch.setattr("avssl.commands.pretrain.pretrain", lambda config: read.append(config) or {"folder": "."})
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("optim: {lr: 0.25, epochs: 7}\n")
    avssl.pretrain(recipe, optim={"epochs": 2})
    assert (read[0].optim.lr, read[0].optim.epochs) == (0.25, 2)
    config = PretrainConfig(seed=5)
    avssl.pretrain(config)
    assert read[1] is config
    with pytest.raises(SettingsError, match="seed: set it in the config"):
        avssl.pretrain(config, seed=3)
    with pytest.raises(SettingsError, match="config: must be a PretrainConfig or recipes, got a EvaluateConfig"):
        avssl.pretrain(EvaluateConfig(checkpoint="x"))


@pytest.mark.parametrize(
    ("settings", "error", "told"),
    [
        ({"optim": {"lrr": 1}}, SettingsError, "optim.lrr.*optim.lr"),
        ({"optim.lr": "fast"}, SettingsError, "optim.lr"),
        ({"data": "esc5"}, DataError, "esc50"),
        ({"data": "esc50", "checkpoint": "nowhere"}, FileNotFoundError, "nowhere"),
    ],
)
def test_errors_are_exceptions_of_one_line(settings: dict, error: type[Exception], told: str, tmp_path) -> None:
    with pytest.raises(error, match=told) as raised:
        avssl.finetune(output=tmp_path / "run", **settings, **QUICK)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_the_page_s_python_runs(pretrained: avssl.Result, folder: Path, tmp_path, monkeypatch, capsys) -> None:
    """On the demo's clips in the place of the page's, and for a few steps."""
    page = (Path(__file__).parents[2] / "docs" / "tutorial.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    (tmp_path / "videos").mkdir()
    for file in sorted((folder / "cache").rglob("pretrain/*.mp4")):
        (tmp_path / "videos" / file.name).symlink_to(file)
    (tmp_path / "recording.wav").symlink_to(next((folder / "cache").rglob("test/*.mp4")))
    code = code.replace("/path/to/videos", "videos").replace("sound", "event")
    code = code.replace('{"name": "esc50", "root": "/path/to/ESC-50"}', repr(DATA))
    few: dict[str, dict] = {"optim": {"max_steps": 1, "batch_size": 4}, "log": {"validate_every": 0}}
    shorter = {
        PretrainConfig: few | QUICK | {"audio": AUDIO, "data": {"num_workers": 0}},
        FinetuneConfig: few | QUICK,
    }

    def short(config_class: type, given: list, files: list) -> object:
        return resolve(config_class, [*given, Source("test", shorter.get(config_class, {}))], files)

    monkeypatch.setattr("avssl.api.resolve", short)
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    exec(compile(code, "docs/tutorial.md", "exec"), scope)
    assert scope["again"].metrics["event/top1"] == pytest.approx(scope["tuned"].metrics["event/top1"])
    assert Path("features.parquet").is_file() and "0.0 s: " in capsys.readouterr().out


def test_the_api_is_found_without_being_imported() -> None:
    code = "import sys, avssl; assert 'pretrain' in dir(avssl); assert 'avssl.api' not in sys.modules; avssl.Result"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'pretrian'"):
        avssl.pretrian  # noqa: B018
