"""The clip protocol: what a result says of its clips, and what cannot be one."""

import pytest

from avssl.config import DataConfig
from avssl.data.catalog import find_entry
from avssl.data.loaders import ClipProtocol
from avssl.data.splits import protocol_of


def test_it_is_told_in_words() -> None:
    assert str(ClipProtocol(1.2, 2)) == "2 clips of 1.2 s, probabilities averaged"
    assert str(ClipProtocol(5.0)) == "1 clip of 5 s" and ClipProtocol(5.0).words() == "centre clip of 5 s"
    published = ClipProtocol(2.0, 10, "logits", "X")
    assert str(published) == "10 clips of 2 s, logits averaged, as in X"
    assert published.words() == "mean logits of 10 clips of 2 s, as in X"
    assert published.words("probabilities") == "mean probabilities of 10 clips of 2 s", "X averages logits"
    assert published.words("features") == "mean features of 10 clips of 2 s"
    assert published.description("features") == "10 clips of 2 s, features averaged"
    assert ClipProtocol(2.0, 1, "logits", "X").words("features") == "centre clip of 2 s, as in X"


def test_a_work_on_sound_is_not_named_where_pictures_alone_are_judged() -> None:
    entry = find_entry("epic-kitchens")
    named = {seen: protocol_of(DataConfig(), entry, seen).name for seen in (("audio",), ("audio", "video"), ("video",))}
    assert list(named.values()) == ["Auditory SlowFast", "Auditory SlowFast", ""]


@pytest.mark.parametrize(
    ("seconds", "eval_clips", "field"),
    [(0.0, 1, "clip_seconds"), (-1.0, 1, "clip_seconds"), (1.0, 0, "eval_clips"), (1.0, -1, "eval_clips")],
)
def test_nothing_to_embed_is_an_error_not_the_default(seconds: float, eval_clips: int, field: str) -> None:
    with pytest.raises(ValueError, match=rf"data\.{field} must be"):
        ClipProtocol(seconds, eval_clips)
