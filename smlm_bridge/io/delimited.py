"""Delimited text: the header, and the rows as columns of numbers, with errors that name row and column."""

import contextlib
import csv
import io
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv

from smlm_bridge.errors import InputRejected, SmlmError


@dataclass(frozen=True)
class Header:
    """The first line: its labels (empty where a column has none), the separator and the encoding."""

    labels: tuple[str, ...]
    delimiter: str
    encoding: str


def read_header(path: str | Path) -> Header:
    """Read the line of column names; the separator is a comma, a tab or a semicolon.

    Raises
    ------
    InputRejected
        If the file cannot be read, is empty or not text, or its first line has no names or one name twice.
    """
    try:
        with open(path, "rb") as file:
            line = file.readline(1 << 20)
    except OSError as error:
        raise InputRejected(f"table {path} cannot be read: {error.strerror}.") from error
    if not line.strip():
        raise InputRejected(f"table {path} is empty; a table starts with a line of column names.")
    if b"\0" in line:
        raise InputRejected(f"table {path} is not a text file in UTF-8; save it as CSV (UTF-8).")
    try:
        text, encoding = line.decode("utf-8-sig"), "utf-8"
    except UnicodeDecodeError:
        text, encoding = line.decode("latin-1"), "latin-1"  # "µm" from Windows programs
    delimiter = max(",\t;", key=text.count)
    try:
        names = next(csv.reader(io.StringIO(text), delimiter=delimiter))
    except csv.Error as error:  # lines that end in CR alone, or a name of over 100 000 letters
        raise InputRejected(
            f"table {path}: the line of column names cannot be read ({error}). Save it as CSV with the line "
            "ends of Windows or Unix."
        ) from error
    header = [label.strip().strip("'`") for label in names]
    if all(re.fullmatch(r"[-+.\dEe]+", label) for label in header):
        raise InputRejected(
            f"table {path} starts with numbers ({text.strip()[:60]}), not with column names. Add such a "
            'line, for example "frame","x [nm]","y [nm]","z [nm]","intensity [photon]".'
        )
    twice = sorted({label for label in header if label and header.count(label) > 1})
    if twice:
        raise InputRejected(
            f"table {path} has the column {', '.join(twice)} twice; rename or drop one of each."
        )
    return Header(tuple(header), delimiter, encoding)


def read_rows(path: str | Path, header: Header, *, numeric: Sequence[str]) -> pa.Table:
    """Read all rows; ``numeric`` columns as float64 (empty and NaN: null), others as int64, float64 or text.

    Columns without a label, which are other programs' row index, are left out.

    Raises
    ------
    InputRejected
        If a numeric column holds text, or rows differ in length from the header.
    """
    types = dict.fromkeys(numeric, pa.float64())
    names = [label or f"\0{i}" for i, label in enumerate(header.labels)]
    columns = [label for label in header.labels if label]
    ragged: list[Any] = []

    def skip(row: Any) -> str:
        ragged.append(row)
        return "skip"

    def parse(types: Mapping[str, pa.DataType]) -> pa.Table:
        return pyarrow.csv.read_csv(
            os.fspath(path),
            read_options=pyarrow.csv.ReadOptions(column_names=names, encoding=header.encoding, skip_rows=1),
            parse_options=pyarrow.csv.ParseOptions(delimiter=header.delimiter, invalid_row_handler=skip),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=types, include_columns=columns, strings_can_be_null=True
            ),
        )

    if _has_no_rows(path):
        return pa.table({label: pa.array([], types.get(label, pa.float64())) for label in columns})
    try:
        rows = parse(types)
    except pa.ArrowInvalid as error:
        text = None
        with contextlib.suppress(pa.ArrowException, UnicodeDecodeError):  # it may not even be text
            text = parse(dict.fromkeys(columns, pa.string())) if "conversion" in str(error) else None
        raise _bad_text(path, numeric, text, error) from error
    except UnicodeDecodeError as error:
        raise InputRejected(f"table {path} is not text: {error}.") from error
    except pa.ArrowException as error:
        raise SmlmError(f"table {path} could not be read: {error}.") from error
    if ragged:
        raise _ragged(path, ragged, len(names))
    other = [f for f in rows.schema if not (pa.types.is_integer(f.type) or pa.types.is_floating(f.type))]
    if other:  # dates and the like: kept as the text they are; columns without any value as numbers
        empty = {f.name: pa.float64() if pa.types.is_null(f.type) else pa.string() for f in other}
        try:
            rows = parse({**types, **empty})
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise InputRejected(f"table {path} is not text: {error}.") from error
    return rows


def _has_no_rows(path: str | Path) -> bool:
    """Whether nothing but the header is in the file (which Arrow refuses without a final line break)."""
    with open(path, "rb") as file:
        file.readline()
        return not file.read(4096).strip()


def _bad_text(path: str | Path, numeric: Sequence[str], text: Any, error: Exception) -> InputRejected:
    """The message for the first text that is not a number."""
    for label in () if text is None else numeric:
        values = text.column(label).to_pandas()
        bad = (pd.to_numeric(values, errors="coerce").isna() & values.notna()).to_numpy()
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            value = values.iloc[row]
            comma = (
                " Decimals are written with a point, not a comma."
                if re.fullmatch(r"-?\d+,\d+", value)
                else ""
            )
            return InputRejected(
                f'table {path}: {value!r} in column "{label}", row {row + 1} of the data, is not a '
                f"number.{comma}"
            )
    return InputRejected(f"table {path} is not a table of numbers: {error}.")


def _ragged(path: str | Path, ragged: list[Any], expected: int) -> InputRejected:
    first = ragged[0]
    hint = "The file is cut off or damaged; export it again."
    if first.actual_columns > expected and re.search(r"\d,\d", first.text):
        hint = "Are these decimal commas? Decimals are written with a point."
    return InputRejected(
        f"table {path}: {len(ragged)} row(s) do not have the {expected} fields of the header; the first of "
        f"them is {first.text[:80]!r} with {first.actual_columns}. {hint}"
    )
