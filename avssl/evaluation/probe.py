"""How good are frozen features? A linear probe of them, also beside the validation of a pretraining run."""

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.model_selection import KFold, StratifiedKFold
from torch import nn

from avssl.config import DataConfig
from avssl.data.batch import Batch
from avssl.data.catalog import open_data
from avssl.data.loaders import Loaders
from avssl.data.manifest import Manifest
from avssl.data.splits import Splits
from avssl.evaluation.arrays import FloatArray, IntArray, as_labels, as_matrix
from avssl.evaluation.base import EvaluationResult, register_evaluation
from avssl.evaluation.classification import classification_result, headline, multi_head_metrics
from avssl.evaluation.embeddings import Embeddings, embed
from avssl.models.pair import AudioVisualPair
from avssl.progress import Meter

if TYPE_CHECKING:
    from avssl.evaluation.context import EvaluationContext

log = logging.getLogger(__name__)

# The bias of a class that training never saw: no softmax puts weight on it, and half precision still holds it.
ABSENT_BIAS = -1e4


@dataclass(frozen=True)
class ProbeResult:
    """A linear classifier on raw features, ``scores = features @ weight.T + bias``.

    Attributes:
        scores: ``(N, C)`` float32 logits of the test rows, in their order, unlabelled rows included.
        weight: ``(C, D)`` float32 and bias ``(C,)`` float32, the standardization folded in.
        c: inverse strength of the L2 penalty that cross-validation chose.
        cv_accuracy: C -> mean accuracy (mean average precision of a multi-label head) over the folds of the training
            split; empty when no fold could be made.
    """

    scores: FloatArray
    weight: FloatArray
    bias: FloatArray
    c: float
    cv_accuracy: dict[float, float]

    def linear(self) -> nn.Linear:
        """The probe as a layer, to put on the encoder as its classifier."""
        layer = nn.Linear(self.weight.shape[1], self.weight.shape[0])
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(self.weight))
            layer.bias.copy_(torch.from_numpy(self.bias))
        return layer


def labelled_rows(embeddings: Embeddings, head: str, num_classes: int, name: str) -> tuple[FloatArray, NDArray[Any]]:
    """Features (N, D) float64 and labels of the labelled rows: (N,) classes, or (N, C) zeros and ones.

    Raises:
        ValueError: no such head, no labelled row, labels outside the classes, NaN features; ``name`` is in the message.
    """
    if head not in embeddings.labels:
        raise ValueError(f"{name}: no labels for head {head!r}; there are: {', '.join(embeddings.labels) or 'none'}")
    features = as_matrix(embeddings.features, f"{name} features").astype(np.float64)
    labels: NDArray[Any] = embeddings.labels[head]
    if labels.ndim == 1:
        labels = as_labels(labels, f"{name} labels of {head!r}", len(features), num_classes)
        known = np.asarray(labels >= 0)
    else:
        if labels.shape != (len(features), num_classes):
            raise ValueError(
                f"{name} labels of {head!r}: shape {labels.shape}, expected ({len(features)}, {num_classes})"
            )
        known = np.asarray((labels >= 0).all(axis=1))
    if not known.any():
        raise ValueError(f"{name}: every row is unlabelled for head {head!r}")
    return features[known], labels[known]


def targets_of(labels: NDArray[Any], num_classes: int) -> FloatArray:
    """Labels of either kind as (N, C) zeros and ones."""
    return labels if labels.ndim == 2 else (labels[:, None] == np.arange(num_classes)).astype(np.float64)


def _fit_path(
    features: FloatArray, labels: IntArray, cs: Sequence[float], max_iter: int, tol: float = 1e-4
) -> list[LogisticRegression]:
    """Fits for each C in turn, from strong to weak penalty, each started from the one before."""
    fits, start = [], None
    for c in cs:
        model = LogisticRegression(C=c, max_iter=max_iter, tol=tol, warm_start=start is not None)
        if start is not None:
            model.coef_, model.intercept_, model.classes_ = start.coef_, start.intercept_, start.classes_
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.fit(features, labels)
        if any(issubclass(warning.category, ConvergenceWarning) for warning in caught):
            log.debug("probe: C=%g stopped after %d iterations, before convergence", c, max_iter)
        fits.append(model)
        start = model
    return fits


def _cross_validate(
    features: FloatArray, labels: IntArray, cs: Sequence[float], folds: int, max_iter: int, seed: int
) -> dict[float, tuple[float, float]]:
    """C -> (accuracy, mean log-likelihood) on rows held out by stratified folds, pooled over the folds.

    Classes with fewer members than folds miss from some of them; their rows count as wrong there.
    """
    folds = min(folds, int(np.bincount(labels).max()))
    if folds < 2 or len(cs) < 2:
        return {}
    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    right, likelihood = np.zeros(len(cs)), np.zeros(len(cs))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        splits = list(splitter.split(features, labels))
    for train, held_out in splits:
        if len(np.unique(labels[train])) < 2:
            continue
        truth = labels[held_out][:, None]
        # A looser stop than the final fit's: the order of the Cs is settled long before the last digits.
        for position, model in enumerate(_fit_path(features[train], labels[train], cs, max_iter, tol=1e-3)):
            probability = model.predict_proba(features[held_out])
            right[position] += (model.classes_[probability.argmax(axis=1), None] == truth).sum()
            own = np.where(model.classes_ == truth, probability, 0).sum(axis=1)
            likelihood[position] += np.log(np.maximum(own, 1e-12)).sum()
    shares = zip(right / len(labels), likelihood / len(labels), strict=True)
    return {c: (float(accuracy), float(mean)) for c, (accuracy, mean) in zip(cs, shares, strict=True)}


def linear_probe(
    train: Embeddings,
    test: Embeddings,
    head: str,
    num_classes: int,
    *,
    seed: int = 0,
    cs: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0),
    folds: int = 5,
    max_iter: int = 500,
) -> ProbeResult:
    """Logistic regression on standardized frozen features: multinomial, or for a multi-label head one-vs-rest.

    C is chosen by cross-validation on ``train`` alone: stratified, by accuracy, then log-likelihood; of a multi-label
    head by mean average precision. The test rows are only scored. Where every class has a single member there is
    nothing to hold out, and the middle of ``cs`` is taken. Unlabelled training rows are dropped; classes absent from
    training get the constant score ``ABSENT_BIAS``.

    Raises:
        ValueError: head without labels, labels outside the classes, NaN features, or features of unlike width.
    """
    features, labels = labelled_rows(train, head, num_classes, "train")
    test_features = as_matrix(test.features, "test features")
    if test_features.shape[1] != features.shape[1]:
        raise ValueError(f"train features have {features.shape[1]} columns, test features {test_features.shape[1]}")
    mean, std = features.mean(axis=0), features.std(axis=0)
    std = np.where(std > 1e-12 * np.maximum(1.0, np.abs(mean)), std, 1.0)
    standard = (features - mean) / std
    # The penalty does not change under rotation: fewer rows than columns span a smaller space, with the same fit.
    rotation = np.linalg.svd(standard, full_matrices=False)[2].T if len(standard) < standard.shape[1] else None
    standard = (standard if rotation is None else standard @ rotation).astype(np.float32)
    fit = _fit_single if labels.ndim == 1 else _fit_several
    settings = (sorted(cs), folds, max_iter, seed)
    with Meter(f"fitting a linear probe of {head}"):
        coefficients, bias, present, chosen, quality = fit(standard, labels, num_classes, *settings)
    weight = np.zeros((num_classes, features.shape[1]))
    weight[present] = (coefficients if rotation is None else coefficients @ rotation.T) / std
    bias[present] -= weight[present] @ mean
    log.debug("probe %s: %d rows, %d of %d classes, C=%g", head, len(labels), len(present), num_classes, chosen)
    scores = test_features @ weight.T + bias
    folded = weight.astype(np.float32), bias.astype(np.float32)
    return ProbeResult(scores.astype(np.float32), *folded, c=float(chosen), cv_accuracy=quality)


# Coefficients (present, D) and all biases (C,) on standardized features, the classes present, C, its cross-validation.
_Fit = tuple[FloatArray, FloatArray, IntArray, float, dict[float, float]]


def _fit_single(
    standard: FloatArray, labels: IntArray, classes: int, cs: Sequence[float], folds: int, max_iter: int, seed: int
) -> _Fit:
    present, bias, chosen = np.unique(labels), np.full(classes, ABSENT_BIAS), cs[len(cs) // 2]
    if len(present) == 1:
        bias[present] = 0.0
        return np.zeros((1, standard.shape[1])), bias, present, chosen, {}
    quality = _cross_validate(standard, labels, cs, folds, max_iter, seed)
    chosen = max(cs, key=quality.__getitem__) if quality else chosen
    model = _fit_path(standard, labels, [c for c in cs if c <= chosen], max_iter)[-1]
    coefficients, intercept = model.coef_.astype(np.float64), model.intercept_
    if len(present) == 2:
        # scikit-learn keeps one logit for two classes; half of it to each side gives the same probabilities.
        coefficients, intercept = np.vstack((-coefficients, coefficients)) / 2, np.r_[-intercept, intercept] / 2
    bias[present] = intercept
    return coefficients, bias, present, chosen, {c: accuracy for c, (accuracy, _) in quality.items()}


def _fit_several(
    standard: FloatArray, labels: FloatArray, classes: int, cs: Sequence[float], folds: int, max_iter: int, seed: int
) -> _Fit:
    present, bias = np.flatnonzero(labels.any(axis=0)), np.full(classes, ABSENT_BIAS)
    if not len(present):
        raise ValueError("train: not one row has a label; a multi-label probe needs some")
    targets = labels[:, present]
    chosen, quality = choose_penalty(standard, targets, cs, folds=folds, max_iter=max_iter, seed=seed)
    coefficients, bias[present] = fit_logistic(standard, targets, chosen, max_iter=max_iter)
    return coefficients, bias, present, chosen, quality


def fit_logistic(
    features: FloatArray,
    targets: FloatArray,
    c: float,
    *,
    max_iter: int = 500,
    tol: float = 1e-4,
    start: tuple[FloatArray, FloatArray] | None = None,
) -> tuple[FloatArray, FloatArray]:
    """Minimizes ``|W|^2 / 2 + c * sum of the binary cross-entropies`` by L-BFGS; biases are not penalized.

    The classes do not share a term, so the minimum is that of one ``LogisticRegression(C=c)`` for each class; doing
    them together is one matrix product instead of a loop over hundreds of classes.

    Args:
        features: (N, D), standardized.
        targets: (N, C) zeros and ones.
        c: inverse strength of the penalty.
        start: weights and biases to start from.

    Returns:
        Weights (C, D) and biases (C,), float64.
    """
    rows, width = features.shape
    classes = targets.shape[1]
    features, targets = features.astype(np.float64), targets.astype(np.float64)
    scale = 1.0 / (c * rows)  # the mean over rows instead of the sum: gradients of a size that does not depend on N

    def loss(flat: FloatArray) -> tuple[float, FloatArray]:
        weight, bias = flat[: classes * width].reshape(classes, width), flat[classes * width :]
        logits = features @ weight.T + bias
        value = (np.logaddexp(0, logits) - targets * logits).sum() / rows + scale * (weight**2).sum() / 2
        slope = (expit(logits) - targets) / rows
        return float(value), np.concatenate([(slope.T @ features + scale * weight).ravel(), slope.sum(axis=0)])

    first = np.zeros(classes * (width + 1)) if start is None else np.concatenate([start[0].ravel(), start[1]])
    options = {"maxiter": max_iter, "gtol": tol / 10, "ftol": 1e-10}
    found = minimize(loss, first, jac=True, method="L-BFGS-B", options=options).x
    return found[: classes * width].reshape(classes, width), found[classes * width :]


def choose_penalty(
    features: FloatArray,
    targets: FloatArray,
    cs: Sequence[float],
    *,
    folds: int = 5,
    max_iter: int = 500,
    seed: int = 0,
) -> tuple[float, dict[float, float]]:
    """The C of the best mean average precision on rows held out, and that of every C.

    Scores are ranked within a fold, and the folds' mean counts. With one C, or fewer rows than two for each fold, the
    middle C is taken and the second value is empty.
    """
    cs = sorted(cs)
    folds = min(folds, len(features) // 2)
    if len(cs) < 2 or folds < 2:
        return cs[len(cs) // 2], {}
    quality: dict[float, list[float]] = {c: [] for c in cs}
    for train, held_out in KFold(folds, shuffle=True, random_state=seed).split(features):
        ranked = targets[held_out].any(axis=0)
        if not ranked.any():
            continue
        start = None
        for c in cs:
            start = fit_logistic(features[train], targets[train], c, max_iter=max_iter, tol=1e-3, start=start)
            scores = features[held_out] @ start[0].T + start[1]
            quality[c].append(average_precision_score(targets[held_out][:, ranked], scores[:, ranked], average="macro"))
    mean = {c: float(np.mean(values)) for c, values in quality.items() if values}
    return (max(mean, key=mean.__getitem__), mean) if mean else (cs[len(cs) // 2], {})


TEXT = (
    "Logistic regression on frozen, standardized features, fitted on the training split; its penalty is chosen by "
    "cross-validation there. It asks what a linear layer can read off the features."
)


@register_evaluation("probe", needs=("labels", "training"), default_for=("pair", "encoder"))
def probe(context: "EvaluationContext") -> EvaluationResult:
    """The linear probe of every head."""
    probes = {head: context.probe(head) for head in context.heads}
    scores = {head: result.scores for head, result in probes.items()}
    found = classification_result(
        context,
        scores,
        title="Linear probe",
        text=TEXT,
        prefix="probe/",
        by="linear probe",
        confusion=context.model.classifier is None,
    )
    details = {head: {"C": result.c, "cross_validation": result.cv_accuracy} for head, result in probes.items()}
    return EvaluationResult(found.section, found.metrics, found.headlines, details)


logger = logging.getLogger(__name__)

MAX_ROWS = 512


@dataclass
class OnlineProbe:
    """Fits a linear probe on the first half of some labelled rows and scores it on the second, the same every time.

    Attributes:
        rows: Labelled rows, in random order.
        labels: Class names of each head that has labels in both halves.
        loaders: Of audio.
        seed: Seed of the probe's cross-validation.
    """

    rows: Manifest
    labels: dict[str, list[str]]
    loaders: Loaders
    seed: int

    @classmethod
    def open(cls, config: DataConfig, splits: Splits, loaders: Loaders, seed: int) -> "OnlineProbe":
        """The probe of a pretraining run, on at most ``MAX_ROWS`` rows that it does not train on.

        Those are of the split "train" where the data has a split "pretrain" beside it, else of the validation rows.

        Raises:
            ValueError: when these rows have too few labels.
        """
        manifest = open_data(config.name, root=config.root, options=config.options)
        source, name = splits.val, "the validation rows"
        if len(manifest.select("pretrain")):
            source, name = manifest.select("train").usable(audio=True, channel=config.channel)[0], "split 'train'"
        rows = None if source is None else _some_labelled(source, list(splits.labels), seed)
        labels = {} if rows is None else _in_both_halves(rows, splits.labels)
        if rows is None or not labels:
            raise ValueError(
                f"online_probe: data {config.name} has too few labels in {name}; use data with labels (data.heads) "
                "and a split 'val' or data.val_fraction, or turn online_probe off"
            )
        return cls(rows, labels, replace(loaders, modalities=("audio",)), seed)

    def __call__(self, pair: AudioVisualPair, device: torch.device) -> dict[str, float]:
        """``HEAD/probe_top1`` (``probe_mAP`` of several labels a clip) of ``pair``'s audio features, by head.

        Features are taken before the projection.
        """
        training = pair.training
        pair.eval()

        def encode(batch: Batch) -> torch.Tensor:
            batch = batch.to(device)
            assert batch.audio is not None
            return pair.encode_audio(pair.frontend(batch.audio, batch.samples)).mean(dim=2)

        features = embed(encode, self.loaders.evaluate(self.rows), description="online probe")
        pair.train(training)
        first = features.index < len(self.rows) // 2
        fit, held_out = features.select(np.flatnonzero(first)), features.select(np.flatnonzero(~first))
        scores = {
            head: linear_probe(fit, held_out, head, len(names), seed=self.seed).scores
            for head, names in self.labels.items()
        }
        metrics = multi_head_metrics(scores, held_out.labels, seed=self.seed)
        names = {head: headline(metrics, head) for head in self.labels}
        return {f"{head}/probe_{name}": metrics[f"{head}/{name}"] for head, name in names.items()}


def _some_labelled(source: Manifest, heads: list[str], seed: int) -> Manifest:
    labelled = np.zeros(len(source), dtype=bool)
    for head in heads:
        labelled |= source.labelled(head)
    order = np.random.default_rng((seed, 11)).permutation(np.flatnonzero(labelled))
    return source.take(order[:MAX_ROWS])


def _in_both_halves(rows: Manifest, labels: dict[str, list[str]]) -> dict[str, list[str]]:
    half = len(rows) // 2
    known = {head: _known(rows, head) for head in labels}
    return {head: labels[head] for head in labels if known[head][:half].any() and known[head][half:].any()}


def _known(rows: Manifest, head: str) -> np.ndarray:
    """(N,) bool: rows with a class of ``head``, which a labelled row of several labels may lack."""
    known = np.zeros(len(rows), dtype=bool)
    known[rows.label_pairs(head)[0]] = True
    return known
