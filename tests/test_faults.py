"""What goes wrong in long runs: kills, full disks, damaged movies, lost schedulers; no row is lost or doubled."""

import contextlib
import functools
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from smlm_bridge.cli import main
from smlm_bridge.cluster.engines import engine
from smlm_bridge.cluster.movie import localize_parts, merged
from smlm_bridge.cluster.recipe import Recipe, absolute_model
from smlm_bridge.io.images import FrameSource, read_stack
from smlm_bridge.io.model import load_model

MODEL = "tetrapod_telomere"
FRAMES = 24
NOBODY = 65534
PROGRAM = [sys.executable, "-m", "smlm_bridge"]


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """Frames that all differ."""
    sample = read_stack(Path(absolute_model(MODEL)).with_name("sample.tif"))
    turned = [np.roll(sample, 7 * i, axis=2) for i in range(-(-FRAMES // len(sample)))]
    return np.concatenate(turned)[:FRAMES]


@pytest.fixture(scope="module")
def movie(pixels, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("movie") / "movie.tif"
    tifffile.imwrite(path, pixels, imagej=True, metadata={"axes": "TYX"})
    return path


@pytest.fixture(scope="module")
def undisturbed(movie, tmp_path_factory) -> bytes:
    """The table of a run in peace, in one block."""
    output = tmp_path_factory.mktemp("peace") / "table.csv"
    assert localize(movie, output) == 0
    assert len(output.read_bytes().splitlines()) > 100
    return output.read_bytes()


def arguments(movie: Path, output: Path, *more: str) -> list[str]:
    return ["localize", str(movie), "-o", str(output), "--model", MODEL, "--threads", "1", *more]


def localize(movie: Path, output: Path, *more: str) -> int:
    return main(arguments(movie, output, "--progress", "none", *more))


def parts_of(output: Path) -> list[str]:
    return sorted(path.name for path in output.with_name(output.name + ".parts").glob("part-*"))


@contextlib.contextmanager
def started(movie: Path, output: Path, *more: str) -> Iterator["subprocess.Popen[str]"]:
    """A run of its own that has written its first parts when this returns."""
    command = [*PROGRAM, *arguments(movie, output, "--block-frames", "1", "--progress", "jsonl", *more)]
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # What a shell starts in the background ignores Ctrl-C, and so would what the tests start.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if json.loads(line)["progress"]["done"] >= 3:
                    break
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_a_run_that_was_ended_goes_on_and_loses_nothing(movie, undisturbed, tmp_path, name) -> None:
    output = tmp_path / "table.csv"
    with started(movie, output) as process:
        process.send_signal(getattr(signal, name))
        said = process.stderr.read()
        assert process.wait(30) == (-signal.SIGKILL if name == "SIGKILL" else 130)
    assert not output.exists()
    assert "Traceback" not in said
    kept = parts_of(output)
    assert 0 < len(kept) < FRAMES
    before = {part: (output.with_name("table.csv.parts") / part).stat().st_mtime_ns for part in kept}
    assert localize(movie, output, "--shard", "1/1") == 0  # the rest, still as parts
    assert len(parts_of(output)) == FRAMES
    after = {part: (output.with_name("table.csv.parts") / part).stat().st_mtime_ns for part in kept}
    assert after == before
    assert localize(movie, output, "--resume") == 0
    assert output.read_bytes() == undisturbed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table.csv", "table.protocol.json"]


def test_ctrl_c_reaches_the_processes_too(movie, undisturbed, tmp_path) -> None:
    pytest.importorskip("distributed")
    output = tmp_path / "table.csv"
    with started(movie, output, "--workers", "2") as process:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the whole group
        said = process.stderr.read()
        assert process.wait(30) == 130
    assert "Traceback" not in said
    assert not output.exists()
    deadline = time.monotonic() + 20
    while group_is_alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not group_is_alive(process.pid)
    assert localize(movie, output, "--resume") == 0
    assert output.read_bytes() == undisturbed


def test_processes_end_with_a_client_that_was_killed(movie, undisturbed, tmp_path) -> None:
    pytest.importorskip("distributed")
    output = tmp_path / "table.csv"
    with started(movie, output, "--workers", "2") as process:
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    deadline = time.monotonic() + 30
    while group_is_alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not group_is_alive(process.pid)
    assert 0 < len(parts_of(output)) < FRAMES
    assert localize(movie, output, "--resume", "--workers", "2") == 0
    assert output.read_bytes() == undisturbed


def group_is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_run_that_ended_between_table_and_protocol_is_finished(
    movie, undisturbed, tmp_path, monkeypatch
) -> None:
    output = tmp_path / "table.csv"

    def killed(*_given: Any, **_options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("smlm_bridge.io.thunderstorm.write_protocol", killed)
        assert localize(movie, output) == 130
    assert output.exists()
    assert localize(movie, output, "--resume") == 0
    assert output.read_bytes() == undisturbed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table.csv", "table.protocol.json"]


def test_a_worker_that_is_killed_is_replaced(movie, undisturbed, tmp_path) -> None:
    pytest.importorskip("distributed")
    camera = load_model(MODEL).info.calibration.camera
    recipe = Recipe((str(movie),), absolute_model(MODEL), camera, threads=1)
    alive: list[int] = []
    with engine("2") as running:
        before = list(running._client.run(os.getpid).values())

        def kill_one(done: int, _total: int) -> None:
            if done >= 2 and not alive:
                os.kill(before[0], signal.SIGKILL)
                alive.append(before[1])

        store = localize_parts(recipe, tmp_path / "p", running, block_frames=1, on_step=kill_one)
    assert alive
    table = merged(store).table
    with engine(None) as running:
        whole = merged(localize_parts(recipe, tmp_path / "w", running, block_frames=100)).table
    assert table.equals(whole)
    assert len(table) == len(undisturbed.splitlines()) - 1


def test_a_scheduler_that_goes_away_leaves_the_parts(movie, undisturbed, tmp_path, capfd) -> None:
    pytest.importorskip("distributed")
    output, file = tmp_path / "table.csv", tmp_path / "scheduler.json"
    scheduler = dask("scheduler", file, "--host", "127.0.0.1", "--port", "0", "--no-dashboard")
    scratch = ["--local-directory", str(tmp_path / "scratch")]
    worker = dask("worker", file, "--nthreads", "1", "--no-nanny", "--no-dashboard", *scratch)
    try:
        address = scheduler_address(file)
        with started(movie, output, "--workers", address) as process:
            scheduler.kill()
            said = process.stderr.read()
            assert process.wait(60) == 1
    finally:
        for each in (scheduler, worker):
            each.kill()
            each.wait()
    last = [line for line in said.splitlines() if not line.startswith('{"progress"')]
    assert len(last) == 1, said
    assert "the scheduler is gone" in last[0]
    assert "--resume" in last[0]
    assert 0 < len(parts_of(output)) < FRAMES
    assert localize(movie, output, "--resume") == 0
    assert output.read_bytes() == undisturbed


def dask(program: str, file: Path, *more: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", f"distributed.cli.dask_{program}", "--scheduler-file", str(file), *more]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def scheduler_address(file: Path) -> str:
    for _ in range(300):
        with contextlib.suppress(OSError, ValueError):
            return str(json.loads(file.read_text())["address"])
        time.sleep(0.1)
    pytest.fail("the scheduler did not start")


def test_no_scheduler_is_said_in_one_line(movie, tmp_path, capfd, monkeypatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr("smlm_bridge.cluster.dask_engine._TIMEOUT_S", 0.5)
    assert localize(movie, tmp_path / "t.csv", "--workers", "tcp://127.0.0.1:9") == 1
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1
    assert "no dask scheduler answers at tcp://127.0.0.1:9" in said[0]


@pytest.mark.parametrize("largest", [2_000, 20_000])
def test_a_full_disk_leaves_what_was_done(movie, undisturbed, tmp_path, largest) -> None:
    """A limit of the file size stands for it: the first is below a part, the second below the table."""
    output = tmp_path / "table.csv"
    assert len(undisturbed) > 20_000

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))

    command = [*PROGRAM, *arguments(movie, output, "--block-frames", "4", "--quiet", "--json")]
    ended = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, check=False)
    assert ended.returncode == 1, ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert "no room left" in json.loads(ended.stdout)["error"]
    assert len(parts_of(output)) == (0 if largest == 2_000 else 6)
    assert not list(tmp_path.rglob("*~*"))  # nothing half-written
    assert localize(movie, output, "--resume") == 0
    assert output.read_bytes() == undisturbed


@contextlib.contextmanager
def not_root() -> Iterator[None]:
    """Root may write everywhere: be nobody for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.setresgid(NOBODY, NOBODY, 0)
    os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)


def test_a_read_only_output_is_refused_before_the_work(movie, capsys) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy = folder / "movie.tif"
        copy.write_bytes(movie.read_bytes())
        copy.chmod(0o444)
        folder.chmod(0o555)
        try:
            with not_root():
                if not os.access(absolute_model(MODEL), os.R_OK):
                    pytest.skip("the shipped models cannot be read by nobody")
                began = time.process_time()
                code = localize(copy, folder / "table.csv")
                spent = time.process_time() - began
        finally:
            folder.chmod(0o755)
        assert code == 3
        assert "may not be written" in capsys.readouterr().err
        assert spent < 1.0
        assert [path.name for path in folder.iterdir()] == ["movie.tif"]


def test_a_truncated_movie_is_refused_with_what_can_be_read(pixels, tmp_path, capsys) -> None:
    path, output = tmp_path / "movie.tif", tmp_path / "table.csv"
    tifffile.imwrite(path, pixels, imagej=True, metadata={"axes": "TYX"})
    path.write_bytes(path.read_bytes()[: -9 * pixels[0].nbytes - 100])
    assert localize(path, output) == 3
    said = capsys.readouterr().err
    assert f"of {FRAMES} frame(s) are readable" in said
    readable = int(said.split("choose frames 1:")[1].split()[0])
    assert localize(path, output, "--frames", f"1:{readable}") == 0


def test_a_movie_cut_off_in_mid_run_reports_the_frames(movie, tmp_path, monkeypatch, capsys) -> None:
    path, output = tmp_path / "movie.tif", tmp_path / "table.csv"
    path.write_bytes(movie.read_bytes())
    read = FrameSource.read

    def shorten(source: FrameSource, start: int, stop: int) -> Any:
        if start == 1 and stop > 2:
            os.truncate(path, path.stat().st_size * 3 // 4)
        return read(source, start, stop)

    monkeypatch.setattr(FrameSource, "read", shorten)
    assert main(arguments(path, output, "--json")) == 0
    told = capsys.readouterr()
    assert "changed while it was localized" in told.err
    found = json.loads(told.out)
    assert sorted(map(int, found["failures"])) == list(range(FRAMES * 3 // 4 + 1, FRAMES + 1))
    assert "ends too early" in found["failures"][str(FRAMES)]


def test_a_growing_movie_gives_the_frames_it_had(pixels, undisturbed, tmp_path, monkeypatch, capsys) -> None:
    """The camera appends while the frames before are localized."""
    path, output = tmp_path / "movie.tif", tmp_path / "table.csv"
    half = FRAMES // 2
    with tifffile.TiffWriter(path) as file:
        for frame in pixels[:half]:
            file.write(frame, contiguous=False, metadata=None)
    opened = Recipe.opened

    def grow(recipe: Recipe) -> Any:
        with tifffile.TiffWriter(path, append=True) as file:
            for frame in pixels[half:]:
                file.write(frame, contiguous=False, metadata=None)
        return opened(recipe)

    with monkeypatch.context() as patch:
        patch.setattr(Recipe, "opened", grow)
        assert localize(path, output, "--block-frames", "5") == 0
    assert "changed while it was localized" in capsys.readouterr().err
    rows = [row for row in undisturbed.splitlines()[1:] if float(row.split(b",")[1]) <= half]
    assert output.read_bytes().splitlines()[1:] == rows
    assert localize(path, output, "--overwrite") == 0
    assert output.read_bytes() == undisturbed


def test_a_movie_that_changed_is_not_mixed_with_its_parts(movie, tmp_path, capsys) -> None:
    path, output = tmp_path / "movie.tif", tmp_path / "table.csv"
    path.write_bytes(movie.read_bytes())
    assert localize(path, output, "--shard", "1/2", "--block-frames", "4") == 0
    os.utime(path, ns=(0, 0))
    assert localize(path, output, "--resume") == 3
    assert "input" in capsys.readouterr().err


@pytest.mark.parametrize("more", [(), ("--workers", "2"), ("--shard", "1/1")])
def test_poisoned_frames_are_the_same_list_everywhere(pixels, tmp_path, capsys, more) -> None:
    """One frame not finite, one whose compressed bytes are damaged."""
    if "--workers" in more:
        pytest.importorskip("distributed")
    path, output = tmp_path / "movie.tif", tmp_path / "table.csv"
    frames = pixels[:8].astype(np.float32)
    frames[2, 5, 5] = np.inf
    tifffile.imwrite(path, frames, compression="zlib", photometric="minisblack")
    with tifffile.TiffFile(path) as file:
        page = file.pages[5]
        middle = page.dataoffsets[0] + page.databytecounts[0] // 2
    data = bytearray(path.read_bytes())
    data[middle : middle + 64] = bytes(64)
    path.write_bytes(bytes(data))
    assert localize(path, output, "--block-frames", "3", "--quiet", *more) == 0
    capsys.readouterr()
    assert main(arguments(path, output, "--resume", "--json", "--quiet")) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["failed_frames"] == 2
    assert sorted(found["failures"]) == ["3", "6"]
    assert "finite" in found["failures"]["3"]
    assert "damaged" in found["failures"]["6"]
    seen = {int(float(row.split(b",")[1])) for row in output.read_bytes().splitlines()[1:]}
    assert seen == {1, 2, 4, 5, 7, 8}


@pytest.mark.parametrize("option", ["--resume", "--overwrite"])
def test_a_second_run_of_the_same_output_is_refused(movie, undisturbed, tmp_path, capsys, option) -> None:
    output = tmp_path / "table.csv"
    with started(movie, output) as process:
        os.kill(process.pid, signal.SIGSTOP)
        assert localize(movie, output, option) == 3
        assert "another run is writing" in capsys.readouterr().err
        os.kill(process.pid, signal.SIGCONT)
        process.stderr.read()
        assert process.wait(60) == 0
    assert output.read_bytes() == undisturbed


@pytest.mark.filterwarnings("always")  # each bad file is told when it is met
@pytest.mark.parametrize("more", [(), ("--workers", "2")])
def test_a_bad_file_of_a_folder_does_not_stop_the_rest(pixels, tmp_path, capsys, more) -> None:
    if more:
        pytest.importorskip("distributed")
    movies = tmp_path / "movies"
    movies.mkdir()
    for name in ("a", "b", "d"):
        tifffile.imwrite(movies / f"{name}.tif", pixels[:2], imagej=True, metadata={"axes": "TYX"})
    (movies / "b.tif").write_bytes((movies / "b.tif").read_bytes()[:500])
    (movies / "c.tif").write_bytes(b"")
    command = ["localize", str(movies), "-o", str(tmp_path / "tables"), "--model", MODEL, "--threads", "1"]
    assert main([*command, "--json", "--quiet", "--progress", "none", *more]) == 1
    found = json.loads(capsys.readouterr().out)
    assert sorted(Path(name).name for name in found["failed_files"]) == ["b.tif", "c.tif"]
    assert sorted(Path(name).name for name in found["tables"]) == ["a.csv", "d.csv"]
    tables = {path.name for path in (tmp_path / "tables").iterdir()}
    assert tables == {f"{name}.{kind}" for name in "ad" for kind in ("csv", "protocol.json")}
    tifffile.imwrite(movies / "b.tif", pixels[:2], imagej=True, metadata={"axes": "TYX"})
    (movies / "c.tif").unlink()
    assert main([*command, "--resume", "--json", "--quiet", *more]) == 0
    again = json.loads(capsys.readouterr().out)
    assert len(again["tables"]) == 3
