"""Which mode and names a W&B run gets, and that it goes on offline where the server refuses it."""

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import wandb
from offline_runs import read_offline_run

from avssl.tracking import LoggedRun, Tracker, check_tracking, read_rows, wandb_run
from avssl.tracking.wandb_run import choose_mode

KEY = "a" * 40


@pytest.fixture(autouse=True)
def nothing_said(tmp_path, monkeypatch) -> None:
    """No W&B variable, no login and no settings of the user or the folder."""
    for name in ("MODE", "DISABLED", "API_KEY", "PROJECT", "BASE_URL", "ENTITY", "NAME", "NOTES", "TAGS", "DIR"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    monkeypatch.delenv("WANDB_RUN_GROUP", raising=False)
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    wandb.teardown()  # W&B reads its environment once
    yield
    wandb.teardown()


@pytest.fixture
def server() -> Iterator[Callable[[int], str]]:
    """Starts a local server that answers every request with one status; its address."""
    started = []

    def start(status: int) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                body = json.dumps({"errors": [{"message": "invalid API key"}]}).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_HEAD = do_POST

            def log_message(self, *_: object) -> None: ...

        started.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=started[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{started[-1].server_port}"

    yield start
    for found in started:
        found.shutdown()
        found.server_close()


@pytest.mark.parametrize(
    ("setting", "variables", "mode"),
    [
        (None, {"WANDB_MODE": "disabled"}, "disabled"),
        (None, {"WANDB_MODE": "online"}, "online"),
        (None, {"WANDB_MODE": "dryrun"}, "offline"),
        (None, {"WANDB_DISABLED": "true"}, "disabled"),
        (None, {"WANDB_DISABLED": "true", "WANDB_MODE": "online"}, "disabled"),
        (None, {"WANDB_DISABLED": "false"}, "offline"),
        ("offline", {"WANDB_MODE": "disabled"}, "offline"),
        ("online", {"WANDB_DISABLED": "1"}, "online"),
        (None, {}, "offline"),
    ],
)
def test_settings_win_over_the_environment_and_that_over_the_default(setting, variables, mode, monkeypatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert choose_mode(setting) == mode


def test_what_wandb_offline_said_here_counts(tmp_path, monkeypatch) -> None:
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "settings").write_text("[default]\nmode = disabled\n")
    assert choose_mode() == "disabled"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert choose_mode() == "offline"


def test_an_unknown_mode_is_an_error_before_anything_is_written(monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "onlin")
    with pytest.raises(ValueError, match="WANDB_MODE: must be online, offline, disabled, got 'onlin'"):
        check_tracking(None, tensorboard=False)
    check_tracking("offline", tensorboard=False)


@pytest.mark.parametrize("status", [200, 404])
def test_online_with_a_login_and_a_server_on_any_port(status, server, monkeypatch, tmp_path) -> None:
    url = server(status)
    monkeypatch.setenv("WANDB_BASE_URL", url)
    assert choose_mode() == "offline", "without a login"
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert choose_mode() == "online"
    monkeypatch.delenv("WANDB_API_KEY")
    for machine in (url.removeprefix("http://"), "127.0.0.1"):
        (tmp_path / "logins").write_text(f"machine {machine} login user password {KEY}\n")
        (tmp_path / "logins").chmod(0o600)
        monkeypatch.setenv("NETRC", str(tmp_path / "logins"))
        assert choose_mode() == "online"


def test_offline_where_no_server_answers(server, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert choose_mode() == "offline"


@pytest.mark.parametrize("status", [401, 500])
def test_a_refused_run_goes_on_offline_with_one_warning(status, server, monkeypatch, tmp_path, caplog) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", server(status))
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "1")
    folder = tmp_path / "run"
    folder.mkdir()
    tracker = Tracker(folder, {"seed": 3})
    tracker.log({"train/loss": 1.5}, step=1)
    tracker.finish()
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith("W&B refuses the run (") and warning.endswith("): it goes on offline")
    records = read_offline_run(folder)
    assert len(records["run"]) == 1 and records["history"]


def started(folder: Path, **settings: object) -> object:
    """The record of an offline run with these settings."""
    folder.mkdir()
    Tracker(folder, {}, mode="offline", job_type="pretrain", **settings).finish()  # type: ignore[arg-type]
    return read_offline_run(folder)["run"][0].run


def test_names_are_settings_then_environment_then_defaults(tmp_path, monkeypatch) -> None:
    run = started(tmp_path / "plain")
    assert (run.project, run.display_name, run.run_group, run.notes) == ("avssl", "plain", "", "")
    assert (list(run.tags), run.job_type) == ([], "pretrain")
    wandb.teardown()
    said = {"PROJECT": "p", "NAME": "n", "RUN_GROUP": "g", "NOTES": "why", "TAGS": "a,b", "JOB_TYPE": "j"}
    for name, value in said.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    run = started(tmp_path / "environment")
    assert (run.project, run.display_name, run.run_group, run.notes) == ("p", "n", "g", "why")
    assert (sorted(run.tags), run.job_type) == (["a", "b"], "j")
    run = started(tmp_path / "settings", project="P", name="N", group="G", notes="because", tags=["c"])
    assert (run.project, run.display_name, run.run_group, run.notes) == ("P", "N", "G", "because")
    assert list(run.tags) == ["c"]


def test_what_not_even_an_offline_run_takes_is_one_clear_line(tmp_path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(ValueError, match=r"^wandb: .*project.*--wandb.mode disabled does without"):
        wandb_run.WandbRun(LoggedRun(tmp_path / "run", {}), mode="offline", project="a/b")


def test_no_message_has_the_credentials_of_a_url(tmp_path, monkeypatch, caplog) -> None:
    (tmp_path / "run").mkdir()
    url = "s3://key:geheim@bucket/videos?token=geheim"
    run = wandb_run.WandbRun(LoggedRun(tmp_path / "run", {"data": url}), mode="offline", notes=f"of {url}", tags=["t"])
    sent: list[str] = []
    monkeypatch.setattr(run.run, "alert", lambda *told, level: sent.extend(told))
    run.alert(f"collapse in {url}", f"of {url}")
    assert sent == ["collapse in s3://bucket/videos", "of s3://bucket/videos"]

    def refuse(*_: object) -> None:
        raise wandb.Error(f"cannot reach {url}")

    monkeypatch.setattr(run.run, "log", refuse)
    run.log({"train/loss": 1.0}, 1)
    assert caplog.messages[-1] == "W&B did not take the metrics: cannot reach s3://bucket/videos"
    run.finish()
    assert read_offline_run(tmp_path / "run")["run"][0].run.notes == "of s3://bucket/videos"


def test_a_run_outlives_wandb(tmp_path, monkeypatch, caplog) -> None:
    (tmp_path / "run").mkdir()
    tracker = Tracker(tmp_path / "run", {}, mode="offline")

    def refuse(*_: object, **__: object) -> None:
        raise wandb.Error("the service is gone")

    assert tracker.wandb is not None
    with monkeypatch.context() as patch:
        for name in ("log", "alert"):
            patch.setattr(tracker.wandb.run, name, refuse)
        for step in range(3):
            tracker.log({"train/loss": 1.0}, step)
        tracker.wandb.log_predictions("x", ["a"], np.array([0]), np.ones((1, 2), np.float32), ["p", "q"])
    tracker.finish()
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == [
        "W&B did not take the metrics: the service is gone",
        "W&B did not take the predictions: the service is gone",
    ]
    assert len(read_rows(tmp_path / "run" / "metrics.jsonl")) == 3
