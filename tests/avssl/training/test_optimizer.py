"""Optimizer groups, layer-wise learning rates, the schedule and the scaling rule."""

import math

import pytest
from torch import nn

import mast
from avssl.training.optimizer import make_optimizer, make_scheduler, scaled_lr


class Regression(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Dropout(0.5), nn.Linear(8, 1))


def test_norms_biases_and_listed_parameters_have_no_decay() -> None:
    class Listed(Regression):
        def no_weight_decay(self):
            return {"body.3.weight"}

    task = nn.ModuleDict({"inner": Listed()})
    decay, spared = make_optimizer(task, lr=1.0, weight_decay=0.1).param_groups
    assert [tuple(p.shape) for p in decay["params"]] == [(8, 6)] and decay["weight_decay"] == 0.1
    assert len(spared["params"]) == 5 and spared["weight_decay"] == 0.0


def test_schedule_warms_up_and_decays() -> None:
    optimizer = make_optimizer(Regression(), lr=0.01, weight_decay=0.0)
    scheduler = make_scheduler(optimizer, max_steps=100, warmup=0.1, lr=0.01, min_lr=1e-4)
    rates = []
    for _ in range(100):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates[0] == pytest.approx(0.001) and max(rates) == pytest.approx(0.01)
    assert rates.index(max(rates)) in (9, 10) and rates[-1] == pytest.approx(1e-4)
    assert rates[10:] == sorted(rates[10:], reverse=True)


@pytest.mark.parametrize("name", ["mast_pico", "ast_base"])
def test_layer_decay_follows_the_depth(name: str) -> None:
    small = {"mast_pico": {"depths": [1, 1, 2, 1], "embed_dim": 16}, "ast_base": {"depth": 3, "embed_dim": 24}}
    encoder = mast.create_model(name, num_classes=3, **small[name] | ({"heads": 2} if name == "ast_base" else {}))
    model = nn.ModuleDict({"encoder": encoder, "other": nn.Linear(2, 2)})
    rate = {
        id(parameter): group["lr"]
        for group in make_optimizer(model, lr=1.0, weight_decay=0.1, layer_decay=0.5).param_groups
        for parameter in group["params"]
    }
    assert rate.keys() == {id(parameter) for parameter in model.parameters()}
    blocks = [block for stage in encoder.stages for block in stage] if name == "mast_pico" else list(encoder.blocks)
    top = len(blocks) + 1
    expected = {0: encoder.patch_embed, top: encoder.head} | dict(enumerate(blocks, start=1))
    for layer, module in expected.items():
        assert {rate[id(p)] for p in module.parameters()} == {0.5 ** (top - layer)}
    assert {rate[id(p)] for p in [*encoder.norm.parameters(), *model["other"].parameters()]} == {1.0}


def test_without_layer_decay_there_are_two_groups() -> None:
    groups = make_optimizer(Regression(), lr=0.3, weight_decay=0.1).param_groups
    assert [group["lr"] for group in groups] == [0.3, 0.3]
    with pytest.raises(ValueError, match="layer_decay"):
        make_optimizer(Regression(), lr=0.3, weight_decay=0.1, layer_decay=0.0)


def test_scaling_rules() -> None:
    assert scaled_lr(1e-3, "none", 1024, 256) == 1e-3
    assert scaled_lr(1e-3, "linear", 1024, 256) == pytest.approx(4e-3)
    assert scaled_lr(1e-3, "sqrt", 1024, 256) == pytest.approx(1e-3 * math.sqrt(4))
    with pytest.raises(ValueError, match="base_batch"):
        scaled_lr(1e-3, "sqrt", 1024, 0)


def test_layers_keep_their_ratio_through_the_schedule() -> None:
    model = mast.create_model("mast_pico", depths=[1, 1, 1, 1], embed_dim=16)
    optimizer = make_optimizer(model, lr=0.1, weight_decay=0.0, layer_decay=0.5)
    scheduler = make_scheduler(optimizer, max_steps=10, warmup=0.2, lr=0.1, min_lr=0.001)
    for _ in range(9):
        optimizer.step()
        scheduler.step()
        rates = scheduler.get_last_lr()
        assert max(rates) / min(rates) == pytest.approx(2**5)
