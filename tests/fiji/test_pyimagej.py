"""The gateway on a local Fiji through pyimagej, where SMLM_BRIDGE_FIJI names one; and what it says without."""

import os
from pathlib import Path
from typing import Any

import pytest

from smlm_bridge.bridge.gateway import GatewayOptions, resolved
from smlm_bridge.bridge.jars import FIJI_VARIABLE, fiji_directory
from smlm_bridge.errors import InputRejected

pytestmark = pytest.mark.fiji


@pytest.fixture(scope="module")
def answers(scenario: Any, stand_in: Path) -> dict[str, Any]:
    fiji = os.environ.get(FIJI_VARIABLE)
    if not fiji:
        pytest.skip(f"{FIJI_VARIABLE} does not name a Fiji directory")
    found: dict[str, Any] = scenario("scenario_gateway.py", "headless", fiji, stand_in.parent)
    return found


@pytest.mark.pyimagej
def test_fiji_answers_as_imagej_does(answers: dict[str, Any]) -> None:
    assert answers["round_trips"] == {"uint8": True, "uint16": True, "float32": True}
    assert 0 < answers["blur"] < 1200
    assert answers["macro"] == "hi!"
    assert "line 2" in answers["macro_language"]["message"]
    assert "did not end" in answers["macro_loop"]["message"]
    assert answers["macro_after_loop"] == "alive"
    assert "said in a dialog" in answers["ij_error"]["message"]
    assert "Did you mean" in answers["unknown"]["message"]


@pytest.mark.pyimagej
def test_plugins_beside_fiji_are_run(answers: dict[str, Any]) -> None:
    assert answers["plugin"] is True


def fiji_of(folder: Path, *jars: str) -> Path:
    (folder / "jars").mkdir(parents=True)
    for name in jars:
        (folder / "jars" / name).touch()
    return folder


def test_incomplete_fiji_is_refused_before_java_starts(tmp_path: Path) -> None:
    with pytest.raises(InputRejected, match="no folder 'jars'"):
        fiji_directory(tmp_path)
    complete = ("imagej-2.17.0.jar", "imagej-legacy-2.0.1.jar", "ij-1.54p.jar", "imglib2-imglyb-1.1.0.jar")
    outer = tmp_path / "download"
    fiji_of(outer / "Fiji.app", *complete)
    with pytest.raises(InputRejected, match="Did you mean"):
        fiji_directory(outer)
    assert fiji_directory(outer / "Fiji.app") == outer / "Fiji.app"
    with pytest.raises(InputRejected, match="imglib2-imglyb"):
        fiji_directory(fiji_of(tmp_path / "without", *complete[:3]))


def test_back_end_follows_what_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FIJI_VARIABLE, raising=False)
    assert resolved(GatewayOptions()).back_end == "ij1"
    assert resolved(GatewayOptions(endpoint="sc.fiji:fiji")).back_end == "pyimagej"
    with pytest.raises(InputRejected, match="give one of them"):
        GatewayOptions(fiji=tmp_path, endpoint="sc.fiji:fiji")
    with pytest.raises(InputRejected, match="starts no Fiji"):
        GatewayOptions(back_end="ij1", fiji=tmp_path)
