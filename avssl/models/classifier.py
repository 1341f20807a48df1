"""Audio classification: frontend, encoder and one linear head whose outputs are split by task."""

from torch import Tensor, nn

import mast


class AudioClassifier(nn.Module):
    """An audio encoder with a linear head.

    Several heads (say verb and noun) are slices of one linear layer in the order of ``labels``: the encoder stays a
    plain ``mast`` model, which ``mast.from_pretrained`` loads without avssl.

    Args:
        encoder: A ``mast`` model; its head is replaced unless it has just the right number of outputs already.
        frontend: Waveform (B, S) -> log-mel (B, 1, F, T).
        labels: Class names of each head.
    """

    def __init__(self, encoder: mast.SpectrogramModel, frontend: mast.LogMel, labels: dict[str, list[str]]) -> None:
        super().__init__()
        self.encoder = encoder
        self.frontend = frontend
        self.labels = labels
        outputs = sum(len(names) for names in labels.values())
        if not outputs:
            raise ValueError("a classifier needs at least one head with classes; the data has none")
        if encoder.num_classes != outputs:
            encoder.reset_classifier(outputs)

    def forward(self, spectrogram: Tensor) -> dict[str, Tensor]:
        """Logits (B, classes) by head of ``spectrogram`` (B, 1, F, T)."""
        return self.split(self.encoder(spectrogram))

    def classify(self, waveform: Tensor) -> dict[str, Tensor]:
        """Logits (B, classes) by head of ``waveform`` (B, S)."""
        return self(self.frontend(waveform))

    def embed_audio(self, waveform: Tensor) -> Tensor:
        """Features (B, D) of ``waveform`` (B, S) that the head sees."""
        tokens = self.encoder.forward_features(self.frontend(waveform))
        return self.encoder.forward_head(tokens, pre_logits=True)

    def split(self, outputs: Tensor) -> dict[str, Tensor]:
        """Cuts ``outputs`` (..., all classes) into heads."""
        sizes = [len(names) for names in self.labels.values()]
        return dict(zip(self.labels, outputs.split(sizes, dim=-1), strict=True))
