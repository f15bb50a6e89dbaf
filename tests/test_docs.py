"""Every code block of README.md and docs/ runs, and the reference pages say what the code says.

How a page runs. Its blocks run in order, in one temporary folder that also shows the repository's
``models/`` and ``constraints.txt``. ``python`` blocks share one namespace a page; ``bash`` blocks run under
``bash -euo pipefail``, with this interpreter's ``smlm-bridge`` on the PATH; ``text``, ``console``, ``toml``
do not run. A comment ``<!-- needs: PATH ... -->`` above a block names what it needs, relative to the
repository: where that is missing, the page is skipped from there on.

Lines that make an environment, install into it or start pytest (``FRESH``) are left out and ``.venv/bin/`` is
cut off the others; ``test_readme_on_a_fresh_machine``, marked slow, runs the README's blocks to the letter.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from smlm_bridge.camera import Camera
from smlm_bridge.locs import SCHEMA
from smlm_bridge.networks.maps import MAP_NAMES
from smlm_bridge.optics.microscope import Optics

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUN, LEFT = ("python", "bash"), ("text", "console", "toml")
FRESH = re.compile(r"python3? -m venv |\S*pip install |\S*python -m pytest\b")
VISIBLE = ("models", "constraints.txt")
LONGEST_S = 600

_BLOCK = re.compile(
    r"(?:^<!-- needs: (?P<needs>.*?) -->\n)?^```(?P<language>.*)\n(?P<code>[\s\S]*?)^```$", re.M
)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced code block, the line it starts at, and the paths it needs."""

    language: str
    code: str
    line: int
    needs: tuple[str, ...]


def blocks(text: str) -> list[Block]:
    """The fenced code blocks of a page, in order."""
    return [
        Block(
            match["language"],
            match["code"],
            text.count("\n", 0, match.start("code")) + 1,
            tuple((match["needs"] or "").split()),
        )
        for match in _BLOCK.finditer(text)
    ]


def without_setup(code: str) -> str:
    """A block of bash without its lines for a fresh machine, for the environment that runs the tests."""
    kept = [line for line in code.splitlines() if not FRESH.match(line)]
    return "\n".join(kept).replace(".venv/bin/", "")


def run_bash(code: str, folder: Path, *, environment: dict[str, str], longest_s: float = LONGEST_S) -> None:
    """Run under ``bash -euo pipefail``; a failure shows all output."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=longest_s,
        check=False,
    )
    assert done.returncode == 0, f"exit code {done.returncode}:\n{code}\n{done.stdout}"


def run_page(page: Path, folder: Path, bin_folder: Path) -> None:
    """Run the blocks of a page in ``folder``, which is the current one."""
    environment = {
        **os.environ,
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "default",
    }
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.language not in RUN:
            continue
        if missing := [path for path in block.needs if not (ROOT / path).exists()]:
            pytest.skip(f"{page.name}:{block.line} needs {', '.join(missing)}, which is not here")
        if block.language == "python":
            # Padded, so that a traceback has the line of the page.
            code = "\n" * (block.line - 1) + block.code
            exec(compile(code, page, "exec"), namespace)
        else:
            run_bash(without_setup(block.code), folder, environment=environment)


@pytest.fixture(scope="session")
def bin_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``smlm-bridge``, ``python`` and ``python3`` of this interpreter."""
    folder = tmp_path_factory.mktemp("bin")
    for name, arguments in (("smlm-bridge", "-m smlm_bridge "), ("python", ""), ("python3", "")):
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments}"$@"\n')
        program.chmod(0o755)
    return folder


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_of_a_page_run(
    page: Path, tmp_path: Path, bin_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in VISIBLE:
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    run_page(page, tmp_path, bin_folder)


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_readme_on_a_fresh_machine(number: int, tmp_path: Path, bin_folder: Path) -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("only in a git checkout: it says which files belong to the project")
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    bash = [b for b in blocks((ROOT / "README.md").read_text("utf-8")) if b.language == "bash"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment["PATH"] = f"{bin_folder}{os.pathsep}{environment['PATH']}"
    run_bash(bash[number].code, tmp_path, environment=environment, longest_s=3600)
    assert number == 1 or (tmp_path / "locs.csv").stat().st_size > 0


def test_a_block_that_fails_is_noticed(
    tmp_path: Path, bin_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n")
    with pytest.raises(AssertionError):
        run_page(page, tmp_path, bin_folder)
    page.write_text("```bash\nsmlm-bridge no-such-verb | cat\necho not reached\n```\n")
    with pytest.raises(AssertionError, match="exit code 2") as failure:
        run_page(page, tmp_path, bin_folder)
    assert "\nnot reached" not in str(failure.value)


def test_setup_lines_are_left_out() -> None:
    code = "python3 -m venv .venv\n.venv/bin/pip install -c constraints.txt .\n.venv/bin/smlm-bridge doctor\n"
    assert without_setup(code) == "smlm-bridge doctor"
    assert without_setup(".venv/bin/python -m pytest\n") == ""


def test_blocks_know_their_language_line_and_needs() -> None:
    found = blocks("# A\n\n<!-- needs: a b -->\n```bash\nls\n```\n\n```text\nno\n```\n")
    assert found == [Block("bash", "ls\n", 5, ("a", "b")), Block("text", "no\n", 9, ())]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_has_a_language_we_know(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert {block.language for block in blocks(text)} <= {*RUN, *LEFT}
    assert len(re.findall(r"^```", text, re.M)) == 2 * len(blocks(text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in _LINK.findall(page.read_text(encoding="utf-8")):
        if re.match(r"\w+://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in _anchors(target.read_text(encoding="utf-8")), link


def _anchors(text: str) -> set[str]:
    """Anchors of the headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", re.sub(_BLOCK, "", text), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_tests_named_in_a_page_exist(page: Path) -> None:
    for file, name in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page.read_text(encoding="utf-8")):
        assert (ROOT / file).is_file(), file
        assert not name or f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{name}"


def test_every_page_is_reachable_from_the_readme() -> None:
    seen, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        links = (link.partition("#")[0] for link in _LINK.findall(page.read_text(encoding="utf-8")))
        waiting += [(page.parent / link).resolve() for link in links if link and "://" not in link]
    assert set(PAGES) <= seen


def test_pictures_are_small() -> None:
    for picture in (ROOT / "docs" / "images").iterdir():
        assert picture.stat().st_size <= 150_000, picture.name


def _script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_command_line_reference_is_current() -> None:
    written = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    assert written == _script("make_cli_reference").reference(), "run: python docs/make_cli_reference.py"


def test_the_readme_names_the_verbs_of_the_path() -> None:
    from smlm_bridge.cli.verbs import BUILT

    table = (
        (ROOT / "README.md").read_text(encoding="utf-8").partition("## The verbs")[2].partition("\n## ")[0]
    )
    named = re.findall(r"^\| `([a-z]+)` \|", table, re.M)
    assert {"calibrate", "convert", "crlb", "simulate", "train", "localize", "evaluate", "rerender"} <= set(
        named
    )
    assert set(named) <= set(BUILT)


def test_scores_in_the_readme_are_those_of_the_cards() -> None:
    tables = [
        b.code for b in blocks((ROOT / "README.md").read_text(encoding="utf-8")) if b.language == "text"
    ]
    cards = [card.read_text(encoding="utf-8") for card in (ROOT / "models").glob("*/card.md")]
    assert tables
    assert all(any(table in card for card in cards) for table in tables), "copy the table of the card"


def section(title: str) -> str:
    """One section of the page about files."""
    text = (ROOT / "docs" / "reference" / "files.md").read_text(encoding="utf-8")
    return text.partition(f"## {title}")[2].partition("\n## ")[0]


def rows(text: str, columns: int) -> list[tuple[str, ...]]:
    """The rows of its tables that have this many columns, code marks taken off."""
    lines = [[cell.strip().strip("`") for cell in line.strip("|\n").split("|")] for line in text.splitlines()]
    return [tuple(cells) for cells in lines if len(cells) == columns]


def test_the_page_about_files_has_every_column_of_a_table() -> None:
    listed = {row[:3] for row in rows(section("Tables"), 4)}
    assert {(c.thunderstorm, c.name, c.dtype) for c in SCHEMA} <= listed


@pytest.mark.parametrize("kind", [Optics, Camera])
def test_the_page_about_files_has_every_field_of_a_calibration(kind: type) -> None:
    listed = {row[0] for row in rows(section("Calibration"), 2)}
    assert {part.name for part in fields(kind)} <= listed


def test_the_page_about_files_has_every_attribute_of_a_calibration_file(gaussian_calibration: Any) -> None:
    import io

    import h5py

    listed = ", ".join(row[0] for row in rows(section("Calibration"), 3))
    with h5py.File(io.BytesIO(gaussian_calibration.to_bytes()), "r") as file:
        for name in (*file.attrs, *file):
            assert name in listed, name
        for name in file["gaussian"].attrs:
            assert f"`{name}`" in section("Calibration"), name


def test_the_page_about_files_has_every_key_of_a_model(gaussian_calibration: Any) -> None:
    import json

    from smlm_bridge.model import ModelInfo

    info = ModelInfo("n", "dense", "p", gaussian_calibration, {}, 1, 4, 40)
    text = section("Model")
    for entry, value in info.to_metadata().items():
        assert f"`{entry}`" in text
        keys = json.loads(value) if value.startswith("{") else ()
        assert all(f"`{key}`" in text for key in keys)
    assert all(f"`{name}`" in text for name in MAP_NAMES)


def test_the_page_about_files_has_every_key_of_the_ranges() -> None:
    from smlm_bridge.simulate.background import BackgroundRanges
    from smlm_bridge.simulate.scene import Ranges, SecondRanges

    own = {part.name for part in fields(Ranges)} - {"background", "channel2"}
    nested = {f"background.{part.name}" for part in fields(BackgroundRanges)}
    nested |= {f"channel2.{part.name}" for part in fields(SecondRanges)}
    assert {row[0] for row in rows(section("Training ranges"), 2)} >= own | nested


def test_the_page_about_files_has_every_key_of_the_mask() -> None:
    from smlm_bridge.io.setup import MaskSpec

    assert {row[0] for row in rows(section("Setup"), 2)} >= {part.name for part in fields(MaskSpec)}
