"""Several data sets as one, so that one run trains on all of them.

Its options in a data YAML, or after ``--data union --data.options``::

    sets:
      - {name: esc10, root: /path/to/ESC-50}
      - {name: grid, root: /path/to/grid, options: {test_clips: 50}, heads: [digit]}

Rows keep their splits, and "set" is a column with the set's name. A clip's id is ``SET/ID`` and its path absolute. A
row is unlabelled under the heads of other sets, which neither train on it nor are judged by it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from avssl.data.catalog import find_entry, list_data
from avssl.data.datasets import nearest, register_dataset
from avssl.data.failures import DataError
from avssl.data.manifest import LABEL_PREFIX, Manifest
from avssl.data.manifest_checks import CACHE_SOURCE

KEYS = ("name", "root", "options", "heads")


@register_dataset("union", clip_seconds=None, eval_clips=1, head=None, needs_root=False)
def union(root: Path | None, *, sets: Sequence[Mapping[str, Any]] = ()) -> Manifest:
    """One manifest of several sets.

    Two heads of one name are one head where they have the same classes in the same order, and as many labels a clip;
    otherwise each of them is named ``SET-HEAD``.

    Args:
        root: Not used: every set has its own.
        sets: ``name`` of each, as ``--data`` takes it; its ``root`` and ``options`` as after ``--data.root`` and
            ``--data.options``; and the ``heads`` to take over, by default as ``--data`` alone would.

    Raises:
        DataError: no set, an unknown or missing key or head, or what a set's own builder refuses.
    """
    if not isinstance(sets, Sequence) or isinstance(sets, str) or not sets:
        raise DataError(f"union: option sets must list data sets as {{name: ..., root: ...}}, got {sets!r}")
    parts: dict[str, tuple[Manifest, list[str]]] = {}
    for position, item in enumerate(sets, 1):
        name, manifest, heads = _open(position, item)
        free = (part for part in (name, *(f"{name}-{k}" for k in range(2, len(sets) + 2))) if part not in parts)
        parts[next(free)] = manifest, heads
    names = _head_names(parts)
    classes = {names[part, head]: manifest.heads[head] for part, (manifest, heads) in parts.items() for head in heads}
    tables = [
        _table(part, manifest, {head: names[part, head] for head in heads}) for part, (manifest, heads) in parts.items()
    ]
    return Manifest(pa.concat_tables(tables, promote_options="default"), Path("/"), classes, allow_absolute=True)


def _open(position: int, item: Any) -> tuple[str, Manifest, list[str]]:
    """Name, unscanned manifest and heads of a set."""
    where = f"union: set {position}"
    if not isinstance(item, Mapping) or not item.get("name"):
        raise DataError(f"{where} must have a name: {{name: esc10, root: ...}}, got {item!r}")
    for key in item:
        if key not in KEYS:
            raise DataError(f"{where}: unknown key {key!r}{nearest(str(key), KEYS)}; the keys are {', '.join(KEYS)}")
    name = str(item["name"])
    manifest, _ = list_data(name, item.get("root"), item.get("options"))
    by_default = find_entry(name).head
    heads = item.get("heads") or ([by_default] if by_default else list(manifest.heads))
    unknown = [head for head in heads if head not in manifest.heads]
    if unknown:
        raise DataError(f"{where}: {name} has no head {unknown[0]!r}{nearest(str(unknown[0]), list(manifest.heads))}")
    return Path(name).stem, manifest, heads


def _head_names(parts: Mapping[str, tuple[Manifest, list[str]]]) -> dict[tuple[str, str], str]:
    """(part, head) -> name of the head in the union."""
    kinds: dict[str, Counter[tuple[bool, tuple[str, ...]]]] = {}
    for manifest, heads in parts.values():
        for head in heads:
            kinds.setdefault(head, Counter())[head in manifest.multilabel, tuple(manifest.heads[head])] += 1
    names = {
        (part, head): head if len(kinds[head]) == 1 else f"{part}-{head}"
        for part, (_, heads) in parts.items()
        for head in heads
    }
    first: dict[str, tuple[str, str]] = {}
    for (part, head), name in names.items():
        if first.setdefault(name, (part, head)) != (part, head) and first[name][1] != head:
            of_part, of_head = first[name]
            raise DataError(
                f"union: head {of_head!r} of set {of_part} and head {head!r} of set {part} would both be {name!r}: "
                "leave one out by the key heads, or rename the file or folder of one set"
            )
    return names


def _table(part: str, manifest: Manifest, heads: Mapping[str, str]) -> pa.Table:
    """The rows of a set with ids, paths and heads of the union."""
    table = manifest.table
    table = table.drop_columns([LABEL_PREFIX + head for head in manifest.heads if head not in heads])
    table = table.rename_columns(
        [
            LABEL_PREFIX + heads[name.removeprefix(LABEL_PREFIX)] if name.startswith(LABEL_PREFIX) else name
            for name in table.column_names
        ]
    )
    replaced = {
        "clip_id": [f"{part}/{name}" for name in manifest.column("clip_id")],
        "path": [str(manifest.root / path) for path in manifest.column("path")],
        "set": [part] * len(manifest),
    }
    if "cache_error" in table.column_names:  # two caches may hold files of one name
        name = CACHE_SOURCE if CACHE_SOURCE in table.column_names else "source"
        replaced[name] = [f"{part}/{source}" for source in manifest.column(name)]
    for name, values in replaced.items():
        column, position = pa.array(values, pa.string()), table.schema.get_field_index(name)
        table = table.append_column(name, column) if position < 0 else table.set_column(position, name, column)
    return table
