"""Train the volume head of DeepSTORM3D by online simulation."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from smlm_bridge.errors import InputRejected
from smlm_bridge.evaluate import evaluate
from smlm_bridge.model import Run
from smlm_bridge.networks.decode_volume import decode_volume
from smlm_bridge.networks.volume import VolumeLocalizer, VolumeScaling
from smlm_bridge.networks.volume_grid import VolumeGrid
from smlm_bridge.train import LEAST_Z_RANGE_NM, FieldOptions, FieldTraining, held_out_frames, run_now

THRESHOLD = 0.1  # 80 of 800, as published for simulated frames


@dataclass(frozen=True, kw_only=True)
class VolumeOptions(FieldOptions):
    """How to train a network of volumes; beyond ``FieldOptions``:

    The defaults are the published layers (Nehme et al. 2020), which want a GPU.

    Parameters
    ----------
    width
        Channels at camera resolution.
    dilations
        Of the blocks at camera resolution; 1, 1, 2, 4, 1, 1 for small PSFs.
    planes, upsampling, height, radius
        See ``VolumeGrid``.
    """

    batch: int = 4
    learning_rate: float = 5e-4
    patch_px: int = 121
    reach_px: int = 60
    width: int = 64
    dilations: tuple[int, ...] = (1, 1, 2, 4, 8, 16)
    planes: int = 121
    upsampling: int = 4
    height: float = 800.0
    radius: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        self.grid((0.0, 1.0))
        if self.width < 1 or not self.dilations or min(self.dilations) < 1:
            raise InputRejected(
                f"width {self.width}, dilations {self.dilations}: give numbers from 1, at least one dilation."
            )

    def grid(self, z_nm: tuple[float, float]) -> VolumeGrid:
        """The voxels between two heights."""
        return VolumeGrid(self.planes, z_nm, self.upsampling, self.height, self.radius)


class VolumeTrainer(FieldTraining[VolumeLocalizer, VolumeOptions]):
    """A training of a network of volumes; see ``FieldTraining``."""

    loss_weights: ClassVar[Mapping[str, float]] = {"heat_map": 1.0, "overlap": 1.0}
    shape_options: ClassVar[tuple[str, ...]] = (
        "width",
        "dilations",
        "planes",
        "upsampling",
        "height",
        "radius",
        "context_frames",
    )

    def _network(self, scaling: VolumeScaling) -> VolumeLocalizer:
        options = self.options
        low, high = self.ranges.z_nm
        middle, half = (low + high) / 2, max(high - low, LEAST_Z_RANGE_NM) / 2
        grid = options.grid((middle - half, middle + half))
        return VolumeLocalizer(self.inputs, options.width, options.dilations, grid, scaling)

    def _scaling(self) -> VolumeScaling:
        found = self._statistics()
        return VolumeScaling(
            found.read_variance, found.input_shift, found.input_scale, self.calibration.optics.pixel_nm
        )


def volume_scores(
    trainer: VolumeTrainer, run: Run | None = None, *, frames: int = 50, side_px: int = 48
) -> dict[str, Any]:
    """Figures of merit on frames drawn from the training ranges with another seed, always the same ones.

    Parameters
    ----------
    trainer
        Its ranges, PSF and camera make the frames.
    run
        What is scored, photo-electrons (B, C, H, W) to volumes; None for the network as it is now.
    frames, side_px
        Number of frames and their side.
    """
    test = held_out_frames(trainer, frames=frames, side_px=side_px)
    network, grid = run or run_now(trainer), trainer.network.grid
    pixel_nm, tables = trainer.calibration.optics.pixel_nm, []
    for number, frame in enumerate(test.photons):  # one volume at a time
        found = decode_volume(network(frame[None])[0], grid, pixel_nm=pixel_nm, threshold=THRESHOLD)
        table = pd.DataFrame({name: found[name] for name in ("x_nm", "y_nm", "z_nm")})
        tables.append(table.assign(frame=np.int64(number)))
    table = pd.concat(tables, ignore_index=True)
    return {**asdict(evaluate(table, test.truth)[1]), "frames": frames, "seed": test.seed}
