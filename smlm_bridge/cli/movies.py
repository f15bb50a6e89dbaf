"""What verbs ask of a movie before they begin: the camera of its region, and whether it fits the model."""

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from smlm_bridge.errors import InputRejected, UsageError

if TYPE_CHECKING:
    from smlm_bridge.camera import Camera
    from smlm_bridge.cluster.recipe import Tool
    from smlm_bridge.io.channels import Movie

OFFSET_TOLERANCE_ADU = 2.0
PIXEL_TOLERANCE = 0.02


def channel_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--channel2`` and ``--split``: where the second of two channels is."""
    for option in (
        click.option("--split", metavar="left-right|top-bottom|X,Y,W,H;X,Y,W,H",
                     help="Two channels on one chip: its halves, or two regions of one size."),
        click.option("--channel2", metavar="FILE", help="The movie of channel 2: a file, a folder or a pattern."),
    ):  # fmt: skip
        function = option(function)
    return function


def check_channels(channel2: object, split: str | None) -> None:
    """Refuse what says twice where channel 2 is, or is no split, before anything is read."""
    from smlm_bridge.io.channels import HALVES, parsed_split

    if channel2 and split is not None:
        raise UsageError("give --channel2 (a movie of its own) or --split (a part of the chip), not both.")
    if split is not None and split not in HALVES:
        try:
            parsed_split(split)
        except InputRejected as error:
            raise UsageError(str(error)) from error


def cameras_of(source: "Movie", cameras: "Sequence[Camera]") -> "tuple[Camera, ...]":
    """The cameras of the channels' regions, see ``camera_of``."""
    return tuple(camera_of(source, camera, channel=channel) for channel, camera in enumerate(cameras))


def camera_of(source: "Movie", camera: "Camera", *, channel: int = 0) -> "Camera":
    """The camera of the region of a movie: maps of the whole chip, or of a whole channel of it, are cut."""
    maps = [
        value for value in (camera.offset, camera.e_per_adu, camera.read_noise_e) if hasattr(value, "shape")
    ]
    if all(value.shape == (source.height, source.width) for value in maps):
        return camera
    if any(value.shape == (source.height, source.width) for value in maps):
        raise InputRejected(
            "the camera's maps differ in size; give all for the whole frame or all for the region."
        )
    x, y = source.corners_px[channel]
    if maps[0].shape == source.channel_shape:
        x, y = source.roi_px
    return camera.crop(y, x, source.height, source.width)


def check_count(source: "Movie", tool: "Tool") -> None:
    """Refuse a movie of another number of channels."""
    if source.n_channels != tool.channels:
        raise InputRejected(
            f"'{tool.name}' takes {tool.channels} channel(s), the frames have {source.n_channels}. Choose "
            "another model or calibration, or give the right channels (--channel2, --split)."
        )


def check_movie(source: "Movie", tool: "Tool", cameras: "Sequence[Camera]") -> None:
    """Refuse before the first frame what would fail in every frame."""
    import numpy as np

    for camera in cameras:
        camera.to_photons(np.zeros((1, source.height, source.width), np.float32))
    offset = float(np.mean(cameras[0].offset))
    wanted = tool.calibration.channels[0].optics.pixel_nm
    if source.pixel_nm and abs(source.pixel_nm / wanted - 1) > PIXEL_TOLERANCE:
        warnings.warn(
            f"the file says a pixel is {source.pixel_nm:g} nm, '{tool.name}' is for {wanted:g} nm; "
            "positions are in its pixels.",
            stacklevel=2,
        )
    stated = source.camera_offset
    if stated is not None and abs(stated - offset) > OFFSET_TOLERANCE_ADU:
        warnings.warn(
            f"the file says the camera's offset is {stated:g}, the calculation takes {offset:g}; --offset changes "
            "it.",
            stacklevel=2,
        )
