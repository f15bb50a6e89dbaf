"""What every point spread function can do."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class PSF(Protocol):
    """A point spread function on a camera of square pixels."""

    @property
    def pixel_nm(self) -> float:
        """Camera pixel in the sample."""
        ...

    def images(self, xyz_nm: Tensor, shape: tuple[int, int], *, blur_nm: Tensor | None = None) -> Tensor:
        """Expected fraction of each emitter's detected photons in every pixel.

        Parameters
        ----------
        xyz_nm : (E, 3) tensor
            Positions; x, y from the outer top-left corner of the top-left pixel, z above the coverslip.
        shape
            Rows and columns (H, W).
        blur_nm : (E,) tensor
            Standard deviation of an additional Gaussian blur of each emitter.

        Returns
        -------
        (E, H, W) tensor, differentiable with respect to ``xyz_nm`` and ``blur_nm``; it sums to 1 over an
        unbounded camera.
        """
        ...


@runtime_checkable
class AnalyticPSF(PSF, Protocol):
    """A PSF that knows its derivatives without automatic differentiation."""

    def derivatives(
        self,
        xyz_nm: Tensor,
        shape: tuple[int, int],
        *,
        blur_nm: Tensor | None = None,
        zernike: Sequence[int] = (),
    ) -> tuple[Tensor, Tensor]:
        """(E, H, W) images and (E, 3 + len(zernike), H, W) derivatives by x, y, z and Zernike coefficients."""
        ...
