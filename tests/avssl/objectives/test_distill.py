"""Distillation against NumPy, lightly, and itself on one process."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightly.loss import DINOLoss
from objective_steps import SHAPES, FixedStep, exact_batch, exact_task
from torch import Tensor

from avssl.objectives import distill as distillation
from avssl.objectives.distill import Distill, spread


def rows(seed: int, size: int = 5, **options) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, SHAPES.joint, dtype=torch.float64, generator=generator, **options)


def views(seed: int, **options) -> list[Tensor]:
    return [rows(seed, **options), rows(seed + 1, **options)]


def normalize(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def distill(**options) -> Distill:
    torch.manual_seed(3)
    return Distill(SHAPES, **options).double()


def test_byol_across_modalities_matches_numpy_with_its_gradient() -> None:
    objective = distill(loss="byol", hidden=7)
    audio, video = rows(0, requires_grad=True), rows(1, requires_grad=True)
    teacher_audio, teacher_video = rows(2), rows(3)
    step = FixedStep(audio, video, teacher_audio, teacher_video)
    loss, report = objective(step)

    wanted = []
    for direction, student, teacher in (
        ("audio_to_video", audio, teacher_video),
        ("video_to_audio", video, teacher_audio),
    ):
        first, _, _, second = objective.loss.predictors[direction]
        hidden = student.detach().numpy() @ first.weight.detach().numpy().T + first.bias.detach().numpy()
        hidden = (hidden - hidden.mean(axis=1, keepdims=True)) / np.sqrt(hidden.var(axis=1, keepdims=True) + 1e-5)
        predicted = np.maximum(hidden, 0) @ second.weight.detach().numpy().T + second.bias.detach().numpy()
        cosine = (normalize(predicted) * normalize(teacher.numpy())).sum(axis=1)
        wanted.append((2 - 2 * cosine).mean())
        assert report[direction].item() == pytest.approx(wanted[-1], rel=1e-9)
    assert loss.item() == pytest.approx(np.mean(wanted), rel=1e-9)
    assert torch.autograd.gradcheck(
        lambda a, v: objective(FixedStep(a, v, teacher_audio, teacher_video))[0], (audio, video)
    )


@pytest.mark.parametrize("modality", ["audio", "video"])
def test_dino_over_two_views_matches_lightly_over_steps(modality: str) -> None:
    options = {"prototypes": 9, "temperature": 0.2, "teacher_temperature": 0.0625, "center_momentum": 0.7}
    objective = distill(loss="dino", between="within", modality=modality, symmetric=True, **options)
    objective.loss.teacher_prototypes.data = F.normalize(rows(50, size=9))
    peer = DINOLoss(9, teacher_temp=0.0625, student_temp=0.2, center_momentum=0.7).double()
    for number in range(3):
        student, teacher = views(10 * number, requires_grad=True), views(10 * number + 5)
        given = {"audio": (student, rows(0), teacher), "video": (rows(0), student, None)}[modality]
        loss, _ = objective(FixedStep(*given, teacher_video=teacher))
        gradients = torch.autograd.grad(loss, [*student, objective.loss.prototypes])

        prototypes = objective.loss.prototypes.detach().clone().requires_grad_()
        wanted = peer(
            [F.normalize(t) @ F.normalize(objective.loss.teacher_prototypes).T for t in teacher],
            [F.normalize(s) @ F.normalize(prototypes).T for s in student],
        )
        assert loss.item() == pytest.approx(wanted.item(), rel=1e-9)
        for mine, theirs in zip(gradients, torch.autograd.grad(wanted, [*student, prototypes]), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(objective.loss.centers[modality].value, peer.center[0], rtol=1e-9, atol=1e-12)


def test_centers_stay_in_evaluation_and_prototypes_follow_on_a_cosine() -> None:
    objective = distill(loss="dino", prototypes=4, momentum=0.8)
    step = FixedStep(rows(0), rows(1), rows(2), rows(3))
    objective.eval()(step)
    assert not objective.loss.centers["audio"].value.any()
    objective.train()(step)
    assert objective.loss.centers["audio"].value.any()
    assert not torch.equal(objective.loss.centers["audio"].value, objective.loss.centers["video"].value)

    begin = objective.loss.teacher_prototypes.detach().clone()
    objective.loss.prototypes.data += 1
    objective.after_step(1, 11)
    torch.testing.assert_close(objective.loss.teacher_prototypes.data, begin + 0.2)
    objective.after_step(11, 11)  # momentum 1
    torch.testing.assert_close(objective.loss.teacher_prototypes.data, begin + 0.2)


def numpy_info_nce(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    logits = normalize(student) @ normalize(teacher).T / temperature
    return float(np.mean([np.log(np.exp(row).sum()) - row[i] for i, row in enumerate(logits)]))


def test_ss_mast_contrasts_both_views_of_the_patch_dropped_student_with_the_whole_teacher() -> None:
    asked = []

    class Asked(FixedStep):
        def audio(self, view=0, *, teacher=False, patch_drop=0.0):
            asked.append((view, teacher, patch_drop))
            return super().audio(view, teacher=teacher, patch_drop=patch_drop)

    options = {"between": "within", "modality": "audio", "symmetric": True, "patch_drop": 0.5, "temperature": 0.3}
    objective = distill(loss="contrastive", **options)
    student, teacher = views(0, requires_grad=True), views(5)
    loss, _ = objective(Asked(student, rows(9), teacher))
    ones = [numpy_info_nce(student[v].detach().numpy(), teacher[1 - v].numpy(), 0.3) for v in (0, 1)]
    assert loss.item() == pytest.approx(np.mean(ones), rel=1e-9)
    assert sorted(asked) == [(0, False, 0.5), (0, True, 0.0), (1, False, 0.5), (1, True, 0.0)]
    assert torch.autograd.gradcheck(lambda a, b: objective(FixedStep([a, b], rows(9), teacher))[0], student)


def test_contrastive_on_two_processes_averages_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = rows(0, size=6, requires_grad=True), rows(1, size=6)
    objective = distill(loss="contrastive", modality="audio")
    whole, _ = objective(FixedStep(student, rows(2), None, teacher))
    everyone = F.normalize(teacher)
    halves = []
    for process in range(2):
        mine = slice(3 * process, 3 * process + 3)
        monkeypatch.setattr(distillation, "rank", lambda process=process: process)
        monkeypatch.setattr(distillation, "gather_constant", lambda _: everyone)
        halves.append(objective(FixedStep(student[mine], rows(2), None, teacher[mine]))[0])
    split = (halves[0] + halves[1]) / 2
    assert split.item() == pytest.approx(whole.item(), rel=1e-12)
    (mine,), (theirs,) = torch.autograd.grad(split, student), torch.autograd.grad(whole, student)
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


VARIANTS = [
    {"loss": "byol", "between": "both", "hidden": 8},
    {"loss": "byol", "between": "cross", "modality": "video", "hidden": 8},
    {"loss": "contrastive", "between": "within", "modality": "audio", "symmetric": True},
    {"loss": "contrastive", "between": "both", "modality": "video"},
]


@pytest.mark.parametrize("options", VARIANTS, ids=lambda options: "-".join(map(str, options.values())))
def test_variants_train_the_encoders_they_name_the_same_in_chunks(options: dict) -> None:
    gradients = []
    for chunk in (None, 3):
        task = exact_task([("distill", distill(**options), 1.0)], chunk)
        with torch.no_grad():  # a teacher that differs
            for parameter in task.teacher.parameters():
                parameter += 0.01 * torch.ones_like(parameter)
        losses, _ = task(exact_batch(8))
        losses["distill"].backward()
        gradients.append({name: p.grad for name, p in task.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-9, atol=1e-11)
    students = {name.split(".")[1] for name in gradients[0] if name.startswith("pair.")}
    wanted = {"audio", "video"} if "modality" not in options else {options["modality"]}
    assert students & {"audio", "video"} == wanted
    assert not any(name.startswith("teacher.") for name in gradients[0])


def test_patch_drop_reaches_the_student_of_a_real_step() -> None:
    losses = []
    for share in (0.0, 0.5):
        objective = distill(loss="contrastive", between="within", modality="audio", patch_drop=share)
        torch.manual_seed(0)
        losses.append(exact_task([("distill", objective, 1.0)])(exact_batch(8))[0]["distill"].item())
    assert losses[0] != losses[1]


def test_spread_tells_collapse() -> None:
    torch.manual_seed(0)
    assert spread(torch.randn(4000, 8)).item() == pytest.approx(1, abs=0.02)
    assert spread(torch.ones(10, 8)).item() == pytest.approx(0, abs=1e-6)


def test_bfloat16_embeddings_are_compared_in_float32() -> None:
    objective = Distill(SHAPES, loss="dino", prototypes=6)
    given = [rows(seed).bfloat16() for seed in range(4)]
    exact, _ = copy.deepcopy(objective)(FixedStep(*[x.float() for x in given]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed, _ = objective(FixedStep(*given))
    assert mixed.dtype == torch.float32 and mixed.item() == exact.item()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"loss": "l2"}, "loss"),
        ({"between": "none"}, "between"),
        ({"modality": "text"}, "modality"),
        ({"patch_drop": 1.0}, "patch_drop"),
        ({"patch_drop": 0.5, "modality": "video"}, "patch_drop"),
        ({"hidden": 0}, "hidden"),
        ({"loss": "dino", "prototypes": 1}, "prototypes"),
        ({"loss": "dino", "temperature": 0.0}, "temperature"),
        ({"loss": "dino", "teacher_temperature": 0.0}, "teacher_temperature"),
        ({"loss": "dino", "center_momentum": 1.5}, "center_momentum"),
        ({"loss": "dino", "momentum": -1}, "momentum"),
        ({"loss": "contrastive", "temperature": 0.0}, "temperature"),
    ],
)
def test_options_out_of_range_are_named(options: dict, named: str) -> None:
    with pytest.raises(ValueError, match=f"distill: {named} "):
        Distill(SHAPES, **options)
