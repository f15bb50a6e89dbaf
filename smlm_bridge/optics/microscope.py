"""What is known of the microscope before any image is looked at."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from smlm_bridge.errors import InputRejected

DESIGN_COVERSLIP_NM = 170_000.0  # No. 1.5
WORKING_DISTANCE_NM = 120_000.0  # usual of an oil objective; counts only with another immersion than designed


@dataclass(frozen=True)
class Optics:
    """Objective, media, emission wavelength and camera pixel; see ``conventions`` for signs and units.

    Parameters
    ----------
    numerical_aperture, immersion_index, sample_index
        Of the objective, its immersion medium and the medium around the emitters.
    wavelength_nm
        Emission wavelength in vacuum.
    pixel_nm
        Camera pixel in the sample.
    focus_nm
        Nominal focus as objective travel in the immersion medium, positive into the sample.
    model
        ``"vectorial"`` (dipoles behind an interface) or ``"scalar"``.
    supercritical
        Whether light beyond the critical angle of the sample is collected.
    analyser_deg
        Angle of a linear analyser in image coordinates (x to the right, y down); None for no analyser.
    coverslip_index
        Of the coverslip; None means matched to the immersion medium. It is thick: light beyond its critical
        angle is not collected.
    pixel_integration
        True integrates the intensity over each pixel, False samples it at the pixel's centre.
    apodisation
        Of the scalar model: ``"none"``, ``"aplanatic"`` or ``"fresnel"`` (``interface.scalar_amplitude``); None
        is none. The vectorial model has its own, and takes None only.
    coverslip_thickness_nm
        Of the coverslip in use; None means as designed.
    design_coverslip_nm, design_coverslip_index, design_immersion_index, working_distance_nm
        What the objective was corrected for: coverslip, immersion medium, and the thickness of the latter. An
        index of None is the one in use, the lengths' None are 170 and 120 um; see ``interface.slip_phase``.
    field_scale, field_centre_nm
        Where ``pixel_nm`` is a little off: an emitter is seen ``field_scale`` times as far from the centre (x, y)
        as it stands. Tables say where emitters stand.

    Raises
    ------
    InputRejected
        If a value is not physical or looks like a slip of units.
    """

    numerical_aperture: float
    immersion_index: float
    sample_index: float
    wavelength_nm: float
    pixel_nm: float
    focus_nm: float = 0.0
    model: Literal["vectorial", "scalar"] = "vectorial"
    supercritical: bool = True
    analyser_deg: float | None = None
    coverslip_index: float | None = None
    pixel_integration: bool = True
    apodisation: Literal["none", "aplanatic", "fresnel"] | None = None
    coverslip_thickness_nm: float | None = None
    design_coverslip_nm: float | None = None
    design_coverslip_index: float | None = None
    design_immersion_index: float | None = None
    working_distance_nm: float | None = None
    field_scale: float = 1.0
    field_centre_nm: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        _check_range("numerical_aperture", self.numerical_aperture, 0.05, 2.0, "")
        _check_range("immersion_index", self.immersion_index, 1.0, 2.5, "")
        _check_range("sample_index", self.sample_index, 1.0, 2.5, "")
        _check_range("wavelength_nm", self.wavelength_nm, 200.0, 2000.0, "nm")
        _check_range("pixel_nm", self.pixel_nm, 5.0, 2000.0, "nm")
        _check_range("focus_nm", self.focus_nm, -100_000.0, 100_000.0, "nm")
        if self.coverslip_index is not None:
            _check_range("coverslip_index", self.coverslip_index, 1.0, 2.5, "")
        if self.numerical_aperture >= self.immersion_index:
            raise InputRejected(
                f"numerical_aperture {self.numerical_aperture:g} is not below immersion_index "
                f"{self.immersion_index:g}: no objective collects light beyond 90 degrees. Correct one."
            )
        if self.model not in ("vectorial", "scalar"):
            raise InputRejected(f"model '{self.model}' is not one of vectorial, scalar.")
        if self.analyser_deg is not None and not math.isfinite(self.analyser_deg):
            raise InputRejected(f"analyser_deg {self.analyser_deg} is not an angle in degrees.")
        self._check_path()
        _check_range("field_scale", self.field_scale, 0.5, 2.0, "")
        if not isinstance(self.field_centre_nm, tuple | list) or len(self.field_centre_nm) != 2:
            raise InputRejected(
                f"field_centre_nm must be two numbers, x and y, got {self.field_centre_nm!r}."
            )
        for value in self.field_centre_nm:
            _check_range("field_centre_nm", value, -1e7, 1e7, "nm")
        object.__setattr__(self, "field_centre_nm", tuple(map(float, self.field_centre_nm)))

    def _check_path(self) -> None:
        if self.apodisation not in (None, "none", "aplanatic", "fresnel"):
            raise InputRejected(f"apodisation '{self.apodisation}' is not one of none, aplanatic, fresnel.")
        if self.apodisation is not None and self.model == "vectorial":
            raise InputRejected(
                f"apodisation '{self.apodisation}' belongs to the scalar model; the vectorial model always has "
                "the aplanatic factor of its interface. Leave it out, or choose model = scalar."
            )
        for name in ("coverslip_thickness_nm", "design_coverslip_nm", "working_distance_nm"):
            if getattr(self, name) is not None:
                _check_range(name, getattr(self, name), 0.0, 5e7, "nm")
        for name in ("design_coverslip_index", "design_immersion_index"):
            index = getattr(self, name)
            if index is None:
                continue
            _check_range(name, index, 1.0, 2.5, "")
            if index <= self.numerical_aperture:
                raise InputRejected(
                    f"{name} {index:g} is not above numerical_aperture {self.numerical_aperture:g}: no objective "
                    "is designed for a medium that its outer rays cannot cross. Correct one."
                )

    def seen_at(self, xy_nm: NDArray[np.floating]) -> NDArray[np.float64]:
        """(n, 2) positions in the image, in pixels times ``pixel_nm``, of emitters that stand at ``xy_nm``."""
        centre = np.array(self.field_centre_nm)
        return np.asarray(centre + self.field_scale * (np.asarray(xy_nm, np.float64) - centre))

    def stands_at(self, xy_nm: NDArray[np.floating]) -> NDArray[np.float64]:
        """(n, 2) positions of emitters that are seen at ``xy_nm``: the inverse of ``seen_at``."""
        centre = np.array(self.field_centre_nm)
        return np.asarray(centre + (np.asarray(xy_nm, np.float64) - centre) / self.field_scale)

    @property
    def wavenumber_per_nm(self) -> float:
        """Vacuum wavenumber 2 pi / wavelength in rad/nm."""
        return 2.0 * math.pi / self.wavelength_nm

    @property
    def collected_aperture(self) -> float:
        """Largest k_parallel / k_0 collected.

        The NA, or the index of the coverslip where that is less, or the sample's without supercritical light.
        """
        through_slip = min(self.numerical_aperture, self.slip_index)
        return through_slip if self.supercritical else min(through_slip, self.sample_index)

    @property
    def slip_index(self) -> float:
        """Refractive index of the coverslip."""
        return self.immersion_index if self.coverslip_index is None else self.coverslip_index

    @property
    def as_designed(self) -> bool:
        """Whether coverslip and immersion are what the objective was corrected for."""
        thickness = self.coverslip_thickness_nm in (None, self.design_slip_nm)
        slip = self.design_coverslip_index in (None, self.slip_index)
        return thickness and slip and self.design_immersion_index in (None, self.immersion_index)

    @property
    def design_slip_nm(self) -> float:
        """Thickness of the coverslip that the objective was corrected for."""
        return DESIGN_COVERSLIP_NM if self.design_coverslip_nm is None else self.design_coverslip_nm


def _check_range(name: str, value: float, low: float, high: float, unit: str) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise InputRejected(
            f"{name} must be a number, got {value!r}. Give a number{f' in {unit}' if unit else ''}."
        )
    if math.isfinite(value) and low <= value <= high:
        return
    hint = ""
    if unit == "nm" and math.isfinite(value):
        for factor, given in ((1e3, "micrometres"), (1e9, "metres"), (1e-1, "angstroms")):
            if low <= value * factor <= high:
                hint = f" It looks like {given}: did you mean {value * factor:g} nm?"
                break
    unit_text = f" {unit}" if unit else ""
    raise InputRejected(f"{name} = {value:g} is outside {low:g} to {high:g}{unit_text}.{hint}")
