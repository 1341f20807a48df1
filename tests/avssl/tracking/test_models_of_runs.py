"""Models as artifacts: what an offline run's file holds, and what a run that starts from one says of it."""

import base64
import hashlib
import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
from offline_runs import read_offline_run
from wandb.errors import CommError

from avssl.tracking import Tracker
from avssl.tracking.tracker import RECORD, ModelArtifact, log_model, use_model


def pretrained(folder: Path, mode: str = "offline") -> str | None:
    """A run that logs a model of two files; returns its W&B id."""
    folder.mkdir(exist_ok=True)
    model = folder / "audio_encoder"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text("{}")
    (model / "weights.bin").write_bytes(bytes(range(256)))
    tracker = Tracker(folder, {}, mode=mode, project="p")
    log_model(tracker, model, {"steps": 6})
    tracker.finish()
    return tracker.run_id


def test_offline_file_holds_the_model(tmp_path) -> None:
    folder = tmp_path / "pretrain demo"
    run_id = pretrained(folder)
    (record,) = read_offline_run(folder)["artifact"]
    artifact = record.artifact
    assert (artifact.type, artifact.name, artifact.project) == ("model", "pretrain-demo", "p")
    assert sorted(artifact.aliases) == sorted(["latest", f"run-{run_id}"])
    assert json.loads(artifact.metadata) == {"steps": 6}
    entries = {entry.path: entry for entry in artifact.manifest.contents}
    assert entries.keys() == {"config.json", "weights.bin"}
    for name, entry in entries.items():
        content = (folder / "audio_encoder" / name).read_bytes()
        assert base64.b64decode(entry.digest) == hashlib.md5(content).digest()
        assert Path(entry.local_path) == folder / "audio_encoder" / name
    found = ModelArtifact.find(folder)
    assert found == ModelArtifact("audio_encoder", "pretrain-demo", f"run-{run_id}", artifact.digest, run_id, "p")
    assert found.reference == f"p/pretrain-demo:run-{run_id}"


def test_record_is_found_from_run_and_model_but_not_from_other_models(tmp_path) -> None:
    folder = tmp_path / "run"
    pretrained(folder)
    (folder / "other").mkdir()
    assert ModelArtifact.find(folder) == ModelArtifact.find(folder / "audio_encoder") is not None
    for other in (folder / "other", folder / "checkpoints" / "last.ckpt", tmp_path, tmp_path / "nowhere"):
        assert ModelArtifact.find(other) is None


def test_untracked_run_leaves_no_record_not_even_an_old_one(tmp_path) -> None:
    folder = tmp_path / "run"
    pretrained(folder)
    pretrained(folder, mode="disabled")
    assert not (folder / RECORD).exists()


def test_run_that_starts_from_a_model_says_so_offline(tmp_path) -> None:
    run_id = pretrained(tmp_path / "pretrain")
    folder = tmp_path / "finetune"
    folder.mkdir()
    tracker = Tracker(folder, {}, mode="offline", project="p")
    use_model(tracker, tmp_path / "pretrain")
    tracker.finish()
    updates = [item for record in read_offline_run(folder)["config"] for item in record.config.update]
    (origin,) = [json.loads(item.value_json) for item in updates if item.key == "pretrained_from"]
    assert origin["reference"] == f"p/pretrain:run-{run_id}" and origin["run_id"] == run_id
    assert origin["digest"] == read_offline_run(tmp_path / "pretrain")["artifact"][0].artifact.digest


@pytest.mark.parametrize("known", [True, False])
def test_run_that_starts_from_a_model_uses_it_online(known: bool, tmp_path, caplog) -> None:
    run_id = pretrained(tmp_path / "pretrain")
    used: list[tuple[str, str]] = []
    config: dict = {}

    def use_artifact(reference: str, type: str) -> None:
        used.append((reference, type))
        if not known:
            raise CommError("no such artifact")

    run = SimpleNamespace(
        offline=False,
        use_artifact=use_artifact,
        config=SimpleNamespace(update=lambda values, allow_val_change: config.update(values)),
    )
    with caplog.at_level(logging.WARNING):
        use_model(SimpleNamespace(wandb=SimpleNamespace(run=run)), tmp_path / "pretrain")
    assert used == [(f"p/pretrain:run-{run_id}", "model")]
    assert config["pretrained_from"]["run_id"] == run_id
    assert ("no such artifact" in caplog.text) is not known


def test_nothing_is_noted_without_a_run_or_a_record(tmp_path) -> None:
    pretrained(tmp_path / "pretrain")
    use_model(SimpleNamespace(wandb=None), tmp_path / "pretrain")
    untouchable = SimpleNamespace(wandb=SimpleNamespace(run=SimpleNamespace()))
    use_model(untouchable, None)
    use_model(untouchable, tmp_path)
