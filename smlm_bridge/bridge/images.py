"""Frames and tables between numpy, pandas and ImageJ."""

from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from smlm_bridge.bridge.java import java_class, jpype
from smlm_bridge.errors import InputRejected

_INT, _SHORT, _BYTE, _FLOAT = "JInt", "JShort", "JByte", "JFloat"
#: numpy's types that ImageJ has as they are; the types of Java that hold them.
_PIXELS: Final = {"uint8": (_BYTE, np.int8), "uint16": (_SHORT, np.int16), "float32": (_FLOAT, np.float32)}
_OF_DEPTH: Final = {8: np.uint8, 16: np.uint16, 32: np.float32}
_RGB: Final = 24


def to_image(frames: NDArray[Any], *, title: str = "frames", pixel_nm: float | None = None) -> Any:
    """An ImagePlus that holds the same numbers.

    Parameters
    ----------
    frames
        (H, W) or (T, H, W) of uint8, uint16 or float32; nothing is converted in silence.
    title
        Its title.
    pixel_nm
        Size of a pixel, written into ImageJ's calibration in um.

    Raises
    ------
    InputRejected
        If the shape or type is another.
    """
    if frames.ndim == 2:
        frames = frames[None]
    if frames.ndim != 3 or frames.size == 0:
        raise InputRejected(f"ImageJ gets frames (T, H, W) or one (H, W), not an array of {frames.shape}.")
    if frames.dtype.name not in _PIXELS:
        raise InputRejected(
            f"ImageJ has no pixels of type {frames.dtype}; it has {', '.join(_PIXELS)}. Convert the frames: "
            "counts of a camera to uint16, everything else to float32."
        )
    name, signed = _PIXELS[frames.dtype.name]
    module = jpype()
    array = module.JArray(getattr(module, name))
    height, width = frames.shape[1:]
    stack = java_class("ij.ImageStack")(width, height)
    for frame in frames:
        stack.addSlice("", array(np.ascontiguousarray(frame).view(signed).ravel()))
    image = java_class("ij.ImagePlus")(title, stack)
    image.setDimensions(1, 1, len(frames))
    if pixel_nm is not None:
        calibration = image.getCalibration()
        calibration.pixelWidth = calibration.pixelHeight = pixel_nm / 1000.0
        calibration.setUnit("um")
    return image


def from_image(image: Any) -> NDArray[Any]:
    """A copy of an ImagePlus's pixels: (T, H, W) of all slices in ImageJ's order, (T, H, W, 3) where it is RGB."""
    stack = image.getStack()
    height, width = int(image.getHeight()), int(image.getWidth())
    slices = [np.array(stack.getPixels(index + 1)) for index in range(int(image.getStackSize()))]
    flat = np.stack(slices)
    depth = int(image.getBitDepth())
    if depth == _RGB:
        packed = flat.astype(np.int64)
        channels = [(packed >> shift) & 0xFF for shift in (16, 8, 0)]
        return np.stack(channels, axis=-1).astype(np.uint8).reshape(-1, height, width, 3)
    return flat.view(_OF_DEPTH[depth]).reshape(-1, height, width)


def pixel_nm_of(image: Any) -> float | None:
    """Size of a pixel by ImageJ's calibration, None where that has no length."""
    calibration = image.getCalibration()
    unit = str(calibration.getUnit()).lower()
    factor = {"nm": 1.0, "um": 1e3, "µm": 1e3, "μm": 1e3, "micron": 1e3, "microns": 1e3, "mm": 1e6}.get(unit)
    return None if factor is None else float(calibration.pixelWidth) * factor


def to_results_table(table: pd.DataFrame) -> Any:
    """An ImageJ ResultsTable with the numeric columns of a table."""
    module = jpype()
    results = java_class("ij.measure.ResultsTable")(java_class("java.lang.Integer")(len(table)))
    for name in table.columns:
        values = table[name].to_numpy()
        if values.dtype.kind not in "biuf":
            raise InputRejected(f"the column {name} holds text; ImageJ's table gets numbers.")
        results.setValues(str(name), module.JArray(module.JDouble)(values.astype(np.float64)))
    return results


def from_results_table(results: Any) -> pd.DataFrame:
    """The numeric columns of an ImageJ ResultsTable."""
    headings = [str(name) for name in results.getHeadings() if str(name) != "Label"]
    columns: dict[str, NDArray[np.float64]] = {}
    for name in headings:
        column = np.asarray(results.getColumnAsDoubles(results.getColumnIndex(name)), dtype=np.float64)
        columns[name] = column[: int(results.size())]
    return pd.DataFrame(columns, index=pd.RangeIndex(int(results.size())))
