"""What a finished run tells its user: commands that go on from it, and where the demo's report is."""

import shlex
from pathlib import Path

import pytest

from avssl.cli import read_settings
from avssl.commands import demo as pipeline
from avssl.commands import main
from avssl.config import DataConfig, EvaluateConfig, FinetuneConfig
from avssl.training.run import next_command


@pytest.mark.parametrize(
    "data",
    [
        DataConfig("demo"),
        DataConfig("esc50", Path("/data/my sounds"), {"fold": 2, "held_out": ["a b", "c'd"]}),
        DataConfig("my clips/$x", clip_seconds=2.5),
    ],
)
@pytest.mark.parametrize(("command", "config"), [("finetune", FinetuneConfig), ("evaluate", EvaluateConfig)])
def test_the_line_that_is_told_can_be_pasted(data, command, config) -> None:
    program, name, *arguments = shlex.split(next_command(command, Path("runs/a run"), data))
    assert (program, name) == ("avssl", command)
    settings = read_settings(config, arguments)
    assert settings.checkpoint == "runs/a run"
    assert (settings.data.name, settings.data.root, settings.data.options) == (data.name, data.root, data.options)
    assert settings.data.clip_seconds == data.clip_seconds


@pytest.mark.parametrize(("split", "evaluated"), [("val", "val"), ("test", "test"), (None, "test")])
def test_what_a_run_was_judged_on_is_what_is_evaluated(split, evaluated) -> None:
    line = next_command("evaluate", Path("runs/x"), DataConfig("clips"), split)
    assert read_settings(EvaluateConfig, shlex.split(line)[2:]).split == evaluated


def test_unlabelled_data_cannot_be_fine_tuned_on() -> None:
    assert next_command("finetune", Path("runs/x"), None) == "avssl finetune --checkpoint runs/x --data LABELLED_DATA"


def test_the_demo_tells_where_its_report_is(tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "pretrain").mkdir()
    (tmp_path / "pretrain" / "config.yaml").write_text("seed: 0\n")
    ways = {f"{way}/{name}": 0.5 for way in ("audio_to_video", "video_to_audio", "chance")
            for name in ("R@1", "R@5", "R@10", "median_rank")}  # fmt: skip
    pretrained = {"finished": True, "metrics": ways | {"count": 12.0}, "retrieval": {"projection": "infonce"}}
    top1 = {"random": 0.25, "pretrained": 0.75}

    def finetune(config: FinetuneConfig) -> dict:
        start = "random" if config.checkpoint == "none" else "pretrained"
        metrics = {"event/top1": top1[start], "event/top1_low": 0.2, "event/top1_high": 0.8}
        return {"finished": True, "metrics": metrics}

    monkeypatch.setattr(pipeline, "pretrain", lambda config: pretrained)
    monkeypatch.setattr(pipeline, "finetune", finetune)
    assert main(["demo", "--output", str(tmp_path)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[-1] == f"report: {tmp_path / 'report.html'}"
    for protocol in ("linear probe", "full fine-tune"):
        (line,) = [line for line in told if line.startswith(protocol)]
        assert line.split()[-4:] == ["25.0", "%", "75.0", "%"]
    assert "20.0% to 80.0%" in (tmp_path / "report.html").read_text()
