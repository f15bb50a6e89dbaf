"""Rendering a table back into frames."""

import numpy as np
import pytest
import torch

from smlm_bridge.errors import InputRejected
from smlm_bridge.optics.gaussian import Gaussian
from smlm_bridge.optics.microscope import Optics
from smlm_bridge.optics.pupil import Pupil
from smlm_bridge.psf.gaussian import GaussianPSF
from smlm_bridge.psf.protocol import PSF
from smlm_bridge.psf.pupil_psf import PupilPSF
from smlm_bridge.rerender import explained_signal, rerender_frame

PIXEL = 110.0
PSFS = {
    "gaussian": GaussianPSF(Gaussian((130.0, 130.0), (-200.0, 200.0), (400.0, 400.0)), PIXEL),
    "pupil": PupilPSF.of(Optics(1.49, 1.518, 1.33, 670.0, PIXEL), Pupil.flat(32, {6: 0.6})),
}
XYZ = np.array(
    [[1000.0, 2050.0, 100.0], [3123.0, 900.0, 300.0], [3600.0, 1200.0, 0.0], [-50.0, 2500.0, 200.0]]
)
PHOTONS = np.array([3000.0, 800.0, 5000.0, 4000.0])
SHAPE = (30, 44)


@pytest.fixture(params=PSFS)
def psf(request: pytest.FixtureRequest) -> PSF:
    return PSFS[request.param]


def frame(psf: PSF, *, slope: float = 0.0) -> np.ndarray:
    images = psf.images(torch.as_tensor(XYZ, dtype=torch.float32), SHAPE).numpy().astype(np.float64)
    plane = 20 + slope * np.linspace(-1, 1, SHAPE[1]) * np.ones((SHAPE[0], 1))
    return np.einsum("e,eyx->yx", PHOTONS, images) + plane


@pytest.mark.parametrize("slope", [0.0, 8.0])
def test_noiseless_frames_are_explained_and_photons_refitted(psf: PSF, slope: float) -> None:
    fitted = rerender_frame(frame(psf, slope=slope), XYZ, psf)
    np.testing.assert_allclose(fitted.photons, PHOTONS, rtol=1e-3)
    assert explained_signal([fitted]) == pytest.approx(1.0, abs=1e-6)
    np.testing.assert_allclose(fitted.model, frame(psf, slope=slope), rtol=1e-3, atol=0.01)
    np.testing.assert_allclose(fitted.background[0, [0, -1]], [20 - slope, 20 + slope], rtol=0.01)


def test_a_wrong_position_explains_less(psf: PSF) -> None:
    data = frame(psf)
    shifted = XYZ + np.array([60.0, 0.0, 0.0])
    right, wrong = (explained_signal([rerender_frame(data, xyz, psf)]) for xyz in (XYZ, shifted))
    assert right is not None
    assert wrong is not None
    assert wrong < right - 0.02


def test_an_emitter_that_is_not_there_gets_no_photons(psf: PSF) -> None:
    more = np.vstack([XYZ, [4400.0, 3000.0, 100.0]])
    fitted = rerender_frame(frame(psf), more, psf)
    assert fitted.photons[-1] == pytest.approx(0, abs=1.0)
    assert (fitted.photons >= 0).all()


def test_the_same_emitter_twice_shares_its_light(psf: PSF) -> None:
    twice = np.vstack([XYZ, XYZ[:1]])
    fitted = rerender_frame(frame(psf), twice, psf)
    assert fitted.photons[0] + fitted.photons[-1] == pytest.approx(PHOTONS[0], rel=2e-3)


def test_no_emitters_is_all_background() -> None:
    fitted = rerender_frame(np.full(SHAPE, 7.0), np.zeros((0, 3)), PSFS["gaussian"])
    np.testing.assert_allclose(fitted.background, 7.0, rtol=1e-6)
    assert fitted.photons.shape == (0,)
    assert fitted.signal_power == pytest.approx(0, abs=1e-6)


def test_explained_signal_adds_up_over_frames(psf: PSF) -> None:
    dark = rerender_frame(np.zeros(SHAPE), np.zeros((0, 3)), psf)
    bright = rerender_frame(frame(psf), XYZ, psf)
    assert explained_signal([dark, bright]) == pytest.approx(1.0, abs=1e-6)
    assert explained_signal([]) is None
    assert explained_signal([dark]) is None


def test_a_position_outside_is_rejected() -> None:
    far = np.vstack([XYZ, [90_000.0, 0.0, 0.0]])
    with pytest.raises(InputRejected, match="outside the frame"):
        rerender_frame(frame(PSFS["gaussian"]), far, PSFS["gaussian"])
