"""Pictures: that they show what they were given, refuse what cannot be shown, and touch no global state."""

import json
import os
import subprocess
import sys

import matplotlib as mpl
import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_hex

import avssl  # noqa: F401
from avssl.evaluation import error_analysis, feature_maps, few_label, retrieval, robustness
from avssl.evaluation.error_analysis import confusion_matrix
from avssl.evaluation.feature_maps import class_maps, tsne_before_after, tsne_map, umap_map
from avssl.evaluation.few_label import share_curves
from avssl.evaluation.plots import RIGHT, WRONG, class_style, head_to_head, save
from avssl.evaluation.retrieval import RetrievalExample, retrieval_examples
from avssl.evaluation.robustness import condition_bars
from avssl.training import after_training
from avssl.training.after_training import collect, loss_curves, smooth


@pytest.fixture
def figures(monkeypatch):
    """The figures that the pictures are saved from, for a look inside."""
    made = []
    for module in (robustness, error_analysis, after_training, few_label, feature_maps, retrieval):
        monkeypatch.setattr(module, "save", lambda figure, path: (made.append(figure), save(figure, path)))
    return made


def ink(path) -> float:
    """Share of pixels that are not white."""
    return float((mpl.image.imread(path)[..., :3].min(axis=2) < 0.97).mean())


def boxes(figure) -> list[tuple]:
    """(axes, legend) of a drawn figure: each panel with its own legend, or with the figure's."""
    figure.canvas.draw()
    own = [(axes, axes.get_legend()) for axes in figure.axes if axes.get_legend()]
    return own + [(axes, legend) for axes in figure.axes for legend in figure.legends]


def test_no_legend_lies_over_curves_or_labels(tmp_path, figures):
    rows = [{"step": step, "train/loss": 1.0, "train/loss/infonce": 0.5, "train/loss/vicreg": 0.7}
            | {f"val/{way}/R@{k}": (step + k) / 100 for way in ("audio_to_video", "video_to_audio") for k in (10, 1, 5)}
            for step in range(40)]  # fmt: skip
    loss_curves(rows, tmp_path / "curves.png")
    share_curves(
        {name: [(0.01, 0.5, 0.1), (1.0, 0.5, 0.0)] for name in "abc"},
        tmp_path / "shares.png",
        title="t",
        ylabel="top-1",
    )
    told = [boxes(figure) for figure in figures]
    assert [len(found) for found in told] == [2, 1]
    for axes, legend in (*told[0], *told[1]):
        box = legend.get_window_extent()
        beside = [*axes.figure.axes, axes.xaxis.label]
        assert not any(other.get_window_extent().overlaps(box) for other in beside)
        assert axes.figure.bbox.contains(box.x0, box.y0) and axes.figure.bbox.contains(box.x1, box.y1)
    names = [text.get_text().rpartition("/")[2] for text in told[0][1][1].get_texts()]
    assert names == ["R@1", "R@5", "R@10"] * 2


def test_names_are_shown_as_they_are_written(tmp_path, figures):
    names = ["$5 bill$", "_silence_", "a_b^c $x", "\\frac{1}", "50% $off$ $"]  # none is a formula
    labels = np.arange(50) % 5
    features = np.random.default_rng(0).normal(size=(50, 2))
    class_maps([("p $q", features)], labels, names, tmp_path / "map.png", title="$ of $x")
    confusion_matrix(np.eye(5), names, tmp_path / "confusion.png", title="one $ is no formula")
    maps, confusion = figures
    (legend,) = maps.legends
    assert [text.get_text() for text in legend.get_texts()] == names
    assert [label.get_text() for label in confusion.axes[0].get_yticklabels()] == names
    for figure in figures:
        texts = [text for text in figure.findobj(mpl.text.Text) if "$" in text.get_text()]
        assert texts and not any(text.get_parse_math() for text in texts)


def test_curves_draw_the_numbers_logged(tmp_path, figures):
    rows = [json.loads(f'{{"step": {step}, "train/loss": {5 - step / 100}, "train/lr": 0.1}}') for step in range(300)]
    rows += [{"step": 299, "val/audio_to_video/R@1": 0.5}, {"step": 10, "note": "text", "train/loss": float("nan")}]
    rows += [{"step": 299, "val/chance/R@1": 0.1}]  # never changes: no curve
    loss_curves(rows, tmp_path / "curves.png")
    titles = [axes.get_title(loc="left") for axes in figures[0].axes]
    assert titles == ["Loss", "Learning rate", "Retrieval"] and len(figures[0].axes[2].lines) == 1
    raw, smoothed = figures[0].axes[0].lines
    np.testing.assert_allclose(raw.get_ydata(), [5 - step / 100 for step in range(300)])
    assert raw.get_alpha() < 1
    np.testing.assert_allclose(smoothed.get_ydata(), raw.get_ydata(), atol=0.06)
    assert ink(tmp_path / "curves.png") > 0.01


def test_a_schedule_is_not_smoothed(tmp_path, figures):
    loss_curves([{"step": i, "lr": abs(i - 100)} for i in range(300)], tmp_path / "lr.png")
    (line,) = figures[0].axes[0].lines
    assert min(line.get_ydata()) == 0


def test_smoothing_keeps_constants_and_shifts_nothing():
    np.testing.assert_allclose(smooth(np.full(50, 3.0), 7), 3.0)
    peak = smooth(np.eye(1, 51, 25)[0], 5)
    assert peak.argmax() in range(23, 28) and peak.sum() == pytest.approx(1)


def test_resumed_runs_keep_the_later_value_and_steps_are_sorted():
    series = collect([{"step": 2, "loss": 1}, {"step": 1, "loss": 9}, {"step": 2, "loss": 5}, {"loss": 7}], "step")
    assert [part.tolist() for part in series["loss"]] == [[1, 2], [9, 5]]


def test_curves_without_anything_to_draw(tmp_path):
    with pytest.raises(ValueError, match="keys with numbers: colour"):
        loss_curves([{"step": 1, "colour": 3}], tmp_path / "none.png")
    assert not list(tmp_path.iterdir())


def test_confusion_shows_row_shares_and_greys_classes_without_rows(tmp_path, figures):
    confusion_matrix(np.array([[3, 1, 0], [0, 0, 0], [0, 0, 2]]), ["a", "b", "c"], tmp_path / "c.png")
    image = figures[0].axes[0].images[0].get_array()
    np.testing.assert_allclose(image[[0, 2]], [[0.75, 0.25, 0], [0, 0, 1]])
    assert image.mask[1].all() and not image.mask[[0, 2]].any()
    assert {text.get_text() for text in figures[0].axes[0].texts} == {"75", "25", "100"}
    assert "83.3%" in figures[0].get_suptitle()


@pytest.mark.parametrize("classes", [1, 10, 309])
def test_confusion_of_any_size(tmp_path, classes):
    path = tmp_path / "c.png"
    confusion_matrix(np.eye(classes, dtype=int), [f"class number {i}" for i in range(classes)], path)
    assert max(mpl.image.imread(path).shape) < 2600
    assert ink(path) > 0.01


def test_confusion_refuses_what_is_not_one(tmp_path):
    for matrix, names, message in (
        (np.ones((2, 3)), ["a", "b"], r"expected \(C, C\)"),
        (np.ones((2, 2)), ["a"], "1 names for 2 classes"),
        (np.array([[np.nan, 1], [1, 1]]), ["a", "b"], "negative or NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            confusion_matrix(matrix, names, tmp_path / "c.png")


def test_tsne_is_seeded_and_separates_what_is_separate():
    labels = np.arange(60) % 3
    features = np.eye(8)[labels] * 5 + np.random.default_rng(0).normal(size=(60, 8)) * 0.1
    places = tsne_map(features, seed=1)
    np.testing.assert_array_equal(places, tsne_map(features, seed=1))
    distance = np.linalg.norm(places[:, None] - places[None], axis=2) + 1e9 * np.eye(60)
    assert (labels[distance.argmin(axis=1)] == labels).all()


@pytest.mark.parametrize("rows", [1, 2, 4, 7])
def test_tsne_of_few_rows(tmp_path, rows):
    features = np.random.default_rng(0).normal(size=(rows, 6))
    assert tsne_map(features).shape == (rows, 2)
    tsne_before_after(features, np.ones((rows, 3)), np.arange(rows) % 2, ["a", "b"], tmp_path / "t.png")
    assert ink(tmp_path / "t.png") > 0.01


def test_tsne_samples_large_sets_and_leaves_out_unlabelled_rows(tmp_path):
    features = np.random.default_rng(0).normal(size=(80, 6))
    labels = np.r_[np.full(20, -1), np.arange(60) % 2]
    tsne_before_after(features, features, labels, ["a", "b"], tmp_path / "t.png", max_points=30)
    with pytest.raises(ValueError, match="unlabelled"):
        tsne_before_after(features, features, np.full(80, -1), ["a"], tmp_path / "t.png")
    with pytest.raises(ValueError, match="must be the same clips"):
        tsne_before_after(features, features[:5], labels, ["a", "b"], tmp_path / "t.png")


def test_sixty_four_classes_look_different():
    assert len({class_style(i) for i in range(64)}) == 64


def test_retrieval_frames_the_right_one(tmp_path, figures):
    frames = [np.full((20, 30, 3), 40 * i, np.uint8) for i in range(6)]
    query = RetrievalExample(np.zeros((16, 40)), frames, [False, True] + [False] * 4, "dog", ["x"] * 6, rank=2)
    retrieval_examples(tmp_path / "r.png", [query, query])
    axes = figures[0].axes
    assert len(axes) == 2 * 6  # a spectrogram and the first five frames, twice
    assert [to_hex(a.spines["left"].get_edgecolor()).upper() for a in axes[1:6]] == [WRONG, RIGHT, WRONG, WRONG, WRONG]
    assert axes[0].get_xlabel() == "right clip at rank 2"


def test_retrieval_refuses_float_frames_and_unequal_flags(tmp_path):
    frame = np.zeros((4, 4, 3), np.uint8)
    for queries, message in (
        ([], "nothing to draw"),
        ([RetrievalExample(np.zeros((2, 2)), [frame.astype(float)], [True])], "uint8"),
        ([RetrievalExample(np.zeros((2, 2)), [frame], [])], "0 flags for 1 frames"),
        ([RetrievalExample(np.zeros(2), [frame], [True])], r"expected \(F, T\)"),
    ):
        with pytest.raises(ValueError, match=message):
            retrieval_examples(tmp_path / "r.png", queries)


def test_head_to_head(tmp_path):
    table = {"linear probe": {"random": 0.3, "pretrained": 0.7}, "kNN": {"random": float("nan"), "pretrained": 0.6}}
    intervals = {"linear probe": {"random": (0.2, 0.4)}}
    head_to_head(table, tmp_path / "b.png", intervals=intervals, chance=0.1)
    assert ink(tmp_path / "b.png") > 0.05
    with pytest.raises(ValueError, match="nothing to draw"):
        head_to_head({}, tmp_path / "b.png")


def test_global_settings_stay_and_pyplot_is_not_loaded(tmp_path, forked_tools):
    before = dict(mpl.rcParams)
    confusion_matrix(np.eye(2), ["a", "b"], tmp_path / "c.png")
    assert dict(mpl.rcParams) == before
    (tmp_path / "loaded.py").write_text(
        "import sys; from avssl.evaluation import base; base.available(); sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert forked_tools.run(tmp_path / "loaded.py", [], environment=os.environ, cwd=tmp_path).returncode == 0


def test_metrics_do_not_wait_for_what_draws_and_fits():
    code = "import sys\n"
    for module in ("classification", "retrieval", "diagnostics", "statistics"):
        code += f"import avssl.evaluation.{module}\n"
        code += f"assert not {{'matplotlib', 'sklearn'}} & set(sys.modules), {module!r}\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_maps_name_every_class_that_is_there(figures, tmp_path):
    labels = np.array([0, 0, 2, 2, -1])
    place = np.arange(10.0).reshape(5, 2)
    class_maps([("left", place), ("right", -place)], labels, ["a", "b", "c"], tmp_path / "m.png", title="Maps")
    left, right = figures[0].axes
    assert (left.get_title(loc="left"), right.get_title(loc="left")) == ("left", "right")
    shown = [scatter.get_offsets().tolist() for scatter in left.collections]
    assert shown == [place[:2].tolist(), place[2:4].tolist()]
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["a", "c"]
    with pytest.raises(ValueError, match=r"'right': coordinates \(2, 2\) for 5 labels"):
        class_maps([("left", place), ("right", place[:2])], labels, ["a", "b", "c"], tmp_path / "m.png", title="")
    with pytest.raises(ValueError, match="unlabelled"):
        class_maps([("left", place)], np.full(5, -1), ["a"], tmp_path / "m.png", title="")


def test_umap_separates_what_is_separate_and_is_the_same_again():
    pytest.importorskip("umap")
    labels = np.arange(60) % 2
    features = np.random.default_rng(0).normal(size=(60, 8)) + 20 * np.eye(8)[labels]
    place = umap_map(features, seed=3)
    np.testing.assert_array_equal(place, umap_map(features, seed=3))
    centres = np.stack([place[labels == label].mean(axis=0) for label in (0, 1)])
    nearer = np.linalg.norm(place[:, None] - centres, axis=2).argmin(axis=1)
    assert (nearer == labels).all()
    assert umap_map(features[:3]).shape == (3, 2)


def test_without_umap_the_error_says_what_to_install(tmp_path, forked_tools):
    code = "import sys; sys.modules['umap'] = None; from avssl.evaluation.feature_maps import umap_map, has_umap; "
    code += "import numpy as np; print(has_umap()); umap_map(np.eye(9))"
    (tmp_path / "without.py").write_text(code)
    done = forked_tools.run(tmp_path / "without.py", [], environment=os.environ, cwd=tmp_path)
    assert done.stdout.strip() == "False" and "pip install 'avssl[umap]'" in done.stderr.splitlines()[-1]


def test_share_curves_draw_means_and_deviations(figures, tmp_path):
    curves = {
        "random": [(0.01, 0.1, np.nan), (1.0, 0.2, np.nan)],
        "pretrained": [(0.01, 0.3, 0.05), (1.0, 0.6, np.nan)],
    }
    share_curves(curves, tmp_path / "s.png", title="t", ylabel="top-1", chance=0.1)
    (axes,) = figures[0].axes
    lines = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert lines["random"] == [0.1, 0.2] and lines["pretrained"] == [0.3, 0.6] and "chance 10.0%" in lines
    shaded = [band.get_paths()[0].vertices[:, 1] for band in axes.collections]
    assert (shaded[1].min(), shaded[1].max()) == pytest.approx((0.25, 0.6))
    assert axes.get_ylim()[0] == 0 and [text.get_text() for text in axes.get_xticklabels()] == ["1 %", "100 %"]
    with pytest.raises(ValueError, match="nothing to draw"):
        share_curves({"a": []}, tmp_path / "s.png", title="", ylabel="")


def test_condition_bars_draw_values_intervals_and_the_reference(figures, tmp_path):
    values = {"noise": (0.4, 0.3, 0.5), "gap": (0.6, np.nan, np.nan)}
    groups = {"noise": "a", "gap": "b"}
    condition_bars(values, groups, tmp_path / "c.png", title="t", xlabel="top-1", reference=0.7)
    (axes,) = figures[0].axes
    assert [bar.get_width() for bar in axes.patches] == [0.4, 0.6]
    assert len({bar.get_facecolor() for bar in axes.patches}) == 2
    assert [segment.tolist() for whisker in axes.collections for segment in whisker.get_segments()] == [
        [[0.3, 0], [0.5, 0]]
    ]
    assert axes.lines[0].get_xdata() == [0.7, 0.7]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["noise", "gap"]
    with pytest.raises(ValueError, match="none for gap"):
        condition_bars(values, {"noise": "a"}, tmp_path / "c.png", title="", xlabel="", reference=0)
    with pytest.raises(ValueError, match="nothing to draw"):
        condition_bars({}, {}, tmp_path / "c.png", title="", xlabel="", reference=0)
