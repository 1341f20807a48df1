"""Credentials in URLs are used, and shown nowhere."""

import sys
from argparse import Namespace
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import wandb
from lightning_fabric import Fabric

from avssl.commands import main
from avssl.config import (
    CacheConfig,
    DataConfig,
    EmbedDataConfig,
    ExportDataConfig,
    FinetuneConfig,
    SourceConfig,
    WandbConfig,
    to_dict,
    to_yaml,
)
from avssl.config.resolution import pretraining_folder
from avssl.data import processes
from avssl.data.catalog import find_entry
from avssl.data.media import MediaError
from avssl.data.processes import server
from avssl.evaluation.result import write_result
from avssl.limits import Limits
from avssl.saved_runs import TrainingSettings
from avssl.tracking import Tracker
from avssl.training.run import Run, next_command
from avssl.urls import hidden, hide_credentials, keep_back, reveal

URL, SHOWN = "s3://key:SECRET/x@bucket/clips?token=SECRET", "s3://bucket/clips"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://user:pw@bucket/x", "s3://bucket/x"),
        ("https://token@host:8080/x?a=1&sig=2", "https://host:8080/x"),
        ("s3://key:a/b+c@bucket/x", "s3://bucket/x"),
        ("ftp://u:p@ss@host/x", "ftp://host/x"),
        ("simplecache::s3://user:pw@bucket/x", "simplecache::s3://bucket/x"),
        ("no 's3://u:p@b/x?t=1', 'gs://u:p@c/y'; see a@b?", "no 's3://b/x', 'gs://c/y'; see a@b?"),
        ('{"at": "s3://u:p@b/x", "of": "y@z"}', '{"at": "s3://b/x", "of": "y@z"}'),
        *[(same, same) for same in ("http://host:80/x@y", "s3://bucket/a@b/c", "a@b?c", "memory://x", "clips/a:b@c")],
    ],
)
def test_only_credentials_are_left_out(text: str, shown: str) -> None:
    assert hide_credentials(text) == shown


def test_the_whole_url_is_given_back() -> None:
    value = {"location": URL, "more": ["x", URL], "fold": 1}
    kept = keep_back(value)
    assert kept == hidden(value) == {"location": SHOWN, "more": ["x", SHOWN], "fold": 1} and reveal(kept) == value


def test_decoding_processes_are_given_the_whole_url() -> None:
    with ProcessPoolExecutor(1, mp_context=server()) as pool:
        assert pool.submit(reveal, "gs://late/x").result() == "gs://late/x"
    keep_back("gs://u:p@late/x")  # the server has started before
    with ProcessPoolExecutor(1, mp_context=server()) as pool:
        assert pool.submit(reveal, "gs://late/x").result() == "gs://u:p@late/x"


@pytest.mark.parametrize("kind", [DataConfig, SourceConfig, EmbedDataConfig, ExportDataConfig])
def test_settings_do_not_hold_them(kind: type) -> None:
    for config in (kind(name=URL), kind(options={"location": URL}), replace(kind(), name=URL)):
        assert "SECRET" not in repr(config) + to_yaml(config) and SHOWN in to_yaml(config)
    assert "SECRET" not in repr(CacheConfig(URL)) and reveal(CacheConfig(URL).output) == URL
    assert pretraining_folder("https://h/x?token=SECRET") == Path("runs/pretrain-x")
    assert SHOWN in (line := next_command("evaluate", Path("run"), DataConfig(URL))) and "SECRET" not in line


@pytest.fixture
def config(tmp_path: Path) -> FinetuneConfig:
    return FinetuneConfig(data=DataConfig(URL), output=tmp_path / "run", wandb=WandbConfig(mode="disabled"))


def test_a_run_goes_on_with_another_password_or_one_of_the_environment(config: FinetuneConfig) -> None:
    def open_run(config: FinetuneConfig) -> Run:
        return Run(config, Path(str(config.output)), Fabric(accelerator="cpu", devices=1), config.wandb, "finetune")

    settings = {"kind": "test", "global_batch": config.optim.batch_size, "config": to_dict(config)}
    state = {"progress": {"step": 3}, "settings": settings, "wandb_id": None, "sharded": False}
    with open_run(config) as run:
        run.tracker.log({"train/loss": 1.0}, 3)
        run.store.save("last.ckpt", state)
    assert_kept(run.folder)
    for name in ("s3://key:other@bucket/clips", SHOWN):
        assert open_run(replace(config, data=DataConfig(name))).step == 3
    file = run.folder / "config.yaml"
    file.write_text(file.read_text().replace(SHOWN, URL))  # as earlier versions wrote it
    assert open_run(config).step == 3
    with pytest.raises(ValueError, match=r"data\.name = 's3://bucket/clips', not 's3://bucket/others'"):
        open_run(replace(config, data=DataConfig("s3://key:SECRET@bucket/others")))
    assert TrainingSettings(data=SHOWN).trained_on(URL) and not TrainingSettings(data=SHOWN).trained_on(
        "s3://bucket/others"
    )


def test_wandb_is_told_neither_the_settings_nor_the_command_line_with_them(config, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["avssl", "finetune", "--data", URL])
    wandb.teardown()  # W&B reads the command line once
    folder = tmp_path / "run"
    folder.mkdir()
    Tracker(folder, to_dict(config), mode="offline", tensorboard=True).finish()
    wandb.teardown()
    assert list(folder.rglob("*.wandb")) and sys.argv[-1] == URL
    assert_kept(folder)


def test_commands_do_not_print_them(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["finetune", "--data", "nosuch://key:SECRET@bucket/clips?token=SECRET", "--checkpoint", "none"]
    assert main([*arguments, "--runtime.accelerator", "cpu"]) == 1
    with pytest.raises(SystemExit):
        main([*arguments, "--data.options", URL])
    told = capsys.readouterr()
    assert "nosuch://bucket/clips" in told.err and "SECRET" not in told.out + told.err
    with pytest.raises(Exception, match="nosuch://bucket/clips"):
        find_entry("nosuch://key:SECRET@bucket/clips")


@pytest.mark.parametrize("debug", [False, True])
def test_the_traceback_of_a_defect_does_not_show_them(monkeypatch, capsys, debug: bool) -> None:
    def run(arguments: Namespace) -> int:
        try:
            raise OSError(f"GET {URL}")
        except OSError as error:
            raise (ValueError if debug else TypeError)(f"a defect at {URL}") from error

    monkeypatch.setattr("avssl.commands.predict.run", run)
    monkeypatch.setenv("AVSSL_DEBUG", "1" if debug else "")
    assert main(["predict", "x.wav", "--checkpoint", "y"]) == 1
    told = capsys.readouterr().err
    assert "Traceback" in told and f"GET {SHOWN}" in told and f"a defect at {SHOWN}" in told and "SECRET" not in told


def test_nor_does_that_of_a_decoding_process(monkeypatch, capsys) -> None:
    process = server().Process(target=int, args=(URL,))
    process.urls, process.limits, process.plugins = {}, Limits(), []  # type: ignore[attr-defined]
    monkeypatch.setattr(processes, "end_with_parent", lambda: None)
    with pytest.raises(SystemExit, match="1"):
        process.run()  # in this process
    told = capsys.readouterr().err
    assert "Traceback" in told and f"ValueError: invalid literal for int() with base 10: '{SHOWN}'" in told


def test_nor_do_results_and_failures(tmp_path: Path) -> None:
    write_result(tmp_path / "result.json", {"failed": [{"error": f"GET {URL}"}]})
    assert_kept(tmp_path)
    assert "SECRET" not in str(MediaError("a.wav", "unreadable file", f"GET {URL}"))


def assert_kept(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files and not [path for path in files if b"SECRET" in path.read_bytes()]
