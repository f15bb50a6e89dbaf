"""What verbs ask of a movie before they begin: the camera of its region, and whether it fits the model."""

import warnings
from typing import TYPE_CHECKING

from smlm_bridge.errors import InputRejected

if TYPE_CHECKING:
    from smlm_bridge.camera import Camera
    from smlm_bridge.cluster.recipe import Tool
    from smlm_bridge.io.images import FrameSource

OFFSET_TOLERANCE_ADU = 2.0
PIXEL_TOLERANCE = 0.02


def camera_of(source: "FrameSource", camera: "Camera") -> "Camera":
    """The camera of the region of a movie: maps of the whole chip are cut."""
    maps = [
        value for value in (camera.offset, camera.e_per_adu, camera.read_noise_e) if hasattr(value, "shape")
    ]
    if all(value.shape == (source.height, source.width) for value in maps):
        return camera
    if any(value.shape == (source.height, source.width) for value in maps):
        raise InputRejected(
            "the camera's maps differ in size; give all for the whole frame or all for the region."
        )
    return camera.crop(source.y0, source.x0, source.height, source.width)


def check_movie(source: "FrameSource", tool: "Tool", camera: "Camera") -> None:
    """Refuse before the first frame what would fail in every frame."""
    import numpy as np

    if source.n_channels != tool.channels:
        raise InputRejected(
            f"'{tool.name}' takes {tool.channels} channel(s), the frames have {source.n_channels}. Choose "
            "another model or calibration, or give the right channels."
        )
    camera.to_photons(np.zeros((1, source.height, source.width), np.float32))
    wanted = tool.calibration.channels[0].optics.pixel_nm
    if source.pixel_nm and abs(source.pixel_nm / wanted - 1) > PIXEL_TOLERANCE:
        warnings.warn(
            f"the file says a pixel is {source.pixel_nm:g} nm, '{tool.name}' is for {wanted:g} nm; "
            "positions are in its pixels.",
            stacklevel=2,
        )
    stated = source.camera_offset
    if stated is not None and abs(stated - float(np.mean(camera.offset))) > OFFSET_TOLERANCE_ADU:
        warnings.warn(
            f"the file says the camera's offset is {stated:g}, the calculation takes "
            f"{float(np.mean(camera.offset)):g}; --offset changes it.",
            stacklevel=2,
        )
