"""Command lines: overrides, config files, clear errors."""

import math
from pathlib import Path

import pytest
import yaml

from avssl.cli import join_list, parse
from avssl.commands import main
from avssl.config import EvaluateConfig, FinetuneConfig, PretrainConfig, to_dict, to_yaml
from avssl.objectives import Shapes, create_objectives, list_objectives

ROOT = Path(__file__).parents[2]


def test_a_command_without_recipes_has_the_dataclass_defaults() -> None:
    assert parse(EvaluateConfig, ["--checkpoint", "x"]) == EvaluateConfig("x")


def test_data_name_config_and_override_in_order(tmp_path) -> None:
    file = tmp_path / "delta.yaml"
    file.write_text("optim: {lr: 0.5, batch_size: 3}\ndata: {name: fsdd, options: {held_out_speakers: [lucas]}}\n")
    config = parse(PretrainConfig, ["--config", str(file), "--optim.lr", "0.25", "--data", "grid"])
    assert (config.optim.lr, config.optim.batch_size, config.data.name) == (0.25, 3, "grid")
    assert config.data.options == {}  # those of fsdd do not hold for grid
    assert config.data.val_fraction == PretrainConfig().data.val_fraction


def test_objectives_compose_from_yaml() -> None:
    text = "[{name: infonce, weight: 0.5, temperature: 0.1}, {name: ntxent, modality: audio}]"
    config = parse(PretrainConfig, ["--objectives", text])
    terms = create_objectives(config.objectives, Shapes(joint=8, audio=8, video=8, clips=4))
    assert [(name, weight) for name, _, weight in terms] == [("infonce", 0.5), ("ntxent", 1.0)]
    assert terms[0][1].log_scale.item() == pytest.approx(-math.log(0.1))


@pytest.mark.parametrize(
    ("term", "told"),
    [
        ({"weight": 1.0}, "has no name"),
        ({"name": "infonce", "weight": "much"}, "weight must be a number, got 'much'"),
        ({"name": "infonce", "weight": float("nan")}, "weight must be a number"),
        ({"name": "infonec"}, "did you mean 'infonce'"),
        ({"name": "infonce", "temprature": 1.0}, "infonce: .*temprature"),
    ],
)
def test_a_wrong_term_is_a_clear_error(term, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        create_objectives([term], Shapes(joint=8, audio=8, video=8, clips=4))


def test_objectives_are_listed_one_a_line(capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(PretrainConfig, ["--list-objectives"])
    lines = capsys.readouterr().out.splitlines()
    assert ended.value.code == 0 and [line.split()[0] for line in lines] == list(list_objectives())
    assert all(len(line.split()) > 3 for line in lines)


def test_resolved_config_reads_back(tmp_path) -> None:
    config = parse(PretrainConfig, ["--data", "grid", "--output", str(tmp_path), "--optim.betas", "[0.8, 0.9]"])
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert to_dict(parse(PretrainConfig, ["--config", str(tmp_path / "config.yaml")])) == to_dict(config)


def test_printed_config_is_complete(capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(PretrainConfig, ["--print_config"])
    assert stop.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    printed.pop("config", None)
    assert printed == to_dict(parse(PretrainConfig, []))


def test_help_documents_every_field(capsys) -> None:
    with pytest.raises(SystemExit):
        parse(FinetuneConfig, ["--help"])
    text = capsys.readouterr().out
    for field in ("Label smoothing of the cross-entropy", "Peak learning rate", "online, offline or disabled"):
        assert field in text


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--optim.lrr", "1"], "optim.lrr"),
        (["--optim.lr", "fast"], "optim.lr"),
        (["--head", "medium"], "head"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--optim.batchsize", "1"], "did you mean optim.batch_size? See"),
    ],
)
def test_bad_settings_are_one_line_and_status_2(argv, told, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(FinetuneConfig, argv)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert told in error and error.count("\n") == 1 and error.startswith("error: ")


def test_unknown_key_of_a_config_file_is_named(tmp_path, capsys) -> None:
    file = tmp_path / "typo.yaml"
    file.write_text("optim: {learning_rate: 1.0}\n")
    with pytest.raises(SystemExit) as stop:
        parse(FinetuneConfig, ["--config", str(file)])
    assert stop.value.code == 2 and "learning_rate" in capsys.readouterr().err


def test_yaml_cannot_name_classes_or_run_code(tmp_path) -> None:
    file = tmp_path / "evil.yaml"
    file.write_text(f"output: !!python/object/apply:pathlib.Path.touch [{tmp_path / 'ran'}]\n")
    with pytest.raises(SystemExit):
        parse(FinetuneConfig, ["--config", str(file)])
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("checkpoint", ["none", "auto"])
def test_unknown_data_name_suggests_the_nearest(checkpoint: str, tmp_path, capsys) -> None:
    assert main(["finetune", "--data", "grdi", "--checkpoint", checkpoint, "--output", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert "did you mean 'grid'" in error and error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.parametrize("given", [["probe", "knn"], ["probe,knn"], ["probe,", "knn"], ["[probe,knn]"]])
def test_a_list_is_given_as_words_or_with_commas(given: list[str]) -> None:
    argv = ["--checkpoint", "x", "--evaluations", *given, "--seed", "3"]
    config = parse(EvaluateConfig, join_list(argv, "--evaluations"))
    assert config.evaluations == ["probe", "knn"] and config.seed == 3
