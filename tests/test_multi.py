"""Several emitters at once: derivatives, the bound, emitters added and removed."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from smlm_bridge.calibration import Calibration
from smlm_bridge.camera import Camera
from smlm_bridge.crlb import crlb
from smlm_bridge.errors import InputRejected
from smlm_bridge.frames import Work
from smlm_bridge.multi.background import smooth, smoothed
from smlm_bridge.multi.frame import Refiner
from smlm_bridge.multi.group import Box, Emitters, GroupFit, GroupProblem, Prior
from smlm_bridge.multi.options import RefineOptions
from smlm_bridge.multi.stamps import ORDERS, Stamps
from smlm_bridge.multi.work import refined, refiner_of
from smlm_bridge.optics.microscope import Optics
from smlm_bridge.optics.pupil import Pupil
from smlm_bridge.psf.spline import SplinePSF

Z = (-400.0, 400.0)
PIXEL = 110.0
BACKGROUND = 20.0


@pytest.fixture(scope="module", params=[True, False], ids=["integrated", "sampled"])
def table(request) -> SplinePSF:
    return tabulated(integrate=request.param)


def calibration(*, integrate: bool = True) -> Calibration:
    optics = Optics(1.4, 1.518, 1.33, 670.0, PIXEL, model="scalar", pixel_integration=integrate)
    return Calibration(optics, Pupil.flat(48, {6: 1.2, 7: 0.2}), camera=Camera(), z_range_nm=Z, blur_nm=60.0)


def tabulated(*, integrate: bool = True) -> SplinePSF:
    return SplinePSF.tabulate(calibration(integrate=integrate).psf(), z_range_nm=Z, reach_nm=16 * PIXEL)


@pytest.fixture(scope="module")
def stamps() -> Stamps:
    return Stamps.of(tabulated(), z_range_nm=Z, lost=0.02)


def frame_of(
    stamps: Stamps,
    xyz: np.ndarray,
    photons: np.ndarray,
    shape: tuple[int, int],
    seed: int,
    blur_nm: float = 0.0,
) -> np.ndarray:
    """(1, H, W) photo-electrons of emitters on a background that rises to one side."""
    psf = stamps.psf
    images = psf.images(
        torch.tensor(xyz, dtype=torch.float32), shape, blur_nm=torch.full((len(xyz),), blur_nm)
    ).numpy()
    floor = BACKGROUND * (1 + np.linspace(0, 1, shape[1]))[None, :]
    expected = (images * photons[:, None, None]).sum(0) + floor
    return np.random.default_rng(seed).poisson(expected).astype(np.float32)[None]


def test_windows_hold_the_images_of_the_table(table) -> None:
    part = Stamps.of(table, z_range_nm=Z, lost=0.02)
    rng = np.random.default_rng(1)
    xyz = np.column_stack([rng.uniform(2000, 2500, (6, 2)), rng.uniform(*Z, 6)])
    blur = rng.uniform(0, 90**2, 6)
    corners = part.corners(xyz[:, :2])
    shown = part.images(xyz, blur, corners)[:, ORDERS.index("image")]
    local = torch.tensor(xyz - np.column_stack([corners * PIXEL, np.zeros(6)]), dtype=torch.float32)
    direct = table.images(
        local, (part.side_px,) * 2, blur_nm=torch.tensor(np.sqrt(blur), dtype=torch.float32)
    )
    np.testing.assert_allclose(shown, direct.numpy(), atol=2e-5 * float(direct.max()))
    assert (shown.sum((1, 2)) > 0.95).all()


@pytest.mark.parametrize("wrong", ["x", "z", "blur"])
def test_no_window_is_rendered_where_no_number_is(table, wrong: str) -> None:
    part = Stamps.of(table, z_range_nm=Z, lost=0.02)
    xyz, blur, corners = np.array([[2010.0, 2100.0, 130.0]]), np.zeros(1), np.array([[5, 5]])
    if wrong == "blur":
        blur[0] = np.inf
    else:
        xyz[0, "xyz".index(wrong)] = np.nan
    with pytest.raises(InputRejected, match="not finite"):
        part.images(xyz, blur, corners)


@pytest.mark.parametrize(
    ("order", "step"), [("x_nm", 2.0), ("y_nm", 2.0), ("z_nm", 4.0), ("blur_nm2", 150.0)]
)
def test_derivatives_are_differences(table, order: str, step: float) -> None:
    part = Stamps.of(table, z_range_nm=Z, lost=0.02)
    xyz, blur = np.array([[2010.0, 2100.0, 130.0], [2333.0, 2011.0, -210.0]]), np.array([1000.0, 4000.0])
    corners = part.corners(xyz[:, :2])
    ends = []
    for sign in (1, -1):
        moved, spread = xyz.copy(), blur.copy()
        if order == "blur_nm2":
            spread += sign * step
        else:
            moved[:, "xyz".index(order[0])] += sign * step
        ends.append(part.images(moved, spread, corners)[:, 0].astype(float))
    difference = (ends[0] - ends[1]) / (2 * step)
    slope = part.images(xyz, blur, corners)[:, ORDERS.index(order)]
    np.testing.assert_allclose(slope, difference, atol=2e-3 * np.abs(difference).max())


def test_backgrounds_are_smooth_and_reach_planes() -> None:
    rows, columns = np.mgrid[:30, :44]
    plane = (5 + 0.3 * rows - 0.1 * columns).astype(np.float32)
    np.testing.assert_allclose(smoothed(plane, 15.0), plane, atol=0.02)
    floor = smooth((30, 44), 15.0)
    splines = np.stack([floor.image(one).ravel() for one in np.eye(len(floor.penalty))], axis=1)
    np.testing.assert_allclose(splines.sum(1), 1.0, rtol=1e-5)
    nodes = np.linalg.lstsq(splines, plane.ravel(), rcond=None)[0]
    assert nodes @ floor.penalty @ nodes < 1e-2 * nodes @ nodes
    weight = 1 / (1 + plane)
    np.testing.assert_allclose(floor.overlaps(weight[None])[0], weight.ravel() @ splines, rtol=1e-4)
    np.testing.assert_allclose(
        floor.gram(weight), (splines.T * weight.ravel()) @ splines, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("case", ["blur known", "blur free"])
def test_two_overlapping_emitters_are_fitted_at_their_bound(stamps, case: str) -> None:
    truth = np.array([[2010.0, 2100.0, 130.0], [2560.0, 2390.0, -150.0]])
    photons, shape = np.array([6000.0, 9000.0]), (41, 43)
    blur_nm = 40.0 if case == "blur free" else 0.0
    prior = Prior.of_blur(Z, (0.0, 80.0) if blur_nm else (0.0, 0.0))
    errors, scores = [], []
    for seed in range(60):
        data = frame_of(stamps, truth, photons, shape, seed, blur_nm)
        box = Box(data, np.zeros_like(data), np.zeros_like(data), [(0, 0)])
        start = np.random.default_rng(seed).normal(truth, [40, 40, 60])
        found = GroupProblem(box, [stamps], prior, node_px=20.0).fit(
            Emitters(start, np.full(2, prior.blur_nm2[0]), np.ones((2, 1)))
        )
        errors.append(found.emitters.xyz_nm - truth)
        scores.append(errors[-1] / found.sigma[:, :3])
    spread = np.sqrt(np.mean(np.square(scores), axis=(0, 1)))
    # 120 draws: the root mean square of a standard score has a standard deviation of 6.5 %.
    assert (np.abs(spread - 1) < 0.2).all(), spread
    assert (np.abs(np.mean(errors, axis=0)) < 3.0).all()


def test_a_fit_that_cannot_get_there_is_given_up(stamps) -> None:
    truth = np.array([[2010.0, 2100.0, 130.0], [2560.0, 2390.0, -150.0]])
    data = frame_of(stamps, truth, np.array([6000.0, 9000.0]), (41, 43), 1)
    box = Box(data, np.zeros_like(data), np.zeros_like(data), [(0, 0)])
    problem = GroupProblem(box, [stamps], Prior(Z), node_px=20.0)

    def fitted(places: np.ndarray, **how: float) -> GroupFit:
        return problem.fit(Emitters(places, np.zeros(len(places)), np.ones((len(places), 1))), **how)

    both = fitted(truth + 60.0)
    aim = both.log_likelihood
    assert both.log_likelihood == pytest.approx(fitted(truth + 60.0, worth=aim - 1.0).log_likelihood)
    one, given_up = fitted(truth[:1] + 200.0), fitted(truth[:1] + 200.0, worth=aim)
    assert one.log_likelihood < aim - 100
    assert given_up.iterations < one.iterations


def test_the_reported_uncertainty_of_one_emitter_is_the_bound(stamps) -> None:
    truth, photons, shape = np.array([[2210.0, 2280.0, 90.0]]), np.array([5000.0]), (41, 41)
    xyz = torch.tensor(truth)
    psf = calibration().psf(dtype=torch.float64)
    bound = crlb(psf, Camera(), xyz, torch.tensor(photons), torch.tensor([1.5 * BACKGROUND]), shape=shape)
    data = frame_of(stamps, truth, photons, shape, 3)
    box = Box(data, np.zeros_like(data), np.zeros_like(data), [(0, 0)])
    found = GroupProblem(box, [stamps], Prior(Z), node_px=40.0).fit(
        Emitters(truth, np.zeros(1), np.ones((1, 1)))
    )
    np.testing.assert_allclose(found.sigma[0, :3], bound[0, :3].numpy(), rtol=0.06)


@pytest.fixture(scope="module")
def refiner(stamps) -> Refiner:
    return Refiner([stamps], Prior(Z), RefineOptions(least_photons=300.0))


def scene(count: int, seed: int, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    xy = rng.uniform(900, np.array(shape[::-1]) * PIXEL - 900, (400, 2))
    apart = [0]
    for i in range(1, 400):
        if np.hypot(*(xy[apart] - xy[i]).T).min() > 700:
            apart.append(i)
    chosen = apart[:count]
    assert len(chosen) == count
    return np.column_stack([xy[chosen], rng.uniform(-350, 350, count)]), rng.uniform(3000, 9000, count)


def nearest(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return np.linalg.norm(found[None] - truth[:, None], axis=2).min(1)


def test_all_emitters_are_found_without_any_start(stamps, refiner) -> None:
    shape = (64, 70)
    truth, photons = scene(9, 4, shape)
    data = frame_of(stamps, truth, photons, shape, 5)
    found = refiner(data, np.zeros_like(data), np.zeros((0, 3)))
    assert len(found.emitters) == 9
    assert (nearest(found.emitters.xyz_nm, truth) < 60).all()
    assert (found.origin == -1).all()
    np.testing.assert_allclose(found.floor[0][:, :5].mean(), BACKGROUND, rtol=0.15)


def test_wrong_emitters_go_and_missing_ones_come(stamps, refiner) -> None:
    shape = (64, 70)
    truth, photons = scene(8, 6, shape)
    data = frame_of(stamps, truth, photons, shape, 7)
    start = np.vstack([truth[:6] + 30.0, truth[:1] + np.array([60.0, -60.0, 90.0]), [[5500.0, 800.0, 0.0]]])
    found = refiner(data, np.zeros_like(data), start)
    assert len(found.emitters) == 8
    assert (nearest(found.emitters.xyz_nm, truth) < 60).all()
    assert (found.origin == -1).sum() >= 2
    assert (found.support >= RefineOptions().keep_gain).all()


def test_an_empty_frame_stays_empty(refiner) -> None:
    data = np.random.default_rng(8).poisson(BACKGROUND, (1, 50, 50)).astype(np.float32)
    start = np.array([[2000.0, 2500.0, 0.0]])
    assert len(refiner(data, np.zeros_like(data), start).emitters) == 0


@pytest.mark.parametrize("told_e", [0.0, 9.0, 14.0])
def test_read_noise_is_measured_where_it_is_not_known(stamps, refiner, told_e: float) -> None:
    read_noise_e, shape = 9.0, (64, 70)
    truth, photons = scene(8, 21, shape)
    data = frame_of(stamps, truth, photons, shape, 22)
    data += np.random.default_rng(23).normal(0, read_noise_e, data.shape).astype(np.float32)
    known = refiner(data, np.full_like(data, read_noise_e**2), truth)
    found = refiner(data, np.full_like(data, told_e**2), truth)
    assert len(found.emitters) == len(known.emitters) == 8
    np.testing.assert_allclose(found.sigma, known.sigma, rtol=0.03)


def test_groups_that_are_cut_find_the_same(stamps, refiner) -> None:
    shape = (64, 70)
    truth, photons = scene(9, 9, shape)
    data = frame_of(stamps, truth, photons, shape, 10)
    small = Refiner([stamps], Prior(Z), replace(refiner.options, group=3))
    one, other = (r(data, np.zeros_like(data), truth + 20.0).emitters.xyz_nm for r in (refiner, small))
    assert len(one) == len(other) == 9
    assert nearest(other, one).max() < 10


@pytest.mark.parametrize("seed", [12, 13, 14])
def test_one_that_is_too_bright_is_tried_as_two(stamps, seed: int) -> None:
    """Nothing is added here: only the split can find the second."""
    truth, photons = np.array([[2500.0, 2600, 120], [2640, 2520, -100]]), np.array([9000.0, 8000])
    data = frame_of(stamps, truth, photons, (48, 50), seed)
    options = RefineOptions(least_photons=300.0, rounds=0)
    counts = []
    for most in (0.0, 12_000.0):
        split = Refiner([stamps], Prior(Z), replace(options, most_photons=most))
        found = split(data, np.zeros_like(data), truth.mean(axis=0)[None]).emitters
        counts.append(len(found))
    assert counts == [1, 2]
    assert nearest(found.xyz_nm, truth).max() < 80


def test_a_wrong_height_is_mended_before_the_others_make_up_for_it(stamps, refiner) -> None:
    """Five in a square micrometre, and nothing may be added: of 40 scenes fits alone find all in 7."""
    only_fits = Refiner([stamps], Prior(Z), replace(refiner.options, rounds=0, passes=0))
    mended = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        truth = np.column_stack([rng.uniform(2200, 3200, (5, 2)), rng.uniform(-350, 350, 5)])
        data = frame_of(stamps, truth, rng.uniform(4000, 9000, 5), (48, 50), seed)
        start = truth.copy()
        start[0] += [*rng.uniform(-250, 250, 2), -600 * np.sign(truth[0, 2])]
        found = only_fits(data, np.zeros_like(data), start).emitters.xyz_nm
        mended += len(found) == 5 and bool(nearest(found, truth).max() < 60)
    assert mended >= 13


def refiner_with(stamps: Stamps, *, model_error: float) -> Refiner:
    return Refiner([stamps], Prior(Z), RefineOptions(least_photons=1000.0, model_error=model_error))


def test_a_psf_that_is_not_right_asks_for_no_emitters(stamps) -> None:
    shape, truth, photons = (41, 41), np.array([[2200.0, 2200.0, 0.0]]), np.array([60_000.0])
    wrong = Calibration(
        calibration().optics, Pupil.flat(48, {6: 1.2, 7: 0.2, 11: 0.2}), z_range_nm=Z, blur_nm=60.0
    )
    other = Stamps.of(
        SplinePSF.tabulate(wrong.psf(), z_range_nm=Z, reach_nm=16 * PIXEL), z_range_nm=Z, lost=0.02
    )
    data = frame_of(other, truth, photons, shape, 11)
    counts = [
        len(refiner_with(stamps, model_error=error)(data, 0 * data, truth).emitters) for error in (0.0, 0.15)
    ]
    assert counts[0] > 1
    assert counts[1] == 1


@pytest.mark.parametrize("em_gain", [1.0, 50.0])
def test_a_table_is_refined_frame_by_frame(stamps, em_gain: float) -> None:
    shape = (48, 50)
    truth, photons = scene(4, 12, shape)
    excess = 2.0 if em_gain > 1 else 1.0  # shot noise of twice the variance
    frames = [excess * frame_of(stamps, truth, photons / excess, shape, seed) for seed in (1, 2)]
    camera = Camera(offset=100.0, e_per_adu=0.5, em_gain=em_gain)
    counts = np.stack(frames) * (em_gain / 0.5) + 100.0
    start = pd.DataFrame(
        {"frame": 1, **dict(zip(("x_nm", "y_nm", "z_nm"), (truth + 25).T, strict=True)), "probability": 0.7}
    )
    known = calibration()
    work = Work(lambda _: start, start.iloc[:0], lambda _: None, PIXEL, 10**9)
    found = refined(work, refiner_of(known), camera).find(counts)
    assert list(found["frame"]) == [0] * 4 + [1] * 4
    for frame, expected in ((0, None), (1, 0.7)):
        here = found[found["frame"] == frame]
        assert nearest(here[["x_nm", "y_nm", "z_nm"]].to_numpy(), truth).max() < 80
        assert here["photons"].sum() == pytest.approx(photons.sum(), rel=0.08)
        assert expected is None or (here["probability"] == expected).all()
    assert found["background"].between(0.8 * excess * BACKGROUND, 2.2 * excess * BACKGROUND).all()


def test_what_a_model_was_trained_for_bounds_the_search() -> None:
    ranges = {"z_nm": [-200, 300], "photons": [2000, 9000], "photons_law": "uniform", "blur_nm": [0, 60]}
    found = refiner_of(calibration(), ranges=ranges)
    assert found.prior.z_nm == (-200, 300)
    assert found.prior.blur_nm2[0] == pytest.approx(1200.0)
    assert found.options.least_photons == pytest.approx(600.0)


@pytest.mark.parametrize("em_gain", [1.0, 50.0])
def test_least_photons_are_those_of_the_emitter_whatever_the_gain(stamps, em_gain: float) -> None:
    shape, truth, excess = (48, 50), np.array([[2000.0, 2600, 100], [3300, 2500, -150]]), 2.0
    images = frame_of(stamps, truth, np.array([9000.0, 4000]) / excess, shape, 1)
    frames = (excess * images * em_gain)[None]
    start = pd.DataFrame({"frame": 0, **dict(zip(("x_nm", "y_nm", "z_nm"), truth.T, strict=True))})
    work = Work(lambda _: start, start.iloc[:0], lambda _: None, PIXEL, 10**9)
    refiner = refiner_of(calibration(), options=RefineOptions(least_photons=2500.0))
    found = refined(work, refiner, Camera(em_gain=em_gain)).find(frames)
    np.testing.assert_allclose(sorted(found["photons"]), [4000, 9000], rtol=0.15)


def test_what_a_model_leaves_out_is_fitted_but_not_told_of(stamps) -> None:
    shape, truth = (48, 50), np.array([[2000.0, 2600, 100], [3300, 2500, -150]])
    frames = frame_of(stamps, truth, np.array([9000.0, 3000]), shape, 1)[None]
    start = pd.DataFrame({"frame": 0, **dict(zip(("x_nm", "y_nm", "z_nm"), truth.T, strict=True))})
    work = Work(lambda _: start, start.iloc[:0], lambda _: None, PIXEL, 10**9)
    ranges = {"z_nm": list(Z), "label_min_photons": 5000.0}
    found = refined(work, refiner_of(calibration(), ranges=ranges), Camera()).find(frames)
    assert len(found) == 1
    np.testing.assert_allclose(found[["x_nm", "y_nm", "z_nm"]].to_numpy()[0], truth[0], atol=40)
    assert found["photons"].iloc[0] == pytest.approx(9000, rel=0.1)  # the light of the other one is not in it


def test_gains_are_lower_where_dim_emitters_are_not_told_of() -> None:
    ranges = {"z_nm": list(Z), "label_min_photons": 5000.0}
    known = calibration()
    wrong = replace(known, provenance={"rrse": 0.1})
    usual = (RefineOptions().add_gain, RefineOptions().keep_gain)
    cases = ((known, ranges), (known, {"z_nm": list(Z)}), (wrong, ranges))
    gains = [(o.add_gain, o.keep_gain) for o in (refiner_of(c, ranges=r).options for c, r in cases)]
    assert max(gains[0]) < min(usual)
    assert gains[1:] == [usual, usual]


def test_backgrounds_are_as_smooth_as_those_of_the_training() -> None:
    even, glowing = {"constant": [10.0, 30.0]}, {"constant": [10.0, 30.0], "glow": [0.0, 100.0]}
    spacings = [refiner_of(calibration(), ranges=r).options.node_px for r in (None, {"background": glowing})]
    assert spacings == [RefineOptions().node_px] * 2
    assert refiner_of(calibration(), ranges={"background": even}).options.node_px > spacings[0]


def test_a_gaussian_is_refused(gaussian_calibration) -> None:
    with pytest.raises(InputRejected, match="pupil"):
        refiner_of(gaussian_calibration)


@pytest.mark.parametrize(
    "wrong", [{"add_gain": 0.0}, {"rounds": -1}, {"node_px": 1.0}, {"group": 0}, {"model_error": 1.0}]
)
def test_wrong_options_are_refused(wrong) -> None:
    with pytest.raises(InputRejected):
        RefineOptions(**wrong)
