"""PSFs of other programs: each round trip, and each file against what its program makes of it.

The PSF has every asymmetry (astigmatism on both axes, coma, trefoil, spherical), so that a swapped axis or a
sign fails. The programs' own formulas are written out here once more, from their documents.
"""

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
import tifffile
import torch

from smlm_bridge.calibration import Calibration
from smlm_bridge.errors import InputRejected
from smlm_bridge.io import psf_formats
from smlm_bridge.io.psf_formats import Request
from smlm_bridge.io.psf_formats.mask import write_mask
from smlm_bridge.io.setup import MaskSpec, load_mask
from smlm_bridge.optics.gaussian import Gaussian
from smlm_bridge.optics.microscope import Optics
from smlm_bridge.optics.pupil import Pupil
from smlm_bridge.psf.cubic_spline import CubicSpline

OPTICS = Optics(1.4, 1.518, 1.33, 670.0, 110.0, model="scalar", pixel_integration=False, supercritical=False)
ZERNIKE = {5: 0.35, 6: -0.5, 7: 0.3, 8: -0.2, 9: 0.25, 11: 0.15}
PUPIL = Calibration(OPTICS, Pupil.flat(128, ZERNIKE), z_range_nm=(-600.0, 600.0))
BOX = 15


def make_optics(found: Any) -> Optics:
    return replace(OPTICS, **found)


REQUEST = Request(optics=make_optics, z_range_nm=(-600.0, 600.0), box_px=BOX, z_step_nm=50.0)


def images(calibration: Calibration, xyz: list[tuple[float, float, float]], size: int = BOX) -> np.ndarray:
    psf = calibration.psf(dtype=torch.float64)
    return psf.images(torch.tensor(xyz, dtype=torch.float64), (size, size)).numpy()


MIDDLE = BOX / 2 * 110.0
OFF = [(MIDDLE + 30.0, MIDDLE - 45.0, z) for z in (-410.0, 0.0, 330.0)]


def assert_alike(one: np.ndarray, other: np.ndarray, share: float) -> None:
    """Within a share of the peak, and far from every mirrored, turned or swapped image."""
    scale = other.max(axis=(1, 2), keepdims=True)
    assert np.abs((one - other) / scale).max() < share
    for changed in (other[:, ::-1], other[:, :, ::-1], other.transpose(0, 2, 1), other[::-1]):
        assert np.abs((changed - other) / scale).max() > 5 * share


def round_trip(calibration: Calibration, path: Path) -> Calibration:
    psf_formats.write(path, calibration, REQUEST)
    return psf_formats.read(path, REQUEST)


@pytest.mark.parametrize("name", ["x_3dcal.mat", "x.json", "x.h5"])
def test_a_pupil_survives_the_round_trip(name: str, tmp_path: Path) -> None:
    again = round_trip(PUPIL, tmp_path / name)
    share = 0.03 if name.endswith(".mat") else 1e-4  # one knot a pixel of 110 nm interpolates to some percent
    assert_alike(images(again, OFF), images(PUPIL, OFF), share)
    assert again.provenance["source"] == name


def test_zernikes_come_back_as_numbers(tmp_path: Path) -> None:
    for name in ("x.json", "x.h5"):
        again = round_trip(PUPIL, tmp_path / name)
        assert again.pupil is not None
        assert dict(again.pupil.zernike_rad) == pytest.approx(ZERNIKE, abs=1e-6)
        assert not again.pupil.phase_rad.any()


def pixelwise() -> Calibration:
    axis = (np.arange(64) - 31.5) / 32
    y, x = np.meshgrid(axis, axis, indexing="ij")
    phase = 2.0 * x**2 - 1.2 * y**3 + 0.8 * x * y + 0.9 * x**3
    return replace(PUPIL, pupil=Pupil(phase, np.ones_like(phase)), blur_nm=55.0)


@pytest.mark.parametrize("name", ["x.json", "x.h5"])
def test_a_pixelwise_pupil_and_its_blur_survive(name: str, tmp_path: Path) -> None:
    again = round_trip(pixelwise(), tmp_path / name)
    assert_alike(images(again, OFF), images(pixelwise(), OFF), 0.02)
    assert again.blur_nm == pytest.approx(55.0, rel=1e-6)


@pytest.mark.parametrize("name", ["x_3dcal.mat", "x.h5"])
def test_a_spline_survives_exactly(name: str, tmp_path: Path) -> None:
    stack = np.random.default_rng(2).uniform(0, 0.01, (7, 9, 9))
    spline = CubicSpline.of_stack(stack, pixel_nm=110.0, z_first_nm=-300.0, z_step_nm=100.0)
    one = Calibration(OPTICS, z_range_nm=(-300.0, 300.0), spline=spline)
    path = tmp_path / name
    psf_formats.write(path, one, REQUEST)
    other = psf_formats.read(path, replace(REQUEST, z_range_nm=None))
    assert other.spline is not None
    assert other.z_range_nm == pytest.approx((-300.0, 300.0))
    xyz = [(540.0, 470.0, z) for z in (-300.0, -130.0, 20.0, 299.0)]
    np.testing.assert_allclose(other.spline.images(xyz, (9, 9)), spline.images(xyz, (9, 9)), atol=2e-8)


def test_smap_sees_rows_first_and_heights_fall_with_the_plane(tmp_path: Path) -> None:
    path = tmp_path / "x_3dcal.mat"
    notes = psf_formats.write(path, PUPIL, REQUEST)
    cspline = scipy.io.loadmat(path, squeeze_me=True, struct_as_record=False)["SXY"].cspline
    rows, columns, planes, powers = cspline.coeff.shape
    assert (rows, columns, planes, powers) == (BOX - 1, BOX - 1, 24, 64)
    expected = images(PUPIL, OFF)
    for (x, y, z), image in zip(OFF, expected, strict=True):
        plane = -z / cspline.dz + cspline.z0 - 1  # z = -(plane - z0) dz, planes from 1
        at = np.arange(BOX) + 0.5
        row, column = (at - y / 110.0 + cspline.x0 - 1, at - x / 110.0 + cspline.x0 - 1)
        found = np.zeros((BOX, BOX))
        for i in range(BOX):
            for j in range(BOX):
                found[i, j] = voxel(cspline.coeff, row[i], column[j], plane)
        assert np.abs(found - image)[1:-1, 1:-1].max() < 0.03 * image.max()
    assert "mismatch to 1" in notes[0]


def voxel(coeff: np.ndarray, first: float, second: float, third: float) -> float:
    """f = sum of coeff[m] d1^(m % 4) d2^(m // 4 % 4) d3^(m // 16)."""
    index = [int(np.floor(value)) for value in (first, second, third)]
    if any(not 0 <= i < n for i, n in zip(index, coeff.shape, strict=False)):
        return 0.0
    d1, d2, d3 = (value - i for value, i in zip((first, second, third), index, strict=True))
    m = np.arange(64)
    return float(coeff[tuple(index)] @ (d1 ** (m % 4) * d2 ** (m // 4 % 4) * d3 ** (m // 16)))


def test_a_bead_scan_of_smap_gets_the_heights_of_emitters(tmp_path: Path) -> None:
    path = tmp_path / "x_3dcal.mat"
    psf_formats.write(path, PUPIL, REQUEST)
    content = scipy.io.loadmat(path)
    scipy.io.savemat(path, {"SXY": content["SXY"]})  # as SMAP writes it: no word of us
    again = psf_formats.read(path, replace(REQUEST, z_range_nm=None))
    ratio = 1.33 / 1.518
    assert again.z_range_nm == pytest.approx((-600 * ratio, 600 * ratio))


def test_uipsf_sees_its_own_model_in_our_file(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    matched = replace(PUPIL, optics=replace(OPTICS, sample_index=1.518))
    psf_formats.write(path, matched, REQUEST)
    with h5py.File(path) as file:
        params = json.loads(file.attrs["params"])
        model, pupil = file["res/I_model"][()], file["res/pupil"][()]
        coeff = file["locres/coeff"][()]
    size, imaging = pupil.shape[0], params["option"]["imaging"]
    k = (np.arange(size) - (size - 1) / 2) * 2 / size * imaging["NA"] / imaging["emission_wavelength"]
    kz = np.sqrt(
        np.maximum((imaging["RI"]["imm"] / imaging["emission_wavelength"]) ** 2 - k[:, None] ** 2 - k**2, 0)
    )
    at = (np.arange(BOX) - BOX // 2) * params["pixel_size"]["x"]
    kernel = np.exp(2j * np.pi * at[:, None] * k)
    for i in (2, 12, 19):
        focus = -(i - (len(model) - 1) / 2) * params["pixel_size"]["z"]
        image = np.abs(kernel @ (pupil * np.exp(-2j * np.pi * kz * focus)) @ kernel.T) ** 2
        ours = model[i] / model[i].sum()
        assert np.abs(ours - image / image.sum()).max() < 0.02 * ours.max()
        assert np.abs(ours.T - image / image.sum()).max() > 0.1 * ours.max()
    # (64, z, y, x): in Fortran's order x comes first
    fortran = coeff.transpose(3, 2, 1, 0)
    assert voxel(fortran, 4.0, 9.0, 3.0) == pytest.approx(model[3, 9, 4], rel=1e-4, abs=1e-8)
    assert voxel(fortran, 4.3, 9.0, 3.0) == pytest.approx(
        float(CubicSpline.of_stack(model, pixel_nm=1, z_first_nm=0, z_step_nm=1, centre=(0, 0)).images(
            [(0.5 - 4.3, 0.5 - 9.0, 3.0)], (1, 1))[0, 0, 0]), rel=1e-3, abs=1e-7)  # fmt: skip


@pytest.mark.parametrize("pixel", [False, True])
def test_zola_sees_the_same_psf_in_our_file(pixel: bool, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    calibration = replace(pixelwise(), blur_nm=0.0) if pixel else PUPIL
    psf_formats.write(path, calibration, REQUEST)
    content = json.loads(path.read_text())
    size, step = content["sizeFFT"], content["sizePix"]
    k = (np.arange(size) - size / 2 + 0.5) / (size * step)
    kx, ky = k[:, None], k  # the first index is x
    inside = kx**2 + ky**2 <= (content["NA"] / content["wavelength"]) ** 2
    phase = np.zeros((size, size))
    if pixel:
        phase[inside] = content["pixelPhaseValue"]
    else:
        radius = content["NA"] / content["wavelength"]
        rho, theta = np.hypot(kx, ky) / radius, np.arctan2(ky + 0 * kx, kx + 0 * ky)
        for n, m, value in zip(content["radial"], content["azimuthal"], content["zernike"], strict=True):
            angular = np.cos(m * theta) if m >= 0 else np.sin(-m * theta)
            phase += value * radial(n, abs(m), rho) * angular
    kz = 2 * np.pi * np.sqrt(np.maximum((1.33 / content["wavelength"]) ** 2 - kx**2 - ky**2, 0))
    inside &= kx**2 + ky**2 < (1.33 / content["wavelength"]) ** 2  # without supercritical light, as ours here
    at = (np.arange(BOX) - BOX // 2) * step
    kernel = np.exp(2j * np.pi * at[:, None] * k)  # ZOLA's inverse transform
    xyz = [(MIDDLE, MIDDLE, z) for z in (0.0, 200.0, 450.0)]
    for (_, _, z), ours in zip(xyz, images(calibration, xyz), strict=True):
        field = kernel @ (inside * np.exp(1j * (phase + kz * z / 1000))) @ kernel.T
        theirs = (np.abs(field) ** 2).T  # to (y, x)
        theirs *= ours.sum() / theirs.sum()
        assert np.abs(theirs - ours).max() < 0.03 * ours.max()
        assert np.abs(theirs.T - ours).max() > 0.1 * ours.max()


def radial(n: int, m: int, rho: np.ndarray) -> np.ndarray:
    from math import factorial

    return sum(
        (-1) ** k * factorial(n - k)
        / (factorial(k) * factorial((n + m) // 2 - k) * factorial((n - m) // 2 - k)) * rho ** (n - 2 * k)
        for k in range((n - m) // 2 + 1)
    )  # fmt: skip


POLYNOMIAL = (
    "!!cz.cuni.lf1.lge.ThunderSTORM.calibration.PolynomialCalibration {a1: 2.5E-6, a2: 3.0E-6,\n"
    "  angle: 0.2, b1: 1.3, b2: 1.45, c1: -210.0, c2: 190.5, d1: 4.0E-10, d2: -3.0e-10, name: 3rd order\n"
    "  polynomial, w01: 2.0, w02: 2.0}\n"
)
DAOSTORM = (
    "!!cz.cuni.lf1.lge.ThunderSTORM.calibration.DaostormCalibration {a1: 0.1, a2: 0.2, angle: -0.1, b1: 0.02,\n"
    "  b2: 0.03, c1: 200.0, c2: -180.0, d1: 400.0, d2: -420.0, w01: 2.6, w02: 2.9}\n"
)


@pytest.mark.parametrize(("text", "angle"), [(POLYNOMIAL, 0.2), (DAOSTORM, -0.1)])
def test_thunderstorm_widths_are_read_and_written_as_it_means_them(
    text: str, angle: float, tmp_path: Path
) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text(text)
    request = replace(REQUEST, z_range_nm=(-300.0, 300.0))
    found = psf_formats.read(first, request)
    psf_formats.write(second, found, request)
    again = psf_formats.read(second, request)
    z = np.linspace(-300, 300, 13)
    if text is POLYNOMIAL:
        wanted = [1.3 + 2.5e-6 * (z + 210) ** 2 + 4e-10 * (z + 210) ** 3,
                  1.45 + 3e-6 * (z - 190.5) ** 2 - 3e-10 * (z - 190.5) ** 3]  # fmt: skip
    else:
        t1, t2 = (z - 200) / 400, (z + 180) / -420
        wanted = [1.3 * np.sqrt(1 + t1**2 + 0.1 * t1**3 + 0.02 * t1**4),
                  1.45 * np.sqrt(1 + t2**2 + 0.2 * t2**3 + 0.03 * t2**4)]  # fmt: skip
    for calibration in (found, again):
        assert calibration.gaussian is not None
        np.testing.assert_allclose(calibration.gaussian.widths_nm(z) / 110, np.stack(wanted, 1), rtol=1e-9)
        assert calibration.gaussian.angle_rad == angle


def test_thunderstorm_counts_heights_from_the_focus(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(DAOSTORM)
    deep = replace(
        REQUEST, optics=lambda found: replace(make_optics(found), focus_nm=1518.0), z_range_nm=None
    )
    found = psf_formats.read(path, deep)
    assert found.gaussian is not None
    assert found.gaussian.focus_nm == pytest.approx((1530.0, 1150.0))
    assert found.z_range_nm == pytest.approx((730.0, 1950.0))
    psf_formats.write(tmp_path / "b.yaml", found, deep)
    assert "c1: 200.0" in (tmp_path / "b.yaml").read_text()


def test_a_designed_mask_survives_and_keeps_its_side(tmp_path: Path) -> None:
    spec = MaskSpec(tmp_path / "m.mat", 24.0, 150.0, 100.0)
    phase = np.random.default_rng(5).uniform(-3, 3, (201, 201))
    scipy.io.savemat(spec.file, {"any": phase})
    one = replace(PUPIL, pupil=load_mask(spec, OPTICS))
    for name in ("again.mat", "again.tif"):
        write_mask(tmp_path / name, one, spec)
        other = load_mask(replace(spec, file=tmp_path / name), OPTICS)
        assert one.pupil is not None
        assert other.sample_pitch == one.pupil.sample_pitch
        rho = np.hypot(*np.meshgrid(other.rho_axis, other.rho_axis))
        np.testing.assert_allclose((other.phase_rad - one.pupil.phase_rad)[rho <= 1], 0, atol=1e-6)
    written = scipy.io.loadmat(tmp_path / "again.mat")["mask"]
    middle, half = 100, written.shape[0] // 2
    np.testing.assert_array_equal(written[half - 5, half : half + 9], phase[middle - 5, middle : middle + 9])


def test_zernikes_become_a_mask(tmp_path: Path) -> None:
    spec = MaskSpec(tmp_path / "m.mat", 24.0, 150.0, 100.0)
    write_mask(spec.file, PUPIL, spec)
    again = replace(PUPIL, pupil=load_mask(spec, OPTICS))
    assert_alike(images(again, OFF), images(PUPIL, OFF), 0.02)
    gaussian = replace(PUPIL, pupil=None, gaussian=Gaussian((120.0, 130.0)))
    with pytest.raises(InputRejected, match="no phase"):
        write_mask(tmp_path / "n.mat", gaussian, spec)


def damaged(path: Path, change: Any) -> None:
    if path.suffix == ".json":
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
    elif path.suffix == ".h5":
        with h5py.File(path, "r+") as file:
            change(file)
    elif path.suffix == ".mat":
        content = scipy.io.loadmat(path, simplify_cells=True)
        change(content)
        scipy.io.savemat(path, {k: v for k, v in content.items() if not k.startswith("__")})
    else:
        path.write_text(change(path.read_text()))


def set_params(file: h5py.File, key: str, value: object) -> None:
    params = json.loads(file.attrs["params"])
    params["option"]["imaging"][key] = value
    file.attrs["params"] = json.dumps(params)


def replace_data(file: h5py.File, name: str, data: object) -> None:
    del file[name]
    file[name] = data


DAMAGE: list[tuple[str, Any, str]] = [
    ("x.json", lambda c: c.pop("NA"), "NA is missing"),
    ("x.json", lambda c: c.update(wavelength=670.0), "um"),
    ("x.json", lambda c: c.update(zernike=["a"]), "zernike"),
    ("x.json", lambda c: c.update(zernike=[float("nan")]), "zernike"),
    ("x.json", lambda c: c.update(radial=[1] * len(c["radial"])), "radial"),
    ("x.json", lambda c: c.update(zernikedPSF=1), "zernikedPSF"),
    ("x.json", lambda c: c.update(zernikedPSF=False, pixelPhaseValue=[0.0] * 7), "7 phases"),
    ("x.h5", lambda f: f.attrs.__delitem__("params"), "params"),
    ("x.h5", lambda f: f.attrs.create("params", "{"), "not JSON"),
    ("x.h5", lambda f: set_params(f, "NA", None), "option.imaging.NA"),
    ("x.h5", lambda f: set_params(f, "emission_wavelength", 670.0), "wavelength_nm"),
    ("x.h5", lambda f: f.__delitem__("res"), "res"),
    ("x.h5", lambda f: replace_data(f, "res/pupil", np.zeros((5, 4))), "pupil"),
    ("x.h5", lambda f: replace_data(f, "res/pupil", np.full((16, 16), np.nan)), "finite"),
    ("x.h5", lambda f: f["res"].create_group("channel0"), "several channels"),
    ("x.h5", lambda f: (f.__delitem__("res/pupil"), f.__delitem__("locres/coeff")), "coeff"),
    ("x_3dcal.mat", lambda c: c.update(SXY={"a": 1}), "SXY.cspline"),
    ("x_3dcal.mat", lambda c: c["SXY"]["cspline"].update(dz=0.05), "micrometres"),
    ("x_3dcal.mat", lambda c: c["SXY"]["cspline"].update(z0=[1, 2]), "z0"),
    ("x_3dcal.mat", lambda c: c["SXY"]["cspline"].update(coeff=np.zeros((3, 3, 3, 63))), "64"),
    ("x_3dcal.mat", lambda c: c["SXY"]["cspline"].update(coeff=np.full((3, 3, 3, 64), np.inf)), "finite"),
    ("x_3dcal.mat", lambda c: c["SXY"]["cspline"].pop("coeff"), "coeff"),
    ("x.yaml", lambda t: t.replace("b1: ", "e1: "), "lacks b1"),
    ("x.yaml", lambda t: t.replace("b1: ", "b1: x"), "not a number"),
    ("x.yaml", lambda t: t.replace("w01: ", "w01: 9999"), "pixels"),
    ("x.yaml", lambda t: t.replace("}", ""), "brace"),
    ("x.yaml", lambda t: t.replace("Daostorm", "Other"), "no calibration of ThunderSTORM"),
    ("x.yaml", lambda t: t + "---\n!homography [1, 0, 0]", "two planes"),
]


@pytest.mark.parametrize(("name", "change", "words"), DAMAGE)
def test_damaged_files_are_named(name: str, change: Any, words: str, tmp_path: Path) -> None:
    path = tmp_path / name
    astigmatic = Gaussian((130.0, 140.0), (-200.0, 200.0), (400.0, 450.0))
    one = replace(PUPIL, pupil=None, gaussian=astigmatic) if name.endswith("yaml") else PUPIL
    psf_formats.write(path, one, REQUEST)
    damaged(path, change)
    with pytest.raises(InputRejected) as caught:
        psf_formats.read(path, replace(REQUEST, optics=lambda found: Optics(**{**BASE, **found})))
    assert words in str(caught.value)


BASE: dict[str, Any] = {
    "numerical_aperture": 1.4, "immersion_index": 1.518, "sample_index": 1.33, "wavelength_nm": 670.0,
    "pixel_nm": 110.0,
}  # fmt: skip


@pytest.mark.parametrize("name", ["x.json", "x.h5", "x_3dcal.mat", "x.yaml"])
def test_cut_and_flipped_files_never_crash(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    astigmatic = Gaussian((130.0, 140.0), (-200.0, 200.0), (400.0, 450.0))
    one = replace(PUPIL, pupil=None, gaussian=astigmatic) if name.endswith("yaml") else PUPIL
    psf_formats.write(path, one, REQUEST)
    data = path.read_bytes()
    generator = np.random.default_rng(1)
    for trial in range(40):
        changed = bytearray(data[: int(generator.uniform(0, len(data)))] if trial % 2 else data)
        for position in generator.integers(0, max(1, len(changed)), 3):
            if changed:
                changed[position] ^= int(generator.integers(1, 256))
        path.write_bytes(bytes(changed))
        with contextlib.suppress(InputRejected):
            assert isinstance(psf_formats.read(path, REQUEST), Calibration)


def test_what_a_format_cannot_hold_is_refused_or_said(tmp_path: Path) -> None:
    with pytest.raises(InputRejected, match="--psf gaussian"):
        psf_formats.write(tmp_path / "x.yaml", PUPIL, REQUEST)
    gaussian = replace(PUPIL, pupil=None, gaussian=Gaussian((120.0, 130.0)))
    with pytest.raises(InputRejected, match="--psf pupil"):
        psf_formats.write(tmp_path / "x.json", gaussian, REQUEST)
    vectorial = replace(PUPIL, optics=replace(OPTICS, model="vectorial", focus_nm=500.0))
    assert len(psf_formats.write(tmp_path / "x.json", vectorial, REQUEST)) == 2
    with pytest.raises(InputRejected, match="odd"):
        psf_formats.write(tmp_path / "x_3dcal.mat", PUPIL, replace(REQUEST, box_px=16))
    with pytest.raises(InputRejected, match="extension"):
        psf_formats.read(tmp_path / "x.xyz")
    assert psf_formats.format_of("a.psf.h5") is None
    assert not list(tmp_path.glob(".*"))


def test_a_tiff_of_a_mask_is_read_by_others(tmp_path: Path) -> None:
    write_mask(tmp_path / "m.tif", PUPIL, MaskSpec(tmp_path / "m.tif", 24.0, 150.0, 100.0))
    assert tifffile.imread(tmp_path / "m.tif").dtype == np.float32
