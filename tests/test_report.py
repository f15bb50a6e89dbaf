"""Pages are well-formed, self-contained and escaped; pictures are PNGs of the right size."""

import io
import subprocess
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from smlm_bridge.calibration import Calibration
from smlm_bridge.errors import InputRejected
from smlm_bridge.locs import empty
from smlm_bridge.optics.microscope import Optics
from smlm_bridge.optics.pupil import Pupil
from smlm_bridge.report import calibration_page, crlb_plot_png, localization_page, preview_png
from smlm_bridge.report.bead_figures import slice_correlation
from smlm_bridge.report.figures import new_figure, round_length, to_png
from smlm_bridge.report.preview import shown_z_range
from smlm_bridge.report.pupil_figures import zernike_name

VOID = {"meta", "img", "br", "link", "input", "hr"}
EVIL = '<script src="http://x.example/x.js">alert(1)</script> $x_1$ & "q"'


class Reader(HTMLParser):
    """Checks nesting, collects text, tags and every reference to something outside."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text, self.outside, self.alts = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in {"src", "href", "data", "action"} and not value.startswith("data:image/png;base64,"):
                self.outside.append(value)
            if name == "alt":
                self.alts.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(page):
    assert page.startswith("<!DOCTYPE html>")
    assert len(page.encode()) < 3_000_000
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    assert reader.outside == []
    assert "url(" not in page
    assert "@import" not in page
    assert not {"script", "link", "iframe"} & set(reader.tags)
    return reader


def size(png):
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    with Image.open(io.BytesIO(png)) as image:
        image.verify()
        return image.size


def table(n=300, frames=30, seed=0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "frame": rng.integers(0, frames, n),
            "x_nm": rng.uniform(0, 6400, n),
            "y_nm": rng.uniform(0, 3200, n),
            "z_nm": rng.uniform(-500, 700, n),
            "photons": rng.gamma(3, 500, n),
            "background": rng.normal(20, 1, n),
            "uncertainty_xy_nm": rng.gamma(5, 3, n),
            "uncertainty_z_nm": np.where(rng.random(n) < 0.1, np.nan, rng.gamma(5, 6, n)),
            "probability": rng.uniform(0.5, 1, n),
        }
    )


FIELD = {"frame_shape": (32, 64), "pixel_nm": 100.0}
FRAME = np.random.default_rng(1).poisson(100, (32, 64)).astype(np.uint16)
ALL_COLUMNS = tuple(table().columns)


@pytest.mark.parametrize(
    "locs",
    [
        table(),
        table().drop(columns=["z_nm", "uncertainty_z_nm"]),
        table()[["frame", "x_nm", "y_nm"]],
        table(n=1),
        empty(ALL_COLUMNS),
        table().assign(photons=5.0, z_nm=0.0, uncertainty_xy_nm=np.nan),
        table().assign(frame=lambda t: t["frame"] * 1000),
    ],
    ids=["3-D", "2-D", "bare", "one row", "empty 3-D", "constant", "long movie"],
)
def test_localization_page_is_whole(locs):
    reader = read(localization_page(locs, **FIELD, title="run", example_frame=FRAME))
    assert reader.tags.count("img") == 4
    assert all(reader.alts)


def test_localization_page_says_what_happened():
    failed = {frame: f"reason {frame}" for frame in range(40, 65)}
    page = localization_page(
        table(), **FIELD, title="run", failed_frames=failed, provenance={"model": "m.onnx", "seed": None}
    )
    text = " ".join(read(page).text)
    assert "300 localizations in 65 frames" in text
    assert "25 frames failed" in text
    assert "reason 40" in text  # the first one, listed as frame 41 of the file
    assert "… and 5 more" in text
    assert "m.onnx" in text
    assert page.count("<img") == 3  # no example frame was given
    median = f"{np.median(table()['photons']):.4g}"
    assert median in text


def test_localization_page_warns_of_an_empty_table():
    text = " ".join(read(localization_page(empty(), **FIELD, title="run", n_frames=7)).text)
    assert "0 localizations in 7 frames" in text
    assert "No localization was found" in text


def test_every_text_of_a_localization_page_is_escaped():
    page = localization_page(
        table(), **FIELD, title=EVIL, failed_frames={0: EVIL}, provenance={EVIL: {EVIL: [EVIL]}}
    )
    reader = read(page)
    assert "".join(reader.text).count(EVIL) == 6  # title twice, reason, key, inner key, inner value


def test_a_page_with_noise_everywhere_stays_small():
    rng = np.random.default_rng(2)
    n = 100_000
    locs = pd.DataFrame(
        {
            "frame": np.arange(n) % 50,
            "x_nm": rng.uniform(0, 60_000, n),
            "y_nm": rng.uniform(0, 60_000, n),
            "z_nm": rng.uniform(0, 4000, n),
        }
    )
    frame = rng.integers(0, 2**16, (600, 600))
    read(localization_page(locs, frame_shape=(600, 600), pixel_nm=100, title="noise", example_frame=frame))


def fake_retrieval(z=12, size=33, pupil=True, **changes):
    rng = np.random.default_rng(3)
    y, x = np.indices((size, size)) - size // 2
    width = 2 + np.abs(np.arange(z) - z / 2)[:, None, None] / 3
    model = (1000 * np.exp(-(x**2 + y**2) / (2 * width**2)) / width**2 + 20).astype(np.float32)
    stack = rng.poisson(model).astype(np.uint16)
    optics = Optics(1.4, 1.518, 1.33, 600, 100)
    shape = Pupil.flat(32, {5: 0.4, 11: -0.2})
    values = {
        "calibration": Calibration(optics, pupil=shape, blur_nm=60, provenance={"stack": EVIL}),
        "model_stack": model,
        "residual": model - stack,
        "rrse": 0.1,
        "mean_slice_correlation": 0.98,
        "held_out": {"rrse": 0.11, "mean_slice_correlation": 0.97},
        "log_likelihood": -1234.5,
        "photons": rng.uniform(4000, 6000, z),
        "background": rng.uniform(19, 21, z),
        "bead_xyz_nm": (1650.0, 1650.0, 50.0),
        "focus_nm": np.arange(z) * -100.0 + 600,
        "zernike_rad": {5: 0.4, 11: -0.2},
        "twin": {
            "rrse": 0.12,
            "mean_slice_correlation": 0.96,
            "chosen": {"rrse": 0.1, "mean_slice_correlation": 0.98},
            "log_likelihood_difference": 50.0,
        },
        "analysers": {"none": -1234.5, "90": -1300.0},
        "warnings": (EVIL,),
        "seconds": 12.0,
        "beads": (),
        "uncertainty": None,
    }
    return SimpleNamespace(**(values | changes)), stack


CRLB = pd.DataFrame(
    {
        "z_nm": [0.0, 500, 1000],
        "sigma_x_nm": [5.0, 6, 9],
        "sigma_y_nm": [9.0, 6, 5],
        "sigma_z_nm": [20.0, 15, 22],
    }
)


def test_calibration_page_is_whole():
    retrieval, stack = fake_retrieval()
    reader = read(calibration_page(retrieval, stack, title=EVIL, crlb=CRLB))
    text = "".join(reader.text)
    assert reader.tags.count("img") == 6
    assert text.count(EVIL) == 4  # title twice, the warning, the provenance
    assert "out of the sample: from 600 to -500 nm" in text
    assert "steps of -100 nm" in text
    assert "fits slightly better" not in text


def test_calibration_page_of_two_slices_with_a_better_twin_and_no_bound():
    twin = fake_retrieval()[0].twin | {"log_likelihood_difference": -5.0}
    retrieval, stack = fake_retrieval(z=2, twin=twin, held_out=None, warnings=())
    reader = read(calibration_page(retrieval, stack, title="bead"))
    assert reader.tags.count("img") == 5
    text = "".join(reader.text)
    assert "mirrored solution fits slightly better" in text
    assert "all slices were fitted" in text


def test_calibration_page_lists_beads_and_what_stays_uncertain():
    from smlm_bridge.retrieve.result import BeadFit, Uncertainty

    beads = (
        BeadFit(0, 1650.4, 1700.0, 0.0, (20.0, -3.0), 5000.0, 0.1, 0.9876),
        BeadFit(1, 900.0, 800.0, rejected=EVIL),
    )
    doubt = Uncertainty((5, 11), np.diag([0.01**2, 0.02**2]), 1.25, 0.61, -0.3)
    twin = fake_retrieval()[0].twin | {"told_apart": False, "zernike_rad": {5: -0.4, 11: 0.2}}
    retrieval, stack = fake_retrieval(beads=beads, uncertainty=doubt, twin=twin, warnings=())
    text = "".join(read(calibration_page(retrieval, stack, title="field")).text)
    assert f"set aside: {EVIL}" in text
    assert all(part in text for part in ("+20, -3", "0.9876", "+0.61", "-0.30", "1.2 nm"))
    assert "cannot tell the two apart" in text
    assert "Z5 -0.40" in text


def test_calibration_page_of_a_gaussian_has_no_pupil():
    from smlm_bridge.optics.gaussian import Gaussian

    optics = Optics(1.4, 1.518, 1.33, 600, 100)
    gaussian = Calibration(optics, gaussian=Gaussian((120.0, 120.0)))
    reader = read(calibration_page(*fake_retrieval(calibration=gaussian, zernike_rad={}, twin={}), title="G"))
    assert reader.tags.count("img") == 3


def test_calibration_page_refuses_another_stack():
    retrieval, stack = fake_retrieval()
    with pytest.raises(InputRejected, match="differ in shape"):
        calibration_page(retrieval, stack[1:], title="bead")


def test_slice_correlation_is_pearsons():
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=(2, 3, 8, 8)).astype(np.float32)
    b[2] = 1.0
    found = slice_correlation(a, b)
    wanted = [np.corrcoef(a[i].ravel(), b[i].ravel())[0, 1] for i in (0, 1)]
    np.testing.assert_allclose(found[:2], wanted, rtol=1e-6)
    assert found[2] == 0


def test_preview_shows_the_first_frame_only_beside_few_localizations():
    beside = size(preview_png(table(frames=3), **FIELD, first_frame=FRAME))
    alone = size(preview_png(table(frames=30), **FIELD, first_frame=FRAME))
    assert beside[0] * beside[1] > 1.5 * alone[0] * alone[1]


@pytest.mark.parametrize(
    "locs", [table().drop(columns="z_nm"), empty(), empty(ALL_COLUMNS)], ids=["2-D", "empty", "empty 3-D"]
)
def test_preview_of_tables_without_z_or_rows(locs):
    width, height = size(preview_png(locs, **FIELD, first_frame=FRAME))
    assert min(width, height) > 200


def test_preview_shows_localizations_where_they_are():
    # One localization in the lower left quarter of a square field; the region starts at pixel (10, 20).
    locs = pd.DataFrame({"frame": [0], "x_nm": [1000.0 + 800], "y_nm": [2000.0 + 2400]})
    png = preview_png(locs, frame_shape=(32, 32), pixel_nm=100, origin_px=(10, 20))
    with Image.open(io.BytesIO(png)) as image:
        grey = np.asarray(image.convert("L"), dtype=float)
    black = grey < 5
    rows, columns = np.flatnonzero(black.mean(1) > 0.5), np.flatnonzero(black.mean(0) > 0.5)
    inside = grey[rows[5] : rows[-5], columns[5] : columns[-5]]
    inside[int(0.88 * len(inside)) :, inside.shape[1] // 2 :] = 0  # the scale bar
    y, x = np.unravel_index(inside.argmax(), inside.shape)
    assert inside.max() > 200
    np.testing.assert_allclose((x / inside.shape[1], y / inside.shape[0]), (0.25, 0.75), atol=0.02)


def test_scale_of_z_has_round_ends_around_the_bulk():
    locs = table(n=5000).assign(z_nm=lambda t: t["z_nm"] + 0.123)
    low, high = shown_z_range(locs)
    assert (low, high) == (-500, 700)
    assert shown_z_range(locs.drop(columns="z_nm")) is None
    assert shown_z_range(locs[:0]) is None


@pytest.mark.parametrize(
    ("length", "wanted"),
    [(1, 1), (1.99, 1), (2, 2), (49, 20), (50, 50), (999, 500), (9444, 5000), (0.3, 0.2)],
)
def test_round_lengths(length, wanted):
    assert round_length(length) == pytest.approx(wanted)


def test_crlb_plot_over_photons():
    several = pd.concat(
        [CRLB.assign(photons=n, sigma_x_nm=CRLB["sigma_x_nm"] / n**0.5) for n in range(100, 1100, 100)]
    )
    assert size(crlb_plot_png(several))[0] > 1000
    assert size(crlb_plot_png(several[several["z_nm"] == CRLB["z_nm"][0]]))[0] > 1000
    assert size(crlb_plot_png(CRLB.assign(photons=500.0)))[0] < 1000


def test_crlb_plot():
    assert size(crlb_plot_png(CRLB))[0] > 600
    assert size(crlb_plot_png(CRLB[:1]))[0] > 600
    assert size(crlb_plot_png(CRLB.assign(sigma_z_nm=[20.0, 15.0, 5000.0])))[0] > 600
    with pytest.raises(InputRejected, match="sigma_z_nm"):
        crlb_plot_png(CRLB.drop(columns="sigma_z_nm"))


@pytest.mark.parametrize(
    ("noll", "name"),
    [
        (4, "4 defocus"),
        (5, "5 astigmatism sin"),
        (8, "8 coma cos"),
        (9, "9 trefoil sin"),
        (11, "11 spherical"),
        (12, "12 2nd astigmatism cos"),
        (22, "22 2nd spherical"),
        (37, "37 3rd spherical"),
    ],
)
def test_names_of_zernike_polynomials(noll, name):
    assert zernike_name(noll) == name


def test_pictures_are_reproducible_and_shrink_to_fit():
    def picture(max_bytes=None):
        figure = new_figure(3, 3)
        figure.add_subplot().imshow(np.random.default_rng(0).random((300, 300)))
        return to_png(figure, max_bytes=max_bytes)

    whole = picture()
    assert whole == picture()
    assert len(picture(len(whole) // 2)) <= len(whole) // 2


def test_report_leaves_pyplot_and_torch_alone():
    code = (
        "import sys, smlm_bridge.report; "
        "bad = {'matplotlib.pyplot', 'torch'} & set(sys.modules); sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
