"""The clip protocol: what a result says of its clips, and what cannot be one."""

import pytest

from avssl.pipelines.data import ClipProtocol


def test_it_is_told_in_words() -> None:
    assert str(ClipProtocol(1.2, 2)) == "2 clips of 1.2 s, probabilities averaged"
    assert str(ClipProtocol(5.0)) == "1 clip of 5 s" and ClipProtocol(5.0).words() == "centre clip of 5 s"
    published = ClipProtocol(2.0, 10, "logits", "X")
    assert str(published) == "10 clips of 2 s, logits averaged, as in X"
    assert published.words() == "mean logits of 10 clips of 2 s, as in X"
    assert published.words("features") == "mean features of 10 clips of 2 s, as in X"


@pytest.mark.parametrize(
    ("seconds", "eval_clips", "field"),
    [(0.0, 1, "clip_seconds"), (-1.0, 1, "clip_seconds"), (1.0, 0, "eval_clips"), (1.0, -1, "eval_clips")],
)
def test_nothing_to_embed_is_an_error_not_the_default(seconds: float, eval_clips: int, field: str) -> None:
    with pytest.raises(ValueError, match=rf"data\.{field} must be"):
        ClipProtocol(seconds, eval_clips)
