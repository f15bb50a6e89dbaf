"""ThunderSTORM from Python: its commands as typed functions, with or without a display.

One object a process, for ThunderSTORM keeps one table for all of Java. Whatever it says to somebody at a screen
becomes an exception here.
"""

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from smlm_bridge.bridge import windowless
from smlm_bridge.bridge.calls import JavaError
from smlm_bridge.bridge.gateway import Gateway
from smlm_bridge.bridge.jars import Plugin
from smlm_bridge.bridge.java import java_class, jpype
from smlm_bridge.bridge.macro import Value
from smlm_bridge.bridge.modules import (
    Analysis,
    AveragedShiftedHistograms,
    Detector,
    Filter,
    LocalMaximum,
    NonMaximumSuppression,
    Renderer,
    WaveletFilter,
)
from smlm_bridge.bridge.settings import (
    Calibrating,
    CrossCorrelation,
    Density,
    DriftFile,
    Fiducials,
    Merging,
    StageOffset,
    camera_options,
)
from smlm_bridge.bridge.tables import read_from_thunderstorm
from smlm_bridge.camera import Camera
from smlm_bridge.errors import InputRejected, SmlmError
from smlm_bridge.io.drift import load_drift
from smlm_bridge.post.colocalization import Colocalization
from smlm_bridge.post.drift import Drift

_log = logging.getLogger(__name__)

# How the table changes when an action did something.
_COMMANDS: Final = ("Camera setup", "Run analysis", "Show results table", "Visualization")


class ThunderStorm:
    """ThunderSTORM in a running ImageJ. Made by ``open_thunderstorm``."""

    def __init__(self, gateway: Gateway, plugin: Plugin) -> None:
        self.gateway = gateway
        self.version = plugin.version
        self.label = plugin.label
        self._root = windowless.ROOT
        self._pixel_nm: float | None = None
        missing = [name for name in _COMMANDS if name not in gateway.commands()]
        if missing:
            raise SmlmError(
                f"ImageJ's menus lack ThunderSTORM's command '{missing[0]}', though {plugin.jar} was given; is "
                "its plugins.config in the jar?"
            )

    @property
    def results(self) -> Any:
        """Its one results table, an object of Java."""
        return self.java_class("results.IJResultsTable").getResultsTable()

    def java_class(self, name: str) -> Any:
        """A class of ThunderSTORM, by its name within the plugin."""
        return self.gateway.java_class(f"{self._root}.{name}")

    def set_camera(self, camera: Camera, *, pixel_nm: float, timeout_s: float | None = 60) -> None:
        """Tell ThunderSTORM the camera, with quantum efficiency 1; see ``settings.camera_options``."""
        options = camera_options(camera, pixel_nm, self.version)
        self.gateway.run("Camera setup", options, timeout_s=timeout_s)
        known = float(self.java_class("CameraSetupPlugIn").getPixelSize())
        if abs(known - pixel_nm) > 1e-9 * pixel_nm:
            raise JavaError(
                f"ThunderSTORM's pixel is {known:g} nm after a camera setup with {pixel_nm:g} nm."
            )
        self._pixel_nm = pixel_nm

    def know_pixel(self, pixel_nm: float) -> None:
        """For tables without a movie: the pixel alone, where it is another than before."""
        if self._pixel_nm != pixel_nm:
            self.set_camera(Camera(), pixel_nm=pixel_nm)

    def run(
        self,
        frames: NDArray[Any],
        analysis: Analysis | None = None,
        *,
        camera: Camera,
        pixel_nm: float,
        timeout_s: float | None = None,
    ) -> pd.DataFrame:
        """Run an analysis: filter, detector, estimator.

        Parameters
        ----------
        frames
            (T, H, W) in ADU, uint8, uint16 or float32.
        analysis
            The modules; absent: ThunderSTORM's defaults, fitted by maximum likelihood.
        camera, pixel_nm
            Of the frames.
        timeout_s
            Give up after so long.

        Returns
        -------
        A table as in ``smlm_bridge.locs``.

        Raises
        ------
        JavaError
            If ThunderSTORM failed, also where it says so only on the screen.
        """
        wanted = analysis or Analysis()
        self.set_camera(camera, pixel_nm=pixel_nm)
        image = self.gateway.to_image(frames, pixel_nm=pixel_nm)
        self._reset()
        self.gateway.run("Run analysis", wanted.options(self.version), image=image, timeout_s=timeout_s)
        if self.results.isForceHidden():
            raise JavaError("ThunderSTORM's analysis stopped before its end; no table was made.")
        return self.table()

    def table(self) -> pd.DataFrame:
        """ThunderSTORM's results table as it is now."""
        found: pd.DataFrame = self.gateway.call(
            lambda: read_from_thunderstorm(self.results), what="reading ThunderSTORM's table"
        )
        return found

    def _reset(self) -> None:
        """An empty table without history, so that no earlier run can be taken for this one."""

        def action() -> None:
            table = self.hidden_table()
            table.reset()
            table.setOriginalState()

        self.gateway.call(action, what="emptying ThunderSTORM's table")

    def load(
        self,
        locs: pd.DataFrame | str | Path,
        *,
        pixel_nm: float,
        file_format: str = "csv",
        first_frame: int = 1,
    ) -> None:
        """Put a table, or a file in one of its formats, into ThunderSTORM's results table.

        Parameters
        ----------
        locs
            A table as in ``smlm_bridge.locs``, or a file.
        pixel_nm
            Camera pixel, for what ThunderSTORM does in pixels.
        file_format
            Of the file: one of ``files.FORMATS``.
        first_frame
            Number of the file's first frame.

        Raises
        ------
        JavaError
            If ThunderSTORM does not take the file, or takes fewer rows than were given.
        """
        from smlm_bridge.bridge.files import load

        load(self, locs, pixel_nm=pixel_nm, file_format=file_format, first_frame=first_frame)

    def export(self, path: str | Path, *, file_format: str = "csv", decimals: int = 5) -> None:
        """Write ThunderSTORM's results table by its own writer.

        Raises
        ------
        JavaError
            If ThunderSTORM does not write it.
        InputRejected
            If the folder does not exist (ThunderSTORM would open a dialog), the format is unknown or the table
            is empty.
        """
        from smlm_bridge.bridge.files import export

        export(self, Path(path).resolve(), file_format=file_format, decimals=decimals)

    def post_process(
        self, action: str, options: Mapping[str, Value], *, timeout_s: float | None = None
    ) -> pd.DataFrame:
        """One action of ``Show results table`` on the table as it is, and the table afterwards.

        The history of the table is emptied first: else an action that was the last one too would replace it
        instead of following it. Buttons that an earlier failure left disabled are enabled: else the action
        would do nothing and say nothing.
        """
        self.gateway.call(self._ready, what="preparing ThunderSTORM's table")
        self.gateway.run("Show results table", {"action": action, **options}, timeout_s=timeout_s)
        if not self.gateway.call(self._has_acted, what="ThunderSTORM's history"):
            raise JavaError(f"ThunderSTORM's '{action}' did nothing and gave no reason.")
        return self.table()

    def hidden_table(self) -> Any:
        """The table with its window hidden: a window repaints while the table changes, and fails."""
        table = self.results
        table.getTableWindow().hide()
        return table

    def _ready(self) -> None:
        table = self.hidden_table()
        if int(table.getRowCount()) == 0:
            raise InputRejected("ThunderSTORM's table is empty; run an analysis or load a table first.")
        table.getOperationHistoryPanel().removeAllOperations()
        for module in table.getPostProcessingModules():
            with contextlib.suppress(jpype().JException):
                field = module.getClass().getDeclaredField("applyButton")
                field.setAccessible(True)
                if (button := field.get(module)) is not None:
                    button.setEnabled(True)

    def _has_acted(self) -> bool:
        return self.results.getOperationHistoryPanel().getLastOperation() is not None

    def merge(self, settings: Merging | None = None) -> pd.DataFrame:
        """Merge the blinks of a molecule in the table as it is."""
        return self.post_process("merge", (settings or Merging()).options())

    def filter(self, formula: str) -> pd.DataFrame:
        """Keep the rows of the table for which a formula is true; combine conditions with ``&``."""
        if not formula.strip():
            raise InputRejected("the filter's formula is empty; give for example 'intensity>500'.")
        formula = formula.replace("uncertainty_xy", "uncertainty") if self.version == "1.3" else formula
        return self.post_process("filter", {"formula": formula})

    def density(self, settings: Density | None = None) -> pd.DataFrame:
        """Keep the rows with neighbours."""
        return self.post_process("density", (settings or Density()).options())

    def duplicates(self, radius: str | float = "uncertainty_xy") -> pd.DataFrame:
        """Of rows of one frame within a radius (a formula, or nm) keep the most certain."""
        text = str(radius)
        text = text.replace("uncertainty_xy", "uncertainty") if self.version == "1.3" else text
        return self.post_process("duplicates", {"distformula": text})

    def stage_offset(self, settings: StageOffset) -> pd.DataFrame:
        """Add the height of the stage to z."""
        return self.post_process("offset", settings.options())

    def drift(
        self, settings: CrossCorrelation | Fiducials | DriftFile | None = None
    ) -> tuple[pd.DataFrame, Drift]:
        """Estimate or load the drift of the table as it is, and take it out.

        Returns
        -------
        The corrected table, and the drift; its zero is ThunderSTORM's, the middle of the first part.
        """
        wanted = settings or CrossCorrelation()
        options = wanted.options(self.version)
        if isinstance(wanted, DriftFile):
            with self._without_plots():
                return self.post_process("drift", options), load_drift(wanted.path, pixel_nm=self._pixel_nm)
        with tempfile.TemporaryDirectory() as folder, self._without_plots():
            path = Path(folder, "drift.json")
            table = self.post_process("drift", {**options, "save": True, "path": path})
            if not path.is_file():
                raise JavaError("ThunderSTORM saved no drift.")
            return table, load_drift(path, pixel_nm=self._pixel_nm)

    @contextlib.contextmanager
    def _without_plots(self) -> Iterator[None]:
        """Batch mode, and what came up is closed: every drift leaves a plot, which becomes the active image."""
        interpreter, manager = java_class("ij.macro.Interpreter"), java_class("ij.WindowManager")
        before = bool(interpreter.batchMode)
        known = {int(number) for number in manager.getIDList() or ()}
        interpreter.batchMode = True
        try:
            yield
        finally:
            for number in manager.getIDList() or ():
                image = manager.getImage(int(number))
                if int(number) not in known and image is not None:
                    image.changes = False
                    image.close()
            interpreter.batchMode = before

    def render(
        self,
        renderer: Renderer | None = None,
        *,
        size_px: tuple[int, int],
        origin_px: tuple[float, float] = (0.0, 0.0),
        timeout_s: float | None = None,
    ) -> NDArray[np.float32]:
        """Draw the table as it is.

        Parameters
        ----------
        renderer
            Averaged shifted histograms where absent.
        size_px
            Height and width of the region in camera pixels.
        origin_px
            Its top and left.

        Returns
        -------
        (H, W) of magnified pixels, (Z, H, W) where the renderer is ``threed``.
        """
        wanted = renderer or AveragedShiftedHistograms()
        if not isinstance(wanted, Renderer) or not wanted.LABEL:
            raise InputRejected(f"{wanted!r} is no renderer of ThunderSTORM.")
        self.gateway.call(self._ready, what="preparing ThunderSTORM's table")
        region: dict[str, Value] = {
            "imleft": float(origin_px[1]),
            "imtop": float(origin_px[0]),
            "imwidth": float(size_px[1]),
            "imheight": float(size_px[0]),
        }
        options = {**region, "renderer": wanted.LABEL, **wanted.options(self.version)}
        manager = java_class("ij.WindowManager")
        with self._without_plots():
            before = {int(number) for number in manager.getIDList() or ()}
            self.results.forceShow()
            self.gateway.run("Visualization", options, timeout_s=timeout_s)
            new = [int(number) for number in manager.getIDList() or () if int(number) not in before]
            if not new:
                raise JavaError("ThunderSTORM drew no picture.")
            pixels = self.gateway.from_image(manager.getImage(new[-1])).astype(np.float32)
        return pixels if wanted.threed else pixels[0]

    def calibrate(
        self,
        stack: NDArray[Any],
        path: str | Path,
        settings: Calibrating,
        *,
        camera: Camera,
        pixel_nm: float,
        filter: Filter | None = None,
        detector: Detector | None = None,
    ) -> None:
        """Make a 3-D calibration of beads and save it, by its own classes: the command's dialog needs a display.

        Parameters
        ----------
        stack
            (Z, H, W) in ADU, ``stage_step_nm`` apart.
        path
            The .yaml to write.

        Raises
        ------
        JavaError
            If no bead could be fitted, or the calibration cannot be saved.
        """
        from smlm_bridge.bridge.astigmatism import calibrate

        wanted = detector or LocalMaximum()
        calibrate(
            self,
            stack,
            Path(path).resolve(),
            settings,
            camera=camera,
            pixel_nm=pixel_nm,
            filter=filter or WaveletFilter(),
            detector=wanted,
        )

    def detect(
        self,
        frames: NDArray[Any],
        *,
        camera: Camera,
        pixel_nm: float,
        filter: WaveletFilter | None = None,
        detector: LocalMaximum | NonMaximumSuppression | None = None,
    ) -> pd.DataFrame:
        """Detections at whole pixels, by ThunderSTORM's own classes: no table, no window.

        Returns
        -------
        ``frame``, ``row``, ``column`` from 0, ``x_nm``, ``y_nm`` of the pixel's centre, ``value``, the filtered
        frame there in ADU, as ``smlm_bridge.detect.detect_frames`` gives them.
        """
        from smlm_bridge.bridge.direct import detect

        wanted = detector or LocalMaximum()
        return detect(
            self, frames, camera=camera, pixel_nm=pixel_nm, filter=filter or WaveletFilter(), detector=wanted
        )

    def cross_correlation(
        self, locs: pd.DataFrame, settings: CrossCorrelation | None = None, *, pixel_nm: float
    ) -> Drift:
        """Drift by ThunderSTORM's cross-correlation, by its own classes: no table, no window."""
        from smlm_bridge.bridge.direct import cross_correlation

        return cross_correlation(self, locs, settings or CrossCorrelation(), pixel_nm=pixel_nm)

    def colocalize(self, locs: pd.DataFrame, other: pd.DataFrame, **settings: Any) -> Colocalization:
        """ThunderSTORM's CBC of every row of ``locs`` in ``other``, by its own classes.

        Settings are ``radius_step_nm``, ``steps`` and ``dimensions``, as of ``post.colocalization.colocalize``. In
        three dimensions ThunderSTORM divides its counts by areas where we divide by volumes.
        """
        from smlm_bridge.bridge.direct import colocalize

        return colocalize(self, locs, other, **settings)


_OPEN: dict[int, ThunderStorm] = {}


def open_thunderstorm(gateway: Gateway, plugin: Plugin) -> ThunderStorm:
    """ThunderSTORM in a gateway that was started with its jar.

    On Java 13 and later a class it needs is defined; without a display its windows are taken out. Both must
    happen before any other command of ThunderSTORM in this process.
    """
    if id(gateway) not in _OPEN:

        def prepare() -> None:
            windowless.define_provider()
            if gateway.headless:
                windowless.remove_windows(_loader_of(gateway))

        gateway.call(prepare, what="preparing ThunderSTORM")
        _OPEN[id(gateway)] = ThunderStorm(gateway, plugin)
    return _OPEN[id(gateway)]


def _loader_of(gateway: Gateway) -> Any:
    """The loader that loads ThunderSTORM; asked by a resource, as asking by a class would load it."""
    name = windowless.ROOT.replace(".", "/") + "/AnalysisPlugIn.class"
    system = java_class("java.lang.ClassLoader").getSystemClassLoader()
    return system if system.getResource(name) is not None else java_class("ij.IJ").getClassLoader()
