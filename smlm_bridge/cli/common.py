"""Options every verb has, and those of the microscope and the camera."""

import functools
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smlm_bridge.cli.reporting import OnStep, progress
from smlm_bridge.cli.values import DEVICE, NUMBER_OR_MAP
from smlm_bridge.cli.verbs import refuse_not_built
from smlm_bridge.errors import MissingDependency, UsageError

if TYPE_CHECKING:
    from smlm_bridge.camera import Camera
    from smlm_bridge.io.setup import Setup

Verb = Callable[..., Any]
Decorator = Callable[[Verb], Verb]

PATH = click.Path(path_type=Path)
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


@dataclass(frozen=True)
class Run:
    """How a verb runs: the values of the common options."""

    progress: str
    quiet: bool
    overwrite: bool
    device_name: str
    threads: int | None
    given_seed: int | None

    @functools.cached_property
    def seed(self) -> int:
        """The seed given, or one drawn now; a verb that uses it reports it."""
        return secrets.randbelow(2**31) if self.given_seed is None else self.given_seed

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda[:N]``; ``auto`` takes a CUDA device where torch sees one."""
        return resolve_device(self.device_name)

    @contextmanager
    def steps(self, what: str) -> Iterator[OnStep]:
        """Give a callback ``on_step(done, total)`` for one activity."""
        with progress(what, self.progress, quiet=self.quiet) as on_step:
            yield on_step

    def outputs(self, *paths: Path | None) -> None:
        """Refuse outputs that exist, or that are the same file, before any work is done."""
        from smlm_bridge.io.atomic import check_output

        named = [path for path in paths if path is not None]
        if len({path.resolve() for path in named}) < len(named):
            raise UsageError(
                f"two outputs are the same file: {', '.join(map(str, named))}. Give each its own."
            )
        for path in named:
            check_output(path, overwrite=self.overwrite)


@dataclass(frozen=True)
class SetupReader:
    """The setup file and the options of the same names, not read yet."""

    path: Path | None
    given: Mapping[str, Any]

    def __call__(self, camera: "Camera | None" = None) -> "Setup":
        """Read and check; given a calibration's camera, change only what is said."""
        from smlm_bridge.io.setup import load_setup

        return load_setup(self.path, self.given, camera=camera)


def resolve_device(name: str) -> str:
    """Answer ``auto`` and refuse a CUDA device that is not there.

    Raises
    ------
    MissingDependency
        If CUDA is asked for and torch is not installed or sees no such device.
    """
    if name == "cpu":
        return name
    try:
        import torch
    except ImportError:
        if name == "auto":
            return "cpu"
        raise MissingDependency(
            f"--device {name} needs torch, which is not installed: pip install 'smlm_bridge[train]', "
            "or take --device cpu."
        ) from None
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda" if count else "cpu"
    index = int(name.partition(":")[2] or 0)
    if index >= count:
        raise MissingDependency(
            f"--device {name}: torch sees {count} CUDA device(s), counted from 0. Install a driver and "
            "a torch with CUDA, or take --device cpu or auto."
        )
    return name


def verb(name: str, *, example: str, units: str) -> Decorator:
    """Make a function a verb: common options, and a help that ends with units and an example.

    The function gets the common options as one ``Run`` in its first argument and returns a ``Summary``.
    """

    def decorate(function: Verb) -> Verb:
        @functools.wraps(function)
        def callback(**options: Any) -> Any:
            run = Run(
                progress=options.pop("progress"),
                quiet=options.pop("quiet"),
                overwrite=options.pop("overwrite"),
                device_name=options.pop("device"),
                threads=options.pop("threads"),
                given_seed=options.pop("seed"),
            )
            options.pop("json")
            options.pop("debug")
            _limit_threads(run.threads)
            return function(run, **options)

        epilog = f"\b\nUnits: {units}\n\n\b\nExample:\n  {example}"
        return click.command(name, epilog=epilog)(_common_options(callback))

    return decorate


def _limit_threads(threads: int | None) -> None:
    """Limit the threads of libraries; they read the environment when they are first imported."""
    if threads is None:
        return
    for variable in THREAD_VARIABLES:
        os.environ[variable] = str(threads)
    import sys

    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def _common_options(function: Verb) -> Verb:
    options = (
        click.option("--json", is_flag=True, help="Exactly one JSON object on stdout, at the end."),
        click.option(
            "--progress",
            type=click.Choice(["bar", "jsonl", "none"]),
            default="bar",
            show_default=True,
            help="Progress on stderr; a bar only on a terminal.",
        ),
        click.option("--quiet", is_flag=True, help="No warnings and no bar."),
        click.option("--debug", is_flag=True, help="A traceback where something fails."),
        click.option("--overwrite", is_flag=True, help="Replace outputs that exist."),
        click.option("--device", type=DEVICE, default="auto", show_default=True, help="Where to compute."),
        click.option("--threads", type=click.IntRange(min=1), help="Threads on the CPU."),
        click.option(
            "--seed", type=click.IntRange(min=0), help="Of every random draw; absent: drawn, reported."
        ),
    )
    return _apply(options, function)


def output_option(help_text: str, *, required: bool = True) -> Decorator:
    """``-o/--output``."""
    return click.option("-o", "--output", type=PATH, required=required, metavar="FILE", help=help_text)


def file_option(name: str, help_text: str, **settings: Any) -> Decorator:
    """An option that takes a path."""
    return click.option(name, type=PATH, metavar="FILE", help=help_text, **settings)


def not_built(*names: str, flags: tuple[str, ...] = ()) -> Decorator:
    """Options of the contract that end with exit code 2, by name, because their part is not built yet."""

    def refuse(ctx: click.Context, param: click.Parameter, value: object) -> None:
        # A flag left alone is False, an option left alone None, a repeatable one an empty tuple.
        if value:
            refuse_not_built(f"the option {param.opts[0]} of '{ctx.info_name}'")

    plain: dict[str, Any] = {"hidden": True, "expose_value": False, "callback": refuse}
    options = [click.option(name, **plain) for name in names]
    options += [click.option(name, is_flag=True, **plain) for name in flags]
    return lambda function: _apply(options, function)


def _apply(options: Any, function: Verb) -> Verb:
    for option in reversed(options):
        function = option(function)
    return function


_OPTICS_OPTIONS: Mapping[str, tuple[Any, str]] = {
    "numerical_aperture": (float, "NA of the objective."),
    "immersion_index": (float, "Refractive index of the immersion medium."),
    "sample_index": (float, "Refractive index around the emitters."),
    "wavelength_nm": (float, "Emission wavelength in vacuum, nm."),
    "pixel_nm": (float, "Camera pixel in the sample, nm."),
    "focus_nm": (float, "Objective travel in the immersion medium, nm, positive into the sample."),
    "model": (click.Choice(["vectorial", "scalar"]), "Model of the PSF."),
    "analyser_deg": (float, "Angle of a linear analyser, degrees (x right, y down)."),
}
_CAMERA_OPTIONS: Mapping[str, tuple[Any, str]] = {
    "offset": (NUMBER_OR_MAP, "ADU without light."),
    "e_per_adu": (NUMBER_OR_MAP, "Electrons at the amplifier per ADU."),
    "read_noise_e": (NUMBER_OR_MAP, "RMS electrons at the amplifier."),
    "quantum_efficiency": (float, "Recorded only, 0 to 1."),
    "em_gain": (float, "Above 1 means EMCCD."),
}
_MASK_OPTIONS: Mapping[str, tuple[Any, str]] = {
    "slm_pixel_um": (float, "Pixel of the phase mask's grid, um."),
    "relay_focal_mm": (float, "Focal length of the relay lens, mm."),
    "magnification": (float, "Of objective and tube lens."),
    "variable": (str, "Name of the mask in a .mat file with several arrays."),
}


def setup_options(
    *, optics: bool = True, camera: bool = True, mask: bool = False, skip: tuple[str, ...] = ()
) -> Decorator:
    """``--setup FILE.toml`` and options of the same names, which win.

    The verb gets one argument ``setup``, a ``SetupReader``.

    Parameters
    ----------
    optics, camera, mask
        Which tables of the setup also have options.
    skip
        Names for which the verb has an option with another meaning (``model`` of localize).
    """
    tables = [
        table
        for wanted, table in ((optics, _OPTICS_OPTIONS), (camera, _CAMERA_OPTIONS), (mask, _MASK_OPTIONS))
        if wanted
    ]
    described = {name: item for table in tables for name, item in table.items() if name not in skip}
    options = [file_option("--setup", "Microscope, mask and camera as TOML; options of the same names win.")]
    for name, (kind, text) in described.items():
        options.append(click.option(f"--{name.replace('_', '-')}", f"setup_{name}", type=kind, help=text))
    if optics:
        described = {**described, "supercritical": (bool, "")}
        text = "Whether light beyond the sample's critical angle is collected."
        options.append(
            click.option("--supercritical/--no-supercritical", "setup_supercritical", default=None, help=text)
        )

    def decorate(function: Verb) -> Verb:
        @functools.wraps(function)
        def callback(*arguments: Any, **values: Any) -> Any:
            path: Path | None = values.pop("setup")
            given = {name: values.pop(f"setup_{name}") for name in described}

            return function(*arguments, setup=SetupReader(path, given), **values)

        return _apply(options, callback)

    return decorate


def required(value: Any, what: str) -> Any:
    """The value, or a usage error that says what is missing and how to give it."""
    if value is None:
        raise UsageError(what)
    return value
