"""The loss of each head against its formula, with unlabelled clips, smoothing, mixup and weights."""

import pytest
import torch
import torch.nn.functional as F

from avssl.training.finetuning import HeadLoss

LABELS = {"verb": ["a", "b", "c"], "sound": ["x", "y", "z", "w"]}
VERB = torch.tensor([0, 2, -1, 1])
SOUND = torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0], [-1, -1, -1, -1]])


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return {head: torch.randn(4, len(names), generator=generator, requires_grad=True) for head, names in LABELS.items()}


def binary(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy (B,), the mean over the classes, from its definition."""
    chance = logits.sigmoid()
    return -(targets * chance.log() + (1 - targets) * (1 - chance).log()).mean(dim=1)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_both_kinds_equal_their_formulas_over_labelled_clips(logits, smoothing) -> None:
    losses, report = HeadLoss(LABELS, smoothing)(logits, {"verb": VERB, "sound": SOUND})
    soft = (1 - smoothing) * F.one_hot(VERB.clamp_min(0), 3) + smoothing / 3
    verb = -(soft * logits["verb"].log_softmax(1)).sum(1)[[0, 1, 3]].mean()
    torch.testing.assert_close(losses["verb"], verb)
    sound = binary(logits["sound"], (1 - smoothing) * SOUND + smoothing / 4)[:3].mean()
    torch.testing.assert_close(losses["sound"], sound)
    right = (logits["verb"].argmax(1) == VERB)[[0, 1, 3]].float().mean()
    assert report.keys() == {"verb/train_top1"} and report["verb/train_top1"] == right


def test_unlabelled_clips_have_no_gradient(logits) -> None:
    losses, _ = HeadLoss(LABELS, 0.1)(logits, {"verb": VERB, "sound": SOUND})
    sum(losses.values()).backward()
    assert not logits["sound"].grad[3].any() and logits["sound"].grad[:3].any(dim=1).all()
    assert not logits["verb"].grad[2].any()
    nothing, report = HeadLoss(LABELS)(logits, {"verb": torch.full((4,), -1), "sound": -torch.ones(4, 4)})
    assert nothing["verb"] == nothing["sound"] == report["verb/train_top1"] == 0


def test_mixup_mixes_the_targets(logits) -> None:
    verb, sound = torch.tensor([0, 2, 2, 1]), SOUND.clamp_min(0)
    partner, share = torch.tensor([1, 0, 3, 2]), torch.tensor([0.5, 0.6, 0.7, 1.0])
    losses, _ = HeadLoss(LABELS)(
        logits, {"verb": verb, "sound": sound}, {"verb": verb[partner], "sound": sound[partner]}, share
    )
    own = share[:, None]
    mixed = own * F.one_hot(verb, 3) + (1 - own) * F.one_hot(verb[partner], 3)
    torch.testing.assert_close(losses["verb"], -(mixed * logits["verb"].log_softmax(1)).sum(1).mean())
    mixed = own * sound + (1 - own) * sound[partner]
    torch.testing.assert_close(losses["sound"], binary(logits["sound"], mixed).mean())


def test_a_blend_with_an_unlabelled_clip_counts_by_its_labelled_share(logits) -> None:
    partner, share = torch.tensor([1, 0, 3, 2]), torch.full((4,), 0.75)
    losses, _ = HeadLoss(LABELS)(
        logits, {"verb": VERB, "sound": SOUND}, {"verb": VERB[partner], "sound": SOUND[partner]}, share
    )
    each = binary(logits["sound"], SOUND.clamp_min(0))
    # Clips 2 and 3 are blends of clip 2's labels and of none.
    crossed = binary(logits["sound"][3:], SOUND[2:3])
    mixed = 0.75 * each[:2] + 0.25 * binary(logits["sound"][:2], SOUND[[1, 0]])
    expected = (mixed.sum() + 0.75 * each[2] + 0.25 * crossed.sum()) / (2 + 0.75 + 0.25)
    torch.testing.assert_close(losses["sound"], expected)


def test_weights_scale_their_head_alone(logits) -> None:
    labels = {"verb": VERB, "sound": SOUND}
    plain, _ = HeadLoss(LABELS)(logits, labels)
    weighted, _ = HeadLoss(LABELS, weights={"sound": 0.25})(logits, labels)
    torch.testing.assert_close(weighted["sound"], plain["sound"] / 4)
    torch.testing.assert_close(weighted["verb"], plain["verb"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": {"noun": 1.0}}, "head_weights: no head 'noun'; the heads that are trained: verb, sound"),
        ({"weights": {"sound": 0.0}}, "head_weights: sound: must be above 0, got 0.0; data.heads tells"),
        ({"weights": {"sound": float("nan")}}, "must be above 0, got nan"),
        ({"label_smoothing": 1.0}, "label_smoothing: must be at least 0 and below 1"),
        ({"label_smoothing": -0.1}, "label_smoothing: must be at least 0 and below 1"),
    ],
)
def test_wrong_options_are_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        HeadLoss(LABELS, **options)
