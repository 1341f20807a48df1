"""One page that tells a run: headline numbers, tables, pictures, the configuration and where it all comes from."""

import base64
import io
import math
import mimetypes
import numbers
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from scipy.io import wavfile

from avssl.evaluation.arrays import Arrayish, to_numpy
from avssl.files import atomic_path

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Table:
    """A table of the page.

    Attributes:
        title: heading.
        columns: names of the columns.
        rows: cells, as many to a row as there are columns; numbers are set right, everything else left.
        note: a line under the table: protocol, what chance would be, how many clips.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(
                    f"table {self.title!r}: row {number} has {len(row)} cells for {len(self.columns)} columns"
                )


@dataclass(frozen=True)
class Sound:
    """A sound that the page plays.

    Attributes:
        waveform: ``(S,)``, full scale at 1.
        sample_rate: in Hz.
        title: what it is: the clip's name, the truth.
        caption: a line under it: the prediction.
    """

    waveform: Arrayish
    sample_rate: int
    title: str
    caption: str = ""

    @property
    def uri(self) -> str:
        """A 16-bit WAV file as text. What is beyond full scale is clipped."""
        buffer = io.BytesIO()
        samples = np.clip(to_numpy(self.waveform), -1, 1) * 32767
        wavfile.write(buffer, self.sample_rate, samples.round().astype(np.int16))
        return f"data:audio/wav;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading, which the table of contents links to.

    Attributes:
        title: heading.
        text: what is done here and how to read it, a paragraph.
        tables: its tables; the title of the only one is left out where it is the section's.
        pictures: (file, caption); files are embedded.
        sounds: to play.
    """

    title: str
    text: str = ""
    tables: Sequence[Table] = ()
    pictures: Sequence[tuple[str | os.PathLike[str], str]] = ()
    sounds: Sequence[Sound] = ()


def show(value: Any) -> str:
    """A cell or headline as text: 4 significant digits, a dash for None and NaN, yes and no."""
    if value is None or (isinstance(value, numbers.Real) and not math.isfinite(value)):
        return "\N{EN DASH}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, numbers.Integral):
        return f"{int(value):,}".replace(",", "\N{THIN SPACE}")
    if isinstance(value, numbers.Real):
        number = float(value)
        return f"{number:.4g}" if abs(number) < 1e4 else f"{number:.3e}"
    return str(value)


# A number with a percent sign, a deviation or an interval, as tables write them.
_NUMBER = r"[+\-\u2212]?\d+(\.\d+)?(e[+-]?\d+)?\s?%?"
_NUMERIC = re.compile(rf"{_NUMBER}( (to|\u00b1) {_NUMBER}| \({_NUMBER} to {_NUMBER}\))?")


# How the names of metrics begin that are shares.
_SHARES = ("top", "mAP", "mAUC", "R@", "mean_class_accuracy", "cIoU", "AUC", "pointing")


def page_template(name: str) -> Template:
    """The page template of that name: values are escaped, and one that is not given is an error."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["show"] = show
    environment.tests["numeric"] = is_number
    return environment.get_template(name)


def is_number(value: Any) -> bool:
    """Whether a cell is set right: numbers, and strings that are one, with or without a percent sign and its doubt."""
    if isinstance(value, str):
        return _NUMERIC.fullmatch(value) is not None
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def is_share(metric: str) -> bool:
    """Whether a metric, by its full name ``head/top1``, is a share, 0 to 1, which is written in per cent."""
    return metric.rpartition("/")[2].startswith(_SHARES)


def data_uri(path: str | os.PathLike[str]) -> str:
    """A picture as text to stand in the page itself.

    Raises:
        ValueError: missing, or not a picture by its name.
    """
    kind = mimetypes.guess_type(os.fspath(path))[0] or ""
    if not kind.startswith("image/"):
        raise ValueError(f"pictures: {path} is not named like a picture (.png, .jpg, .svg)")
    if not Path(path).is_file():
        raise ValueError(f"pictures: {path} does not exist; draw it before the report")
    return f"data:{kind};base64,{base64.b64encode(Path(path).read_bytes()).decode('ascii')}"


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in values.items():
        pairs += _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return pairs


def _plain(tables: Sequence[Table], pictures: Sequence[tuple[str | os.PathLike[str], str]]) -> list[Section]:
    sections = [Section(table.title, tables=[table]) for table in tables]
    return [*sections, Section("Pictures", pictures=pictures)] if pictures else sections


def _numbered(sections: Sequence[Section]) -> list[dict[str, Any]]:
    """Sections as the template takes them: with an anchor each, and files as text."""
    return [
        {
            "anchor": f"{number}-{re.sub(r'[^a-z0-9]+', '-', section.title.lower()).strip('-')}",
            "title": section.title,
            "text": section.text,
            "tables": section.tables,
            "pictures": [(data_uri(path), caption) for path, caption in section.pictures],
            "sounds": section.sounds,
        }
        for number, section in enumerate(sections, 1)
    ]


def write_report(
    folder: str | os.PathLike[str],
    *,
    title: str,
    summary: Mapping[str, Any],
    tables: Sequence[Table] = (),
    pictures: Sequence[tuple[str | os.PathLike[str], str]] = (),
    sections: Sequence[Section] = (),
    config_yaml: str = "",
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Writes ``report.html``, a single file that needs nothing beside it and nothing from the network.

    Args:
        folder: where the page goes; made when missing.
        summary: name -> headline value, or (value, a line under it), shown as cards in this order. Strings stand as
            they are.
        tables: each makes a section of its own.
        pictures: (file, caption); files are embedded, in one section behind the tables.
        sections: further parts, behind those.
        config_yaml: the run's whole configuration, folded away at the end.
        provenance: of :func:`avssl.evaluation.result.provenance`, or any mapping; nested keys are joined by dots.

    Returns:
        Path of the page.

    Raises:
        ValueError: a picture is missing or not a picture.
    """
    text = page_template("report.html").render(
        title=title,
        summary=[(name, *(value if isinstance(value, tuple) else (value, ""))) for name, value in summary.items()],
        sections=_numbered([*_plain(tables, pictures), *sections]),
        config_yaml=config_yaml.strip(),
        provenance=_flat(provenance or {}),
    )
    target = Path(folder) / "report.html"
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return target
