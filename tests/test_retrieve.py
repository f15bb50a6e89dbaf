"""Phase retrieval: the model agrees with the PSF room, known pupils come back, real beads are explained."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from smlm_bridge.camera import Camera  # noqa: E402
from smlm_bridge.errors import InputRejected  # noqa: E402
from smlm_bridge.optics.bead import bead_points  # noqa: E402
from smlm_bridge.optics.microscope import Optics  # noqa: E402
from smlm_bridge.optics.pupil import Pupil  # noqa: E402
from smlm_bridge.psf.pupil_psf import PupilPSF  # noqa: E402
from smlm_bridge.retrieve import Retrieval, RetrieveOptions, retrieve  # noqa: E402
from smlm_bridge.retrieve.checks import bead_centre, censoring_threshold, check_stack  # noqa: E402
from smlm_bridge.retrieve.chi2 import Chi2  # noqa: E402
from smlm_bridge.retrieve.descent import descend  # noqa: E402
from smlm_bridge.retrieve.find import find_beads  # noqa: E402
from smlm_bridge.retrieve.intensity import Filter, Intensity, Transform, half_transform  # noqa: E402
from smlm_bridge.retrieve.jitter import registered  # noqa: E402
from smlm_bridge.retrieve.joint import outliers, reweighted  # noqa: E402
from smlm_bridge.retrieve.model import BeadModel, Parameters  # noqa: E402
from smlm_bridge.retrieve.objective import BeadData, linear_fit, misfit, prior, residuals  # noqa: E402
from smlm_bridge.retrieve.prepare import prepare  # noqa: E402
from smlm_bridge.retrieve.result import decompose, stack_scores  # noqa: E402
from smlm_bridge.retrieve.start import (  # noqa: E402
    coarse_slices,
    lay_mask,
    oriented,
    pupil_phase,
    twin_of,
    window_limit_px,
)

OPTICS = Optics(1.49, 1.518, 1.33, 605.0, 110.0, analyser_deg=90.0)
TRUTH = {5: 0.35, 6: 0.6, 7: -0.3, 8: 0.2, 12: -0.3, 11: 0.25}
SIZE, PLANES, STEP_NM, PHOTONS, BACKGROUND = 35, 11, -180.0, 1e5, 20.0
BLUR_NM, DIAMETER_NM = 60.0, 100.0
BEAD_NM = (18.2 * 110.0, 16.6 * 110.0)
CAMERA = Camera(offset=100.0, e_per_adu=0.5, read_noise_e=1.0)
FIRST_NM = 900.0


def simulated(optics: Optics = OPTICS, *, seed: int | None = 1) -> np.ndarray[Any, Any]:
    """Photons of a bead stack rendered by the PSF room, not by the model under test."""
    images = []
    for i in range(PLANES):
        psf = PupilPSF.of(
            replace(optics, focus_nm=FIRST_NM + STEP_NM * i),
            Pupil.flat(96, TRUTH),
            blur_nm=math.hypot(BLUR_NM, DIAMETER_NM / math.sqrt(20)),
        )
        images.append(psf.images(torch.tensor([[*BEAD_NM, DIAMETER_NM / 2]]), (SIZE, SIZE))[0])
    expected = torch.stack(images).numpy() * PHOTONS + BACKGROUND
    return expected if seed is None else np.random.default_rng(seed).poisson(expected).astype(np.float32)


@pytest.fixture(scope="module")
def found() -> Retrieval:
    return retrieve(
        simulated() / 0.5 + 100.0,
        OPTICS,
        RetrieveOptions(STEP_NM, first_focus_nm=FIRST_NM, random_starts=0, iterations=40, pupil_samples=64),
        camera=CAMERA,
    )


def parameters(samples: int = 48) -> tuple[BeadModel, Parameters]:
    model = BeadModel(OPTICS, samples, (15, 17), bead_diameter_nm=100.0)
    rng = np.random.default_rng(3)
    p = Parameters.initial(0.3 * rng.normal(size=(samples, samples)), xy_nm=(20.0, -40.0), focus_nm=150.0)
    noise = torch.tensor(0.1 * rng.normal(size=(samples, samples)), dtype=torch.float32)
    return model, replace(p, log_amplitude=noise)


def bead_data(
    photons: torch.Tensor, threshold: float | None, focus: torch.Tensor, travel: torch.Tensor
) -> BeadData:
    """Of one bead, with equal weights and without jitter."""
    count = len(photons)
    least = None if threshold is None else torch.full((count,), threshold)
    number = torch.zeros(count, dtype=torch.long)
    return BeadData(photons, torch.ones_like(photons), least, focus, travel, torch.zeros(count, 2), number)


def test_model_equals_the_psf_room() -> None:
    pupil = Pupil.flat(96, TRUTH)
    model = BeadModel(OPTICS, 96, (31, 33), bead_diameter_nm=100.0)
    p = Parameters.initial(pupil_phase(pupil, 96), xy_nm=(70.0, -30.0), focus_nm=0.0)
    got = model.images(p, torch.tensor([400.0, -700.0]), torch.zeros(2)).numpy()
    blur = math.hypot(float(p.blur_nm), 100.0 / math.sqrt(20))
    for image, focus in zip(got, (400.0, -700.0), strict=True):
        psf = PupilPSF.of(replace(OPTICS, focus_nm=focus), pupil, blur_nm=blur)
        want = psf.images(torch.tensor([[16.5 * 110 + 70, 15.5 * 110 - 30, 50.0]]), (31, 33))[0].numpy()
        assert np.abs(image - want).max() < 2e-3 * want.max()


@pytest.mark.parametrize(
    "name", ["phase", "log_amplitude", "zernike", "radial", "position", "focus", "log_blur"]
)
def test_gradient_is_the_finite_difference(name: str) -> None:
    model, p = parameters()
    focus, travel = torch.tensor([300.0, -200.0]), torch.tensor([-1.0, 1.0])
    target = torch.rand((2, 15, 17), generator=torch.Generator().manual_seed(1))

    def value(q: Parameters) -> "torch.Tensor":
        return (model.images(q, focus, travel) * target).sum() * 1e3

    tensor = getattr(p, name).clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(replace(p, **{name: tensor})), tensor)
    direction = gradient / gradient.norm()
    step = 0.02
    with torch.no_grad():
        ahead, behind = (value(replace(p, **{name: tensor + s * step * direction})) for s in (1, -1))
    assert float((ahead - behind) / (2 * step)) == pytest.approx(float(gradient.norm()), rel=0.02)


@pytest.mark.parametrize(("points", "pixels"), [((9, 12), (7, 6)), ((12, 9), (5, 9)), ((8, 11), (8, 8))])
def test_intensity_is_the_plain_transform(points: tuple[int, int], pixels: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    k_axis = (torch.arange(10) - 4.5) * 2e-3
    y, x = ((torch.arange(n) - (n - 1) / 2) * 100.0 for n in points)
    base = torch.complex(*torch.randn(2, 3, 10, 10, generator=generator))
    log_amplitude = (0.2 * torch.randn(10, 10, generator=generator)).requires_grad_()
    phase = torch.randn(10, 10, generator=generator).requires_grad_()
    moved = torch.tensor([[200.0, 30.0, -20.0], [-300.0, -50.0, 10.0], [5.0, 0.0, 9.0]])
    moved = moved.repeat(2, 1).requires_grad_()  # more than go through the products together
    log_blur, scale = (
        torch.full((1,), math.log(90.0), requires_grad=True),
        torch.tensor(3.0, requires_grad=True),
    )
    kz = 0.016 - 5.0 * (k_axis.square()[:, None] + k_axis.square())
    halves = [half_transform(at, k_axis) for at in (y, x)]
    optics = Transform(base, kz, k_axis, *halves, pixels)
    apart = [
        (torch.arange(n)[:, None] - (n - 1) / 2) * 110.0 - at for n, at in zip(pixels, (y, x), strict=True)
    ]

    def filters(log_blur: torch.Tensor) -> list[torch.Tensor]:
        return [torch.exp(-0.5 * (d / torch.exp(log_blur)).square()) for d in apart]

    weights = filters(log_blur.detach())
    slopes = [w * (d / 90.0).square() for w, d in zip(weights, apart, strict=True)]
    both = tuple(Filter.of(w, s) for w, s in zip(weights, slopes, strict=True))
    upstream = torch.rand(6, *pixels, generator=generator)
    got = Intensity.apply(log_amplitude, phase, moved, log_blur, scale, optics, both)
    to_y, to_x = (torch.polar(torch.ones_like(a), a) for a in (y[:, None] * k_axis, x[:, None] * k_axis))
    focus, at_x, at_y = moved.T[:, :, None, None]
    angle = phase - kz * focus - k_axis[:, None] * at_y - k_axis * at_x
    pupils = base * torch.polar(torch.exp(log_amplitude).expand_as(angle), angle)[:, None]
    along_y, along_x = filters(log_blur)
    want = scale * (along_y @ (to_y @ pupils @ to_x.T).abs().square().sum(1) @ along_x.T)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * float(want.detach().max()))
    free = (log_amplitude, phase, moved, log_blur, scale)
    gradients = [torch.autograd.grad((v * upstream).sum(), free) for v in (got, want)]
    for ours, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-4 * float(plain.abs().max()))


def test_thick_bead_is_the_sum_of_its_points() -> None:
    diameter, shape = 250.0, (21, 21)
    model = BeadModel(OPTICS, 64, shape, bead_diameter_nm=diameter)
    p = Parameters.initial(np.zeros((64, 64)), xy_nm=(0.0, 0.0), focus_nm=0.0)
    got = model.images(p, torch.tensor([300.0]), torch.zeros(1))[0].numpy()
    offsets, shares = bead_points(diameter)
    places = torch.tensor(offsets + np.array([1155.0, 1155.0, diameter / 2]), dtype=torch.float32)
    psf = PupilPSF.of(replace(OPTICS, focus_nm=300.0), Pupil.flat(64), blur_nm=float(p.blur_nm))
    want = np.tensordot(shares, psf.images(places, shape).numpy(), 1)
    flat = BeadModel(OPTICS, 64, shape, bead_diameter_nm=0.0).images(p, torch.tensor([300.0]), torch.zeros(1))
    # Layers carry different light: each point of ``want`` is normalised to its own, so shapes are compared.
    got, want, thin = (v / v.sum() for v in (got, want, flat[0].numpy()))
    assert np.abs(got - want).max() < 0.02 * want.max()
    assert np.abs(thin - want).max() > 0.05 * want.max()


def spots(places: list[tuple[float, float, float]], size: int = 90) -> np.ndarray[Any, Any]:
    """A field of Gaussian beads (row, column, brightness) at three planes on a background of 20."""
    y, x = np.indices((size, size))
    plane = 20.0 + sum(
        200 * light * np.exp(-((y - row) ** 2 + (x - column) ** 2) / 8) for row, column, light in places
    )
    return np.random.default_rng(2).poisson([plane] * 3).astype(np.float32)


def test_isolated_beads_are_found_and_the_others_have_a_reason() -> None:
    places = [
        (20, 20, 1.0),
        (25, 60, 0.8),
        (60, 22, 0.7),
        (60, 60, 1.0),
        (68, 68, 0.9),
        (40, 40, 0.15),
        (3, 40, 1),
    ]
    kept, aside, half = find_beads(spots(places), pixel_nm=110.0, largest_px=61)
    assert sorted((spot.row, spot.column) for spot in kept) == [(20, 20), (25, 60), (60, 22)]
    assert 8 <= half <= 14
    reasons = {(spot.row, spot.column): spot.reason for spot in aside}
    assert "neighbour" in reasons[60, 60]
    assert "neighbour" in reasons[68, 68]
    assert "light" in reasons[40, 40]
    assert any("edge" in reason for (row, _), reason in reasons.items() if row < 6)


def test_field_where_none_stands_alone() -> None:
    with pytest.raises(InputRejected, match="none stands alone"):
        find_beads(spots([(40, 40, 1.0), (40, 50, 1.0)]), pixel_nm=110.0, largest_px=61)


@pytest.mark.parametrize("em_gain", [1.0, 100.0])
def test_weights_are_those_of_the_likelihood(em_gain: float) -> None:
    """Poisson and sCMOS: the inverse of mean plus the pixel's read variance; no floor where the model is right."""
    noise = np.where(np.arange(SIZE) % 7 == 0, 9.0, 1.5)[None] + np.zeros((SIZE, 1))
    camera = Camera(offset=100.0, e_per_adu=0.5, read_noise_e=noise, em_gain=em_gain)
    generator = torch.Generator().manual_seed(0)
    counts = camera.sample(torch.tensor(simulated(seed=None)), generator).numpy()
    problem = prepare([counts], OPTICS, RetrieveOptions(STEP_NM, first_focus_nm=FIRST_NM), camera=camera)
    model = BeadModel(OPTICS, 64, (SIZE, SIZE), bead_diameter_nm=DIAMETER_NM)
    centre = ((SIZE / 2 * 110.0 - BEAD_NM[0]), (SIZE / 2 * 110.0 - BEAD_NM[1]))
    p = Parameters.initial(
        pupil_phase(Pupil.flat(64, TRUTH), 64), xy_nm=(-centre[0], -centre[1]), focus_nm=0.0
    )
    p = replace(p, log_blur=torch.full((1,), math.log(BLUR_NM)))
    variance = 1 / reweighted(model, p, problem).weights
    want = camera.variance_photons(simulated(seed=None))
    # An EMCCD's smoothed counts are noisier, so its floor may not vanish altogether.
    assert float(np.median(np.abs(variance.numpy() / want - 1))) < 0.03


def test_outliers_are_named_and_scatter_is_not() -> None:
    assert outliers([0.05, 0.9]) == {}
    assert outliers([0.05, 0.06, 0.055, 0.052]) == {}
    away = outliers([0.05, 0.06, 0.4, 0.052])
    assert list(away) == [2]
    assert "times the median" in away[2]


def test_gauge_shift_leaves_the_images_alone() -> None:
    model, p = parameters()
    amounts = np.array([35.0, -20.0, 120.0])
    phase = p.phase - torch.tensor(np.tensordot(amounts, model.gauge_terms(), 1), dtype=torch.float32)
    moved = replace(p, phase=phase).moved(xy_nm=(35.0, -20.0), focus_nm=120.0)
    focus, travel = torch.tensor([300.0, -200.0]), torch.tensor([-1.0, 1.0])
    a, b = (model.images(q, focus, travel) for q in (p, moved))
    assert float((a - b).abs().max()) < 1e-4 * float(a.max())


def test_gauge_is_found_through_wraps() -> None:
    model, _ = parameters(64)
    power = model.power.double().numpy()
    amounts = np.array([80.0, -50.0, 150.0])
    phase = np.angle(np.exp(1j * np.tensordot(amounts, model.gauge_terms(), 1)))
    found_amounts, zernikes = decompose(phase, power, model.gauge_terms())
    np.testing.assert_allclose(found_amounts, amounts, rtol=1e-5)
    assert max(abs(c) for c in zernikes.values()) < 1e-6


def test_zernike_coefficients_of_a_known_phase() -> None:
    model, _ = parameters(64)
    phase = pupil_phase(Pupil.flat(64, {5: 0.7, 12: -1.1, 20: 0.4}), 64)
    phase = phase + np.tensordot([0.0, 10.0, 200.0], model.gauge_terms(), 1)
    _, got = decompose(phase, model.power.double().numpy(), model.gauge_terms())
    want = {5: 0.7, 12: -1.1, 20: 0.4}
    assert all(got[noll] == pytest.approx(want.get(noll, 0.0), abs=1e-6) for noll in got)


def test_twin_is_exact_for_scalar_light() -> None:
    optics = replace(OPTICS, model="scalar", analyser_deg=None)
    model = BeadModel(optics, 48, (21, 21), bead_diameter_nm=0.0)
    p = Parameters.initial(pupil_phase(Pupil.flat(48, TRUTH), 48), xy_nm=(30.0, 10.0), focus_nm=80.0)
    focus, travel = torch.tensor([300.0, -200.0]), torch.tensor([-1.0, 1.0])
    ours = model.images(p, focus, travel)
    twins = model.images(twin_of(model, p), -focus, -travel)
    assert float((ours - twins).abs().max()) < 1e-4 * float(ours.max())


@pytest.mark.parametrize("threshold", [None, 40.0])
def test_photons_are_projected_out(threshold: float | None) -> None:
    model, p = parameters()
    focus, travel = torch.tensor([300.0, -200.0]), torch.tensor([-1.0, 1.0])
    images = model.images(p, focus, travel)
    truth = torch.tensor([3000.0, 5000.0])
    photons = truth[:, None, None] * images + (7.0 if threshold is None else 0.0)
    if threshold is not None:
        photons = torch.where(photons < threshold, 0.0, photons)
    data = bead_data(photons, threshold, focus, travel)
    amounts, background = linear_fit(images, data)
    torch.testing.assert_close(amounts, truth, rtol=1e-4, atol=0.0)
    torch.testing.assert_close(
        background, torch.full((2,), 7.0 if threshold is None else 0.0), rtol=1e-3, atol=0.0
    )
    assert float(misfit(model, p, data)) < 1e-8


@pytest.mark.parametrize("threshold", [None, 10.0])
def test_squares_and_their_gradient(threshold: float | None) -> None:
    model, p = parameters()
    focus, travel = torch.tensor([300.0, -200.0]), torch.tensor([-1.0, 1.0])
    images = model.images(p, focus, travel)
    photons = torch.poisson(3000.0 * images + 5.0, generator=torch.Generator().manual_seed(0))
    if threshold is not None:
        photons = torch.where(photons < threshold, 0.0, photons)
    data = bead_data(photons, threshold, focus, travel)
    data = replace(data, weights=0.5 + torch.rand(2, 15, 17, generator=torch.Generator().manual_seed(2)))
    worse = (images * (1 + 0.3 * torch.sin(torch.arange(17.0)))).requires_grad_()
    got = Chi2.apply(worse, data.photons, data.weights, data.threshold, 0.0)
    want = (data.weights * residuals(worse, data).square()).sum()
    torch.testing.assert_close(got, want, rtol=1e-4, atol=0.0)
    ours, plain = (torch.autograd.grad(value, worse)[0] for value in (got, want))
    torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-4 * float(plain.abs().max()))


def test_zeros_below_a_threshold_are_a_probability() -> None:
    """Against torch's normal distribution, at the photons that minimise it; unbiased where squares are not."""
    model, p = parameters()
    focus = torch.linspace(-400, 400, 6)
    images = model.images(p, focus, torch.zeros(6)).detach()
    sigma, threshold = 6.0, 15.0
    noise = sigma * torch.randn(images.shape, generator=torch.Generator().manual_seed(5))
    counts = 3000.0 * images + noise
    photons = torch.where(counts < threshold, 0.0, counts)

    def least(trial: torch.Tensor, dispersion: float) -> tuple[float, torch.Tensor]:
        trial = trial.clone().requires_grad_()
        weights, limits = torch.full_like(photons, dispersion / sigma**2), torch.full((6,), threshold)
        value = Chi2.apply(trial, photons, weights, limits, dispersion)
        return float(value.detach()), torch.autograd.grad(value, trial)[0]

    def reference(amounts: torch.Tensor, trial: torch.Tensor) -> torch.Tensor:
        expected = amounts[:, None, None] * trial
        zeros = -2 * torch.special.log_ndtr((threshold - expected) / sigma)
        return torch.where(photons > 0, ((photons - expected) / sigma).square(), zeros).sum((1, 2))

    trial = (images * (1 + 0.2 * torch.cos(torch.arange(17.0)))).double().requires_grad_()
    grid = torch.linspace(2500, 3500, 501, dtype=torch.float64)
    best = grid[torch.stack([reference(a.expand(6), trial.detach()) for a in grid]).argmin(0)]
    want = reference(best, trial).sum()
    value, gradient = least(trial.detach().float(), 2.0)
    assert value == pytest.approx(2.0 * float(want.detach()), rel=1e-4)
    slope = 2.0 * torch.autograd.grad(want, trial)[0].float()
    torch.testing.assert_close(gradient, slope, rtol=0.02, atol=2e-3 * float(slope.abs().max()))
    # Ten per cent more or less light in the model is the same model: photons take it up.
    assert least(1.1 * images, 2.0)[0] == pytest.approx(least(images, 2.0)[0], rel=1e-4)
    far = least(images * 1e3 * torch.eye(15, 17), 2.0)  # where the tail underflows
    assert np.isfinite(far[0])
    assert torch.isfinite(far[1]).all()


@pytest.mark.parametrize("threshold", [None, 5.0])
def test_jitter_is_found(threshold: float | None) -> None:
    model, p = parameters()
    focus, travel = torch.tensor([300.0, -200.0, 100.0]), torch.tensor([-1.0, 0.0, 1.0])
    shift = torch.tensor([[12.0, -7.0], [-15.0, 4.0], [3.0, 3.0]])
    photons = 3000.0 * model.images(p, focus, travel, shift)
    if threshold is not None:
        photons = torch.where(photons < threshold, 0.0, photons)
    data = bead_data(photons, threshold, focus, travel)
    moved, got = registered(model, p, data)
    before, after = (model.position_nm(q, travel) for q in (p, moved))
    torch.testing.assert_close(after + got.shift_nm, before + shift, rtol=0.0, atol=0.5)
    line = torch.stack([torch.ones(3), travel], 1)
    torch.testing.assert_close(line.T @ got.shift_nm, torch.zeros(2, 2), rtol=0.0, atol=1e-3)


def test_gradient_of_the_prior_is_the_finite_difference() -> None:
    model, p = parameters()
    maps = [p.phase.clone().requires_grad_(), p.log_amplitude.clone().requires_grad_()]
    gradients = torch.autograd.grad(prior(model, replace(p, phase=maps[0], log_amplitude=maps[1])), maps)
    for name, gradient in zip(("phase", "log_amplitude"), gradients, strict=True):
        step = 0.1 * gradient / gradient.norm()
        ahead, behind = (prior(model, replace(p, **{name: getattr(p, name) + s * step})) for s in (1, -1))
        assert float(ahead - behind) == pytest.approx(0.2 * float(gradient.norm()), rel=0.01)


def test_descent_finds_the_valley_and_counts() -> None:
    """Rosenbrock's function, which is not a number beyond 1.5: neither overlong steps nor the valley stop it."""
    calls = []

    def valley(at: np.ndarray[Any, Any]) -> tuple[float, np.ndarray[Any, Any]]:
        calls.append(at)
        x, y = at.astype(float)
        value = (1 - x) ** 2 + 100 * (y - x * x) ** 2 if x < 1.5 else math.nan
        slope = [-2 * (1 - x) - 400 * x * (y - x * x), 200 * (y - x * x)]
        return value, np.array(slope, np.float32)

    start = np.array([-1.2, 1.0], np.float32)
    descend(valley, start, iterations=200, evaluations=250)
    assert min(np.abs(at - 1).max() for at in calls) < 1e-3
    assert len(calls) < 100
    calls.clear()
    descend(valley, start, iterations=200, evaluations=7)
    assert len(calls) == 7
    calls.clear()
    descend(valley, np.ones(2, np.float32), iterations=200, evaluations=7)
    assert len(calls) == 1


def test_prior_does_not_see_whole_turns() -> None:
    model, p = parameters()
    turned = replace(p, phase=p.phase + 2 * math.pi * (torch.arange(48) > 20))
    assert float(prior(model, turned)) == pytest.approx(float(prior(model, p)), rel=1e-4)


def test_resampling_keeps_the_pupil() -> None:
    p = Parameters.initial(pupil_phase(Pupil.flat(64, TRUTH), 64), xy_nm=(0.0, 0.0), focus_nm=0.0)
    got = p.resampled(96).phase.numpy()
    want = pupil_phase(Pupil.flat(96, TRUTH), 96)
    axis = (np.arange(96) - 47.5) / 48
    inside = np.hypot(axis[:, None], axis) < 0.95
    assert np.abs(np.angle(np.exp(1j * (got - want))))[inside].max() < 0.03


def test_known_pupil_comes_back(found: Retrieval) -> None:
    errors = [found.zernike_rad[noll] - TRUTH.get(noll, 0.0) for noll in found.zernike_rad]
    assert math.hypot(*errors) < 0.05
    assert found.mean_slice_correlation > 0.99
    assert found.held_out is None
    np.testing.assert_allclose(found.bead_xyz_nm[:2], BEAD_NM, atol=3.0)
    np.testing.assert_allclose(found.photons, PHOTONS, rtol=0.02)
    np.testing.assert_allclose(found.background, BACKGROUND, atol=1.0)
    assert found.calibration.blur_nm == pytest.approx(BLUR_NM, abs=8.0)
    assert found.focus_nm[0] == pytest.approx(FIRST_NM, abs=0.1)
    assert not found.warnings


def test_uncertainty_covers_the_errors(found: Retrieval) -> None:
    doubt = found.uncertainty
    assert doubt is not None
    z = [(found.zernike_rad[j] - TRUTH.get(j, 0.0)) / sigma for j, sigma in doubt.sigma_rad.items()]
    assert np.median(np.abs(z)) < 4
    assert 0 < min(doubt.sigma_rad.values()) < max(doubt.sigma_rad.values()) < 0.02
    assert np.linalg.eigvalsh(doubt.covariance).min() > 0
    assert abs(doubt.spherical_focus_correlation) < 1


def test_calibration_renders_what_was_fitted(found: Retrieval) -> None:
    known, i = found.calibration, 4
    assert known.pupil is not None
    psf = PupilPSF.of(
        replace(known.optics, focus_nm=float(found.focus_nm[i])),
        known.pupil,
        blur_nm=math.hypot(known.blur_nm, DIAMETER_NM / math.sqrt(20)),
    )
    image = psf.images(torch.tensor([found.bead_xyz_nm]), (SIZE, SIZE))[0].numpy()
    want = found.model_stack[i]
    got = CAMERA.expected(image * found.photons[i] + found.background[i])
    assert np.abs(got - want).max() < 0.02 * want.max()


def test_same_seed_same_answer_on_one_thread_and_progress_ends() -> None:
    steps: list[tuple[int, int]] = []
    threads = []

    def on_step(done: int, total: int) -> None:
        steps.append((done, total))
        threads.append(torch.get_num_threads())

    before = torch.get_num_threads()
    options = RetrieveOptions(
        2 * STEP_NM,
        random_starts=1,
        iterations=4,
        pupil_samples=48,
        pixelwise=True,
        fit_slices=range(0, 6, 2),
    )
    stack = simulated()[::2, 7:28, 7:28]
    mask = Pupil.flat(48, TRUTH)
    first = retrieve(stack, OPTICS, options, initial=mask, on_step=on_step)
    second = retrieve(stack, OPTICS, options, initial=mask)
    np.testing.assert_array_equal(first.model_stack, second.model_stack)
    assert (set(threads), torch.get_num_threads()) == ({1}, before)
    assert steps[-1][0] == steps[-1][1]
    assert all(a[0] <= b[0] <= b[1] for a, b in pairwise(steps))
    assert first.held_out is not None
    assert first.calibration.provenance["seed"] == 0
    assert first.twin["z_step_nm"] == -2 * STEP_NM


FIELD = ((20, 22, 0.0, 1.0), (24, 66, 40.0, 0.8), (66, 26, 0.0, 0.9), (67, 66, 0.0, 0.6))


def field() -> np.ndarray[Any, Any]:
    """Two beads and a clump of two; the second stands 40 nm higher in focus, all walk by 20 nm along x."""
    size, half = 90, SIZE // 2
    stack = np.full((PLANES, size, size), BACKGROUND)
    for i in range(PLANES):
        psf = {
            dz: PupilPSF.of(replace(OPTICS, focus_nm=FIRST_NM + STEP_NM * i + dz), Pupil.flat(64, TRUTH),
                            blur_nm=math.hypot(BLUR_NM, DIAMETER_NM / math.sqrt(20)))
            for dz in (0.0, 40.0)
        }  # fmt: skip
        for row, column, dz, light in FIELD:
            clump = ((-180.0, 0.0), (180.0, 60.0)) if row == 67 else ((0.0, 0.0),)
            for dx, dy in clump:
                x, y = (half + 0.5) * 110 + dx + 2.0 * i, (half + 0.5) * 110 + dy
                image = psf[dz].images(torch.tensor([[x, y, DIAMETER_NM / 2]]), (SIZE, SIZE))[0].numpy()
                rows, columns = (slice(c - half, c + half + 1) for c in (row, column))
                stack[i, rows, columns] += 0.3 * PHOTONS * light * image
    return np.random.default_rng(4).poisson(stack).astype(np.float32)


def test_raw_field_is_fitted_jointly_without_the_clump() -> None:
    options = RetrieveOptions(
        STEP_NM, first_focus_nm=FIRST_NM, random_starts=0, iterations=30, pupil_samples=48, pixelwise=False
    )
    result = retrieve([field(), simulated()], OPTICS, options)
    fitted = [bead for bead in result.beads if not bead.rejected]
    assert len(fitted) == 4
    assert next(bead.rejected for bead in result.beads if bead.rejected).startswith("its misfit")
    by_place = {(bead.stack, round(bead.y_nm / 110 - 0.5)): bead for bead in fitted}
    assert set(by_place) == {(0, 20), (0, 24), (0, 66), (1, 16)}
    step = by_place[0, 24].focus_nm - by_place[0, 20].focus_nm
    assert step == pytest.approx(40.0, abs=6.0)
    walks = {place: np.array(bead.drift_nm) for place, bead in by_place.items()}
    # A walk that all beads share trades with the pupil's centre; that of one against another does not.
    np.testing.assert_allclose(walks[0, 20] - walks[1, 16], (20.0, 0.0), atol=6.0)  # noise: some 3 nm
    np.testing.assert_allclose(walks[0, 24], walks[0, 20], atol=6.0)
    np.testing.assert_allclose(walks[1, 16], 0.0, atol=10.0)
    assert by_place[0, 24].x_nm == pytest.approx(66.5 * 110 + 10.0, abs=4.0)
    errors = [result.zernike_rad[noll] - TRUTH.get(noll, 0.0) for noll in result.zernike_rad]
    assert math.hypot(*errors) < 0.06
    assert [model.shape for model in result.model_stacks] == [(PLANES, 90, 90), (PLANES, SIZE, SIZE)]


def test_published_method_finds_the_modes_but_not_as_well(found: Retrieval) -> None:
    options = RetrieveOptions(STEP_NM, first_focus_nm=FIRST_NM, pupil_samples=64, method="zelger")
    result = retrieve(simulated() / 0.5 + 100.0, OPTICS, options, camera=CAMERA)
    errors = [result.zernike_rad[noll] - TRUTH.get(noll, 0.0) for noll in result.zernike_rad]
    assert math.hypot(*errors) < 0.1
    assert found.rrse <= result.rrse < 0.2


def test_matched_model_reaches_the_bar() -> None:
    """1e5 photons a slice, 21 planes: wavefront to 0.02 rad RMS, x, y and z to 1 nm."""
    truth, bead, size = {**TRUTH, 16: 0.1, 22: -0.1}, (15.7 * 110, 15.2 * 110), 31
    stack = []
    for i in range(21):
        optics = replace(OPTICS, analyser_deg=None, focus_nm=1000.0 - 100.0 * i)
        psf = PupilPSF.of(optics, Pupil.flat(128, truth), blur_nm=math.hypot(60.0, 100 / math.sqrt(20)))
        stack.append(1e5 * psf.images(torch.tensor([[*bead, 50.0]]), (size, size))[0].numpy() + 10)
    counts = np.random.default_rng(0).poisson(np.array(stack)).astype(np.float32)
    options = RetrieveOptions(-100.0, random_starts=0, pupil_samples=64, iterations=60)
    result = retrieve(counts, replace(OPTICS, analyser_deg=None), options)
    pupil = result.calibration.pupil
    assert pupil is not None
    model = BeadModel(replace(OPTICS, analyser_deg=None), 64, (size, size), bead_diameter_nm=100.0)
    axis = (np.arange(64) - 31.5) / 32
    inside = np.hypot(axis[:, None], axis) <= 1
    error = (pupil.phase_rad - pupil_phase(Pupil.flat(64, truth), 64))[inside]
    free = np.stack([np.ones(inside.sum()), *(term[inside] for term in model.gauge_terms())], 1)
    error -= free @ np.linalg.lstsq(free, error, rcond=None)[0]
    assert error.std() <= 0.02
    np.testing.assert_allclose(result.bead_xyz_nm[:2], bead, atol=1.0)
    assert result.focus_nm[0] == pytest.approx(1000.0, abs=1.0)


def test_model_stack_is_in_counts(found: Retrieval) -> None:
    counts = simulated() / 0.5 + 100.0
    np.testing.assert_allclose(found.model_stack.mean((1, 2)), counts.mean((1, 2)), rtol=0.01)
    np.testing.assert_allclose(found.residual, found.model_stack - counts, atol=0.01)


def test_mask_is_laid_in_its_orientation_and_direction() -> None:
    stack = torch.tensor(simulated(seed=None))
    focus = torch.arange(PLANES) * STEP_NM + FIRST_NM
    data = bead_data(stack, None, focus, torch.linspace(-1, 1, PLANES))
    model = BeadModel(OPTICS, 48, (SIZE, SIZE), bead_diameter_nm=DIAMETER_NM)
    mask = Pupil.flat(64, TRUTH)
    right = lay_mask(model, data, mask, centre_focus_nm=0.0)
    assert right.orientation == "as given"
    assert right.correlation > 0.9
    turned = Pupil(oriented(pupil_phase(mask, 64), "rotated by 90 degrees"), np.ones((64, 64)))
    wrong = lay_mask(model, data, turned, centre_focus_nm=0.0)
    assert wrong.orientation == "rotated by 270 degrees"
    backwards = lay_mask(model, data.reversed_scan(), mask, centre_focus_nm=0.0)
    assert backwards.reversed_correlation > backwards.correlation + 0.05


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s[:1], "one plane"),
        (lambda s: s[0], "three axes"),
        (lambda s: 0 * s, "constant"),
        (lambda s: np.where(s == s[3, 17, 17], np.nan, s), "not finite"),
        (lambda s: np.minimum(s, 0.2 * s.max()), "saturated"),
        (lambda s: np.concatenate([s, s], axis=2)[:, :, 12:60], "none stands alone"),
        (lambda s: s[:, 15:], "at the edge"),
        (lambda s: s[:, :5, :5], "at least 9 x 9"),
    ],
)
def test_stacks_that_cannot_be_used(change: Any, message: str) -> None:
    with pytest.raises(InputRejected, match=message):
        retrieve(change(simulated()), OPTICS, RetrieveOptions(STEP_NM))


@pytest.mark.parametrize(
    "wrong",
    [
        {"z_step_nm": 0.0},
        {"z_step_nm": math.nan},
        {"z_step_nm": -100.0, "first_focus_nm": math.inf},
        {"z_step_nm": -100.0, "bead_diameter_nm": -1.0},
        {"z_step_nm": -100.0, "pupil_samples": 8},
        {"z_step_nm": -100.0, "pupil_samples": 65},
        {"z_step_nm": -100.0, "iterations": 0},
    ],
)
def test_options_that_cannot_be_used(wrong: dict[str, float]) -> None:
    with pytest.raises(InputRejected):
        RetrieveOptions(**wrong)  # type: ignore[arg-type]


def test_slices_that_do_not_exist() -> None:
    with pytest.raises(InputRejected, match="0 to 10"):
        retrieve(simulated(), OPTICS, RetrieveOptions(STEP_NM, fit_slices=[0, 11]))


def test_threshold_is_seen_and_photon_counting_is_not() -> None:
    rng = np.random.default_rng(0)
    dim = rng.poisson(0.7, (4, 20, 20))
    assert censoring_threshold(dim) is None
    bright = rng.poisson(60.0, (4, 20, 20))
    assert censoring_threshold(np.where(bright < 60, 0, bright)) == 60.0
    assert censoring_threshold(bright) is None


def test_scores_of_a_perfect_and_of_no_model() -> None:
    stack = simulated(seed=None)
    dark = np.full(PLANES, BACKGROUND)
    assert stack_scores(stack, stack, threshold=None, background=dark) == pytest.approx(
        {"rrse": 0.0, "mean_slice_correlation": 1.0}
    )
    flat = np.full_like(stack, BACKGROUND)
    assert stack_scores(flat, stack, threshold=None, background=dark) == {
        "rrse": 1.0,
        "mean_slice_correlation": 0.0,
    }


def test_coarse_slices_leave_some_to_judge_by() -> None:
    assert coarse_slices(54) == list(range(0, 54, 4))
    assert len(coarse_slices(7)) < 7
    assert coarse_slices(3) == [0, 1, 2]
    assert window_limit_px(OPTICS, 64) < 64 * 605 / (2 * 1.49) / 110


@pytest.mark.real
def test_real_beads_are_one_bead_with_a_threshold(shared_data: Path) -> None:
    import tifffile

    for name, threshold in (("tetrapod", 76.0), ("edof", 27.0), ("learned1", 12.0)):
        stack = tifffile.imread(shared_data / "beads" / f"{name}.tif")
        check_stack(stack)
        assert censoring_threshold(stack) == threshold
        assert np.abs(np.array(bead_centre(stack, pixel_nm=110.0)) - 60).max() <= 2


@pytest.mark.real
@pytest.mark.parametrize("name", ["tetrapod", "edof", "learned1"])
def test_beads_of_a_field_are_found_through_their_lobes(shared_data: Path, name: str) -> None:
    """Real images pasted into a field: engineered PSFs spread, yet each is one bead."""
    import tifffile

    stack = tifffile.imread(shared_data / "beads" / f"{name}.tif")[::6].astype(np.float32)
    places = {
        (80, 80): 1.0,
        (90, 300): 0.8,
        (300, 100): 0.7,
        (320, 300): 0.9,
        (355, 330): 0.9,
        (200, 200): 0.6,
    }
    whole = np.full((len(stack), 420, 420), 50.0, np.float32)
    for (row, column), light in places.items():
        whole[:, row - 60 : row + 61, column - 60 : column + 61] += light * stack
    whole = np.random.default_rng(0).poisson(whole).astype(np.float32)
    kept, aside, half = find_beads(whole, pixel_nm=110.0, largest_px=151)
    alone = sorted(places, key=lambda place: place[0] > 310)[:4]
    assert len(kept) == 4
    assert len(aside) == 2
    assert all(min(math.dist(place, (s.row, s.column)) for s in kept) < 2 for place in alone)
    assert all("neighbour" in spot.reason for spot in aside)
    assert 25 <= half <= 60


BARS = {"tetrapod": (0.118, 0.992), "edof": (0.150, 0.987), "learned1": (0.139, 0.990)}


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("name", BARS)
def test_real_stacks_meet_their_bars_from_scratch(shared_data: Path, name: str) -> None:
    import tifffile

    stack = tifffile.imread(shared_data / "beads" / f"{name}.tif")
    options = RetrieveOptions(-100.0, analysers_deg=(None, 0.0, 90.0))
    result = retrieve(stack, replace(OPTICS, analyser_deg=None), options)
    assert result.rrse <= BARS[name][0]
    assert result.mean_slice_correlation >= BARS[name][1]
    assert result.analysers["90"] > result.analysers["0"]


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("with_mask", [True, False])
def test_tetrapod_held_out_slices(shared_data: Path, with_mask: bool) -> None:
    import scipy.io
    import tifffile

    stack = tifffile.imread(shared_data / "beads" / "tetrapod.tif")
    initial = None
    if with_mask:
        mask = scipy.io.loadmat(shared_data / "masks" / "pair_tetrapod_edof.mat")["mask1"]
        pitch = 2 / (2 * 150e3 * 1.49 / math.sqrt(100**2 - 1.49**2) / 24)
        initial = Pupil(mask, np.ones_like(mask), pitch=pitch)
    result = retrieve(stack, OPTICS, RetrieveOptions(-100.0, fit_slices=range(0, 54, 2)), initial=initial)
    assert result.held_out is not None
    assert result.held_out["mean_slice_correlation"] >= 0.985
    assert result.held_out["rrse"] <= 0.14
    if with_mask:
        assert result.focus_nm[0] == pytest.approx(2350.0, abs=100.0)
