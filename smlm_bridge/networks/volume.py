"""The volume head of DeepSTORM3D (Nehme et al. 2020): one channel for each depth at several times the resolution.

The layers, the loss and the decoder are the published ones. The input is not: photo-electrons stabilised as in
``dense``, with constants of the training, instead of every image between its own least and largest value.
"""

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.functional import conv3d, interpolate

from smlm_bridge.networks.context import DilatedContext, context_block
from smlm_bridge.networks.dense import Targets, stabilise
from smlm_bridge.networks.trainable import Trainable
from smlm_bridge.networks.volume_grid import TAIL_CONVOLUTIONS, VolumeGrid

_KERNEL_REACH: Final = 3  # 7 voxels a side, of a standard deviation of one


@dataclass(frozen=True)
class VolumeScaling:
    """Constants that turn photo-electrons into network input.

    Parameters
    ----------
    read_variance, input_shift, input_scale
        As in ``dense.DenseScaling``.
    pixel_nm
        Camera pixel.
    """

    read_variance: float
    input_shift: float
    input_scale: float
    pixel_nm: float


class VolumeLocalizer(Trainable):
    """Photo-electrons (B, C, H, W) to volumes (B, D, uH, uW), 0 to ``grid.height``; u is ``grid.upsampling``."""

    def __init__(
        self, inputs: int, width: int, dilations: tuple[int, ...], grid: VolumeGrid, scaling: VolumeScaling
    ) -> None:
        super().__init__()
        self.scaling, self.grid = scaling, grid
        self.backbone: DilatedContext = DilatedContext(inputs, width, dilations)
        finer = round(math.log2(grid.upsampling))
        self.finer = nn.ModuleList(
            [context_block(self.backbone.outputs if i == 0 else width, width) for i in range(finer)]
        )
        self.depth = context_block(width, grid.planes)
        self.refine = nn.ModuleList(
            [context_block(grid.planes, grid.planes) for _ in range(TAIL_CONVOLUTIONS - 1)]
        )
        self.out = nn.Conv2d(grid.planes, grid.planes, 1)
        self.limit = nn.Hardtanh(0.0, grid.height)
        offsets = torch.arange(-_KERNEL_REACH, _KERNEL_REACH + 1)
        self.register_buffer("kernel", torch.exp(-(offsets**2) / 2.0), persistent=False)
        self.kernel: Tensor

    @property
    def reach(self) -> int:
        """Pixels to one side that a voxel depends on."""
        return self.backbone.reach + self.grid.tail_reach_px

    @property
    def size_step(self) -> int:
        """Height and width of the input must be multiples of this."""
        return self.backbone.size_step

    def forward(self, photons: Tensor) -> Tensor:
        """Volumes."""
        s = self.scaling
        x = self.backbone((stabilise(photons, s.read_variance) - s.input_shift) / s.input_scale)
        for block in self.finer:
            x = block(interpolate(x, scale_factor=2.0, mode="nearest"))
        x = self.depth(x)
        for block in self.refine:
            x = x + block(x)
        with torch.autocast(x.device.type, enabled=False):
            volume: Tensor = self.limit(self.out(x.float()))
        return volume

    def loss(self, photons: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Terms of the loss, each a scalar: heat map and overlap.

        The first is the mean square difference of found and wanted spikes after a Gaussian of one voxel (peak 1),
        the second one minus a soft Dice coefficient, (2 I + 1) / (I + B + 1) with I the sum of found times wanted
        and B the number of wanted spikes. Two emitters in one voxel are one spike.
        """
        found = self.forward(photons)
        wanted = self._spikes(found, targets)
        away = self._smoothed(found - self.grid.height * wanted)
        overlap = (found * wanted).sum() / self.grid.height
        dice = (2.0 * overlap + 1.0) / (overlap + wanted.sum() + 1.0)
        return {"heat_map": away.square().mean(), "overlap": 1.0 - dice}

    def _spikes(self, found: Tensor, targets: Targets) -> Tensor:
        """(B, D, uH, uW): 1 in the voxels of emitters."""
        grid = self.grid
        side = self.scaling.pixel_nm / grid.upsampling
        z = (targets.xyz_nm[:, 2] - grid.z_nm[0]) / grid.plane_nm
        where = torch.stack([z, targets.xyz_nm[:, 1] / side, targets.xyz_nm[:, 0] / side])
        most = torch.tensor(found.shape[1:], device=found.device)[:, None] - 1
        plane, row, column = where.floor().long().clamp_min(0).minimum(most)
        wanted = torch.zeros_like(found)
        wanted[targets.image, plane, row, column] = 1.0
        return wanted

    def _smoothed(self, volume: Tensor) -> Tensor:
        """Convolved with the Gaussian, axis by axis; zeros beyond the faces."""
        x = volume[:, None]
        for axis in range(3):
            shape = [1] * 5
            shape[2 + axis] = -1
            padding = [_KERNEL_REACH if i == axis else 0 for i in range(3)]
            x = conv3d(x, self.kernel.view(shape), padding=padding)
        return x[:, 0]
