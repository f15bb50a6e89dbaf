"""The check of a network of two channels: each channel rendered again with its own PSF, judged together."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from smlm_bridge.camera import Camera
from smlm_bridge.coverage.boxes import Boxes
from smlm_bridge.coverage.rendered import Measured, Renderer, box_side
from smlm_bridge.pair import PairCalibration


@dataclass(frozen=True)
class PairRenderer:
    """The renderers of both channels."""

    channels: tuple[Renderer, Renderer]

    @classmethod
    def of(cls, pair: PairCalibration, ranges: Mapping[str, Any], *, side_px: int) -> "PairRenderer":
        """For a model's calibration and training ranges; see ``Renderer.of``."""
        second = dict(ranges.get("channel2", {}))
        own = {**ranges, **({"blur_nm": second["blur_nm"]} if second.get("blur_nm") else {})}
        return cls(
            (
                Renderer.of(pair.first, ranges, side_px=side_px),
                Renderer.of(pair.second, own, side_px=side_px),
            )
        )

    @property
    def side_px(self) -> int:
        """Side of the boxes."""
        return self.channels[0].side_px

    def with_cameras(self, cameras: Sequence[Camera]) -> "PairRenderer":
        """The same for frames of other cameras."""
        first, second = (
            one.with_cameras([camera]) for one, camera in zip(self.channels, cameras, strict=True)
        )
        return PairRenderer((first, second))

    def exact(self) -> "PairRenderer":
        """The same for images that were drawn with the very PSFs."""
        first, second = (replace(one, model_error=0.0) for one in self.channels)
        return PairRenderer((first, second))

    def measure(self, boxes: Boxes) -> Measured:
        """What the boxes of both channels show; the picture is that of the first."""
        found = [one.measure(part) for one, part in zip(self.channels, boxes.parts, strict=True)]
        each = np.stack([one.statistics for one in found])
        joined = [each[:, :, 0].sum(0) / math.sqrt(len(found)), *np.cbrt((each[:, :, 1:] ** 3).sum(0)).T]
        quantities = found[0].quantities.copy()
        quantities[:, 1] = sum(one.quantities[:, 1] for one in found)
        crowding = np.mean([one.crowding for one in found], axis=0)
        return Measured(np.stack(joined, axis=1), quantities, crowding, found[0].model)


def pair_side(pair: PairCalibration, ranges: Mapping[str, Any]) -> int:
    """Side of the boxes that hold enough light of either channel, see ``box_side``."""
    return max(box_side(channel, ranges) for channel in pair.channels)
