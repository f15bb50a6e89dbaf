"""The command line's contract: exit codes, one JSON object, values with a minus, help, refused outputs."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from smlm_bridge.cli import main
from smlm_bridge.cli.common import resolve_device
from smlm_bridge.cli.reporting import Summary, aligned, plain, progress, to_json
from smlm_bridge.cli.values import (
    parse_device,
    parse_frames,
    parse_range,
    parse_roi,
    parse_sequence,
    parse_size,
    parse_slices,
)
from smlm_bridge.cli.verbs import BUILT, NOT_BUILT, LazyGroup, program
from smlm_bridge.errors import InputRejected, MissingDependency, SmlmError

TABLE = '"id","frame","x [nm]","y [nm]"\n1,1,100.5,200.25\n2,3,300,400\n'


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "table.csv"
    path.write_text(TABLE, encoding="utf-8")
    return path


def only_object(text: str) -> dict[str, object]:
    lines = text.splitlines()
    assert len(lines) == 1, text
    value = json.loads(lines[0])
    assert isinstance(value, dict)
    return value


# ---- values


def test_values_parse_as_the_contract_says() -> None:
    assert parse_range("1000:20000") == (1000.0, 20000.0)
    assert parse_range("-700:-200.5") == (-700.0, -200.5)
    assert parse_range("5e3") == (5000.0, 5000.0)
    assert parse_frames("3:7") == (3, 7)
    assert parse_sequence("-1000:1000:500") == (-1000.0, -500.0, 0.0, 500.0, 1000.0)
    assert parse_sequence("1000:-1000:-1000") == (1000.0, 0.0, -1000.0)
    assert parse_sequence("0:1:0.1")[-1] == pytest.approx(1.0)
    assert len(parse_sequence("0:1:0.1")) == 11
    assert parse_size("64x96") == (64, 96)
    assert parse_roi("10,20,64,32") == (10, 20, 64, 32)
    assert [parse_device(name) for name in ("auto", "cpu", "cuda:1")] == ["auto", "cpu", "cuda:1"]
    assert parse_slices("even") == "even"
    assert parse_slices("0:50:2") == (0, 50, 2)


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (parse_range, "2:1"),
        (parse_range, "1:2:3"),
        (parse_range, "1:nan"),
        (parse_frames, "0:3"),
        (parse_frames, "1.5:3"),
        (parse_sequence, "0:1000:-100"),
        (parse_sequence, "0:1000:0"),
        (parse_sequence, "0:1000"),
        (parse_sequence, "0:1e9:1e-3"),
        (parse_size, "64"),
        (parse_size, "0x64"),
        (parse_roi, "1,2,3"),
        (parse_roi, "-1,2,3,4"),
        (parse_device, "gpu"),
        (parse_device, "cuda:x"),
        (parse_slices, "some"),
        (parse_slices, "5:2:1"),
    ],
)
def test_wrong_values_are_refused_with_what_was_given(parse: object, text: str) -> None:
    assert callable(parse)
    with pytest.raises(ValueError, match=text.replace(":", ".")):
        parse(text)


# ---- reporting


def test_json_has_no_nan_and_knows_numpy_and_paths() -> None:
    numpy = pytest.importorskip("numpy")
    values = {"a": numpy.float32(1.5), "b": [float("nan"), float("inf"), 2], "c": Path("x"), 4: (True, None)}
    assert json.loads(to_json(values)) == {"a": 1.5, "b": [None, None, 2], "c": "x", "4": [True, None]}
    assert plain(numpy.array([[1, 2]])) == [[1, 2]]
    assert aligned({"name": 1.23456789, "none": None}) == "name  1.2346\nnone  -"


def test_progress_lines_go_to_stderr_and_a_bar_needs_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("testing", "jsonl") as on_step:
        on_step(1, 3)
        on_step(2, 3)  # too soon after the first
        on_step(3, 3)
    with progress("testing", "bar") as on_step:
        on_step(1, 3)
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [json.loads(line)["progress"] for line in captured.err.splitlines()]
    assert lines == [{"done": done, "total": 3, "what": "testing"} for done in (1, 3)]


# ---- exit codes


FLAGS: list[click.Parameter] = [
    click.Option([name], is_flag=True, expose_value=False) for name in ("--json", "--debug")
]


def raising(error: BaseException) -> click.Command:
    def callback() -> None:
        raise error

    return click.Command("doctor", callback=callback, params=FLAGS)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (SmlmError("the disk is full"), 1, "the disk is full"),
        (ZeroDivisionError("division"), 1, "ZeroDivisionError"),
        (click.UsageError("wrong"), 2, "wrong"),
        (InputRejected("a bad\nfile"), 3, "a bad file"),
        (FileNotFoundError(2, "No such file", "x.tif"), 3, "x.tif"),
        (MissingDependency("torch is not installed"), 4, "torch"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_every_failure_has_its_exit_code_and_one_line(
    error: BaseException,
    code: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(LazyGroup, "get_command", lambda self, ctx, name: raising(error))
    assert main(["doctor"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert words in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert main(["doctor", "--json"]) == code
    assert only_object(capsys.readouterr().out)["exit_code"] == code
    assert main(["doctor", "--debug"]) == code
    assert "Traceback" in capsys.readouterr().err


def test_usage_errors_name_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["localise"]) == 2
    assert "'localize'" in capsys.readouterr().err
    assert main(["doctor", "--jsno"]) == 2
    assert "--json" in capsys.readouterr().err
    assert main(["doctor", "--device", "gpu"]) == 2
    assert "cuda:N" in capsys.readouterr().err


@pytest.mark.parametrize("name", NOT_BUILT)
def test_a_verb_that_is_not_built_says_so(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "x.csv", "-o", "y.csv"]) == 2
    assert f"'{name}' is not built yet" in capsys.readouterr().err


def test_sigterm_ends_like_an_interrupt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cleaned = []

    def callback() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            cleaned.append(True)

    monkeypatch.setattr(
        LazyGroup, "get_command", lambda self, ctx, name: click.Command("x", callback=callback)
    )
    before = signal.getsignal(signal.SIGTERM)
    assert main(["doctor"]) == 130
    assert cleaned == [True]
    assert signal.getsignal(signal.SIGTERM) == before
    capsys.readouterr()


def test_prints_of_libraries_do_not_stand_beside_the_object(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def callback(json: str) -> Summary:
        print("hello from a library")
        return Summary({"value": float("nan")}, "for people")

    command = click.Command("x", callback=callback, params=[click.Option(["--json"], is_flag=True)])
    monkeypatch.setattr(LazyGroup, "get_command", lambda self, ctx, name: command)
    assert main(["doctor", "--json"]) == 0
    captured = capsys.readouterr()
    assert only_object(captured.out) == {"value": None}
    assert "hello" in captured.err
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out == "hello from a library\nfor people\n"


def test_a_cuda_device_that_is_not_there_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == "cpu"
    with pytest.raises(MissingDependency, match="--device cpu"):
        resolve_device("cuda")


# ---- help


@pytest.mark.parametrize("name", list(BUILT))
def test_the_help_of_every_verb_has_units_an_example_and_the_common_options(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert "Units:" in text
    assert f"smlm-bridge {name}" in text.partition("Example:")[2]
    for option in (
        "--json",
        "--progress",
        "--device",
        "--threads",
        "--seed",
        "--quiet",
        "--debug",
        "--overwrite",
    ):
        assert option in text


def test_help_lists_every_verb_and_imports_none() -> None:
    code = (
        "import sys; from smlm_bridge.cli import main; code = main(['--help']);"
        "heavy = {'numpy', 'pandas', 'torch', 'scipy', 'h5py', 'pydantic', 'rich'} & set(sys.modules);"
        "print('heavy:', sorted(heavy)); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0
    assert "heavy: []" in done.stdout
    for name in (*BUILT, *NOT_BUILT):
        assert name in done.stdout


def test_version_and_module(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("smlm-bridge")
    done = subprocess.run(
        [sys.executable, "-m", "smlm_bridge", "drift"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_every_verb_of_the_table_has_a_module() -> None:
    context = click.Context(program)
    for name in BUILT:
        command = program.get_command(context, name)
        assert command is not None
        assert command.name == name


# ---- doctor


def test_doctor_finds_what_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    values = only_object(capsys.readouterr().out)
    checks = values["checks"]
    assert isinstance(checks, list)
    status = {check["name"]: check["status"] for check in checks}
    assert status["numpy"] == "ok"
    assert {"java", "device", "DISPLAY", "ij.jar", "scyjava", "distributed"} <= set(status)
    assert all(check["advice"] for check in checks if check["status"] == "missing")


# ---- convert


def test_tables_convert_there_and_back(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parquet, back = tmp_path / "table.parquet", tmp_path / "back.csv"
    assert main(["convert", str(table), str(parquet), "--json"]) == 0
    assert only_object(capsys.readouterr().out) == {"rows": 2}
    assert main(["convert", str(parquet), str(back), "--thunderstorm-version", "1.3"]) == 0
    from smlm_bridge.io.thunderstorm import read_table

    given, got = read_table(table), read_table(back)
    assert got[["frame", "x_nm", "y_nm"]].equals(given[["frame", "x_nm", "y_nm"]])
    assert '"uncertainty [nm]"' in back.read_text()


def test_an_existing_output_is_refused_and_kept(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out.csv"
    target.write_text("mine")
    assert main(["convert", str(table), str(target)]) == 3
    assert "--overwrite" in capsys.readouterr().err
    assert target.read_text() == "mine"
    assert main(["convert", str(table), str(target), "--overwrite"]) == 0
    assert "100.5" in target.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "table.csv"]


def test_conversions_not_built_and_missing_inputs(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(table), "out.hdf5"]) == 2
    assert "not built yet" in capsys.readouterr().err
    assert main(["convert", "missing.csv", str(table.with_name("out.parquet"))]) == 3
    assert "missing.csv" in capsys.readouterr().err
