"""Queues of a cluster: the scripts of the docs, dask's jobs, and a SLURM of one machine (marked slow)."""

import contextlib
import functools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tifffile

from smlm_bridge.calibration import Calibration
from smlm_bridge.cli import main
from smlm_bridge.cluster.recipe import absolute_model
from smlm_bridge.errors import InputRejected
from smlm_bridge.io.calibration import save_calibration
from smlm_bridge.io.images import read_stack

MODEL = "tetrapod_telomere"
ROOT = Path(__file__).resolve().parents[1]
FRAMES = 12
LONGEST_S = 300
DAEMONS = ("munged", "slurmctld", "slurmd")
TOOLS = ("sbatch", "squeue", "sinfo")


def script_of_the_docs(job_name: str) -> str:
    """The batch script of this name on the page about clusters."""
    page = (ROOT / "docs" / "how-to" / "cluster.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```text\n(#!/bin/bash\n[\s\S]*?)^```$", page, re.M)
    (found,) = [block for block in blocks if f"--job-name={job_name}\n" in block]
    return str(found)


def commands_of_the_docs() -> str:
    """How the page submits the array and what comes behind it."""
    page = (ROOT / "docs" / "how-to" / "cluster.md").read_text(encoding="utf-8")
    (found,) = re.findall(r"^```text\n(array=\$\(sbatch [\s\S]*?)^```$", page, re.M)
    return str(found)


@pytest.fixture(scope="module")
def movie(tmp_path_factory) -> Path:
    sample = read_stack(Path(absolute_model(MODEL)).with_name("sample.tif"))
    turned = [np.roll(sample, 7 * i, axis=2) for i in range(-(-FRAMES // len(sample)))]
    path = tmp_path_factory.mktemp("movie") / "movie.tif"
    tifffile.imwrite(path, np.concatenate(turned)[:FRAMES], imagej=True, metadata={"axes": "TYX"})
    return path


@pytest.fixture(scope="module")
def plain(movie, tmp_path_factory) -> bytes:
    """The table of one process."""
    return localized(movie, tmp_path_factory.mktemp("plain") / "table.csv")


def localized(movie: Path, output: Path, *more: str) -> bytes:
    given = ["localize", str(movie), "-o", str(output), "--model", MODEL, "--threads", "1", "--quiet"]
    assert main([*given, *more]) == 0
    return output.read_bytes()


@pytest.fixture
def programs(tmp_path, monkeypatch) -> Path:
    """A folder on the PATH with ``smlm-bridge`` and ``python`` of this interpreter."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for name, arguments in (("smlm-bridge", "-m smlm_bridge "), ("python", "")):
        executable(folder / name, f'exec "{sys.executable}" {arguments}"$@"\n')
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return folder


def executable(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}")
    path.chmod(0o755)


def configuration(system: str, folder: Path, *, jobs: int = 2, **more: str) -> Path:
    """What a user writes for dask-jobqueue, for jobs on this machine."""
    path = folder / f"{system}.yaml"
    values = {
        "jobs": jobs,
        "cores": 1,
        "processes": 1,
        "memory": "2GB",
        "interface": "lo",
        "local-directory": str(folder / "scratch"),
        "log-directory": str(folder / "logs"),
        "scheduler-options": {"dashboard_address": "127.0.0.1:0"},
        **more,
    }
    path.write_text(json.dumps({"jobqueue": {system: values}}))  # JSON is YAML
    (folder / "logs").mkdir(exist_ok=True)
    return path


# --- queues that are only played -----------------------------------------------------------------------------

# Each starts the job as a process and says its number as the real one does.
SUBMITS = {
    "pbs": ("qsub", 'sh "$1" > "$1.log" 2>&1 &\necho "71.server"\n', "qdel", "#PBS -q short"),
    "sge": (
        "qsub",
        'sh "$1" > "$1.log" 2>&1 &\necho "Your job 72 has been submitted"\n',
        "qdel",
        "#$ -q short",
    ),
    "lsf": (
        "bsub",
        'script=$(mktemp)\ncat > "$script"\nsh "$script" > "$script.log" 2>&1 &\n'
        'echo "Job <73> is submitted to queue <short>."\n',
        "bkill",
        "#BSUB -q short",
    ),
}


@pytest.mark.parametrize("queue", sorted(SUBMITS))
def test_jobs_are_written_as_the_queue_wants_them(queue, tmp_path, monkeypatch) -> None:
    """The configuration becomes a job of that queue; nothing is submitted."""
    dask_jobqueue = pytest.importorskip("dask_jobqueue")
    from smlm_bridge.cluster import dask_engine

    scripts, scaled = [], []
    kind = getattr(dask_jobqueue, f"{queue.upper()}Cluster")

    class Unsubmitted(kind):  # type: ignore[misc, valid-type]
        def scale(self, n: int | None = None, jobs: int = 0, **_more: object) -> None:
            scripts.append(self.job_script())
            scaled.append(jobs)

    monkeypatch.setattr(dask_jobqueue, f"{queue.upper()}Cluster", Unsubmitted)
    walltime = "00:10" if queue == "lsf" else "00:10:00"
    more = {"queue": "short", "walltime": walltime, "lsf-units": "mb"}
    file = configuration(queue, tmp_path, jobs=3, **more)
    with dask_engine.queued(queue, str(file)):
        pass
    assert scaled == [3, 0]  # and none when all is done
    assert SUBMITS[queue][3] in scripts[0]
    assert "--nthreads 1" in scripts[0]
    assert "distributed.cli.dask_worker" in scripts[0]
    assert walltime in scripts[0]


@pytest.mark.slow
@pytest.mark.parametrize("queue", sorted(SUBMITS))
def test_a_queue_that_is_played_makes_the_same_table(queue, movie, plain, programs, tmp_path) -> None:
    pytest.importorskip("dask_jobqueue")
    submit, text, cancel, _ = SUBMITS[queue]
    executable(programs / submit, text)
    executable(programs / cancel, "exit 0\n")
    more = {"queue": "short", "walltime": "00:10" if queue == "lsf" else "00:10:00", "lsf-units": "mb"}
    file = configuration(queue, tmp_path, **more)
    table = localized(movie, tmp_path / "t.csv", "--workers", f"{queue}:{file}", "--block-frames", "2")
    assert table == plain


def test_a_queue_without_a_configuration_is_refused_in_one_line(movie, tmp_path, capsys) -> None:
    pytest.importorskip("dask_jobqueue")
    given = ["localize", str(movie), "-o", str(tmp_path / "t.csv"), "--model", MODEL]
    assert main([*given, "--workers", f"slurm:{tmp_path / 'none.yaml'}"]) == InputRejected.exit_code
    assert "none.yaml of the queue 'slurm' does not exist" in capsys.readouterr().err
    (tmp_path / "empty.yaml").write_text("{}")
    assert main([*given, "--workers", f"slurm:{tmp_path / 'empty.yaml'}"]) == InputRejected.exit_code
    assert "cores" in capsys.readouterr().err


# --- the scripts of the docs, without a queue ----------------------------------------------------------------


def run_array(script: str, folder: Path, tasks: int) -> None:
    """What a queue does with an array: the script once for each number."""
    for number in range(1, tasks + 1):
        environment = {**os.environ, "SLURM_ARRAY_TASK_ID": str(number), "SLURM_ARRAY_TASK_COUNT": str(tasks)}
        done = subprocess.run(
            ["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_the_array_of_the_docs_makes_the_same_table(movie, plain, programs, tmp_path) -> None:
    (tmp_path / "movie.tif").symlink_to(movie)
    run_array(script_of_the_docs("localize"), tmp_path, 2)
    assert not (tmp_path / "movie.csv").exists()
    assert localized(tmp_path / "movie.tif", tmp_path / "movie.csv", "--resume") == plain


@pytest.fixture
def sweep(tmp_path, gaussian_calibration: Calibration) -> Path:
    """What the sweep of the docs reads: a calibration, and a line of options for each training."""
    pytest.importorskip("torch")
    save_calibration(tmp_path / "microscope.psf.h5", gaussian_calibration)
    lines = [f"--system single --box 13 --samples {count} --threads 1\n" for count in (256, 512)]
    (tmp_path / "sweep.txt").write_text("".join(lines))
    return tmp_path


def check_sweep(folder: Path) -> None:
    for number, count in ((1, 256), (2, 512)):
        told = json.loads((folder / "sweep" / f"{number}.json").read_text())
        assert (told["samples"], told["seed"]) == (count, number)
        assert (folder / "sweep" / f"{number}.onnx").is_file()


@pytest.mark.slow
def test_the_sweep_of_the_docs_trains_each_line(sweep, programs) -> None:
    script = script_of_the_docs("sweep")
    run_array(script, sweep, 2)
    check_sweep(sweep)
    before = {path: path.stat().st_mtime_ns for path in (sweep / "sweep").iterdir()}
    run_array(script, sweep, 2)  # a queue may start a task twice
    assert {path: path.stat().st_mtime_ns for path in (sweep / "sweep").iterdir()} == before


# --- SLURM ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Slurm:
    """A SLURM of one node that runs."""

    folder: Path

    def submit(self, folder: Path, commands: str) -> None:
        """Run commands that call sbatch, and wait for their jobs; a job that fails shows its output."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=folder,
            env={**os.environ, "SBATCH_WAIT": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=LONGEST_S,
        )
        told = "\n".join(path.read_text() for path in folder.glob("slurm-*.out"))
        assert done.returncode == 0, done.stderr + told


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    """Munge, controller and node daemon in a folder of their own, listening on this machine."""
    missing = [name for name in (*DAEMONS, *TOOLS) if shutil.which(name) is None]
    if missing:
        pytest.skip(f"SLURM is not here ({', '.join(missing)}): apt-get install slurm-wlm munge")
    if os.geteuid() != 0:
        pytest.skip("slurmd starts jobs as their owner: only root can run it")
    import tempfile

    with tempfile.TemporaryDirectory(prefix="slurm-") as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        folder.chmod(0o755)
        conf = slurm_configuration(folder)
        patch.setenv("SLURM_CONF", str(conf))
        with contextlib.ExitStack() as daemons:
            for command in daemon_commands(folder, conf):
                daemons.enter_context(daemon(command, folder))
            wait_for_the_node(folder)
            yield Slurm(folder)


def slurm_configuration(folder: Path) -> Path:
    host = socket.gethostname().partition(".")[0]
    for part in ("state", "spool"):
        (folder / part).mkdir()
    conf = folder / "slurm.conf"
    conf.write_text(f"""ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldPort={free_port()}
SlurmdPort={free_port()}
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=8000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
""")
    return conf


def daemon_commands(folder: Path, conf: Path) -> list[list[str]]:
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    files = {"socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    munge = [f"--{option}={folder}/munge.{end}" for option, end in files.items()]
    return [
        ["munged", "--foreground", "--force", f"--key-file={key}", *munge],
        ["slurmctld", "-D", "-f", str(conf)],
        ["slurmd", "-D", "-f", str(conf)],
    ]


@contextlib.contextmanager
def daemon(command: list[str], folder: Path) -> Iterator[None]:
    with (
        open(folder / f"{command[0]}.said", "wb") as said,
        subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT) as process,
    ):
        try:
            time.sleep(0.5)
            yield
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_for_the_node(folder: Path) -> None:
    state = ""
    for _ in range(120):
        asked = subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True, check=False)
        state = asked.stdout.strip()
        if state == "idle":
            return
        time.sleep(0.5)
    said = "\n".join(path.read_text(errors="replace")[-2000:] for path in folder.glob("*.said"))
    pytest.fail(f"the node is '{state}', not idle:\n{said}")


@pytest.mark.slow
def test_slurm_workers_make_the_same_table(slurm, movie, plain, programs, tmp_path, capsys) -> None:
    pytest.importorskip("dask_jobqueue")
    file = configuration("slurm", tmp_path, walltime="00:10:00")
    more = ("--workers", f"slurm:{file}", "--block-frames", "2", "--json", "--progress", "jsonl")
    assert localized(movie, tmp_path / "t.csv", *more) == plain
    told = capsys.readouterr()
    assert json.loads(told.out)["frames"] == FRAMES
    last = json.loads(told.err.splitlines()[-1])["progress"]
    assert (last["done"], last["total"]) == (FRAMES, FRAMES)
    deadline = time.monotonic() + 60
    ask = functools.partial(subprocess.run, ["squeue", "-h"], capture_output=True, text=True, check=True)
    while ask().stdout and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not ask().stdout  # no job is left behind


@pytest.mark.slow
def test_a_slurm_array_makes_the_same_table(slurm, movie, plain, programs, tmp_path) -> None:
    """The scripts of the docs to the letter, but for the size of the array."""
    (tmp_path / "movie.tif").symlink_to(movie)
    script = script_of_the_docs("localize").replace("--array=1-64", "--array=1-3")
    (tmp_path / "localize.sbatch").write_text(script)
    slurm.submit(tmp_path, commands_of_the_docs())
    assert (tmp_path / "movie.csv").read_bytes() == plain
    assert not (tmp_path / "movie.csv.parts").exists()
    assert len(list(tmp_path.glob("slurm-*_[123].out"))) == 3


@pytest.mark.slow
def test_a_slurm_array_sweeps_trainings(slurm, sweep, programs) -> None:
    script = script_of_the_docs("sweep").replace("--cpus-per-task=4", "--cpus-per-task=1")
    (sweep / "sweep.sbatch").write_text(script)
    slurm.submit(sweep, "sbatch --array=1-2 sweep.sbatch")
    check_sweep(sweep)
