"""The folder of a run knows whose it is by more than one file."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from lightning_fabric import Fabric

import mast
from avssl.checkpoint import BEST, LAST, run_settings
from avssl.config import FinetuneConfig, LogConfig, MixupConfig, WandbConfig, to_dict, to_yaml
from avssl.data.manifest import Manifest
from avssl.data.splits import HoldOut
from avssl.errors import SettingsError
from avssl.files import DamagedError, seal_text
from avssl.loading import load
from avssl.saved_runs import read_held_out, run_folder, seen_in_training, training_settings, used_checkpoint
from avssl.tracking import read_rows
from avssl.training.run import Run, check_same, run_of


def open_run(config: FinetuneConfig) -> Run:
    return Run(config, Path(str(config.output)), Fabric(accelerator="cpu", devices=1), config.wandb, "finetune")


@pytest.fixture
def config(tmp_path: Path) -> FinetuneConfig:
    """Of a run that trained three steps; both of its checkpoints are of the third."""
    config = FinetuneConfig(output=tmp_path / "run", log=LogConfig(use="best"), wandb=WandbConfig(mode="disabled"))
    config = replace(config, data=replace(config.data, name="esc50", clip_seconds=2.5))
    with open_run(config) as run:
        run.tracker.log({"train/loss": 1.0}, 3)
        settings = {"kind": "test", "global_batch": config.optim.batch_size, "config": to_dict(config)}
        for name in (BEST, LAST):
            run.store.save(name, {"progress": {"step": 3}, "settings": settings, "wandb_id": None, "sharded": False})
    return config


DAMAGE = {"deleted": None, "empty": b"", "foreign": b"\xff\xfe\x00", "no settings": b"- 1\n", "no YAML": b"a: [1\n"}


@pytest.fixture(params=DAMAGE)
def damaged(request: pytest.FixtureRequest, config: FinetuneConfig) -> FinetuneConfig:
    """The same with its ``config.yaml`` damaged."""
    file, contents = Path(str(config.output)) / "config.yaml", DAMAGE[request.param]
    if contents is None:
        file.unlink()
    else:
        file.write_bytes(contents)
    return config


def test_a_damaged_config_comes_back_and_the_run_goes_on(damaged: FinetuneConfig, caplog) -> None:
    folder = Path(str(damaged.output))
    run = open_run(damaged)
    assert run.checkpoint == folder / "checkpoints" / LAST and run.step == 3
    assert "config.yaml" in caplog.text and "taking the settings from" in caplog.text
    with run:
        pass
    assert (folder / "config.yaml").read_text() == seal_text(to_yaml(damaged))
    assert [row["step"] for row in read_rows(folder / "metrics.jsonl")] == [3]


def test_other_settings_are_refused_all_the_same(damaged: FinetuneConfig) -> None:
    with pytest.raises(ValueError, match="holds a run with seed = 0, not 5"):
        open_run(replace(damaged, seed=5))


def test_other_options_are_told_whole(config: FinetuneConfig) -> None:
    changed = replace(config, data=replace(config.data, options={"foo": 1}))
    with pytest.raises(ValueError, match=r"holds a run with data\.options = \{\}, not \{'foo': 1\}: choose"):
        open_run(changed)
    (Path(str(config.output)) / "config.yaml").write_text(to_yaml(changed))
    with pytest.raises(ValueError, match=r"holds a run with data\.options = \{'foo': 1\}, not \{\}: choose"):
        open_run(config)


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_a_run_of_before_some_settings_goes_on_with_what_they_stood_for(config: FinetuneConfig, alpha: float) -> None:
    """It had no padding, and mixup was the alpha of mixing within the batch."""
    values = to_dict(config)
    values["augment"]["mixup"] = alpha
    for name in ("pad", "divide_by", "frame_shift_ms", "fixed_frames"):
        del values["audio"][name]
    mixup = MixupConfig("batch", alpha=alpha) if alpha else MixupConfig()
    audio = replace(config.audio, pad="wave", divide_by="2*std", frame_shift_ms=10.0)
    now = replace(config, augment=replace(config.augment, mixup=mixup), audio=audio)
    folder = Path(str(config.output))
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    check_same(folder, now)
    with pytest.raises(ValueError, match=r"holds a run with audio\.pad = None, not 'zero'"):
        check_same(folder, replace(now, audio=replace(audio, pad="zero")))
    other = replace(now, augment=replace(now.augment, mixup=MixupConfig("waveform")))
    with pytest.raises(ValueError, match=r"holds a run with augment\.mixup\.(alpha|kind) = "):
        check_same(folder, other)


@pytest.mark.parametrize("seconds", [0.0, float("nan")])
def test_a_wrong_value_is_told_before_what_the_folder_holds(seconds: float, config: FinetuneConfig) -> None:
    with pytest.raises(SettingsError, match=r"^data\.clip_seconds: must be above 0, got"):
        open_run(replace(config, data=replace(config.data, clip_seconds=seconds)))


def test_starting_over_keeps_the_old_folder(damaged: FinetuneConfig) -> None:
    folder = Path(str(damaged.output))
    with open_run(replace(damaged, resume="none", seed=5)):
        pass
    (kept,) = folder.parent.glob("run.*")
    assert [row["step"] for row in read_rows(kept / "metrics.jsonl")] == [3] and (kept / "checkpoints" / LAST).is_file()
    assert not read_rows(folder / "metrics.jsonl")


def test_starting_over_twice_by_the_same_clock_keeps_both_folders(config: FinetuneConfig, monkeypatch) -> None:
    """As after the clock was set back."""
    monkeypatch.setattr("avssl.training.run.time.strftime", lambda *_: "20260101-000000")
    for step in (4, 5):
        with open_run(replace(config, resume="none", seed=step)) as run:
            run.tracker.log({"train/loss": 1.0}, step)
    folder = Path(str(config.output))
    steps = {
        path.name: [row["step"] for row in read_rows(path / "metrics.jsonl")] for path in folder.parent.glob("run*")
    }
    assert steps == {"run.20260101-000000": [3], "run.20260101-000000-2": [4], "run": [5]}


def test_a_run_that_says_nothing_of_its_settings_is_not_written_over(damaged: FinetuneConfig) -> None:
    folder = Path(str(damaged.output))
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(ValueError, match=r"config\.yaml is missing or damaged.*put the file back"):
        open_run(damaged)
    assert [row["step"] for row in read_rows(folder / "metrics.jsonl")] == [3]


def test_tools_find_the_same_weights_and_data(damaged: FinetuneConfig) -> None:
    folder = Path(str(damaged.output))
    assert used_checkpoint(folder) == folder / "checkpoints" / BEST
    assert run_folder(folder / "checkpoints" / LAST) == folder
    known = training_settings(folder / "checkpoints" / LAST)
    assert (known.data, known.clip_seconds) == ("esc50", 2.5)


def test_a_cut_config_is_no_reason_to_go_on_with_other_settings(config: FinetuneConfig) -> None:
    """Half a YAML file is one, too; what is missing in it is not the default."""
    folder = Path(str(config.output))
    other = replace(config, data=replace(config.data, clip_seconds=None))
    file = folder / "config.yaml"
    file.write_text(file.read_text().replace("  clip_seconds: 2.5\n", "").rpartition("# sha256")[0])
    assert "clip_seconds" not in run_settings(folder)["data"]
    with pytest.raises(ValueError, match=r"data\.clip_seconds = 2\.5, not None"):
        open_run(other)


def test_a_flipped_bit_in_a_config_is_not_taken_for_a_setting(config: FinetuneConfig, caplog) -> None:
    """2.5 s as 3.5 s: clips of another length would be evaluated."""
    folder = Path(str(config.output))
    file = folder / "config.yaml"
    text = file.read_text()
    file.write_text(text.replace("clip_seconds: 2.5", "clip_seconds: 3.5"))
    assert training_settings(folder).clip_seconds == 2.5
    assert "config.yaml is not as the run wrote it" in caplog.text and "take its last line out" in caplog.text
    assert open_run(config).step == 3
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(DamagedError, match=r"config\.yaml is not as the run wrote it.*put it back; to have a change"):
        training_settings(folder)
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    assert training_settings(folder).clip_seconds == 3.5


def test_a_flipped_bit_anywhere_in_a_config_gives_no_other_settings(config: FinetuneConfig) -> None:
    folder = Path(str(config.output))
    file = folder / "config.yaml"
    whole, expected = file.read_bytes(), run_settings(folder)
    for bit in np.random.default_rng(3).integers(8 * len(whole), size=200).tolist():
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        file.write_bytes(data)
        found = run_settings(folder)
        assert {name: found.get(name) for name in expected} == expected, bit


def test_a_checkpoint_away_from_its_run_knows_its_settings(config: FinetuneConfig, tmp_path: Path) -> None:
    alone = tmp_path / "alone.ckpt"
    shutil.copy(Path(str(config.output)) / "checkpoints" / LAST, alone)
    elsewhere = replace(config, output=tmp_path / "other", resume=str(alone))
    assert open_run(elsewhere).step == 3
    with pytest.raises(ValueError, match=r"alone\.ckpt holds a run with seed = 0, not 5"):
        open_run(replace(elsewhere, seed=5))


def test_what_another_run_held_out_does_not_count_for_a_checkpoint_in_its_folder(
    config: FinetuneConfig, tmp_path: Path, caplog
) -> None:
    last = Path(str(config.output)) / "checkpoints" / LAST
    other = replace(config, output=tmp_path / "other", seed=5)
    with open_run(other) as run:
        run.record_clips(SimpleNamespace(held_out={"test": HoldOut(["a"], 0.2, 0, 5, [])}, train=Manifest.from_rows(
            [{"clip_id": "b", "path": "b.wav", "split": "train"}], tmp_path, {})))  # fmt: skip
    strange = Path(shutil.copy(last, tmp_path / "other" / "strange.ckpt"))
    assert run_of(last) == config.output and not caplog.text
    assert run_of(strange) is None and read_held_out(run_of(strange)) == {}
    assert "strange.ckpt is not of the run in" in caplog.text and "whose seed is another" in caplog.text
    assert run_of(Path(shutil.copy(last, tmp_path / "run" / "mine.ckpt"))) == config.output


def test_a_run_of_before_clips_had_their_length_written_down_goes_on(config: FinetuneConfig) -> None:
    stated = replace(config, data=replace(config.data, clip_seconds=5.0))
    file = Path(str(config.output)) / "config.yaml"
    file.write_text(file.read_text().replace("clip_seconds: 2.5", "clip_seconds: null").rpartition("# sha256")[0])
    check_same(file.parent, stated)
    with pytest.raises(ValueError, match=r"data\.clip_seconds = 5\.0, not 2\.5"):
        check_same(file.parent, config)


def test_a_flipped_bit_in_what_was_held_out_or_trained_on_is_refused(config: FinetuneConfig) -> None:
    """A clip of the test with another name would be trained on."""
    held_out = {"test": HoldOut(["cat-1", "dog-2"], 0.2, 0, 10, ["speaker"])}
    folder = Path(str(config.output))
    clips = Manifest.from_rows([{"clip_id": "cat-4", "path": "a.wav", "split": "train"}], folder, {})
    with open_run(config) as run:
        run.record_clips(SimpleNamespace(held_out=held_out, train=clips))
    assert read_held_out(folder) == held_out and seen_in_training(folder, clips) == 1
    trained_on = folder / "trained_on.parquet"
    trained_on.write_bytes(trained_on.read_bytes().replace(b"cat-4", b"cat-5", 1))
    with pytest.raises(ValueError, match=r"trained_on\.parquet: is damaged"):
        seen_in_training(folder, clips)
    file = folder / "held_out.json"
    text = file.read_text()
    file.write_text(text.replace("dog-2", "dog-3"))
    with pytest.raises(ValueError, match=r"held_out\.json: is not as it was written, its checksum differs; train"):
        read_held_out(folder)
    values = json.loads(text)
    del values["sha256"]  # as earlier versions wrote it
    file.write_text(json.dumps(values))
    assert read_held_out(folder) == held_out


def test_a_damaged_description_of_an_export_is_named_by_every_reader(tmp_path: Path) -> None:
    """Its clip length is as much a setting as its weights."""
    model = mast.create_model("mast_pico", num_classes=2, embed_dim=8, depths=(1, 1, 1, 1))
    mast.save_pretrained(
        model, tmp_path, frontend=mast.LogMel(), labels={"kind": ["a", "b"]}, extra={"clip_seconds": 2.5}
    )
    assert load(tmp_path).kind == "classifier" and training_settings(tmp_path).clip_seconds == 2.5
    file = tmp_path / "config.json"
    text = file.read_text()
    for damaged in (text.replace("2.5", "6.5"), text[:-20]):
        file.write_text(damaged)
        for read in (load, training_settings):
            with pytest.raises(ValueError, match=r"config\.json is not (as it was written|JSON)"):
                read(tmp_path)
