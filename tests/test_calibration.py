"""Calibration files: round trips, the hash, and everything that is no calibration."""

import io
import json
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from smlm_bridge.calibration import Calibration
from smlm_bridge.camera import Camera
from smlm_bridge.errors import InputRejected
from smlm_bridge.io.calibration import load_calibration, load_channels, save_calibration
from smlm_bridge.optics.gaussian import Gaussian
from smlm_bridge.optics.microscope import Optics
from smlm_bridge.optics.pupil import Pupil
from smlm_bridge.pair import PairCalibration, read_calibration
from smlm_bridge.psf.cubic_spline import CubicSpline
from smlm_bridge.transform import Transform

OPTICS = Optics(1.49, 1.518, 1.33, 605.0, 110.0, focus_nm=2300.0)
GENERATOR = np.random.default_rng(7)
PHASE, AMPLITUDE = GENERATOR.normal(size=(16, 16)), GENERATOR.uniform(0.5, 1.0, (16, 16))
MAPS = Camera(np.full((3, 5), 100.0), np.full((3, 5), 0.45), GENERATOR.uniform(1, 2, (3, 5)), 0.9, 1.0)
SPLINE = CubicSpline.of_stack(
    GENERATOR.uniform(0, 0.01, (5, 7, 9)), pixel_nm=110.0, z_first_nm=0.0, z_step_nm=250.0, centre=(3.5, 3.0)
)
KINDS = {
    "pupil": Calibration(OPTICS, Pupil(PHASE, AMPLITUDE), z_range_nm=(-100.0, 4000.0), blur_nm=81.5),
    "zernike": Calibration(OPTICS, Pupil.flat(32, {6: 0.6, 11: -0.25}), provenance={"seed": 3, "rrse": 0.09}),
    "mask": Calibration(OPTICS, Pupil(PHASE, AMPLITUDE, pitch=0.0131)),
    "gaussian": Calibration(OPTICS, gaussian=Gaussian((130.0, 140.0), (-200.0, 200.0), (400.0, np.inf))),
    "curved": Calibration(
        OPTICS,
        gaussian=Gaussian(
            (130.0, 140.0), (300.0, 500.0), (400.0, 450.0), (0.1, -0.05), (0.02, 0.01), angle_rad=0.3
        ),
    ),
    "spline": Calibration(OPTICS, z_range_nm=(0.0, 1000.0), spline=SPLINE),
    "pupil and spline": Calibration(OPTICS, Pupil.flat(16), z_range_nm=(0.0, 1000.0), spline=SPLINE),
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
    assert (one.spline is None) == (other.spline is None)
    if one.spline is not None and other.spline is not None:
        for name in ("coefficients", "centre", "z_first_nm", "z_step_nm", "pixel_nm", "samples_per_px"):
            np.testing.assert_array_equal(getattr(one.spline, name), getattr(other.spline, name))
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
        {"optics": replace(OPTICS, field_scale=0.998)},
        {"optics": replace(OPTICS, field_centre_nm=(0.0, 100.0))},
        {"camera": Camera(offset=1.0)},
        {"spline": SPLINE, "z_range_nm": (0.0, 1000.0)},
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
        {"pupil": Pupil.flat(16), "z_range_nm": (0.0, 4.5)},
        {"pupil": Pupil.flat(16), "z_range_nm": (0.0, 4.5e6)},
        {"pupil": Pupil(np.full((16, 16), 1e4), np.ones((16, 16)))},
        {"pupil": Pupil(np.zeros((16, 16)), np.zeros((16, 16)))},
        {"pupil": Pupil.flat(16, {6: 4000.0})},
        {"pupil": Pupil.flat(16), "camera": Camera(offset=1e9)},
        {"pupil": Pupil.flat(16), "camera": Camera(e_per_adu=1e6)},
        {"pupil": Pupil.flat(16), "camera": Camera(em_gain=1e5)},
        {"spline": SPLINE, "blur_nm": 10.0},
        {"spline": SPLINE, "z_range_nm": (0.0, 1500.0)},
        {"spline": replace(SPLINE, pixel_nm=100.0)},
        {"spline": replace(SPLINE, coefficients=np.zeros((4, 31, 31, 64)))},
        {"gaussian": Gaussian((100.0, 100.0), (0.0, 0.0), (300.0, 300.0), (-2.0, 0.0))},
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
    "phase is hardly in the file": lambda f: (
        f["pupil"].__delitem__("phase_rad"),
        f["pupil"].create_dataset("phase_rad", (5000, 5000), "f8", chunks=(500, 500)),  # never written
    ),
    "amplitude negative": replaced("pupil", "amplitude", -np.ones((16, 16))),
    "phase elsewhere": replaced("pupil", "phase_rad", h5py.ExternalLink("/etc/hostname", "/x")),
    "zernike lengths differ": lambda f: f["pupil"].attrs.create("zernike_rad", [0.1, 0.2]),
    "no hash, other content": lambda f: f.attrs.modify("blur_nm", 82.5),
    "another hash": lambda f: f.attrs.create("hash", "0" * 64),
    "no camera offset": lambda f: f["camera"].attrs.__delitem__("offset"),
    "no model": lambda f: f["optics"].attrs.__delitem__("model"),
    "wavelength in um": lambda f: f["optics"].attrs.modify("wavelength_nm", 0.605),
    "heights in um": lambda f: f.attrs.create("z_range_nm", [0.0, 4.0]),
    "phase in degrees": replaced("pupil", "phase_rad", np.full((16, 16), 7200.0)),
    "blur is text": lambda f: f.attrs.create("blur_nm", "81.5"),
    "a part of a newer program": lambda f: f.create_group("colour"),
    "half an index": lambda f: (
        f["pupil"].attrs.create("zernike_noll", [5.5]),
        f["pupil"].attrs.create("zernike_rad", [0.1]),
    ),
    "optics elsewhere": lambda f: (
        f.__delitem__("optics"),
        f.__setitem__("optics", h5py.ExternalLink("/etc/hostname", "/x")),
    ),
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


def test_a_collection_of_texts_that_claims_gigabytes_is_not_read() -> None:
    """The library would take the memory before it looks how long the file is."""
    data = bytearray(KINDS["pupil"].to_bytes())
    place = data.find(b"GCOL")
    assert place > 0
    data[place + 8 : place + 16] = (4_000_000_000).to_bytes(8, "little")
    with pytest.raises(InputRejected, match="HDF5 library cannot read"):
        Calibration.from_bytes(bytes(data))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no child reads the file first")
def test_a_text_that_claims_gigabytes_is_not_read() -> None:
    """The length stands with the attribute, where no check of the collections sees it."""
    data = bytearray(KINDS["pupil"].to_bytes())
    name = data.find(b"hash\0")
    place = data.find(len(KINDS["pupil"].hash).to_bytes(4, "little"), name)
    assert 0 < place - name < 100
    data[place : place + 4] = (4_200_000_000).to_bytes(4, "little")
    with pytest.raises(InputRejected, match="HDF5 library cannot read"):
        Calibration.from_bytes(bytes(data))


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


#: As the program wrote them before version 2 existed: files that users have must keep theirs.
FIRST_HASHES = {
    "pupil": "506cc1fef9228b224ac446aa50565aeaba4448b4f2c046fc9d07394d19a9dc69",
    "zernike": "c6253715b6aa227aa1c2990711b86734d9915087b8df9dc4477bcc0c60b321bf",
    "mask": "29c06287be3b9e800e06d08616bee3cb8392f18a6f97a715643823bd05f3bf54",
    "gaussian": "d1b7a0dcf9a3317a7b0f15777c15d65044c437df9bf84293eb39cc83895b1e0c",
    "emccd": "8041c13afcb79cdb716073acd49881dc49331075abe84784dd273218aa0b199d",
    "all optics": "26a6e13cac8c554912395639d29a8377ee8a0e629e66544817e17719edb8cebd",
}
SHIPPED_HASHES = {
    "telomeres_tetrapod": "65b40423908156ba53bd3009fd87a9acf6c2dd2f7a1df852c2fd7d4202a382c3",
    "tetrapod_storm": "59983e063ba8305536f53b14cc5e42cf58e148a4a12b6575b0a1ef6347407d95",
    "tetrapod_telomere": "45c75c0b591a3c984da69134b48a2a1cd5432351b62fed438e62d99bf098c474",
}


def test_hashes_of_existing_calibrations_do_not_change() -> None:
    for kind, digest in FIRST_HASHES.items():
        assert KINDS[kind].hash == digest, kind


def test_shipped_calibrations_keep_their_hash() -> None:
    for name, digest in SHIPPED_HASHES.items():
        assert load_calibration(name).hash == digest, name


def test_a_file_of_the_first_version_is_read_without_its_hash() -> None:
    data = changed("pupil", lambda f: f.attrs.__delitem__("hash"))
    assert Calibration.from_bytes(data).hash == KINDS["pupil"].hash


@pytest.mark.parametrize(
    ("kind", "version"),
    [("pupil", 1), ("gaussian", 1), ("curved", 2), ("spline", 2), ("pupil and spline", 2)],
)
def test_a_file_has_the_least_version_that_holds_it(kind: str, version: int) -> None:
    with h5py.File(io.BytesIO(KINDS[kind].to_bytes()), "r") as file:
        assert file.attrs["version"] == version
        assert file.attrs["hash"] == KINDS[kind].hash


SPLINE_DAMAGE: dict[str, Callable[[h5py.File], None]] = {
    "no coefficients": lambda f: f["spline"].__delitem__("coefficients"),
    "coefficients are nan": replaced("spline", "coefficients", np.full((4, 6, 8, 64), np.nan)),
    "63 powers": replaced("spline", "coefficients", np.zeros((4, 6, 8, 63))),
    "coefficients flat": replaced("spline", "coefficients", np.zeros(100)),
    "too wide": replaced("spline", "coefficients", np.zeros((4, 32, 32, 64))),
    "no step": lambda f: f["spline"].attrs.__delitem__("z_step_nm"),
    "no centre": lambda f: f["spline"].attrs.__delitem__("centre"),
    "step is nan": lambda f: f["spline"].attrs.modify("z_step_nm", np.nan),
    "centre outside": lambda f: f["spline"].attrs.create("centre", [3.0, 9.0]),
    "centre of three": lambda f: f["spline"].attrs.create("centre", [3.0, 3.0, 3.0]),
    "half a sample": lambda f: f["spline"].attrs.create("samples_per_px", 1.5),
    "unknown field": lambda f: f["spline"].attrs.create("colour", 1.0),
    "another pixel": lambda f: f["spline"].attrs.modify("pixel_nm", 0.11),
    "one value changed": lambda f: f["spline"]["coefficients"].__setitem__((0, 0, 0, 0), 0.5),
}


@pytest.mark.parametrize("damage", SPLINE_DAMAGE)
def test_damaged_splines_are_rejected_and_named(damage: str) -> None:
    with pytest.raises(InputRejected, match=r"broken\.psf\.h5"):
        Calibration.from_bytes(changed("spline", SPLINE_DAMAGE[damage]), name="broken.psf.h5")


def test_a_spline_calibration_renders_its_spline() -> None:
    import torch

    position = np.array([[500.0, 420.0, 333.0]])
    images = KINDS["spline"].psf().images(torch.tensor(position), (9, 9)).numpy()
    np.testing.assert_allclose(images, SPLINE.images(position, (9, 9)), atol=1e-8)
    assert images.max() > 0.005


def pair() -> PairCalibration:
    transform = Transform.affine([[1.0, 0.02], [-0.02, 1.0]], (150.0, -80.0))
    first = replace(KINDS["pupil"], z_range_nm=(0.0, 900.0))
    return PairCalibration(first, KINDS["spline"], transform, 0.8, {"made_by": "tests"})


def test_a_pair_keeps_both_channels_the_transform_and_the_ratio(tmp_path: Path) -> None:
    one = pair()
    save_calibration(tmp_path / "pair.psf.h5", one)
    other = load_channels(tmp_path / "pair.psf.h5")
    assert isinstance(other, PairCalibration)
    for before, after in zip(one.channels, other.channels, strict=True):
        assert_same(before, after)
    assert (other.photon_ratio, other.z_range_nm) == (0.8, (0.0, 900.0))
    assert other.transform.apply([[100.0, 200.0]])[0] == pytest.approx([254.0, 118.0])
    assert other.hash == one.hash
    assert KINDS["pupil"].channels == (KINDS["pupil"],)
    assert replace(one, photon_ratio=0.81).hash != one.hash
    assert replace(one, transform=Transform.identity()).hash != one.hash


def test_one_channel_is_not_taken_for_two_nor_two_for_one(tmp_path: Path) -> None:
    save_calibration(tmp_path / "pair.psf.h5", pair())
    with pytest.raises(InputRejected, match="pair of channels"):
        load_calibration(tmp_path / "pair.psf.h5")
    with pytest.raises(InputRejected, match="pair of channels"):
        Calibration.from_bytes(pair().to_bytes())
    with pytest.raises(InputRejected, match="smlm-bridge join"):
        PairCalibration.from_bytes(KINDS["pupil"].to_bytes())


PAIR_DAMAGE: dict[str, Callable[[h5py.File], None]] = {
    "no second channel": lambda f: f.__delitem__("channel2"),
    "no transform": lambda f: f.attrs.__delitem__("transform"),
    "transform in pixels": lambda f: f.attrs.create("transform", f.attrs["transform"].replace("nm", "px")),
    "transform is a number": lambda f: f.attrs.create("transform", 1.0),
    "no ratio": lambda f: f.attrs.__delitem__("photon_ratio"),
    "ratio is nan": lambda f: f.attrs.modify("photon_ratio", np.nan),
    "ratio is 0": lambda f: f.attrs.modify("photon_ratio", 0.0),
    "another ratio": lambda f: f.attrs.modify("photon_ratio", 0.9),
    "three channels": lambda f: f.create_group("channel3"),
    "no common heights": lambda f: f["channel1"].attrs.create("z_range_nm", [2000.0, 3000.0]),
    "damage in a channel": lambda f: f["channel1"]["optics"].attrs.modify("pixel_nm", 0.11),
}


@pytest.mark.parametrize("damage", PAIR_DAMAGE)
def test_damaged_pairs_are_rejected_and_named(damage: str) -> None:
    buffer = io.BytesIO(pair().to_bytes())
    with h5py.File(buffer, "r+") as file:
        PAIR_DAMAGE[damage](file)
    with pytest.raises(InputRejected, match=r"broken\.psf\.h5"):
        read_calibration(buffer.getvalue(), name="broken.psf.h5")


def test_a_rotated_gaussian_turns_as_in_thunderstorm() -> None:
    import torch

    widths, angle = Gaussian((100.0, 200.0), angle_rad=0.4), 0.4
    psf = Calibration(OPTICS, gaussian=widths).psf()
    position = torch.tensor([[1120.0, 1060.0, 0.0]], dtype=torch.float64)
    image = psf.images(position, (20, 20))[0].numpy()
    sub = (np.arange(20 * 100) + 0.5) * 1.1  # 100 x 100 points in every pixel
    x, y = sub[None] - 1120.0, sub[:, None] - 1060.0
    first, second = x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)
    fine = np.exp(-0.5 * ((first / 100) ** 2 + (second / 200) ** 2)) / (2 * np.pi * 100 * 200)
    expected = fine.reshape(20, 100, 20, 100).sum(axis=(1, 3)) * 1.1**2
    np.testing.assert_allclose(image, expected, atol=1e-4 * expected.max())
    turned = Calibration(OPTICS, gaussian=replace(widths, angle_rad=1e-9)).psf().images(position, (20, 20))
    plain = Calibration(OPTICS, gaussian=replace(widths, angle_rad=0.0)).psf().images(position, (20, 20))
    torch.testing.assert_close(turned, plain, atol=2e-5, rtol=0)
