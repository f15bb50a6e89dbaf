"""ThunderSTORM's filters, detectors, estimators and renderers with their options, checked before Java sees them.

Fields are named as the options of its macros; defaults are ThunderSTORM's.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, get_args

from smlm_bridge.bridge.jars import Version
from smlm_bridge.bridge.macro import Value
from smlm_bridge.errors import InputRejected
from smlm_bridge.expression import parse

Method = Literal["Maximum likelihood", "Least squares", "Weighted Least squares"]
Connectivity = Literal["8-neighbourhood", "4-neighbourhood"]
Pattern = Literal["box", "cross"]

#: What the formula of a threshold may use.
THRESHOLD_VARIABLES: Final = (
    "I",
    "F",
    *(f"Wave.{name}" for name in ("I", "F", "F1", "F2")),
    *(f"Box.{name}" for name in ("I", "F")),
    *(f"DoB.{name}" for name in ("I", "F", "B1", "B2")),
    *(f"DoG.{name}" for name in ("I", "F", "G1", "G2")),
    *(f"{module}.{name}" for module in ("Gauss", "LowGauss", "Med") for name in ("I", "F")),
)


@dataclass(frozen=True)
class Module:
    """A module of ThunderSTORM: its fields are its options."""

    LABEL: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for item in fields(self):
            _check(
                type(self).__name__, item.name, getattr(self, item.name), getattr(item.type, "__name__", "")
            )

    def options(self, version: Version) -> dict[str, Value]:
        """Names and values as ThunderSTORM's macros have them."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


def _check(module: str, name: str, value: Any, kind: str) -> None:
    if kind == "bool":
        right = isinstance(value, bool)
    elif kind == "int":
        least = 0 if name in ("repaint", "avg") else 1
        right = isinstance(value, int) and not isinstance(value, bool) and value >= least
    elif kind == "float":
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        right = numeric and math.isfinite(value) and value > 0
    else:
        return
    if not right:
        raise InputRejected(
            f"{module}: {name} is {value!r}; it must be {_ALLOWED[kind]}. ThunderSTORM would take its default "
            "in silence or stop at a dialog."
        )


_ALLOWED: Final = {"bool": "True or False", "int": "a whole number above 0", "float": "a number above 0"}


def _member(module: str, name: str, value: str, allowed: Iterable[str]) -> None:
    if value not in allowed:
        raise InputRejected(f"{module}: {name} '{value}' is unknown; there are {', '.join(allowed)}.")


@dataclass(frozen=True)
class Filter(Module):
    """A filter of frames."""


@dataclass(frozen=True)
class WaveletFilter(Filter):
    """The second level of a B-spline wavelet transform."""

    LABEL: ClassVar[str] = "Wavelet filter (B-Spline)"
    scale: float = 2.0
    order: int = 3


@dataclass(frozen=True)
class BoxFilter(Filter):
    """A running mean."""

    LABEL: ClassVar[str] = "Averaging (Box) filter"
    size: int = 3


@dataclass(frozen=True)
class DifferenceOfBoxes(Filter):
    """The difference of two running means."""

    LABEL: ClassVar[str] = "Difference of averaging filters"
    size1: int = 3
    size2: int = 5


@dataclass(frozen=True)
class GaussianFilter(Filter):
    """A Gaussian blur; sigma in pixels."""

    LABEL: ClassVar[str] = "Gaussian filter"
    sigma: float = 1.6


@dataclass(frozen=True)
class LoweredGaussian(Filter):
    """A Gaussian of mean 0; sigma in pixels."""

    LABEL: ClassVar[str] = "Lowered Gaussian filter"
    sigma: float = 1.6


@dataclass(frozen=True)
class DifferenceOfGaussians(Filter):
    """The difference of two Gaussian blurs; sigmas in pixels."""

    LABEL: ClassVar[str] = "Difference-of-Gaussians filter"
    sigma1: float = 1.0
    sigma2: float = 1.6


@dataclass(frozen=True)
class MedianFilter(Filter):
    """A median of the neighbourhood."""

    LABEL: ClassVar[str] = "Median filter"
    size: int = 3
    pattern: Pattern = "box"

    def __post_init__(self) -> None:
        super().__post_init__()
        _member("MedianFilter", "pattern", self.pattern, get_args(Pattern))


@dataclass(frozen=True)
class NoFilter(Filter):
    """The frame as it is."""

    LABEL: ClassVar[str] = "No filter"


@dataclass(frozen=True)
class Detector(Module):
    """A detector; ``threshold`` is a number or a formula."""

    threshold: str = "std(Wave.F1)"

    def __post_init__(self) -> None:
        super().__post_init__()
        formula = parse(str(self.threshold), THRESHOLD_VARIABLES)
        if formula.is_array or formula.is_truth:
            raise InputRejected(
                f"the threshold '{self.threshold}' is no number; give for example 2*std(Wave.F1)."
            )


@dataclass(frozen=True)
class LocalMaximum(Detector):
    """Pixels that no neighbour exceeds."""

    LABEL: ClassVar[str] = "Local maximum"
    connectivity: Connectivity = "8-neighbourhood"

    def __post_init__(self) -> None:
        super().__post_init__()
        _member("LocalMaximum", "connectivity", self.connectivity, get_args(Connectivity))


@dataclass(frozen=True)
class NonMaximumSuppression(Detector):
    """Maxima within a radius in pixels."""

    LABEL: ClassVar[str] = "Non-maximum suppression"
    radius: int = 1


@dataclass(frozen=True)
class CentroidOfComponents(Detector):
    """Centroids of what is connected above the threshold."""

    LABEL: ClassVar[str] = "Centroid of connected components"
    watershed: bool = True


@dataclass(frozen=True)
class Estimator(Module):
    """A sub-pixel estimator."""


@dataclass(frozen=True)
class MultiEmitter:
    """Fitting several emitters in one window (ThunderSTORM's MFA)."""

    nmax: int = 5
    pvalue: float = 1e-6
    keep_same_intensity: bool = True
    fixed_intensity: bool = False
    expected_intensity: tuple[float, float] = (500.0, 2500.0)

    def __post_init__(self) -> None:
        low, high = self.expected_intensity
        if self.nmax < 1 or not 0 < self.pvalue < 1 or not 0 <= low < high:
            raise InputRejected(
                f"MultiEmitter: nmax {self.nmax}, pvalue {self.pvalue:g}, expected_intensity {low:g}:{high:g}; "
                "nmax is 1 or more, pvalue between 0 and 1, the intensities rise."
            )

    def options(self) -> dict[str, Value]:
        """Names and values as ThunderSTORM's macros have them."""
        low, high = self.expected_intensity
        chosen: dict[str, Value] = {"mfaenabled": True, "nmax": self.nmax, "pvalue": self.pvalue}
        chosen |= {
            "keep_same_intensity": self.keep_same_intensity,
            "fixed_intensity": self.fixed_intensity,
            "expected_intensity": f"{low:g}:{high:g}",
        }
        return chosen


@dataclass(frozen=True)
class GaussianEstimator(Estimator):
    """What the fits of Gaussians share: start of sigma and radius of the window in pixels, method."""

    sigma: float = 1.6
    fitradius: int = 3
    method: Method = "Maximum likelihood"
    full_image_fitting: bool = False
    multi_emitter: MultiEmitter | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _member(type(self).__name__, "method", self.method, get_args(Method))

    def options(self, version: Version) -> dict[str, Value]:
        """Names and values as ThunderSTORM's macros have them."""
        chosen = {name: value for name, value in super().options(version).items() if name != "multi_emitter"}
        several = {"mfaenabled": False} if self.multi_emitter is None else self.multi_emitter.options()
        return {**chosen, **several}


@dataclass(frozen=True)
class IntegratedGaussian(GaussianEstimator):
    """A Gaussian integrated over pixels."""

    LABEL: ClassVar[str] = "PSF: Integrated Gaussian"


@dataclass(frozen=True)
class SampledGaussian(GaussianEstimator):
    """A Gaussian at the centres of pixels."""

    LABEL: ClassVar[str] = "PSF: Gaussian"


@dataclass(frozen=True)
class EllipticalGaussian(GaussianEstimator):
    """An astigmatic Gaussian, z by a calibration of ThunderSTORM."""

    LABEL: ClassVar[str] = "PSF: Elliptical Gaussian (3D astigmatism)"
    calibrationpath: Path = field(default_factory=Path)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not Path(self.calibrationpath).is_file():
            raise InputRejected(
                f"EllipticalGaussian: there is no calibration {self.calibrationpath}; make one by "
                "'thunderstorm calibrate'."
            )


@dataclass(frozen=True)
class RadialSymmetry(Estimator):
    """Radial symmetry (Parthasarathy 2012)."""

    LABEL: ClassVar[str] = "Radial symmetry"
    fitradius: int = 5


@dataclass(frozen=True)
class CentroidOfNeighbourhood(Estimator):
    """Centre of mass of the window."""

    LABEL: ClassVar[str] = "Centroid of local neighborhood"
    fitradius: int = 3


@dataclass(frozen=True)
class NoEstimator(Estimator):
    """Detections as they are."""

    LABEL: ClassVar[str] = "No estimator"


@dataclass(frozen=True)
class Renderer(Module):
    """A renderer; ``magnification`` in pixels of the picture a camera pixel, ``zrange`` (from, step, to) in nm."""

    magnification: float = 5.0
    colorize: bool = False
    threed: bool = False
    zrange: tuple[float, float, float] = (-500.0, 100.0, 500.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        first, step, last = self.zrange
        if not (first < last and step > 0):
            raise InputRejected(f"zrange {self.zrange} must be (from, step, to) in nm, rising.")

    def options(self, version: Version) -> dict[str, Value]:
        """Names and values as ThunderSTORM's macros have them."""
        chosen = super().options(version)
        first, step, last = self.zrange
        chosen["zrange"] = f"{first:g}:{step:g}:{last:g}"
        if not self.threed:
            del chosen["zrange"]
        if version == "1.3":
            chosen["colorizez"] = chosen.pop("colorize")
        return chosen


@dataclass(frozen=True)
class AveragedShiftedHistograms(Renderer):
    """Averaged shifted histograms."""

    LABEL: ClassVar[str] = "Averaged shifted histograms"
    shifts: int = 2
    zshifts: int = 2


@dataclass(frozen=True)
class ScatterPlot(Renderer):
    """One bright pixel a localization."""

    LABEL: ClassVar[str] = "Scatter plot"


@dataclass(frozen=True)
class NormalizedGaussian(Renderer):
    """A Gaussian a localization, as wide as its uncertainty or as ``dx`` (nm) where forced."""

    LABEL: ClassVar[str] = "Normalized Gaussian"
    dx: float = 20.0
    dxforce: bool = False
    dz: float = 100.0
    dzforce: bool = False


@dataclass(frozen=True)
class Histograms(Renderer):
    """Histograms, jittered ``avg`` times."""

    LABEL: ClassVar[str] = "Histograms"
    avg: int = 0


@dataclass(frozen=True)
class Analysis:
    """What ``Run analysis`` does; its picture is drawn afterwards by ``ThunderStorm.render``."""

    filter: Filter = field(default_factory=WaveletFilter)
    detector: Detector = field(default_factory=LocalMaximum)
    estimator: Estimator = field(default_factory=IntegratedGaussian)

    def __post_init__(self) -> None:
        for name, kind in (("filter", Filter), ("detector", Detector), ("estimator", Estimator)):
            module = getattr(self, name)
            if not isinstance(module, kind) or not module.LABEL:
                raise InputRejected(f"the {name} of an analysis must be a {kind.__name__}, not {module!r}.")

    def options(self, version: Version) -> dict[str, Value]:
        """All options of the command; all four modules are named, as it insists on them."""
        chosen: dict[str, Value] = {}
        for name in ("filter", "detector", "estimator"):
            module: Module = getattr(self, name)
            chosen[name] = module.LABEL
            joined(chosen, module.options(version), module.LABEL)
        chosen["renderer"] = "No Renderer"
        return chosen


def joined(chosen: dict[str, Value], more: Mapping[str, Value], label: str) -> None:
    """Add the options of one module; modules share the names of their options.

    Raises
    ------
    InputRejected
        If another module has an option of the same name and another value: ThunderSTORM would give one value
        to both.
    """
    for name, value in more.items():
        if chosen.setdefault(name, value) != value:
            raise InputRejected(
                f"the option '{name}' of '{label}' is {value}, and another module's is {chosen[name]}: "
                "ThunderSTORM knows one for both. Give the same value, or take another module."
            )
