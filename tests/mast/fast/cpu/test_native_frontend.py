"""The compiled log-mel equals the one of torch's operators, whatever it is given and however many threads work."""

import copy
import ctypes
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

import mast
from mast.fast.cpu import frontend as native
from mast.fast.cpu import mkl


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAST_NATIVE", raising=False)
    if native.library() is None:
        pytest.skip("kernels cannot be built here")


@pytest.fixture
def by_torch(monkeypatch: pytest.MonkeyPatch) -> Callable[[mast.LogMel, Tensor], Tensor]:
    """The same frontend by torch's operators."""

    def run(frontend: mast.LogMel, waveform: Tensor) -> Tensor:
        with monkeypatch.context() as context:
            context.setenv("MAST_NATIVE", "0")
            return frontend(waveform)

    return run


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every call of the kernels."""
    made: list[int] = []
    original = native.log_mel
    monkeypatch.setattr(native, "log_mel", lambda *args, **options: (made.append(1), original(*args, **options))[1])
    return made


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def signals(samples: int) -> Tensor:
    """Noise from loud to denormal, a tone beside an offset, a click, a step, silence."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(samples, generator=generator)
    click, step = torch.zeros(samples), torch.zeros(samples)
    click[samples // 2], step[samples // 3 :] = 1.0, 0.9
    tone = 0.5 + 0.5 * torch.sin(torch.arange(samples) * 0.17)
    rows = [0.1 * noise, 3e4 * noise, 1e-5 * noise, 1e-41 * noise, tone, click, step, 0 * noise, 0 * noise - 1]
    return torch.stack(rows)


SETTINGS = {
    "default": {},
    "8 kHz": {"sample_rate": 8000},
    "24 kHz, narrow": {"sample_rate": 24000, "num_mels": 80, "low_hz": 50.0, "high_hz": 10000.0, "preemphasis": 0.9},
    "44.1 kHz: a window without a multiple of lanes": {"sample_rate": 44100},
    "gaps between frames": {"frame_length_ms": 20.0, "frame_shift_ms": 33.0},
    "a shift of one sample": {"frame_length_ms": 4.0, "frame_shift_ms": 0.0625},
    "filters that cover no bin": {"num_mels": 300},
    "few filters": {"num_mels": 4},
    "smallest transform": {"frame_length_ms": 2.0, "frame_shift_ms": 1.0, "num_mels": 8},
    "no pre-emphasis": {"preemphasis": 0.0},
    "centred clips": {"center_clips": True},
    "CAV-MAE's divisor": {"divide_by": "std", "mean": -5.0, "std": 4.4},
    "not normalized": {"mean": None, "std": None},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_equals_torchs_operators(name: str, by_torch: Callable, calls: list[int]) -> None:
    frontend, waveform = mast.LogMel(**SETTINGS[name]), signals(2500)
    out = frontend(waveform)
    assert len(calls) == 1
    torch.testing.assert_close(out, by_torch(frontend, waveform), atol=4e-6, rtol=1e-6)


@pytest.mark.parametrize("frames", [1, 2, 15, 16, 31, 33, 63, 64, 65, 129])
@pytest.mark.parametrize("clips", [1, 3, 70])
def test_any_number_of_frames_and_clips(frames: int, clips: int, by_torch: Callable) -> None:
    frontend = mast.LogMel(num_mels=23)
    waveform = torch.randn(clips, frontend.samples_for(frames) + 7)
    torch.testing.assert_close(frontend(waveform), by_torch(frontend, waveform), atol=4e-6, rtol=1e-6)


def test_the_number_of_threads_changes_no_bit(set_threads: Callable[[int], None]) -> None:
    frontend, waveform = mast.LogMel(), 0.1 * torch.randn(3, 50001)
    set_threads(1)
    expected = frontend(waveform)
    for threads in (2, 3, 7):
        set_threads(threads)
        assert torch.equal(frontend(waveform), expected)


def test_several_callers_at_once() -> None:
    frontend, waveforms = mast.LogMel(), [0.1 * torch.randn(2, 20000) for _ in range(6)]
    expected = [frontend(waveform) for waveform in waveforms]
    with ThreadPoolExecutor(3) as pool:
        for out, wanted in zip(pool.map(frontend, waveforms), expected, strict=True):
            assert torch.equal(out, wanted)


class _Spectrograms(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Tensor:
        return mast.LogMel()(torch.linspace(-1, index, 16000).sin()[None])[0]


def test_works_in_a_worker_that_was_forked_after_use(set_threads: Callable[[int], None]) -> None:
    set_threads(2)
    expected = torch.stack([_Spectrograms()[index] for index in range(2)])
    loader = torch.utils.data.DataLoader(_Spectrograms(), 2, num_workers=1, multiprocessing_context="fork", timeout=60)
    assert torch.equal(next(iter(loader)), expected)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.t().contiguous().t(),
        lambda x: x[:, ::3],
        lambda x: x[::2, 5:],
        lambda x: x[:1].expand(4, -1),
        lambda x: x.double(),
        lambda x: x.bfloat16(),
        lambda x: torch.complex(x, x).conj().imag,
        lambda x: x.clone().requires_grad_(),
        lambda x: x[:0],
    ],
    ids=["transposed", "strided", "sliced", "expanded", "double", "bfloat16", "negated", "grad", "empty"],
)
def test_any_layout_and_type(view: Callable[[Tensor], Tensor], calls: list[int]) -> None:
    frontend, waveform = mast.LogMel(), view(0.1 * torch.randn(4, 9001))
    out = frontend(waveform)
    plain = waveform.detach().float().resolve_neg().clone(memory_format=torch.contiguous_format)
    assert torch.equal(out, frontend(plain)) and len(calls) == 2
    assert out.dtype == torch.float32 and out.is_contiguous() and not out.requires_grad


def test_not_a_number_stays_in_its_frames(by_torch: Callable) -> None:
    frontend, waveform = mast.LogMel(), 0.1 * torch.randn(2, 16000)
    waveform[0, 5000], waveform[1, 9000] = torch.nan, torch.inf
    out = frontend(waveform)
    torch.testing.assert_close(out, by_torch(frontend, waveform), atol=4e-6, rtol=1e-6, equal_nan=True)
    assert 1 <= out.isnan().any(dim=2).sum() <= 6


@pytest.mark.parametrize("flags", [("-march=x86-64-v3",), ("-march=x86-64",)])
def test_narrower_vectors_give_the_same_bits(flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    narrower = native.library(*flags)
    if narrower is None:
        pytest.skip("not an x86 compiler")
    frontend, waveform = mast.LogMel(), signals(5000)
    expected = frontend(waveform)
    monkeypatch.setattr(native, "library", lambda: narrower)
    assert torch.equal(frontend(waveform), expected)


@pytest.mark.parametrize("settings", [{}, {"sample_rate": 44100}])
def test_without_mkl_and_its_order_of_sums(settings: dict, monkeypatch: pytest.MonkeyPatch, by_torch: Callable) -> None:
    frontend, waveform = mast.LogMel(**settings), 0.1 * torch.randn(5, 100_000)
    expected = frontend(waveform)
    monkeypatch.setattr(native, "sums_like_torch", lambda *_: False)
    assert torch.equal(frontend(waveform), expected)
    monkeypatch.setattr(mkl, "descriptor", lambda *_: None)
    torch.testing.assert_close(frontend(waveform), expected, atol=1e-6, rtol=1e-6)


def test_a_transform_that_is_not_torchs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    if mkl.descriptor(512, 32) is None:
        pytest.skip("torch has no MKL here")
    monkeypatch.setattr(torch.fft, "rfft", lambda rows: torch.view_as_complex(torch.ones(len(rows), 65, 2)))
    assert mkl.descriptor(128, 3) is None


def test_a_failing_transform_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    function = ctypes.CFUNCTYPE(ctypes.c_long, *[ctypes.c_void_p] * 3)(lambda *_: 3)
    monkeypatch.setattr(mkl, "transform", lambda: ctypes.cast(function, ctypes.c_void_p))
    monkeypatch.setattr(mkl, "descriptor", lambda *_: 1)
    with pytest.raises(RuntimeError, match="512 samples failed with status 3"):
        mast.LogMel()(torch.zeros(1, 400))


@pytest.mark.parametrize("settings", [{}, {"center_clips": True, "sample_rate": 8000}])
def test_exported_and_compiled_by_torchs_operators(settings: dict, calls: list[int]) -> None:
    frontend, waveform = mast.LogMel(**settings), 0.1 * torch.randn(2, 4000)
    sizes = {"waveform": {0: torch.export.Dim("clips"), 1: torch.export.Dim("samples", min=600)}}
    exported = torch.export.export(frontend, (waveform,), dynamic_shapes=sizes).module()
    compiled = torch.compile(frontend, backend="eager", fullgraph=True)
    for traced, clips in ((exported, waveform), (exported, torch.randn(3, 5000)), (compiled, waveform)):
        torch.testing.assert_close(traced(clips), frontend(clips), atol=4e-6, rtol=1e-6)
    assert len(calls) == 3


def test_copies_and_pickles() -> None:
    frontend, waveform = mast.LogMel(), 0.1 * torch.randn(2, 4000)
    expected = frontend(waveform)
    for copied in (copy.deepcopy(frontend), pickle.loads(pickle.dumps(frontend))):
        assert torch.equal(copied(waveform), expected)
