"""Types of option values: ranges, sequences, sizes, regions, devices."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:  # click before 8.3 has no generic parameter type
    _ParamType = click.ParamType

MAX_SEQUENCE = 100_000
TOLERANCE_STEPS = 1e-6


def _numbers(text: str, separator: str, what: str) -> list[float]:
    values = []
    for part in text.split(separator):
        try:
            value = float(part)
        except ValueError:
            raise ValueError(f"'{text}' is not {what}: '{part}' is not a number.") from None
        if not math.isfinite(value):
            raise ValueError(f"'{text}' is not {what}: '{part}' is not finite.")
        values.append(value)
    return values


def parse_range(text: str) -> tuple[float, float]:
    """``A:B`` with A <= B, or one value, which is both ends."""
    values = _numbers(text, ":", "a range A:B")
    if len(values) > 2:
        raise ValueError(f"'{text}' has {len(values)} parts; a range is A:B, for example 1000:20000.")
    low, high = values[0], values[-1]
    if low > high:
        raise ValueError(
            f"'{text}' runs backwards; a range is A:B with A <= B: did you mean {high:g}:{low:g}?"
        )
    return low, high


def parse_frames(text: str) -> tuple[int, int]:
    """``A:B`` of whole frames from 1, both included, or one frame."""
    low, high = parse_range(text)
    if low != int(low) or high != int(high) or low < 1:
        raise ValueError(
            f"'{text}' is not a range of frames; frames are whole numbers from 1, for example 1:500."
        )
    return int(low), int(high)


def parse_sequence(text: str) -> tuple[float, ...]:
    """``START:STOP:STEP``, the stop included, upwards or downwards; or one value."""
    values = _numbers(text, ":", "a sequence START:STOP:STEP")
    if len(values) == 1:
        return (values[0],)
    if len(values) != 3:
        raise ValueError(
            f"'{text}' has {len(values)} parts; a sequence is START:STOP:STEP, like -1000:1000:100."
        )
    start, stop, step = values
    if start == stop:
        return (start,)
    if step == 0 or (stop - start) * step < 0:
        raise ValueError(f"'{text}': a step of {step:g} does not lead from {start:g} to {stop:g}.")
    count = math.floor((stop - start) / step + TOLERANCE_STEPS) + 1
    if count > MAX_SEQUENCE:
        raise ValueError(f"'{text}' has {count} values, allowed are {MAX_SEQUENCE}; give a larger step.")
    return tuple(start + index * step for index in range(count))


def parse_size(text: str) -> tuple[int, int]:
    """``HxW`` in pixels: rows, columns."""
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise ValueError(f"'{text}' is not a size HxW in whole pixels, for example 64x96.")
    return int(parts[0]), int(parts[1])


def parse_roi(text: str) -> tuple[int, int, int, int]:
    """``X,Y,W,H`` in pixels."""
    form = f"'{text}' is not a region X,Y,W,H in whole pixels (X, Y from 0), for example 10,20,64,64."
    try:
        x, y, width, height = (int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(form) from None
    if x < 0 or y < 0 or width < 1 or height < 1:
        raise ValueError(form)
    return x, y, width, height


def parse_device(text: str) -> str:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""
    name, _, number = text.partition(":")
    if text in ("auto", "cpu", "cuda") or (name == "cuda" and number.isdigit()):
        return text
    raise ValueError(f"'{text}' is not a device; allowed are auto, cpu, cuda and cuda:N.")


def parse_slices(text: str) -> str | tuple[int, int, int]:
    """``all``, ``even``, ``odd`` or ``A:B:S`` of slices from 0, B included."""
    if text in ("all", "even", "odd"):
        return text
    form = f"'{text}' is not all, even, odd or A:B:S (slices from 0, B included), for example 0:50:2."
    try:
        first, last, step = (int(part) for part in text.split(":"))
    except ValueError:
        raise ValueError(form) from None
    if first < 0 or last < first or step < 1:
        raise ValueError(form)
    return first, last, step


def parse_analyser(text: str) -> str | float:
    """``auto``, ``none`` or an angle in degrees."""
    if text in ("auto", "none"):
        return text
    try:
        angle = float(text)
    except ValueError:
        angle = math.nan
    if not math.isfinite(angle):
        raise ValueError(f"'{text}' is not auto, none or an angle in degrees.")
    return angle


def parse_pair(text: str) -> tuple[float, float]:
    """``X,Y``: two numbers."""
    values = _numbers(text, ",", "X,Y, two numbers")
    if len(values) != 2:
        raise ValueError(f"'{text}' has {len(values)} parts; give two numbers X,Y, for example 6400,6400.")
    return values[0], values[1]


class _Parsed(_ParamType):
    """A click type around a function that raises ValueError with a full sentence."""

    def __init__(self, parse: Callable[[str], object], metavar: str) -> None:
        self.name = metavar
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value.strip())
        except ValueError as error:
            self.fail(str(error), param, ctx)

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return self.name


def _number_or_path(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


RANGE = _Parsed(parse_range, "A:B")
FRAMES = _Parsed(parse_frames, "A:B")
SEQUENCE = _Parsed(parse_sequence, "START:STOP:STEP")
SIZE = _Parsed(parse_size, "HxW")
ROI = _Parsed(parse_roi, "X,Y,W,H")
DEVICE = _Parsed(parse_device, "auto|cpu|cuda[:N]")
SLICES = _Parsed(parse_slices, "all|even|odd|A:B:S")
NUMBER_OR_MAP = _Parsed(_number_or_path, "NUMBER|TIFF")
ANALYSER = _Parsed(parse_analyser, "auto|none|DEG")
PAIR = _Parsed(parse_pair, "X,Y")
