"""Terms of a config: each objective's projection, shared ones, and which one retrieval uses."""

import math
from typing import Any

import pytest
import torch
from objective_steps import SHAPES, exact_batch, exact_task

from avssl.models.projection import Projection
from avssl.objectives import WeightedObjectives, create_objectives
from avssl.objectives.terms import UNTRAINED, own_projections, read_terms, retrieval_projection, trained_projections


def projections(*terms: dict[str, Any]) -> dict[str, Projection]:
    return own_projections(read_terms(terms, embedding_dim=128))


def test_each_objective_names_its_own_projection() -> None:
    found = projections({"name": "infonce"}, {"name": "vicreg", "projection": {"width": 64, "dim": 32}})
    assert found == {
        "infonce": Projection(layers=2, width=512, dim=128, norm=True),
        "vicreg": Projection(layers=3, width=64, dim=32, norm=False),
    }
    assert projections({"name": "xdc"}, {"name": "masked"}) == {}
    twice = projections({"name": "ntxent"}, {"name": "ntxent", "projection": {"dim": 16}})
    assert {name: projection.dim for name, projection in twice.items()} == {"ntxent_1": 128, "ntxent_2": 16}


def test_a_term_shares_the_projection_of_another() -> None:
    infonce = {"name": "infonce", "projection": {"norm": False, "dim": 24}}
    for terms in (
        [infonce, {"name": "vicreg", "projection": "infonce"}],
        [{"name": "moco", "projection": "infonce"}, infonce],
    ):
        assert projections(*terms) == {"infonce": Projection(dim=24, norm=False)}
        for name, objective, _ in create_objectives(terms, SHAPES):
            assert objective.projected_by == "infonce" and objective.projection.dim == 24, name
    task = exact_task(create_objectives([{"name": "infonce"}, {"name": "vicreg", "projection": "infonce"}], SHAPES))
    assert list(task.pair.projections) == ["infonce"]
    sum(task(exact_batch())[0].values()).backward()
    assert all(parameter.grad is not None for parameter in task.pair.projections.parameters())


def test_queues_and_banks_are_as_wide_as_the_projection() -> None:
    terms = [{"name": "moco", "projection": {"dim": 10}}, {"name": "avid"}]
    (_, moco, _), (_, avid, _) = create_objectives(terms, SHAPES)
    assert moco.audio_queue.keys.shape[1] == 10 and avid.audio_bank.entries.shape[1] == avid.projection.dim


@pytest.mark.parametrize(
    ("names", "wanted", "found"),
    [
        (["vicreg", "ntxent", "infonce"], None, "infonce"),
        (["ntxent", "distill"], None, "ntxent"),
        (["ntxent", "infonce", "avid"], "avid", "avid"),
        (["masked", "xdc"], None, UNTRAINED),
    ],
)
def test_retrieval_takes_the_projection_of_the_contrast(names: list[str], wanted: str | None, found: str) -> None:
    assert retrieval_projection(read_terms([{"name": name} for name in names], 8), wanted) == found


@pytest.mark.parametrize(
    ("terms", "found", "trained"),
    [
        ([{"name": "matching"}, {"name": "vicreg"}], "vicreg", ["vicreg"]),
        ([{"name": "segments"}, {"name": "barlow"}], "barlow", ["barlow"]),
        ([{"name": "ntxent", "modality": "audio"}, {"name": "vicreg"}], "vicreg", ["vicreg"]),
        ([{"name": "infonce", "weight": 0}, {"name": "siglip"}], "siglip", ["siglip"]),
        ([{"name": "matching"}, {"name": "imc", "projection": "matching"}], "matching", ["matching"]),
        ([{"name": "distill", "between": "within", "modality": "audio"}], "distill", []),
        ([{"name": "masked"}], UNTRAINED, []),
    ],
)
def test_retrieval_prefers_a_projection_that_is_trained(
    terms: list[dict[str, Any]], found: str, trained: list[str]
) -> None:
    read = read_terms(terms, 8)
    assert retrieval_projection(read) == found and trained_projections(read) == trained


def test_retrieval_by_a_shared_projection() -> None:
    terms = read_terms([{"name": "vicreg"}, {"name": "infonce", "projection": "vicreg"}], 8)
    assert retrieval_projection(terms) == retrieval_projection(terms, "infonce") == "vicreg"


@pytest.mark.parametrize(
    ("terms", "told"),
    [
        ([{"name": "masked", "projection": {"dim": 3}}], "masked: has no projection to set"),
        ([{"name": "infonce", "projection": {"depth": 3}}], "infonce: projection has no 'depth'; it has layers, width"),
        ([{"name": "infonce", "projection": {"dim": 0}}], "infonce: projection: dim must be .* got 0"),
        (
            [{"name": "infonce", "projection": 512}],
            "infonce: projection must be settings or the name of a term, got 512",
        ),
        ([{"name": "infonce", "projection": "moco"}], "'moco' is of no other term; those with their own: none"),
        ([{"name": "infonce", "projection": "infonce"}], "'infonce' is of no other term"),
        ([{"name": "siglip"}, {"name": "infonce", "projection": "masked"}, {"name": "masked"}], "their own: siglip"),
        ([{"name": "infonec"}], r"no objective 'infonec' \(did you mean 'infonce'\?\)"),
    ],
)
def test_terms_that_cannot_be_built_are_told(terms: list[dict[str, Any]], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        read_terms(terms, 8)


def test_retrieval_by_a_term_that_there_is_not() -> None:
    with pytest.raises(ValueError, match="retrieval: no objective 'masked' with a projection; there are infonce"):
        retrieval_projection(read_terms([{"name": "infonce"}, {"name": "masked"}], 8), "masked")


@pytest.mark.parametrize(
    ("names", "given", "wanted"),
    [
        (["distill"], None, (0.996, 1.0)),
        (["infonce", "moco"], None, (0.999, 0.999)),
        (["distill"], 0.9, (0.9, 1.0)),
        (["moco"], 0.9, (0.9, 0.9)),
        (["moco", "distill"], 0.9, (0.9, 1.0)),
    ],
)
def test_the_teacher_has_the_momentum_of_the_paper_or_the_given_one(
    names: list[str], given: float | None, wanted: tuple[float, float]
) -> None:
    terms = create_objectives([{"name": name} for name in names], SHAPES)
    assert WeightedObjectives(terms).teacher_momentum(given) == wanted


def test_two_teachers_of_unlike_momentum_are_refused() -> None:
    terms = create_objectives([{"name": "moco"}, {"name": "distill"}], SHAPES)
    with pytest.raises(ValueError, match=r"own differ \(moco 0.999 to 0.999, distill 0.996 to 1\), .* give it"):
        WeightedObjectives(terms).teacher_momentum(None)


@pytest.mark.parametrize(("name", "given"), [("moco", None), ("distill", None), ("moco", 0.5), ("distill", 0.5)])
def test_the_teacher_follows_at_that_momentum(name: str, given: float | None) -> None:
    """Over 5 steps: m constant for moco, on a cosine to 1 for distill, against the formula."""
    task = exact_task(create_objectives([{"name": name}], SHAPES), teacher_momentum=given)
    first = given or {"moco": 0.999, "distill": 0.996}[name]
    with torch.no_grad():
        for parameter in task.pair.parameters():
            parameter += 1.0
    assert task.teacher is not None
    key = "projections." + name + ".audio.weight"
    expected, student = task.teacher.get_parameter(key).clone(), task.pair.get_parameter(key)
    for step in range(1, 6):
        task.after_step(step, 5)
        m = first if name == "moco" else 1 - (1 - first) * (math.cos(math.pi * (step - 1) / 4) + 1) / 2
        expected = m * expected + (1 - m) * student
        torch.testing.assert_close(task.teacher.get_parameter(key), expected, rtol=1e-12, atol=1e-12)


def test_a_run_of_before_projections_belonged_to_objectives_is_resumed() -> None:
    """Student and teacher, where all terms share one projection; else it is said what to do."""
    terms = [{"name": "moco", "queue": 4}, {"name": "ntxent", "projection": "moco"}]
    task = exact_task(create_objectives(terms, SHAPES))
    former = {}
    for key, value in task.state_dict().items():
        for modality in ("audio", "video"):
            key = key.replace(f"projections.moco.{modality}.", f"{modality}_projection.")
        former[key] = value + 1 if "_projection." in key else value
    assert {"pair.audio_projection.weight", "teacher.video_projection.bias"} <= set(former)
    task.load_state_dict(dict(former))
    for whose in ("pair", "teacher"):
        for modality in ("audio", "video"):
            loaded = task.get_parameter(f"{whose}.projections.moco.{modality}.weight")
            assert torch.equal(loaded, former[f"{whose}.{modality}_projection.weight"])
    several = exact_task(create_objectives([terms[0], {"name": "ntxent"}], SHAPES))
    with pytest.raises(RuntimeError, match=r"shared one projection, here moco, ntxent .* give ntxent the option"):
        several.load_state_dict(dict(former))
