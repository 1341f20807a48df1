"""Models by name."""

import pytest

import mast
from mast import registry


def test_names() -> None:
    assert {"ast_base", "mast_base", "mast_pico", "mast_small", "mast_tiny"} <= set(mast.list_models())
    assert mast.create_model("mast_pico").name == "mast_pico"


def test_unknown_name_suggests() -> None:
    with pytest.raises(ValueError, match=r"unknown model 'mast_bas'; did you mean mast_base"):
        mast.create_model("mast_bas")


def test_unknown_argument_lists_the_known_ones() -> None:
    with pytest.raises(TypeError, match=r"no argument depth; did you mean depths\? it takes .*drop_path"):
        mast.create_model("mast_pico", depth=3)


def test_a_name_can_be_added_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "BUILDERS", dict(registry.BUILDERS))

    mine = mast.register_model("mast_mine", embed_dim=8, depths=(1, 1, 1, 1))
    assert mine(mast.MAST) is mast.MAST
    assert mast.create_model("mast_mine", num_classes=2).config["embed_dim"] == 8
    with pytest.raises(ValueError, match="registered already"):
        mine(mast.MAST)
