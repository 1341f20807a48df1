"""Training passes by CUDA graphs: what a graph cannot serve goes to the plain code, and all gradients are right.

The graphs are a GPU's. What surrounds them is tried on any device with stand-ins of the same contract.
"""

import copy
import logging
from collections.abc import Callable

import pytest
import torch
from graph_standins import Recorded, Taped
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import mast
from mast.fast.cuda.graphs import Graphed, Passes, Replayed, captured, graph_training, places_of, plainly


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.GELU(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@pytest.fixture
def nets() -> tuple[Net, Net]:
    """A plain one, and its twin by graphs."""
    torch.manual_seed(0)
    plain = Net()
    graphed = copy.deepcopy(plain)
    graphed.forward = Graphed(graphed, capture=Recorded)  # type: ignore[method-assign]
    return plain, graphed


def batch(size: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(size, 6, generator=torch.Generator().manual_seed(seed))


def passes_of(net: Net) -> Passes | None:
    return net.forward.passes  # type: ignore[attr-defined]


def check_alike(nets: tuple[Net, Net], step: Callable[[Net], Tensor], steps: int = 3) -> None:
    """``step`` gives both the same losses, gradients, running statistics and random numbers, several times."""
    for number in range(steps):
        found = []
        for net in nets:
            torch.manual_seed(number)
            net.zero_grad()
            loss = step(net)
            found.append([loss, *(p.grad for p in net.parameters()), *net.buffers(), torch.rand(3)])
        for value, wanted in zip(*found[::-1], strict=True):
            torch.testing.assert_close(value, wanted, rtol=1e-6, atol=1e-7)


def backward(*losses: Tensor) -> Tensor:
    total = torch.stack(list(losses)).sum()
    total.backward()
    return total.detach()


def test_steps_are_those_of_the_plain_module(nets: tuple[Net, Net]) -> None:
    check_alike(nets, lambda net: backward(net(batch()).square().sum()))
    assert passes_of(nets[1]) is not None


def test_several_batches_a_step(nets: tuple[Net, Net]) -> None:
    check_alike(nets, lambda net: backward(net(batch()).square().sum()) + backward(net(batch(seed=1)).sum()))


def test_two_views_before_a_backward_pass(nets: tuple[Net, Net], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    check_alike(nets, lambda net: backward(net(batch()).square().sum(), net(batch(seed=1)).square().sum()))
    assert caplog.text.count("a second forward pass") == 1


def test_a_pass_that_nobody_differentiates_does_not_block_the_next(nets: tuple[Net, Net]) -> None:
    def step(net: Net) -> Tensor:
        net(batch(seed=2))
        return backward(net(batch()).square().sum())

    check_alike(nets, step)
    assert "a second forward pass" not in " ".join(nets[1].forward._said)  # type: ignore[attr-defined]


def test_other_shapes_and_evaluation_are_said_once(nets: tuple[Net, Net], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    check_alike(nets, lambda net: backward(net(batch()).square().sum()))
    for size in (1 + 1, 3):
        check_alike(nets, lambda net, size=size: backward(net(batch(size)).square().sum()))
        for net in nets:
            net.eval()
        with torch.no_grad():
            torch.testing.assert_close(nets[1](batch(size)), nets[0](batch(size)))
        for net in nets:
            net.train()
    assert caplog.text.count("its graphs are for inputs of 5 x 6 alone") == 1 and caplog.text.count("evaluation") == 1


def test_chunks_within_checkpoints(nets: tuple[Net, Net]) -> None:
    def step(net: Net) -> Tensor:
        parts = [checkpoint(net.layers[4], checkpoint(net, batch(seed=n), use_reentrant=False)[:, :1].repeat(1, 8),
                            use_reentrant=False) for n in range(2)]  # fmt: skip
        return backward(torch.cat(parts).square().sum())

    for net in nets:
        net.layers[1].momentum = 0.0  # what is computed again counts again
    check_alike(nets, step)
    assert passes_of(nets[1]) is None


def test_graphs_that_compute_something_else_are_refused(
    nets: tuple[Net, Net], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Recorded, "wrong", 1.0)
    check_alike(nets, lambda net: backward(net(batch()).square().sum()))
    assert passes_of(nets[1]) is None and caplog.text.count("gets no CUDA graphs: the values") == 1


def test_parameters_that_moved_are_not_served_from_where_they_were(nets: tuple[Net, Net]) -> None:
    check_alike(nets, lambda net: backward(net(batch()).square().sum()))
    for net in nets:
        with torch.no_grad():
            net.layers[0].weight = nn.Parameter(2 * net.layers[0].weight)
    check_alike(nets, lambda net: backward(net(batch()).square().sum()))
    for net in nets:
        net.zero_grad()
        net.layers[4].requires_grad_(False)
    for net in nets:
        backward(net(batch()).square().sum())
        assert net.layers[4].weight.grad is None and net.layers[0].weight.grad is not None


def test_a_second_backward_pass_is_refused_as_torch_does(nets: tuple[Net, Net]) -> None:
    nets[1](batch()).sum().backward()
    loss = nets[1](batch()).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second backward"):
        loss.backward()


def test_a_copy_has_no_graphs_of_the_original(nets: tuple[Net, Net]) -> None:
    nets[1](batch()).sum().backward()
    twin = copy.deepcopy(nets[1])
    assert passes_of(twin) is None and twin.forward.module is twin  # type: ignore[attr-defined]
    assert list(twin.state_dict()) == list(nets[0].state_dict())


@pytest.mark.parametrize("name", ["mast_nano", "ast_base"])
def test_encoders_are_as_before_where_there_is_no_gpu(name: str) -> None:
    options = {"depth": 1, "embed_dim": 24, "heads": 2} if name == "ast_base" else {}
    model = mast.create_model(name, num_classes=3, **options).eval()
    x = torch.randn(2, 1, 128, 64)
    wanted, names = model(x), list(model.state_dict())
    graph_training(model)
    torch.testing.assert_close(model(x), wanted)
    model.train()(x).sum().backward()
    assert list(model.state_dict()) == names


@pytest.mark.gpu
@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_mast_by_graphs_trains_as_without(drop_path: float) -> None:
    torch.manual_seed(0)
    plain = mast.create_model("mast_nano", num_classes=5, drop_path=drop_path).cuda().train()
    graphed = copy.deepcopy(plain)
    graph_training(graphed)
    for number in range(3):
        x = torch.randn(8, 1, 128, 64, device="cuda")
        found = []
        for model in (plain, graphed):
            torch.manual_seed(number)
            model.zero_grad()
            with torch.autocast("cuda", torch.bfloat16):
                loss = model(x).square().mean()
            loss.backward()
            found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        assert float((found[1] - found[0]).norm()) <= 0.02 * float(found[0].norm())
    assert graphed.forward_grid.passes is not None  # type: ignore[attr-defined]


@pytest.mark.gpu
def test_a_captured_step_trains_as_the_step_itself() -> None:
    torch.manual_seed(0)
    models = [nn.Linear(4, 4).cuda()]
    models.append(copy.deepcopy(models[0]))
    x = torch.randn(8, 4, device="cuda")
    steps = []
    for model in models:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True, capturable=True)

        def step(model: nn.Module = model, optimizer: torch.optim.Optimizer = optimizer) -> Tensor:
            optimizer.zero_grad(set_to_none=True)
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            return loss

        steps.append(step)
    replay = captured(steps[1])
    for _ in range(3):  # those of the warm-up
        steps[0]()
    for _ in range(4):
        torch.testing.assert_close(replay(), steps[0]())
    torch.testing.assert_close(models[1].weight, models[0].weight)


class Drawing(nn.Module):
    """Draws, and counts in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.factor = 2.0

    def forward(self, x: Tensor, shift: Tensor | None = None) -> list[Tensor]:
        self.calls.add_(1)
        return [self.factor * x + torch.rand(len(x)) + (0 if shift is None else shift), self.calls.clone()]


@pytest.fixture
def drawings() -> tuple[Drawing, Replayed]:
    """A plain one, and its twin by a graph."""
    twin = Drawing()
    return Drawing(), Replayed(twin, "drawing", state=places_of(twin), changes=True, record=Taped)


def check_drawn(drawings: tuple[Drawing, Replayed], *inputs: Tensor | None) -> None:
    found = []
    for function in drawings:
        torch.manual_seed(7)
        found.append([*function(*inputs), torch.rand(2)])
    for value, wanted in zip(*found[::-1], strict=True):
        torch.testing.assert_close(value, wanted, rtol=0, atol=0)


def test_a_function_is_replayed_on_new_numbers(drawings: tuple[Drawing, Replayed]) -> None:
    kept = []
    for number in range(4):
        check_drawn(drawings, torch.full((3,), float(number)))
        kept.append(drawings[1](torch.full((3,), float(number)))[0])
        drawings[0](torch.zeros(3))
    assert isinstance(drawings[1].recording, Taped)
    assert len({float(each[0]) for each in kept}) == 4, "results are the caller's own"


def test_what_the_graph_does_not_fit_is_computed_plainly(
    drawings: tuple[Drawing, Replayed], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for _ in range(2):
        check_drawn(drawings, torch.ones(3))
        check_drawn(drawings, torch.ones(2))
        check_drawn(drawings, torch.ones(3), torch.ones(3))
    assert caplog.text.count("drawing operator by operator: its graph is for inputs of 3 alone") == 1
    twin = drawings[1].function
    for each in (drawings[0], twin):
        each.calls = torch.full((), 10.0)  # another tensor
    check_drawn(drawings, torch.ones(3))
    assert caplog.text.count("what it reads has moved") == 1
    with plainly():
        check_drawn(drawings, torch.ones(3))


def test_other_settings_are_not_those_of_the_graph(drawings: tuple[Drawing, Replayed]) -> None:
    for factor in (2.0, 3.0, 2.0):
        for each in (drawings[0], drawings[1].function):
            each.factor = factor
        torch.manual_seed(7)
        wanted = drawings[0](torch.ones(3))
        torch.manual_seed(7)
        torch.testing.assert_close(drawings[1](torch.ones(3), kind=factor)[0], wanted[0])
    assert drawings[1]._said == {"settings have changed since it was captured"}


@pytest.mark.parametrize("fault", ["waits", "remembers"])
def test_functions_that_have_no_right_graph(fault: str, caplog: pytest.LogCaptureFixture) -> None:
    calls = []

    def function(x: Tensor) -> list[Tensor]:
        calls.append(1)
        return [x * x.sum().item() if fault == "waits" else x * len(calls)]

    replayed = Replayed(function, "it", record=Taped)
    for number in range(1, 4):
        calls.clear()
        torch.testing.assert_close(replayed(torch.ones(2))[0], torch.full((2,), 2.0 if fault == "waits" else 1.0))
        assert number == 1 or len(calls) == 1
    assert caplog.text.count("it gets no CUDA graph") == 1 and replayed.recording is None


def test_state_is_put_back_after_the_trial(drawings: tuple[Drawing, Replayed], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Taped, "replay", lambda self: drawings[1].function.calls.fill_(99.0))
    check_drawn(drawings, torch.ones(3))
    assert float(drawings[1].function.calls) == 1 and "changes" in drawings[1]._refused


@pytest.mark.gpu
def test_a_function_by_a_cuda_graph_draws_as_without() -> None:
    replayed = Replayed(lambda x: [x + torch.rand(len(x), device=x.device)], "it")
    for number in range(4):
        x = torch.full((5,), float(number), device="cuda")
        torch.manual_seed(number)
        found = replayed(x)[0], torch.rand(2, device="cuda")
        torch.manual_seed(number)
        wanted = x + torch.rand(5, device="cuda"), torch.rand(2, device="cuda")
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert replayed.recording is not None
