"""Mixup with several heads and items without a label, against the formula in NumPy; patch-drop; the settings' way."""

import numpy as np
import pytest
import torch

import mast
from avssl.augment import SpectrogramAugment, VideoAugment, WaveAugment, drop_patches, mixup
from avssl.cli import parse
from avssl.config import AugmentConfig, PretrainConfig
from avssl.data.batch import Batch
from avssl.models import AudioClassifier
from avssl.training.finetuning import FinetuneTask

HEADS = {"verb": ["a", "b"], "noun": ["x", "y", "z"]}


def cross_entropy(logits: np.ndarray, target: int, smoothing: float) -> float:
    """Of one item; 0 for an item without a label."""
    if target < 0:
        return 0.0
    log = logits - logits.max()
    log = log - np.log(np.exp(log).sum())
    goal = np.full(len(log), smoothing / len(log))
    goal[target] += 1 - smoothing
    return float(-(goal * log).sum())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixup_with_heads_and_unlabelled_items_is_the_formula(monkeypatch, smoothing: float) -> None:
    """Each label counts with its item's share of the blend, in every head; a label that is missing counts nowhere."""
    torch.manual_seed(0)
    classifier = AudioClassifier(mast.create_model("mast_pico", embed_dim=16, depths=[1] * 4), mast.LogMel(), HEADS)
    plain = WaveAugment(gain_db=0.0), SpectrogramAugment()
    task = FinetuneTask(classifier, *plain, mixup_alpha=0.5, label_smoothing=smoothing)
    task.classifier.eval()  # no stochastic depth
    labels = {"verb": torch.tensor([0, -1, 1, -1, 0]), "noun": torch.tensor([2, 1, -1, -1, 0])}
    drawn: list[tuple[torch.Tensor, ...]] = []
    monkeypatch.setattr("avssl.training.finetuning.mixup", lambda *given: drawn.append(mixup(*given)) or drawn[0])
    empty = torch.zeros(5)
    batch = Batch(torch.randn(5, 8000), None, labels, torch.arange(5), list("abcde"), empty.double())
    losses, _ = task(batch)
    blended, partner, weight = drawn[0]
    with torch.no_grad():
        clean = classifier.frontend(batch.audio)
        share = weight.view(-1, 1, 1, 1)
        torch.testing.assert_close(blended, share * clean + (1 - share) * clean[partner])
        outputs = {head: logits.double().numpy() for head, logits in classifier(blended).items()}
    for head, target in labels.items():
        total = known = 0.0
        for i, (other, own) in enumerate(zip(partner.tolist(), weight.tolist(), strict=True)):
            first, second = int(target[i]), int(target[other])
            total += own * cross_entropy(outputs[head][i], first, smoothing)
            total += (1 - own) * cross_entropy(outputs[head][i], second, smoothing)
            known += own * (first >= 0) + (1 - own) * (second >= 0)
        assert losses[head].item() == pytest.approx(total / known, rel=1e-4)
    assert set(partner.tolist()) == set(range(5))  # every label is somebody's partner once: all count alike on average


def test_mixup_of_one_item_is_itself_and_weights_follow_beta() -> None:
    torch.manual_seed(0)
    one = torch.randn(1, 3)
    torch.testing.assert_close(mixup(one, 0.4)[0], one)
    _, _, weight = mixup(torch.zeros(4000, 1), 0.4)
    drawn = np.random.default_rng(0).beta(0.4, 0.4, 4000)
    assert weight.mean().item() == pytest.approx(np.maximum(drawn, 1 - drawn).mean(), abs=0.01)
    with pytest.raises(ValueError, match=r"augment\.mixup\.alpha: must lie in \[0, 1000\], got -1"):
        mixup(one, -1)


def test_patch_drop_blanks_whole_units_other_ones_in_every_clip() -> None:
    torch.manual_seed(0)
    out = drop_patches(torch.ones(8, 1, 32, 40), 0.25, (8, 10))
    units = out.view(8, 4, 8, 4, 10).permute(0, 1, 3, 2, 4).flatten(3)
    assert ((units == 0).all(-1) | (units == 1).all(-1)).all()
    assert ((units == 0).all(-1).flatten(1).sum(1) == 4).all()
    assert len({tuple(clip.tolist()) for clip in units[..., 0].flatten(1)}) > 4
    with pytest.raises(ValueError, match=r"augment\.patch_drop"):
        drop_patches(out, 1.5, (8, 10))


def test_stretch_is_the_same_under_autocast_and_off_draws_nothing() -> None:
    x = torch.randn(3, 1, 40, 300)
    augment = SpectrogramAugment(spec_warp=1.0, time_mask=0.0, freq_mask=0.0).train()
    torch.manual_seed(0)
    expected = augment(x)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(augment(x), expected)
    state = torch.get_rng_state()
    assert SpectrogramAugment(spec_warp=0.0, time_mask=0.0, freq_mask=0.0).train()(x) is x
    assert torch.equal(state, torch.get_rng_state())
    assert SpectrogramAugment(spec_warp=0.5, time_mask=0.2, freq_mask=0.2).train()(x[:1]).shape == (1, 1, 40, 300)
    with pytest.raises(ValueError, match=r"augment\.masks"):
        SpectrogramAugment(masks=-1)


def test_every_setting_of_the_yaml_reaches_its_module(tmp_path) -> None:
    values = {
        "crop_scale": 0.31, "crop_ratio": 1.32, "flip": 0.33, "color": 0.34, "hue": 0.35, "gray": 0.36, "blur": 0.37,
        "blur_sigma": (0.38, 0.39), "gain_db": 4.0, "time_shift": 0.41, "mix": 0.42, "mix_db": (4.3, 4.4),
        "noise_db": 45.0, "noise_color": "brown", "spec_warp": 0.46, "time_mask": 0.47, "freq_mask": 0.48, "masks": 2,
        "patch_drop": 0.49, "patch_size": (5, 6),
    }  # fmt: skip
    lines = [f"  {name}: {list(value) if isinstance(value, tuple) else value}" for name, value in values.items()]
    (tmp_path / "a.yaml").write_text("\n".join(["augment:", *lines]))
    config = parse(PretrainConfig, ["--config", str(tmp_path / "a.yaml")]).augment
    assert config == AugmentConfig(**values)
    modules = VideoAugment.of(config, crop_size=12), WaveAugment.of(config), SpectrogramAugment.of(config)
    found = {name: value for module in modules for name, value in vars(module.config).items()}
    assert found == values and modules[0].crop_size == 12


def test_what_is_new_is_off_by_default() -> None:
    config = AugmentConfig()
    assert (config.crop_ratio, config.hue, config.blur, config.mix, config.noise_color) == (1.0, 0.0, 0.0, 0.0, "white")
