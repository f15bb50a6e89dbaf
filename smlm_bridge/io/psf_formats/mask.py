"""A pupil as a phase mask on the grid of a modulator, as DeepSTORM3D's simulators read it (``.mat``, or TIFF)."""

from math import ceil
from pathlib import Path

import numpy as np

from smlm_bridge.calibration import Calibration
from smlm_bridge.errors import InputRejected
from smlm_bridge.io.atomic import atomic_output
from smlm_bridge.io.psf_formats.grids import on_grid
from smlm_bridge.io.setup import MaskSpec

VARIABLE = "mask"


def write_mask(
    path: Path | str, calibration: Calibration, spec: MaskSpec, *, overwrite: bool = False
) -> list[str]:
    """Write the total phase (rad) of a pupil on the grid of ``spec``, zero outside the pupil.

    The file is turned by 180 degrees against the pupil, as ``io.setup.load_mask`` expects: its readers
    transform with exp(-i k x).

    Returns
    -------
    list of str
        What a mask cannot hold.

    Raises
    ------
    InputRejected
        If the calibration has no pupil, the pupil is less than 8 pixels of the grid, or the target cannot be
        written.
    """
    pupil = calibration.pupil
    if pupil is None:
        raise InputRejected(
            f"a calibration of a {calibration.psf_kind} has no phase, so no mask can be made."
        )
    diameter = spec.pupil_diameter_px(calibration.optics.numerical_aperture)
    if diameter < 8:
        raise InputRejected(
            f"the pupil is {diameter:.1f} pixels of the grid wide, which is too coarse. Check slm_pixel_um = "
            f"{spec.slm_pixel_um:g}, relay_focal_mm = {spec.relay_focal_mm:g}, "
            f"magnification = {spec.magnification:g}."
        )
    size = ceil(diameter) + 1
    size += (pupil.phase_rad.shape[0] - size) % 2  # samples on samples where the grids are the same
    rho = (np.arange(size) - (size - 1) / 2) * (2 / diameter)
    phase, amplitude = on_grid(pupil, rho)
    inside = rho[:, None] ** 2 + rho**2 <= (1 + 2 / diameter) ** 2
    turned = np.where(inside, phase, 0.0)[::-1, ::-1]
    with atomic_output(path, overwrite=overwrite) as temporary:
        if temporary.suffix.lower() == ".mat":
            from scipy.io import savemat

            savemat(temporary, {VARIABLE: turned}, do_compression=True)
        else:
            import tifffile

            tifffile.imwrite(temporary, turned.astype(np.float32))
    flat = np.ptp(amplitude[inside]) <= 1e-6 * amplitude[inside].max()
    return [] if flat else ["a mask has no amplitude; it is left out."]
