"""What the plain install must not import (docs/architecture.md), each room in a process of its own."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "scyjava", "jpype", "imagej", "matplotlib", "dask")
LIGHT = (
    "smlm_bridge",
    "smlm_bridge.conventions",
    "smlm_bridge.errors",
    "smlm_bridge.locs",
    "smlm_bridge.camera",
    "smlm_bridge.calibration",
    "smlm_bridge.model",
    "smlm_bridge.optics.microscope",
    "smlm_bridge.optics.pupil",
    "smlm_bridge.optics.gaussian",
    "smlm_bridge.optics.zernike",
    "smlm_bridge.evaluate",
    "smlm_bridge.localize",
    "smlm_bridge.singles",
    "smlm_bridge.volumes",
    "smlm_bridge.networks.decode",
    "smlm_bridge.networks.maps",
    "smlm_bridge.io.calibration",
    "smlm_bridge.io.images",
    "smlm_bridge.io.model",
    "smlm_bridge.io.shipped",
    "smlm_bridge.io.thunderstorm",
    "smlm_bridge.io.checkpoint",
    "smlm_bridge.cli",
)


def imported(*rooms: str) -> list[str]:
    """Heavy packages in ``sys.modules`` after importing the rooms."""
    lines = [f"import {room}" for room in rooms]
    program = "\n".join([*lines, "import sys", f"print(*(m for m in {HEAVY} if m in sys.modules))"])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_light_rooms_import_nothing_heavy() -> None:
    heavy = imported(*LIGHT)
    guilty = [room for room in LIGHT if set(imported(room)) & set(heavy)] if heavy else []
    assert not heavy, f"{heavy} came with {guilty}"


def test_the_check_can_fail() -> None:
    assert imported("smlm_bridge.psf.gaussian") == ["torch"]


@pytest.mark.parametrize("room", ["smlm_bridge", "smlm_bridge.calibration"])
def test_importing_the_package_alone_is_enough(room: str) -> None:
    assert imported(room) == []
