"""Progress: a bar on a terminal, lines in a log, nothing for what is done at once or is another process's to tell."""

import io
import logging
import re
import subprocess
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from avssl import progress
from avssl.commands import main
from avssl.progress import Meter, track


@pytest.fixture
def lines(monkeypatch, caplog) -> Iterator[Callable[[], list[str]]]:
    """Lines logged so far, where they come without waiting and stderr is no terminal."""
    monkeypatch.setattr(progress, "FIRST_LINE", 0.01)
    monkeypatch.setattr(progress, "LINE_EVERY", 0.01)
    monkeypatch.setattr("sys.stderr", io.StringIO())
    caplog.set_level(logging.INFO, "avssl.progress")
    yield lambda: [record.getMessage() for record in caplog.records if record.name == "avssl.progress"]


def wait_for(what: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "nothing came"
        time.sleep(0.005)


def test_log_lines_have_share_rate_time_left_and_note(lines) -> None:
    with Meter("scan", total=200, initial=40, unit="file") as meter:
        meter.update(60)
        meter.note("3 failed")
        wait_for(lambda: any("3 failed" in line for line in lines()))
    line = next(line for line in lines() if "3 failed" in line)
    assert re.fullmatch(r"scan: 100 of 200 files \(50 %\), [\d.]+ files/s, \d\d:\d\d left, 3 failed", line), line


def test_lines_come_while_a_single_item_takes_its_time(lines) -> None:
    for _ in track([1], "probes", "probe"):
        wait_for(lambda: len(lines()) >= 2)
    assert re.fullmatch(r"probes: 0 of 1 probe \(0 %\), \d\d:\d\d so far", lines()[0])
    with Meter("fitting"):
        wait_for(lambda: re.fullmatch(r"fitting: \d\d:\d\d so far", lines()[-1]))


def test_rate_counts_what_was_done_here_and_slow_ones_are_told_the_other_way_round(lines, monkeypatch) -> None:
    clock = iter([100.0])
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock, 110.0)))
    alone = {"Thread": lambda **_: NoThread(), "Lock": threading.Lock, "Event": threading.Event}
    monkeypatch.setattr(progress, "threading", SimpleNamespace(**alone))
    with Meter("training", total=50, initial=10, unit="step") as meter:
        meter.update(5)  # 10 s after the start, of which 5 steps
    assert lines() == ["training: 15 of 50 steps (30 %), 2.0 s a step, 01:10 left"]


class NoThread:
    def start(self) -> None: ...
    def join(self) -> None: ...


def test_bytes_are_scaled(lines) -> None:
    with Meter("x", total=3, unit="batch"):
        wait_for(lambda: any(line.startswith("x: 0 of 3 batches (0 %), ") for line in lines()))
    with Meter("verifying", total=4_000_000, unit="B") as meter:
        meter.update(1_000_000)
        wait_for(lambda: any("25 %" in line for line in lines()))
    assert any(line.startswith("verifying: 1.00MB of 4.00MB (25 %), ") for line in lines())


def test_the_inner_one_speaks(lines) -> None:
    def spoken(what: str) -> list[str]:
        return [line for line in lines() if line.startswith(what)]

    with Meter("outer"):
        with Meter("inner"):
            wait_for(lambda: len(spoken("inner")) >= 1)
            before = len(spoken("outer"))
            wait_for(lambda: len(spoken("inner")) >= 10)
            assert len(spoken("outer")) <= before + 1  # one may have been on its way
        wait_for(lambda: lines()[-1].startswith("outer"))


@pytest.mark.parametrize("variable", ["RANK", "LOCAL_RANK", "SLURM_PROCID"])
def test_other_processes_of_a_run_are_silent(variable, lines, monkeypatch) -> None:
    monkeypatch.setenv(variable, "1")
    meter = Meter("training")
    assert not meter.shown
    monkeypatch.setenv(variable, "0")
    assert Meter("training").shown and not Meter("training", shown=False).shown


def test_what_is_quick_says_nothing_and_no_thread_stays(caplog, monkeypatch) -> None:
    monkeypatch.setattr("sys.stderr", io.StringIO())
    caplog.set_level(logging.INFO)
    assert list(track(range(1000), "quick", "item")) == list(range(1000))
    with pytest.raises(KeyError), Meter("fails"):
        raise KeyError
    assert not caplog.records
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("progress of ")]
    monkeypatch.setattr(progress, "FIRST_LINE", 0.01)
    with Meter("later"):  # what is still open would speak in its place
        wait_for(lambda: any(record.getMessage().startswith("later: ") for record in caplog.records))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_and_no_lines(monkeypatch, caplog) -> None:
    monkeypatch.setattr(progress, "BAR_DELAY", 0.01)
    monkeypatch.setattr(progress, "BAR_EVERY", 0.01)
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    caplog.set_level(logging.INFO)
    with Meter("scan", total=200, unit="file") as meter:
        meter.update(50)
        meter.note("loss 2.000")
        wait_for(lambda: "loss 2.000" in screen.getvalue())
        meter.update(150)
    assert re.search(r"scan:\s+25%\|.*50/200 .*file/s, loss 2.000\]", screen.getvalue())
    assert re.search(r"scan:\s+100%\|", screen.getvalue()) and screen.getvalue().endswith("\n")
    assert not caplog.records


def test_commands_that_are_quiet_show_progress_and_lines_go_above_the_bars(monkeypatch, capsys) -> None:
    screen = Terminal()
    monkeypatch.setattr(progress, "BAR_DELAY", 0.01)
    monkeypatch.setattr("sys.stderr", screen)
    handler = logging.StreamHandler(screen)
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    monkeypatch.setattr(progress.logger, "level", logging.NOTSET)

    def run(_: Namespace) -> int:
        assert progress.logger.isEnabledFor(logging.INFO) and not logging.getLogger("avssl").isEnabledFor(logging.INFO)
        with Meter("scan", total=9, unit="file"):
            wait_for(lambda: "0/9" in screen.getvalue())
            logging.getLogger("avssl.data").warning("a file is broken")
        return 0

    monkeypatch.setitem(sys.modules, "avssl.commands.prepare", SimpleNamespace(run=run))
    assert main(["prepare", "--data", "demo"]) == 0
    before, after = screen.getvalue().split("a file is broken")
    assert before.rsplit("\r", 1)[1].strip() == "" and after.startswith("\n"), "the bar was cleared before the line"


def test_a_notebook_gets_a_bar(monkeypatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(progress, "BAR_DELAY", 0.01)
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setitem(sys.modules, "ipykernel", SimpleNamespace())
    with Meter("scan", total=9, unit="file"):
        wait_for(lambda: "0/9" in screen.getvalue())


def test_a_script_that_says_nothing_of_logging_still_gets_lines() -> None:
    script = """
import logging, sys
from avssl import progress
progress.FIRST_LINE = 0.01
if len(sys.argv) > 1:
    logging.basicConfig(level=logging.WARNING)
with progress.Meter("scan", total=3, unit="file") as meter:
    while not meter._told:
        pass
"""
    for arguments, told in ([], r"scan: 0 of 3 files \(0 %\), \d\d:\d\d so far\n"), (["quiet"], ""):
        done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 and re.fullmatch(told, done.stderr)


def test_there_is_one_way_to_show_progress() -> None:
    package = Path(progress.__file__).parent
    users = [path.name for path in package.rglob("*.py") if "from tqdm" in path.read_text()]
    assert users == ["progress.py"]
