"""Train the dense localizer by online simulation."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from smlm_bridge.calibration import Calibration
from smlm_bridge.errors import InputRejected
from smlm_bridge.evaluate import evaluate
from smlm_bridge.model import Run
from smlm_bridge.networks.decode import decode
from smlm_bridge.networks.dense import DenseLocalizer, DenseScaling, Targets, stabilise
from smlm_bridge.psf.protocol import PSF
from smlm_bridge.psf.pupil_psf import PupilPSF
from smlm_bridge.psf.spline import SplinePSF
from smlm_bridge.simulate.render import in_label_set, record, render
from smlm_bridge.simulate.scene import Ranges, draw
from smlm_bridge.training import LoopOptions, Progress, Start, Training, train

__all__ = ["Progress", "Start", "TrainOptions", "Trainer", "held_out_scores", "train", "training_psf"]

LEAST_Z_RANGE_NM = 2.0  # a single height is a range, too


@dataclass(frozen=True, kw_only=True)
class TrainOptions(LoopOptions):
    """How to train the dense localizer; beyond ``LoopOptions``:

    Parameters
    ----------
    patch_px
        Side of the patches in pixels.
    widths, bottom_dilations
        Of the U-Net.
    reach_px
        How far from an emitter its image is rendered.
    """

    patch_px: int = 72
    widths: tuple[int, ...] = (32, 64, 128)
    bottom_dilations: tuple[int, ...] = (1, 2)
    reach_px: int = 36

    def __post_init__(self) -> None:
        super().__post_init__()
        step = 2 ** (len(self.widths) - 1)
        if self.patch_px % step:
            raise InputRejected(
                f"patch_px {self.patch_px} must be a multiple of {step} for {len(self.widths)} scales."
            )


class Trainer(Training[DenseLocalizer, TrainOptions, Ranges]):
    """A training of the dense localizer; see ``Training``.

    Raises
    ------
    InputRejected
        If a map of the calibration's camera is smaller than a patch.
    """

    loss_weights: ClassVar[Mapping[str, float]] = {"detection": 1.0, "localization": 0.3, "background": 0.3}
    shape_options: ClassVar[tuple[str, ...]] = ("widths", "bottom_dilations")

    def draw_batch(self) -> tuple[Tensor, Targets]:
        """Simulated frames in photo-electrons (B, 1, H, W) and what to find in them."""
        options = self.options
        shape = (options.patch_px, options.patch_px)
        pixel_nm = self.calibration.optics.pixel_nm
        scene = draw(self.ranges, self.generator, frames=options.batch, shape=shape, pixel_nm=pixel_nm)
        photons = self._photons(scene)
        asked = in_label_set(scene, pixel_nm=pixel_nm, min_photons=self.ranges.label_min_photons)
        return photons, Targets(asked.frame, asked.xyz_nm, asked.photons, scene.background)

    def _psf(self) -> PSF:
        return training_psf(self.calibration, self.ranges, reach_px=self.options.reach_px, device=self.device)

    def _network(self, scaling: DenseScaling) -> DenseLocalizer:
        return DenseLocalizer(1, self.options.widths, self.options.bottom_dilations, scaling)

    def _scaling(self) -> DenseScaling:
        """Input statistics from a few simulated frames; output units from the ranges."""
        ranges, pixel_nm = self.ranges, self.calibration.optics.pixel_nm
        generator_state = self.generator.get_state()
        shape = (self.options.patch_px, self.options.patch_px)
        scene = draw(ranges, self.generator, frames=32, shape=shape, pixel_nm=pixel_nm)
        frames = stabilise(self._photons(scene), self._read_variance())
        self.generator.set_state(generator_state)
        return DenseScaling(
            read_variance=self._read_variance(),
            input_shift=float(frames.mean()),
            input_scale=float(frames.std().clamp_min(1.0)),
            pixel_nm=pixel_nm,
            z_mid_nm=sum(ranges.z_nm) / 2,
            z_half_nm=max(ranges.z_nm[1] - ranges.z_nm[0], LEAST_Z_RANGE_NM) / 2,
            photons=float(scene.photons.log().mean().exp()) if scene.photons.numel() else 1000.0,
            background=float(scene.background.mean().clamp_min(0.1)),
        )


def held_out_scores(
    trainer: Trainer, run: Run | None = None, *, frames: int = 50, side_px: int = 96
) -> dict[str, Any]:
    """Figures of merit on frames drawn from the training ranges with another seed, always the same ones.

    Parameters
    ----------
    trainer
        Its ranges, PSF and camera make the frames.
    run
        What is scored, photo-electrons (B, 1, H, W) to maps; None for the network as it is now.
    frames, side_px
        Number of frames and their side.
    """
    known, ranges = trainer.calibration, trainer.ranges
    pixel_nm, seed = known.optics.pixel_nm, trainer.options.seed + 1
    generator = torch.Generator(trainer.device).manual_seed(seed)
    scene = draw(ranges, generator, frames=frames, shape=(side_px, side_px), pixel_nm=pixel_nm)
    counts = record(scene, render(scene, trainer.psf), known.camera, generator).cpu().numpy()
    asked = in_label_set(scene, pixel_nm=pixel_nm, min_photons=ranges.label_min_photons)
    truth = pd.DataFrame(asked.xyz_nm.double().cpu().numpy(), columns=["x_nm", "y_nm", "z_nm"])
    truth["frame"] = asked.frame.cpu().numpy()
    maps = (run or _run_now(trainer))(known.camera.to_photons(counts)[:, None])
    found = decode(maps, pixel_nm=pixel_nm)
    table = pd.DataFrame({name: found[name] for name in ("x_nm", "y_nm", "z_nm")})
    table["frame"] = found["image"].astype(int)
    return {**asdict(evaluate(table, truth)[1]), "frames": frames, "seed": seed}


def _run_now(trainer: Trainer) -> Run:
    """The network in its present state, frame by frame."""

    def run(photons: NDArray[np.float32]) -> NDArray[np.float32]:
        trainer.network.eval()
        with torch.no_grad():
            parts = [trainer.network(torch.from_numpy(frame[None]).to(trainer.device)) for frame in photons]
        return torch.cat(parts).cpu().numpy()

    return run


def training_psf(
    calibration: Calibration, ranges: Ranges, *, reach_px: int, device: torch.device | str = "cpu"
) -> PSF:
    """The calibration's PSF in the form that renders fastest: a table for pupils."""
    psf = calibration.psf(device=device)
    if not isinstance(psf, PupilPSF):  # Gaussians and splines are cheap as they are
        return psf
    return SplinePSF.tabulate(psf, z_range_nm=ranges.z_nm, reach_nm=reach_px * psf.pixel_nm)
