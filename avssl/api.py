"""The commands as functions: the same settings, recipes, checks and errors, and a result instead of an exit status.

Settings are keyword arguments named as in the shell. A group of them is a dict, or written with dots; data are named by
themselves, ``data="NAME"``, unless something else is said about them::

    run = avssl.pretrain(data="videos/", audio={"model": "mast_tiny"}, optim={"epochs": 3})
    run = avssl.pretrain(data={"name": "vggsound", "root": "VGG"}, **{"optim.epochs": 3})
    tuned = avssl.finetune(data="esc50", checkpoint=run.checkpoint, head="full")
    print(tuned.metrics["sound/top1"], tuned.report)
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from avssl.bounds import check_bounds
from avssl.config import EmbedConfig, EvaluateConfig, FinetuneConfig, PretrainConfig, Source, resolve
from avssl.errors import SettingsError

if TYPE_CHECKING:
    from avssl.prediction import Prediction

__all__ = ["Embeddings", "Predictions", "Result", "embed", "evaluate", "finetune", "predict", "pretrain"]

Config = TypeVar("Config")
# A config object, or what --config takes: files or names of recipes, the later over the earlier.
Recipes = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class Result:
    """What a run found and where it is.

    Attributes:
        finished: False where a signal ended the run early; the same call goes on with it.
        metrics: Its numbers, named as in ``result.json``; empty unless finished, and, of several processes, in all but
            the first.
        folder: Folder of the run.
        checkpoint: What ``checkpoint`` of another call takes: the run, or, of an evaluation, what was evaluated.
        report: Its page; None unless finished.
        details: All that ``result.json`` holds.
    """

    finished: bool
    metrics: dict[str, float]
    folder: Path
    checkpoint: Path
    report: Path | None
    details: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Embeddings:
    """A file of embeddings, one row for each window.

    Attributes:
        file: Parquet or .npz.
        windows, embedded: Windows of all clips, and those that could be read.
        left_out: How many were not, by reason.
        details: All that the summary beside the file holds.
    """

    file: Path
    windows: int
    embedded: int
    left_out: dict[str, int]
    details: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Predictions:
    """Classes over time.

    Attributes:
        files: Windows of each file in their order: ``start`` and ``end`` in seconds and ``scores``, (classes,) by head,
            0 to 1. One that breaks off keeps the windows until there.
        labels: Class names by head.
        failed: Why a file could not be read, or not to its end.
        warnings: Why only a part of a file was judged, such as "timestamps start over" where two were joined.
    """

    files: dict[str, "list[Prediction]"]
    labels: dict[str, list[str]]
    failed: dict[str, str]
    warnings: dict[str, str] = field(default_factory=dict)


def pretrain(config: PretrainConfig | Recipes | None = None, **settings: Any) -> Result:
    """Pretrains an audio-visual pair on raw video; without arguments on the demo set.

    Args:
        config: A whole :class:`~avssl.config.PretrainConfig`, or recipes as ``--config`` takes them.
        **settings: Fields of :class:`~avssl.config.PretrainConfig`, over the recipe.

    Raises:
        SettingsError: there is no such setting, or it cannot have that value.
        DataError, OSError, ValueError: what the message says; nothing is exited.
    """
    from avssl.commands.pretrain import pretrain as run

    return _run_result(run(_read(PretrainConfig, config, settings)))


def finetune(config: FinetuneConfig | Recipes | None = None, **settings: Any) -> Result:
    """Trains a linear or a full head to classify audio, video or both; arguments and errors as of :func:`pretrain`."""
    from avssl.commands.finetune import finetune as run

    return _run_result(run(_read(FinetuneConfig, config, settings)))


def evaluate(config: EvaluateConfig | None = None, **settings: Any) -> Result:
    """Evaluates a checkpoint on any data; arguments and errors as of :func:`pretrain`."""
    from avssl.commands.evaluate import evaluate as run

    read = _read(EvaluateConfig, config, settings)
    return _run_result(run(read), Path(read.checkpoint))


def embed(config: EmbedConfig | None = None, **settings: Any) -> Embeddings:
    """Embeds any media with a trained checkpoint into a file; arguments and errors as of :func:`pretrain`."""
    from avssl.commands.embed import embed_media

    read = _read(EmbedConfig, config, settings)
    summary = embed_media(read)
    return Embeddings(read.output, summary["windows"], summary["embedded"], summary["left_out"]["reasons"], summary)


def predict(
    files: str | Path | Sequence[str | Path],
    checkpoint: str | Path,
    *,
    window: float | None = None,
    hop: float | None = None,
    batch_size: int = 16,
    device: str = "auto",
    channel: int | Literal["mean"] | None = None,
) -> Predictions:
    """Says which classes are heard when.

    Args:
        files: Audio or video files of any length.
        checkpoint: A fine-tuning run on audio, its exported classifier, or a .ckpt file.
        window: Seconds of a window; default: the clip length that the model was trained with.
        hop: Seconds from window to window; default: one after the other.
        batch_size: Windows judged together.
        device: auto takes a GPU where there is one.
        channel: What is heard of several channels: the mean, or the number of one, from 0 on; default: as in training.

    Raises:
        FileNotFoundError: there is no classifier at ``checkpoint``.
        ValueError: it is none of sound alone, or an option makes no sense.
    """
    from avssl.commands.predict import predict_files
    from avssl.loading import load
    from avssl.prediction import Predictor

    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    loaded = load(checkpoint, kind="classifier")
    predictor = Predictor(loaded, window=window, hop=hop, device=device, channel=channel)
    collected = _Collected()
    names = [str(file) for file in ([files] if isinstance(files, str | Path) else files)]
    warnings: dict[str, str] = {}
    predict_files(names, predictor, collected, batch_size=batch_size, warnings=warnings)
    labels = {head: list(classes) for head, classes in predictor.labels.items()}
    return Predictions(collected.files, labels, collected.failed, warnings)


class _Collected:
    """A prediction writer that keeps what it is given."""

    def __init__(self) -> None:
        self.files: dict[str, list[Prediction]] = {}
        self.failed: dict[str, str] = {}

    @contextmanager
    def file(self, name: str) -> Iterator[None]:
        from avssl.data.media import MediaError

        self.windows = self.files.setdefault(name, [])
        try:
            yield
        except MediaError as error:
            self.failed[name] = error.reason
            raise

    def write(self, prediction: "Prediction") -> None:
        self.windows.append(prediction)

    def skip(self) -> None:
        """The windows tell their times."""


def _read(config_class: type[Config], config: Config | Recipes | None, settings: dict[str, Any]) -> Config:
    if isinstance(config, config_class):
        if settings:
            raise SettingsError(f"{next(iter(settings))}: set it in the config, which is given whole")
        check_bounds(config)
        return config
    given = _plain(settings)
    recipes = [] if config is None else [config] if isinstance(config, str | Path) else config
    if not isinstance(recipes, Sequence) or not all(isinstance(recipe, str | Path) for recipe in recipes):
        raise SettingsError(f"config: must be a {config_class.__name__} or recipes, got a {type(config).__name__}")
    return resolve(config_class, [Source("", given)] if given else [], [str(recipe) for recipe in recipes])


def _plain(value: Any) -> Any:
    """``value`` as a YAML file would hold it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _run_result(details: dict[str, Any], checkpoint: Path | None = None) -> Result:
    finished, folder = details.get("finished", True), Path(details["folder"])
    report = folder / "report.html"
    return Result(
        finished=finished,
        metrics=details.get("metrics", {}),
        folder=folder,
        checkpoint=checkpoint or folder,
        report=report if finished and report.is_file() else None,
        details=details,
    )
