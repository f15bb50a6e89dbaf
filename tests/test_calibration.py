"""Calibration files: round trips, the hash, and everything that is no calibration."""

import io
import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from smlm_bridge.calibration import Calibration
from smlm_bridge.camera import Camera
from smlm_bridge.errors import InputRejected
from smlm_bridge.io.calibration import load_calibration, save_calibration
from smlm_bridge.optics.gaussian import Gaussian
from smlm_bridge.optics.microscope import Optics
from smlm_bridge.optics.pupil import Pupil

OPTICS = Optics(1.49, 1.518, 1.33, 605.0, 110.0, focus_nm=2300.0)
GENERATOR = np.random.default_rng(7)
PHASE, AMPLITUDE = GENERATOR.normal(size=(16, 16)), GENERATOR.uniform(0.5, 1.0, (16, 16))
MAPS = Camera(np.full((3, 5), 100.0), np.full((3, 5), 0.45), GENERATOR.uniform(1, 2, (3, 5)), 0.9, 1.0)
KINDS = {
    "pupil": Calibration(OPTICS, Pupil(PHASE, AMPLITUDE), z_range_nm=(-100.0, 4000.0), blur_nm=81.5),
    "zernike": Calibration(OPTICS, Pupil.flat(32, {6: 0.6, 11: -0.25}), provenance={"seed": 3, "rrse": 0.09}),
    "mask": Calibration(OPTICS, Pupil(PHASE, AMPLITUDE, pitch=0.0131)),
    "gaussian": Calibration(OPTICS, gaussian=Gaussian((130.0, 140.0), (-200.0, 200.0), (400.0, np.inf))),
    "maps": Calibration(OPTICS, Pupil.flat(16), camera=MAPS),
    "emccd": Calibration(OPTICS, Pupil.flat(16), camera=Camera(200.0, 12.5, 60.0, 0.95, 300.0)),
    "all optics": Calibration(
        Optics(1.4, 1.5, 1.33, 600.0, 100.0, -50.0, "scalar", False, 37.5, 1.52, False), Pupil.flat(16)
    ),
}


def assert_same(one: Calibration, other: Calibration) -> None:
    for part in fields(Optics):
        assert getattr(one.optics, part.name) == getattr(other.optics, part.name)
        assert type(getattr(one.optics, part.name)) is type(getattr(other.optics, part.name))
    for part in fields(Camera):
        np.testing.assert_array_equal(getattr(one.camera, part.name), getattr(other.camera, part.name))
    assert (one.gaussian, one.z_range_nm, one.blur_nm) == (other.gaussian, other.z_range_nm, other.blur_nm)
    assert dict(one.provenance) == dict(other.provenance)
    assert (one.pupil is None) == (other.pupil is None)
    if one.pupil is not None and other.pupil is not None:
        assert one.pupil.zernike_rad == other.pupil.zernike_rad
        assert one.pupil.pitch == other.pupil.pitch
        for name in ("phase_rad", "amplitude"):
            np.testing.assert_allclose(getattr(one.pupil, name), getattr(other.pupil, name), rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(kind: str, tmp_path: Path) -> None:
    calibration = KINDS[kind]
    again = Calibration.from_bytes(calibration.to_bytes())
    assert_same(calibration, again)
    assert again.hash == calibration.hash
    save_calibration(tmp_path / "x.psf.h5", calibration)
    assert load_calibration(tmp_path / "x.psf.h5").hash == calibration.hash


def test_psf_of_a_file_is_the_psf_of_the_calibration() -> None:
    import torch

    position = torch.tensor([[1000.0, 1100.0, 2100.0]])
    for calibration in KINDS.values():
        one = calibration.psf().images(position, (20, 20))
        other = Calibration.from_bytes(calibration.to_bytes()).psf().images(position, (20, 20))
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_every_kind_has_its_own_hash() -> None:
    assert len({calibration.hash for calibration in KINDS.values()}) == len(KINDS)


@pytest.mark.parametrize(
    "change",
    [
        {"blur_nm": 82.0},
        {"z_range_nm": (-100.0, 4001.0)},
        {"optics": replace(OPTICS, wavelength_nm=606.0)},
        {"optics": replace(OPTICS, analyser_deg=0.0)},
        {"camera": Camera(offset=1.0)},
        {"pupil": Pupil(PHASE + 1e-3, AMPLITUDE)},
        {"pupil": Pupil(PHASE, AMPLITUDE * 0.99)},
        {"pupil": Pupil(PHASE, AMPLITUDE, pitch=0.12)},
        {"pupil": Pupil(PHASE, AMPLITUDE, zernike_rad={5: 0.1})},
    ],
)
def test_the_hash_sees_every_part_of_the_physics(change: dict[str, object]) -> None:
    assert replace(KINDS["pupil"], **change).hash != KINDS["pupil"].hash


def test_the_hash_does_not_see_what_is_no_physics() -> None:
    calibration = KINDS["pupil"]
    assert replace(calibration, provenance={"by": "hand"}).hash == calibration.hash
    reordered = Pupil.flat(32, {11: -0.25, 6: 0.6})
    assert replace(KINDS["zernike"], pupil=reordered).hash == KINDS["zernike"].hash


def test_the_hash_does_not_see_how_a_number_is_written() -> None:
    whole = Calibration(Optics(1.4, 1.5, 1.33, 600, 100), Pupil.flat(16), z_range_nm=(0, 900), blur_nm=0)
    point = Calibration(
        Optics(1.4, 1.5, 1.33, 600.0, 100.0), Pupil.flat(16), z_range_nm=(0.0, 900.0), blur_nm=0.0
    )
    assert whole.hash == point.hash == Calibration.from_bytes(whole.to_bytes()).hash
    widths = Calibration(OPTICS, gaussian=Gaussian((130, 130)))
    assert Calibration.from_bytes(widths.to_bytes()).hash == widths.hash


def test_blur_and_pixels_reach_the_gaussian_psf() -> None:
    import torch

    calibration = Calibration(OPTICS, gaussian=Gaussian((120.0, 120.0)), blur_nm=90.0)
    direct = Calibration(OPTICS, gaussian=Gaussian((150.0, 150.0)))
    position = torch.tensor([[1000.0, 1100.0, 0.0]], dtype=torch.float64)
    one, other = (c.psf().images(position, (20, 20)) for c in (calibration, direct))
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-12)
    sampled = replace(direct, optics=replace(OPTICS, pixel_integration=False))
    assert float(sampled.psf().images(position, (20, 20)).max()) > 1.02 * float(other.max())


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"pupil": Pupil.flat(16), "gaussian": Gaussian((100.0, 100.0))},
        {"pupil": Pupil.flat(16), "z_range_nm": (100.0, 100.0)},
        {"pupil": Pupil.flat(16), "z_range_nm": (0.0, np.nan)},
        {"pupil": Pupil.flat(16), "blur_nm": -1.0},
        {"pupil": Pupil.flat(16), "blur_nm": float("nan")},
    ],
)
def test_no_calibration_is_made_of_nonsense(arguments: dict[str, object]) -> None:
    with pytest.raises(InputRejected):
        Calibration(OPTICS, **arguments)


def changed(kind: str, change: Callable[[h5py.File], None]) -> bytes:
    buffer = io.BytesIO(KINDS[kind].to_bytes())
    with h5py.File(buffer, "r+") as file:
        change(file)
    return buffer.getvalue()


def replaced(group: str, name: str, data: object) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[group][name]
        file[group][name] = data

    return change


DAMAGE: dict[str, Callable[[h5py.File], None]] = {
    "another version": lambda f: f.attrs.modify("version", 99),
    "version is text": lambda f: f.attrs.create("version", "new"),
    "another format": lambda f: f.attrs.create("format", "their calibration"),
    "no format": lambda f: f.attrs.__delitem__("format"),
    "no version": lambda f: f.attrs.__delitem__("version"),
    "no optics": lambda f: f.__delitem__("optics"),
    "no camera": lambda f: f.__delitem__("camera"),
    "no pupil": lambda f: f.__delitem__("pupil"),
    "no phase": lambda f: f["pupil"].__delitem__("phase_rad"),
    "no pixel": lambda f: f["optics"].attrs.__delitem__("pixel_nm"),
    "no z range": lambda f: f.attrs.__delitem__("z_range_nm"),
    "no pitch": lambda f: f["pupil"].attrs.__delitem__("pitch"),
    "no provenance": lambda f: f.attrs.__delitem__("provenance"),
    "provenance no JSON": lambda f: f.attrs.create("provenance", "{"),
    "provenance a list": lambda f: f.attrs.create("provenance", "[1]"),
    "wavelength is nan": lambda f: f["optics"].attrs.modify("wavelength_nm", np.nan),
    "wavelength is text": lambda f: f["optics"].attrs.create("wavelength_nm", "605"),
    "pixel is a list": lambda f: f["optics"].attrs.create("pixel_nm", [1.0, 2.0]),
    "model unknown": lambda f: f["optics"].attrs.create("model", "hybrid"),
    "unknown optics": lambda f: f["optics"].attrs.create("colour", 1.0),
    "unknown camera": lambda f: f["camera"].attrs.create("colour", 1.0),
    "gain is nan": lambda f: f["camera"].attrs.modify("em_gain", np.nan),
    "offset is inf": lambda f: f["camera"].attrs.modify("offset", np.inf),
    "blur is nan": lambda f: f.attrs.modify("blur_nm", np.nan),
    "z range of three": lambda f: f.attrs.create("z_range_nm", [0.0, 1.0, 2.0]),
    "z range upside down": lambda f: f.attrs.modify("z_range_nm", [1.0, 0.0]),
    "phase is nan": replaced("pupil", "phase_rad", np.full((16, 16), np.nan)),
    "phase is flat": replaced("pupil", "phase_rad", np.zeros(256)),
    "phase is text": replaced("pupil", "phase_rad", np.full((16, 16), b"x")),
    "phase is a group": lambda f: (f["pupil"].__delitem__("phase_rad"), f["pupil"].create_group("phase_rad")),
    "phase not square": replaced("pupil", "phase_rad", np.zeros((16, 8))),
    "amplitude of another size": replaced("pupil", "amplitude", np.ones((8, 8))),
    "amplitude negative": replaced("pupil", "amplitude", -np.ones((16, 16))),
    "phase elsewhere": replaced("pupil", "phase_rad", h5py.ExternalLink("/etc/hostname", "/x")),
    "zernike lengths differ": lambda f: f["pupil"].attrs.create("zernike_rad", [0.1, 0.2]),
    "a dataset as camera": lambda f: (f.__delitem__("camera"), f.create_dataset("camera", data=1.0)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_rejected_and_named(damage: str) -> None:
    data = changed("pupil", DAMAGE[damage])
    with pytest.raises(InputRejected, match="broken\\.psf\\.h5"):
        Calibration.from_bytes(data, name="broken.psf.h5")


def test_arrays_in_other_files_are_not_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret.raw"
    secret.write_bytes(np.zeros((16, 16)).tobytes())

    def change(file: h5py.File) -> None:
        del file["pupil"]["phase_rad"]
        file["pupil"].create_dataset(
            "phase_rad", (16, 16), "f8", external=[(str(secret), 0, h5py.h5f.UNLIMITED)]
        )

    path = tmp_path / "x.psf.h5"
    path.write_bytes(KINDS["pupil"].to_bytes())
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(InputRejected, match="not an array stored in this file"):
        load_calibration(path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.9, 0.99])
def test_truncated_files_are_rejected(share: float) -> None:
    data = KINDS["pupil"].to_bytes()
    with pytest.raises(InputRejected):
        Calibration.from_bytes(data[: int(share * len(data))])


def test_flipped_bytes_never_crash() -> None:
    data = bytearray(KINDS["pupil"].to_bytes())
    generator = np.random.default_rng(3)
    for _ in range(60):
        hurt = data.copy()
        for at in generator.integers(0, len(data), 6):
            hurt[at] = generator.integers(0, 256)
        try:
            Calibration.from_bytes(bytes(hurt))
        except InputRejected:
            continue


def test_an_hdf5_file_of_others_is_rejected() -> None:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.attrs["params"] = json.dumps({"uiPSF": 1})
    with pytest.raises(InputRejected, match="not a calibration"):
        Calibration.from_bytes(buffer.getvalue())


def test_files(tmp_path: Path) -> None:
    with pytest.raises(InputRejected, match="\\.psf\\.h5"):
        save_calibration(tmp_path / "x.h5", KINDS["pupil"])
    save_calibration(tmp_path / "x.psf.h5", KINDS["pupil"])
    with pytest.raises(InputRejected, match="overwrite"):
        save_calibration(tmp_path / "x.psf.h5", KINDS["emccd"])
    save_calibration(tmp_path / "x.psf.h5", KINDS["emccd"], overwrite=True)
    assert load_calibration(str(tmp_path / "x.psf.h5")).hash == KINDS["emccd"].hash
    (tmp_path / "text.psf.h5").write_text("no")
    for path, words in (
        ("missing.psf.h5", "no calibration"),
        ("text.psf.h5", "not an HDF5"),
        (".", "no calibration"),
    ):
        with pytest.raises(InputRejected, match=words):
            load_calibration(tmp_path / path)
