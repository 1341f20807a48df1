"""Which clips of an item are read, and the loaders of a run that read them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning_fabric import Fabric

from avssl.data.clips import ClipDataset, Modality
from avssl.data.loader import ClipLoader, make_eval_loader, make_train_loader
from avssl.data.manifest import Manifest
from avssl.data.mixup import SetMixup
from avssl.data.samplers import balanced_shares
from avssl.data.settings import DataConfig
from avssl.data.shards.index import shard_numbers


@dataclass(frozen=True)
class ClipProtocol:
    """Which clips of an item are embedded or scored, and how several of them become one score.

    Attributes:
        seconds: Length of a clip.
        eval_clips: Clips of an item in evaluation.
        average: What of a classifier is averaged over them: "probabilities" or "logits".
        name: Work whose published numbers are scored in this way; empty where there is none.

    Raises:
        ValueError: no length, or no clip.
    """

    seconds: float
    eval_clips: int = 1
    average: str = "probabilities"
    name: str = ""

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise ValueError(f"data.clip_seconds must be positive, got {self.seconds}")
        if self.eval_clips < 1:
            raise ValueError(f"data.eval_clips must be at least 1, got {self.eval_clips}")

    def __str__(self) -> str:
        return self.description()

    def description(self, averaged: str | None = None) -> str:
        """For result.json: "5 clips of 2 s, probabilities averaged, as in X".

        Args:
            averaged: What is averaged over several clips; default: what a classifier's protocol says. Of anything else
                no published work is named.
        """
        clips = f"{self.eval_clips} clip{'s' if self.eval_clips > 1 else ''} of {self.seconds:g} s"
        clips += f", {averaged or self.average} averaged" if self.eval_clips > 1 else ""
        return clips + self._as_in(averaged)

    def words(self, averaged: str | None = None) -> str:
        """How a row is judged, for names of metrics: "centre clip of 2 s", "mean probabilities of 5 clips of 2 s"."""
        clips = f"mean {averaged or self.average} of {self.eval_clips} clips" if self.eval_clips > 1 else "centre clip"
        return f"{clips} of {self.seconds:g} s{self._as_in(averaged)}"

    def _as_in(self, averaged: str | None) -> str:
        as_published = self.eval_clips == 1 or averaged in (None, self.average)
        return f", as in {self.name}" if self.name and as_published else ""


@dataclass
class Loaders:
    """Makes the loaders of a run, all with the same clips.

    Args:
        config: Data config.
        protocol: Length and number of clips.
        modalities: What to decode.
        sample_rate: Rate of the waveforms in Hz.
        batch_size: Clips per batch.
        seed: Seed of spans and order.
    """

    config: DataConfig
    protocol: ClipProtocol
    modalities: Sequence[Modality]
    sample_rate: int
    batch_size: int
    seed: int

    def _dataset(self, manifest: Manifest, **options: Any) -> ClipDataset:
        if "video" in self.modalities:
            frames, size = self.config.num_frames, self.config.frame_size
            if frames is None or size is None:
                raise ValueError("data.num_frames and data.frame_size: the model's are not known here; give both")
            options |= {"num_frames": frames, "frame_size": size}
        return ClipDataset(
            manifest,
            modalities=self.modalities,
            clip_seconds=self.protocol.seconds,
            sample_rate=self.sample_rate,
            channel=self.config.channel,
            seed=self.seed,
            **options,
        )

    def train(
        self,
        manifest: Manifest,
        fabric: Fabric,
        start_batch: int = 0,
        heads: Sequence[str] = (),
        mixup: SetMixup | None = None,
    ) -> ClipLoader:
        """Endless batches of random clips from batch ``start_batch`` on, in the order of ``data.sampling``.

        Args:
            manifest: The rows.
            fabric: Launched Fabric.
            start_batch: Batch to begin with, counted from the beginning of the run.
            heads: Heads that balanced sampling balances.
            mixup: Blends of clips with others of ``manifest``.
        """
        return make_train_loader(
            self._dataset(manifest, mode="random", clips_per_item=self.config.train_clips, mixup=mixup),
            min(self.batch_size, max(1, len(manifest) // fabric.world_size)),
            seed=self.seed,
            start_step=start_batch,
            rank=fabric.global_rank,
            world=fabric.world_size,
            num_workers=self.config.num_workers,
            timeout=self.config.clip_timeout,
            shares=balanced_shares(manifest, heads) if self.config.sampling == "balanced" else None,
            shards=shard_numbers(manifest) if self.config.sampling == "shards" else None,
            shard_buffer=self.config.shard_buffer,
            pin_memory=fabric.device.type == "cuda",
        )

    def evaluate(self, manifest: Manifest) -> ClipLoader:
        """Every row once, in order: its centre clip, or ``eval_clips`` uniform ones."""
        clips = self.protocol.eval_clips
        options: dict[str, Any] = {"mode": "uniform", "clips_per_item": clips} if clips > 1 else {"mode": "center"}
        return make_eval_loader(
            self._dataset(manifest, **options),
            self.batch_size,
            num_workers=self.config.num_workers,
            timeout=self.config.clip_timeout,
        )
