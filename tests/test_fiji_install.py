"""Our files in a Fiji directory: what was put there goes out again, and nothing else."""

import json
import zipfile
from pathlib import Path

import pytest

from smlm_bridge.cli import main
from smlm_bridge.cli.fiji import PROVIDER_JAR
from smlm_bridge.errors import InputRejected
from smlm_bridge.io.fiji_install import MANIFEST, install, script_files, uninstall

FILES = {"scripts/Plugins/SMLM Bridge/A.groovy": b"a", "models/m/rdf.yaml": b"m", "macros/B.ijm": b"b"}


@pytest.fixture
def fiji(tmp_path: Path) -> Path:
    """A Fiji that has scripts of others."""
    folder = tmp_path / "Fiji app"
    for name in ("jars", "plugins", "scripts/Plugins/Others"):
        (folder / name).mkdir(parents=True)
    (folder / "scripts/Plugins/Others/X.groovy").write_text("x")
    return folder


def tree(folder: Path) -> dict[str, bytes | None]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def test_uninstall_restores_the_directory(fiji: Path) -> None:
    before = tree(fiji)
    done = install(fiji, FILES, python="/a python")
    assert sorted(done.written) == sorted(FILES)
    assert {name: content for name, content in tree(fiji).items() if name in FILES} == FILES
    manifest = json.loads((fiji / MANIFEST).read_text())
    assert manifest["python"] == "/a python"
    assert sorted(uninstall(fiji).removed) == sorted(FILES)
    assert tree(fiji) == before


def test_a_new_version_replaces_the_old_one(fiji: Path) -> None:
    before = tree(fiji)
    install(fiji, FILES)
    done = install(fiji, {"macros/B.ijm": b"new"})
    assert done.written == ("macros/B.ijm",)
    assert len(done.removed) == 2
    assert not (fiji / "models").exists()
    assert (fiji / "macros/B.ijm").read_bytes() == b"new"
    assert install(fiji, {"macros/B.ijm": b"new"}).written == ()
    uninstall(fiji)
    assert tree(fiji) == before


def test_files_of_others_stay(fiji: Path) -> None:
    same, other = fiji / "macros/B.ijm", fiji / "models/m/rdf.yaml"
    same.parent.mkdir()
    same.write_bytes(b"b")
    other.parent.mkdir(parents=True)
    other.write_bytes(b"somebody's")
    before = tree(fiji)
    with pytest.raises(InputRejected, match=r"rdf\.yaml"):
        install(fiji, FILES)
    assert tree(fiji) == before
    install(fiji, FILES, overwrite=True)
    assert other.read_bytes() == b"m"
    (fiji / "models/m/notes.txt").write_text("mine")
    changed = fiji / "scripts/Plugins/SMLM Bridge/A.groovy"
    changed.write_bytes(b"edited")
    done = uninstall(fiji)
    assert done.kept == ("scripts/Plugins/SMLM Bridge/A.groovy",)
    assert changed.read_bytes() == b"edited"
    assert same.exists(), "it was there before, with the same content"
    assert (fiji / "models/m/notes.txt").exists()
    assert not other.exists()
    with pytest.raises(InputRejected, match="nothing was installed"):
        uninstall(fiji)


@pytest.mark.parametrize("place", ["../x.txt", "/etc/x", "lib/x.jar", "scripts/../../x", "scripts\\x"])
def test_nothing_outside_is_touched(fiji: Path, place: str) -> None:
    with pytest.raises(InputRejected, match="no place of ours"):
        install(fiji, {place: b""})
    install(fiji, FILES)
    manifest = json.loads((fiji / MANIFEST).read_text())
    manifest["files"][place] = "0"
    (fiji / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(InputRejected, match="no place of ours"):
        uninstall(fiji)
    assert (fiji / "macros/B.ijm").exists()


@pytest.mark.parametrize(
    "text", ["", "[]", '{"format": "x"}', '{"format": "smlm_bridge in Fiji", "version": 2}']
)
def test_a_damaged_list_is_refused(fiji: Path, text: str) -> None:
    (fiji / MANIFEST).write_text(text)
    for action in (lambda: uninstall(fiji), lambda: install(fiji, FILES)):
        with pytest.raises(InputRejected, match="damaged"):
            action()


def test_what_is_no_fiji_is_refused(tmp_path: Path) -> None:
    assert main(["fiji", "install", str(tmp_path), "--no-models"]) == 3
    assert main(["fiji", "uninstall", str(tmp_path / "nowhere")]) == 3
    assert main(["fiji", "uninstall", str(tmp_path), "--no-models"]) == 2


def test_the_launcher_of_a_mac_names_its_folder(tmp_path: Path) -> None:
    launcher = tmp_path / "Fiji" / "Fiji.app" / "Contents" / "MacOS"
    launcher.mkdir(parents=True)
    (tmp_path / "Fiji" / "jars").mkdir()
    with pytest.raises(InputRejected, match=r"Give .*Fiji, which has"):
        install(launcher.parents[1], FILES)


def test_models_that_deepimagej_cannot_run_are_left_out(
    fiji: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from smlm_bridge.io import deepimagej, shipped

    def refuse(*_: object) -> None:
        raise deepimagej.NotForDeepImageJ("it looks at neighbouring frames.")

    monkeypatch.setattr(shipped, "shipped_names", lambda: ["tetrapod_telomere"])
    monkeypatch.setattr(deepimagej, "sample_frame", refuse)
    assert main(["fiji", "install", str(fiji), "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["left_out"] == {"tetrapod_telomere": "it looks at neighbouring frames."}
    assert not (fiji / "models").exists()
    assert main(["fiji", "install", str(fiji), "--model", "tetrapod_telomere"]) == 3  # asked for by name


def test_the_verb_copies_commands_and_a_model(fiji: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(fiji)
    arguments = ["--model", "tetrapod_telomere", "--offset", "100", "--e-per-adu", "0.45", "--json"]
    assert main(["fiji", "install", str(fiji), *arguments]) == 0
    there = tree(fiji)
    assert set(script_files()) <= set(there)
    with zipfile.ZipFile(fiji / PROVIDER_JAR) as jar:
        assert jar.namelist() == ["com/sun/net/ssl/internal/ssl/Provider.class"]
    assert "scripts/Plugins/SMLM Bridge/Localize_with_Python.groovy" in there
    assert {"models/tetrapod_telomere/rdf.yaml", "models/tetrapod_telomere/weights.onnx"} <= set(there)
    written = json.loads(capsys.readouterr().out)["written"]
    assert main(["fiji", "uninstall", str(fiji), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["removed"] == written
    assert tree(fiji) == before
