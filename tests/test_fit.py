"""Maximum-likelihood fits: they reach the bound, whatever the PSF, the camera and the number of channels."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import erf

from smlm_bridge.camera import Camera
from smlm_bridge.errors import InputRejected
from smlm_bridge.fit import (
    AstigmaticSpot,
    Channels,
    FitOptions,
    FitResult,
    Spot,
    Status,
    fit_boxes,
)
from smlm_bridge.locs import validate
from smlm_bridge.optics.gaussian import Gaussian
from smlm_bridge.psf.cubic_spline import CubicSpline
from smlm_bridge.transform import Transform

PIXEL = 100.0
WIDTHS = Gaussian((130.0, 140.0), (-200.0, 200.0), (350.0, 350.0))
LENS = AstigmaticSpot(WIDTHS, PIXEL, (-800.0, 800.0))
ROUND = Gaussian((130.0, 130.0), (0.0, 0.0), (350.0, 350.0))
EMITTERS = 1500
Floats = NDArray[np.float64]


def images(xyz_nm: Floats, side: int, gaussian: Gaussian = WIDTHS) -> Floats:
    """Fractions of integrated Gaussians, by another way than the package's: scipy's erf."""
    width = gaussian.widths_nm(xyz_nm[:, 2])
    edges = np.arange(side + 1) * PIXEL
    along = [
        0.5 * np.diff(erf((edges - xyz_nm[:, a, None]) / (np.sqrt(2) * width[:, a, None])), axis=1)
        for a in (0, 1)
    ]
    return along[1][:, :, None] * along[0][:, None, :]


def positions(count: int, side: int, *, z_nm: tuple[float, float] = (-500, 500), seed: int = 0) -> Floats:
    draw = np.random.default_rng(seed)
    xy = (side / 2 + draw.uniform(-0.5, 0.5, (count, 2))) * PIXEL
    return np.column_stack([xy, draw.uniform(*z_nm, count)])


def corners(count: int) -> NDArray[np.int64]:
    return np.zeros((count, 2), np.int64)


def pulls(result: FitResult, truth: Floats) -> Floats:
    """(N, P) errors over the reported bounds."""
    return (result.values - truth) / result.bounds


def assert_at_the_bound(result: FitResult, truth: Floats, *, within: float = 0.08) -> None:
    assert result.ok.mean() > 0.99
    pull = pulls(result, truth)[result.ok]
    np.testing.assert_allclose(pull.std(0), 1.0, atol=within)
    np.testing.assert_array_less(np.abs(pull.mean(0)), 0.15)


def lens_boxes(seed: int = 1, photons: float = 2000.0, side: int = 11) -> tuple[Floats, Floats]:
    xyz = positions(EMITTERS, side, seed=seed)
    mean = photons * images(xyz, side) + 10
    truth = np.column_stack([xyz, np.full(EMITTERS, photons), np.full(EMITTERS, 10.0)])
    return np.random.default_rng(seed).poisson(mean).astype(float), truth


def test_two_dimensions_reach_the_bound() -> None:
    flat = Gaussian((130.0, 130.0))
    xyz = positions(EMITTERS, 7)
    boxes = np.random.default_rng(0).poisson(1000 * images(xyz, 7, flat) + 10).astype(float)
    result = fit_boxes(boxes, corners(EMITTERS), Spot(110.0, PIXEL))
    assert result.names == ("x_nm", "y_nm", "psf_sigma_nm", "photons", "background")
    numbers = np.full((EMITTERS, 3), [130.0, 1000.0, 10.0])
    assert_at_the_bound(result, np.column_stack([xyz[:, :2], numbers]))
    held = fit_boxes(boxes, corners(EMITTERS), Spot(130.0, PIXEL, free=False))
    assert held.names == ("x_nm", "y_nm", "photons", "background")
    assert (held.bound("photons") < result.bound("photons")).all()
    assert_at_the_bound(held, np.column_stack([xyz[:, :2], numbers[:, 1:]]))


def test_astigmatism_reaches_the_bound_and_chi2_is_fair() -> None:
    boxes, truth = lens_boxes()
    result = fit_boxes(boxes, corners(EMITTERS), LENS)
    assert_at_the_bound(result, truth)
    share = np.histogram(result.p_value, 5, (0, 1))[0] / EMITTERS
    np.testing.assert_allclose(share, 0.2, atol=0.05)
    assert not result.ambiguous.any()


def test_the_bound_is_that_of_crlb() -> None:
    torch = pytest.importorskip("torch")
    from smlm_bridge.crlb import crlb
    from smlm_bridge.psf.gaussian import GaussianPSF

    boxes, _ = lens_boxes()
    camera = Camera(read_noise_e=1.6)
    result = fit_boxes(boxes[:50], corners(50), LENS, camera=camera)
    psf = GaussianPSF(WIDTHS, PIXEL)
    at = torch.as_tensor(result.values)
    wanted = crlb(psf, camera, at[:, :3], at[:, 3], at[:, 4], shape=(11, 11)).numpy()
    # The bound is taken at the last step but one, a hundredth of itself away.
    np.testing.assert_allclose(result.bounds, wanted, rtol=0.03)


def test_derivatives_are_finite_differences_of_the_likelihood() -> None:
    """At the fit no direction improves the likelihood: each parameter moved by its bound costs 1/2."""
    boxes, _ = lens_boxes()
    options = FitOptions(tolerance=1e-8)
    result = fit_boxes(boxes[:20], corners(20), LENS, options=options)

    def minus(values: Floats) -> Floats:
        mean = values[:, 3, None, None] * images(values[:, :3], 11) + values[:, 4, None, None]
        return (mean - boxes[:20] * np.log(mean)).sum(axis=(1, 2))

    least = minus(result.values)
    for k in range(5):
        for sign in (-1, 1):
            moved = result.values.copy()
            moved[:, k] += sign * 0.1 * result.bounds[:, k]
            assert (minus(moved) > least).all()


@pytest.mark.parametrize("gaussian", [
    dataclasses.replace(WIDTHS, third=(0.1, -0.1), fourth=(0.05, 0.02)),
    dataclasses.replace(WIDTHS, curve="polynomial", third=(0.05, -0.05)),
], ids=["higher-orders", "polynomial"])  # fmt: skip
def test_other_curves_of_widths(gaussian: Gaussian) -> None:
    xyz = positions(300, 13)
    boxes = 5000 * images(xyz, 13, gaussian) + 10
    result = fit_boxes(boxes, corners(300), dataclasses.replace(LENS, gaussian=gaussian))
    np.testing.assert_allclose(result.values[:, :3], xyz, atol=0.5)


def test_read_noise_maps_belong_to_their_pixels() -> None:
    boxes, truth = lens_boxes(seed=3)
    draw = np.random.default_rng(5)
    noise = draw.uniform(0.5, 6.0, (31, 41)).astype(np.float32)
    places = np.column_stack([draw.integers(0, 21, EMITTERS), draw.integers(0, 31, EMITTERS)])
    cut = np.stack([noise[r : r + 11, c : c + 11] for r, c in places])
    noisy = boxes + draw.normal(size=boxes.shape) * cut
    shifted = truth.copy()
    shifted[:, :2] += places[:, ::-1] * PIXEL
    result = fit_boxes(noisy, places, LENS, camera=Camera(read_noise_e=noise))
    assert_at_the_bound(result, shifted)
    turned = fit_boxes(noisy, places, LENS, camera=Camera(read_noise_e=noise[::-1, ::-1].copy()))
    assert turned.p_value.mean() < 0.3 or turned.p_value.std() > result.p_value.std() + 0.05
    with pytest.raises(InputRejected, match="beyond the camera's read noise map"):
        fit_boxes(noisy, places, LENS, camera=Camera(read_noise_e=noise[:20]))


def test_electron_multiplication() -> None:
    boxes, truth = lens_boxes(seed=4)
    draw = np.random.default_rng(6)
    multiplied = np.where(boxes > 0, draw.gamma(np.maximum(boxes, 1)), 0.0)
    result = fit_boxes(multiplied, corners(EMITTERS), LENS, camera=Camera(em_gain=300.0))
    assert_at_the_bound(result, truth, within=0.1)
    share = np.histogram(result.p_value, 5, (0, 1))[0] / EMITTERS
    np.testing.assert_allclose(share, 0.2, atol=0.06)
    plain = fit_boxes(boxes, corners(EMITTERS), LENS)
    ratio = result.bound("x_nm").mean() / plain.bound("x_nm").mean()
    assert ratio == pytest.approx(np.sqrt(2), rel=0.03)


def spline() -> CubicSpline:
    """The astigmatic Gaussian as a table of two samples a pixel."""
    size, step = 19, 2
    heights = np.arange(-800.0, 801.0, 50.0)
    stack = np.empty((len(heights), step * size, step * size))
    for a in range(step):
        for b in range(step):
            middle = np.array([(size / 2 - b / step) * PIXEL, (size / 2 - a / step) * PIXEL])
            xyz = np.column_stack([np.tile(middle, (len(heights), 1)), heights])
            stack[:, a::step, b::step] = images(xyz, size)
    centre = (size / 2 - 0.5) * step
    return CubicSpline.of_stack(
        stack, pixel_nm=PIXEL, z_first_nm=-800.0, z_step_nm=50.0, centre=(centre, centre), samples_per_px=step
    )


def test_a_spline_is_as_good_as_what_it_was_made_of() -> None:
    table = spline()
    xyz = positions(200, 11)
    np.testing.assert_allclose(table.images(xyz, (11, 11)), images(xyz, 11), atol=3e-4)
    boxes, truth = lens_boxes()
    result = fit_boxes(boxes, corners(EMITTERS), table)
    assert_at_the_bound(result, truth)
    gaussian = fit_boxes(boxes, corners(EMITTERS), LENS)
    # Near the edge of the range a few end in another basin with either.
    same = result.ok & gaussian.ok
    difference = np.abs(result.values - gaussian.values)[same] / gaussian.bounds[same]
    assert np.quantile(difference, 0.99) < 0.05


def test_threads_do_not_change_the_result() -> None:
    boxes, _ = lens_boxes()
    one = fit_boxes(boxes[:101], corners(101), LENS)
    two = fit_boxes(boxes[:101], corners(101), LENS, options=FitOptions(threads=2))
    np.testing.assert_array_equal(one.values, two.values)


def test_both_sides_of_a_symmetric_focus_are_reported() -> None:
    xyz = positions(200, 11, z_nm=(300, 500))
    boxes = np.random.default_rng(0).poisson(3000 * images(xyz, 11, ROUND) + 10).astype(float)
    result = fit_boxes(boxes, corners(200), dataclasses.replace(LENS, gaussian=ROUND))
    assert result.ambiguous.mean() > 0.95
    both = result.ambiguous
    np.testing.assert_allclose(result.other[both, 2], -result["z_nm"][both], atol=40)
    table = result.table()
    np.testing.assert_allclose(table["other_z_nm"][both], result.other[both, 2])
    # One side is a little likelier by chance only.
    assert (np.abs(result.log_likelihood - result.other_log_likelihood)[both] < 0.5).all()


def test_no_flips_that_the_data_rule_out() -> None:
    """From every start the likeliest: none is worse than the fit that began at the truth."""
    boxes, truth = lens_boxes(photons=700.0)
    free = fit_boxes(boxes, corners(EMITTERS), LENS)
    told = fit_boxes(boxes, corners(EMITTERS), LENS, start=truth)
    assert (free.log_likelihood > told.log_likelihood - 0.01).all()


def test_a_wrong_start_flips() -> None:
    xyz = positions(300, 11, z_nm=(250, 350))
    boxes = np.random.default_rng(0).poisson(3000 * images(xyz, 11, ROUND) + 10).astype(float)
    lens = dataclasses.replace(LENS, gaussian=ROUND)
    wrong = xyz * [1, 1, -1]
    flipped = fit_boxes(boxes, corners(300), lens, start=wrong)
    right = fit_boxes(boxes, corners(300), lens, start=xyz)
    assert (flipped["z_nm"] < 0).mean() > 0.95
    assert (right["z_nm"] > 0).mean() > 0.95


TURNED = Transform.affine([[1.01, 0.03], [-0.03, 0.99]], [330.0, -220.0])


def two_channels(count: int) -> tuple[Floats, NDArray[np.int64], Floats, Channels]:
    """Biplane boxes, their corners, the truth, and what they are fitted with."""
    near, far = (dataclasses.replace(ROUND, focus_nm=(f, f)) for f in (-250.0, 250.0))
    xyz = positions(count, 11)
    places = np.full((count, 2, 2), 40)
    xyz[:, :2] += 40 * PIXEL
    there = TURNED.apply(xyz[:, :2])
    places[:, 1] = np.round(there / PIXEL - 5.5)[:, ::-1]
    inside = [
        np.column_stack([p - places[:, c, ::-1] * PIXEL, xyz[:, 2]])
        for c, p in enumerate((xyz[:, :2], there))
    ]
    means = [1200 * images(inside[0], 11, near) + 10, 800 * images(inside[1], 11, far) + 15]
    boxes = np.random.default_rng(2).poisson(np.stack(means, axis=1)).astype(float)
    truth = np.column_stack([xyz, np.full((count, 3), [2000.0, 10.0, 15.0])])
    lenses = tuple(AstigmaticSpot(g, PIXEL, (-800.0, 800.0)) for g in (near, far))
    return boxes, places, truth, Channels((lenses[0], lenses[1]), TURNED, 800 / 1200)


def test_two_channels() -> None:
    boxes, places, truth, pair = two_channels(EMITTERS)
    result = fit_boxes(boxes, places, pair)
    assert result.names[-2:] == ("background", "background2")
    assert_at_the_bound(result, truth)
    alone = fit_boxes(boxes[:, 0], places[:, 0], pair.psfs[0])
    # One plane of a symmetric lens cannot tell the sides of its focus apart; two planes can.
    assert alone.ambiguous.mean() > 0.3 > 0.01 > result.ambiguous.mean()


def test_what_goes_wrong_has_a_status_and_a_message() -> None:
    draw = np.random.default_rng(0)
    dark = draw.poisson(10, (20, 11, 11)).astype(float)
    edge = np.random.default_rng(1).poisson(
        3000 * images(np.array([[550.0, 550.0, 1100.0]]), 11) + 10
    ).astype(float)  # fmt: skip
    away = np.random.default_rng(1).poisson(3000 * images(np.array([[-40.0, 550.0, 0.0]]), 11) + 10)
    empty = np.zeros((1, 11, 11))
    result = fit_boxes(np.concatenate([edge, away, empty, dark]), corners(23), LENS)
    assert result.status[0] == Status.Z_EDGE
    assert result.status[1] == Status.LEFT_BOX
    assert result.status[2] != Status.CONVERGED
    assert "edge of the range" in result.messages[0]
    assert np.isfinite(result.values).all()
    hasty = FitOptions(iterations=1, z_starts=1)
    loose = fit_boxes(lens_boxes()[0][:1], corners(1), LENS, options=hasty)
    assert loose.status[0] == Status.LIMITED


def test_two_emitters_in_a_box_have_a_small_p() -> None:
    boxes, _ = lens_boxes()
    one = fit_boxes(boxes[:200], corners(200), LENS)
    draw = np.random.default_rng(0)
    second = images(positions(200, 11, seed=8) + np.array([250.0, 150.0, 0.0]), 11)
    two = fit_boxes(boxes[:200] + draw.poisson(2000 * second), corners(200), LENS)
    assert (two.p_value < 0.01).mean() > 0.95 > (one.p_value < 0.01).mean()


def test_the_table_is_one_of_localizations() -> None:
    boxes, _ = lens_boxes()
    result = fit_boxes(boxes[:5], np.full((5, 2), 7), LENS)
    table = validate(result.table(np.arange(5)))
    assert list(table["frame"]) == [0, 1, 2, 3, 4]
    assert table["uncertainty_z_nm"].to_numpy() == pytest.approx(result.bound("z_nm"))
    assert (table["x_nm"] > 7 * PIXEL).all()
    none = fit_boxes(boxes[:0], np.zeros((0, 2)), LENS).table()
    assert list(none.columns) == list(table.columns)
    with pytest.raises(InputRejected, match="one frame a box"):
        result.table(np.zeros(3, np.int64))
    with pytest.raises(InputRejected, match="no parameter 'z'"):
        result["z"]


def boxes_with(value: float) -> Floats:
    boxes = np.full((2, 7, 7), 10.0)
    boxes[1, 2, 3] = value
    return boxes


REFUSED: dict[str, tuple[Any, str]] = {
    "nan": (lambda: fit_boxes(boxes_with(np.nan), corners(2), LENS), "box 1 .* not finite"),
    "corners": (lambda: fit_boxes(boxes_with(1), corners(3), LENS), "one a box"),
    "shape": (lambda: fit_boxes(np.ones((2, 7, 8)), corners(2), LENS), "boxes of 1 channel"),
    "small": (lambda: fit_boxes(np.ones((2, 2, 2)), corners(2), LENS), "too small"),
    "start": (lambda: fit_boxes(boxes_with(1), corners(2), LENS, start=np.ones((2, 2))), "start is"),
    "range": (lambda: FitOptions(z_range_nm=(5.0, 5.0)), "lower first"),
    "tolerance": (lambda: FitOptions(tolerance=0.0), "tolerance"),
    "ambiguous": (lambda: FitOptions(ambiguous_within=-1.0), "negative"),
    "starts": (lambda: FitOptions(z_starts=0), "z_starts"),
    "tilt": (lambda: FitOptions(zernike=(3,)), "Noll 1 to 3"),
    "spot": (lambda: Spot(0.0, PIXEL), "above 0"),
    "heights": (lambda: AstigmaticSpot(WIDTHS, PIXEL, (1.0, 0.0)), "lower first"),
    "pixels": (lambda: Channels((Spot(1.0, 1.0), Spot(1.0, 2.0)), TURNED), "must be the same"),
    "ratio": (lambda: Channels((LENS, LENS), TURNED, 0.0), "photon_ratio"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str) -> None:
    call, words = REFUSED[case]
    with pytest.raises(InputRejected, match=words):
        call()
