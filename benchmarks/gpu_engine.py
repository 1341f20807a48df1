"""The engine on a batch that is on the device: its step alone, without data and log."""

from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

import mast
from avssl.augment import SpectrogramAugment, VideoAugment, WaveAugment
from avssl.config import LogConfig, OptimConfig, RuntimeConfig
from avssl.data.batch import Batch
from avssl.data.failures import FailureMonitor
from avssl.models import AudioClassifier, AudioVisualPair
from avssl.objectives import Shapes, create_objective
from avssl.training.engine import Engine
from avssl.training.finetuning import FinetuneTask
from avssl.training.launch import prepare_encoders
from avssl.training.pretraining import PretrainTask
from avssl.training.task import Task

CLASSES = 527


def pretraining_engine(device: str, batch: int, runtime: dict[str, Any], tiny: bool) -> tuple[Engine, Batch]:
    """An engine that trains MAST-B and MViTv2-S under InfoNCE, as the large recipe has them, and a batch for it.

    Args:
        device: cuda, with bf16, or cpu.
        batch: Clips of 10 s of sound and 16 frames, which are cropped to 224 x 224.
        runtime: Settings of ``runtime``.
        tiny: Small models and clips, to try it out.
    """
    torch.manual_seed(0)
    names = {"audio": "mast_nano", "video": "tiny"} if tiny else {"audio": "mast_base", "video": "mvit_v2_s"}
    frames, size, seconds = (4, 32, 1) if tiny else (16, 224, 10)
    sizes = {"num_frames": frames, "crop_size": size, "embedding_dim": 256}
    pair = AudioVisualPair.build(**names, **sizes, projections={"infonce": {}})
    widths = {"audio": pair.audio.num_features, "video": pair.video.num_features, "audio_stride": pair.audio.stride}
    objective = create_objective("infonce", Shapes(joint=256, clips=1000, **widths))
    task = PretrainTask(
        pair,
        [("infonce", objective, 1.0)],
        wave=WaveAugment(),
        spectrogram=SpectrogramAugment(time_mask=0.1, freq_mask=0.1),
        video=VideoAugment(size, crop_scale=0.3, flip=0.5, color=0.4),
        clip_seconds=float(seconds),
        diagnose_every=1000,
    )
    engine = _engine(task, device, runtime, pair.audio, pair.video)
    wide = (40, 48) if tiny else (256, 340)
    frames_of = torch.randint(0, 256, (batch, 3, frames, *wide), dtype=torch.uint8)
    return engine, _clips(device, batch, 16000 * seconds, video=frames_of)


def finetuning_engine(device: str, batch: int, runtime: dict[str, Any], tiny: bool) -> tuple[Engine, Batch]:
    """An engine that fine-tunes MAST-B on as many classes as AudioSet has, and a batch of clips of 10 s for it."""
    torch.manual_seed(0)
    encoder = mast.create_model("mast_nano" if tiny else "mast_base")
    classifier = AudioClassifier(encoder, mast.LogMel(), {"class": [str(number) for number in range(CLASSES)]})
    spectrogram = SpectrogramAugment(time_mask=0.1, freq_mask=0.1)
    engine = _engine(FinetuneTask(classifier, WaveAugment(), spectrogram), device, runtime, encoder)
    return engine, _clips(device, batch, 16000 * (1 if tiny else 10), {"class": torch.arange(batch) % CLASSES})


def _engine(task: Task, device: str, runtime: dict[str, Any], *encoders: nn.Module) -> Engine:
    settings = RuntimeConfig(**runtime)
    fabric = Fabric(accelerator=device, devices=1, precision="bf16-mixed" if device == "cuda" else "32-true")
    prepare_encoders(settings, fabric, *encoders)
    engine = Engine(
        fabric,
        task,
        optim=OptimConfig(lr=1e-5, weight_decay=0.1),
        log=LogConfig(),
        steps=1000,
        tracker=None,  # type: ignore[arg-type]  # steps that are not logged need no tracker, and none is saved
        store=None,  # type: ignore[arg-type]
        failures=FailureMonitor(),
        settings={},
        graphs=settings.graphs == "auto",
        compile_frontend=settings.compile,
    )
    engine.task.train()
    return engine


def _clips(
    device: str, batch: int, samples: int, labels: dict[str, Tensor] | None = None, video: Tensor | None = None
) -> Batch:
    return Batch(
        audio=0.1 * torch.randn(batch, samples),
        video=video,
        labels=labels or {},
        index=torch.arange(batch),
        clip_ids=[str(number) for number in range(batch)],
        start=torch.zeros(batch, dtype=torch.float64),
    ).to(torch.device(device))
