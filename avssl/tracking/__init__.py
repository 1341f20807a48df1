"""Where the numbers, pictures and models of a run go: its metrics files, and the loggers that its config names."""

from avssl.tracking.loggers import LoggedRun, Logger, read_rows, register_logger
from avssl.tracking.tracker import Tracker, check_tracking, sweep_folder
from avssl.tracking.wandb_run import end_failed_run

__all__ = [
    "LoggedRun",
    "Logger",
    "Tracker",
    "check_tracking",
    "end_failed_run",
    "read_rows",
    "register_logger",
    "sweep_folder",
]
