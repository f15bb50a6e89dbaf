"""One virtual machine a process: every scenario runs in a process of its own, and its answers are tested."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smlm_bridge.bridge.jars import maven_central
from smlm_bridge.errors import MissingDependency

HERE = Path(__file__).parent
STAND_IN = HERE / "stand_in"
EXIT_CODE = 7

Scenario = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def imagej_jars() -> tuple[Path, ...]:
    """ImageJ 1 and its patcher from Maven Central."""
    pytest.importorskip("jpype", reason="the extra 'fiji' is not installed")
    if shutil.which("java") is None and not os.environ.get("JAVA_HOME"):
        pytest.skip("there is no Java")
    try:
        return maven_central()
    except MissingDependency as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def stand_in(imagej_jars: tuple[Path, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our stand-in for ThunderSTORM, compiled; its name has spaces, as folders of labs do."""
    compiler = shutil.which("javac")
    if compiler is None:
        pytest.skip("there is no javac; a JDK has one")
    classes = tmp_path_factory.mktemp("classes")
    sources = sorted(map(str, STAND_IN.rglob("*.java")))
    call = [compiler, "-nowarn", "-cp", str(imagej_jars[0]), "-d", str(classes), *sources]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    jar = tmp_path_factory.mktemp("my plugins") / "Stand_In.jar"
    with zipfile.ZipFile(jar, "w") as archive:
        archive.write(STAND_IN / "plugins.config", "plugins.config")
        for file in classes.rglob("*.class"):
            archive.write(file, file.relative_to(classes).as_posix())
    return jar


@pytest.fixture(scope="session")
def scenario() -> Scenario:
    """Run a scenario in a process of its own and give its answers.

    Its stdout must be exactly one JSON object, and its exit code the one it asks for: Java prints nothing into
    it and does not keep the process alive.
    """

    def run(name: str, *arguments: object, timeout_s: float = 300) -> dict[str, Any]:
        call = [sys.executable, str(HERE / name), *map(str, arguments)]
        done = subprocess.run(call, capture_output=True, text=True, timeout=timeout_s, check=False)
        assert done.returncode == EXIT_CODE, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
        assert done.stdout.count("\n") == 1, done.stdout
        answers: dict[str, Any] = json.loads(done.stdout)
        answers["stderr"] = done.stderr
        return answers

    return run
