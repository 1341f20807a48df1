"""The settings of a run of seconds that has all of a real one: data, decoding, validation, checkpoints, report."""

from pathlib import Path

from avssl.config import (
    AudioConfig,
    DataConfig,
    LogConfig,
    OptimConfig,
    PretrainConfig,
    RuntimeConfig,
    VideoConfig,
    WandbConfig,
)


def small_pretraining(output: Path, steps: int, *, every: int, workers: int = 0) -> PretrainConfig:
    """Of two clips a step on 8 of the demo set; validation and checkpoints come ``every`` so many steps."""
    return PretrainConfig(
        audio=AudioConfig(options={"embed_dim": 8, "depths": [1, 1, 1, 1]}),
        video=VideoConfig(crop_size=24),
        data=DataConfig(
            "demo",
            options={"pretrain": 8, "train_per_class": 1, "test_per_class": 1},
            num_workers=workers,
            clip_seconds=0.5,
            num_frames=2,
            frame_size=32,
            val_fraction=0.25,
        ),
        optim=OptimConfig(max_steps=steps, batch_size=2),
        log=LogConfig(every=1, validate_every=every, checkpoint_every=every),
        runtime=RuntimeConfig(accelerator="cpu"),
        wandb=WandbConfig(mode="disabled"),
        output=output,
    )
