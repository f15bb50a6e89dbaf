"""Train the dense localizer by online simulation."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, TypeVar, get_args

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from smlm_bridge.calibration import Calibration
from smlm_bridge.errors import InputRejected
from smlm_bridge.evaluate import evaluate
from smlm_bridge.model import Run
from smlm_bridge.networks.backbones import Encoding, make_backbone
from smlm_bridge.networks.decode import decode
from smlm_bridge.networks.dense import DenseLocalizer, DenseScaling, Targets, stabilise
from smlm_bridge.psf.protocol import PSF
from smlm_bridge.psf.pupil_psf import PupilPSF
from smlm_bridge.psf.spline import SplinePSF
from smlm_bridge.simulate.blinking import draw_blinking
from smlm_bridge.simulate.render import in_label_set
from smlm_bridge.simulate.scene import Ranges, Scene, draw
from smlm_bridge.training import LoopOptions, NetworkT, Progress, Start, Training, train

__all__ = ["Progress", "Start", "TrainOptions", "Trainer", "held_out_scores", "train", "training_psf"]

LEAST_Z_RANGE_NM = 2.0  # a single height is a range, too
_SCALING_FRAMES = 32


@dataclass(frozen=True, kw_only=True)
class FieldOptions(LoopOptions):
    """How to train on patches of crowded frames; beyond ``LoopOptions``:

    Parameters
    ----------
    patch_px
        Side of the patches in pixels.
    reach_px
        How far from an emitter its image is rendered.
    context_frames
        Frames before and after each frame that the network looks at, 0 or 1.
    """

    patch_px: int = 72
    reach_px: int = 36
    context_frames: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.context_frames not in (0, 1):
            raise InputRejected(
                f"context_frames {self.context_frames}: a network sees 0 (one frame) or 1 (three frames)."
            )

    @property
    def frames(self) -> int:
        """Frames that the network sees at once."""
        return 2 * self.context_frames + 1


@dataclass(frozen=True, kw_only=True)
class TrainOptions(FieldOptions):
    """How to train the dense localizer; beyond ``FieldOptions``:

    Parameters
    ----------
    backbone
        ``"unet"``, or ``"context"`` for the dilated context module of DeepSTORM3D.
    widths, bottom_dilations
        Of the U-Net. The context module has the first width.
    dilations
        Of the context module's blocks.
    encoders
        ``"none"``: the images (frames, channels) enter the backbone together; ``"shared"``: each goes through one
        and the same encoder first, a backbone of the same kind, and the backbone joins their features (as DECODE
        does); ``"separate"``: likewise, with an encoder for each channel.
    """

    backbone: Literal["unet", "context"] = "unet"
    widths: tuple[int, ...] = (32, 64, 128)
    bottom_dilations: tuple[int, ...] = (1, 2)
    dilations: tuple[int, ...] = (1, 1, 2, 4, 8, 16)
    encoders: Encoding = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backbone not in ("unet", "context") or self.encoders not in get_args(Encoding):
            raise InputRejected(
                f"backbone '{self.backbone}', encoders '{self.encoders}': give unet or context, and none, shared "
                "or separate."
            )
        if not self.widths or not self.dilations or min((*self.widths, *self.dilations, 1)) < 1:
            raise InputRejected(
                f"widths {self.widths} and dilations {self.dilations}: give numbers from 1, at least one of each."
            )
        step = 2 ** (len(self.widths) - 1) if self.backbone == "unet" else 1
        if self.patch_px % step:
            raise InputRejected(
                f"patch_px {self.patch_px} must be a multiple of {step} for {len(self.widths)} scales."
            )


FieldOptionsT = TypeVar("FieldOptionsT", bound=FieldOptions)


@dataclass(frozen=True)
class InputStatistics:
    """Of simulated frames: what the scaling of a network is made of.

    Parameters
    ----------
    read_variance, input_shift, input_scale
        As in ``DenseScaling``.
    photons, background
        Typical emitter, and mean background.
    """

    read_variance: float
    input_shift: float
    input_scale: float
    photons: float
    background: float


class FieldTraining(Training[NetworkT, FieldOptionsT, Ranges]):
    """A training on patches of crowded frames, whatever the network finds in them; see ``Training``.

    Raises
    ------
    InputRejected
        If a map of the calibration's camera is smaller than a patch.
    """

    def draw_batch(self) -> tuple[Tensor, Targets]:
        """Simulated frames in photo-electrons (B, frames x channels, H, W) and what to find in the middle one."""
        options = self.options
        scene = self.drawn(options.batch, (options.patch_px, options.patch_px), self.generator)
        return self.recorded(scene, self.generator), self.asked(scene)

    def recorded(self, scene: Scene, generator: torch.Generator) -> Tensor:
        """(B, frames x channels, H, W) photo-electrons of a scene of samples: frame by frame, its channels."""
        photons = self.instrument.photons(scene, generator, sequence=self.options.frames)
        return photons.reshape(-1, self.inputs, *photons.shape[2:])

    @property
    def inputs(self) -> int:
        """Images that the network sees at once: the channels of its frames."""
        return self.options.frames * self.channels

    def drawn(self, samples: int, shape: tuple[int, int], generator: torch.Generator) -> Scene:
        """A scene whose frames are those of each sample, one sample after the other."""
        ranges, pixel_nm = self.ranges, self.calibration.optics.pixel_nm
        if self.options.context_frames or ranges.lifetime_frames:
            frames = self.options.frames
            return draw_blinking(
                ranges, generator, sequences=samples, frames=frames, shape=shape, pixel_nm=pixel_nm
            )
        return draw(ranges, generator, frames=samples, shape=shape, pixel_nm=pixel_nm)

    def asked(self, scene: Scene) -> Targets:
        """The emitters to be found in the middle frame of each sample."""
        pixel_nm, frames = self.calibration.optics.pixel_nm, self.options.frames
        asked = in_label_set(scene, pixel_nm=pixel_nm, min_photons=self.ranges.label_min_photons)
        middle = asked.frame % frames == self.options.context_frames
        background = scene.background[self.options.context_frames :: frames]
        return Targets(asked.frame[middle] // frames, asked.xyz_nm[middle], asked.photons[middle], background)

    def _psf(self, channel: Calibration) -> PSF:
        return training_psf(channel, self.ranges, reach_px=self.options.reach_px, device=self.device)

    def _statistics(self) -> InputStatistics:
        """Of a few simulated frames; the generator is as it was."""
        state = self.generator.get_state()
        scene = self.drawn(_SCALING_FRAMES, (self.options.patch_px, self.options.patch_px), self.generator)
        noise = self.instrument.read_variance
        frames = stabilise(self.recorded(scene, self.generator), noise)
        self.generator.set_state(state)
        return InputStatistics(
            read_variance=noise,
            input_shift=float(frames.mean()),
            input_scale=float(frames.std().clamp_min(1.0)),
            photons=float(scene.photons.log().mean().exp()) if scene.photons.numel() else 1000.0,
            background=float(scene.background.mean().clamp_min(0.1)),
        )


class Trainer(FieldTraining[DenseLocalizer, TrainOptions]):
    """A training of the dense localizer; see ``FieldTraining``."""

    loss_weights: ClassVar[Mapping[str, float]] = {"detection": 1.0, "localization": 0.3, "background": 0.3}
    shape_options: ClassVar[tuple[str, ...]] = (
        "widths",
        "bottom_dilations",
        "backbone",
        "dilations",
        "encoders",
        "context_frames",
    )

    def _network(self, scaling: DenseScaling) -> DenseLocalizer:
        options = self.options
        backbone = make_backbone(
            self.inputs,
            kind=options.backbone,
            widths=options.widths,
            bottom_dilations=options.bottom_dilations,
            dilations=options.dilations,
            encoders=options.encoders,
            channels=self.channels,
        )
        return DenseLocalizer(backbone, scaling)

    def _scaling(self) -> DenseScaling:
        """Input statistics from a few simulated frames; output units from the ranges."""
        ranges = self.ranges
        return DenseScaling(
            **asdict(self._statistics()),
            pixel_nm=self.calibration.optics.pixel_nm,
            z_mid_nm=sum(ranges.z_nm) / 2,
            z_half_nm=max(ranges.z_nm[1] - ranges.z_nm[0], LEAST_Z_RANGE_NM) / 2,
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
        What is scored, photo-electrons (B, C, H, W) to maps; None for the network as it is now.
    frames, side_px
        Number of frames and their side.
    """
    test = held_out_frames(trainer, frames=frames, side_px=side_px)
    maps = (run or run_now(trainer))(test.photons)
    found = decode(maps, pixel_nm=trainer.calibration.optics.pixel_nm)
    table = pd.DataFrame({name: found[name] for name in ("x_nm", "y_nm", "z_nm")})
    table["frame"] = found["image"].astype(int)
    return {**asdict(evaluate(table, test.truth)[1]), "frames": frames, "seed": test.seed}


@dataclass(frozen=True)
class HeldOut:
    """Frames that no training sees: photo-electrons (B, C, H, W), the emitters to be found, and the seed."""

    photons: NDArray[np.float32]
    truth: pd.DataFrame
    seed: int


def held_out_frames(trainer: FieldTraining[Any, Any], *, frames: int, side_px: int) -> HeldOut:
    """Frames drawn from the training ranges with another seed, always the same ones."""
    seed = trainer.options.seed + 1
    generator = torch.Generator(trainer.device).manual_seed(seed)
    scene = trainer.drawn(frames, (side_px, side_px), generator)
    photons = trainer.recorded(scene, generator).cpu().numpy()
    asked = trainer.asked(scene)
    truth = pd.DataFrame(asked.xyz_nm.double().cpu().numpy(), columns=["x_nm", "y_nm", "z_nm"])
    truth["frame"] = asked.image.cpu().numpy()
    return HeldOut(photons, truth, seed)


def run_now(trainer: FieldTraining[Any, Any]) -> Run:
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
