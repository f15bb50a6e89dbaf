"""Calibration files (.psf.h5), and the calibration that a model carries."""

from pathlib import Path

from smlm_bridge.calibration import Calibration
from smlm_bridge.errors import InputRejected
from smlm_bridge.io.atomic import atomic_output
from smlm_bridge.io.shipped import find_shipped

SUFFIX = ".psf.h5"


def save_calibration(path: Path | str, calibration: Calibration, *, overwrite: bool = False) -> None:
    """Write a calibration file atomically.

    Raises
    ------
    InputRejected
        If the name does not end in ``.psf.h5``, or the file exists and ``overwrite`` is False.
    """
    if not str(path).endswith(SUFFIX):
        raise InputRejected(f"a calibration file ends in {SUFFIX}, got {path}.")
    with atomic_output(Path(path), overwrite=overwrite) as temporary:
        temporary.write_bytes(calibration.to_bytes())


def load_calibration(path_or_name: Path | str) -> Calibration:
    """The calibration in a ``.psf.h5`` file, inside a model file, or of a shipped model of that name.

    Raises
    ------
    InputRejected
        If there is no such file or name, or the file is not a calibration.
    """
    path = find_shipped(path_or_name) or Path(path_or_name)
    if path.suffix == ".onnx":
        from smlm_bridge.io.model import load_model

        return load_model(path).info.calibration
    if not path.is_file():
        raise InputRejected(
            f"no calibration '{path_or_name}': neither a file nor the name of a shipped model "
            "(smlm-bridge models lists them)."
        )
    return Calibration.from_bytes(path.read_bytes(), name=str(path_or_name))
