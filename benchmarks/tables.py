"""CPU seconds (all threads) to write and to read a table in every format, seconds by the clock, size of the file.

    python benchmarks/tables.py [--rows 1000000] [--format NAME ...]

Positions, photons and uncertainties are drawn from a fixed seed. The first use of a format in a process also
imports its library; that is done before the clock starts, with a table of ten rows.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from smlm_bridge.io import formats

PIXEL_NM = 110.0
EXTENSION = {"challenge": ".txt"} | {name: ending for ending, name in reversed(formats.EXTENSIONS.items())}


def drawn(rows: int) -> pd.DataFrame:
    draw = np.random.default_rng(1)
    return pd.DataFrame(
        {
            "frame": np.sort(draw.integers(0, 20_000, rows)),
            "x_nm": draw.uniform(PIXEL_NM, 50_000, rows),
            "y_nm": draw.uniform(PIXEL_NM, 50_000, rows),
            "z_nm": draw.uniform(-750, 750, rows),
            "psf_sigma1_nm": draw.uniform(100, 300, rows),
            "psf_sigma2_nm": draw.uniform(100, 300, rows),
            "photons": draw.gamma(3, 1000, rows) + 1,
            "background": draw.uniform(10, 50, rows),
            "uncertainty_xy_nm": draw.uniform(3, 30, rows),
            "uncertainty_z_nm": draw.uniform(10, 60, rows),
        }
    )


def seconds(name: str, locs: pd.DataFrame, folder: Path) -> tuple[float, ...]:
    """CPU time to write, to read, the same by the clock, and the size in MB."""
    path = folder / f"{name}{EXTENSION[name]}"
    ticks = [(time.process_time(), time.perf_counter())]
    formats.write(path, locs, name=name, pixel_nm=PIXEL_NM, overwrite=True)
    ticks.append((time.process_time(), time.perf_counter()))
    assert len(formats.read(path, name=name)) == len(locs)
    ticks.append((time.process_time(), time.perf_counter()))
    cpu, clock = np.diff(np.array(ticks), axis=0).T
    return *cpu, *clock, path.stat().st_size / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--format", nargs="*", choices=formats.FORMATS, default=formats.FORMATS)
    given = parser.parse_args()
    locs = drawn(given.rows)
    print(f"{given.rows} rows, {locs.shape[1]} columns; bars: write 3 s, read 1 s")
    print(f"{'format':<14}{'write CPU-s':>12}{'read CPU-s':>12}{'write s':>9}{'read s':>9}{'MB':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for name in given.format:
            seconds(name, locs.head(10), Path(folder))
            write, read, write_clock, read_clock, size = seconds(name, locs, Path(folder))
            print(
                f"{name:<14}{write:12.2f}{read:12.2f}{write_clock:9.2f}{read_clock:9.2f}{size:8.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
