"""The grid of a volume network's output; no torch here."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Self

import numpy as np

from smlm_bridge.errors import InputRejected

UPSAMPLINGS: Final = (2, 4, 8)
MOST_PLANES: Final = 1024
TAIL_CONVOLUTIONS: Final = 3  # at the finest scale, beyond the one after each upsampling
_LARGEST_RADIUS: Final = 32


@dataclass(frozen=True)
class VolumeGrid:
    """Voxels of a volume network, and the constants of its decoder.

    Parameters
    ----------
    planes
        Depths.
    z_nm
        Lower face of the first plane and upper face of the last.
    upsampling
        Voxels along a camera pixel: 2, 4 or 8.
    height
        Value of the voxel of an emitter in the training target, and the largest the network returns.
    radius
        A peak exceeds the cube of 2 ``radius`` + 1 voxels around it, and its position is that cube's centre of
        gravity (Nehme et al. 2020: 4).

    Raises
    ------
    InputRejected
        If a number is not possible.
    """

    planes: int
    z_nm: tuple[float, float]
    upsampling: int = 4
    height: float = 800.0
    radius: int = 4

    def __post_init__(self) -> None:
        low, high = self.z_nm
        if not (
            1 <= self.planes <= MOST_PLANES
            and self.upsampling in UPSAMPLINGS
            and -np.inf < low < high < np.inf
            and 0 < self.height < np.inf
            and 0 <= self.radius <= _LARGEST_RADIUS
        ):
            raise InputRejected(
                f"{self} is no grid: 1 to {MOST_PLANES} planes, upsampling by {UPSAMPLINGS}, the lower z first, a "
                f"height above 0 and a radius of 0 to {_LARGEST_RADIUS}."
            )

    @property
    def plane_nm(self) -> float:
        """Distance of planes."""
        return (self.z_nm[1] - self.z_nm[0]) / self.planes

    @property
    def tail_reach_px(self) -> int:
        """Camera pixels to one side that a voxel depends on, from the first upsampling on."""
        reach, scale = TAIL_CONVOLUTIONS, self.upsampling
        while scale > 1:  # from the finest scale back; a convolution follows every upsampling
            reach, scale = -(-(reach + 1) // 2), scale // 2
        return reach

    @property
    def peak_reach_px(self) -> int:
        """Camera pixels to one side that the decoder looks at."""
        return -(-self.radius // self.upsampling)

    def to_json(self) -> dict[str, Any]:
        """Numbers and lists."""
        return {**asdict(self), "z_nm": list(self.z_nm)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what ``to_json`` wrote.

        Raises
        ------
        InputRejected
            If a key is unknown, missing or of the wrong kind.
        """
        try:
            if set(data) != {part.name for part in fields(cls)}:
                raise InputRejected(f"the grid of the volume has the keys {sorted(data)}.")
            low, high = data["z_nm"]
            numbers = {name: data[name] for name in ("planes", "upsampling", "height", "radius")}
            if any(type(numbers[name]) is not int for name in ("planes", "upsampling", "radius")):
                raise InputRejected(
                    f"planes, upsampling and radius of the volume must be whole numbers: {numbers}."
                )
            return cls(z_nm=(float(low), float(high)), **{**numbers, "height": float(numbers["height"])})
        except (TypeError, ValueError, OverflowError) as error:
            raise InputRejected(f"the grid of the volume is damaged: {error}.") from error
