"""What a user is told before a run starts."""

import logging

import pytest

from avssl.config import RuntimeConfig
from avssl.pipelines import launch


@pytest.mark.parametrize(
    ("precision", "able", "told"), [("bf16-mixed", False, True), ("bf16-mixed", True, False), ("32-true", False, False)]
)
def test_bfloat16_on_a_processor_without_it_is_warned_of(
    precision: str, able: bool, told: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(launch, "_has_bfloat16", lambda: able)
    with caplog.at_level(logging.WARNING, logger="avssl"):
        fabric = launch.launch_single(RuntimeConfig(accelerator="cpu", precision=precision), 0, 0)
    assert fabric.device.type == "cpu"
    assert ("more slowly than float32; use 32-true" in caplog.text) == told
