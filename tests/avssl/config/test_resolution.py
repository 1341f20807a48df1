"""From what is given to a config: which recipe runs, how sources are merged, what an error says."""

import itertools
import logging
from pathlib import Path

import pytest
import torch
import yaml

import mast
from avssl.cli import parse, read_settings
from avssl.config import (
    CONFIGS,
    AugmentSheetConfig,
    CrossvalConfig,
    DataConfig,
    FinetuneConfig,
    PretrainConfig,
    Source,
    given_options,
    resolve,
    to_dict,
)
from avssl.config.sources import BELONGS, list_recipes, merge
from avssl.data.catalog import names
from avssl.errors import SettingsError
from avssl.models.video import list_video_encoders, own_size
from avssl.training.initialization import complete_audio, complete_finetuning, complete_pair


def parameters(config: PretrainConfig | FinetuneConfig) -> int:
    with torch.device("meta"):
        encoder = mast.create_model(complete_audio(config.audio).model, **config.audio.options)
    return sum(weight.numel() for weight in encoder.parameters())


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch) -> None:
    """No runs of pretraining lie in the working folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def recipe(tmp_path) -> str:
    file = tmp_path / "recipe.yaml"
    file.write_text(
        "data: {name: fsdd, options: {held_out_speakers: [lucas]}, clip_seconds: 1.0, num_workers: 3}\n"
        "audio: {model: mast_nano, options: {drop_path: 0.1, frames: 100}, num_mels: 64, mean: -3.0, std: 2.0}\n"
        "video: {model: tiny_motion, crop_size: 64}\n"
        "optim: {lr: 0.1}\n"
    )
    return str(file)


# The model that is named is the model that is built.


@pytest.mark.parametrize(("model", "millions"), [("mast_base", 51.0), ("mast_nano", 1.2), ("ast_base", 86.2)])
@pytest.mark.parametrize("command", [PretrainConfig, FinetuneConfig])
@pytest.mark.parametrize("data", ["demo", "esc10", "some-folder"])
def test_a_named_model_has_its_own_size_whatever_recipe_runs(command, data: str, model: str, millions: float) -> None:
    recipe = parse(command, ["--data", data])
    config = parse(command, ["--data", data, "--audio.model", model])
    assert parameters(config) == pytest.approx(millions * 1e6, rel=0.03)
    if model != recipe.audio.model:
        assert config.audio.options == {} and complete_audio(config.audio).num_mels == 128


OPTIONS = {
    "spelt out": ["--audio.options.drop_path", "0.2"],
    "as a dict": ["--audio.options", "{drop_path: 0.2}"],
    "as a group": ["--audio", "{options: {drop_path: 0.2}}"],
    "as a key of a group": ["--audio.options={drop_path: 2e-1}"],
}


@pytest.mark.parametrize("spelling", OPTIONS)
def test_given_options_replace_theirs_and_leave_the_others(spelling: str, recipe: str) -> None:
    config = parse(FinetuneConfig, ["--config", recipe, *OPTIONS[spelling]])
    assert config.audio.options == {"drop_path": 0.2, "frames": 100}
    assert config.audio.model == "mast_nano" and config.audio.num_mels == 64


@pytest.mark.parametrize("spelling", OPTIONS)
@pytest.mark.parametrize("order", [1, -1])
def test_options_of_another_model_are_left_out_and_given_ones_stay(spelling: str, order: int, recipe: str) -> None:
    parts = [["--audio.model", "ast_base"], OPTIONS[spelling], ["--config", recipe]][::order]
    config = parse(FinetuneConfig, list(itertools.chain(*parts)))
    assert config.audio.model == "ast_base" and config.audio.options == {"drop_path": 0.2}
    assert config.audio.num_mels is None
    assert (config.audio.mean, config.audio.std) == (-3.0, 2.0)  # of the data, not of the model
    assert config.optim.lr == 0.1


@pytest.mark.parametrize("order", itertools.permutations(["a", "b", "c"]))
def test_spellings_of_one_command_line_add_up_in_any_order(order) -> None:
    parts = {
        "a": ["--audio.options.drop_path", "0.2"],
        "b": ["--audio.options", "{frames: 100}"],
        "c": ["--audio.options.mels", "64"],
    }
    config = parse(FinetuneConfig, [word for name in order for word in parts[name]])
    assert config.audio.options == {"drop_path": 0.2, "frames": 100, "mels": 64}


def test_items_are_added_to_the_list_of_the_recipe_or_of_the_defaults() -> None:
    added = ["--objectives+", "{name: sync}"]
    infonce, vicreg, sync = {"name": "infonce"}, {"name": "vicreg", "weight": 0.5}, {"name": "sync"}
    beside = vicreg | {"projection": "infonce"}
    again = {"name": "ntxent", "modality": "audio"}
    assert parse(PretrainConfig, added).objectives == [infonce, beside, again, sync]
    assert parse(PretrainConfig, ["--config", "none", *added]).objectives == [infonce, sync]
    assert parse(PretrainConfig, ["--objectives", "[{name: vicreg, weight: 0.5}]", *added]).objectives == [vicreg, sync]
    assert parse(PretrainConfig, [*added, "--objectives+={name: avc}"]).objectives[3:] == [sync, {"name": "avc"}]
    assert parse(PretrainConfig, ["--wandb.tags+", "first"]).wandb.tags == ["first"]


def test_the_same_model_named_again_keeps_its_options(recipe: str) -> None:
    config = parse(FinetuneConfig, ["--config", recipe, "--audio.model", "mast_nano"])
    assert config.audio.options == {"drop_path": 0.1, "frames": 100} and config.audio.num_mels == 64


def test_options_for_no_model_in_particular_stay(tmp_path) -> None:
    file = tmp_path / "any.yaml"
    file.write_text("audio: {options: {drop_path: 0.3}}\ndata: {clip_seconds: 10.0}\n")
    config = parse(FinetuneConfig, ["--config", str(file), "--audio.model", "mast_base", "--data", "esc50"])
    assert config.audio.options == {"drop_path": 0.3} and config.data.clip_seconds == 10.0


def test_a_later_file_is_a_later_source(recipe: str, tmp_path) -> None:
    (tmp_path / "ast.yaml").write_text("audio: {model: ast_base}\n")
    config = parse(FinetuneConfig, ["--config", recipe, "--config", "ast.yaml"])
    assert config.audio.model == "ast_base" and config.audio.options == {} and config.audio.num_mels is None


def test_settings_of_other_data_and_of_another_video_encoder_are_left_out(recipe: str, caplog) -> None:
    with caplog.at_level(logging.INFO):
        config = parse(PretrainConfig, ["--config", recipe, "--data", "grid", "--video.model", "mvit_v2_s"])
    assert config.data.options == {} and config.data.clip_seconds is None and config.data.num_workers == 3
    assert config.video.crop_size is None
    whole = complete_pair(config)
    assert (whole.data.num_frames, whole.data.frame_size, whole.video.crop_size) == (16, 256, 224)
    assert "data.name is grid: data.options, data.clip_seconds given for fsdd left out" in caplog.text
    assert "video.model is mvit_v2_s: video.crop_size given for tiny_motion left out" in caplog.text


def test_the_encoders_of_a_given_checkpoint_win_over_a_recipe(recipe: str) -> None:
    config = parse(FinetuneConfig, ["--config", recipe, "--checkpoint", "runs/x"])
    assert config.audio.model is None and config.audio.options == {"drop_path": 0.1}
    assert config.audio.num_mels is config.audio.mean is config.video.model is config.data.num_frames is None
    config = parse(FinetuneConfig, ["--config", recipe, "--checkpoint", "none"])
    assert config.audio.model == "mast_nano"
    given = ["--checkpoint", "runs/x", "--audio.model", "mast_tiny"]  # which must then be true of the checkpoint
    assert parse(FinetuneConfig, ["--config", recipe, *given]).audio.model == "mast_tiny"


def test_pretraining_from_a_checkpoint_leaves_out_what_that_brings(recipe: str, tmp_path) -> None:
    """A pretraining run has both encoders; an export, or a classifier's run, the audio encoder alone."""
    run, export, classifier = tmp_path / "run", tmp_path / "run" / "audio_encoder", tmp_path / "classifier"
    for folder, text in ((run, "embedding_dim: 128"), (classifier, "head: full")):
        folder.mkdir()
        (folder / "config.yaml").write_text(text)
    export.mkdir()
    for checkpoint in (run, run / "checkpoints" / "best.ckpt"):
        config = parse(PretrainConfig, ["--config", recipe, "--checkpoint", str(checkpoint)])
        assert config.audio.model is config.video.model is config.video.crop_size is None
    for checkpoint in (export, classifier, classifier / "checkpoints" / "last.ckpt"):
        config = parse(PretrainConfig, ["--config", recipe, "--checkpoint", str(checkpoint)])
        assert config.audio.model is None and (config.video.model, config.video.crop_size) == ("tiny_motion", 64)


def test_so_do_those_of_the_pretraining_that_auto_finds(recipe: str, tmp_path) -> None:
    assert parse(FinetuneConfig, ["--config", recipe]).audio.model == "mast_nano"
    (tmp_path / "runs" / "pretrain-fsdd" / "audio_encoder").mkdir(parents=True)
    config = parse(FinetuneConfig, ["--config", recipe])
    assert config.audio.model is None and config.checkpoint == "auto"
    assert parse(FinetuneConfig, ["--config", recipe, "--checkpoint", "none"]).audio.model == "mast_nano"
    assert parse(FinetuneConfig, ["--config", recipe, "--data", "esc50"]).audio.model == "mast_nano"


# The recipe.


def test_demo_settings_are_those_that_its_numbers_were_measured_with() -> None:
    whole = complete_pair(parse(PretrainConfig, []))
    assert (whole.audio.model, whole.audio.options, whole.audio.num_mels) == ("mast_nano", {}, 64)
    assert (whole.video.model, whole.video.crop_size) == ("tiny", 48)
    assert (whole.data.name, whole.data.num_frames, whole.data.frame_size) == ("demo", 8, 56)
    assert (whole.data.val_fraction, whole.log.validate_every) == (0.1, 110)
    pair = [{"name": "infonce"}, {"name": "vicreg", "weight": 0.5, "projection": "infonce"}]
    assert whole.objectives == [*pair, {"name": "ntxent", "modality": "audio"}]
    assert (whole.augment.spec_warp, whole.augment.mix, whole.augment.noise_db, whole.augment.gain_db) == (
        0.5,
        0.3,
        10,
        6,
    )
    assert (whole.optim.batch_size, whole.optim.epochs, whole.optim.lr, whole.optim.warmup) == (32, 16, 5e-4, 0.1)
    tuned = complete_finetuning(parse(FinetuneConfig, []), None)
    assert tuned.audio == whole.audio and tuned.label_smoothing == 0.1 and tuned.head == "linear"
    assert (tuned.optim.batch_size, tuned.optim.epochs, tuned.optim.lr) == (24, 12, 5e-4)
    assert (tuned.augment.time_mask, tuned.augment.freq_mask, tuned.augment.gain_db) == (0.1, 0.1, 3.0)


def test_typed_defaults_hold_nothing_of_a_model_or_of_data() -> None:
    for config in (PretrainConfig(), FinetuneConfig(), AugmentSheetConfig()):
        assert config.audio.options == {}
        sizes = (config.audio.model, config.audio.num_mels, config.video.model, config.video.crop_size)
        assert {*sizes, config.data.num_frames, config.data.frame_size, config.data.clip_seconds} == {None}


@pytest.mark.parametrize("name", [name for name in names() if name != "demo"])
@pytest.mark.parametrize("command", [FinetuneConfig, CrossvalConfig])
def test_every_known_data_set_has_a_recipe_to_finetune(name: str, command, caplog) -> None:
    with caplog.at_level(logging.INFO):
        config = parse(command, ["--data", name, "--head", "full"])
    assert config.checkpoint == "none" and config.data.name == name
    assert caplog.records[0].message.startswith(f"recipe of {name}: configs/finetune/{name}.yaml")
    assert parse(command, ["--data", name, "--optim.lr", "0.125"]).optim.lr == 0.125


def test_data_of_ones_own_runs_the_small_recipe_and_says_which_others_there_are(caplog) -> None:
    with caplog.at_level(logging.INFO):
        config = parse(PretrainConfig, ["--data", "some/videos"])
    (line,) = [record.message for record in caplog.records]
    assert "some/videos" in line and "configs/pretrain/small.yaml runs (For a CPU or a laptop's GPU)" in line
    assert "--config base: For one GPU of 24 GB" in line and "--config large: For GPUs of 80 GB and more" in line
    assert config == resolve(PretrainConfig, [Source("here", {"data": "some/videos"})])
    assert config.audio.model == "mast_pico" and config.data.clip_seconds == 4.0


@pytest.mark.parametrize("recipe", ["large", str(CONFIGS.resolve() / "pretrain" / "large.yaml")])
@pytest.mark.parametrize(("data", "own"), [("epic-kitchens", True), ("vggsound", True), ("demo", True), ("own", False)])
def test_a_recipe_for_any_data_leaves_the_clips_to_known_data(recipe: str, data: str, own: bool, tmp_path) -> None:
    (tmp_path / "own").mkdir()
    argv = ["--config", recipe, "--data", data]
    assert parse(PretrainConfig, argv).data.clip_seconds == (None if own else 10.0)
    assert parse(PretrainConfig, [*argv, "--data.clip_seconds", "3"]).data.clip_seconds == 3
    (tmp_path / "mine.yaml").write_text("data: {clip_seconds: 5.0}\n")
    mine = parse(PretrainConfig, [*argv, "--config", "mine.yaml"])
    assert mine.data.clip_seconds == 5.0  # a file of one's own is meant as it says


def test_a_given_file_is_taken_in_place_of_the_datas_recipe(recipe: str, caplog) -> None:
    with caplog.at_level(logging.INFO):
        config = parse(FinetuneConfig, ["--config", recipe])
        assert not caplog.records and config.audio.model == "mast_nano"
        assert parse(FinetuneConfig, ["--data", "esc50", "--config", "esc50"]).audio.model == "mast_pico"
        assert not caplog.records
        assert parse(FinetuneConfig, ["--data", "fsdd", "--config", recipe]).label_smoothing == 0.1
    assert "in place of configs/finetune/fsdd.yaml, the recipe of fsdd; --config fsdd before it" in caplog.text


def test_without_a_recipe_there_are_the_defaults_alone(caplog) -> None:
    with caplog.at_level(logging.INFO):
        config = parse(FinetuneConfig, ["--config", "none", "--data", "esc50"])
    assert config == FinetuneConfig(data=DataConfig("esc50")) and not caplog.records


def test_a_recipe_is_found_by_name_from_anywhere() -> None:
    by_name = parse(PretrainConfig, ["--config", "large"])
    assert by_name == parse(PretrainConfig, ["--config", "configs/pretrain/large.yaml"])
    assert by_name == parse(PretrainConfig, ["--config", str(CONFIGS / "pretrain" / "large.yaml")])
    assert by_name.audio.model == "mast_base"


def test_python_and_shell_resolve_alike(recipe: str) -> None:
    given = {"data": "esc50", "audio": {"options": {"drop_path": 0.2}}, "optim.epochs": 3, "output": Path("x")}
    argv = ["--data", "esc50", "--audio.options.drop_path", "0.2", "--optim.epochs", "3", "--output", "x"]
    assert resolve(FinetuneConfig, [Source("arguments", given)]) == parse(FinetuneConfig, argv)
    given = {"data": {"name": "fsdd"}, "seed": 3}
    argv = ["--config", recipe, "--data.name=fsdd", "--seed", "3"]
    assert resolve(FinetuneConfig, [Source("arguments", given)], [recipe]) == parse(FinetuneConfig, argv)


def test_a_resolved_config_resolves_to_itself(tmp_path) -> None:
    for command, complete in (
        (PretrainConfig, complete_pair),
        (FinetuneConfig, lambda c: complete_finetuning(c, None)),
    ):
        config = complete(parse(command, ["--data", "grid", "--audio.options.drop_path", "0.1"]))
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(to_dict(config)))
        again = parse(command, ["--config", str(tmp_path / "config.yaml")])
        assert to_dict(complete(again)) == to_dict(again) == to_dict(config)


def test_of_several_processes_one_tells_the_recipe(monkeypatch, caplog) -> None:
    for rank, told in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        with caplog.at_level(logging.INFO):
            parse(PretrainConfig, [])
        assert len(caplog.records) == told
        caplog.clear()


def test_every_recipe_begins_with_what_it_is_for() -> None:
    recipes = list_recipes("pretrain")
    assert {"small", "base", "large"} < {*recipes}
    assert all(10 < len(what) < 60 for what in recipes.values()), recipes
    assert all(len(what) > 10 for what in list_recipes("finetune").values())


def test_a_file_takes_its_base_from_beside_it(tmp_path) -> None:
    (tmp_path / "base.yaml").write_text("optim: {lr: 0.1, epochs: 2}\n")
    (tmp_path / "over.yaml").write_text("base: base.yaml\noptim: {epochs: 3}\n")
    config = parse(FinetuneConfig, ["--config", str(tmp_path / "over.yaml")])
    assert (config.optim.lr, config.optim.epochs) == (0.1, 3)


# Errors: one line that names place, setting and fix.


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "optim: {learnin_rate: 1.0}\n",
            r"bad\.yaml: optim\.learnin_rate: no such setting; there are ",
        ),
        (
            "optim: {batch_sise: 1}\n",
            r"bad\.yaml: optim\.batch_sise: .* did you mean optim\.batch_size\?",
        ),
        ("lr: 1.0\n", r"bad\.yaml: lr: no such setting; did you mean optim\.lr\?"),
        ("audio: {option: {drop_path: 0.1}}\n", r"audio\.option: .* did you mean audio\.options\?"),
        ("optim: {lr: fast}\n", r"bad\.yaml: optim\.lr: .*fast"),
        ("optim:\n  lr: [1\n  epochs: 2\n", r"bad\.yaml, line 3, column 9: not YAML: "),
        ("optim:\n\tlr: 1\n", r"bad\.yaml, line 2, column 1: not YAML: "),
        ("- 1\n", r"bad\.yaml: must hold settings by name"),
        ("base: nowhere.yaml\n", r"bad\.yaml: base: there is no file nowhere\.yaml"),
    ],
)
def test_a_wrong_file_is_told_in_one_line(text: str, told: str, tmp_path, capsys) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(SystemExit) as stop:
        parse(FinetuneConfig, ["--config", str(file)])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    with pytest.raises(SettingsError, match=told):
        resolve(FinetuneConfig, [], [str(file)])


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--optim.lrr", "1"], r"--optim\.lrr: no such setting; did you mean optim\.lr\?"),
        (["--lr", "1"], r"--lr: no such setting; did you mean optim\.lr\?"),
        (
            ["--audio.opions.drop_path", "1"],
            r"--audio\.opions: .* did you mean audio\.options\?",
        ),
        (["--head", "medium"], r"head: .*linear.*full.*medium"),
        (["--config", "kinetics-sonds"], "did you mean kinetics-sounds"),
        (["esc50"], "'esc50': no option"),
    ],
)
def test_a_wrong_option_is_told_in_one_line(argv: list[str], told: str, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(FinetuneConfig, argv)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    with pytest.raises(SettingsError, match=told):
        files, given = given_options(FinetuneConfig, argv)
        resolve(FinetuneConfig, given, files)


@pytest.mark.parametrize("spelling", ["option", "group", "file"])
def test_none_takes_a_value_away_where_the_message_says_that_it_may(spelling: str, tmp_path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("augment: {noise_db: none}\nhead: full\n")
    argv = {
        "option": ["--config", "small", "--augment.noise_db", "none"],
        "group": ["--config", "small", "--augment", "{noise_db: none}"],
        "file": ["--config", "small", "--config", str(file)],
    }[spelling]
    assert parse(FinetuneConfig, ["--config", "small"]).augment.noise_db == 20
    config = parse(FinetuneConfig, [*argv, "--checkpoint", "none", "--data", str(tmp_path)])
    assert config.augment.noise_db is None
    assert config.checkpoint == "none"  # a text


TYPES = {
    "nan": (["--data.clip_seconds", "nan"], "data.clip_seconds: must be a number or none, got nan"),
    "a word": (["--optim.max_steps", "many"], "optim.max_steps: must be a whole number or none, got many"),
    "a choice": (["--data.sampling", "x"], "data.sampling: must be shuffle, balanced or shards, got x"),
    "a number or a choice": (["--data.channel", "left"], "data.channel: must be a whole number or mean, got left"),
    "a list": (["--data.heads", "verb"], "data.heads: must be none or a list, each item a text, got verb"),
    "in a group": (["--optim", "{lr: fast}"], "optim.lr: must be a number, got fast"),
    "a group": (["--optim", "3"], "optim: must be settings by name, .* got 3"),
    "unknown in a group": (["--optim", "{lrr: 1}"], r"--optim.lrr: no such setting; did you mean optim.lr\?"),
    "unknown in data": (["--data", "{nam: demo}"], r"--data.nam: no such setting; did you mean data.name\?"),
}


@pytest.mark.parametrize(("argv", "told"), TYPES.values(), ids=TYPES)
def test_a_value_of_a_wrong_type_is_told_in_words(argv: list[str], told: str) -> None:
    with pytest.raises(SettingsError, match=f"^{told}$"):
        read_settings(PretrainConfig, argv)


TWICE = {
    "dotted first": ({"optim.lr": 1, "optim": {"lr": 2}}, "optim.lr: is given twice, as 1 and as 2"),
    "dotted last": ({"optim": {"lr": 2}, "optim.lr": 1}, "optim.lr: is given twice, as 2 and as 1"),
    "data": ({"data": "vids", "data.name": "demo"}, "data.name: is given twice, as 'vids' and as 'demo'"),
    "options": ({"audio": {"options": {"a": 1}}, "audio.options.a": 2}, "audio.options.a: is given twice"),
    "a group": ({"optim": None, "optim.lr": 1}, "optim: is given twice"),
}


@pytest.mark.parametrize(("values", "told"), TWICE.values(), ids=TWICE)
def test_a_setting_that_is_given_twice_in_one_place_is_refused(values, told: str, tmp_path) -> None:
    with pytest.raises(SettingsError, match=rf"^{told}.*give one of them$"):
        resolve(PretrainConfig, [Source("", values)])
    (tmp_path / "twice.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    with pytest.raises(SettingsError, match=rf"^twice.yaml: {told}"):
        resolve(PretrainConfig, [], ["twice.yaml"])


def test_spellings_that_agree_or_add_up_are_one_setting() -> None:
    values = {"optim.lr": 1e-3, "optim": {"lr": 1e-3, "epochs": 2}, "optim.warmup": 0.5}
    optim = resolve(PretrainConfig, [Source("", values)], ["none"]).optim
    assert (optim.lr, optim.epochs, optim.warmup) == (1e-3, 2, 0.5)
    assert parse(PretrainConfig, ["--optim.lr", "1", "--optim", "{lr: 2}"]).optim.lr == 2  # of a shell the later wins


def test_a_key_that_a_recipe_has_twice_is_refused(tmp_path) -> None:
    (tmp_path / "twice.yaml").write_text("optim:\n  lr: 0.1\n  epochs: 2\n  lr: 0.2\n")
    with pytest.raises(SettingsError, match=r"^twice.yaml, line 4: lr: is given twice"):
        resolve(PretrainConfig, [], ["twice.yaml"])


def test_the_page_of_settings_names_what_belongs_to_what() -> None:
    page = (CONFIGS.resolve().parent / "docs" / "settings.md").read_text()
    for name, owned in BELONGS.items():
        (row,) = [line for line in page.splitlines() if line.startswith("|") and f"`{name}`" in line.split("|")[1]]
        assert {f"`{key}`" for key in owned if key != "data.split"} == {
            part.strip() for part in row.split("|")[2].split(",")
        }
    for name in list_video_encoders():
        frames, side = own_size(name)
        assert name in page and f"{frames} of {side} x {side}" in page.replace("frames of", "of")


def test_merging_alone() -> None:
    sources = [
        Source("a", {"audio": {"model": "x", "options": {"p": 1}}}),
        Source("b", {"audio": {"options": {"q": 2}}}),
        Source("c", {"audio": {"model": "y"}}),
        Source("d", {"audio": {"options": {"r": 3}}}),
    ]
    assert merge(sources[:2])[0] == {"audio": {"model": "x", "options": {"p": 1, "q": 2}}}
    values, lines = merge(sources)
    assert values == {"audio": {"model": "y", "options": {"r": 3}}}
    assert lines == ["audio.model is y: audio.options given for x left out"]
