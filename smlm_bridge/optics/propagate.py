"""From the pupil to the field in the image: the scalar and the vectorial model behind one type.

The interface's formulas are in ``interface``. The transform is a matrix product straight onto the wanted points
(Soummer et al. 2007), so any pitch and any sub-pixel position cost the same.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smlm_bridge.errors import InputRejected
from smlm_bridge.optics.dipole import Dipole
from smlm_bridge.optics.folded import folded_lines, folded_rings
from smlm_bridge.optics.interface import cosine, cosine_immersion, scalar_amplitude, slip_phase, transmission
from smlm_bridge.optics.microscope import Optics
from smlm_bridge.optics.pupil import Pupil

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

    def power_at(self, z_nm: Tensor) -> tuple[Tensor, Tensor]:
        """(E,) light collected of emitters at heights ``z_nm`` (E,), and its derivative by the height."""
        rate = -2 * self._rings.kz_sample.imag
        above = torch.where(z_nm >= 0, z_nm, 0.0)
        decayed = torch.exp((rate * above[:, None]).clamp_min(-80.0)) * self._ring_power
        return decayed.sum(1), torch.where(z_nm >= 0, decayed @ rate, 0.0)

    @property
    def lines(self) -> Tensor:
        """(N, F, N) the fields line by line, y first."""
        return self._of_base("_lines", lambda base: base.transpose(0, 1).contiguous())

    @property
    def folded_lines(self) -> Tensor:
        """(4, 2, F, h, h) the fields for ``folded.folded_intensity``."""
        return self._of_base("_folded_lines", folded_lines)

    @cached_property
    def period_nm(self) -> float:
        """Distance after which the image repeats, as samples of a pupil make it do."""
        return 2 * math.pi / abs(float(self.k_axis_per_nm[1] - self.k_axis_per_nm[0]))

    @cached_property
    def folded_rings(self) -> NDArray[np.int64]:
        """(h, h) likewise the ring of each sample of a quadrant."""
        return folded_rings(self._rings.index)

    @property
    def _ring_power(self) -> Tensor:
        """(U,) light of each ring at height 0."""

        def gather(base: Tensor) -> Tensor:
            squared = (base.real.square() + base.imag.square()).sum(0)
            share = squared / self.area_share.clamp_min(_LEAST_SHARE)
            return share.new_zeros(self._rings.kz_sample.numel()).index_add(
                0, self._rings.index, share.flatten()
            )

        return self._of_base("_ring_power_kept", gather)

    def _of_base(self, name: str, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """What follows from ``base``: kept, unless gradients by it may be wanted."""
        if self.base.requires_grad:
            return compute(self.base)
        if name not in self.__dict__:
            with torch.inference_mode(False):
                self.__dict__[name] = compute(self.base)
        kept: Tensor = self.__dict__[name]
        return kept

    @cached_property
    def cut_off_per_nm(self) -> float:
        """Largest spatial frequency of the intensity, rad/nm: twice the field's."""
        used = self.base.detach().abs().amax((0, 1)) > 0
        return 2 * float(self.k_axis_per_nm[used].abs().max())

    @cached_property
    def _rings(self) -> "_Rings":
        """Samples of one distance from the axis share their axial wave vectors: a tenth of the samples."""
        with torch.inference_mode(False):
            return self._find_rings()

    def _find_rings(self) -> "_Rings":
        n = self.k_axis_per_nm.numel()
        odd = 2 * torch.arange(n) - (n - 1)
        squared = odd[:, None].square() + odd.square()
        values, index = torch.unique(squared, return_inverse=True)
        index = index.flatten()
        first = torch.full((values.numel(),), n * n).scatter_reduce(0, index, torch.arange(n * n), "amin")
        device = self.base.device
        first, index = first.to(device), index.to(device)
        return _Rings(
            index, self.kz_sample_per_nm.flatten()[first], self.kz_immersion_per_nm.flatten()[first]
        )


@dataclass(frozen=True)
class _Rings:
    """Which ring each of the N * N samples belongs to, and the axial wave vectors of the rings."""

    index: Tensor
    kz_sample: Tensor
    kz_immersion: Tensor


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
    dipole: Dipole | None = None,
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
    dipole
        How the emitter's dipole turns; None means freely. The scalar model knows no dipoles.

    Returns
    -------
    PupilField
        One field for the scalar model; freely rotating five, behind an analyser three; for another dipole two
        (behind an analyser one) for each of ``dipole.axes``.

    Raises
    ------
    InputRejected
        If no light passes: the amplitude is 0 everywhere inside the aperture; or if the scalar model is to
        have a dipole.
    """
    # Wave vectors are differences of large numbers: double precision here, the caller's precision at the end.
    x, y = pupil_coordinates(pupil, device=device, dtype=torch.float64)
    s2 = (x * x + y * y) * optics.numerical_aperture**2
    k0 = optics.wavenumber_per_nm
    aperture = _soft_aperture(
        torch.sqrt(s2), optics.collected_aperture, optics.numerical_aperture * pupil.sample_pitch
    )
    if phase_rad is None:
        phase_rad = _total_phase(pupil, device=device)
    if not optics.as_designed:
        phase_rad = phase_rad + slip_phase(optics, s2)
    if amplitude is None:
        amplitude = torch.as_tensor(pupil.amplitude, device=device)
    transmitted = aperture * amplitude.to(torch.float64)
    if not bool((transmitted.detach() > 0).any()):
        raise InputRejected("no light passes this pupil: its amplitude is 0 everywhere inside the aperture.")
    scale = torch.polar(transmitted, phase_rad.to(torch.float64))
    if optics.model == "vectorial":
        polarised = _dipole_fields(optics, x, y, s2, dipole)
    elif dipole is None:
        polarised = scalar_amplitude(optics, s2)[None]
    else:
        raise InputRejected(
            "the scalar model knows no dipoles. Use model = vectorial, or leave the dipole out."
        )
    complex_dtype = torch.complex64 if dtype == torch.float32 else torch.complex128
    return PupilField(
        base=(polarised * scale).to(complex_dtype),
        k_axis_per_nm=(torch.as_tensor(pupil.rho_axis, device=device) * (k0 * optics.numerical_aperture)).to(
            dtype
        ),
        kz_sample_per_nm=(k0 * optics.sample_index * cosine(s2, optics.sample_index)).to(complex_dtype),
        kz_immersion_per_nm=(k0 * optics.immersion_index * cosine_immersion(s2, optics)).to(dtype),
        focus_nm=optics.focus_nm,
        area_share=aperture.to(dtype),
    )


def phasors(field: PupilField, z_nm: Tensor, focus_nm: Tensor | float | None = None) -> Tensor:
    """(E, N, N) factors that take the pupil to emitters at heights ``z_nm`` (E,), focus included.

    Heights below the coverslip would make evanescent waves grow: the part below is propagated as if it were
    in the immersion medium (FD-DeepLoc, Fu et al. 2023, treats it the same way).
    """
    n = field.k_axis_per_nm.numel()
    return ring_phasors(field, z_nm, focus_nm).index_select(1, field._rings.index).view(-1, n, n)


def ring_phasors(field: PupilField, z_nm: Tensor, focus_nm: Tensor | float | None = None) -> Tensor:
    """(E, U) the same for the rings of samples at one distance from the axis."""
    if focus_nm is None:
        focus_nm = field.focus_nm
    focus = torch.as_tensor(focus_nm, dtype=z_nm.dtype, device=z_nm.device).expand(z_nm.shape)
    # Not clamp: on the coverslip itself the derivative is the sample's.
    above = torch.where(z_nm >= 0, z_nm, 0.0)[:, None]
    below = z_nm[:, None] - above
    ring = field._rings
    real = ring.kz_sample.real * above + ring.kz_immersion * (below - focus[:, None])
    # Cut at e^-40, far below what a camera sees: denormal numbers would cost a factor of ten.
    decay = torch.exp((-ring.kz_sample.imag * above).clamp_min(-40.0))
    return torch.polar(decay, real)


def axial_wave_vectors(field: PupilField, z_nm: Tensor) -> Tensor:
    """(E, N, N) i k_z: the logarithmic derivative of ``phasors`` by the height."""
    kz = torch.where(
        (z_nm >= 0)[:, None, None], field.kz_sample_per_nm, field.kz_immersion_per_nm.to(field.base.dtype)
    )
    return 1j * kz


def defocused(field: PupilField, z_nm: Tensor, focus_nm: Tensor | float | None = None) -> Tensor:
    """(E, F, N, N) pupils of emitters at heights ``z_nm`` (E,), focus included; see ``phasors``."""
    return field.base[None] * phasors(field, z_nm, focus_nm)[:, None]


def waves(field: PupilField, points_nm: Tensor) -> Tensor:
    """(..., P, N) plane waves exp(i k r) at points (..., P) along one axis, relative to the emitter."""
    phase = points_nm[..., :, None] * field.k_axis_per_nm
    return torch.polar(torch.ones_like(phase), phase)


def columns_of(pupils: Tensor, kx: Tensor) -> Tensor:
    """(E, N, F, Q): pupils (E, N, F, N), the last axis along x, transformed by waves (E, Q, N) or (Q, N)."""
    if kx.ndim == 3:
        kx = kx[:, None]
    return pupils @ kx.mT


def image_field(columns: Tensor, ky: Tensor) -> Tensor:
    """(E, P, F, Q): the field, from ``columns_of`` and the waves along y (E, P, N) or (P, N)."""
    image = ky @ columns.flatten(2)
    return image.view(*image.shape[:2], *columns.shape[2:])


def sum_of_products(one: Tensor, other: Tensor) -> Tensor:
    """(E, P, Q) sum over the fields of Re(conj(one) other), of fields (E, P, F, Q).

    Over real numbers side by side, and field by field: several times faster than a strided reduction.
    """
    left, right = (torch.view_as_real(t).flatten(-2) for t in (one, other))
    product = left * right
    total = product[:, :, 0]
    for index in range(1, product.shape[2]):
        total = total + product[:, :, index]
    return total.view(*total.shape[:2], -1, 2).sum(-1)


def density_scale(field: PupilField) -> float:
    """Factor from a squared field, over the collected light, to a density per nm^2 (Parseval)."""
    k_axis = field.k_axis_per_nm
    dk = float(k_axis[-1] - k_axis[0]) / (k_axis.numel() - 1)
    return (dk / (2 * math.pi)) ** 2


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
    image = image_field(columns_of(pupils.transpose(1, 2), waves(field, x_nm)), waves(field, y_nm))
    return sum_of_products(image, image) * (density_scale(field) / field.power(pupils))[:, None, None]


def _total_phase(pupil: Pupil, *, device: torch.device | str) -> Tensor:
    phase = torch.as_tensor(pupil.phase_rad, device=device)
    if pupil.zernike_rad:
        weights = torch.tensor(list(pupil.zernike_rad.values()), dtype=torch.float64, device=device)
        basis = torch.as_tensor(pupil.zernike_maps(list(pupil.zernike_rad)), device=device)
        phase = phase + torch.einsum("j,jyx->yx", weights, basis)
    return phase


def _soft_aperture(s: Tensor, edge: float, pitch: float) -> Tensor:
    """1 inside, 0 outside, linear over one sample: a hard edge samples the disk up to four times worse."""
    return ((edge - s) / pitch + 0.5).clamp(0.0, 1.0)


def _dipole_fields(optics: Optics, x: Tensor, y: Tensor, s2: Tensor, dipole: Dipole | None) -> Tensor:
    """(F, N, N) fields of dipoles along x, y, z seen through x and y polarisation.

    Of the six, xy and yx are equal. Moments without mixed terms (free, slow) therefore need five; others two
    for each of the dipole's axes, whose components add coherently.
    """
    light = transmission(optics, s2)
    a_p, a_s, b = light.radial, light.tangential, light.axial
    r = torch.sqrt(x * x + y * y).clamp_min(1e-12)
    c, s = x / r, y / r
    xx, yy, xy = a_p * c * c + a_s * s * s, a_p * s * s + a_s * c * c, (a_p - a_s) * c * s
    # Of x, y, z dipoles, through x and through y polarisation.
    seen: list[tuple[Tensor, ...]] = [(xx, xy, -b * c), (xy, yy, -b * s)]
    moments = 3 * np.asarray((dipole or Dipole.free()).moments)  # times 3: of a free dipole the unit matrix
    mixed = bool(np.abs(moments - np.diag(np.diag(moments))).max() > 1e-9)
    if optics.analyser_deg is not None:
        angle = math.radians(optics.analyser_deg)
        ca, sa = math.cos(angle), math.sin(angle)
        seen = [tuple(ca * px + sa * py for px, py in zip(*seen, strict=True))]
    elif not mixed:
        m_x, m_y, m_z = np.sqrt(np.diag(moments)).tolist()
        (xx, xy, xz), (_, yy, yz) = seen
        return torch.stack([m_x * xx, m_y * yy, math.hypot(m_x, m_y) * xy, m_z * xz, m_z * yz])
    axes = math.sqrt(3) * dipole.axes if mixed and dipole is not None else np.diag(np.sqrt(np.diag(moments)))
    fields = [p_x * q_x + p_y * q_y + p_z * q_z for p_x, p_y, p_z in axes.tolist() for q_x, q_y, q_z in seen]
    return torch.stack(fields)
