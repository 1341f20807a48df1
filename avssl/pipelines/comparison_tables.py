"""Tables with bold cells as text, Markdown or HTML."""

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from avssl.evaluation.report import TEMPLATES

FORMATS = ("text", "markdown", "html")
_BOLD, _PLAIN = "\033[1m", "\033[0m"
# A table that turns does so beyond this width of text in characters, and these columns of HTML.
_WIDTH, _COLUMNS = 120, 8


@dataclass(frozen=True)
class Cell:
    """One cell; ``bold`` marks the best of a column, or what counts."""

    text: str
    bold: bool = False


@dataclass(frozen=True)
class CellTable:
    """A table: every row has as many cells as there are columns.

    One that ``turns`` has its rows as columns where text or a page would be too narrow for it.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    turns: bool = False

    def turned(self) -> "CellTable":
        """The same with rows and columns exchanged."""
        columns = [self.columns[0], *(row[0].text for row in self.rows)]
        rows = [[Cell(name), *(row[number] for row in self.rows)] for number, name in enumerate(self.columns) if number]
        return CellTable(self.title, columns, rows)


def render(format: str, tables: Sequence[CellTable], notes: Sequence[str], *, bold: bool = False) -> str:
    """The tables that have rows, and the notes, in a format of `FORMATS`.

    Args:
        bold: In text, mark by a terminal's bold; otherwise by an asterisk.

    Raises:
        ValueError: another format.
    """
    tables = [table for table in tables if table.rows]
    if format == "text":
        blocks = [_text(table, bold) for table in tables] + ["\n".join(notes)]
    elif format == "markdown":
        blocks = [_markdown(table) for table in tables] + ["\n".join(f"- {note}" for note in notes)]
    elif format == "html":
        tables = [table.turned() if table.turns and len(table.columns) > _COLUMNS else table for table in tables]
        environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
        return environment.get_template("compare.html").render(tables=tables, notes=notes)
    else:
        raise ValueError(f"format: must be one of {', '.join(FORMATS)}, got {format!r}")
    return "\n\n".join(filter(None, blocks)) + "\n"


def _text(table: CellTable, bold: bool) -> str:
    marked = [[cell.text + (" *" if cell.bold and not bold else "") for cell in row] for row in table.rows]
    widths = [max(map(len, column)) for column in zip(table.columns, *marked, strict=True)]
    lines = [table.title, "  ".join(f"{name:{width}}" for name, width in zip(table.columns, widths, strict=True))]
    if table.turns and len(lines[1]) > _WIDTH:
        return _text(table.turned(), bold)
    lines.append("  ".join("-" * width for width in widths))
    for row, texts in zip(table.rows, marked, strict=True):
        padded = [f"{text:{width}}" for text, width in zip(texts, widths, strict=True)]
        if bold:
            padded = [f"{_BOLD}{text}{_PLAIN}" if cell.bold else text for cell, text in zip(row, padded, strict=True)]
        lines.append("  ".join(padded))
    return "\n".join(line.rstrip() for line in lines)


def _markdown(table: CellTable) -> str:
    def line(texts: Sequence[str]) -> str:
        escaped = (text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ") for text in texts)
        return f"| {' | '.join(escaped)} |"

    lines = [f"### {table.title}", "", line(table.columns), line(["---"] * len(table.columns))]
    return "\n".join(
        lines + [line([f"**{cell.text}**" if cell.bold else cell.text for cell in row]) for row in table.rows]
    )
