"""Rows of prompts from .txt, .jsonl, .csv and .parquet files.

A reader yields every row of its file, with its place, or with what is wrong with it, and goes on: who loads a file
raises the first problem, who checks it lists them all. What a row must hold is left to `textgym.prompts`.
"""

import csv
import json
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from textgym.errors import did_you_mean
from textgym.escape import escape, excerpt, told

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_NOT_DECODED = re.compile("[\udc80-\udcff]")  # what the error handler "surrogateescape" makes of a byte that is no text
_LONGEST_PATH = 4096  # of what systems take
_BATCH = 4096  # rows of a .parquet file that are read together
_MOST_DIGITS = 17  # significant digits that a float can hold


class Row(NamedTuple):
    """One row of a source: where it stands, and what it holds there or what is wrong with it."""

    place: str
    value: Any = None
    problem: Exception | None = None


def read_file(path: Path) -> Iterator[Row]:
    """Every row of a prompt file.

    Raises:
        FileNotFoundError, ImportError, OSError, ValueError: there is no such file, or none of its rows can be read.
    """
    rows = _READERS[_suffix(path)](path)
    try:
        yield next(rows)
    except StopIteration:
        raise ValueError(f"prompts {str(path)!r} holds no rows; give at least one row with a 'prompt'") from None
    yield from rows


def _suffix(path: Path) -> str:
    if len(str(path)) > _LONGEST_PATH:
        raise ValueError(f"prompts is {excerpt(str(path))}; to use texts directly, give a list of them")
    suffix = path.suffix.lower()
    allowed = ", ".join(_READERS)
    if os.path.isdir(path):
        raise ValueError(f"prompts {str(path)!r} is a folder; give a file: {allowed}")
    if suffix not in _READERS:
        raise ValueError(
            f"prompts {str(path)!r} is not one of the files {allowed}.{did_you_mean(suffix, _READERS)} To use texts "
            "directly, give a list of them"
        )
    if not path.is_file():
        near = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        raise FileNotFoundError(f"prompts: there is no file {str(path)!r}.{did_you_mean(path.name, near)}")
    return suffix


def _text_rows(path: Path) -> Iterator[Row]:
    for number, line in _lines(path):
        if line.strip():
            yield _attempt(f"{escape(str(path))} line {number}", _text_row, line)


def _text_row(place: str, line: bytes) -> str:
    text = line.decode("utf-8", "surrogateescape")
    _check_text(f"{place}: the text", text)
    return text.removesuffix("\n").removesuffix("\r")


def _json_rows(path: Path) -> Iterator[Row]:
    for number, line in _lines(path):
        if line.strip():
            yield _attempt(f"{escape(str(path))} line {number}", _json_row, line.strip())


def _json_row(place: str, line: bytes) -> dict[str, Any]:
    text = line.decode("utf-8", "surrogateescape")
    _check_text(f"{place}: the line", text)
    try:
        row = _DECODER.decode(text)
        reasons = [f": field {excerpt(name)} {reason}" for name, value in _fields(row) for reason in _refusals(value)]
    except ValueError as error:
        raise ValueError(f"{place} is not JSON: {error}: {excerpt(text)}") from error
    except RecursionError:
        raise ValueError(f"{place} is nested too deeply: {excerpt(text)}") from None
    if isinstance(row, _Refused):
        reasons = [f" {row.reason}"]
    elif not isinstance(row, dict):
        raise TypeError(f"{place} is a JSON {type(row).__name__}; give an object with a 'prompt'")
    if reasons:
        raise ValueError(f"{place}{reasons[0]}: {excerpt(text)}")
    return row


class _Refused(NamedTuple):
    """Stands in a JSON row for a value that Python would lose or change."""

    reason: str


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | _Refused:
    result = dict(pairs)
    if len(result) == len(pairs):
        return result
    return _Refused(f"has the key {excerpt(_first_repeated(name for name, _ in pairs))} twice; give each key once")


def _constant(name: str) -> _Refused:
    return _Refused(f"holds {name}, which JSON does not have; write null or a string")


def _float(digits: str) -> float | _Refused:
    number = float(digits)
    significant = re.sub("[eE].*|[-.]", "", digits).strip("0")
    if math.isinf(number) or (significant and abs(number) < sys.float_info.min):
        return _Refused(f"holds {excerpt(digits)}, which is beyond the numbers of Python; write a string")
    if len(significant) > _MOST_DIGITS:
        return _Refused(f"holds {excerpt(digits)}, which has more digits than a float can hold; write a string")
    return number


def _refusals(value: Any) -> Iterator[str]:
    if isinstance(value, _Refused):
        yield value.reason
    elif isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _refusals(part)


def _fields(row: Any) -> list[tuple[str, Any]]:
    return list(row.items()) if isinstance(row, dict) else []


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_float=_float)


def _csv_rows(path: Path) -> Iterator[Row]:
    texts = (line.decode("utf-8", "surrogateescape") for _, line in _lines(path))
    reader, size = csv.reader(texts, strict=True), path.stat().st_size
    header: list[str] = []
    while True:
        place = f"{escape(str(path))} line {reader.line_num + 1}"
        try:
            record = _next_record(reader, size)
        except StopIteration:
            return
        except csv.Error as error:
            why = "opens a quote that nothing closes" if "end of data" in str(error) else f"is not CSV: {error}"
            problem = ValueError(f"{place} {why}")
            if not header:
                raise problem from error
            yield Row(place, problem=problem)
            continue
        if record and header:
            yield _attempt(place, _csv_row, record, header)
        elif record:
            header = record
            _check_header(path, header)


def _next_record(reader: Any, size: int) -> list[str]:
    """The next record, of fields up to `size` characters; the limit belongs to the whole process, so it is put back."""
    before = csv.field_size_limit()
    csv.field_size_limit(max(before, size))
    try:
        return next(reader)
    finally:
        csv.field_size_limit(before)


def _csv_row(place: str, record: list[str], header: list[str]) -> dict[str, str]:
    if len(record) != len(header):
        names = ", ".join(excerpt(name) for name in header)
        raise ValueError(f"{place} has {len(record)} fields, the header has {len(header)}: {names}")
    for name, text in zip(header, record, strict=True):
        _check_text(f"{place}: field {excerpt(name)}", text)
    return dict(zip(header, record, strict=True))


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(f"prompts {str(path)!r}: .parquet files need pyarrow: pip install 'textgym[data]'") from error
    unreadable = (pyarrow.ArrowException, OSError)
    try:
        file = parquet.ParquetFile(path)
    except unreadable as error:
        raise ValueError(f"prompts {str(path)!r} is not a parquet file: {told(error)}") from error
    with file:
        _check_header(path, file.schema_arrow.names)
        name, index = escape(str(path)), 0
        try:
            for batch in file.iter_batches(_BATCH):
                for start in range(len(batch)):
                    yield _attempt(f"{name}[{index}]", _parquet_row, batch, start)
                    index += 1
        except unreadable as error:
            place = f"{name}[{index}]"
            yield Row(place, problem=ValueError(f"{place} and what follows cannot be read: {told(error)}"))


def _parquet_row(place: str, batch: Any, index: int) -> dict[str, Any]:
    row = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            row[name] = column[index].as_py()
        except (ValueError, OverflowError) as error:  # text that is not UTF-8, a date that Python cannot hold
            raise ValueError(f"{place}: field {excerpt(name)} cannot be read: {told(error)}") from error
    return row


def _check_header(path: Path, names: list[str]) -> None:
    where = f"prompts {str(path)!r}"
    for name in names:
        _check_text(f"{where}: the column name {excerpt(name)}", name)
    if len(set(names)) != len(names):
        raise ValueError(f"{where} has the column {excerpt(_first_repeated(names))} twice; give each column once")
    if "prompt" not in names:
        some = ", ".join(excerpt(name) for name in names)
        raise ValueError(f"{where} has no column 'prompt', only {some}.{did_you_mean('prompt', names)}")


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            yield number, line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line


def _check_text(what: str, text: str) -> None:
    """Refuse what no text file holds."""
    if match := _NOT_DECODED.search(text):
        byte = ord(match[0]) - 0xDC00
        raise ValueError(f"{what} is not UTF-8: byte 0x{byte:02x} at character {match.start()}. Save the file as UTF-8")
    if "\0" in text:
        raise ValueError(f"{what} holds a NUL character at character {text.index(chr(0))}; save the file as UTF-8 text")


def _attempt(place: str, parse: Callable[..., Any], *arguments: Any) -> Row:
    try:
        return Row(place, parse(place, *arguments))
    except (TypeError, ValueError) as error:
        return Row(place, problem=error)


def _first_repeated(names: Iterable[str]) -> str:
    counts = Counter(names)
    return next(name for name, count in counts.items() if count > 1)


_READERS = {".txt": _text_rows, ".jsonl": _json_rows, ".csv": _csv_rows, ".parquet": _parquet_rows}
