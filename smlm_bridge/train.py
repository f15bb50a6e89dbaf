"""Train a network by online simulation: one plain loop for every system."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from smlm_bridge.calibration import Calibration
from smlm_bridge.camera import Camera
from smlm_bridge.errors import InputRejected, SmlmError
from smlm_bridge.evaluate import evaluate
from smlm_bridge.model import Run
from smlm_bridge.networks.decode import decode
from smlm_bridge.networks.dense import DenseLocalizer, DenseScaling, Targets, stabilise
from smlm_bridge.psf.gaussian import GaussianPSF
from smlm_bridge.psf.protocol import PSF
from smlm_bridge.psf.pupil_psf import PupilPSF
from smlm_bridge.psf.spline import SplinePSF
from smlm_bridge.simulate.render import in_label_set, record, render
from smlm_bridge.simulate.scene import Ranges, Scene, draw

_LEAST_Z_RANGE_NM = 2.0  # a single height is a range, too
LOSS_WEIGHTS: Mapping[str, float] = {"detection": 1.0, "localization": 0.3, "background": 0.3}


@dataclass(frozen=True)
class TrainOptions:
    """How to train.

    Parameters
    ----------
    samples, minutes
        The budget: whichever is used up first ends the training; the learning rate follows it.
    batch, patch_px
        Patches per step and their side in pixels.
    learning_rate, weight_decay
        Of AdamW; the rate warms up over 1 % and then follows a cosine to zero.
    widths, bottom_dilations
        Of the U-Net.
    reach_px
        How far from an emitter its image is rendered.
    seed
        Of everything random.
    """

    samples: int = 100_000
    minutes: float = math.inf
    batch: int = 8
    patch_px: int = 72
    learning_rate: float = 1.5e-3
    weight_decay: float = 1e-4
    widths: tuple[int, ...] = (32, 64, 128)
    bottom_dilations: tuple[int, ...] = (1, 2)
    reach_px: int = 36
    seed: int = 1

    def __post_init__(self) -> None:
        step = 2 ** (len(self.widths) - 1)
        if self.patch_px % step:
            raise InputRejected(
                f"patch_px {self.patch_px} must be a multiple of {step} for {len(self.widths)} scales."
            )
        if self.samples < self.batch or self.minutes <= 0:
            raise InputRejected(f"nothing to train: samples {self.samples}, minutes {self.minutes}.")


@dataclass
class Progress:
    """The state of a training: what a checkpoint holds beside weights and optimiser."""

    samples: int = 0
    seconds: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)


class Trainer:
    """A training that can be stopped after any step and resumed.

    The loop is ``while not trainer.done: trainer.step()``; ``state_dict`` and ``load_state_dict`` carry
    weights, optimiser, random state and budget, so that a resumed training draws the very same frames.

    Raises
    ------
    InputRejected
        If a map of the calibration's camera is smaller than a patch.
    """

    def __init__(
        self,
        calibration: Calibration,
        ranges: Ranges,
        options: TrainOptions,
        *,
        device: torch.device | str = "cpu",
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.calibration, self.ranges, self.options = calibration, ranges, options
        self.device = torch.device(device)
        self.generator = torch.Generator(self.device).manual_seed(options.seed)
        self.psf = training_psf(calibration, ranges, reach_px=options.reach_px, device=self.device)
        scaling = self._scaling()
        with torch.random.fork_rng(devices=[]):  # layers draw their weights from the global generator
            torch.manual_seed(options.seed)
            network = DenseLocalizer(1, options.widths, options.bottom_dilations, scaling)
        if weights is not None:
            _start_from(network, weights)
        self.network: DenseLocalizer = network.to(self.device)
        self.network.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
        )
        self.progress = Progress()

    @property
    def fraction(self) -> float:
        """Share of the budget that is used, 0 to 1."""
        used = max(
            self.progress.samples / self.options.samples, self.progress.seconds / (60 * self.options.minutes)
        )
        return min(1.0, used)

    @property
    def done(self) -> bool:
        """Whether the budget is used up."""
        return self.fraction >= 1.0

    def draw_batch(self) -> tuple[Tensor, Targets]:
        """Simulated frames in photo-electrons (B, 1, H, W) and what to find in them."""
        options = self.options
        shape = (options.patch_px, options.patch_px)
        pixel_nm = self.calibration.optics.pixel_nm
        scene = draw(self.ranges, self.generator, frames=options.batch, shape=shape, pixel_nm=pixel_nm)
        photons = self._photons(scene)
        asked = in_label_set(scene, pixel_nm=pixel_nm, min_photons=self.ranges.label_min_photons)
        return photons, Targets(asked.frame, asked.xyz_nm, asked.photons, scene.background)

    def step(self) -> dict[str, float]:
        """One optimiser step on fresh frames; returns the terms of the loss."""
        began = time.monotonic()
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.learning_rate * _schedule(self.fraction)
        photons, targets = self.draw_batch()
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            terms = self.network.loss(photons.contiguous(memory_format=torch.channels_last), targets)
            loss = sum(LOSS_WEIGHTS[name] * term for name, term in terms.items())
        assert isinstance(loss, Tensor)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self.optimizer.step()
        self.progress.samples += self.options.batch
        self.progress.seconds += time.monotonic() - began
        return {name: float(term.detach()) for name, term in terms.items()}

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed training needs; tensors, numbers and strings only."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "progress": asdict(self.progress),
            "options": asdict(self.options),
            "ranges": self.ranges.to_json(),
            "calibration_hash": self.calibration.hash,
            "scaling": asdict(self.network.scaling),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from ``state_dict``.

        Raises
        ------
        InputRejected
            If the checkpoint belongs to another calibration, other ranges or another network.
        """
        if state["calibration_hash"] != self.calibration.hash or state["ranges"] != self.ranges.to_json():
            raise InputRejected(
                "the checkpoint was trained on another calibration or other ranges. Resume with the same "
                "ones, or start afresh from its weights with --from."
            )
        for name in ("widths", "bottom_dilations"):
            if tuple(state["options"][name]) != tuple(getattr(self.options, name)):
                raise InputRejected(
                    f"the checkpoint's network has {name} {tuple(state['options'][name])}, this training "
                    f"{tuple(getattr(self.options, name))}. Resume with the same network."
                )
        self.network.scaling = DenseScaling(**state["scaling"])
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.progress = Progress(**state["progress"])

    def _photons(self, scene: Scene) -> Tensor:
        camera = self._patch_of_camera()
        counts = record(scene, render(scene, self.psf), camera, self.generator)
        offset, gain = (
            torch.as_tensor(v, dtype=counts.dtype, device=counts.device)
            for v in (camera.offset, camera.e_per_adu)
        )
        return ((counts - offset) * (gain / camera.em_gain))[:, None]

    def _patch_of_camera(self) -> Camera:
        """The camera of a patch: of maps a random part, another one in every batch."""
        camera, side = self.calibration.camera, self.options.patch_px
        maps = [
            v for v in (camera.offset, camera.e_per_adu, camera.read_noise_e) if isinstance(v, np.ndarray)
        ]
        if not maps:
            return camera
        shape = np.min([value.shape for value in maps], axis=0)
        if shape.min() < side:
            raise InputRejected(
                f"the camera's maps of {shape[1]} x {shape[0]} pixels are smaller than a training patch of "
                f"{side} pixels. Give maps of the whole chip, numbers, or a smaller patch."
            )
        y0, x0 = (
            int(torch.randint(int(n) - side + 1, (), generator=self.generator, device=self.device))
            for n in shape
        )
        return camera.crop(y0, x0, side, side)

    def _scaling(self) -> DenseScaling:
        """Input statistics from a few simulated frames; output units from the ranges."""
        ranges, camera = self.ranges, self.calibration.camera
        generator_state = self.generator.get_state()
        shape = (self.options.patch_px, self.options.patch_px)
        scene = draw(
            ranges, self.generator, frames=32, shape=shape, pixel_nm=self.calibration.optics.pixel_nm
        )
        read = float(np.mean(camera.read_noise_e)) / camera.em_gain
        read_variance = read**2 + (sum(ranges.read_noise_e) / 2) ** 2
        frames = stabilise(self._photons(scene), read_variance)
        self.generator.set_state(generator_state)
        return DenseScaling(
            read_variance=read_variance,
            input_shift=float(frames.mean()),
            input_scale=float(frames.std().clamp_min(1.0)),
            pixel_nm=self.calibration.optics.pixel_nm,
            z_mid_nm=sum(ranges.z_nm) / 2,
            z_half_nm=max(ranges.z_nm[1] - ranges.z_nm[0], _LEAST_Z_RANGE_NM) / 2,
            photons=float(scene.photons.log().mean().exp()) if scene.photons.numel() else 1000.0,
            background=float(scene.background.mean().clamp_min(0.1)),
        )


def _start_from(network: DenseLocalizer, weights: Mapping[str, Tensor]) -> None:
    """Take the weights of another training of the same network."""
    own = network.state_dict()
    for name, value in own.items():
        given = weights.get(name)
        if not name.endswith("num_batches_tracked") and (given is None or given.shape != value.shape):
            raise InputRejected(
                f"the weights to start from belong to another network ('{name}' is missing or of another size). "
                "Start from a model of the same system, or without --from."
            )
    network.load_state_dict({**own, **{name: value for name, value in weights.items() if name in own}})


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
    if isinstance(psf, GaussianPSF):
        return psf
    assert isinstance(psf, PupilPSF)
    return SplinePSF.tabulate(psf, z_range_nm=ranges.z_nm, reach_nm=reach_px * psf.pixel_nm)


def train(
    trainer: Trainer,
    *,
    on_step: Callable[[Progress, dict[str, float]], None] | None = None,
) -> DenseLocalizer:
    """Run a training to the end of its budget.

    ``on_step`` sees the progress and the loss after every step; it may save ``trainer.state_dict()``,
    evaluate, or raise to stop.

    Raises
    ------
    SmlmError
        If the loss is not finite; ``on_step`` has not seen that step, so its checkpoints hold good weights.
    """
    while not trainer.done:
        terms = trainer.step()
        if not math.isfinite(sum(terms.values())):
            raise SmlmError(
                f"the loss is not finite after {trainer.progress.samples} samples: {terms}. Resume from the "
                "last checkpoint or start with a lower learning rate."
            )
        if on_step is not None:
            on_step(trainer.progress, terms)
    trainer.network.eval()
    return trainer.network


def _schedule(fraction: float) -> float:
    warm_up = 0.01
    if fraction < warm_up:
        return 0.05 + 0.95 * fraction / warm_up
    return 0.5 * (1 + math.cos(math.pi * (fraction - warm_up) / (1 - warm_up)))
