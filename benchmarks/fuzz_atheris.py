"""Hostile files guided by coverage: Atheris (libFuzzer) against the readers of ``fuzz_readers.py``.

    python benchmarks/fuzz_atheris.py [--cases 100000] [--reader NAME ...]

Needs the package atheris (not among ours: pip install atheris). Each reader runs in a process of its own, from
the same whole files as ``fuzz_readers.py``, with our code and tifffile instrumented. Whatever is raised but an
error of ``smlm_bridge.errors``, a case over 10 s, and 2 GB beyond what the libraries take are faults; libFuzzer
prints them and keeps the file.
"""

import argparse
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

SECONDS, MEGABYTES = 10, 2048
NAMES = (
    "movie.tif",
    "table.csv",
    "calibration.psf.h5",
    "model.onnx",
    "metadata.json",
    "package.zip",
    "pipeline.yaml",
    "pipeline.toml",
    "setup.toml",
    "drift.json",
    "manifest.json",
    "part-000000.parquet",
)


def fuzz(name: str, cases: int, folder: Path) -> None:
    """Fuzz one reader in this process, which libFuzzer ends."""
    import atheris

    with atheris.instrument_imports(include=["smlm_bridge", "tifffile"]):
        from fuzz_readers import readers

        from smlm_bridge.errors import SmlmError

    (reader,) = [each for each in readers(folder) if each.name == name]
    seeds, path = folder / "seeds", folder / name
    seeds.mkdir()
    for number, data in enumerate(reader.seeds):
        (seeds / str(number)).write_bytes(data)

    def one(data: bytes) -> None:
        path.write_bytes(data)
        with contextlib.suppress(SmlmError):
            reader.read(path)

    warnings.simplefilter("ignore")
    taken = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20
    longest = 2 * max(map(len, reader.seeds)) + 1000
    flags = [
        f"-runs={cases}",
        f"-timeout={SECONDS}",
        f"-rss_limit_mb={MEGABYTES + taken}",
        f"-max_len={longest}",
    ]
    atheris.Setup([sys.argv[0], *flags, "-seed=1", f"-artifact_prefix={Path.cwd()}/", str(seeds)], one)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--reader", nargs="*", choices=NAMES, default=NAMES)
    parser.add_argument("--here", type=Path, help="(of itself) fuzz in this process, files in this folder")
    given = parser.parse_args()
    if given.here:
        fuzz(given.reader[0], given.cases, given.here)
    for name in given.reader:
        with tempfile.TemporaryDirectory() as folder:
            command = [
                sys.executable,
                __file__,
                "--cases",
                str(given.cases),
                "--reader",
                name,
                "--here",
                folder,
            ]
            ended = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        done = re.search(r"Done (\d+) runs in (\d+) second", ended.stderr)
        if done and ended.returncode == 0:
            covered = re.findall(r"cov: (\d+)", ended.stderr)[-1]
            print(f"{name:<22}{done[1]:>8} cases, no fault, {covered} edges seen, {done[2]} s", flush=True)
        else:
            print(f"{name:<22} ended by {ended.returncode}\n{ended.stderr[-3000:]}", flush=True)


if __name__ == "__main__":
    main()
