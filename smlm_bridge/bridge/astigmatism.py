"""3-D calibration of astigmatism by ThunderSTORM's own classes: the dialog of its command needs a display."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from smlm_bridge.bridge.calls import JavaError
from smlm_bridge.bridge.jars import snakeyaml_problem
from smlm_bridge.bridge.java import java_class
from smlm_bridge.bridge.macro import Value, option_text
from smlm_bridge.bridge.modules import Detector, Filter, joined
from smlm_bridge.bridge.settings import Calibrating
from smlm_bridge.camera import Camera
from smlm_bridge.errors import InputRejected, SmlmError

if TYPE_CHECKING:
    from smlm_bridge.bridge.thunderstorm import ThunderStorm


def calibrate(
    storm: "ThunderStorm",
    stack: NDArray[Any],
    path: Path,
    settings: Calibrating,
    *,
    camera: Camera,
    pixel_nm: float,
    filter: Filter,
    detector: Detector,
) -> None:
    """See ``ThunderStorm.calibrate``."""
    problem = snakeyaml_problem(storm.gateway.jars)
    if problem:
        raise SmlmError(problem)
    if not path.parent.is_dir():
        raise InputRejected(f"there is no folder {path.parent}.")
    if storm.version == "1.3" and settings.defocus != "ThunderSTORM":
        raise InputRejected(
            "ThunderSTORM 1.3 saves half of the widths its own fit reads, in the model Huang '08: heights are "
            "wrong by hundreds of nm. Take the model ThunderSTORM (quadratic), or its dev version."
        )
    storm.set_camera(camera, pixel_nm=pixel_nm)
    image = storm.gateway.to_image(stack)
    storm.gateway.call(
        lambda: _calibrate(storm, image, path, settings, filter, detector),
        what="ThunderSTORM's 3-D calibration",
    )
    if not path.is_file():
        raise JavaError("ThunderSTORM saved no calibration.")


def _calibrate(
    storm: "ThunderStorm", image: Any, path: Path, settings: Calibrating, filter: Filter, detector: Detector
) -> None:
    loader = storm.java_class("ModuleLoader")
    dev = storm.version == "dev"
    estimator = storm.java_class(
        f"estimators.ui.{'AstigmatismCalibrationEstimatorUI' if dev else 'CalibrationEstimatorUI'}"
    )()
    fitting: dict[str, Value] = {"sigma": settings.sigma, "fitradius": settings.fitradius}
    joined(fitting, {"method": settings.method, "full_image_fitting": False}, estimator.getName())
    joined(fitting, filter.options(storm.version), filter.LABEL)
    joined(fitting, detector.options(storm.version), detector.LABEL)
    filters = loader.getUIModules(storm.java_class("filters.ui.IFilterUI").class_)
    detectors = loader.getUIModules(storm.java_class("detectors.ui.IDetectorUI").class_)
    filter_ui, index = _module(filters, filter.LABEL)
    detector_ui, _ = _module(detectors, detector.LABEL)
    with _macro_options(option_text(fitting)) as text:
        for module in (filter_ui, detector_ui, estimator):
            module.readMacroOptions(text)
    thresholder = storm.java_class("thresholding.Thresholder")
    thresholder.loadFilters(filters)
    thresholder.setActiveFilter(index)  # without it, a threshold of Wave.F1 is out of bounds
    models = loader.getUIModules(storm.java_class("calibration.DefocusFunction").class_)
    defocus, _ = _module(models, settings.defocus)
    roi = java_class("ij.gui.Roi")(0, 0, int(image.getWidth()), int(image.getHeight()))
    common = (filter_ui, detector_ui, estimator, defocus, settings.stage_step_nm, settings.z_range_nm)
    if dev:
        config = storm.java_class("calibration.CalibrationConfig")()
        process = storm.java_class("calibration.AstigmaticCalibrationProcess")(config, *common, image, roi)
        process.runCalibration()
        process.getCalibration(defocus).saveToFile(str(path))
        return
    process = storm.java_class("calibration.CalibrationProcess")(*common, image, roi)
    process.estimateAngle()
    process.fitQuadraticPolynomials()
    text = storm.gateway.java_class("org.yaml.snakeyaml.Yaml")().dump(process.getCalibration(defocus))
    path.write_text(str(text), encoding="utf-8")


@contextlib.contextmanager
def _macro_options(text: str) -> Iterator[str]:
    """Give this thread the options of a macro; ImageJ knows them by the thread's name."""
    thread = java_class("java.lang.Thread").currentThread()
    macro = java_class("ij.Macro")
    name = thread.getName()
    thread.setName(f"Run$_{name}")
    macro.setOptions(text)
    try:
        yield text
    finally:
        macro.setOptions(None)
        thread.setName(name)


def _module(modules: Any, label: str) -> tuple[Any, int]:
    for index in range(int(modules.size())):
        module = modules.get(index)
        if str(module.getName()) == label:
            return module, index
    raise JavaError(f"this ThunderSTORM has no module '{label}'.")
