"""CPU seconds and memory to render a large table.

    python benchmarks/rendering.py [--rows 10000000] [--side-px 4096]

Uncertainties are gamma-distributed about 10 nm, the pixel is 10 nm. Memory is the largest of the process so
far, less what it held before the first picture (table included in what it held).
"""

import argparse
import resource
import time

import numpy as np
import pandas as pd

from smlm_bridge.post.render import render
from smlm_bridge.post.render_slices import render_slices

PIXEL_NM = 10.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--side-px", type=int, default=4096)
    given = parser.parse_args()
    draw = np.random.default_rng(1)
    field = given.side_px * PIXEL_NM
    locs = pd.DataFrame(
        {
            "frame": np.arange(given.rows) // 1000,
            "x_nm": draw.uniform(0, field, given.rows),
            "y_nm": draw.uniform(0, field, given.rows),
            "z_nm": draw.uniform(-500, 500, given.rows),
            "uncertainty_xy_nm": draw.gamma(4, 2.5, given.rows),
        }
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(
        f"{given.rows} localizations, {given.side_px} x {given.side_px} px, table {before:.0f} MB with Python"
    )
    print(f"{'method':<14}{'CPU-s':>8}{'MB more':>9}")
    options = {"pixel_nm": PIXEL_NM, "field_nm": (field, field)}
    flat = locs.drop(columns="z_nm")
    for method in ("histogram", "ash", "gaussian"):
        render(locs.head(100), method=method, **options)  # compiles
        for table, name in ((flat, method), (locs, f"{method}, z")):
            start = time.process_time()
            picture = render(table, method=method, **options)
            assert picture.shown == given.rows
            report(name, start, before)
    start = time.process_time()
    edges = tuple(np.linspace(-500, 500, 11))
    render_slices(locs, edges, method="ash", **options)
    report("10 slices", start, before)


def report(what: str, start: float, before: float) -> None:
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3 - before
    print(f"{what:<14}{time.process_time() - start:8.2f}{more:9.0f}", flush=True)


if __name__ == "__main__":
    main()
