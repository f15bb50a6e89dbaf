"""PSF calibrations of other programs: read into a ``Calibration`` and written from one.

Each format is a module with ``read(path, request)`` and ``write(path, calibration, request)``; what another
program means by an axis or a sign stands in the first lines of its module. Nothing is imported before it is
asked for.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol, cast

from smlm_bridge.calibration import Calibration
from smlm_bridge.camera import Camera
from smlm_bridge.conventions import paraxial_focus_nm
from smlm_bridge.errors import InputRejected
from smlm_bridge.optics.microscope import Optics

#: Ends of file names and the format they stand for; ``.mat`` alone is a phase mask.
EXTENSIONS: Final = {"_3dcal.mat": "smap_psf", ".h5": "uipsf", ".json": "zola", ".yaml": "thunderstorm_psf"}
FORMATS: Final = ("smap_psf", "uipsf", "zola", "thunderstorm_psf")
HALF_Z_RANGE_NM = 2000.0


@dataclass(frozen=True)
class Request:
    """What a reader or writer cannot know from the file.

    Parameters
    ----------
    optics
        Makes the microscope of what the file says of it (fields of ``Optics``); may add and replace.
    camera
        The camera, which no such file describes.
    z_range_nm
        Heights the calibration is for; None takes the file's, or 2 um to both sides of the focus.
    box_px
        Width of the spline that is written, in pixels, odd.
    z_step_nm
        Spacing of its planes.
    made_by
        For the provenance.
    """

    optics: Callable[[Mapping[str, Any]], Optics] = lambda found: Optics(**found)
    camera: Camera = field(default_factory=Camera)
    z_range_nm: tuple[float, float] | None = None
    box_px: int = 31
    z_step_nm: float = 50.0
    made_by: str = "smlm_bridge"


class PsfFormat(Protocol):
    """A module of this package."""

    def read(self, path: Path, request: Request) -> Calibration:
        """Read a file."""
        ...

    def write(self, path: Path, calibration: Calibration, request: Request) -> list[str]:
        """Write a file at a temporary place; what got lost, as sentences."""
        ...


def format_of(path: Path | str) -> str | None:
    """The format that the end of a name stands for, None if none does; ``.psf.h5`` is our own."""
    name = Path(path).name.lower()
    if name.endswith(".psf.h5"):
        return None
    return next((found for end, found in EXTENSIONS.items() if name.endswith(end)), None)


def read(path: Path | str, request: Request | None = None, *, name: str | None = None) -> Calibration:
    """Read a calibration of another program.

    Raises
    ------
    InputRejected
        If the format is not known, or the file is damaged, lacks a field or has an absurd one.
    """
    return _module(path, name).read(Path(path), request or Request())


def write(
    path: Path | str,
    calibration: Calibration,
    request: Request | None = None,
    *,
    name: str | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Write a calibration for another program, whole or not at all.

    Returns
    -------
    list of str
        What the other format cannot hold.

    Raises
    ------
    InputRejected
        If the format is not known or cannot hold this calibration, or the target cannot be written.
    MissingDependency
        If images must be rendered and torch is not installed.
    """
    from smlm_bridge.io.atomic import atomic_output

    module = _module(path, name)
    with atomic_output(path, overwrite=overwrite) as temporary:
        return module.write(temporary, calibration, request or Request())


def heights(optics: Optics, request: Request) -> tuple[float, float]:
    """The heights asked for, or those about the focus, none below the coverslip."""
    if request.z_range_nm is not None:
        return request.z_range_nm
    low = max(0.0, focus_height_nm(optics) - HALF_Z_RANGE_NM)
    return low, low + 2 * HALF_Z_RANGE_NM


def focus_height_nm(optics: Optics) -> float:
    """Height of an emitter in focus: what other programs call z = 0."""
    return paraxial_focus_nm(optics.focus_nm, optics.sample_index, optics.immersion_index)


def _module(path: Path | str, name: str | None) -> PsfFormat:
    found = name or format_of(path)
    if found not in FORMATS:
        given = f"format '{name}'" if name else f"extension of {path}"
        raise InputRejected(
            f"the {given} is not one of a PSF; formats are {', '.join(FORMATS)}, "
            f"extensions {', '.join(EXTENSIONS)}."
        )
    return cast(PsfFormat, importlib.import_module(f"{__name__}.{found}"))
