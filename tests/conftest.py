"""Fixtures that several rooms share; torch is touched only by tests that import it themselves."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from smlm_bridge.calibration import Calibration
from smlm_bridge.camera import Camera
from smlm_bridge.model import Model, ModelInfo
from smlm_bridge.optics.gaussian import Gaussian
from smlm_bridge.optics.microscope import Optics
from smlm_bridge.optics.pupil import Pupil

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real and simulated frames beside the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the shared data are not here: no folder {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(autouse=True)
def single_thread() -> None:
    """Torch computes on one thread, so that numbers and times repeat; torch itself is not imported here."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def optics() -> Optics:
    """An oil objective on water."""
    return Optics(1.49, 1.518, 1.33, 670.0, 110.0, focus_nm=300.0)


@pytest.fixture(scope="session")
def pupil() -> Pupil:
    """Astigmatism, and coma so that nothing is symmetric by chance."""
    return Pupil.flat(48, {6: 0.6, 7: 0.2})


@pytest.fixture(scope="session")
def gaussian_calibration() -> Calibration:
    """An astigmatic Gaussian and a camera with offset and gain."""
    return Calibration(
        Optics(1.4, 1.518, 1.33, 670.0, 100.0),
        gaussian=Gaussian((120.0, 120.0), (-250.0, 250.0), (400.0, 400.0)),
        camera=Camera(offset=100.0, e_per_adu=0.5, read_noise_e=1.5),
        z_range_nm=(-300.0, 300.0),
        provenance={"made_by": "tests"},
    )


@dataclass(frozen=True)
class Trained:
    """A network trained for seconds, and its model file run by ONNX Runtime."""

    trainer: Any
    onnx: bytes
    path: Path
    model: Model


@pytest.fixture(scope="session")
def trained(gaussian_calibration: Calibration, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Finds bright, sparse emitters; far from good, but not random."""
    from smlm_bridge.io.model import load_model, save_model
    from smlm_bridge.networks.export import to_onnx
    from smlm_bridge.simulate.background import BackgroundRanges
    from smlm_bridge.simulate.scene import Ranges
    from smlm_bridge.train import Trainer, TrainOptions, train

    ranges = Ranges(
        z_nm=(-300.0, 300.0),
        photons=(4000.0, 6000.0),
        density_um2=(0.1, 0.5),
        background=BackgroundRanges(constant=(10.0, 30.0)),
        margin_nm=200.0,
    )
    options = TrainOptions(
        samples=1600,
        batch=8,
        patch_px=32,
        learning_rate=6e-3,
        widths=(8, 16),
        bottom_dilations=(1,),
        reach_px=12,
    )
    trainer = Trainer(gaussian_calibration, ranges, options)
    network = train(trainer)
    info = ModelInfo(
        name="tiny",
        system="dense",
        purpose="tests",
        calibration=gaussian_calibration,
        ranges=ranges.to_json(),
        channels=1,
        size_step=network.size_step,
        reach_px=network.reach,
    )
    onnx = to_onnx(network, info.to_metadata(), channels=1, size_step=network.size_step)
    path = tmp_path_factory.mktemp("model") / "tiny.onnx"
    save_model(path, onnx)
    return Trained(trainer, onnx, path, load_model(path, threads=1))
