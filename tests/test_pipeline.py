"""Pipelines: strict files, skipping, resuming, bad files, folders that fill up."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from smlm_bridge.cli import main
from smlm_bridge.errors import InputRejected
from smlm_bridge.io.thunderstorm import read_table, write_table
from smlm_bridge.pipeline import Step, arrivals, fingerprint, load_pipeline, locked, process

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "models" / "tetrapod_storm" / "sample.tif"
STEPS = """
[[steps]]
merge = {distance-nm = 60}
[[steps]]
filter = {expression = "uncertainty_xy < 20"}
[[steps]]
render = {pixel-nm = 40, output = "picture.png"}
"""


def table(path: Path, seed: int = 1) -> None:
    draw = np.random.default_rng(seed)
    place = np.repeat(draw.uniform(200, 2800, (30, 2)), 2, axis=0) + draw.normal(0, 4, (60, 2))
    frame = np.repeat(np.arange(0, 90, 3), 2) + np.tile([0, 1], 30)
    locs = pd.DataFrame({"frame": frame, "x_nm": place[:, 0], "y_nm": place[:, 1]})
    write_table(path, locs.assign(photons=900.0, uncertainty_xy_nm=draw.uniform(5, 25, 60)), overwrite=True)


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    table(tmp_path / "in" / "a.csv", 1)
    table(tmp_path / "in" / "b.csv", 2)
    (tmp_path / "p.toml").write_text('input = "in"\noutput = "out"\n' + STEPS)
    return tmp_path / "p.toml"


Go = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def go(capsys: pytest.CaptureFixture[str]) -> Go:
    def run(*arguments: object) -> tuple[int, dict[str, Any], str]:
        code = main(["run", *map(str, arguments), "--json"])
        captured = capsys.readouterr()
        return code, json.loads(captured.out), captured.err

    return run


def test_every_file_goes_through_every_step_once(pipeline: Path, go: Go) -> None:
    code, values, said = go(pipeline)
    assert (code, values["files"], values["done"], values["skipped"]) == (0, 2, 2, 0)
    assert "a.csv (1/2): 1-merge" in said
    out = pipeline.parent / "out"
    assert (out / "b.csv" / "picture.png").read_bytes().startswith(b"\x89PNG")
    filtered = read_table(out / "a.csv" / "2-filter.csv")
    assert 0 < len(filtered) <= len(read_table(out / "a.csv" / "1-merge.csv")) == 30
    assert filtered["uncertainty_xy_nm"].max() < 20
    record = json.loads((out / "a.csv" / "pipeline.json").read_text())
    assert record["1-merge"]["summary"]["localizations_out"] == 30
    code, values, _ = go(pipeline)
    assert (code, values["done"], values["skipped"]) == (0, 0, 2)


def test_only_what_changed_is_done_again(pipeline: Path, go: Go) -> None:
    go(pipeline)
    out = pipeline.parent / "out"
    table(pipeline.parent / "in" / "b.csv", 3)
    _, values, _ = go(pipeline)
    assert values["steps"]["a.csv"]["ran"] == []
    assert values["steps"]["b.csv"]["ran"] == ["1-merge", "2-filter", "3-render"]
    pipeline.write_text(pipeline.read_text().replace("< 20", "< 15"))
    _, values, _ = go(pipeline)
    assert values["steps"]["a.csv"] == {"ran": ["2-filter", "3-render"], "skipped": ["1-merge"]}
    (out / "a.csv" / "picture.png").unlink()
    (out / "b.csv" / "1-merge.csv").write_text("edited")
    _, values, _ = go(pipeline)
    assert values["steps"]["a.csv"]["ran"] == ["3-render"]
    assert values["steps"]["b.csv"]["ran"] == ["1-merge"]  # it gives the same table again
    _, values, _ = go(pipeline, "--overwrite")
    assert values["done"] == 2


def test_another_version_does_everything_again(
    pipeline: Path, go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(pipeline)
    monkeypatch.setattr("smlm_bridge.pipeline.__version__", "another")
    assert go(pipeline)[1]["done"] == 2


def test_a_bad_file_is_listed_at_the_end(pipeline: Path, go: Go, capsys: pytest.CaptureFixture[str]) -> None:
    (pipeline.parent / "in" / "aa.csv").write_text("frame,x\n")
    code, values, _ = go(pipeline)
    assert (code, values["done"], values["failed"]) == (1, 2, 1)
    assert "aa.csv" in values["failures"]["aa.csv"]
    assert main(["run", str(pipeline)]) == 1
    assert "failed: aa.csv: " in capsys.readouterr().out.splitlines()[-1]
    table(pipeline.parent / "in" / "aa.csv")
    assert go(pipeline)[0] == 0


def test_input_and_output_of_the_command_line_win(pipeline: Path, tmp_path: Path, go: Go) -> None:
    pattern = str(tmp_path / "in" / "b*.csv")
    code, values, _ = go(pipeline, "--input", pattern, "-o", tmp_path / "other")
    assert (code, values["files"]) == (0, 1)
    assert (tmp_path / "other" / "b.csv" / "picture.png").exists()
    assert not (tmp_path / "out").exists()
    assert go(pipeline, "--input", tmp_path / "none")[0] == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("distance-nm = 60", "distance_nm = 60"), "Did you mean 'distance-nm'"),
        (("merge =", "marge ="), "Did you mean 'merge'"),
        (('input = "in"', 'inputs = "in"'), "inputs"),
        (("distance-nm = 60", "distance-nm = true"), "takes a value"),
        (("distance-nm = 60", "distance-nm = 'far'"), "far"),
        (("distance-nm = 60", "distance-nm = [1, 2]"), "one value"),
        (("distance-nm = 60", "json = true"), "json"),
        (("pixel-nm = 40", "z-color = 3"), "true or false"),
        (("pixel-nm = 40", "z-nm = 110"), "quotes"),
        (('"picture.png"', '"../picture.png"'), "without a folder"),
        (('"picture.png"', '"1-merge.csv"'), "two steps write"),
        (("[[steps]]", "[steps]"), "not TOML"),
    ],
)
def test_a_pipeline_with_a_slip_is_refused_before_any_work(
    pipeline: Path, go: Go, change: tuple[str, str], said: str
) -> None:
    pipeline.write_text(pipeline.read_text().replace(*change, 1))
    code, values, _ = go(pipeline)
    assert code == 3
    assert said in values["error"]
    assert not (pipeline.parent / "out").exists()


def test_yaml_says_the_same(pipeline: Path, go: Go) -> None:
    pytest.importorskip("yaml", reason="PyYAML is not installed")
    twin = pipeline.with_suffix(".yaml")
    twin.write_text(
        "input: in\noutput: out\nsteps:\n  - merge: {distance-nm: 60}\n"
        "  - filter: {expression: uncertainty_xy < 20}\n  - render: {pixel-nm: 40, output: picture.png}\n"
    )
    assert load_pipeline(twin) == load_pipeline(pipeline)
    go(pipeline)
    assert go(twin)[1]["skipped"] == 2
    for text in (
        "!!python/object/apply:os.system ['true']",
        "a: [",
        "- 1",
        "",
        "steps: []\ninput: a\noutput: b",
    ):
        twin.write_text(text)
        with pytest.raises(InputRejected):
            load_pipeline(twin)
    with pytest.raises(InputRejected, match=r"\.toml"):
        load_pipeline(pipeline.rename(pipeline.with_suffix(".ini")))


def test_the_engine_goes_on_after_an_interruption(tmp_path: Path) -> None:
    source = tmp_path / "movie"
    source.write_text("frames")
    calls: list[str] = []
    parts: list[bool] = []

    def first(given: Path, folder: Path) -> dict[str, object]:
        calls.append("first")
        (folder / "1-first.txt").write_text(given.read_text().upper())
        return {}

    def second(given: Path, folder: Path) -> dict[str, object]:
        calls.append("second")
        kept = folder / "2-second.txt.parts"
        parts.append(kept.exists())
        kept.mkdir(exist_ok=True)
        (folder / ".0123abcd~2-second.txt").write_text("half")
        if len(calls) < 3:
            raise KeyboardInterrupt
        kept.rmdir()
        (folder / ".0123abcd~2-second.txt").unlink()
        (folder / "2-second.txt").write_text(given.read_text() + "!")
        return {}

    def steps(option: int) -> list[Step]:
        return [
            Step("1-first", ("1-first.txt",), True, "a", first),
            Step("2-second", ("2-second.txt",), True, fingerprint(option), second),
        ]

    folder = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        process(source, folder, steps(1))
    outcome = process(source, folder, steps(1))
    assert (outcome.ran, outcome.skipped) == (("2-second",), ("1-first",))
    assert calls == ["first", "second", "second"]
    assert parts == [False, True]  # what it had begun in the same state was there to go on with
    assert (folder / "2-second.txt").read_text() == "FRAMES!"
    (folder / "2-second.txt.parts").mkdir()
    process(source, folder, steps(2))
    assert parts[-1] is False  # in another state it was not
    assert sorted(path.name for path in folder.iterdir()) == ["1-first.txt", "2-second.txt", "pipeline.json"]


def test_one_run_at_a_time(tmp_path: Path) -> None:
    pytest.importorskip("fcntl", reason="no file locks on this system")
    with (
        locked(tmp_path / "out"),
        pytest.raises(InputRejected, match="another run"),
        locked(tmp_path / "out"),
    ):
        pass


def test_a_file_that_grows_is_waited_for(tmp_path: Path) -> None:
    now = 0.0
    events: list[tuple[float, str]] = []
    growing = tmp_path / "growing"

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        if now <= 6:
            with growing.open("a") as file:
                file.write("frame")

    def find() -> list[Path]:
        return sorted(tmp_path.iterdir())

    (tmp_path / "done").write_text("frames")
    found = arrivals(find, settle_s=3, poll_s=1, idle_s=20, clock=lambda: now, sleep=sleep)
    for path in found:
        events.append((now, path.name))
        if path.name == "growing" and len(events) == 2:
            growing.write_text("written again")
    assert events == [(3, "done"), (9, "growing"), (13, "growing")] or events == [
        (3, "done"),
        (9, "growing"),
        (12, "growing"),
    ]
    assert now < 40


def test_watch_takes_what_arrives_and_ends_when_nothing_does(pipeline: Path, tmp_path: Path) -> None:
    (tmp_path / "in" / "b.csv").rename(tmp_path / "b.csv")
    command = [sys.executable, "-m", "smlm_bridge", "run", str(pipeline), "--watch", "--settle-s", "0.3"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [*command, "--json"], env=environment, stdout=subprocess.PIPE, text=True
    ) as watching:
        picture = tmp_path / "out" / "a.csv" / "picture.png"
        _wait(picture.exists)
        (tmp_path / "b.csv").rename(tmp_path / "in" / "b.csv")
        _wait((tmp_path / "out" / "b.csv" / "picture.png").exists)
        watching.send_signal(signal.SIGTERM)
        said, _ = watching.communicate(timeout=60)
    assert watching.returncode == 130
    assert "interrupted" in said
    assert not list((tmp_path / "out").rglob(".*~*"))


def _wait(ready: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.skipif(not SAMPLE.exists(), reason="the sample of the shipped model is not here")
def test_a_movie_becomes_a_table_and_a_page(tmp_path: Path, go: Go) -> None:
    text = f'input = {str(SAMPLE)!r}\noutput = "out"\n[[steps]]\nlocalize = {{model = "tetrapod_storm"}}\n'
    (tmp_path / "p.toml").write_text(text + "[[steps]]\nreport = {}\n")
    code, values, said = go(tmp_path / "p.toml", "--progress", "jsonl")
    assert code == 0, values
    assert '"what": "files"' in said
    assert (tmp_path / "out" / "sample.tif" / "2-report.html").exists()
    assert go(tmp_path / "p.toml")[1]["skipped"] == 1
