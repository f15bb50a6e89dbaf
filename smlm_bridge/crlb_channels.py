"""The Cramér-Rao bound of an emitter that several channels see at once, fitted together."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd
import torch
from torch import Tensor

from smlm_bridge.camera import Camera
from smlm_bridge.crlb import Unknowns, bound_of, fisher, middle_of, table_rows
from smlm_bridge.errors import InputRejected
from smlm_bridge.psf.protocol import PSF

Affine = tuple[tuple[float, float, float], tuple[float, float, float]]


@dataclass(frozen=True)
class Channel:
    """One of several views of an emitter: another camera, or another part of one.

    Parameters
    ----------
    psf, camera
        Of the channel.
    transform : 2 x 3
        Affine map of x, y (nm) of the first channel's window into this one's: (A | t); the first channel has
        the identity.
    photon_share
        Share of all photons of the emitter that this channel detects; they sum to 1 over the channels.
    background
        Per pixel, photo-electrons; each channel's is estimated by itself.
    unknowns
        What else is estimated: aberrations are the channel's own, extras of one name are one parameter of all
        channels.
    """

    psf: PSF
    camera: Camera
    photon_share: float
    background: float
    transform: Affine = ((1, 0, 0), (0, 1, 0))
    unknowns: Unknowns = Unknowns()  # noqa: RUF009 - frozen


def channel_parameters(
    channels: int, *, free_ratio: bool = False, unknowns: Sequence[Unknowns] = ()
) -> tuple[str, ...]:
    """Names of the parameters of ``crlb_channels``."""
    each = range(1, channels + 1)
    photons = tuple(f"photons_{c}" for c in each) if free_ratio else ("photons",)
    aberrations = [f"zernike_{noll}_rad_{c}" for c, own in enumerate(unknowns, 1) for noll in own.zernike]
    extras = dict.fromkeys(extra.name for own in unknowns for extra in own.extras)
    return ("x_nm", "y_nm", "z_nm", *photons, *(f"background_{c}" for c in each), *aberrations, *extras)


def crlb_channels(
    channels: Sequence[Channel],
    xyz_nm: Tensor,
    photons: Tensor,
    *,
    shape: tuple[int, int],
    free_ratio: bool = False,
    exact_emccd: bool = False,
) -> Tensor:
    """(E, P) lowest standard deviations when channels are fitted together, by ``channel_parameters``.

    Parameters
    ----------
    channels
        One or more.
    xyz_nm : (E, 3), photons : (E,)
        Emitters in the first channel's window, and their photons in all channels together.
    shape
        Rows and columns of each channel's window.
    free_ratio
        Whether the photons of each channel are unknown (colour from the ratio), or only their sum.
    exact_emccd
        As for ``fisher``.

    Raises
    ------
    InputRejected
        If the shares do not sum to 1, or as ``crlb``.
    """
    shares = [channel.photon_share for channel in channels]
    if not channels or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise InputRejected(f"photon shares {shares} of the channels must not be negative and sum to 1.")
    names = channel_parameters(
        len(channels), free_ratio=free_ratio, unknowns=[channel.unknowns for channel in channels]
    )
    total = torch.zeros(len(xyz_nm), len(names), len(names), dtype=torch.float64, device=xyz_nm.device)
    for number, channel in enumerate(channels, 1):
        affine = torch.tensor(channel.transform, dtype=xyz_nm.dtype, device=xyz_nm.device)
        there = torch.cat([xyz_nm[:, :2] @ affine[:, :2].T + affine[:, 2], xyz_nm[:, 2:]], dim=1)
        light = photons * channel.photon_share
        information = fisher(
            channel.psf, channel.camera, there, light, torch.full_like(light, channel.background),
            shape=shape, unknowns=channel.unknowns, exact_emccd=exact_emccd,
        )  # fmt: skip
        # Derivatives of this channel's own parameters by the common ones.
        jacobian = information.new_zeros(information.shape[1], len(names))
        jacobian[:2, :2] = affine[:, :2]
        own = [f"zernike_{noll}_rad_{number}" for noll in channel.unknowns.zernike]
        own += [extra.name for extra in channel.unknowns.extras]
        brightness = f"photons_{number}" if free_ratio else "photons"
        common = ["z_nm", brightness, f"background_{number}", *own]
        for row, name in enumerate(common, 2):
            jacobian[row, names.index(name)] = channel.photon_share if name == "photons" else 1.0
        total += jacobian.T @ information @ jacobian
    return bound_of(total)


def crlb_channels_table(
    channels: Sequence[Channel],
    *,
    z_nm: Sequence[float],
    photons: float | Sequence[float],
    size_px: int = 41,
    device: torch.device | str = "cpu",
    free_ratio: bool = False,
    exact_emccd: bool = False,
) -> pd.DataFrame:
    """The bound of two channels fitted together, over z and photons, for an emitter in the middle of each window.

    Parameters
    ----------
    channels
        Their windows' middles are brought onto each other: of ``transform`` the matrix counts alone.
    z_nm, photons, size_px
        As for ``crlb_table``; photons are those of all channels together.
    free_ratio, exact_emccd
        As for ``crlb_channels``.

    Returns
    -------
    DataFrame as of ``crlb_table``. ``sigma_photons`` is that of their sum, absent with ``free_ratio``, which has
    ``sigma_photons_1`` and ``sigma_photons_2``; ``sigma_background`` is that of channel 1, ``sigma_background_2``
    of channel 2, and further unknowns are named as by ``channel_parameters``.
    """
    middle = size_px / 2 * channels[0].psf.pixel_nm
    centred = [
        replace(
            channel,
            camera=middle_of(channel.camera, size_px),
            transform=_about(channel.transform, middle, size_px / 2 * channel.psf.pixel_nm),
        )
        for channel in channels
    ]
    least = min(channel.background for channel in channels)
    rows, xyz, light = table_rows(z_nm, photons, least, middle_nm=middle, device=device)
    bound = crlb_channels(
        centred, xyz, light, shape=(size_px, size_px), free_ratio=free_ratio, exact_emccd=exact_emccd
    ).cpu().numpy()  # fmt: skip
    names = channel_parameters(
        len(channels), free_ratio=free_ratio, unknowns=[channel.unknowns for channel in channels]
    )
    columns = {f"sigma_{name}": bound[:, i] for i, name in enumerate(names)}
    return rows.assign(**columns).rename(columns={"sigma_background_1": "sigma_background"})


def _about(transform: Affine, here_nm: float, there_nm: float) -> Affine:
    """The transform's matrix, with a shift that takes a window's middle to a window's middle."""
    (a, b, _), (c, d, _) = transform
    return (a, b, there_nm - here_nm * (a + b)), (c, d, there_nm - here_nm * (c + d))
