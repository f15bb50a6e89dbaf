"""Light on its way from the sample through the coverslip into the immersion medium.

Plane waves of lateral wave vector s = k_parallel / k_0 cross medium -> coverslip -> immersion. The coverslip is
thick, so its reflections do not come back into the image; the apodisation is the aplanatic factor
(n_i / n_m) sqrt(cos_i) / cos_m with forward Fresnel coefficients (Axelrod 2012; Siemons, Kapitein & Stallinga
2022). The path through a coverslip that is not the design's follows Gibson & Lanni 1991.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from smlm_bridge.optics.microscope import WORKING_DISTANCE_NM, Optics


@dataclass(frozen=True)
class Transmission:
    """Apodised amplitudes of a dipole's plane waves behind the interface.

    Parameters
    ----------
    radial : complex tensor
        Of a dipole along the p polarisation's lateral direction: A T_p cos_m.
    tangential : complex tensor
        Of a dipole along the s polarisation: A T_s.
    axial : complex tensor
        Of a dipole along z: A T_p s / n_m.
    """

    radial: Tensor
    tangential: Tensor
    axial: Tensor


def cosine(s2: Tensor, index: float) -> Tensor:
    """Complex cosine of the angle in a medium, the root with a decaying wave beyond the critical angle."""
    return torch.sqrt(torch.complex(1 - s2 / index**2, torch.zeros_like(s2)))


def cosine_immersion(s2: Tensor, optics: Optics) -> Tensor:
    """Real cosine in the immersion medium; samples beyond 90 degrees, outside any aperture, are held at 0."""
    return torch.sqrt((1 - s2 / optics.immersion_index**2).clamp_min(1e-9))


def transmission(optics: Optics, s2: Tensor) -> Transmission:
    """Amplitudes at the squared lateral wave vectors ``s2`` (units of k_0), in the shape of ``s2``.

    The apodisation's 1 / cos_m is cancelled against the Fresnel coefficients' cos_m analytically, so that the
    critical angle, where both vanish, stays finite.
    """
    p_over_cos_m, s_over_cos_m = _apodised_fresnel(optics, s2)
    n_m = optics.sample_index
    return Transmission(
        radial=p_over_cos_m * cosine(s2, n_m),
        tangential=s_over_cos_m,
        axial=p_over_cos_m * torch.sqrt(s2) / n_m,
    )


def _apodised_fresnel(optics: Optics, s2: Tensor) -> tuple[Tensor, Tensor]:
    """A T_p and A T_s, in which the apodisation's 1 / cos_m and the coefficients' cos_m are already one."""
    n_m, n_i, n_c = optics.sample_index, optics.immersion_index, optics.slip_index
    cos_m, cos_c, cos_i = cosine(s2, n_m), cosine(s2, n_c), cosine_immersion(s2, optics)
    into_slip_p = 2 * n_m / (n_m * cos_c + n_c * cos_m)
    into_slip_s = 2 * n_m / (n_m * cos_m + n_c * cos_c)
    into_immersion_p = 2 * n_c * cos_c / (n_c * cos_i + n_i * cos_c)
    into_immersion_s = 2 * n_c * cos_c / (n_c * cos_c + n_i * cos_i)
    factor = (n_i / n_m) * torch.sqrt(cos_i)
    return factor * into_slip_p * into_immersion_p, factor * into_slip_s * into_immersion_s


def scalar_amplitude(optics: Optics, s2: Tensor) -> Tensor:
    """Amplitude of the scalar model, by ``optics.apodisation``.

    ``none`` is flat; ``aplanatic`` is 1 / sqrt(cos_i), of a source in the immersion medium (as ZOLA-3D, Aristov
    et al. 2018); ``fresnel`` is the mean over both polarisations of the light that a dipole across the axis sends
    through the interface, the leading term (I_0) of the vectorial model, supercritical light included.
    """
    if optics.apodisation == "fresnel":
        light = transmission(optics, s2)
        return (light.radial + light.tangential) / 2
    if optics.apodisation == "aplanatic":
        return torch.rsqrt(cosine_immersion(s2, optics)).to(torch.complex128)
    return torch.ones_like(s2, dtype=torch.complex128)


def slip_phase(optics: Optics, s2: Tensor) -> Tensor:
    """Phase (rad) of a coverslip or immersion medium that is not what the objective was designed for.

    k_0 [t_g n_g cos_g - t_g* n_g* cos_g* + t_i n_i cos_i - t_i* n_i* cos_i*] (Gibson & Lanni 1991, Eq. 1, *
    of the design), piston removed. The immersion's thickness t_i is the one that keeps the paraxial focus on
    the coverslip, so that ``focus_nm`` keeps its meaning and only the aberration is left.
    """
    n_i, n_c = optics.immersion_index, optics.slip_index
    design_c = optics.design_coverslip_index or n_c
    design_i = optics.design_immersion_index or n_i
    design_slip_nm = optics.design_slip_nm
    slip_nm = design_slip_nm if optics.coverslip_thickness_nm is None else optics.coverslip_thickness_nm
    distance_nm = WORKING_DISTANCE_NM if optics.working_distance_nm is None else optics.working_distance_nm
    immersion_nm = n_i * (distance_nm / design_i + design_slip_nm / design_c - slip_nm / n_c)

    def path(thickness_nm: float, index: float) -> Tensor:
        return thickness_nm * index * (torch.sqrt((1 - s2 / index**2).clamp_min(0.0)) - 1)

    actual = path(slip_nm, n_c) + path(immersion_nm, n_i)
    return optics.wavenumber_per_nm * (actual - path(design_slip_nm, design_c) - path(distance_nm, design_i))
