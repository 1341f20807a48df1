"""Late fusion is a mean of logits; the bottleneck layer is MBT's formula, and the only way between the modalities."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avssl.models.blocks import checkpoint_activations
from avssl.models.fusion import BottleneckFusion, FusionLayer, LateFusion

AUDIO, VIDEO = (2, 2, 3, 5), (2, 2, 2, 2, 7)  # maps of 2 clips


def fusion(**options) -> BottleneckFusion:
    torch.manual_seed(0)
    return BottleneckFusion(5, 7, **{"tokens": 3, "width": 8, "heads": 2} | options).double()


def maps() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    audio, video = torch.randn(AUDIO, dtype=torch.float64), torch.randn(VIDEO, dtype=torch.float64)
    return audio.requires_grad_(), video.requires_grad_()


def reaches(output: Tensor, source: Tensor) -> bool:
    (gradient,) = torch.autograd.grad(output.square().sum(), source, allow_unused=True, retain_graph=True)
    return gradient is not None and bool((gradient != 0).any())


def test_a_linear_head_on_late_fusion_averages_the_logits_of_both() -> None:
    torch.manual_seed(0)
    audio, video = torch.randn(6, 5), torch.randn(6, 7)
    heard, seen, both = nn.Linear(5, 3), nn.Linear(7, 3), nn.Linear(12, 3)
    with torch.no_grad():
        both.weight.copy_(torch.cat([heard.weight, seen.weight], dim=1) / 2)
        both.bias.copy_((heard.bias + seen.bias) / 2)
    late = LateFusion(5, 7)
    assert late.num_features == 12
    torch.testing.assert_close(both(late(audio, video)), (heard(audio) + seen(video)) / 2)


def by_hand(tokens: Tensor, weights: dict[str, Tensor], heads: int) -> Tensor:
    """A pre-norm transformer layer, head by head and token by token (Vaswani et al. 2017; Xiong et al. 2020)."""

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    normed = norm(tokens, "norm1")
    query, key, value = (
        normed @ weight.T + bias
        for weight, bias in zip(
            weights["self_attn.in_proj_weight"].chunk(3), weights["self_attn.in_proj_bias"].chunk(3), strict=True
        )
    )
    width = tokens.shape[-1] // heads
    seen = torch.zeros_like(tokens)
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        for i in range(len(tokens)):
            scores = torch.stack([query[i, part] @ key[j, part] for j in range(len(tokens))]) / math.sqrt(width)
            shares = scores.exp() / scores.exp().sum()
            seen[i, part] = sum(shares[j] * value[j, part] for j in range(len(tokens)))
    tokens = tokens + seen @ weights["self_attn.out_proj.weight"].T + weights["self_attn.out_proj.bias"]
    hidden = norm(tokens, "norm2") @ weights["linear1.weight"].T + weights["linear1.bias"]
    return tokens + F.gelu(hidden) @ weights["linear2.weight"].T + weights["linear2.bias"]


@pytest.mark.parametrize("training", [True, False])  # torch has a faster way where nothing is trained
def test_a_layer_is_equations_8_and_9_of_mbt(training: bool) -> None:
    torch.manual_seed(0)
    layer = FusionLayer(8, 2).double().train(training)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    audio, video, shared = (torch.randn(1, count, 8, dtype=torch.float64) for count in (4, 5, 3))
    with torch.set_grad_enabled(training):
        heard, seen, mixed = layer(audio, video, shared)
    with torch.no_grad():
        audio_way = by_hand(torch.cat([audio[0], shared[0]]), dict(layer.audio.named_parameters()), 2)
        video_way = by_hand(torch.cat([video[0], shared[0]]), dict(layer.video.named_parameters()), 2)
    torch.testing.assert_close(heard[0], audio_way[:4])
    torch.testing.assert_close(seen[0], video_way[:5])
    torch.testing.assert_close(mixed[0], (audio_way[4:] + video_way[5:]) / 2)


def test_nothing_passes_but_through_the_bottleneck() -> None:
    model = fusion(depth=3)
    audio, video = maps()
    heard, seen = model.exchange(audio, video)
    assert reaches(heard, video) and reaches(seen, audio)
    # The same layers with a bottleneck that forgets what was written to it.
    for layer in model.layers:
        layer.register_forward_hook(lambda module, inputs, out: (*out[:2], out[2].detach()))
    heard, seen = model.exchange(audio, video)
    assert not reaches(heard, video) and not reaches(seen, audio)
    assert reaches(heard, audio) and reaches(seen, video) and reaches(heard, model.bottleneck)


def test_modalities_meet_from_the_layer_start_on() -> None:
    """One layer writes, the next one reads; layers before ``start`` do not even see the bottleneck."""
    audio, video = maps()
    model = fusion(depth=4, start=1)
    known: list[tuple[Tensor, Tensor]] = []
    for layer in model.layers:
        layer.register_forward_hook(lambda module, inputs, out: known.append(out))
    model.exchange(audio, video)
    assert [reaches(heard, video) for heard, _, _ in known] == [False, False, True, True]
    assert [reaches(seen, audio) for _, seen, _ in known] == [False, False, True, True]
    assert [shared.shape[1] for _, _, shared in known] == [0, 3, 3, 3]


def test_features_are_the_mean_of_both_and_know_places() -> None:
    model = fusion().eval()
    audio, video = maps()
    heard, seen = model.exchange(audio, video)
    features = model(audio, video)
    assert features.shape == (2, model.num_features) == (2, 8)
    torch.testing.assert_close(features, (heard + seen) / 2)
    for other in (model(audio.flip(1), video), model(audio.flip(2), video), model(audio, video.flip(1))):
        assert (other - features).abs().max() > 1e-4
    longer = torch.randn(2, 4, 9, 5, dtype=torch.float64)
    assert model(longer, video).isfinite().all()  # any number of tokens


def test_all_is_learned_and_decay_spares_the_bottleneck() -> None:
    model = fusion(depth=3, start=1)
    model(*maps()).square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    assert model.no_weight_decay() <= dict(model.named_parameters()).keys()


def test_checkpointed_activations_change_nothing() -> None:
    model = fusion(depth=3, start=1, dropout=0.2)
    saving = copy.deepcopy(model)
    checkpoint_activations(saving)
    assert list(saving.state_dict()) == list(model.state_dict())
    for module in (model, saving):
        torch.manual_seed(2)  # dropout draws the same
        module(*maps()).square().sum().backward()
    for one, other in zip(model.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"tokens": 0}, r"bottleneck\.tokens: must be at least 1"),
        ({"width": 9}, r"bottleneck\.width: 9 must be a positive multiple of bottleneck\.heads, 2"),
        ({"heads": 0}, r"bottleneck\.heads, 0"),
        ({"depth": 1}, r"bottleneck\.start: 0 must be from 0 to bottleneck\.depth - 2 = -1"),
        ({"depth": 3, "start": 2}, r"one layer to write to the bottleneck and another to read"),
        ({"start": -1}, r"bottleneck\.start: -1"),
        ({"dropout": 1.0}, r"bottleneck\.dropout"),
    ],
)
def test_options_that_could_not_fuse_are_refused(options, told) -> None:
    with pytest.raises(ValueError, match=told):
        fusion(**options)
