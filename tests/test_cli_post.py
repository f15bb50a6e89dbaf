"""The verbs merge, filter and render: outputs, counts, and what they say to bad tables."""

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile

from smlm_bridge.cli import main
from smlm_bridge.io.thunderstorm import read_table, write_table

HEADER = '"id","frame","x [nm]","y [nm]","z [nm]","intensity [photon]","uncertainty_xy [nm]"\n'


@pytest.fixture
def table(tmp_path: Path) -> Path:
    draw = np.random.default_rng(6)
    place = np.repeat(draw.uniform(200, 2800, (30, 3)), 2, axis=0) + draw.normal(0, 4, (60, 3))
    locs = pd.DataFrame(
        {
            "frame": np.repeat(np.arange(0, 90, 3), 2) + np.tile([0, 1], 30),
            "x_nm": place[:, 0],
            "y_nm": place[:, 1],
            "z_nm": place[:, 2],
            "photons": draw.uniform(500, 3000, 60),
            "uncertainty_xy_nm": draw.uniform(3, 25, 60),
        }
    )
    write_table(tmp_path / "locs.csv", locs)
    return tmp_path / "locs.csv"


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, object], str]:
    """Exit code, the object of --json, and stderr."""
    code = main([*map(str, arguments), "--json"])
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1
    return code, json.loads(captured.out), captured.err


def picture(path: Path) -> np.ndarray:
    from matplotlib.image import imread

    return np.asarray(imread(io.BytesIO(path.read_bytes()), format="png"))


def test_merge_writes_the_molecules_and_counts(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = table.with_name("merged.csv")
    code, values, _ = run(capsys, "merge", table, "-o", target, "--distance-nm", 60, "--gap-frames", 0)
    assert (code, values) == (0, {"localizations_in": 60, "localizations_out": 30, "mean_detections": 2.0})
    merged = read_table(target)
    assert (merged["detections"] == 2).all()
    assert merged["photons"].sum() == pytest.approx(read_table(table)["photons"].sum())
    code, values, _ = run(capsys, "merge", table, "-o", target, "--mode", "thunderstorm", "--overwrite")
    assert code == 0
    code, values, error = run(capsys, "merge", table, "-o", table.with_name("x.csv"), "--distance-nm", 0)
    assert code == 3
    assert "distance_nm" in error


def test_filter_keeps_what_fulfils_the_expression(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = table.with_name("good.csv")
    given = read_table(table)
    code, values, _ = run(capsys, "filter", table, "uncertainty_xy < 15 & z > 500", "-o", target)
    wanted = given[(given["uncertainty_xy_nm"] < 15) & (given["z_nm"] > 500)]
    assert (code, values) == (0, {"localizations_in": 60, "localizations_out": len(wanted)})
    np.testing.assert_allclose(read_table(target)["x_nm"], wanted["x_nm"])
    code, values, _ = run(capsys, "filter", "-o", target, "--overwrite", "--", table, "-500 < z")
    assert code == 2  # --json stands after --, and is a third argument
    assert main(["filter", "-o", str(target), "--overwrite", "--", str(table), "-1e8 < z"]) == 0
    assert len(read_table(target)) == 60


def test_filter_by_region_duplicates_and_density(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = read_table(table)
    doubled = table.with_name("doubled.csv")
    write_table(doubled, pd.concat([given, given]))
    code, values, _ = run(
        capsys, "filter", doubled, "-o", table.with_name("unique.csv"), "--duplicates-nm", "uncertainty_xy"
    )
    assert (code, values["localizations_in"], values["localizations_out"]) == (0, 120, 60)
    code, values, _ = run(
        capsys, "filter", table, "-o", table.with_name("left.csv"), "--x-nm", "0:1500", "--z-nm", "-1e4:1e4"
    )
    assert values["localizations_out"] == (given["x_nm"] < 1500).sum()
    dense = ("--density-radius-nm", 60, "--density-neighbours", 1)
    assert run(capsys, "filter", table, "-o", table.with_name("d.csv"), *dense)[1]["localizations_out"] == 60
    dense = ("--density-radius-nm", 60, "--density-neighbours", 50)
    assert run(capsys, "filter", table, "-o", table.with_name("e.csv"), *dense)[1]["localizations_out"] == 0
    assert len(read_table(table.with_name("e.csv"))) == 0
    code, _, error = run(capsys, "filter", table, "-o", table.with_name("f.csv"))
    assert code == 2
    assert "nothing to filter by" in error


def test_render_writes_numbers_with_the_pixel_and_colours(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given, target = read_table(table), table.with_name("picture.tif")
    code, values, _ = run(capsys, "render", table, "-o", target, "--pixel-nm", 20, "--method", "histogram")
    assert (code, values["localizations_in"], values["localizations_out"]) == (0, 60, 60)
    left, top = values["origin_nm"]
    with tifffile.TiffFile(target) as file:
        counts = file.asarray()
        assert file.pages[0].tags["XResolution"].value[0] / file.pages[0].tags["XResolution"].value[1] == 50
    assert list(counts.shape) == values["size_px"]
    rows, columns = (((given[n] - o) // 20).astype(int) for n, o in (("y_nm", top), ("x_nm", left)))
    expected = np.zeros(counts.shape)
    np.add.at(expected, (rows, columns), 1)
    np.testing.assert_array_equal(counts, expected)
    colour = table.with_name("colour.tif")
    assert run(capsys, "render", table, "-o", colour, "--z-color", "--method", "ash")[0] == 0
    assert tifffile.imread(colour).shape[0] == 3


@pytest.mark.parametrize("flags", [(), ("--z-color", "--z-nm", "0:3000")])
@pytest.mark.parametrize("pixel_nm", [10, 100])
def test_a_png_has_the_pixels_of_the_picture(
    table: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], pixel_nm: float
) -> None:
    target = table.with_name("picture.png")
    edges = ("--x-nm", "0:2990", "--y-nm", "-10:3000")
    code, values, _ = run(capsys, "render", table, "-o", target, "--pixel-nm", pixel_nm, *edges, *flags)
    drawn = picture(target)
    assert code == 0
    assert list(drawn.shape[:2]) == values["size_px"] == [-(-3010 // pixel_nm), -(-2990 // pixel_nm)]
    assert drawn[..., :3].max() > 0.5
    assert (np.ptp(drawn[..., :3], axis=2) > 0.3).any()


def test_render_cuts_slices_of_z_and_writes_ome(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given, target = read_table(table), table.with_name("slices.ome.tif")
    options = ("--pixel-nm", 50, "--method", "histogram", "--z-slices-nm", "0:3000:500")
    code, values, _ = run(capsys, "render", table, "-o", target, *options)
    assert (code, values["slices"], values["z_range_nm"]) == (0, 6, [0.0, 3000.0])
    with tifffile.TiffFile(target) as file:
        assert file.is_ome
        assert file.series[0].axes == "ZYX"
        stack = file.asarray()
        assert 'PhysicalSizeX="50.0"' in file.ome_metadata
        assert 'PhysicalSizeZ="500.0"' in file.ome_metadata
    expected = np.histogram(given["z_nm"], np.arange(0, 3001, 500))[0]
    assert stack.sum(axis=(1, 2)).tolist() == expected.tolist()
    assert values["localizations_out"] == expected.sum()
    flat = table.with_name("flat.tif")
    assert run(capsys, "render", table, "-o", flat, *options[:4], "--z-nm", "0:3000")[0] == 0
    np.testing.assert_array_equal(stack.sum(axis=0), tifffile.imread(flat))
    plain = table.with_name("slices.tif")
    assert run(capsys, "render", table, "-o", plain, *options)[0] == 0
    with tifffile.TiffFile(plain) as file:
        assert file.imagej_metadata["spacing"] == 0.5
    code, _, error = run(capsys, "render", table, "-o", table.with_name("o.png"), *options)
    assert code == 2
    assert ".tif" in error
    code, _, error = run(capsys, "render", table, "-o", table.with_name("p.tif"), "--z-slices-nm", "5:1:-1")
    assert code == 3
    assert "ascending" in error


# ---- bad input


@pytest.mark.parametrize("verb", [("merge",), ("filter", "x > 0"), ("render",)])
@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (None, "cannot be read|No such|missing"),
        ("", "empty"),
        ('"id","frame","x [nm]"\n1,1,5\n', "y"),
        (HEADER + "1,1,nan,5,5,100,5\n", "not finite"),
        (HEADER + "1,1,1.5,5,5,100\n", "1"),
        (HEADER + "1,0,1.5,5,5,100,5\n", "frame"),
    ],
)
def test_bad_tables_are_rejected_in_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    verb: tuple[str, ...],
    rows: str | None,
    words: str,
) -> None:
    import re

    source, target = tmp_path / "bad.csv", tmp_path / ("o.png" if verb == ("render",) else "o.csv")
    if rows is not None:
        source.write_text(rows)
    code, values, error = run(capsys, verb[0], source, *verb[1:], "-o", target)
    assert code == 3
    assert re.search(words, error)
    assert error.count("\n") == 1
    assert values["exit_code"] == 3
    assert not target.exists()


def test_a_table_without_rows_and_one_with_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty, one = tmp_path / "empty.csv", tmp_path / "one.csv"
    empty.write_text(HEADER)
    one.write_text(HEADER + "1,7,100,200,30,1e8,5\n")
    for source, rows in ((empty, 0), (one, 1)):
        for number, verb in enumerate((("merge", source), ("filter", source, "x <= mean(x)"))):
            target = tmp_path / f"{source.stem}{number}.csv"
            code, values, _ = run(capsys, *verb, "-o", target)
            assert (code, values["localizations_in"], values["localizations_out"]) == (0, rows, rows)
            assert len(read_table(target)) == rows
    assert read_table(tmp_path / "one0.csv")[["photons", "frame"]].to_numpy().tolist() == [[1e8, 6]]
    code, values, _ = run(capsys, "render", one, "-o", tmp_path / "one.png")
    assert (code, values["size_px"], values["origin_nm"]) == (0, [1, 1], [100.0, 200.0])
    code, _, error = run(capsys, "render", empty, "-o", tmp_path / "empty.png")
    assert code == 3
    assert "--x-nm" in error


def test_unknown_names_and_outputs(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = run(capsys, "filter", table, "intensty > 5", "-o", table.with_name("o.csv"))
    assert code == 3
    assert "'intensty'" in error
    assert "nearest is 'intensity'" in error
    code, _, error = run(capsys, "render", table, "-o", table.with_name("picture.jpg"))
    assert code == 2
    assert ".png" in error
    code, _, error = run(capsys, "render", table, "-o", table.with_name("o.png"), "--pixel-nm", 0)
    assert code == 2
    code, _, error = run(capsys, "filter", table, "x > 5", "-o", table)
    assert code == 3
    assert "--overwrite" in error


def test_colour_by_z_needs_z(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flat = tmp_path / "flat.csv"
    flat.write_text('"frame","x [nm]","y [nm]"\n1,100,200\n2,900,800\n')
    code, _, error = run(capsys, "render", flat, "-o", tmp_path / "o.png", "--z-color")
    assert code == 3
    assert "no z" in error
    assert run(capsys, "render", flat, "-o", tmp_path / "o.png")[0] == 0
