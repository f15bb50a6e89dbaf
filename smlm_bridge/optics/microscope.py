"""What is known of the microscope before any image is looked at."""

import math
from dataclasses import dataclass
from typing import Literal

from smlm_bridge.errors import InputRejected


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
        Of the coverslip; None means matched to the immersion medium.
    pixel_integration
        True integrates the intensity over each pixel, False samples it at the pixel's centre.

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

    @property
    def wavenumber_per_nm(self) -> float:
        """Vacuum wavenumber 2 pi / wavelength in rad/nm."""
        return 2.0 * math.pi / self.wavelength_nm

    @property
    def collected_aperture(self) -> float:
        """Largest k_parallel / k_0 collected: the NA, or the sample's index without supercritical light."""
        if self.supercritical:
            return self.numerical_aperture
        return min(self.numerical_aperture, self.sample_index)


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
