"""CPU seconds (all threads) to write and to read a table in every format, seconds by the clock, size of the file.

    python benchmarks/tables.py [--rows 1000000] [--repeats 5] [--format NAME ...]

Positions, photons and uncertainties are drawn from a fixed seed. The first use of a format in a process also
imports its library; that is done before the clock starts, with a table of ten rows. Every number is the median of
the repeats, the first of which also waits for the system to hand out memory; in brackets the slowest.
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
    """CPU time to write, to read, the same by the clock."""
    path = folder / f"{name}{EXTENSION[name]}"
    ticks = [(time.process_time(), time.perf_counter())]
    formats.write(path, locs, name=name, pixel_nm=PIXEL_NM, overwrite=True)
    ticks.append((time.process_time(), time.perf_counter()))
    assert len(formats.read(path, name=name)) == len(locs)
    ticks.append((time.process_time(), time.perf_counter()))
    cpu, clock = np.diff(np.array(ticks), axis=0).T
    return *cpu, *clock


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--format", nargs="*", choices=formats.FORMATS, default=formats.FORMATS)
    given = parser.parse_args()
    locs = drawn(given.rows)
    print(
        f"{given.rows} rows, {locs.shape[1]} columns, median (slowest) of {given.repeats}; "
        "bars: write 3 s, read 1 s"
    )
    titles = ("write CPU-s", "read CPU-s", "write s", "read s")
    print(f"{'format':<14}" + "".join(f"{title:>15}" for title in titles) + f"{'MB':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for name in given.format:
            seconds(name, locs.head(10), Path(folder))
            taken = np.array([seconds(name, locs, Path(folder)) for _ in range(given.repeats)])
            shown = zip(np.median(taken, axis=0), taken.max(axis=0), strict=True)
            size = (Path(folder) / f"{name}{EXTENSION[name]}").stat().st_size / 1e6
            line = "".join(f"{f'{middle:.2f} ({most:.2f})':>15}" for middle, most in shown)
            print(f"{name:<14}{line}{size:8.1f}", flush=True)


if __name__ == "__main__":
    main()
