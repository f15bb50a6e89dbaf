"""Bad input across the verbs that take a table: a clear message or a right answer, never a traceback."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from smlm_bridge.cli import main
from smlm_bridge.io.thunderstorm import read_table

HEADER = (
    '"id","frame","x [nm]","y [nm]","z [nm]","intensity [photon]","uncertainty_xy [nm]","uncertainty_z [nm]"'
)
VERBS = {
    "merge": ("-o", "out.csv"),
    "filter": ("x > 0", "-o", "out.csv"),
    "render": ("-o", "out.png"),
    "drift": ("-o", "out.csv"),
    "convert": ("out.parquet",),
    "evaluate": ("truth.csv",),
    "quality": ("--report", "out.html"),
    "track": ("-o", "out.csv", "--max-step-nm", "200"),
    "colocalize": ("truth.csv", "-o", "out.csv"),
}


def rows(count: int = 400, seed: int = 0) -> pd.DataFrame:
    """Forty molecules in a hundred frames, in the columns of the header."""
    draw = np.random.default_rng(seed)
    place = draw.uniform(500, 4500, (40, 3))[np.arange(count) % 40] + draw.normal(0, 6, (count, 3))
    return pd.DataFrame(
        {
            "id": np.arange(1, count + 1), "frame": np.arange(count) // 4 + 1, "x": place[:, 0],
            "y": place[:, 1], "z": place[:, 2] - 500, "photons": draw.uniform(500, 3000, count),
            "sigma": 8.0, "sigma_z": 20.0,
        }
    )  # fmt: skip


def text(table: pd.DataFrame, header: str = HEADER, **options: object) -> str:
    return header + "\n" + table.to_csv(index=False, header=False, float_format="%.3f", **options)  # type: ignore[call-overload, no-any-return]


class Result:
    """What a verb did with the table."""

    def __init__(self, folder: Path, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
        arguments = [str(folder / a) if "." in a else a for a in VERBS[verb]]
        self.code = main([verb, str(folder / "in.csv"), *arguments, "--json"])
        shown = capsys.readouterr()
        self.error, self.found = shown.err, json.loads(shown.out)
        self.output = next((Path(a) for a in arguments if "out." in a), None)

    def refused(self, *words: str) -> None:
        assert self.code == 3, (self.code, self.error)
        assert any(re.search(word, self.error) for word in words), self.error
        assert self.error.count("\n") == 1
        assert "Traceback" not in self.error
        assert self.output is None or not self.output.exists()

    def done(self) -> None:
        assert self.code == 0, self.error
        assert self.output is None or self.output.exists()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "truth.csv").write_text(text(rows()))
    return tmp_path


@pytest.fixture(params=VERBS)
def verb(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_an_empty_file_and_no_file(folder: Path, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    Result(folder, verb, capsys).refused("in.csv.*(cannot be read|does not exist)")
    (folder / "in.csv").write_text("")
    Result(folder, verb, capsys).refused("is empty")


@pytest.mark.parametrize("count", [0, 1])
def test_no_row_and_one_row(folder: Path, verb: str, count: int, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "in.csv").write_text(text(rows().head(count)))
    result = Result(folder, verb, capsys)
    if verb == "drift":
        result.refused(f"{count} localizations hold no drift")
    elif verb == "render" and count == 0:
        result.refused("no rows")
    else:
        result.done()
        wanted = {
            "evaluate": ("matched", count),
            "convert": ("rows", count),
            "quality": ("localizations", count),
            "track": ("localizations_out", 0),  # a track has several
            "colocalize": ("localizations", [count, 400]),
        }
        name, value = wanted.get(verb, ("localizations_out", count))
        assert result.found[name] == value


@pytest.mark.parametrize("column", ["frame", "x [nm]", "y [nm]"])
def test_a_missing_column(folder: Path, verb: str, column: str, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "in.csv").write_text(text(rows(), HEADER.replace(f'"{column}"', '"other"')))
    Result(folder, verb, capsys).refused(re.escape(f'no column "{column}"'))


def test_a_table_in_pixels_asks_for_the_pixel(
    folder: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for unit in ("[px]", ""):
        header = HEADER.replace("x [nm]", f"x {unit}".strip()).replace("y [nm]", f"y {unit}".strip())
        (folder / "in.csv").write_text(text(rows(), header))
        Result(folder, verb, capsys).refused("--pixel-nm")


def test_a_wrong_unit_is_named(folder: Path, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "in.csv").write_text(text(rows(), HEADER.replace("x [nm]", "x [inch]")))
    Result(folder, verb, capsys).refused("unit inch; allowed are nm, um and px")


def test_micrometres_are_the_same_positions(
    folder: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table = rows()
    for axis in "xyz":
        table[axis] /= 1000
    small = table.to_csv(index=False, header=False, float_format="%.6f")
    (folder / "in.csv").write_text(re.sub(r"([xyz]) \[nm\]", r"\1 [um]", HEADER) + "\n" + small)
    result = Result(folder, verb, capsys)
    result.done()
    if verb == "evaluate":
        assert result.found["jaccard"] == 1.0
        assert result.found["rmse_lateral_nm"] < 0.01


@pytest.mark.parametrize("value", ["nan", "NaN", "", "inf"])
def test_a_position_that_is_no_number(
    folder: Path, verb: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = text(rows()).splitlines()
    fields = lines[7].split(",")
    fields[2] = value
    lines[7] = ",".join(fields)
    (folder / "in.csv").write_text("\n".join(lines) + "\n")
    Result(folder, verb, capsys).refused(r'"x \[nm\]" is missing or not finite in row 7')


def test_uncertainties_that_are_not_known_do_no_harm(
    folder: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table = rows()
    table.loc[::2, ["sigma", "sigma_z"]] = np.nan
    table.loc[::3, "photons"] = np.nan
    (folder / "in.csv").write_text(text(table, na_rep="NaN"))
    result = Result(folder, verb, capsys)
    result.done()
    if verb == "merge":
        assert result.output is not None
        merged = read_table(result.output)
        assert np.isfinite(merged[["x_nm", "y_nm", "z_nm"]]).all(axis=None)


def test_duplicates(folder: Path, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    table = rows()
    (folder / "in.csv").write_text(text(pd.concat([table, table])))
    result = Result(folder, verb, capsys)
    result.done()
    if verb == "evaluate":
        assert (result.found["matched"], result.found["precision"]) == (400, 0.5)
    if verb == "filter":
        arguments = ["filter", str(folder / "in.csv"), "--duplicates-nm", "1", "-o", str(folder / "u.csv")]
        assert main([*arguments, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["localizations_out"] == 400


def test_a_hundred_million_photons(folder: Path, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "in.csv").write_text(text(rows().assign(photons=1e8)))
    result = Result(folder, verb, capsys)
    result.done()
    if verb in ("merge", "filter"):
        assert result.output is not None
        assert re.search(r"[eE]\+?\d", result.output.read_text().split("\n", 1)[1]) is None  # no exponents
        assert read_table(result.output)["photons"].sum() == 400e8


def test_frames_out_of_order_change_nothing(
    folder: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "in.csv").write_text(text(rows()))
    first = Result(folder, verb, capsys)
    kept = first.output.read_bytes() if first.output and first.output.suffix in (".png", ".html") else None
    table = read_any(first.output) if first.output and kept is None else None
    for path in folder.glob("out*"):
        path.unlink()
    (folder / "in.csv").write_text(text(rows().sample(frac=1, random_state=np.random.RandomState(3))))
    second = Result(folder, verb, capsys)
    second.done()
    if table is not None and second.output is not None:
        again = read_any(second.output)
        order = ["frame", "x_nm", "y_nm"]
        pd.testing.assert_frame_equal(
            table.sort_values(order, ignore_index=True)[order],
            again.sort_values(order, ignore_index=True)[order],
            atol=0.02,
        )
    elif verb == "evaluate":
        assert first.found == second.found


def read_any(path: Path) -> pd.DataFrame:
    from smlm_bridge.io import formats

    return formats.read(path)


def test_comma_decimals(folder: Path, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "in.csv").write_text(text(rows(), decimal=","))  # "1,5" quoted by nobody: too many fields
    Result(folder, verb, capsys).refused("decimal commas", "not a number")
    (folder / "in.csv").write_text(text(rows(), HEADER.replace(",", ";"), decimal=",", sep=";"))
    Result(folder, verb, capsys).refused("Decimals are written with a point")


def test_a_file_that_was_cut_off(folder: Path, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    whole = text(rows())
    (folder / "in.csv").write_text(whole[: whole.rindex(",")].rpartition(",")[0])
    Result(folder, verb, capsys).refused("cut off")
    (folder / "in.csv").write_bytes(whole.encode()[:5000] + bytes(500))
    Result(folder, verb, capsys).refused("cut off", "not a text", "not a number")
