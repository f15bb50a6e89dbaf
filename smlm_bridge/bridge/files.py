"""Tables and files into ThunderSTORM's results table and out of it, by its own importers and exporters."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pandas as pd

from smlm_bridge.bridge.calls import JavaError
from smlm_bridge.bridge.tables import write_for_thunderstorm
from smlm_bridge.errors import InputRejected

if TYPE_CHECKING:
    from smlm_bridge.bridge.thunderstorm import ThunderStorm

#: File formats: our name of it, and ThunderSTORM's class.
FORMATS: Final = {
    "csv": "CSVImportExport",
    "xls": "XLSImportExport",
    "xml": "XMLImportExport",
    "json": "JSONImportExport",
    "yaml": "YAMLImportExport",
    "tsf": "TSFImportExport",
    "proto": "ProtoImportExport",
}


def load(
    storm: "ThunderStorm",
    locs: pd.DataFrame | str | Path,
    *,
    pixel_nm: float,
    file_format: str,
    first_frame: int,
) -> None:
    """See ``ThunderStorm.load``."""
    _check(file_format)
    if storm.version == "1.3" and file_format in ("json", "yaml"):
        raise InputRejected(
            f"ThunderSTORM 1.3 makes a table of {file_format} that it cannot read itself; take csv."
        )
    storm.know_pixel(pixel_nm)
    with tempfile.TemporaryDirectory() as folder:
        rows = None
        if isinstance(locs, pd.DataFrame):
            path, rows = Path(folder, "table.csv"), len(locs)
            write_for_thunderstorm(path, locs, version=storm.version)
        else:
            path = Path(locs).resolve()
            if not path.is_file():
                raise InputRejected(f"there is no file {path}.")
        storm.gateway.call(
            lambda: _import(storm, path, FORMATS[file_format], first_frame), what=f"importing {path.name}"
        )
    if rows is not None and int(storm.results.getRowCount()) != rows:
        raise JavaError(f"ThunderSTORM took {storm.results.getRowCount()} of {rows} rows.")


def _import(storm: "ThunderStorm", path: Path, importer: str, first_frame: int) -> None:
    table = storm.hidden_table()
    table.reset()
    table.setOriginalState()
    table.setMeasurementProtocol(storm.java_class("results.MeasurementProtocol")())
    storm.java_class(f"ImportExport.{importer}")().importFromFile(str(path), table, first_frame)
    missing = [name for name in ("frame", "x", "y") if not table.columnExists(name)]
    if missing:
        raise JavaError(
            f"ThunderSTORM {storm.label} found no {', '.join(missing)} in {path.name}; its importers of some "
            "formats lose columns, that of csv does not."
        )
    table.insertIdColumn()
    table.copyOriginalToActual()
    table.setActualState()
    table.convertAllColumnsToAnalogUnits()


def export(storm: "ThunderStorm", target: Path, *, file_format: str, decimals: int) -> None:
    """See ``ThunderStorm.export``."""
    _check(file_format)
    if not target.parent.is_dir():
        raise InputRejected(f"there is no folder {target.parent}.")
    if int(storm.results.getRowCount()) == 0:
        raise InputRejected("ThunderSTORM's table is empty; run an analysis or load a table first.")

    def action() -> None:
        writer = storm.java_class(f"ImportExport.{FORMATS[file_format]}")()
        names = storm.results.getColumnNames()
        precision = () if storm.version == "1.3" else (decimals,)
        writer.exportToFile(str(target), *precision, storm.results, names)

    target.unlink(missing_ok=True)
    storm.gateway.call(action, what=f"exporting {target.name}")
    if not target.is_file() or target.stat().st_size == 0:
        raise JavaError(f"ThunderSTORM wrote nothing to {target}.")


def _check(file_format: str) -> None:
    if file_format not in FORMATS:
        raise InputRejected(f"the format '{file_format}' is unknown; there are {', '.join(FORMATS)}.")
