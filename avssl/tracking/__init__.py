"""Where the numbers, pictures and models of a run go: its metrics files, Weights & Biases, TensorBoard."""

from avssl.tracking.tracker import Tracker, check_tracking, read_rows, sweep_folder
from avssl.tracking.wandb_run import end_failed_run

__all__ = ["Tracker", "check_tracking", "end_failed_run", "read_rows", "sweep_folder"]
