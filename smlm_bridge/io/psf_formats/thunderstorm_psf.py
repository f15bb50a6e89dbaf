"""ThunderSTORM's calibrations of astigmatism, ``.yaml``.

One line: the class in ``!!``, then a flow map. Widths are in pixels of the camera, heights in nm from the plane
in focus, the angle in rad; index 1 is x at angle 0. ``PolynomialCalibration``: sigma = b + a (z - c)^2 +
d (z - c)^3. ``DaostormCalibration``: sigma = w0/2 sqrt(1 + t^2 + a t^3 + b t^4), t = (z - c)/d.
"""

import math
import re
from pathlib import Path
from typing import Any

from smlm_bridge.calibration import Calibration
from smlm_bridge.errors import InputRejected
from smlm_bridge.io.psf_formats import Request, focus_height_nm
from smlm_bridge.optics.gaussian import Gaussian
from smlm_bridge.optics.microscope import Optics

_PACKAGE = "!!cz.cuni.lf1.lge.ThunderSTORM.calibration."
_NAMES = {"PolynomialCalibration": "polynomial", "DaostormCalibration": "defocus"}
_PARAMETERS = tuple(f"{name}{index}" for name in ("a", "b", "c", "d", "w0") for index in (1, 2))
_LARGEST_FILE = 100_000
_WIDEST_PX = 100.0


def read(path: Path, request: Request) -> Calibration:
    """Read an astigmatic calibration.

    Raises
    ------
    InputRejected
        If it is none, of two planes, lacks a parameter or has one that is not finite or absurd.
    """
    kind, values = _parse(path)
    optics = request.optics({})
    reference = focus_height_nm(optics)
    polynomial = _NAMES[kind] == "polynomial"
    axes = [(_polynomial if polynomial else _defocus)(path, values, index) for index in (1, 2)]
    sigma, focus, depth, third, fourth = zip(*axes, strict=True)
    try:
        gaussian = Gaussian(
            tuple(width * optics.pixel_nm for width in sigma),
            tuple(height + reference for height in focus),
            depth,
            third,
            fourth,
            "polynomial" if polynomial else "defocus",
            values["angle"],
        )
    except InputRejected as error:
        raise InputRejected(f"'{path}': {error}") from error
    return Calibration(
        optics,
        gaussian=gaussian,
        camera=request.camera,
        z_range_nm=request.z_range_nm or _heights(gaussian, optics),
        provenance={"made_by": request.made_by, "source": path.name, "format": f"ThunderSTORM {kind}"},
    )


def _heights(gaussian: Gaussian, optics: Optics) -> tuple[float, float]:
    """From one depth of focus below the lower focus to one above the upper: where z can be told."""
    depth = min(max(gaussian.depth_nm), optics.pixel_nm * 10)
    return min(gaussian.focus_nm) - depth, max(gaussian.focus_nm) + depth


def _polynomial(path: Path, values: dict[str, float], index: int) -> tuple[float, ...]:
    a, b, c, d = (values[f"{name}{index}"] for name in "abcd")
    if a < 0 or (a == 0 and d != 0):
        raise InputRejected(
            f"'{path}': a{index} = {a:g} is below 0: the width would fall away from the focus. Calibrate again."
        )
    _check_width(path, f"b{index}", b)
    depth = math.sqrt(b / a) if a > 0 else math.inf
    return b, c, depth, d * depth**3 / b if a > 0 else 0.0, 0.0


def _defocus(path: Path, values: dict[str, float], index: int) -> tuple[float, ...]:
    w0, a, b, c, d = (values[f"{name}{index}"] for name in ("w0", "a", "b", "c", "d"))
    _check_width(path, f"w0{index}", abs(w0))
    if d == 0:
        raise InputRejected(f"'{path}': d{index} is 0, so the width has no law.")
    return abs(w0) / 2, c, abs(d), math.copysign(a, a * d), b  # t changes sign with d


def _check_width(path: Path, name: str, width: float) -> None:
    if not 0 < width < _WIDEST_PX:
        raise InputRejected(f"'{path}': {name} = {width:g} is no width in pixels (0 to {_WIDEST_PX:g}).")


def _parse(path: Path) -> tuple[str, dict[str, float]]:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputRejected(f"'{path}' cannot be read: {error.strerror or error}.") from error
    if len(raw) > _LARGEST_FILE:
        raise InputRejected(f"'{path}' is {len(raw)} bytes long; no calibration of ThunderSTORM is.")
    text = raw.decode("utf-8-sig", "replace").strip()
    if "homography" in text:
        raise InputRejected(f"'{path}' is a calibration of two planes; only astigmatism is read.")
    head = re.match(re.escape(_PACKAGE) + r"(\w+)\s*", text)
    if head is None or head[1] not in _NAMES:
        raise InputRejected(
            f"'{path}' is no calibration of ThunderSTORM: it does not start with {_PACKAGE} and one of "
            f"{', '.join(_NAMES)}."
        )
    # The flow map in braces, or the same keys one a line.
    body = text[head.end() :].strip()
    if body.startswith("{") != body.endswith("}"):
        raise InputRejected(f"'{path}' is cut off: a brace is missing.")
    found: dict[str, Any] = {}
    for entry in re.split(r"[,\n]", body.strip("{}")):
        key, colon, value = (part.strip() for part in entry.partition(":"))
        if key and colon:
            found[key] = value
    values = {name: _number(path, found, name) for name in (*_PARAMETERS, "angle")}
    return head[1], values


def _number(path: Path, found: dict[str, str], name: str) -> float:
    if name not in found:
        raise InputRejected(f"'{path}' lacks {name}.")
    try:
        value = float(found[name])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputRejected(f"'{path}': {name} = {found[name]} is not a number.")
    return value


def write(path: Path, calibration: Calibration, request: Request) -> list[str]:
    """Write the widths of a Gaussian calibration, in pixels, heights from the focus."""
    gaussian = calibration.gaussian
    if gaussian is None:
        raise InputRejected(
            f"a calibration of a {calibration.psf_kind} has no widths for ThunderSTORM. Calibrate the bead "
            "stack with --psf gaussian."
        )
    kind = {law: name for name, law in _NAMES.items()}[gaussian.curve]
    reference = focus_height_nm(calibration.optics)
    values: dict[str, float] = {"angle": gaussian.angle_rad}
    for axis, index in ((0, "1"), (1, "2")):
        width = gaussian.sigma_nm[axis] / calibration.optics.pixel_nm
        depth = gaussian.depth_nm[axis]
        third, fourth = gaussian.third[axis], gaussian.fourth[axis]
        values["c" + index] = gaussian.focus_nm[axis] - reference
        if gaussian.curve == "polynomial":
            values |= {"a" + index: width / depth**2, "b" + index: width, "w0" + index: 2 * width}
            values["d" + index] = width * third / depth**3
        else:
            depth = min(depth, 1e9)  # a constant width
            values |= {"w0" + index: 2 * width, "a" + index: third, "b" + index: fourth, "d" + index: depth}
    # Without the name, which version 1.3 does not know.
    body = ", ".join(f"{name}: {_yaml_number(values[name])}" for name in sorted(values))
    path.write_text(f"{_PACKAGE}{kind} {{{body}}}\n", encoding="ascii")
    return [
        f"ThunderSTORM's z = 0 is z = {reference:.0f} nm here, and it does not know the range of heights."
    ]


def _yaml_number(value: float) -> str:
    """A number that YAML 1.1 takes for one: it wants a point before an exponent."""
    mantissa, exponent, power = repr(float(value)).partition("e")
    return f"{mantissa}{'' if '.' in mantissa else '.0'}{exponent}{power}"
