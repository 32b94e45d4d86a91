"""Tables in Parquet and in Arrow's own files (IPC, Feather), by row groups; needs pyarrow (the extra `signals`).

Their cells are read as those of a CSV file (`../_tables.py`), so that the same table is the same signal: times are
found, numbers are whole at the decimals of their shortest text. Fields within fields have names joined by dots.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from genmote.errors import SignalError
from genmote.signals import _tables
from genmote.signals._extra import library
from genmote.signals.kinds import Records, Series

GROUPS = True
SUFFIXES = (".parquet", ".pq", ".feather", ".arrow", ".arrows", ".ipc")
PARQUET, FILE, STREAM = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"
LIST = 64  # values of a list of fixed length that become columns
INDEX = "__index_level_"  # as pandas calls an index without a name

Column = tuple[str, Any]  # its name, and its cells as an array of pyarrow


def knows(path: Path, head: bytes) -> bool:
    return head[:4] == PARQUET or head[:6] == FILE or (head[:4] == STREAM and path.suffix.lower() in SUFFIXES)


def pieces(path: Path, rows: int, notes: list[str], *, group: str | None = None) -> Iterator[Series | Records]:
    arrow = library("pyarrow", path)
    library("pyarrow.compute", path)
    tally = _tables.Tally(notes)
    batches = _batches(path, arrow)
    first = next((batch for batch in batches if batch.num_rows), None)
    if first is None:
        raise SignalError(f"{path}: has no rows: wanted a table with at least one")
    columns = _columns(arrow, first)
    for name, array in columns:
        if _kind(arrow, array) is None:
            text = f"{path.name}: {{n}} columns that have no single number, time or word are left out"
            tally.add(text, f"{name} ({array.type})")
    kept = [(name, array) for name, array in columns if _kind(arrow, array) is not None]
    if not kept:
        raise SignalError(f"{path}: has no column of numbers, times or words: wanted one")
    texts = (_texts(path, arrow, batch, tally) for batch in chain([first], batches))
    found = enumerate((row for columns in texts for row in zip(*columns, strict=True)), 1)
    # Of a column of words without one in the first rows it is known that others may come.
    empty = [n for n, (_, array) in enumerate(kept) if array.null_count == len(array)]
    words = {n for n in empty if "string" in str(kept[n][1].type)}
    yield from _tables.pieces(path, [name for name, _ in kept], found, rows, notes, words=words, group=group)
    tally.tell()


def _batches(path: Path, arrow: Any) -> Iterator[Any]:
    """Batches of at most as many rows as a table is looked at by."""
    try:
        with open(path, "rb") as file:
            head = file.read(6)
            file.seek(0)
            if head[:4] == PARQUET:
                parquet = library("pyarrow.parquet", path)
                for batch in parquet.ParquetFile(file, pre_buffer=False, buffer_size=1 << 16).iter_batches(
                    batch_size=_tables.WINDOW
                ):
                    batch.validate(full=True)
                    yield batch
                return
            if head == FILE:
                stored = arrow.ipc.open_file(file)
                whole = (stored.get_batch(n) for n in range(stored.num_record_batches))
            else:
                whole = iter(arrow.ipc.open_stream(file))
            for batch in whole:
                batch.validate(full=True)
                for start in range(0, batch.num_rows, _tables.WINDOW):
                    yield batch.slice(start, _tables.WINDOW)
    except (arrow.ArrowException, OSError, ValueError, MemoryError) as fault:
        said = (str(fault).splitlines() or ["damaged"])[0][:200]
        raise SignalError(f"{path}: {said}: wanted a whole Parquet or Arrow file") from None


def _columns(arrow: Any, batch: Any) -> list[Column]:
    """Its columns, those within others taken apart, the index of pandas first and without a name."""
    parts = [_flat(arrow, name, column) for name, column in zip(batch.schema.names, batch.columns, strict=True)]
    found = [("" if name.startswith(INDEX) else name, array) for name, array in chain(*parts)]
    return sorted(found, key=lambda column: column[0] != "")


def _flat(arrow: Any, name: str, array: Any) -> Iterator[Column]:
    types, kind = arrow.types, array.type
    if types.is_dictionary(kind):
        yield from _flat(arrow, name, array.dictionary_decode())
    elif types.is_struct(kind):
        for field, inner in zip(kind, array.flatten(), strict=True):
            yield from _flat(arrow, f"{name}.{field.name}", inner)
    elif types.is_fixed_size_list(kind) and kind.list_size <= LIST:
        for n in range(kind.list_size):
            yield from _flat(arrow, f"{name}.{n}", arrow.compute.list_element(array, n))
    else:
        yield f"{name} [{kind.unit}]" if types.is_duration(kind) else name, array


def _kind(arrow: Any, array: Any) -> Any:
    """The type whose text is read; None where a cell is no single number, time or word."""
    types, kind = arrow.types, array.type
    if types.is_duration(kind):
        return arrow.int64()
    if types.is_timestamp(kind):
        return arrow.timestamp(kind.unit)  # those with a zone are in UTC
    if types.is_float16(kind):
        return arrow.float32()
    simple = (
        *(types.is_null, types.is_boolean, types.is_integer, types.is_floating, types.is_decimal),
        *(types.is_date, types.is_time, types.is_string, types.is_large_string, types.is_string_view),
    )
    return kind if any(fits(kind) for fits in simple) else None


def _texts(path: Path, arrow: Any, batch: Any, tally: _tables.Tally) -> list[list[str]]:
    """The cells of each column as text, "" where there is none."""
    compute, found = arrow.compute, []
    for name, array in _columns(arrow, batch):
        kind = _kind(arrow, array)
        if kind is None:
            continue
        array = array.cast(kind)
        if arrow.types.is_floating(kind):
            if count := compute.sum(compute.is_inf(array)).as_py():
                tally.add(f"{path.name}: {{n}} infinite numbers of {name} are missing now", count=count)
            array = compute.if_else(compute.is_finite(array), array, None)
        cells = compute.fill_null(array.cast(arrow.string()), "")
        found.append(compute.utf8_trim_whitespace(cells).to_pylist())
    return found
