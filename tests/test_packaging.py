"""What is packaged: the list of packages, the wheel's content, versions, and what must not be in the tree."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

import smlm_bridge

ROOT = Path(__file__).resolve().parents[1]
LARGEST_FILE = 10_000_000
MACHINE_PATHS = re.compile(rb"/work/|/tmp/|/home/\w|/root/|/Users/\w|[A-Z]:\\\\?Users\\")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def project_files() -> list[Path]:
    """The files that belong to the project, also those not committed yet."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("only in a git checkout: it says which files belong to the project")
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_every_package_is_listed(project: dict[str, Any]) -> None:
    listed = project["tool"]["setuptools"]["packages"]
    found = [file.parent for file in (ROOT / "smlm_bridge").rglob("__init__.py")]
    names = [".".join(folder.relative_to(ROOT).parts) for folder in found]
    models = [
        f"smlm_bridge.models.{folder.name}" for folder in (ROOT / "models").iterdir() if folder.is_dir()
    ]
    scripts = [f"smlm_bridge.fiji_scripts{part}" for part in ("", ".macros", ".scripts", ".scripts.Plugins")]
    beside = [*scripts, "smlm_bridge.models", *models]
    assert sorted(listed) == sorted([*names, *beside])


def test_every_module_is_in_a_package() -> None:
    folders = {file.parent for file in (ROOT / "smlm_bridge").rglob("*.py")}
    assert all((folder / "__init__.py").is_file() for folder in folders)


def test_versions_agree() -> None:
    heading = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert heading is not None
    assert heading[1] == smlm_bridge.__version__
    try:
        installed = version("smlm_bridge")
    except PackageNotFoundError:
        return  # run from the source tree
    assert installed == smlm_bridge.__version__


def _name(requirement: str) -> str:
    return re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def test_every_dependency_of_the_tests_is_pinned(project: dict[str, Any]) -> None:
    extras = project["project"]["optional-dependencies"]
    wanted = [*project["project"]["dependencies"], *extras["train"], *extras["test"]]
    pinned = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line
    )
    assert {_name(requirement) for requirement in wanted} - {"smlm-bridge"} <= {
        _name(name) for name in pinned
    }


def test_no_file_is_large() -> None:
    large = [file.relative_to(ROOT) for file in project_files() if file.stat().st_size > LARGEST_FILE]
    assert not large, f"above {LARGEST_FILE // 1_000_000} MB: {large}"


def test_no_file_names_a_place_on_somebodys_machine() -> None:
    others = (file for file in project_files() if not file.is_relative_to(ROOT / "tests"))
    found = {file.relative_to(ROOT): MACHINE_PATHS.search(file.read_bytes()) for file in others}
    assert not {file: match[0] for file, match in found.items() if match}


def test_machine_paths_are_recognised() -> None:
    for text in (b"/work/main", b"x = '/tmp/a'", b"/home/ann/a", b"C:\\Users\\ann", b"/root/.cache"):
        assert MACHINE_PATHS.search(text), text
    for text in (b"/usr/share/java", b"network/x", b"the root/leaf", b"home/"):
        assert not MACHINE_PATHS.search(text), text


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built from a copy of the tree: setuptools leaves its traces where it builds."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for file in project_files():
        target = tree / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", str(out), str(tree)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_has_the_models_and_the_program(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry = next(name for name in names if name.endswith(".dist-info/entry_points.txt"))
        assert "smlm-bridge = smlm_bridge.cli:main" in archive.read(entry).decode()
    models = [folder for folder in (ROOT / "models").iterdir() if folder.is_dir()]
    for folder in models:
        inside = {
            f"smlm_bridge/models/{file.relative_to(ROOT / 'models').as_posix()}" for file in folder.iterdir()
        }
        assert inside <= names
        assert f"smlm_bridge/models/{folder.name}/weights.onnx" in names
    assert {"smlm_bridge/py.typed", "smlm_bridge/cli/verbs.py"} <= names
    assert not [name for name in names if name.startswith(("tests/", "docs/", "benchmarks/"))]


@pytest.mark.slow
def test_the_wheel_has_every_module(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {file.relative_to(ROOT).as_posix() for file in (ROOT / "smlm_bridge").rglob("*.py")} <= names
