"""The conventions every room obeys, written once; ``tests/test_conventions.py`` holds each to its word.

* Lengths are in nm, angles in rad, photons are detected photo-electrons; the unit stands in the name.
* Frames are ``(frame, y, x)``, bead stacks ``(z, y, x)``. x runs along columns, y along rows, downwards.
* The origin is the outer top-left corner of the top-left pixel: the centre of pixel ``(row, column)`` is
  ``((column + 1/2) pixel_nm, (row + 1/2) pixel_nm)``, as in ThunderSTORM.
* Frames count from 1 in files and from 0 inside Python.
* z is the height of the emitter above the coverslip, positive away from the objective.
* ``focus_nm`` is the nominal focus as objective travel in the immersion medium, positive into the sample; a
  paraxial emitter in focus stands at ``focus_nm * sample_index / immersion_index``.
* ``psf.images`` is the expected fraction of the emitter's detected photons in each pixel; it integrates to 1
  over an unbounded camera.
* Zernike polynomials have Noll's index and normalisation (Noll 1976); a coefficient is its RMS in rad.
* Photo-electrons = (ADU - offset) * e_per_adu / em_gain.
"""

from typing import Final

FIRST_FRAME_IN_FILES: Final = 1
PIXEL_CENTRE: Final = 0.5


def pixel_centre_nm(index: float, pixel_nm: float) -> float:
    """Coordinate of the centre of the pixel ``index`` (from 0) along one axis, in nm."""
    return (index + PIXEL_CENTRE) * pixel_nm


def paraxial_focus_nm(focus_nm: float, sample_index: float, immersion_index: float) -> float:
    """Height above the coverslip at which a paraxial emitter is in focus, in nm."""
    return focus_nm * sample_index / immersion_index
