"""Cross-modal deep clustering on blobs whose clusters are known, against NumPy and scikit-learn."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from objective_steps import SHAPES, FixedStep
from sklearn.metrics import v_measure_score
from torch.distributed.fsdp import fully_shard

from avssl.objectives import create_objective
from avssl.objectives.xdc import XDC

AUDIO_BLOBS, VIDEO_BLOBS = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2]), torch.tensor([0, 1, 0, 1, 0, 1, 0, 1])


def blobs(which: torch.Tensor, dim: int, seed: int) -> torch.Tensor:
    """Features near one of the axes, for each row that of its blob; lengths vary, which must not matter."""
    generator = torch.Generator().manual_seed(seed)
    noise = 0.02 * torch.randn(len(which), dim, generator=generator)
    lengths = 1 + 4 * torch.rand(len(which), 1, generator=generator)
    return ((torch.eye(dim)[which] + noise) * lengths).double()


def blob_step(rows: torch.Tensor) -> FixedStep:
    return FixedStep(blobs(AUDIO_BLOBS, 4, 0)[rows], blobs(VIDEO_BLOBS, 5, 1)[rows], index=rows)


def made(**options: int) -> XDC:
    return XDC(audio=4, video=5, clips=8, **options).double()


def clustered(**options: int) -> XDC:
    objective = made(**options)
    objective(blob_step(torch.arange(8)))
    objective.after_step(1, 100)
    return objective


def numpy_cross_entropy(features: np.ndarray, head: torch.nn.Linear, labels: np.ndarray) -> tuple:
    """Mean loss over labels >= 0, and its gradients with respect to features and weights."""
    weight = head.weight.detach().numpy()
    exponentials = np.exp(features @ weight.T + head.bias.detach().numpy())
    wrong = exponentials / exponentials.sum(axis=1, keepdims=True)
    loss = -np.log(wrong[labels >= 0, labels[labels >= 0]]).mean()
    wrong[np.arange(len(labels)), labels] -= 1
    wrong[labels < 0] = 0
    wrong /= (labels >= 0).sum()
    return loss, wrong @ weight, wrong.T @ features


def test_k_means_finds_the_blobs_of_each_modality() -> None:
    objective = clustered(clusters=3)
    assert v_measure_score(AUDIO_BLOBS, objective.assignments[0]) == pytest.approx(1)
    assert len(objective.assignments[1].unique()) == 3  # more clusters than the two blobs of the video
    objective = clustered(clusters=2)
    assert v_measure_score(VIDEO_BLOBS, objective.assignments[1]) == pytest.approx(1)


def test_loss_and_gradients_match_numpy_with_the_other_modality_as_labels() -> None:
    torch.manual_seed(0)
    objective = clustered(clusters=3)
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.copy_(torch.randn_like(parameter))
    objective.assignments[:, 5] = -1  # as if never seen
    labels = objective.assignments.numpy()
    rows = torch.tensor([1, 5, 7, 7, 0])
    step = blob_step(rows)
    audio, video = step.audio().requires_grad_(), step.video().requires_grad_()
    loss, _ = objective(step)
    loss.backward()
    expected = 0.0
    for features, head, other in ((audio, objective.audio_head, labels[1]), (video, objective.video_head, labels[0])):
        part, to_features, to_weight = numpy_cross_entropy(features.detach().numpy(), head, other[rows])
        expected += part / 2
        np.testing.assert_allclose(features.grad, to_features / 2, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(head.weight.grad, to_weight / 2, rtol=1e-9, atol=1e-12)
        assert not features.grad[1].any()
    assert loss.item() == pytest.approx(expected, rel=1e-9)


def test_loss_before_the_first_clustering_is_zero_and_has_gradients_of_zero() -> None:
    objective = made()
    step = blob_step(torch.arange(4))
    audio = step.audio().requires_grad_()
    loss, report = objective(step)
    loss.backward()
    assert loss.item() == 0 and not audio.grad.any() and not objective.video_head.weight.grad.any()
    assert report["rows_seen"].item() == 0.5 and report["audio_clusters"].item() == 0


def test_clusters_when_all_rows_were_seen_and_every_so_many_steps() -> None:
    objective = made(clusters=2, every=4)
    happened = []
    for number, rows in enumerate(([0, 1], [2, 3], [4, 5, 6, 7], [0, 1], [0, 1], [0, 1], [0, 1], [0, 1]), start=1):
        objective(blob_step(torch.tensor(rows)))
        objective.after_step(number, 100)
        happened.append(int(objective.clusterings))
    assert happened == [0, 0, 1, 2, 2, 2, 2, 3]


def test_rows_that_were_never_seen_have_no_cluster() -> None:
    objective = made(clusters=4, every=1)
    objective(blob_step(torch.tensor([1, 6, 6])))
    objective.after_step(1, 100)
    unseen = [0, 2, 3, 4, 5, 7]
    assert (objective.assignments[:, unseen] == -1).all() and (objective.assignments[:, [1, 6]] >= 0).all()
    assert objective(blob_step(torch.tensor([0, 2])))[0].item() == 0
    assert objective(blob_step(torch.tensor([0, 1])))[0].item() > 0


def test_agreement_is_the_normalized_mutual_information_at_the_clustering() -> None:
    objective = clustered(clusters=2)
    _, report = objective(blob_step(torch.arange(8)))
    audio, video = objective.assignments
    assert report["agreement"].item() == pytest.approx(v_measure_score(audio, video), rel=1e-6)
    assert report["audio_clusters"].item() == 2 and report["video_clusters"].item() == 2
    assert 0 <= report["agreement"].item() < 1
    same = XDC(audio=4, video=4, clips=8, clusters=3).double()
    same(FixedStep(blobs(AUDIO_BLOBS, 4, 0), blobs(AUDIO_BLOBS, 4, 5)))
    same.after_step(1, 100)
    assert same.summary.tolist() == pytest.approx([3, 3, 1])


def test_heads_begin_anew_from_a_seed_of_their_own() -> None:
    first, second = clustered(clusters=3, every=1), clustered(clusters=3, every=1)
    assert first.audio_head.weight.equal(second.audio_head.weight)
    assert not first.audio_head.weight.equal(made(clusters=3).audio_head.weight)
    with torch.no_grad():
        first.audio_head.weight.add_(1)
    torch.manual_seed(7)
    first.after_step(2, 100)
    second.after_step(2, 100)
    assert first.audio_head.weight.equal(second.audio_head.weight)
    assert first.video_head.weight.std().item() == pytest.approx(0.01, rel=0.5) and not first.video_head.bias.any()


def test_sharded_heads_begin_anew_like_whole_ones(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = dist.init_device_mesh("cpu", (1,))
        whole, sharded = made(clusters=3, every=1), fully_shard(made(clusters=3, every=1), mesh=mesh)
        for objective in (whole, sharded):
            loss, _ = objective(blob_step(torch.arange(8)))
            loss.backward()  # parameters are sharded again after it
            objective.after_step(1, 100)
        assert sharded.audio_head.weight.full_tensor().equal(whole.audio_head.weight)
    finally:
        dist.destroy_process_group()


def test_the_bank_keeps_the_last_features_of_a_row_and_the_mean_within_a_batch() -> None:
    objective = made()
    audio = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 3, 0]]).double()
    video = torch.zeros(3, 5).double()
    objective(FixedStep(audio, video, index=torch.tensor([2, 2, 4])))
    half = 0.5**0.5
    torch.testing.assert_close(objective.audio_bank[[2, 4]], torch.tensor([[half, half, 0, 0], [0, 0, 1, 0]]).double())
    objective(FixedStep(audio[2:], video[2:], index=torch.tensor([2])))
    torch.testing.assert_close(objective.audio_bank[2], torch.tensor([0, 0, 1, 0]).double())
    before = objective.audio_bank.clone()
    objective.eval()(FixedStep(audio[:1], video[:1], index=torch.tensor([4])))
    assert objective.audio_bank.equal(before)


def test_logits_are_fp32_under_autocast() -> None:
    objective = XDC(audio=4, video=5, clips=8, clusters=3)
    step = FixedStep(blobs(AUDIO_BLOBS, 4, 0).float(), blobs(VIDEO_BLOBS, 5, 1).float())
    objective(step)
    objective.after_step(1, 100)
    exact, _ = objective(step)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed, _ = objective(step)
    assert mixed.dtype == torch.float32 and mixed.item() == exact.item()


def test_built_from_shapes_and_errors() -> None:
    objective = create_objective("xdc", SHAPES, clusters=7)
    assert objective.audio_head.weight.shape == (7, SHAPES.audio)
    assert objective.video_bank.shape == (SHAPES.clips, SHAPES.video)
    with pytest.raises(ValueError, match="xdc: clusters must be at least 2, got 1"):
        create_objective("xdc", SHAPES, clusters=1)
    with pytest.raises(ValueError, match="xdc: every must be at least 1, got 0"):
        create_objective("xdc", SHAPES, every=0)
    step = FixedStep(torch.zeros(1, SHAPES.audio), torch.zeros(1, SHAPES.audio), index=torch.tensor([16]))
    with pytest.raises(ValueError, match=r"xdc: step.index .*\[0, 15\], got 16"):
        objective(step)
