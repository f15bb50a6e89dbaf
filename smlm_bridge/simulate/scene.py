"""Draw scenes: where the emitters are, how bright, on which background.

Everything that is drawn is declared in ``Ranges``.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor

from smlm_bridge.errors import InputRejected
from smlm_bridge.simulate.background import BackgroundRanges, draw_background


@dataclass(frozen=True)
class SecondRanges:
    """What is drawn otherwise in the second of two channels; None: as in the first.

    Parameters
    ----------
    photon_ratio
        Photons in channel 2 over those in channel 1, uniform from emitter to emitter; None: the calibration's.
    blur_nm
        As in ``Ranges``, drawn for this channel alone; None: every emitter has one blur in both channels.
    background
        As in ``Ranges``; it is drawn for this channel alone in any case.
    read_noise_e
        As in ``Ranges``, drawn for this channel alone; None: one read noise in both channels.

    Raises
    ------
    InputRejected
        If a range is not two numbers, the lower first, or a value is not physical.
    """

    photon_ratio: tuple[float, float] | None = None
    blur_nm: tuple[float, float] | None = None
    background: BackgroundRanges | None = None
    read_noise_e: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for part in ("photon_ratio", "blur_nm", "read_noise_e"):
            low, high = getattr(self, part) or (0.001, 1.0)
            least, most = (0.001, 1000.0) if part == "photon_ratio" else (0.0, math.inf)
            if not (least <= low <= high <= most and math.isfinite(high)):
                raise InputRejected(
                    f"ranges: channel2 {part} = {low}:{high} must be two numbers, the lower first, from {least:g}."
                )

    def to_json(self) -> dict[str, Any]:
        """What differs, as plain numbers and lists."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "SecondRanges":
        """Read what ``to_json`` wrote; see ``Ranges.from_json``."""
        given = dict(data)
        if "background" in given:
            given["background"] = BackgroundRanges(**_checked(BackgroundRanges, given["background"]))
        return cls(**_checked(cls, given))


@dataclass(frozen=True)
class Ranges:
    """What scenes are drawn from: the training space of a model, and it travels inside the model's file.

    Parameters
    ----------
    z_nm
        Heights, uniform.
    photons
        Detected photo-electrons of an emitter: the two ends of a uniform or log-uniform law, or shape and
        scale of a gamma law.
    photons_law
        ``"uniform"``, ``"loguniform"`` or ``"gamma"``.
    density_um2
        Emitters per square micrometre, uniform from frame to frame.
    background
        Photo-electrons per pixel.
    blur_nm
        Standard deviation of an additional Gaussian blur, uniform from emitter to emitter.
    read_noise_e
        RMS read noise beyond the camera's own, uniform from frame to frame.
    label_min_photons
        Emitters below are drawn but not asked for.
    margin_nm
        Emitters stand also this far outside the frame.
    lifetime_frames
        Mean time that an emitter stays on, in frames, of an exponential law; it goes on and off at any moment, and
        ``photons`` are those of a frame through which it is on. 0: every emitter is on in one frame, all of it.
    channel2
        What is drawn otherwise in the second of two channels; ``photons`` are then those of both together.

    Raises
    ------
    InputRejected
        If a range is not two numbers, the lower first, or a value is not physical.
    """

    z_nm: tuple[float, float]
    photons: tuple[float, float] = (1000.0, 10_000.0)
    photons_law: Literal["uniform", "loguniform", "gamma"] = "loguniform"
    density_um2: tuple[float, float] = (0.01, 0.6)
    background: BackgroundRanges = BackgroundRanges()  # noqa: RUF009 - frozen
    blur_nm: tuple[float, float] = (0.0, 0.0)
    read_noise_e: tuple[float, float] = (0.0, 0.0)
    label_min_photons: float = 0.0
    margin_nm: float = 1300.0
    lifetime_frames: float = 0.0
    channel2: SecondRanges = SecondRanges()

    def __post_init__(self) -> None:
        for part in ("z_nm", "density_um2", "blur_nm", "read_noise_e"):
            low, high = getattr(self, part)
            least = -math.inf if part == "z_nm" else 0
            if not (least <= low <= high and math.isfinite(low) and math.isfinite(high)):
                raise InputRejected(
                    f"ranges: {part} = {low}:{high} must be two numbers, the lower first "
                    "(only heights may be negative)."
                )
        first, second = self.photons
        if not (0 < first < math.inf and 0 < second < math.inf):
            raise InputRejected(f"ranges: photons = {self.photons} must be two numbers above 0.")
        if self.photons_law != "gamma" and first > second:
            raise InputRejected(f"ranges: photons = {self.photons}: the lower comes first.")
        for part in ("label_min_photons", "margin_nm", "lifetime_frames"):
            if not 0 <= getattr(self, part) < math.inf:
                raise InputRejected(f"ranges: {part} = {getattr(self, part)} must be a number from 0.")
        if self.photons_law not in ("uniform", "loguniform", "gamma"):
            raise InputRejected(
                f"ranges: photons_law '{self.photons_law}' is not uniform, loguniform or gamma."
            )

    def to_json(self) -> dict[str, Any]:
        """The ranges as plain numbers and lists."""
        data = asdict(self)
        # Earlier versions know no lifetime and no channel 2, and their checkpoints are compared with this.
        if not self.lifetime_frames:
            del data["lifetime_frames"]
        del data["channel2"]
        if second := self.channel2.to_json():
            data["channel2"] = second
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Ranges":
        """Read what ``to_json`` wrote, or the same keys from a TOML file.

        Raises
        ------
        InputRejected
            If a key is unknown, missing or of the wrong kind.
        """
        try:
            background = BackgroundRanges(**_checked(BackgroundRanges, data.get("background", {})))
            second = SecondRanges.from_json(data.get("channel2", {}))
            return cls(**_checked(cls, {**data, "background": background, "channel2": second}))
        except InputRejected:
            raise
        except (TypeError, ValueError, AttributeError) as error:
            raise InputRejected(f"ranges: a value is missing or of the wrong kind: {error}.") from error


@dataclass(frozen=True)
class Scene:
    """One drawn sequence of frames.

    Parameters
    ----------
    frame : (E,) int64
        Frame of each emitter, from 0.
    xyz_nm : (E, 3)
        Positions; may lie outside the frame by the margin.
    photons, blur_nm : (E,)
        Expected photo-electrons; standard deviation of the additional blur.
    background : (T, H, W)
        Photo-electrons per pixel.
    read_noise_e : (T,)
        Additional read noise.
    """

    frame: Tensor
    xyz_nm: Tensor
    photons: Tensor
    blur_nm: Tensor
    background: Tensor
    read_noise_e: Tensor


def draw(
    ranges: Ranges,
    generator: torch.Generator,
    *,
    frames: int,
    shape: tuple[int, int],
    pixel_nm: float,
    emitters: int | None = None,
    clear_nm: float | None = None,
) -> Scene:
    """Draw a scene.

    Parameters
    ----------
    ranges
        What to draw from.
    generator
        The only source of randomness; its device is the scene's.
    frames, shape, pixel_nm
        Number of frames, their rows and columns, the camera pixel.
    emitters
        Exactly this many in every frame instead of a density.
    clear_nm
        Width of a border kept free of emitters, instead of the margin outside.
    """
    height, width = (n * pixel_nm for n in shape)
    border = clear_nm if clear_nm is not None else -ranges.margin_nm
    low = torch.tensor([border, border, ranges.z_nm[0]], device=generator.device)
    high = torch.tensor([width - border, height - border, ranges.z_nm[1]], device=generator.device)
    if (high < low).any():
        raise InputRejected(
            f"a border of {border:g} nm leaves no room in a frame of {width:g} x {height:g} nm."
        )
    if emitters is None:
        area_um2 = float((high - low)[:2].prod()) / 1e6
        count = torch.poisson(
            _uniform((frames,), ranges.density_um2, generator) * area_um2, generator=generator
        )
    else:
        count = torch.full((frames,), float(emitters), device=generator.device)
    frame = torch.repeat_interleave(torch.arange(frames, device=generator.device), count.long())
    total = frame.numel()
    return Scene(
        frame=frame,
        xyz_nm=low + torch.rand((total, 3), generator=generator, device=generator.device) * (high - low),
        photons=_photons(ranges, total, generator),
        blur_nm=_uniform((total,), ranges.blur_nm, generator),
        background=draw_background(ranges.background, generator, frames=frames, shape=shape),
        read_noise_e=_uniform((frames,), ranges.read_noise_e, generator),
    )


def _uniform(shape: tuple[int, ...], ends: tuple[float, float], generator: torch.Generator) -> Tensor:
    return ends[0] + torch.rand(shape, generator=generator, device=generator.device) * (ends[1] - ends[0])


def _photons(ranges: Ranges, count: int, generator: torch.Generator) -> Tensor:
    first, second = ranges.photons
    if ranges.photons_law == "gamma":
        shape = torch.full((count,), first, device=generator.device)
        return torch._standard_gamma(shape, generator=generator) * second
    if ranges.photons_law == "uniform":
        return _uniform((count,), (first, second), generator)
    ends = torch.tensor([first, second]).log().tolist()
    return _uniform((count,), (ends[0], ends[1]), generator).exp()


def _checked(kind: type, data: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments for a dataclass from JSON or TOML: known keys only, lists as tuples."""
    known = {part.name for part in fields(kind)}
    if unknown := set(data) - known:
        raise InputRejected(f"ranges: unknown keys {sorted(unknown)}; allowed are {sorted(known)}.")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
