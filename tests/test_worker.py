"""The worker's protocol: messages as Appose has them, a clean stdout, failures with their reason, cancel."""

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smlm_bridge.bridge.worker import Request, parse_request, serve, words_of
from smlm_bridge.bridge.worker_child import as_file
from smlm_bridge.errors import InputRejected

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "models" / "tetrapod_telomere" / "sample.tif"

#: A stand-in for the program: what a verb may do, without the time that importing a real one takes.
PROGRAM = """
import json, os, sys, time
from smlm_bridge.bridge.worker_child import run_task

def main(words):
    verb, words = words[0], words[3:]
    print("a library prints", file=sys.stderr)
    if verb == "slow":
        for number in range(600):
            line = {"progress": {"done": number, "total": 600, "what": "waiting"}}
            print(json.dumps(line), file=sys.stderr, flush=True)
            try:
                time.sleep(0.05)
            except KeyboardInterrupt:
                print(json.dumps({"error": "interrupted", "exit_code": 130}))
                return 130
    if verb == "stubborn":
        while True:
            try:  # the file, too: who waits for it may interrupt at once
                open(words[0], "w").close()
                time.sleep(60)
            except KeyboardInterrupt:
                pass
    if verb == "crash":
        os.abort()
    if verb == "refuse":
        print(json.dumps({"error": "give a number", "exit_code": 3}))
        return 3
    print(json.dumps({"words": words, "stdin": sys.stdin.read()}))
    return 4 if verb == "complain" else 0

sys.exit(run_task(main))
"""


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    program = tmp_path / "a program.py"
    program.write_text(PROGRAM)
    return (sys.executable, str(program))


def execute(task: str, verb: str, *arguments: object) -> str:
    inputs = {"arguments": list(arguments)}
    return json.dumps({"task": task, "requestType": "EXECUTE", "script": verb, "inputs": inputs}) + "\n"


def answers(responses: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in responses.getvalue().splitlines()]


def last(messages: list[dict[str, Any]], task: str) -> dict[str, Any]:
    return [message for message in messages if message["task"] == task][-1]


def test_requests_become_command_lines() -> None:
    inputs = {
        "arguments": ["a b.tif", "-v"], "model": "m", "camera_offset": -1.5, "overwrite": True, "resume": False,
        "roi": None, "fiducial": ["1,2", "3,4"], "frames": 3,
    }  # fmt: skip
    assert words_of(inputs) == (
        "a b.tif", "-v", "--model=m", "--camera-offset=-1.5", "--overwrite", "--fiducial=1,2", "--fiducial=3,4",
        "--frames=3",
    )  # fmt: skip
    line = json.dumps(
        {"task": "t", "requestType": "EXECUTE", "script": "crlb", "inputs": None, "queue": "main"}
    )
    assert parse_request(line) == Request("t", "EXECUTE", "crlb", ())
    assert parse_request('{"task": "t", "requestType": "CANCEL"}') == Request("t", "CANCEL")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("hello", "one JSON object"),
        ("[" * 100_000, "one JSON object"),
        ("1" * 5_000, "one JSON object"),
        ("[1]", "task"),
        ('{"task": 3, "requestType": "CANCEL"}', "task"),
        ('{"task": "t", "requestType": "STOP"}', "STOP"),
        ('{"task": "t", "requestType": "EXECUTE", "script": "--help"}', "verb"),
        ('{"task": "t", "requestType": "EXECUTE", "script": "x", "inputs": [1]}', "inputs"),
        ('{"task": "t", "requestType": "EXECUTE", "script": "x", "inputs": {"arguments": "y"}}', "list"),
        ('{"task": "t", "requestType": "EXECUTE", "script": "x", "inputs": {"json": true}}', "--json"),
        ('{"task": "t", "requestType": "EXECUTE", "script": "x", "inputs": {"a": {"b": 1}}}', "ndarray"),
    ],
)
def test_wrong_requests_are_named(line: str, reason: str) -> None:
    with pytest.raises(InputRejected, match=reason):
        parse_request(line)
    responses = io.StringIO()
    serve([line + "\n"], responses, child=("nobody",))
    (answer,) = answers(responses)
    assert answer["responseType"] == "FAILURE"
    assert reason in answer["error"]


def test_every_task_answers_for_itself(child: tuple[str, ...]) -> None:
    responses = io.StringIO()
    requests = [
        execute("good", "echo", "a b", "µ"), execute("bad", "refuse"), execute("dead", "crash"),
        execute("doctor", "complain"), "\n",
    ]  # fmt: skip
    assert serve(requests, responses, child=child) == 4
    messages = answers(responses)
    first = [message for message in messages if message["task"] == "good"]
    assert [message["responseType"] for message in first] == ["LAUNCH", "UPDATE", "COMPLETION"]
    assert first[1]["message"] == "a library prints"
    assert first[2]["outputs"] == {"words": ["a b", "µ"], "stdin": ""}
    bad = last(messages, "bad")
    assert (bad["responseType"], bad["error"], bad["exit_code"]) == ("FAILURE", "give a number", 3)
    assert bad["log"] == ["a library prints"]
    dead = last(messages, "dead")
    assert dead["responseType"] == "FAILURE"
    assert "ended" in dead["error"]
    assert last(messages, "doctor")["outputs"]["exit_code"] == 4


def test_a_name_is_free_again_when_its_task_has_ended(child: tuple[str, ...]) -> None:
    responses = io.StringIO()

    def requests() -> Iterator[str]:
        for wanted in (1, 2):
            yield execute("t", "echo", str(wanted))
            while responses.getvalue().count("COMPLETION") < wanted:
                time.sleep(0.01)
            time.sleep(0.05)  # its thread ends after its answer

    assert serve(requests(), responses, child=child) == 2


def test_a_wrong_byte_spoils_its_own_message_only() -> None:
    lines = b'\xff{"task": "a"}\n' + execute("b", "no-such").encode()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii:strict"}
    command = [sys.executable, "-m", "smlm_bridge", "worker"]
    ended = subprocess.run(command, input=lines, capture_output=True, env=environment, timeout=120)
    messages = [json.loads(line) for line in ended.stdout.splitlines()]
    assert ended.returncode == 0
    assert messages[0]["responseType"] == "FAILURE"
    assert last(messages, "b")["exit_code"] == 2


def test_python_that_cannot_start_is_a_failure() -> None:
    responses = io.StringIO()
    serve([execute("t", "echo")], responses, child=("/nobody/python",))
    assert "cannot be started" in last(answers(responses), "t")["error"]


def until(responses: io.StringIO, what: str) -> None:
    while what not in responses.getvalue():
        time.sleep(0.01)


def test_cancel_interrupts_the_verb(child: tuple[str, ...]) -> None:
    responses = io.StringIO()

    def requests() -> Iterator[str]:
        yield execute("t", "slow")
        until(responses, '"current"')
        yield '{"task": "t", "requestType": "CANCEL"}\n'
        yield '{"task": "nobody", "requestType": "CANCEL"}\n'

    began = time.monotonic()
    serve(requests(), responses, child=child)
    assert time.monotonic() - began < 25
    messages = answers(responses)
    assert [m["responseType"] for m in messages if m["responseType"] != "UPDATE"] == ["LAUNCH", "CANCELATION"]
    step = next(message for message in messages if message.get("maximum"))
    assert (step["message"], step["current"], step["maximum"]) == ("waiting", 0, 600)


def test_what_does_not_end_is_killed_and_swept(child: tuple[str, ...], tmp_path: Path) -> None:
    target = tmp_path / "table.csv"
    temporary, other = tmp_path / ".0123abcd~table.csv", tmp_path / ".0123abcd~other.csv"
    other.touch()
    responses = io.StringIO()

    def requests() -> Iterator[str]:
        yield execute("t", "stubborn", str(temporary), "-o", str(target))
        while not temporary.exists():
            time.sleep(0.01)
        parts = tmp_path / "table.csv.parts"
        parts.mkdir()
        (parts / "000000.parquet").touch()
        yield '{"task": "t", "requestType": "CANCEL"}\n'

    serve(requests(), responses, child=child, grace_s=0.5)
    assert last(answers(responses), "t")["responseType"] == "CANCELATION"
    assert sorted(path.name for path in tmp_path.iterdir()) == [other.name, "a program.py"]


def test_nobody_listens_any_more(child: tuple[str, ...]) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            if "current" in text:
                raise BrokenPipeError
            return super().write(text)

    began = time.monotonic()
    serve([execute("t", "slow")], Gone(), child=child)
    assert time.monotonic() - began < 25


def test_an_interrupt_of_the_worker_stops_its_tasks(child: tuple[str, ...]) -> None:
    responses = io.StringIO()

    def requests() -> Iterator[str]:
        yield execute("t", "slow")
        until(responses, '"current"')
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        serve(requests(), responses, child=child)
    assert last(answers(responses), "t")["responseType"] == "CANCELATION"


@pytest.mark.parametrize(
    ("shape", "dtype"), [((3, 4, 5), "uint16"), ((4, 5), "float32"), ((2, 2, 4, 5), "int16")]
)
def test_arrays_in_shared_memory_become_files(tmp_path: Path, shape: tuple[int, ...], dtype: str) -> None:
    import tifffile

    shared_memory = pytest.importorskip("multiprocessing.shared_memory")
    wanted = np.random.default_rng(3).integers(0, 900, shape).astype(dtype)
    memory = shared_memory.SharedMemory(create=True, size=wanted.nbytes)
    try:
        np.ndarray(shape, dtype, buffer=memory.buf)[:] = wanted
        described = {"dtype": dtype, "shape": shape, "shm": {"name": memory.name, "rsize": wanted.nbytes}}
        code = (
            "import json, sys; from pathlib import Path; from smlm_bridge.bridge.worker_child import as_file;"
            "as_file(json.loads(sys.argv[1]), Path(sys.argv[2]))"
        )
        # In another process, as it is: the memory must be there after that one ends.
        command = [sys.executable, "-c", code, json.dumps(described), str(tmp_path / "a.tif")]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=120)
        assert np.array_equal(tifffile.imread(tmp_path / "a.tif"), wanted)
        assert np.array_equal(np.ndarray(shape, dtype, buffer=memory.buf), wanted)
        with pytest.raises(InputRejected, match="bytes"):
            as_file({**described, "shape": (500, *shape[1:])}, tmp_path / "b.tif")
    finally:
        memory.close()
        memory.unlink()


@pytest.mark.parametrize(
    "wrong",
    [
        {"shape": (3,)}, {"dtype": "complex64"}, {"dtype": "S3"}, {"shm": {}}, {"shape": (0, 4)},
        {"shape": (2**40, 2**40)}, {"shape": (10**30, 2)}, {"shape": "44"}, {"shape": (4.5, 4)},
        {"shape": (float("inf"), 4)}, {"shape": None}, {"dtype": None}, {"dtype": "longdouble"},
    ],
)  # fmt: skip
def test_what_is_no_image_is_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    array = {"dtype": "uint8", "shape": (4, 4), "shm": {"name": "smlm-nobody"}}
    with pytest.raises(InputRejected):
        as_file({**array, **wrong}, tmp_path / "a.tif")
    with pytest.raises(InputRejected, match="no shared memory"):
        as_file(array, tmp_path / "a.tif")


def test_an_appose_service_drives_the_real_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    appose = pytest.importorskip("appose", reason="the PyPI package appose is not installed")
    import tifffile
    from appose.service import Service, TaskException

    from smlm_bridge.io.thunderstorm import read_table

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    frames = tifffile.imread(SAMPLE)
    events: list[Any] = []
    service = Service(tmp_path, None, sys.executable, "-m", "smlm_bridge", "worker")
    pixels = appose.NDArray(str(frames.dtype), list(frames.shape))
    try:
        pixels.ndarray()[:] = frames
        inputs = {
            "arguments": [pixels],
            "model": "tetrapod_telomere",
            "output": str(tmp_path / "a table.csv"),
        }
        task = service.task("localize", inputs)
        task.listen(events.append)
        wrong = service.task(
            "localize", {"arguments": ["none.tif"], "model": "tetrapod_telomere", "output": "x.csv"}
        )
        task.start()
        wrong.start()
        task.wait_for()
        with pytest.raises(TaskException, match=r"none\.tif does not exist"):
            wrong.wait_for()
        assert task.outputs["localizations"] == len(read_table(tmp_path / "a table.csv")) == 48
        assert any(event.maximum == len(frames) for event in events)
    finally:
        service.close()
        pixels.shm.dispose()
    assert service.wait_for() == 0
    assert not service.invalid_lines()
    for stream in (service._process.stdout, service._process.stderr):
        stream.close()  # the client leaves that to the garbage collector
