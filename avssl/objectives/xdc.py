"""Cross-modal deep clustering."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightly.utils.dist import rank, world_size
from numpy.typing import NDArray
from sklearn.cluster import MiniBatchKMeans
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from avssl.objectives.banks import check_rows, mean_by_row
from avssl.objectives.base import Objective, Shapes, Step, register_objective
from avssl.objectives.functional import gather_constant


@register_objective("xdc")
class XDC(Objective):
    """Cross-modal deep clustering: each encoder predicts in which cluster the other modality of the clip lies.

    Alwassel et al. 2020, section 3 (XDC). Encoder features of the training clips are kept in a bank per modality as the
    clips come by. Every ``every`` optimizer steps, and for the first time as soon as all rows were seen, k-means groups
    each bank; a linear head on the features of one modality then learns, by cross-entropy, the clusters of the other.
    Numbers of clusters mean something else each time, so the heads begin anew, from a seed of their own (the optimizer
    keeps its moments of them). Rows without features yet have no cluster and do not count; before the first clustering
    the loss is 0. The loss is the mean of both heads.

    Args:
        audio: Width A of the audio features.
        video: Width V of the video features.
        clips: Rows N of the training split.
        clusters: Clusters of each modality; fewer while fewer rows were seen.
        every: Optimizer steps between clusterings.

    Attributes:
        audio_bank: (N, A) last L2-normalized features of each row; the mean where a batch has several clips of it.
        video_bank: (N, V) likewise.
        seen: (N,) whether a row has features.
        assignments: (2, N) cluster of each row's audio and video; -1 without.
        clusterings: How often was clustered; the seed of k-means and of the heads.
        summary: Clusters in use of the audio, of the video, and the normalized mutual information of both.
    """

    projection = None
    audio_bank: Tensor
    video_bank: Tensor
    seen: Tensor
    assignments: Tensor
    clusterings: Tensor
    summary: Tensor

    def __init__(self, audio: int, video: int, clips: int, clusters: int = 64, every: int = 1000) -> None:
        super().__init__()
        if clusters < 2:
            raise ValueError(f"xdc: clusters must be at least 2, got {clusters}")
        if every < 1:
            raise ValueError(f"xdc: every must be at least 1, got {every}")
        self.clips, self.clusters, self.every = clips, clusters, every
        self.audio_head, self.video_head = nn.Linear(audio, clusters), nn.Linear(video, clusters)
        self.register_buffer("audio_bank", torch.zeros(clips, audio))
        self.register_buffer("video_bank", torch.zeros(clips, video))
        self.register_buffer("seen", torch.zeros(clips, dtype=torch.bool))
        self.register_buffer("assignments", torch.full((2, clips), -1))
        self.register_buffer("clusterings", torch.zeros((), dtype=torch.int64))
        self.register_buffer("summary", torch.zeros(3))
        self._reset_heads()

    @classmethod
    def build(cls, shapes: Shapes, **options: Any) -> "XDC":
        """Banks have a row per training clip, as wide as the features of the encoders."""
        return cls(shapes.audio, shapes.video, shapes.clips, **options)

    def forward(self, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss; the report has the clusters in use, the agreement (NMI) of both and the share of rows seen.

        Raises:
            ValueError: when ``step.index`` is not below the number of training clips.
        """
        check_rows(step.index, self.clips, "xdc")
        audio, video = step.audio(), step.video()
        audio_clusters, video_clusters = self.assignments[:, step.index]
        with torch.autocast(audio.device.type, enabled=False):
            # Logits and softmax in fp32 or better; each modality learns what the other one says.
            loss = _cross_entropy(self.audio_head(_as_precise(audio, self.audio_head)), video_clusters)
            loss = (loss + _cross_entropy(self.video_head(_as_precise(video, self.video_head)), audio_clusters)) / 2
        if self.training:
            self._remember(step.index, audio, video)
        found = dict(zip(("audio_clusters", "video_clusters", "agreement"), self.summary.clone(), strict=True))
        return loss, found | {"rows_seen": self.seen.float().mean()}

    def after_step(self, step: int, max_steps: int) -> None:
        """Clusters when it is time to."""
        first = int(self.clusterings) == 0 and bool(self.seen.all())
        if first or (step % self.every == 0 and bool(self.seen.any())):
            self.clusterings += 1
            # Once, and then sent around: k-means sums in an order that differs from process to process.
            if rank() == 0:
                self._cluster()
            if world_size() > 1:
                torch.distributed.broadcast(self.assignments, src=0)
                torch.distributed.broadcast(self.summary, src=0)
            self._reset_heads()

    @torch.no_grad()
    def _remember(self, index: Tensor, audio: Tensor, video: Tensor) -> None:
        rows = gather_constant(index)
        for bank, features in ((self.audio_bank, audio), (self.video_bank, video)):
            found, means = mean_by_row(rows, gather_constant(features).to(bank.dtype))
            bank[found] = F.normalize(means, dim=1)
        self.seen[rows] = True

    def _cluster(self) -> None:
        groups = []
        for bank in (self.audio_bank, self.video_bank):
            features = bank[self.seen].cpu().numpy()
            kmeans = MiniBatchKMeans(min(self.clusters, len(features)), n_init=3, random_state=int(self.clusterings))
            groups.append(_in_order(kmeans.fit_predict(features)))
        audio, video = groups
        agreement = normalized_mutual_info_score(audio, video)
        self.assignments[:, self.seen] = torch.from_numpy(np.stack(groups)).to(self.assignments)
        self.summary.copy_(torch.tensor([len(np.unique(audio)), len(np.unique(video)), agreement]))

    @torch.no_grad()
    def _reset_heads(self) -> None:
        """Small normal weights and no bias, as in deep clustering (Caron et al. 2018); the same on every process."""
        generator = torch.Generator().manual_seed(int(self.clusterings))
        for head in (self.audio_head, self.video_head):
            _assign(head.weight, torch.randn(head.weight.shape, generator=generator) * 0.01)
            _assign(head.bias, torch.zeros(head.bias.shape))


def _in_order(labels: NDArray[np.integer[Any]]) -> NDArray[np.integer[Any]]:
    """Numbers clusters by their first rows: among starts of k-means with one result, rounding decides which wins."""
    _, first, place = np.unique(labels, return_index=True, return_inverse=True)
    return first.argsort().argsort()[place]


def _as_precise(features: Tensor, head: nn.Linear) -> Tensor:
    return features.to(head.weight.dtype)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum over this process' labelled clips over their number per process; 0, with a gradient of 0, without any.

    The mean of it over the processes is the mean over all labelled clips.
    """
    labelled = gather_constant((labels >= 0).sum()[None]).sum() / world_size()
    return F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum") / labelled.clamp(min=1 / world_size())


def _assign(parameter: Tensor, value: Tensor) -> None:
    """Writes ``value``, which every process has, into a parameter that may be sharded (FSDP)."""
    value = value.to(parameter.device, parameter.dtype)
    if isinstance(parameter, DTensor):
        value = distribute_tensor(value, parameter.device_mesh, parameter.placements)
    parameter.copy_(value)
