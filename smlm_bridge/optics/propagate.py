"""From the pupil to the field in the image: the scalar and the vectorial model behind one type.

Formulas follow Axelrod 2012 and Siemons, Kapitein & Stallinga 2022 (apodisation by the aplanatic factor
(n_i / n_m) sqrt(cos_i) / cos_m with forward Fresnel coefficients). The transform is a matrix product straight
onto the wanted points (Soummer et al. 2007), so any pitch and any sub-pixel position cost the same.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from smlm_bridge.errors import InputRejected
from smlm_bridge.optics.microscope import Optics
from smlm_bridge.optics.pupil import Pupil
from smlm_bridge.optics.zernike import zernike_basis

_LEAST_SHARE = 1e-6  # of a cell inside the aperture: below, its light counts for nothing


@dataclass(frozen=True)
class PupilField:
    """The pupil of one microscope, ready to be propagated.

    Parameters
    ----------
    base : (F, N, N) complex
        Amplitude and phase of each of the F incoherent fields, aperture included, defocus excluded.
    k_axis_per_nm : (N,) real
        Lateral wave vector of the samples along either axis, rad/nm.
    kz_sample_per_nm : (N, N) complex
        Axial wave vector in the sample; imaginary beyond the critical angle.
    kz_immersion_per_nm : (N, N) real
        Axial wave vector in the immersion medium.
    focus_nm
        Nominal focus.
    area_share : (N, N) real
        Share of each sample's cell that lies inside the aperture. The amplitude carries it as a factor, as the
        sum over samples needs; the power, a square, must be divided by it once (``power``).
    """

    base: Tensor
    k_axis_per_nm: Tensor
    kz_sample_per_nm: Tensor
    kz_immersion_per_nm: Tensor
    focus_nm: float
    area_share: Tensor

    def power(self, pupils: Tensor) -> Tensor:
        """(E,) light that passes pupils (E, F, N, N): the integral of the squared field over the aperture."""
        squared = (pupils.real.square() + pupils.imag.square()).sum(1)
        return (squared / self.area_share.clamp_min(_LEAST_SHARE)).sum((1, 2))

    @property
    def cut_off_per_nm(self) -> float:
        """Largest spatial frequency of the intensity, rad/nm: twice the field's."""
        used = self.base.detach().abs().amax((0, 1)) > 0
        return 2 * float(self.k_axis_per_nm[used].abs().max())


def pupil_coordinates(
    pupil: Pupil, *, device: torch.device | str, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(N, N) x and y of the pupil samples in units of the pupil radius."""
    axis = torch.as_tensor(pupil.rho_axis, device=device, dtype=dtype)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return x, y


def pupil_field(
    optics: Optics,
    pupil: Pupil,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    phase_rad: Tensor | None = None,
    amplitude: Tensor | None = None,
) -> PupilField:
    """Build the fields of a microscope.

    Parameters
    ----------
    optics, pupil
        Microscope and aberrations.
    device, dtype
        Where and with which (real) precision to compute.
    phase_rad, amplitude : (N, N) tensors
        Replace the pupil's own total phase or amplitude, with gradients, e.g. in retrieval and design.

    Returns
    -------
    PupilField
        One field for the scalar model, three behind an analyser, five freely rotating without one.

    Raises
    ------
    InputRejected
        If no light passes: the amplitude is 0 everywhere inside the aperture.
    """
    # Wave vectors are differences of large numbers: double precision here, the caller's precision at the end.
    x, y = pupil_coordinates(pupil, device=device, dtype=torch.float64)
    s2 = (x * x + y * y) * optics.numerical_aperture**2
    k0 = optics.wavenumber_per_nm
    cos_i = torch.sqrt((1 - s2 / optics.immersion_index**2).clamp_min(1e-9))
    cos_m = torch.sqrt(torch.complex(1 - s2 / optics.sample_index**2, torch.zeros_like(s2)))
    aperture = _soft_aperture(
        torch.sqrt(s2), optics.collected_aperture, optics.numerical_aperture * pupil.sample_pitch
    )
    if phase_rad is None:
        phase_rad = _total_phase(pupil, device=device)
    if amplitude is None:
        amplitude = torch.as_tensor(pupil.amplitude, device=device)
    transmitted = aperture * amplitude.to(torch.float64)
    if not bool((transmitted.detach() > 0).any()):
        raise InputRejected("no light passes this pupil: its amplitude is 0 everywhere inside the aperture.")
    scale = torch.polar(transmitted, phase_rad.to(torch.float64))
    if optics.model == "scalar":
        polarised = torch.ones_like(cos_m)[None]
    else:
        polarised = _dipole_fields(optics, x, y, s2, cos_i, cos_m)
    complex_dtype = torch.complex64 if dtype == torch.float32 else torch.complex128
    return PupilField(
        base=(polarised * scale).to(complex_dtype),
        k_axis_per_nm=(torch.as_tensor(pupil.rho_axis, device=device) * (k0 * optics.numerical_aperture)).to(
            dtype
        ),
        kz_sample_per_nm=(k0 * optics.sample_index * cos_m).to(complex_dtype),
        kz_immersion_per_nm=(k0 * optics.immersion_index * cos_i).to(dtype),
        focus_nm=optics.focus_nm,
        area_share=aperture.to(dtype),
    )


def defocused(field: PupilField, z_nm: Tensor, focus_nm: Tensor | float | None = None) -> Tensor:
    """(E, F, N, N) pupils of emitters at heights ``z_nm`` (E,), focus included.

    Heights below the coverslip would make evanescent waves grow: the part below is propagated as if it were
    in the immersion medium (FD-DeepLoc, Fu et al. 2023, treats it the same way).
    """
    if focus_nm is None:
        focus_nm = field.focus_nm
    focus = torch.as_tensor(focus_nm, dtype=z_nm.dtype, device=z_nm.device).expand(z_nm.shape)
    # Not clamp: on the coverslip itself the derivative is the sample's.
    above = torch.where(z_nm >= 0, z_nm, 0.0)[:, None, None]
    below = z_nm[:, None, None] - above
    real = field.kz_sample_per_nm.real * above + field.kz_immersion_per_nm * (below - focus[:, None, None])
    # Cut at e^-40, far below what a camera sees: denormal numbers would cost a factor of ten.
    decay = torch.exp((-field.kz_sample_per_nm.imag * above).clamp_min(-40.0))
    return field.base[None] * torch.polar(decay, real)[:, None]


def intensity(field: PupilField, pupils: Tensor, y_nm: Tensor, x_nm: Tensor) -> Tensor:
    """Intensity at the points of a grid, as a density per nm^2 of the collected light.

    Parameters
    ----------
    field
        Where the pupils come from.
    pupils : (E, F, N, N) complex
        Pupils from ``defocused``.
    y_nm, x_nm : (E, H) and (E, W), or (H,) and (W,)
        Points relative to the emitter.

    Returns
    -------
    (E, H, W) tensor that integrates to 1 over the plane (Parseval), whatever part of it is asked for.
    """
    k_axis = field.k_axis_per_nm
    ky = torch.polar(torch.ones_like(phase := y_nm[..., :, None] * k_axis), phase)
    kx = torch.polar(torch.ones_like(phase := x_nm[..., :, None] * k_axis), phase)
    if ky.ndim == 3:
        ky, kx = ky[:, None], kx[:, None]
    image = (ky @ pupils) @ kx.mT
    density = (image.real.square() + image.imag.square()).sum(1)
    dk = (k_axis[-1] - k_axis[0]) / (k_axis.numel() - 1)
    return density * ((dk / (2 * math.pi)) ** 2 / field.power(pupils))[:, None, None]


def _total_phase(pupil: Pupil, *, device: torch.device | str) -> Tensor:
    phase = torch.as_tensor(pupil.phase_rad, device=device)
    if pupil.zernike_rad:
        axis = pupil.rho_axis
        basis = zernike_basis(
            list(pupil.zernike_rad), axis[None, :] + 0 * axis[:, None], axis[:, None] + 0 * axis
        )
        weights = torch.tensor(list(pupil.zernike_rad.values()), dtype=torch.float64, device=device)
        phase = phase + torch.einsum("j,jyx->yx", weights, torch.as_tensor(basis, device=device))
    return phase


def _soft_aperture(s: Tensor, edge: float, pitch: float) -> Tensor:
    """1 inside, 0 outside, linear over one sample: a hard edge samples the disk up to four times worse."""
    return ((edge - s) / pitch + 0.5).clamp(0.0, 1.0)


def _dipole_fields(optics: Optics, x: Tensor, y: Tensor, s2: Tensor, cos_i: Tensor, cos_m: Tensor) -> Tensor:
    """Fields of x, y, z dipoles seen through x and y polarisation (psf six minus the equal pair).

    The apodisation's 1 / cos_m is cancelled against the Fresnel coefficients' cos_m analytically, so that the
    critical angle, where both vanish, stays finite. Freely rotating, fast: the incoherent mean over dipoles.
    """
    n_m, n_i = optics.sample_index, optics.immersion_index
    n_c = n_i if optics.coverslip_index is None else optics.coverslip_index
    cos_c = torch.sqrt(torch.complex(1 - s2 / n_c**2, torch.zeros_like(s2)))
    tp_over_cos_m = (2 * n_m / (n_m * cos_c + n_c * cos_m)) * (2 * n_c * cos_c / (n_c * cos_i + n_i * cos_c))
    ts_over_cos_m = (2 * n_m / (n_m * cos_m + n_c * cos_c)) * (2 * n_c * cos_c / (n_c * cos_c + n_i * cos_i))
    apodisation = (n_i / n_m) * torch.sqrt(cos_i)
    a_p = apodisation * tp_over_cos_m * cos_m
    a_s = apodisation * ts_over_cos_m
    b = apodisation * tp_over_cos_m * torch.sqrt(s2) / n_m
    r = torch.sqrt(x * x + y * y).clamp_min(1e-12)
    c, s = x / r, y / r
    xx, yy, xy = a_p * c * c + a_s * s * s, a_p * s * s + a_s * c * c, (a_p - a_s) * c * s
    xz, yz = -b * c, -b * s
    if optics.analyser_deg is not None:
        angle = math.radians(optics.analyser_deg)
        ca, sa = math.cos(angle), math.sin(angle)
        return torch.stack([ca * xx + sa * xy, ca * xy + sa * yy, ca * xz + sa * yz])
    return torch.stack([xx, yy, math.sqrt(2) * xy, xz, yz])  # xy stands for itself and the equal yx
