"""Every recipe in configs/ is read by the typed config that it is for, and says nothing that is not used."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from scipy.io import wavfile

from avssl.augment import SpectrogramAugment, WaveAugment
from avssl.cli import parse
from avssl.commands.finetune import finetune
from avssl.commands.pretrain import build_task
from avssl.config import AudioConfig, FinetuneConfig, PretrainConfig, to_dict
from avssl.data.batch import Batch
from avssl.data.catalog import find_entry
from avssl.training.initialization import complete_audio, complete_pretraining, complete_video

CONFIGS = Path(__file__).parents[2] / "configs"
KINDS = {"finetune": FinetuneConfig, "pretrain": PretrainConfig}
RECIPES = [(folder, path) for folder in KINDS for path in sorted((CONFIGS / folder).glob("*.yaml"))]


def leaves(values: dict, prefix: str = "") -> dict:
    out = {}
    for key, value in values.items():
        nested = isinstance(value, dict) and key not in ("options",)
        out |= leaves(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return out


@pytest.mark.parametrize(("folder", "path"), RECIPES, ids=[path.stem for _, path in RECIPES])
def test_a_recipe_is_read_whole_and_what_it_names_exists(folder: str, path: Path, tmp_path) -> None:
    told = leaves(yaml.safe_load(path.read_text()))
    own = [] if "data.name" in told else ["--data", str(tmp_path)]  # the built-in data state the length of their clips
    config = parse(KINDS[folder], ["--config", str(path), *own])
    read = leaves(to_dict(config))
    assert told.pop("base", None) in (None, *(other.name for other in path.parent.glob("*.yaml")))
    for key, value in told.items():
        assert read[key] == value or (value is not None and read[key] == pytest.approx(value)), key
    find_entry(config.data.name)
    complete_audio(config.audio), complete_video(config.video, config.data)
    WaveAugment.of(config.augment), SpectrogramAugment.of(config.augment)  # refuse what lies out of range


@pytest.mark.parametrize("name", ["audioset", "vggsound", "kinetics-sounds", "epic-kitchens", "esc10"])
def test_the_baseline_changes_the_model_alone(name: str) -> None:
    ours = parse(FinetuneConfig, ["--config", str(CONFIGS / "finetune" / f"{name}.yaml")])
    theirs = parse(FinetuneConfig, ["--data", name, "--audio.model", "ast_base"])
    frontend = {key: getattr(ours.audio, key) for key in ("mean", "std", "divide_by")}
    frontend["pad"] = ours.audio.pad or "wave"
    assert complete_audio(theirs.audio) == AudioConfig("ast_base", {}, 16000, 128, **frontend)
    before, after = to_dict(ours), to_dict(theirs)
    del before["audio"], after["audio"]
    assert before == after


def test_the_later_file_wins_and_an_option_wins_over_both(tmp_path) -> None:
    first, second = tmp_path / "1.yaml", tmp_path / "2.yaml"
    first.write_text("optim: {lr: 0.1, epochs: 2}\nlabel_smoothing: 0.2\n")
    second.write_text("optim: {lr: 0.3, batch_size: 5}\n")
    config = parse(FinetuneConfig, ["--optim.batch_size", "7", "--config", str(first), "--config", str(second)])
    assert (config.optim.lr, config.optim.epochs, config.optim.batch_size, config.label_smoothing) == (0.3, 2, 7, 0.2)


@pytest.mark.parametrize("name", ["audioset", "epic-kitchens"])
def test_what_a_recipe_combines_trains_together(name: str, tmp_path, monkeypatch) -> None:
    """Balanced sampling, mixup, masks, averaged weights, lower precision: two steps of a small model on other data."""
    monkeypatch.setenv("AVSSL_CACHE", str(tmp_path / "cache"))
    for digit in range(2):
        for take in range(12):
            path = tmp_path / "media" / f"{digit}_ann_{take}.wav"
            path.parent.mkdir(exist_ok=True)
            sound = np.random.default_rng(take).standard_normal(4000) * 3000
            wavfile.write(path, 8000, sound.astype(np.int16))
    argv = ["--config", str(CONFIGS / "finetune" / f"{name}.yaml"), "--data", "fsdd", "--data.heads", "[digit]"]
    argv += ["--data.root", str(tmp_path / "media"), "--data.clip_seconds", "0.4", "--data.num_workers", "0"]
    argv += ["--audio.options", "{embed_dim: 16, depths: [1, 1, 1, 1]}", "--audio.model", "mast_pico"]
    argv += ["--optim.batch_size", "4", "--optim.max_steps", "2", "--runtime.accelerator", "cpu"]
    argv += ["--wandb.mode", "disabled", "--output", str(tmp_path / "run")]
    result = finetune(parse(FinetuneConfig, argv))
    assert result["finished"] and 0 <= result["metrics"]["digit/top1"] <= 1


MINIATURE = ["--audio.model", "mast_pico", "--audio.options", "{embed_dim: 16, depths: [1, 1, 1, 1]}"]
MINIATURE += ["--video.model", "tiny", "--video.crop_size", "48", "--embedding_dim", "8"]
PAPERS = {
    "cav-mae": ["infonce", "masked"],
    "cav-mae-sync": ["align", "masked"],
    "avt": ["infonce", "matching", "masked", "segments"],
    "ss-mast": ["distill"],
}


@pytest.mark.parametrize("name", PAPERS)
def test_the_recipe_of_a_paper_takes_a_step(name: str, tmp_path: Path) -> None:
    """On miniatures of its encoders: every term has a finite loss, and the encoders that it trains move."""
    argv = ["--config", name, "--data", str(tmp_path), *MINIATURE]
    config = complete_pretraining(parse(PretrainConfig, argv), None)
    torch.manual_seed(0)
    task = build_task(config, clips=6, clip_seconds=2.0)
    batch = Batch(
        audio=0.1 * torch.randn(6, 32000),
        video=torch.randint(0, 256, (6, 3, 8, 56, 56), dtype=torch.uint8),
        labels={},
        index=torch.arange(6),
        clip_ids=[str(i) for i in range(6)],
        start=torch.zeros(6, dtype=torch.float64),
    )
    before = {key: value.clone() for key, value in task.pair.named_parameters()}
    optimizer = torch.optim.AdamW(task.parameters(), lr=config.optim.lr)
    losses, _ = task(batch)
    assert list(losses) == PAPERS[name] and all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    optimizer.step()
    task.after_step(1, 10)
    moved = {key.split(".")[0] for key, value in task.pair.named_parameters() if not torch.equal(value, before[key])}
    assert moved == {"audio", "projections"} | ({"video"} if name != "ss-mast" else set())


def test_published_weights_and_temperatures() -> None:
    """Those of the scripts and the code of their authors."""
    read = {name: yaml.safe_load((CONFIGS / "pretrain" / f"{name}.yaml").read_text()) for name in PAPERS}
    contrast, masked = read["cav-mae"]["objectives"]
    assert (contrast["weight"], contrast["temperature"], contrast["learn_temperature"]) == (0.01, 0.05, False)
    assert (masked["weight"], masked["share"], masked["normalize"], masked["modality"]) == (1.0, 0.75, True, "both")
    align, _ = read["cav-mae-sync"]["objectives"]
    assert (align["weight"], align["temperature"]) == (0.1, 0.05)
    (distill,) = read["ss-mast"]["objectives"]
    assert (distill["temperature"], distill["patch_drop"], read["ss-mast"]["teacher_momentum"]) == (0.07, 0.1, 0.999)
