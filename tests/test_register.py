"""Two channels on each other: known transforms come back, the stated error is true, bad beads are refused."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import erf

from smlm_bridge.bead_fields import locate_beads
from smlm_bridge.camera import Camera
from smlm_bridge.cli import main
from smlm_bridge.errors import InputRejected
from smlm_bridge.io.calibration import load_transform
from smlm_bridge.io.images import write_stack
from smlm_bridge.io.thunderstorm import write_table
from smlm_bridge.register import RegisterOptions, Registration, register, register_self, warp
from smlm_bridge.report.register import registration_png
from smlm_bridge.transform import Transform

FIELD_NM = 40_000.0
NOISE_NM = 8.0
RATIO = 0.85
Map = Callable[[np.ndarray], np.ndarray]
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@dataclass(frozen=True)
class Truth:
    """A rotation, a magnification, a mirror, a shift, and a distortion that reaches ``bend_nm`` at the edge."""

    degrees: float = 0.0
    magnification: float = 1.0
    mirrored: bool = False
    shift_nm: tuple[float, float] = (0.0, 0.0)
    bend_nm: float = 0.0

    def __call__(self, xy: np.ndarray) -> np.ndarray:
        c, s = np.cos(np.radians(self.degrees)), np.sin(np.radians(self.degrees))
        matrix = (
            self.magnification * np.array([[c, -s], [s, c]]) @ np.diag([-1.0 if self.mirrored else 1.0, 1.0])
        )
        u = xy / (FIELD_NM / 2) - 1
        bend = self.bend_nm * np.stack([u[:, 0] ** 2, u[:, 0] * u[:, 1]], axis=1)
        return np.asarray(xy @ matrix.T + np.array(self.shift_nm) + bend)


def channels(
    truth: Map,
    *,
    beads: int = 60,
    frames: int = 1,
    outliers: float = 0.3,
    noise_nm: float = NOISE_NM,
    seed: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both channels lose beads of their own and have false ones: ``outliers`` of channel 1, more of channel 2."""
    rng = np.random.default_rng(seed)
    total = beads * frames
    xy, frame = rng.uniform(0, FIELD_NM, (total, 2)), np.repeat(np.arange(frames), beads)
    photons = rng.uniform(3000, 9000, total)
    tables = []
    for share, brightness, place in ((outliers, 1.0, xy), (1.3 * outliers, RATIO, truth(xy))):
        seen = rng.random(total) > share / 2
        extra = int(total * share / 2)
        false = rng.uniform(place.min(axis=0), place.max(axis=0), (extra, 2))
        where = np.concatenate([place[seen], false]) + rng.normal(0, noise_nm, (seen.sum() + extra, 2))
        light = brightness * np.concatenate([photons[seen], rng.uniform(3000, 9000, extra)])
        made = {
            "frame": np.concatenate([frame[seen], rng.integers(0, frames, extra)]),
            "x_nm": where[:, 0],
            "y_nm": where[:, 1],
            "photons": light * rng.normal(1, 0.05, len(light)),
        }
        tables.append(pd.DataFrame(made).sample(frac=1, random_state=seed).reset_index(drop=True))
    return tables[0], tables[1]


def true_error_nm(found: Registration, truth: Map, *, noise_nm: float, seed: int = 5) -> float:
    """RMS error of new beads, each localized in both channels."""
    rng = np.random.default_rng(seed)
    xy = rng.uniform(0, FIELD_NM, (5000, 2))
    seen, there = (place + rng.normal(0, noise_nm, xy.shape) for place in (xy, truth(xy)))
    return float(np.sqrt(((found.transform.apply(seen) - there) ** 2).sum(axis=1).mean()))


TRUTHS = {
    "shift": Truth(shift_nm=(31_000.0, -24_000.0)),
    "rotation": Truth(degrees=3.0, shift_nm=(-500.0, 900.0)),
    "magnification": Truth(magnification=1.01),
    "mirror": Truth(mirrored=True, shift_nm=(FIELD_NM, 12_000.0)),
    "all": Truth(degrees=-117.0, magnification=1.01, mirrored=True, shift_nm=(5_000.0, 52_000.0)),
}


@pytest.mark.parametrize("name", TRUTHS)
def test_a_known_transform_is_found_among_outliers(name: str) -> None:
    truth = TRUTHS[name]
    found = register(*channels(truth))
    assert true_error_nm(found, truth, noise_nm=0.0) < 0.6 * NOISE_NM
    assert len(found.first) > 35
    assert found.transform.provenance["inliers"] == len(found.first)


def test_of_many_beads_a_part_finds_the_transform_of_all() -> None:
    found = register(*channels(TRUTHS["all"], beads=400))
    assert len(found.first) > 250
    # Least squares with 6 coefficients from errors of both channels: the expected RMS, rarely twice it.
    expected = 2 * NOISE_NM * np.sqrt(3 / len(found.first))
    assert true_error_nm(found, TRUTHS["all"], noise_nm=0.0) < 2 * expected


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["affine", "polynomial"])
def test_the_stated_error_is_that_of_new_beads(kind: Any, seed: int) -> None:
    truth = Truth(degrees=2.0, bend_nm=0.0 if kind == "affine" else 50.0, shift_nm=(8000.0, 300.0))
    found = register(*channels(truth, beads=80, seed=seed), RegisterOptions(kind=kind))
    error = true_error_nm(found, truth, noise_nm=NOISE_NM)
    assert abs(found.target_registration_error_nm - error) < 3 * found.target_registration_error_sd_nm
    assert 0 < found.target_registration_error_sd_nm < 0.2 * error


def test_a_polynomial_takes_a_distortion_that_an_affine_transform_leaves() -> None:
    truth = Truth(bend_nm=50.0, shift_nm=(2000.0, 0.0))
    tables = channels(truth, beads=90)
    affine, quadratic = (register(*tables, RegisterOptions(kind=kind)) for kind in ("affine", "polynomial"))
    cubic = register(*tables, RegisterOptions(kind="polynomial", degree=3))
    assert true_error_nm(affine, truth, noise_nm=0.0) > 18
    assert true_error_nm(quadratic, truth, noise_nm=0.0) < 0.6 * NOISE_NM
    assert true_error_nm(cubic, truth, noise_nm=0.0) < NOISE_NM
    assert quadratic.target_registration_error_nm < 0.7 * affine.target_registration_error_nm
    assert (affine.transform.degree, quadratic.transform.degree, cubic.transform.degree) == (1, 2, 3)


def test_beads_seen_in_many_frames_count_once() -> None:
    """Each bead has an offset of its own in channel 2; its repeats do not make the error smaller."""
    rng = np.random.default_rng(1)
    xy = rng.uniform(0, FIELD_NM, (20, 2))
    own = rng.normal(0, 15.0, xy.shape)
    place = np.tile(xy, (12, 1))
    frame = np.repeat(np.arange(12), 20)
    first, second = (
        pd.DataFrame({"frame": frame, "x_nm": p[:, 0], "y_nm": p[:, 1]})
        for p in (place + rng.normal(0, 3, place.shape), place + np.tile(own, (12, 1)) + [5000.0, 0.0])
    )
    found = register(first, second)
    assert found.beads == 20
    assert found.target_registration_error_nm > 0.9 * np.sqrt((own**2).sum(axis=1).mean())
    assert found.photon_ratio is None


def test_emitters_of_the_data_correct_a_transform_that_is_off() -> None:
    truth = Truth(degrees=0.2, magnification=1.004, shift_nm=(900.0, -1500.0))
    tables = channels(truth, beads=6, frames=400, outliers=0.8, noise_nm=20.0, seed=3)
    off = Transform.identity()
    found = register_self(*tables, initial=off)
    assert true_error_nm(found, truth, noise_nm=0.0) < 4.0
    error = true_error_nm(found, truth, noise_nm=20.0)
    assert abs(found.target_registration_error_nm - error) < 0.05 * error
    assert register_self(*tables).transform.apply([[2e4, 2e4]]) == pytest.approx(
        found.transform.apply([[2e4, 2e4]]), abs=1.0
    )


def test_the_photon_ratio_is_that_of_the_pairs() -> None:
    found = register(*channels(TRUTHS["shift"]))
    assert found.photon_ratio == pytest.approx(RATIO, rel=0.05)
    low, high = found.photon_ratio_interval or (0.0, 0.0)
    assert 0.04 * RATIO < (high - low) / 2 < 0.11 * RATIO  # 7 % by construction


def test_an_image_of_channel_2_is_warped_onto_channel_1() -> None:
    def scene(xy: np.ndarray) -> np.ndarray:
        return np.asarray(100 + 50 * np.sin(xy[..., 0] / 900) * np.cos(xy[..., 1] / 1100))

    transform = Transform.affine([[0.99, 0.02], [-0.02, 1.01]], (350.0, -120.0))
    row, column = np.mgrid[:48, :60] + 0.5
    here = np.stack([column, row], axis=-1) * 100.0
    second = scene(transform.inverse(here.reshape(-1, 2)).reshape(here.shape))
    warped = warp(second, transform, pixel_nm=100.0)
    there = transform.apply(here.reshape(-1, 2)).reshape(here.shape)
    assert np.isfinite(warped)[((there > 50) & (there < [5950, 4750])).all(axis=-1)].all()
    assert np.isnan(warped)[((there < 40) | (there > [5960, 4760])).any(axis=-1)].all()
    inner = ((there > 600) & (there < [5400, 4200])).all(axis=-1)
    np.testing.assert_allclose(warped[inner], scene(here)[inner], atol=0.01)
    stack = warp(
        np.stack([second] * 2).astype(np.uint16), transform, pixel_nm=100.0, shape=(10, 20), outside=-1
    )
    assert stack.shape == (2, 10, 20)
    assert stack.dtype == np.float32
    np.testing.assert_allclose(warp(second, Transform.identity(), pixel_nm=100.0), second, atol=1e-9)


def test_what_cannot_be_registered_is_refused() -> None:
    first, second = channels(TRUTHS["shift"])
    with pytest.raises(InputRejected, match=r"channel 2 has 3 localizations.*5 or more"):
        register(first, second[:3])
    with pytest.raises(InputRejected, match="share no frame"):
        register(first, second.assign(frame=7))
    line = first.assign(y_nm=2 * first["x_nm"] + 30)
    with pytest.raises(InputRejected, match="channel 1 lie on one line"):
        register(line, second)
    with pytest.raises(InputRejected, match="no transform pairs more beads than chance"):
        register(first, channels(TRUTHS["shift"], seed=99)[1])
    few = channels(TRUTHS["shift"], beads=9, outliers=0.0)
    with pytest.raises(InputRejected, match=r"9 beads are seen .* needs 12 or more"):
        register(*few, RegisterOptions(kind="polynomial", degree=3))
    with pytest.raises(InputRejected, match="degree"):
        RegisterOptions(degree=4)
    with pytest.raises(InputRejected, match="above 0"):
        warp(np.ones((4, 4)), Transform.identity(), pixel_nm=0.0)


def test_two_lines_of_beads_do_not_make_a_polynomial() -> None:
    rng = np.random.default_rng(2)
    xy = np.concatenate([[[x, 0.0], [x, 30_000.0]] for x in np.sort(rng.uniform(0, FIELD_NM, 15))])
    table = pd.DataFrame({"frame": 0, "x_nm": xy[:, 0], "y_nm": xy[:, 1]})
    with pytest.raises(InputRejected, match="line or curve"):
        register(table, table, RegisterOptions(kind="polynomial"))
    assert register(table, table).target_registration_error_nm < 1e-6


def bead_image(xy_px: np.ndarray, size: int, photons: float) -> np.ndarray:
    edges = np.arange(size + 1)
    steps = [erf((edges[:, None] - xy_px[:, axis]) / (1.3 * np.sqrt(2))) for axis in (0, 1)]
    along_x, along_y = (np.diff(step, axis=0) / 2 for step in steps)
    return np.asarray(photons * along_y @ along_x.T + 5)


def test_beads_in_images_are_localized() -> None:
    rng = np.random.default_rng(4)
    grid = np.stack(np.meshgrid(np.arange(5), np.arange(5)), axis=-1).reshape(-1, 2) * 20 + 15
    xy = grid + rng.uniform(-4, 4, (25, 2))
    camera = Camera(offset=100.0, e_per_adu=0.5)
    counts = rng.poisson(bead_image(xy, 110, 20_000.0)) / 0.5 + 100
    table = locate_beads(counts[None], pixel_nm=100.0, camera=camera, frame=3)
    assert len(table) == 25
    assert (table["frame"] == 3).all()
    away = np.hypot(*(table[["x_nm", "y_nm"]].to_numpy()[:, None] - xy * 100).transpose(2, 0, 1)).min(axis=1)
    assert np.sqrt((away**2).mean()) < 3
    assert table["photons"].median() == pytest.approx(20_000, rel=0.03)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert main(["register", *map(str, arguments), "--json"]) == 0
    return dict(json.loads(capsys.readouterr().out))


def test_the_verb_on_tables_and_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = TRUTHS["all"]
    names = [tmp_path / "one.csv", tmp_path / "two.csv"]
    for name, table in zip(names, channels(truth), strict=True):
        write_table(name, table)
    plot = tmp_path / "T.png"
    values = run(capsys, *names, "-o", tmp_path / "T.json", "--plot", plot)
    assert values["inliers"] > 35
    assert values["photon_ratio"] == pytest.approx(RATIO, rel=0.05)
    transform = load_transform(tmp_path / "T.json")
    assert transform.provenance["target_registration_error_nm"] == values["target_registration_error_nm"]
    point = np.array([[1e4, 2e4]])
    assert transform.apply(point) == pytest.approx(truth(point), abs=10)
    assert plot.read_bytes().startswith(b"\x89PNG")
    again = run(capsys, "--self", *names, "-o", tmp_path / "S.json", "--initial", tmp_path / "T.json")
    assert again["inliers"] == values["inliers"]

    rng = np.random.default_rng(6)
    xy = np.stack(np.meshgrid(np.arange(5), np.arange(5)), axis=-1).reshape(-1, 2) * 20 + 15
    xy = xy + rng.uniform(-5, 5, xy.shape)
    for name, places in (("a.tif", xy), ("b.tif", np.stack([110 - xy[:, 0], xy[:, 1] + 2.3], axis=1))):
        write_stack(tmp_path / name, rng.poisson(bead_image(places, 115, 9000)).astype(np.uint16)[None])
    values = run(capsys, tmp_path / "a.tif", tmp_path / "b.tif", "-o", tmp_path / "I.json", "--pixel-nm", 100)
    assert values["inliers"] == 25
    assert load_transform(tmp_path / "I.json").apply([[1000.0, 2000.0]]) == pytest.approx(
        np.array([[10_000.0, 2230.0]]), abs=5
    )


@pytest.mark.parametrize("arguments", [[], ["one.csv"], ["a.csv", "b.csv", "--self", "c.csv", "d.csv"]])
def test_the_verb_says_what_is_missing(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["register", *arguments, "-o", str(tmp_path / "T.json")]) == 2
    assert "BEADS1 BEADS2, or --self" in capsys.readouterr().err


def test_the_picture_shows_every_pair_or_a_thousand() -> None:
    found = register_self(*channels(TRUTHS["rotation"], beads=10, frames=150, noise_nm=20.0))
    assert len(found.first) > 1000
    assert registration_png(found).startswith(b"\x89PNG")


@pytest.mark.real
@pytest.mark.parametrize(
    "pair", [("crlb", "learned"), ("crlb", "tetrapod_edof"), ("learned", "tetrapod_edof")]
)
def test_telomeres_of_one_cell_seen_through_two_masks(pair: tuple[str, str]) -> None:
    """The published tables of one fixed cell: independent estimates of the same telomeres, shifted."""
    files = [DATA / "reference" / f"telomeres_fixed_{name}.csv" for name in pair]
    if not all(file.is_file() for file in files):
        pytest.skip("needs the published tables in ../shared/data/reference")
    from smlm_bridge.io.thunderstorm import read_table

    found = register(*(read_table(file) for file in files))
    matrix = np.diff(found.transform.apply([[0.0, 0.0], [1000.0, 0.0]]), axis=0)[0] / 1000
    assert matrix == pytest.approx([1.0, 0.0], abs=0.02)
    assert found.beads >= 25
