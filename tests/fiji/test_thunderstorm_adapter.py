"""The ThunderSTORM adapter through real macro parsing, against a stand-in that records and fails as it does."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from smlm_bridge.bridge.jars import find_thunderstorm, system_jar
from smlm_bridge.errors import InputRejected

pytestmark = pytest.mark.fiji


@pytest.fixture(scope="module")
def headless(scenario: Any, stand_in: Path) -> dict[str, Any]:
    return scenario("scenario_stand_in.py", "headless", stand_in)


@pytest.fixture(scope="module")
def xvfb(scenario: Any, stand_in: Path) -> dict[str, Any]:
    if system_jar() is None or shutil.which("Xvfb") is None:
        pytest.skip("libij-java or xvfb is not installed")
    return scenario("scenario_stand_in.py", "xvfb", stand_in)


@pytest.fixture(params=["headless", "xvfb"])
def answers(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = request.getfixturevalue(request.param)
    return found


def message(answer: Any, kind: str = "JavaError") -> str:
    assert isinstance(answer, dict), answer
    assert answer.get("error") == kind, answer
    return str(answer["message"])


def test_recognised_without_java(stand_in: Path, tmp_path: Path) -> None:
    found = find_thunderstorm(stand_in.parent)
    assert found is not None
    assert (found.jar, found.version) == (stand_in, "dev")
    with pytest.raises(InputRejected, match="no ThunderSTORM in"):
        find_thunderstorm(tmp_path)


def test_engine_says_what_ran(answers: dict[str, Any]) -> None:
    assert answers["engine"] == "thunderstorm dev"
    assert answers["note"] is None


def test_analysis_takes_the_image_given_and_reads_the_table(answers: dict[str, Any]) -> None:
    found = answers["run"]
    assert found["frame"] == [0, 1, 2]
    assert found["x_nm"] == [100.0, 200.0, 300.0]
    assert found["photons"] == [7.0, 9.0, 7.0]


def test_every_option_of_the_camera_is_sent(answers: dict[str, Any]) -> None:
    assert answers["camera_options"].strip() == (
        "Camera setup: pixelsize=110.0 photons2adu=0.5 offset=100.0 isemgain=false quantumefficiency=1.0 "
        "readoutnoise=1.5"
    )
    assert answers["em_options"].strip() == (
        "Camera setup: pixelsize=110.0 photons2adu=4.0 offset=90.0 isemgain=true gainem=300.0 "
        "quantumefficiency=1.0"
    )


def test_every_option_of_the_analysis_is_sent(answers: dict[str, Any]) -> None:
    assert answers["run_options"].strip() == (
        "Run analysis: filter=[No filter] detector=[Local maximum] threshold=std(Wave.F1) "
        "connectivity=8-neighbourhood estimator=[PSF: Integrated Gaussian] sigma=1.3 fitradius=3 "
        "method=[Maximum likelihood] full_image_fitting=false mfaenabled=false renderer=[No Renderer]"
    )


def test_failures_that_return_normally_are_exceptions(answers: dict[str, Any]) -> None:
    assert "handled in silence" in message(answers["handled"])
    assert "Error parsing threshold formula!" in message(answers["dialog"])
    assert "stopped before its end" in message(answers["silent"])
    assert answers["after"]["frame"] == [0, 1, 2]


def test_same_action_twice_does_both(answers: dict[str, Any]) -> None:
    assert answers["first_filter"] == 3
    assert "Variable 'nosuch' does not exist!" in message(answers["bad_filter"])
    assert answers["second_filter"] == 1  # of the three, not of the four; and after a failure
    assert answers["filter_options"].strip() == "Show results table: action=filter formula=[frame > 3]"


def test_merge_works_more_than_once(answers: dict[str, Any]) -> None:
    assert answers["merge"] == 1
    assert answers["merge_options"].strip() == (
        "Show results table: action=merge zcoordweight=0.1 offframes=1 dist=30.0 framespermolecule=0"
    )
    assert answers["merge_again"] == 1


def test_drift_is_read_back(answers: dict[str, Any]) -> None:
    assert answers["drift"] == pytest.approx([0.0, 55.0, 110.0, 165.0])
    assert (
        "steps=3 magnification=5.0 showcorrelations=false ccsmoothingbandwidth=0.5 save=true path="
        in (answers["drift_options"])
    )


def test_action_that_does_nothing_is_an_error(answers: dict[str, Any]) -> None:
    assert "did nothing" in message(answers["unknown_action"])


def test_picture(answers: dict[str, Any]) -> None:
    assert answers["render"] == [32, 36]
    assert (
        "imwidth=9.0 imheight=8.0 renderer=[Normalized Gaussian] magnification=4.0"
        in answers["render_options"]
    )


def test_export_into_a_folder_with_spaces(answers: dict[str, Any]) -> None:
    assert answers["export"] == "[frame, x, y, intensity] 5 1"
    assert "no folder" in message(answers["no_folder"], "InputRejected")


def test_empty_table_is_refused(answers: dict[str, Any]) -> None:
    assert "empty" in message(answers["empty"], "InputRejected")
