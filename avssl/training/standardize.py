"""Features of a pretrained encoder, standardized before fine-tuning starts.

Contrast behind a projection head with batch norm does not see what all clips have in common: the norm takes it away. So
features of a pretrained encoder may be nearly one vector for all clips, and a new head that learns from them sees a
constant, where from random weights it would see them apart.

An affine final norm can undo that without a change to what the encoder tells apart: its gains and biases give each
channel mean 0 and deviation 1 over the training clips. It is a data-dependent initialization (Krähenbühl et al. 2016,
arXiv 1511.06856); before a linear probe a batch norm without affine parameters does the same (He et al. 2022, MAE).
"""

import logging
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from avssl.data.batch import Batch
from avssl.models.classifier import Classifier, Encoded

logger = logging.getLogger(__name__)

# Clips that the statistics are of, at most, and the fewest that have any.
CLIPS, FEWEST = 512, 8
# Channels that hardly move are not blown up: deviations count as at least this share of their root mean square.
SMALLEST = 0.01
# Largest difference from what is expected, in deviations.
TOLERANCE = 0.05


def standardize_features(
    classifier: Classifier, batches: Callable[[], Iterable[Batch]], device: torch.device
) -> dict[str, float]:
    """Gives the features of each encoder of ``classifier`` mean 0 and deviation 1 by gains and biases of its last norm.

    The first batch is then tried: an encoder whose features are not what they should be gets its norm back. One that
    does not end in such a norm stays as it is. Both are logged.

    Args:
        classifier: On ``device``, with a head upon the encoders' features. Its mode is kept.
        batches: Gives the training clips as they are, without augmentation, anew at each call; some hundred of them do.
        device: Where to compute.

    Returns:
        For each encoder that was changed, audio or video, the mean cosine between two clips before.
    """
    training = classifier.training
    classifier.eval()
    encoders = {"audio": classifier.audio_encoder, "video": classifier.video_encoder}
    norms = {name: norm for name, encoder in encoders.items() if encoder is not None and (norm := final_norm(encoder))}
    for name in encoders:
        if encoders[name] is not None and name not in norms:
            logger.info("standardize: the %s encoder does not end in a norm; its features stay as they are", name)
    changed: dict[str, float] = {}
    if norms:
        features = _features(classifier, batches(), device, norms)
        for name, norm in norms.items():
            if len(features[name]) < FEWEST:
                logger.info("standardize: %d clips are too few; features stay as they are", len(features[name]))
                continue
            before = _standardize(norm, features[name])
            wanted = standardized(features[name])
            first = next(iter(batches()))
            found = _features(classifier, [first], device, norms)[name]
            if bool(((found - wanted[: len(found)]).abs() > TOLERANCE).any()):
                with torch.no_grad():
                    for parameter, value in zip((norm.weight, norm.bias), before, strict=True):
                        parameter.copy_(value)
                logger.info(
                    "standardize: the %s encoder's features do not follow its norm; they stay as they are", name
                )
                continue
            changed[name] = _mean_cosine(features[name])
            logger.info(
                "standardize: features of the %s encoder have mean 0 and deviation 1 over %d training clips now; the "
                "mean cosine between two of them was %.2f",
                *(name, len(features[name]), changed[name]),
            )
    classifier.train(training)
    return changed


def final_norm(encoder: nn.Module) -> nn.LayerNorm | None:
    """The affine layer norm that features of ``encoder`` come out of, by its name and width; None: there is none."""
    norm = getattr(getattr(encoder, "backbone", encoder), "norm", None)
    if not isinstance(norm, nn.LayerNorm) or norm.weight is None or norm.bias is None:
        return None
    return norm if norm.normalized_shape == (encoder.num_features,) else None


def standardized(features: Tensor) -> Tensor:
    """``features`` (N, D) with mean 0 and deviation 1 over the clips, in float64."""
    mean, deviation = _statistics(features)
    return (features.double() - mean) / deviation


def _statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation (D,) of features (N, D)."""
    deviation = features.double().std(dim=0)
    return features.double().mean(dim=0), deviation.clamp_min(SMALLEST * deviation.square().mean().sqrt() + 1e-12)


def _standardize(norm: nn.LayerNorm, features: Tensor) -> tuple[Tensor, Tensor]:
    """Changes ``norm``; returns its gains and biases of before."""
    mean, deviation = (value.to(norm.weight.device) for value in _statistics(features))
    before = norm.weight.detach().clone(), norm.bias.detach().clone()
    with torch.no_grad():
        norm.weight.copy_(before[0].double() / deviation)
        norm.bias.copy_((before[1].double() - mean) / deviation)
    return before


def _features(
    classifier: Classifier, batches: Iterable[Batch], device: torch.device, norms: dict[str, nn.LayerNorm]
) -> dict[str, Tensor]:
    """(N, D) float32 features of the readable clips by encoder, on the CPU."""
    found: dict[str, list[Tensor]] = {name: [] for name in norms}
    with torch.inference_mode():
        for batch in batches:
            if len(batch.clip_ids):
                encoded: Encoded = classifier.encode_batch(batch.to(device))
                for name in norms:
                    found[name].append(getattr(encoded, name).float().cpu())
    return {name: torch.cat(values) if values else torch.empty(0, 1) for name, values in found.items()}


def _mean_cosine(features: Tensor) -> float:
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    count = len(unit)
    return float((unit.sum(dim=0).square().sum() - count) / (count * (count - 1)))
