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

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
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
    command = program.get_command(click.Context(program), name)
    parts = [[name, part] for part in command.commands] if isinstance(command, click.Group) else [[name]]
    for words in parts:
        assert main([*words, "--help"]) == 0
        _has_all_of_a_help(" ".join(words), capsys.readouterr().out)


def _has_all_of_a_help(name: str, text: str) -> None:
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


def test_conversions_that_make_no_sense_and_missing_inputs(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(table), "out.tsf"]) == 2
    assert "tables become tables" in capsys.readouterr().err
    assert main(["convert", "missing.csv", str(table.with_name("out.parquet"))]) == 3
    assert "missing.csv" in capsys.readouterr().err


# ---- verbs over files

# Forward-mode derivatives make torch announce the end of a part of its own.
TORCH_PLANS = pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")


@pytest.fixture
def calibration(tmp_path: Path) -> Path:
    from smlm_bridge.calibration import Calibration
    from smlm_bridge.camera import Camera
    from smlm_bridge.io.calibration import save_calibration
    from smlm_bridge.optics.microscope import Optics
    from smlm_bridge.optics.pupil import Pupil

    optics = Optics(1.2, 1.518, 1.33, 600.0, 120.0, focus_nm=700.0, model="scalar", pixel_integration=False)
    pupil = Pupil.flat(32, {6: 1.0})
    path = tmp_path / "astigmatic.psf.h5"
    camera = Camera(offset=100.0, e_per_adu=0.5, read_noise_e=1.0)
    save_calibration(path, Calibration(optics, pupil, camera=camera, z_range_nm=(200.0, 1000.0)))
    return path


@pytest.fixture
def movie(calibration: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[Path, Path]:
    frames, truth = tmp_path / "frames.tif", tmp_path / "truth.csv"
    arguments = [
        "-o",
        str(frames),
        "--truth",
        str(truth),
        "--frames",
        "3",
        "--emitters",
        "2",
        "--size-px",
        "24x30",
    ]
    ranges = ["--photons", "20000:20000", "--background", "5:5", "--z-nm", "300:900", "--clear-nm", "800"]
    assert main(["simulate", str(calibration), *arguments, *ranges, "--seed", "3", "--json"]) == 0
    assert only_object(capsys.readouterr().out) == {"frames": 3, "emitters": 6, "seed": 3}
    return frames, truth


def test_simulate_writes_frames_of_the_camera_and_their_truth(
    calibration: Path, movie: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import numpy as np
    import tifffile

    from smlm_bridge.io.thunderstorm import read_table

    frames, truth = movie
    stack = tifffile.imread(frames)
    assert (stack.shape, stack.dtype.name) == ((3, 24, 30), "uint16")
    assert 90 < stack.min() < np.median(stack) < 130  # an offset of 100, and 5 photo-electrons of 0.5 a count
    table = read_table(truth)
    assert sorted(table["frame"]) == [0, 0, 1, 1, 2, 2]
    assert (table["photons"] == 20000).all()
    assert (table["background"] == 5).all()
    again = tmp_path / "again.tif"
    arguments = [
        "simulate",
        str(calibration),
        "-o",
        str(again),
        "--frames",
        "1",
        "--emitters",
        "0",
        "--size-px",
        "8x8",
    ]
    assert main([*arguments, "--offset", "0", "--background", "0"]) == 0
    assert tifffile.imread(again).max() < 20  # the option won over the calibration's offset
    assert main([*arguments, "--overwrite", "--density-um2", "0.1"]) == 2
    assert main([*arguments, "--lifetime-frames", "2", "--overwrite"]) == 2
    assert "Give --density-um2" in capsys.readouterr().err


@TORCH_PLANS
def test_evaluate_scores_and_compares_with_the_bound(
    calibration: Path, movie: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    from smlm_bridge.io.thunderstorm import read_table, write_table

    truth = movie[1]
    shifted = read_table(truth)
    shifted["x_nm"] += 3.0
    write_table(truth.with_name("locs.csv"), shifted)
    arguments = ["evaluate", str(truth.with_name("locs.csv")), str(truth), "--json"]
    assert main(arguments) == 0
    values = only_object(capsys.readouterr().out)
    assert (values["jaccard"], values["matched"], values["rmse_over_crlb"]) == (1.0, 6, None)
    assert values["rmse_lateral_nm"] == pytest.approx(3.0, abs=0.01)
    assert values["bias_nm"] == pytest.approx([3.0, 0.0, 0.0], abs=0.01)
    assert main([*arguments, "--calibration", str(calibration)]) == 0
    ratio = only_object(capsys.readouterr().out)["rmse_over_crlb"]
    assert isinstance(ratio, list)
    assert 0.5 < ratio[0] < 10
    assert ratio[1] < 0.01


@TORCH_PLANS
def test_crlb_gives_lists_over_a_sequence_that_starts_with_a_minus(
    calibration: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, plot = tmp_path / "crlb.csv", tmp_path / "crlb.png"
    arguments = [
        "crlb",
        str(calibration),
        "-o",
        str(table),
        "--plot",
        str(plot),
        "--json",
        "--window-px",
        "21",
    ]
    assert main([*arguments, "--z-nm", "-100:500:300", "--photons", "1000", "--background", "10"]) == 0
    values = only_object(capsys.readouterr().out)
    assert values["z_nm"] == [-100.0, 200.0, 500.0]
    for name in ("sigma_x_nm", "sigma_y_nm", "sigma_z_nm", "sigma_photons", "sigma_background"):
        column = values[name]
        assert isinstance(column, list)
        assert all(value > 0 for value in column)
    assert table.read_text().startswith("z_nm,sigma_x_nm")
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_rerender_explains_what_was_simulated(
    calibration: Path, movie: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import numpy as np
    import tifffile

    frames, truth = movie
    model, residual = tmp_path / "model.tif", tmp_path / "residual.tif"
    arguments = ["rerender", str(truth), str(frames), str(calibration), "--json"]
    assert main([*arguments, "-o", str(model), "--residual", str(residual)]) == 0
    explained = only_object(capsys.readouterr().out)["explained_signal"]
    assert isinstance(explained, list)
    assert len(explained) == 1
    assert explained[0] > 0.95
    given = tifffile.imread(frames).astype(np.float32)
    np.testing.assert_allclose(tifffile.imread(model) + tifffile.imread(residual), given, atol=0.01)
    assert main([*arguments, "--frames", "2:3", "--roi", "2,3,20,18"]) == 0
    part = only_object(capsys.readouterr().out)
    assert part["frames"] == 2
    assert isinstance(part["explained_signal"], list)
    assert part["explained_signal"][0] > 0.95


@TORCH_PLANS
def test_a_field_out_of_scale_is_simulated_fitted_and_rendered_alike(
    calibration: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dataclasses import replace

    from smlm_bridge.io.calibration import load_calibration, save_calibration

    known = load_calibration(calibration)
    optics = replace(known.optics, field_scale=0.95, field_centre_nm=(2000.0, 2600.0))
    scaled, frames, truth = tmp_path / "scaled.psf.h5", tmp_path / "frames.tif", tmp_path / "truth.csv"
    save_calibration(scaled, replace(known, optics=optics))
    words = ["--frames", "3", "--emitters", "2", "--size-px", "40x50", "--clear-nm", "1200", "--seed", "4"]
    ranges = ["--photons", "20000:20000", "--background", "5:5", "--z-nm", "300:900"]
    assert main(["simulate", str(scaled), "-o", str(frames), "--truth", str(truth), *words, *ranges]) == 0
    capsys.readouterr()
    assert main(["rerender", str(truth), str(frames), str(scaled), "--json"]) == 0
    assert only_object(capsys.readouterr().out)["explained_signal"][0] > 0.95
    assert main(["rerender", str(truth), str(frames), str(calibration), "--json"]) == 0
    assert only_object(capsys.readouterr().out)["explained_signal"][0] < 0.9
    found = tmp_path / "found.csv"
    assert (
        main(["localize", str(frames), "-o", str(found), "--calibration", str(scaled), "--roi", "2,1,46,36"])
        == 0
    )
    capsys.readouterr()
    assert main(["evaluate", str(found), str(truth), "--json"]) == 0
    values = only_object(capsys.readouterr().out)
    assert values["matched"] >= 3
    assert values["rmse_lateral_nm"] < 30


def bright_pixel_model(calibration: Path, path: Path) -> None:
    """A model whose probability is the photo-electrons over 1000, with constants for everything else."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    numpy = pytest.importorskip("numpy")
    from smlm_bridge.io.calibration import load_calibration
    from smlm_bridge.model import ModelInfo

    weight = numpy.zeros((10, 1, 1, 1), numpy.float32)
    weight[0] = 1e-3
    bias = numpy.array([0, 12, -12, 500, 900, 5, 6, 7, 8, 9], numpy.float32)
    names = {"frames": 1, "maps": 10}
    values = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", c, "h", "w"]) for n, c in names.items()
    ]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["frames", "weight", "bias"], ["maps"])],
        "bright",
        values[:1],
        values[1:],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    info = ModelInfo("bright", "dense", "tests", load_calibration(calibration), {}, 1, 1, 1)
    helper.set_model_props(model, info.to_metadata())
    onnx.save(model, path)


@pytest.fixture
def dots(tmp_path: Path) -> Path:
    """Frames of counts 100 with one bright pixel in each: at columns 6, 9, 12 and 15, row 7."""
    import numpy as np
    import tifffile

    stack = np.full((4, 20, 24), 100, np.uint16)
    for index in range(4):
        stack[index, 7, 6 + 3 * index] = 2100
    path = tmp_path / "dots.tif"
    tifffile.imwrite(path, stack, photometric="minisblack")
    return path


def test_localize_refers_to_the_whole_movie_and_needs_no_torch(
    calibration: Path, dots: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from smlm_bridge.io.thunderstorm import read_table

    model, table = tmp_path / "bright.onnx", tmp_path / "table.csv"
    bright_pixel_model(calibration, model)
    arguments = ["localize", str(dots), "-o", str(table), "--model", str(model), "--json"]
    code = (
        f"import sys; from smlm_bridge.cli import main; code = main({[*arguments, '--frames', '2:3']!r});"
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    values = only_object(done.stdout)
    assert {key: values[key] for key in ("frames", "localizations", "failed_frames")} == {
        "frames": 2, "localizations": 2, "failed_frames": 0,
    }  # fmt: skip
    assert values["coverage"]["light"] == "unknown"  # two localizations are too few
    whole = read_table(table)
    assert list(whole["frame"]) == [1, 2]
    assert list(whole["x_nm"]) == [9.5 * 120 + 12, 12.5 * 120 + 12]
    assert list(whole["y_nm"]) == [7.5 * 120 - 12] * 2
    protocol = json.loads(table.with_suffix(".protocol.json").read_text())
    assert protocol["camera"]["offset"] == 100.0
    assert main([*arguments, "--overwrite", "--frames", "2:3", "--roi", "4,3,12,10", "--offset", "99"]) == 0
    capsys.readouterr()
    assert read_table(table)[["frame", "x_nm", "y_nm"]].equals(whole[["frame", "x_nm", "y_nm"]])


def test_localize_refuses_what_cannot_work(
    calibration: Path, dots: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import numpy as np
    import tifffile

    model = tmp_path / "bright.onnx"
    bright_pixel_model(calibration, model)
    arguments = ["localize", str(dots), "-o", str(tmp_path / "table.csv")]
    assert main(arguments) == 2
    assert "--calibration" in capsys.readouterr().err
    assert main([*arguments, "--calibration", str(calibration), "--threshold", "0.4"]) == 2
    assert main([*arguments, "--model", str(model), "--detector", "dog"]) == 2
    assert main([*arguments, "--model", "nothing"]) == 3
    assert main([*arguments, "--model", str(model), "--frames", "3:9"]) == 3
    tifffile.imwrite(tmp_path / "map.tif", np.full((5, 5), 100, np.float32))
    assert main([*arguments, "--model", str(model), "--offset", str(tmp_path / "map.tif")]) == 3
    assert "map" in capsys.readouterr().err
    assert not (tmp_path / "table.csv").exists()


def test_a_camera_map_of_the_whole_chip_is_cut_to_the_region(
    calibration: Path, dots: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import numpy as np
    import tifffile

    offset = np.full((20, 24), 100, np.float32)
    offset[7, 6] = 2100  # the bright pixel of frame 1 is only a hot one
    tifffile.imwrite(tmp_path / "map.tif", offset)
    model = tmp_path / "bright.onnx"
    bright_pixel_model(calibration, model)
    arguments = ["localize", str(dots), "-o", str(tmp_path / "table.csv"), "--model", str(model), "--json"]
    assert main([*arguments, "--offset", str(tmp_path / "map.tif"), "--roi", "4,3,12,10"]) == 0
    assert only_object(capsys.readouterr().out)["localizations"] == 3


def test_localize_draws_what_is_asked_for(
    calibration: Path, dots: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, preview, report = (tmp_path / name for name in ("bright.onnx", "preview.png", "report.html"))
    bright_pixel_model(calibration, model)
    arguments = ["localize", str(dots), "-o", str(tmp_path / "table.csv"), "--model", str(model)]
    assert main([*arguments, "--preview", str(preview), "--report", str(report)]) == 0
    assert "localizations  4" in capsys.readouterr().out
    assert preview.read_bytes().startswith(b"\x89PNG")
    assert "dots.tif" in report.read_text(encoding="utf-8")
    assert main([*arguments, "--preview", str(tmp_path / "table.csv")]) == 2  # two outputs in one file


MICROSCOPE = ["--numerical-aperture", "1.45", "--immersion-index", "1.518", "--sample-index", "1.33"]
SETUP = [
    *MICROSCOPE,
    "--wavelength-nm",
    "580",
    "--pixel-nm",
    "110",
    "--focus-nm",
    "-100",
    "--no-supercritical",
]


def test_a_mask_becomes_a_calibration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np
    import scipy.io

    from smlm_bridge.io.calibration import load_calibration

    mask, target = tmp_path / "mask.mat", tmp_path / "mask.psf.h5"
    scipy.io.savemat(mask, {"phase": np.zeros((201, 201))})
    relay = ["--slm-pixel-um", "24", "--relay-focal-mm", "150", "--magnification", "100"]
    assert main(["convert", str(mask), str(target), *SETUP, *relay, "--z-nm", "-100:900", "--json"]) == 0
    assert only_object(capsys.readouterr().out)["pupil_diameter_px"] == pytest.approx(181.27, abs=0.01)
    known = load_calibration(target)
    assert (known.optics.focus_nm, known.optics.supercritical, known.z_range_nm) == (
        -100.0,
        False,
        (-100.0, 900.0),
    )
    assert main(["convert", str(mask), str(target), "--overwrite", *SETUP]) == 3
    assert "--slm-pixel-um" in capsys.readouterr().err
    assert main(["convert", str(mask), str(target), "--overwrite", *relay]) == 2
    assert "--setup" in capsys.readouterr().err


def test_calibrate_refuses_before_it_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np
    import tifffile

    stack, target = tmp_path / "beads.tif", tmp_path / "beads.psf.h5"
    tifffile.imwrite(stack, np.zeros((7, 32, 32), np.uint16))
    arguments = ["calibrate", str(stack), "-o", str(target), *SETUP]
    assert main(arguments) == 2
    assert "--z-step-nm" in capsys.readouterr().err
    assert main([*arguments, "--z-step-nm", "-100", "--fit-slices", "0:9:1"]) == 3
    assert main([*arguments, "--z-step-nm", "-100"]) == 3
    assert "constant" in capsys.readouterr().err
    assert main(["calibrate", str(stack), "-o", str(target), "--z-step-nm", "-100"]) == 2
    assert not target.exists()


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.skipif(not DATA.is_dir(), reason=f"no microscope data at {DATA}")
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_calibrate_a_real_bead(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import tifffile

    from smlm_bridge.io.calibration import load_calibration

    stack, target, model = DATA / "beads" / "tetrapod.tif", tmp_path / "bead.psf.h5", tmp_path / "model.tif"
    optics = ["--numerical-aperture", "1.49", "--immersion-index", "1.518", "--sample-index", "1.33"]
    optics += ["--wavelength-nm", "605", "--pixel-nm", "110", "--focus-nm", "3150", "--analyser", "90"]
    relay = [
        "--slm-pixel-um",
        "24",
        "--relay-focal-mm",
        "150",
        "--magnification",
        "100",
        "--variable",
        "mask1",
    ]
    mask = ["--initial-mask", str(DATA / "masks" / "pair_tetrapod_edof.mat"), *relay]
    outputs = ["-o", str(target), "--model-stack", str(model), "--json"]
    how = ["--z-step-nm", "-100", "--fit-slices", "0:53:4"]
    assert main(["calibrate", str(stack), *outputs, *optics, *mask, *how]) == 0
    values = only_object(capsys.readouterr().out)
    assert isinstance(values["rrse"], float)
    assert values["rrse"] < 0.2
    assert values["analyser_deg"] == 90.0
    assert isinstance(values["held_out"], dict)
    assert tifffile.imread(model).shape == tifffile.imread(stack).shape
    assert load_calibration(target).pupil is not None


@pytest.mark.slow
def test_train_writes_a_model_that_localizes(
    calibration: Path, dots: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model.onnx"
    ranges = tmp_path / "ranges.toml"
    ranges.write_text(
        "photons = [2000.0, 8000.0]\ndensity_um2 = [0.05, 0.2]\n[background]\nconstant = [5.0, 20.0]\n"
    )
    arguments = [
        "train",
        str(calibration),
        "-o",
        str(model),
        "--ranges",
        str(ranges),
        "--samples",
        "16",
        "--json",
    ]
    assert main([*arguments, "--seed", "5"]) == 0
    values = only_object(capsys.readouterr().out)
    assert (values["samples"], values["seed"]) == (16, 5)
    assert isinstance(values["scores"], dict)
    assert "jaccard" in values["scores"]
    assert "# model" in model.with_suffix(".card.md").read_text()
    assert not model.with_suffix(".checkpoint").exists()
    assert main(["localize", str(dots), "-o", str(tmp_path / "t.csv"), "--model", str(model)]) == 0
    ranges.write_text("photon = [1.0, 2.0]\n")
    assert main([*arguments, "--overwrite"]) == 3
    assert "photon" in capsys.readouterr().err


@TORCH_PLANS
def test_crlb_over_photons_with_further_unknowns(
    calibration: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, plot = tmp_path / "crlb.csv", tmp_path / "crlb.png"
    arguments = ["crlb", str(calibration), "--json", "--window-px", "15", "--z-nm", "0:200:200"]
    unknown = ["--unknown-zernike", "5", "--unknown-wavelength", "--exact-emccd", "--em-gain", "300"]
    more = ["-o", str(table), "--plot", str(plot), "--photons", "500:1500:1000"]
    assert main([*arguments, *more, *unknown]) == 0
    values = only_object(capsys.readouterr().out)
    assert values["photons"] == [500.0, 500.0, 1500.0, 1500.0]
    assert len(values["sigma_zernike_5_rad"]) == len(values["sigma_wavelength_nm"]) == 4
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert main([*arguments, "--photons", "0"]) == 2
    assert "above 0" in capsys.readouterr().err
