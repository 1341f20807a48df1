"""A linear head on an encoder whose own head is more than a linear layer: AST's norm comes first."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import wavfile
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import mast
from avssl.commands.finetune import finetune
from avssl.config import AudioConfig, DataConfig, FinetuneConfig, RuntimeConfig, WandbConfig

AST = AudioConfig("ast_base", {"embed_dim": 24, "depth": 2, "heads": 2, "mels": 64, "frames": 38})


@pytest.fixture
def media(tmp_path, monkeypatch) -> Path:
    """Tones in noise of 3 digits, as FSDD names its recordings; takes 0 to 4 are the test split."""
    monkeypatch.setenv("AVSSL_CACHE", str(tmp_path / "cache"))
    for digit in range(3):
        for take in range(15):
            noise = np.random.default_rng((digit, take)).standard_normal(6400)
            sound = 4000 * np.sin((1500 + 700 * digit) * np.arange(6400) / 16000) + 2000 * noise
            (tmp_path / "fsdd").mkdir(exist_ok=True)
            wavfile.write(tmp_path / "fsdd" / f"{digit}_ann_{take}.wav", 16000, sound.astype(np.int16))
    return tmp_path / "fsdd"


def test_the_probe_stands_behind_the_norm_of_asts_head(media: Path, tmp_path) -> None:
    config = FinetuneConfig(
        DataConfig("fsdd", media, clip_seconds=0.4, num_workers=0),
        checkpoint="none",
        audio=AST,
        runtime=RuntimeConfig(accelerator="cpu"),
        wandb=WandbConfig("disabled"),
        output=tmp_path / "run",
    )
    result = finetune(config)
    loaded = mast.from_pretrained(tmp_path / "run" / "audio_encoder")
    norm, linear = loaded.model.eval().head

    def read(take: int, digit: int) -> torch.Tensor:
        _, samples = wavfile.read(media / f"{digit}_ann_{take}.wav")
        return torch.from_numpy(samples / 32768).float()

    def features(takes: range) -> tuple[np.ndarray, np.ndarray]:
        rows = [(take, digit) for take in takes for digit in range(3)]
        with torch.no_grad():
            tokens = loaded.model.forward_features(loaded.frontend(torch.stack([read(*row) for row in rows])))
            normed = norm(loaded.model.forward_head(tokens, pre_logits=True))
        return normed.numpy(), np.array([digit for _, digit in rows])

    (train, known), (test, truth) = features(range(5, 15)), features(range(5))
    scaler = StandardScaler().fit(train)
    best = {
        c: LogisticRegression(C=c, max_iter=2000).fit(scaler.transform(train), known).predict(scaler.transform(test))
        for c in (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)
    }
    ours = linear(torch.from_numpy(test)).argmax(1).numpy()
    assert any((ours == predicted).all() for predicted in best.values())
    assert result["metrics"]["digit/top1"] == pytest.approx((ours == truth).mean()) and (ours == truth).mean() > 0.6
