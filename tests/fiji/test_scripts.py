"""The commands under Plugins > SMLM Bridge, run by Groovy with ImageJ's jar against the real worker."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sysconfig
import threading
import time
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from smlm_bridge.calibration import Calibration
from smlm_bridge.cli import main
from smlm_bridge.io.calibration import save_calibration
from smlm_bridge.io.model import load_model
from smlm_bridge.io.thunderstorm import read_table

pytestmark = pytest.mark.fiji

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MENU = "scripts/Plugins/SMLM Bridge"
PLAIN_MACRO = "macros/SMLM Bridge/Movie_to_picture.ijm"
SCRIPTS = sorted((ROOT / "fiji_scripts" / MENU).glob("*.groovy"))
SAMPLE = ROOT / "models" / "tetrapod_telomere" / "sample.tif"
JARS = Path("/usr/share/java")
VARIABLE = "SMLM_BRIDGE_PYTHON"
SCREENSHOTS = "SMLM_BRIDGE_TEST_SCREENSHOTS"  # a folder to look at what was shown
QUICK = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")  # a short life needs no optimising compiler
TYPES = ("File", "Double", "Boolean", "Integer", "String", "ImagePlus")  # primitive types lose their defaults


# ---- the parameters, without Java


def parameters(script: Path) -> list[str]:
    lines = script.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.startswith("#@ ")]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_parameters_can_be_recorded_in_macros(script: Path) -> None:
    lines = parameters(script)
    names = [line.split()[-1] for line in lines]
    assert len(set(names)) == len(names) > 1
    for name, line in zip(names, lines, strict=True):
        assert re.fullmatch("[a-z0-9]+", name), "ImageJ looks keys up in lower case"
        assert not any(other != name and other.endswith(name) for other in names), "a key inside another"
        assert line.split()[1] in TYPES
        assert "persist=false" in line or "ImagePlus" in line, "a value of last time leaks into a macro"
        assert ("Double" in line) == ('style="format:0.####"' in line), "a dialog would show 0.45 as 0"
    assert script.read_text(encoding="utf-8").startswith("#@script("), "headless is said in the first line"


def test_every_command_of_the_menu_is_there() -> None:
    assert {
        "Localize_with_Python", "Calibrate_PSF_from_beads", "Train_a_model", "Drift_correction", "Render",
        "Open_in_ThunderSTORM", "Check_installation",
    } <= {path.stem for path in SCRIPTS}  # fmt: skip


def run_lines(text: str) -> list[tuple[str, str]]:
    """The run("Command", "options") of a macro or a page, with what is put together left out."""
    text = re.sub(r'"\s*\+\s*"', "", text)
    text = re.sub(r'" \+ \w+ \+ "', "VALUE", text)
    return re.findall(r'run\("([^"]+)", "([^"]*)"\)', text)


@pytest.mark.parametrize(
    "page",
    [ROOT / "fiji_scripts" / PLAIN_MACRO, ROOT / "docs/how-to/fiji.md"],
    ids=lambda path: path.name,
)
def test_macros_name_every_parameter(page: Path) -> None:
    known = {path.stem.replace("_", " "): path for path in SCRIPTS}
    ours = [(command, options) for command, options in run_lines(page.read_text("utf-8")) if command in known]
    assert ours
    for command, options in ours:
        keys = re.findall(r"(\w+)=(?:\[[^\]]*\]|\S*)", options)
        assert keys == [line.split()[-1] for line in parameters(known[command])], command


# ---- Java


def jars() -> str:
    for name, package in (("groovy-all.jar", "groovy"), ("ij.jar", "libij-java")):
        if not (JARS / name).is_file():
            pytest.skip(f"{JARS / name} is missing (Debian: {package})")
    if shutil.which("java") is None:
        pytest.skip("there is no Java here (Debian: default-jdk-headless)")
    return os.pathsep.join([str(JARS / "groovy-all.jar"), str(JARS / "ij.jar")])


def environment(folder: Path) -> Path:
    """An environment that has this smlm_bridge, as a user would have made one."""
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    site = next(folder.rglob("site-packages"))
    paths = sysconfig.get_paths()
    site.joinpath("here.pth").write_text("\n".join({str(ROOT), paths["purelib"], paths["platlib"]}))
    return folder


@dataclass
class Fiji:
    """A Java that runs commands out of a Fiji directory."""

    folder: Path
    process: "subprocess.Popen[str]"
    first: dict[str, Any] = field(default_factory=dict)

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "Java ended"
        return dict(json.loads(line))

    def run(self, command: str, *, how: dict[str, Any] | None = None, **values: object) -> dict[str, Any]:
        script = self.folder / MENU / f"{command}.groovy"
        texts = {key: str(value) for key, value in values.items()}
        return self.ask(script=str(script), values=texts, **(how or {}))

    def macro(self, path: Path, argument: str) -> dict[str, Any]:
        return self.ask(macro=str(path), argument=argument)


def start(folder: Path, home: Path, *options: str, prefix: tuple[str, ...] = (), **variables: str) -> Fiji:
    home.mkdir(exist_ok=True)
    command = [
        *prefix, "java", "-Xmx1g", *QUICK, f"-Dplugins.dir={folder / 'plugins'}", f"-Duser.home={home}",
        f"-Djava.util.prefs.userRoot={home}", *options, "-cp", jars(),
        "groovy.ui.GroovyMain", str(HERE / "test_scripts_runner.groovy"),
    ]  # fmt: skip
    clean = {key: value for key, value in os.environ.items() if key not in (VARIABLE, "PYTHONPATH")}
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**clean, "OMP_NUM_THREADS": "1", **variables},
        encoding="utf-8",
    )
    return Fiji(folder, process)


def stop(fiji: Fiji) -> None:
    assert fiji.process.stdin is not None
    fiji.process.stdin.close()
    fiji.process.wait(timeout=60)
    assert fiji.process.stdout is not None
    fiji.process.stdout.close()


#: Our own stand-in for uv and pixi: it copies an environment, or fails half-way.
TOOL = """#!/bin/sh
printf '%s\\n' "$*" >> "{calls}"
case "$1" in
venv) cp -a "{place}" "$4";;
install) mkdir -p "$(dirname "$3")/.pixi/envs"; cp -a "{place}" "$(dirname "$3")/.pixi/envs/default";;
esac
if [ -e "{calls}.fail" ]; then echo "no solution found"; exit 2; fi
"""
#: And for the package in it: a worker whose doctor is content.
WORKER = """import json, sys
for line in sys.stdin:
    task = json.loads(line)["task"]
    outputs = {"version": "9.9", "checks": []}
    print(json.dumps({"task": task, "responseType": "COMPLETION", "outputs": outputs}), flush=True)
"""


def made_on_request(running: "Fiji", home: Path, tool: str) -> dict[str, Any] | None:
    """What 'Check installation' does with a stand-in for uv or pixi; None where that cannot be."""
    if os.name == "nt" or shutil.which(tool) is not None:
        return None
    scratch = home / tool
    place, calls, made = scratch / "place", scratch / "calls", home / ".smlm_bridge" / "fiji"
    venv.create(place, with_pip=False, symlinks=True)
    package = next(place.rglob("site-packages")) / "smlm_bridge"
    package.mkdir()
    (package / "__main__.py").write_text(WORKER)
    program = home / ".local" / "bin" / tool  # where its installer puts it
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text(TOOL.format(calls=calls, place=place))
    program.chmod(0o755)
    wheel = scratch / "a wheel.whl"
    wheel.touch()
    answer = running.run("Check_installation", create=tool, source=wheel)
    recipe = made / "pixi.toml"
    done = {
        "answer": answer,
        "wheel": str(wheel),
        "calls": calls.read_text(),
        "recipe": tomllib.loads(recipe.read_text()) if recipe.exists() else None,
    }
    Path(f"{calls}.fail").touch()
    done["failed"] = running.run("Check_installation", create=tool)
    return {**done, "left": made.exists()}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Fiji directory with a blank in its name, and our commands in it."""
    folder = tmp_path_factory.mktemp("apps") / "My Fiji µ.app"
    (folder / "plugins").mkdir(parents=True)
    nobody = folder / "no python"
    assert main(["fiji", "install", str(folder), "--no-models", "--python", str(nobody), "--json"]) == 0
    return folder


@pytest.fixture(scope="module")
def fiji(installed: Path) -> Iterator[Fiji]:
    """A headless Java whose commands were told once where Python is, by 'Check installation'."""
    home = installed.parent / "home"
    running = start(installed, home, "-Djava.awt.headless=true")
    try:
        nowhere = running.run("Render", table="x.csv")
        plain = running.macro(
            installed / PLAIN_MACRO, f"{SAMPLE}|tetrapod_telomere|{installed.parent / 'none'}"
        )
        wrong = running.run("Check_installation", python=installed / "plugins")
        laid_out_as_on_windows = installed.parent / "of another machine" / "Scripts"
        laid_out_as_on_windows.mkdir(parents=True)
        (laid_out_as_on_windows / "python.exe").touch()
        alien = running.run("Check_installation", python=laid_out_as_on_windows.parent)
        empty = installed.parent / "empty python"
        venv.create(empty, with_pip=False, symlinks=os.name != "nt")
        without = running.run("Check_installation", python=empty)
        made = {tool: made_on_request(running, home, tool) for tool in ("uv", "pixi")}
        place = environment(installed.parent / "my python µ")
        running.first = {
            "made": made,
            "nowhere": nowhere,
            "plain": plain,
            "wrong": wrong,
            "alien": alien,
            "without": without,
            "place": place,
            "right": running.run("Check_installation", python=place),
        }
        yield running
    finally:
        stop(running)


def test_python_is_found_by_what_was_saved(fiji: Fiji) -> None:
    assert "Check installation" in fiji.first["nowhere"]["error"]
    assert VARIABLE in fiji.first["nowhere"]["error"]
    assert fiji.first["nowhere"]["unrecorded"] == [], "the macro would open the dialog for the empty picture"
    named = json.loads((fiji.folder / "smlm_bridge.json").read_text("utf-8"))["python"]
    assert f"Does {named} -m" in fiji.first["plain"]["log"], (
        "a plain macro knows the Python of the installation"
    )
    assert "no Python at" in fiji.first["wrong"]["error"]
    assert re.search(r"python\.exe, named by you\) cannot be started", fiji.first["alien"]["error"])
    assert "has no smlm_bridge" in fiji.first["without"]["error"]
    outputs = fiji.first["right"]["outputs"]
    assert Path(outputs["pythonpath"]).is_relative_to(fiji.first["place"])
    assert "numpy" in fiji.first["right"]["log"]


@pytest.mark.parametrize("tool", ["uv", "pixi"])
def test_an_environment_is_made_on_request(fiji: Fiji, tool: str) -> None:
    done = fiji.first["made"][tool]
    if done is None:
        pytest.skip(f"there is a real {tool} here, or no shell for a stand-in")
    made = fiji.folder.parent / "home" / ".smlm_bridge" / "fiji"
    assert done["answer"].get("error") is None, done
    outputs = done["answer"]["outputs"]
    assert Path(outputs["pythonpath"]).is_relative_to(made)
    assert "smlm_bridge 9.9 in" in outputs["summary"]
    wheel = done["wheel"]
    if tool == "uv":
        assert f"pip install --python {made / '.venv'} {wheel}" in done["calls"]
    else:
        assert done["recipe"]["pypi-dependencies"] == {"smlm_bridge": {"path": wheel}}
        assert done["recipe"]["dependencies"]["python"].startswith(">=3.11")
    assert "no solution found" in done["failed"]["error"]
    assert not done["left"], "what failed half-way was removed"


def test_localize_writes_our_table_and_shows_a_picture(fiji: Fiji, tmp_path: Path) -> None:
    folder = tmp_path / "my data µ"
    folder.mkdir()
    csv = folder / "found.csv"
    values = {"movie": SAMPLE, "model": "tetrapod_telomere", "picturepixel": 50}
    answer = fiji.run("Localize_with_Python", csv=csv, **values)
    table = read_table(csv)
    assert answer.get("error") is None
    outputs = answer["outputs"]
    assert outputs["localizations"] == len(table) == 48
    assert outputs["csvpath"] == str(csv)
    assert outputs["picture"]["bits"] == 32
    assert outputs["picture"]["brightest"] > 0
    assert sorted(path.name for path in folder.iterdir()) == ["found.csv", "found.protocol.json"]


@pytest.mark.parametrize("channels", [1, 2])
def test_the_active_image_keeps_its_channels(fiji: Fiji, tmp_path: Path, channels: int) -> None:
    csv = tmp_path / "table.csv"
    values = {"model": "tetrapod_telomere", "csv": csv, "results": "Nothing"}
    answer = fiji.run("Localize_with_Python", how={"image": str(SAMPLE), "channels": channels}, **values)
    if channels == 1:
        assert answer.get("error") is None, answer
        assert answer["outputs"]["localizations"] == 48
    else:
        assert "channel" in answer["error"]


def test_an_empty_frame_gives_an_empty_table(fiji: Fiji, tmp_path: Path) -> None:
    csv = tmp_path / "nothing.csv"
    values = {"movie": SAMPLE, "model": "tetrapod_telomere", "framerange": "1:1", "results": "ThunderSTORM"}
    answer = fiji.run("Localize_with_Python", csv=csv, cameraoffset=100000, electronsperadu=0.001, **values)
    assert answer.get("error") is None, answer
    assert answer["outputs"]["localizations"] == len(read_table(csv)) == 0
    assert "nothing was found in sample.tif" in answer["log"]


def test_failures_give_the_reason_of_python(fiji: Fiji, tmp_path: Path) -> None:
    none = tmp_path / "none.csv"
    answer = fiji.run("Drift_correction", table=none, corrected=tmp_path / "out.csv")
    assert "none.csv" in answer["error"]
    assert "Log of Python" in answer["log"]
    assert re.search(r"Command: .*python.* -m smlm_bridge drift .*none\.csv", answer["log"])
    answer = fiji.run("Localize_with_Python", model="x", csv=tmp_path / "y.csv")
    assert "open an image first" in answer["error"]
    answer = fiji.run("Calibrate_PSF_from_beads", stack=SAMPLE, calibration=tmp_path / "c.psf.h5")
    assert "never guessed" in answer["error"]
    assert (
        "ThunderSTORM is not installed"
        in fiji.run("Open_in_ThunderSTORM", table=SAMPLE.with_name("truth.csv"))["error"]
    )
    assert not list(tmp_path.iterdir())


def test_cancel_stops_python_and_leaves_nothing(fiji: Fiji, tmp_path: Path) -> None:
    frames = np.tile(tifffile.imread(SAMPLE).astype(np.float32), (200, 1, 1))
    movie = tmp_path / "long.tif"
    tifffile.imwrite(movie, frames, imagej=True, metadata={"axes": "TYX"})
    csv = tmp_path / "never.csv"
    answer = fiji.run(
        "Localize_with_Python",
        movie=movie,
        model="tetrapod_telomere",
        csv=csv,
        moreoptions="--block-frames 4",
        how={"escape": str(tmp_path / "never.csv.parts")},
    )
    assert "Cancelled" in answer["error"]
    assert [path.name for path in tmp_path.iterdir()] == ["long.tif"]
    assert not children_of(fiji.process.pid)


def children_of(pid: int) -> list[str]:
    """Processes that Java has left (Linux)."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    tasks = path.parent.parent if path.exists() else Path("/nowhere")
    return [word for task in tasks.glob("*/children") for word in task.read_text().split()]


def cpu_seconds(pid: int) -> float:
    """Of all processes that Java has started, and theirs (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    total = 0.0
    for child in children_of(pid):
        with contextlib.suppress(OSError):
            total += cpu_seconds(int(child))
    return total + own


def after_work(fiji: Fiji, seconds: float, flag: Path) -> threading.Thread:
    """Write a file once the processes of Python have worked for so long."""
    begin = cpu_seconds(fiji.process.pid)

    def wait() -> None:
        while cpu_seconds(fiji.process.pid) < begin + seconds:
            time.sleep(0.1)
        flag.touch()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


@pytest.mark.slow
def test_train_a_model_ends_can_be_cancelled_and_goes_on(
    fiji: Fiji, gaussian_calibration: Calibration, tmp_path: Path
) -> None:
    pytest.importorskip("torch", reason="the extra 'train' is not installed")
    pytest.importorskip("onnx", reason="the extra 'train' is not installed")
    folder = tmp_path / "my models µ"
    folder.mkdir()
    calibration = folder / "astigmatic.psf.h5"
    save_calibration(calibration, gaussian_calibration)
    model = folder / "quick.onnx"
    values: dict[str, Any] = {"calibration": calibration, "model": model}
    small = "--system single --box 13 --seed 1"
    answer = fiji.run("Train_a_model", minutes=5, moreoptions=f"{small} --samples 4000", **values)
    assert answer.get("error") is None, answer
    samples = answer["outputs"]["samples"]
    assert answer["outputs"]["modelpath"] == str(model)
    assert 4000 <= samples < 5000  # whole batches
    assert load_model(model).info.box_px == 13
    assert f"quick.onnx, trained on {samples} " in answer["log"]
    refused = fiji.run("Train_a_model", minutes=5, moreoptions=small, **values)
    assert "overwrite" in refused["error"]

    model.unlink()
    model.with_suffix(".card.md").unlink()
    flag = tmp_path / "now"
    waiting = after_work(fiji, 20.0, flag)
    cancelled = fiji.run("Train_a_model", minutes=20, moreoptions=small, how={"escape": str(flag)}, **values)
    waiting.join()
    assert "Cancelled; no model was written. quick.checkpoint stays" in cancelled["error"], cancelled
    assert sorted(path.name for path in folder.iterdir()) == ["astigmatic.psf.h5", "quick.checkpoint"]
    assert not children_of(fiji.process.pid)
    on = fiji.run("Train_a_model", minutes=0.02, resume="true", moreoptions=small, **values)
    assert on.get("error") is None, on
    assert load_model(model).info.box_px == 13
    assert sorted(path.name for path in folder.iterdir()) == [
        "astigmatic.psf.h5",
        "quick.card.md",
        "quick.onnx",
    ]


def test_the_macro_without_fiji_goes_from_movie_to_picture(fiji: Fiji, tmp_path: Path) -> None:
    macro = fiji.folder / PLAIN_MACRO
    movie = tmp_path / "a movie.tif"
    tifffile.imwrite(movie, np.tile(tifffile.imread(SAMPLE), (4, 1, 1)))  # drift needs 100 localizations
    results = tmp_path / "the results"
    python = fiji.first["right"]["outputs"]["pythonpath"]
    answer = fiji.macro(macro, f"{movie}|tetrapod_telomere|{results}|{python}")
    assert answer["outputs"]["result"] != "[aborted]", answer
    written = {path.name for path in results.iterdir()}
    assert written >= {"a movie.csv", "a movie_corrected.csv", "a movie.png"}, answer
    assert len(read_table(results / "a movie_corrected.csv")) > 100
    refused = fiji.macro(macro, f"{movie}|tetrapod_telomere|{results}|/no/python")
    assert refused["outputs"]["result"] == "[aborted]"
    assert "gave no answer" in refused["log"]


# ---- with windows

#: Our own stand-in for two commands of ThunderSTORM: they log what they are called with.
STAND_IN = """package cz.cuni.lf1.lge.ThunderSTORM;
public class {name} implements ij.plugin.PlugIn {{
    public void run(String arg) {{ ij.IJ.log("{name}: " + ij.Macro.getOptions()); }}
}}
"""
COMMANDS = {"ImportExportPlugIn": "Import results", "CameraSetupPlugIn": "Camera setup"}


def stand_in(plugins: Path, scratch: Path) -> None:
    compiler = shutil.which("javac")
    if compiler is None:
        pytest.skip("there is no javac; a JDK has one")
    for name in COMMANDS:
        (scratch / f"{name}.java").write_text(STAND_IN.format(name=name))
    sources = [str(scratch / f"{name}.java") for name in COMMANDS]
    call = [compiler, "-cp", str(JARS / "ij.jar"), "-d", str(scratch / "classes"), *sources]
    subprocess.run(call, check=True, timeout=120)
    place = "cz.cuni.lf1.lge.ThunderSTORM"
    config = [f'Plugins>ThunderSTORM, "{label}", {place}.{name}' for name, label in COMMANDS.items()]
    with zipfile.ZipFile(plugins / "Thunder_STORM.jar", "w") as jar:
        jar.writestr("plugins.config", "\n".join(config) + "\n")
        for file in (scratch / "classes").rglob("*.class"):
            jar.write(file, file.relative_to(scratch / "classes").as_posix())


@pytest.mark.slow
def test_windows_preview_table_picture_and_thunderstorm(fiji: Fiji, tmp_path: Path) -> None:
    if shutil.which("xvfb-run") is None:
        pytest.skip("there is no Xvfb here (Debian: xvfb)")
    (tmp_path / "classes").mkdir()
    stand_in(fiji.folder / "plugins", tmp_path)
    shown = Path(os.environ.get(SCREENSHOTS, tmp_path))
    screen = ("xvfb-run", "-a", "-s", "-screen 0 1280x900x24")
    # Of another Python; the commands must not hand them on.
    astray = {"PYTHONPATH": "nowhere", "PYTHONHOME": "nowhere"}
    windows = start(fiji.folder, fiji.folder.parent / "home", prefix=screen, **astray)
    csv = tmp_path / "found it.csv"
    try:
        values = {"movie": SAMPLE, "model": "tetrapod_telomere", "picturepixel": 20, "csv": csv}
        how = {"buttons": ["Preview again", "Run on the whole movie"], "screenshot": str(shown / "preview")}
        answer = windows.run("Localize_with_Python", preview="true", how=how, **values)
        opened = windows.run("Open_in_ThunderSTORM", table=csv)
    finally:
        stop(windows)
    assert answer.get("error") is None, answer
    table = read_table(csv)
    in_first = int((table["frame"] == 0).sum())
    assert [shot["overlay"] for shot in answer["shots"]] == [in_first, in_first]
    assert all("Localize with Python: preview" in shot["windows"] for shot in answer["shots"])
    assert any(text.endswith("of 4 (Escape cancels)") for text in answer["statuses"])
    shown_table = answer["seen"]["tables"]["found it.csv"]
    assert shown_table["rows"] == len(table)
    assert {"frame", "x [nm]", "uncertainty_xy [nm]"} <= set(shown_table["columns"])
    assert any("picture" in title for title in answer["seen"]["windows"])
    assert f"filepath=[{csv}]" in opened["log"]
    assert "pixelsize=110.0" in opened["log"]
