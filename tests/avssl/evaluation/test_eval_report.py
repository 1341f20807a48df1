"""The report page: whole, self-contained, and safe against what names may hold."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from scipy.io import wavfile

import avssl  # noqa: F401
from avssl.evaluation.error_analysis import confusion_matrix
from avssl.evaluation.report import Section, Sound, Table, is_number, show, write_report


class Page(HTMLParser):
    """Checks that tags close in order, and keeps tags, sources and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.tags, self.sources, self.text = [], [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def written(tmp_path, **values) -> Page:
    path = write_report(tmp_path / "run", **{"title": "run", "summary": {}} | values)
    assert [found.name for found in (tmp_path / "run").iterdir()] == ["report.html"] and path.name == "report.html"
    return Page(path.read_text(encoding="utf-8"))


def test_everything_is_on_the_page_and_nothing_is_fetched(tmp_path):
    confusion_matrix(np.eye(2), ["a", "b"], tmp_path / "c.png")
    page = written(
        tmp_path,
        title="pretraining of mast_pico",
        summary={"R@1": 0.41237, "chance": "1.25 %"},
        tables=[Table("Linear probe", ["start", "top-1"], [["random", 0.31], ["pretrained", None]], "80 clips")],
        pictures=[(tmp_path / "c.png", "the confusion")],
        config_yaml="seed: 0\nmodel: mast_pico",
        provenance={"revision": "abc1234", "versions": {"torch": "2.13.0"}},
    )
    numbers = ("0.4124", "1.25 %", "\N{EN DASH}", "80 clips")
    names = ("pretraining of mast_pico", "Linear probe", "pretrained", "the confusion")
    origin = ("seed: 0\nmodel: mast_pico", "abc1234", "versions.torch", "2.13.0")
    for text in numbers + names + origin:
        assert text in page.text, text
    (source,) = [source for source in page.sources if not source.startswith("#")]
    kind, data = source.split(",", 1)
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data) == (tmp_path / "c.png").read_bytes()
    assert not re.search(r"https?://|@import|url\(", (tmp_path / "run" / "report.html").read_text())


def test_what_names_hold_is_escaped(tmp_path):
    evil = "<script>alert('x')</script>\"><img src=x>"
    page = written(
        tmp_path,
        title=evil,
        summary={evil: evil},
        tables=[Table(evil, [evil], [[evil]], evil)],
        config_yaml=evil,
        provenance={evil: evil, "revision": evil},
    )
    assert "script" not in page.tags and "img" not in page.tags
    assert page.text.count(evil) == 13


def test_an_empty_run_still_makes_a_page(tmp_path):
    page = written(tmp_path)
    assert "table" not in page.tags and "figure" not in page.tags


def test_missing_or_odd_pictures_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"absent\.png does not exist"):
        write_report(tmp_path, title="", summary={}, pictures=[(tmp_path / "absent.png", "")])
    with pytest.raises(ValueError, match="not named like a picture"):
        write_report(tmp_path, title="", summary={}, pictures=[(tmp_path / "secrets.txt", "")])


def test_ragged_table_is_refused():
    with pytest.raises(ValueError, match="row 1 has 1 cells for 2 columns"):
        Table("t", ["a", "b"], [[1, 2], [1]])


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.123456, "0.1235"), (float("nan"), "\N{EN DASH}"), (None, "\N{EN DASH}"), (True, "yes"), (12345, "12\u2009345"),
     (np.float32(0.5), "0.5"), (np.int64(7), "7"), (123456.0, "1.235e+05"), ("<b>", "<b>")],
)  # fmt: skip
def test_values_as_text(value, text):
    assert show(value) == text


def test_sections_are_listed_linked_and_play(tmp_path):
    wave = np.array([0.0, 0.5, -1.5, 1.0], np.float32)
    page = written(
        tmp_path,
        sections=[
            Section("Worst classes", "Listen.", [Table("Of bells", ["class"], [["bell"]])],
                    sounds=[Sound(wave, 8000, "bell: clip <7>", "taken for bow")]),
            Section("Clusters & more"),
        ],
    )  # fmt: skip
    anchors = [source for source in page.sources if source.startswith("#")]
    assert anchors == ["#1-worst-classes", "#2-clusters-more"]
    assert all(f'id="{anchor[1:]}"' in (tmp_path / "run" / "report.html").read_text() for anchor in anchors)
    for text in ("Listen.", "Of bells", "bell: clip <7>", "taken for bow"):
        assert text in page.text
    (source,) = [source for source in page.sources if source.startswith("data:audio/wav;base64,")]
    rate, samples = wavfile.read(io.BytesIO(base64.b64decode(source.split(",")[1])))
    assert rate == 8000 and samples.tolist() == [0, 16384, -32767, 32767]


def test_a_headline_may_have_a_line_under_it(tmp_path):
    page = written(tmp_path, summary={"top-1": ("52.8%", "44.4% to 61.1%"), "clips": 144})
    assert "52.8%" in page.text and "44.4% to 61.1%" in page.text and "144" in page.text


@pytest.mark.parametrize(
    ("value", "right"),
    [("12.5 %", True), ("12.5%", True), ("-3", True), ("18.8% ± 2.1", True), ("0.32 (0.25 to 0.39)", True),
     ("44.4% to 61.1%", True), (3, True), (True, False), ("5 clips", False), ("1.2.3", False), ("", False)],
)  # fmt: skip
def test_what_is_set_right(value, right):
    assert is_number(value) is right
