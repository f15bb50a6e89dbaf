"""Calibration files (.psf.h5), the calibration that a model carries, and transforms between channels."""

from pathlib import Path

from smlm_bridge.calibration import Calibration
from smlm_bridge.errors import InputRejected
from smlm_bridge.io.atomic import atomic_output
from smlm_bridge.io.shipped import find_shipped
from smlm_bridge.pair import PairCalibration, read_calibration
from smlm_bridge.transform import Transform

SUFFIX = ".psf.h5"


def check_name(path: Path | str) -> None:
    """Refuse, with ``InputRejected``, a name that does not end in ``.psf.h5``; call it before long work."""
    if not str(path).endswith(SUFFIX):
        raise InputRejected(f"a calibration file ends in {SUFFIX}, got {path}.")


def save_calibration(
    path: Path | str, calibration: Calibration | PairCalibration, *, overwrite: bool = False
) -> None:
    """Write a calibration file, of one channel or of a pair, atomically.

    Raises
    ------
    InputRejected
        If the name does not end in ``.psf.h5``, or the file exists and ``overwrite`` is False.
    """
    check_name(path)
    with atomic_output(Path(path), overwrite=overwrite) as temporary:
        temporary.write_bytes(calibration.to_bytes())


def load_calibration(path_or_name: Path | str) -> Calibration:
    """The calibration in a ``.psf.h5`` file, inside a model file, or of a shipped model of that name.

    Raises
    ------
    InputRejected
        If there is no such file or name, or the file is not a calibration of one channel.
    """
    found = load_channels(path_or_name)
    if isinstance(found, PairCalibration):
        raise InputRejected(
            f"{path_or_name} is a pair of channels, and one channel is wanted. Give one of the calibrations that "
            "were joined."
        )
    return found


def load_channels(path_or_name: Path | str) -> Calibration | PairCalibration:
    """As ``load_calibration``; the file may hold a pair of channels.

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
    return read_calibration(path.read_bytes(), name=str(path_or_name))


_LARGEST_TRANSFORM = 1_000_000


def load_transform(path: Path | str) -> Transform:
    """The transform between channels in a JSON file.

    Raises
    ------
    InputRejected
        If there is no such file, or it is not a transform.
    """
    try:
        if Path(path).stat().st_size > _LARGEST_TRANSFORM:
            raise InputRejected(f"{path} is larger than a megabyte; no transform is.")
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InputRejected(f"the transform {path} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise InputRejected(f"{path} is not JSON, so not a transform: {error}.") from error
    return Transform.from_json(text, name=str(path))


def save_transform(path: Path | str, transform: Transform, *, overwrite: bool = False) -> None:
    """Write a transform as JSON, atomically.

    Raises
    ------
    InputRejected
        If the target cannot be written, or exists and ``overwrite`` is False.
    """
    with atomic_output(Path(path), overwrite=overwrite) as temporary:
        temporary.write_text(transform.to_json(), encoding="utf-8")
