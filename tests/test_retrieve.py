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
from smlm_bridge.optics.microscope import Optics  # noqa: E402
from smlm_bridge.optics.pupil import Pupil  # noqa: E402
from smlm_bridge.psf.pupil_psf import PupilPSF  # noqa: E402
from smlm_bridge.retrieve import Retrieval, RetrieveOptions, retrieve  # noqa: E402
from smlm_bridge.retrieve.checks import bead_centre, censoring_threshold, check_stack  # noqa: E402
from smlm_bridge.retrieve.jitter import registered  # noqa: E402
from smlm_bridge.retrieve.model import BeadModel, Parameters  # noqa: E402
from smlm_bridge.retrieve.objective import BeadData, linear_fit, misfit, prior  # noqa: E402
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
    data = BeadData(photons, torch.ones_like(photons), threshold, focus, travel, torch.zeros(2, 2))
    amounts, background = linear_fit(images, data)
    torch.testing.assert_close(amounts, truth, rtol=1e-4, atol=0.0)
    torch.testing.assert_close(
        background, torch.full((2,), 7.0 if threshold is None else 0.0), rtol=1e-3, atol=0.0
    )
    assert float(misfit(model, p, data)) < 1e-8


@pytest.mark.parametrize("threshold", [None, 5.0])
def test_jitter_is_found(threshold: float | None) -> None:
    model, p = parameters()
    focus, travel = torch.tensor([300.0, -200.0, 100.0]), torch.tensor([-1.0, 0.0, 1.0])
    shift = torch.tensor([[12.0, -7.0], [-15.0, 4.0], [3.0, 3.0]])
    photons = 3000.0 * model.images(p, focus, travel, shift)
    if threshold is not None:
        photons = torch.where(photons < threshold, 0.0, photons)
    data = BeadData(photons, torch.ones_like(photons), threshold, focus, travel, torch.zeros(3, 2))
    moved, got = registered(model, p, data)
    torch.testing.assert_close(got.shift_nm, shift, rtol=0.0, atol=0.5)
    torch.testing.assert_close(moved.position, p.position, rtol=0.0, atol=0.02)


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


def test_same_seed_same_answer_and_progress_ends() -> None:
    steps: list[tuple[int, int]] = []
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
    first = retrieve(stack, OPTICS, options, initial=mask, on_step=lambda *step: steps.append(step))
    second = retrieve(stack, OPTICS, options, initial=mask)
    np.testing.assert_array_equal(first.model_stack, second.model_stack)
    assert steps[-1][0] == steps[-1][1]
    assert all(a[0] <= b[0] <= b[1] for a, b in pairwise(steps))
    assert first.held_out is not None
    assert first.calibration.provenance["seed"] == 0
    assert first.twin["z_step_nm"] == -2 * STEP_NM


def test_model_stack_is_in_counts(found: Retrieval) -> None:
    counts = simulated() / 0.5 + 100.0
    np.testing.assert_allclose(found.model_stack.mean((1, 2)), counts.mean((1, 2)), rtol=0.01)
    np.testing.assert_allclose(found.residual, found.model_stack - counts, atol=0.01)


def test_mask_is_laid_in_its_orientation_and_direction() -> None:
    stack = torch.tensor(simulated(seed=None))
    focus = torch.arange(PLANES) * STEP_NM + FIRST_NM
    data = BeadData(
        stack, torch.ones_like(stack), None, focus, torch.linspace(-1, 1, PLANES), torch.zeros(PLANES, 2)
    )
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
        (lambda s: np.concatenate([s, s], axis=2), "beads share the field"),
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
