"""How a Fiji is started through pyimagej, and which back end is taken; with stand-ins, without Java."""

import importlib.machinery
import pickle
import sys
import types
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile

from smlm_bridge.bridge import back_ends, engines, finder, jars, java
from smlm_bridge.bridge.gateway import GatewayOptions, resolved
from smlm_bridge.calibration import Calibration
from smlm_bridge.cli import main
from smlm_bridge.cluster.recipe import Recipe
from smlm_bridge.detect import DetectOptions
from smlm_bridge.errors import InputRejected, MissingDependency, SmlmError, UsageError
from smlm_bridge.fit import FitMovieOptions, fit_work
from smlm_bridge.io.calibration import save_calibration
from smlm_bridge.io.thunderstorm import read_table

JARS = ("imagej-2.17.0.jar", "imagej-legacy-2.0.1.jar", "ij-1.54p.jar", "imglib2-imglyb-1.1.0.jar")


@dataclass
class Scyjava:
    """What the bridge sets in scyjava, and what pyimagej's init is asked."""

    endpoints: list[str] = field(default_factory=lambda: ["net.imglib2:imglib2-imglyb:1.1.0"])
    constraints: dict[str, Any] = field(default_factory=dict)
    options: list[str] = field(default_factory=list)
    class_path: list[str] = field(default_factory=list)
    asked: list[Any] = field(default_factory=list)


def fiji_of(folder: Path, *, jars: tuple[str, ...] = JARS) -> Path:
    for name in ("jars", "plugins"):
        (folder / name).mkdir(parents=True)
    for name in jars:
        (folder / "jars" / name).touch()
    return folder


def plugin_in(folder: Path) -> Path:
    """A jar that is recognised as ThunderSTORM 1.3."""
    jar = folder / "Thunder_STORM.jar"
    with zipfile.ZipFile(jar, "w") as archive:
        archive.writestr("cz/cuni/lf1/lge/ThunderSTORM/AnalysisPlugIn.class", b"")
    return jar


@pytest.fixture(autouse=True)
def nothing_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (jars.PLUGINS_VARIABLE, jars.FIJI_VARIABLE, jars.JAR_VARIABLE, "JAVA_HOME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], Scyjava]:
    """Start a Fiji whose ``imagej.init`` does what is given, and see what it was given."""
    known = Scyjava()
    module = types.ModuleType("scyjava")
    module.config = types.SimpleNamespace(  # type: ignore[attr-defined]
        endpoints=known.endpoints,
        set_java_constraints=known.constraints.update,
        add_options=known.options.extend,
        add_classpath=lambda *jars: known.class_path.extend(jars),
    )

    def set_constraints(**values: Any) -> None:
        known.constraints.update(values)

    module.config.set_java_constraints = set_constraints  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "scyjava", module)
    monkeypatch.setattr(java, "find_jvm", lambda: tmp_path / "jdk" / "lib" / "libjvm.so")
    monkeypatch.setattr(java, "is_running", lambda: False)
    monkeypatch.setattr(java, "settle", lambda: None)

    def start(init: Callable[[], Any], **options: Any) -> Scyjava:
        imagej = types.ModuleType("imagej")

        def asked(place: str, mode: str) -> Any:
            known.asked += [place, mode]
            return init()

        imagej.init = asked  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "imagej", imagej)
        fiji = tmp_path / "My Fiji.app"
        if not fiji.exists():
            fiji_of(fiji)
        place = {} if "endpoint" in options else {"fiji": fiji}
        back_ends.start(GatewayOptions(back_end="pyimagej", **place, **options))
        return known

    return start


def active(is_active: bool = True) -> Any:
    return types.SimpleNamespace(legacy=types.SimpleNamespace(isActive=lambda: is_active))


def raises(error: BaseException) -> Callable[[], Any]:
    def init() -> Any:
        raise error

    return init


def test_a_local_fiji_asks_no_network_and_downloads_no_java(started: Any, tmp_path: Path) -> None:
    jar = plugin_in(tmp_path)
    known = started(active, plugins=(jar,), memory="800m")
    assert known.endpoints == []  # import imagej puts one there, which is asked for on the network
    assert known.constraints == {
        "fetch": "auto"
    }  # "always" downloads a JDK, "never" fails inside pyimagej 1.8
    assert {"-Xmx800m", "-Djava.awt.headless=true", java.OPENS, java.MESSAGES_TO_STDERR} <= set(known.options)
    assert known.class_path == [str(jar)]  # plugins.dir alone lists a command and does not find its class
    assert known.asked == [str(tmp_path / "My Fiji.app"), "headless"]


def test_an_endpoint_is_fetched_with_the_plugins_beside_it(started: Any, tmp_path: Path) -> None:
    jar = plugin_in(tmp_path)
    known = started(active, endpoint="sc.fiji:fiji", plugins=(jar,))
    assert known.asked == ["sc.fiji:fiji", "headless"]
    assert known.class_path == [str(jar)]


@pytest.mark.parametrize(
    ("init", "said"),
    [
        (lambda: False, "found no ImageJ2"),
        (lambda: None, "found no ImageJ2"),
        (raises(RuntimeError("Failed to create a JVM with the requested environment.")), "RuntimeError"),
        (raises(TypeError("'NoneType' object is not callable")), "TypeError"),
        (raises(UnboundLocalError("major_version")), "major_version"),
        (raises(ConnectionError("imglib2-imglyb-1.1.0.pom")), "Without a network give"),
    ],
)
def test_every_way_in_which_init_fails_says_what_to_do(started: Any, init: Any, said: str) -> None:
    with pytest.raises(MissingDependency, match=said) as failure:
        started(init)
    assert "ij1" in str(failure.value)


def test_an_imagej_without_its_first_version_is_refused(started: Any) -> None:
    with pytest.raises(SmlmError, match="new process"):
        started(lambda: active(False))


def test_a_java_that_runs_already_is_refused(started: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(java, "is_running", lambda: True)
    with pytest.raises(SmlmError, match="started by somebody else"):
        started(active)


def test_snakeyaml_2_in_a_fiji_is_told(
    started: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fiji_of(tmp_path / "My Fiji.app", jars=(*JARS, "snakeyaml-2.2.jar"))
    started(active)
    assert "shadows ThunderSTORM's SnakeYAML 1" in capsys.readouterr().err


def test_macos_shows_no_windows_to_a_plain_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(UsageError, match="take the mode headless"):
        resolved(GatewayOptions(back_end="ij1", mode="display"))


# ---- which back end the engines take


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[GatewayOptions]:
    """The gateways that would have been opened; pyimagej is installed."""
    found: list[GatewayOptions] = []
    monkeypatch.setattr(engines, "gateway", found.append)
    monkeypatch.setattr(engines, "open_thunderstorm", lambda running, plugin: plugin)
    installed(monkeypatch, True)
    return found


def installed(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    module = types.ModuleType("imagej")
    module.__spec__ = importlib.machinery.ModuleSpec("imagej", None)
    monkeypatch.setitem(sys.modules, "imagej", module)
    if not there:
        monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)


def test_a_fiji_that_pyimagej_can_drive_is_driven(opened: list[GatewayOptions], tmp_path: Path) -> None:
    fiji = fiji_of(tmp_path / "Fiji")
    plugin_in(fiji / "plugins")
    apart = plugin_in(tmp_path)
    engines.open_engine(engines.EngineOptions(fiji=fiji))
    engines.open_engine(engines.EngineOptions(plugins=apart, fiji=fiji))
    assert [(one.back_end, one.fiji, one.plugins) for one in opened] == [
        ("pyimagej", fiji, ()),  # it loads the plugins of its Fiji itself
        ("pyimagej", fiji, (apart,)),
    ]


def test_without_pyimagej_or_with_an_old_fiji_imagej_1_takes_its_plugin(
    opened: list[GatewayOptions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = fiji_of(tmp_path / "old", jars=JARS[:3])  # no imglib2-imglyb
    new = fiji_of(tmp_path / "new")
    jar = [plugin_in(fiji / "plugins") for fiji in (old, new)]
    engines.open_engine(engines.EngineOptions(fiji=old))
    engines.open_engine(engines.EngineOptions(fiji=new, back_end="ij1"))
    with pytest.raises(InputRejected, match="imglib2-imglyb"):
        engines.open_engine(engines.EngineOptions(fiji=old, back_end="pyimagej"))
    with pytest.raises(InputRejected, match=jars.FIJI_VARIABLE):
        engines.open_engine(engines.EngineOptions(plugins=jar[0], back_end="pyimagej"))
    installed(monkeypatch, False)
    engines.open_engine(engines.EngineOptions(fiji=new))
    assert [(one.back_end, one.plugins) for one in opened] == [
        ("ij1", (jar[0],)),
        ("ij1", (jar[1],)),
        ("ij1", (jar[1],)),
    ]
    with pytest.raises(InputRejected, match="is no Fiji directory"):
        jars.find_thunderstorm(fiji=plugin_in(tmp_path).parent / "jars only")


def test_the_finder_travels_and_says_its_name(tmp_path: Path) -> None:
    assert finder.thunderstorm_finder() is None
    found = finder.thunderstorm_finder(engines.EngineOptions(plugins=plugin_in(tmp_path)))
    assert found is not None
    again = pickle.loads(pickle.dumps(found))
    assert again == found
    assert str(again) == "thunderstorm 1.3"


def test_a_finder_gives_what_the_engine_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finder, "_shared", lambda options: engines.Engine())
    counts = np.full((1, 16, 16), 100, np.uint16)
    counts[0, 5, 9] = 900
    found = finder.ThunderstormFinder(engines.EngineOptions(), "any")(
        counts, DetectOptions(threshold="50"), pixel_nm=100.0
    )
    assert found[["row", "column"]].to_numpy().tolist() == [[5, 9]]


def test_localize_takes_the_detector_that_is_chosen(
    gaussian_calibration: Calibration, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = np.full((2, 24, 24), 100, np.uint16)
    row, column = np.mgrid[:24, :24] + 0.5
    counts[1] += (4000 / 10 * np.exp(-((column - 12.3) ** 2 + (row - 10.7) ** 2) / 3.4)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "movie.tif", counts)
    save_calibration(tmp_path / "g.psf.h5", gaussian_calibration)
    call = ["localize", str(tmp_path / "movie.tif"), "--calibration", str(tmp_path / "g.psf.h5")]
    assert main([*call, "-o", str(tmp_path / "own.csv"), "--json"]) == 0
    assert "ThunderSTORM" not in capsys.readouterr().err
    chosen = [*call, "--detector", "thunderstorm", "--detector-threshold", "100"]
    assert main([*chosen, "-o", str(tmp_path / "ours.csv")]) == 0
    assert "ThunderSTORM was not found, so our own" in capsys.readouterr().err
    assert len(read_table(tmp_path / "ours.csv")) == 1
    nowhere = ["--plugins", str(tmp_path / "none"), "-o", str(tmp_path / "x.csv")]
    assert main([*chosen, *nowhere]) == 3
    assert main([*call, *nowhere]) == 2
    assert "they go with --detector thunderstorm" in capsys.readouterr().err
    assert not (tmp_path / "x.csv").exists()


def test_fits_take_their_candidates_from_the_finder(
    gaussian_calibration: Calibration, tmp_path: Path
) -> None:
    seen: list[tuple[int, ...]] = []

    def finder_of_two(counts: np.ndarray, options: Any = None, **known: Any) -> pd.DataFrame:
        seen.append(counts.shape)
        return pd.DataFrame({"frame": [0, 0], "row": [10, 20], "column": [12, 30], "x_nm": 0.0, "y_nm": 0.0})

    counts = np.full((1, 1, 40, 48), 110, np.uint16)
    counts[0, 0, 10, 12] = counts[0, 0, 20, 30] = 900
    fitted = fit_work(gaussian_calibration, FitMovieOptions(finder=finder_of_two)).find(counts)
    assert seen == [(1, 40, 48)]
    assert sorted((fitted["x_nm"] // 100).astype(int)) == [12, 30]
    (tmp_path / "movie.tif").touch()
    chosen = finder.ThunderstormFinder(engines.EngineOptions(), "thunderstorm 1.3")
    recipe = Recipe((str(tmp_path / "movie.tif"),), None, None, finder=chosen)
    assert recipe.fingerprint()["finder"] == "thunderstorm 1.3"
