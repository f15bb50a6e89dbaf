"""Big movies, many movies, many processes: memory, what the parts cost, what processes bring.

    python benchmarks/big_data.py memory [--gigabytes 20]
    python benchmarks/big_data.py parts [--frames 400 --repeats 9]
    python benchmarks/big_data.py processes [--frames 120]
    python benchmarks/big_data.py movies [--movies 1000]

Frames are made on the spot. ``memory`` localizes a BigTIFF of 512 x 512 pixels through the command line, with an
untrained network of one operator, so that reading, parts, merging and writing are what is measured. ``parts``
compares CPU seconds of the parts with those of the plain generator ``localize``, also with the network left
out; ``processes`` compares the seconds by the clock of one and of two processes of one thread each, with a
shipped network; ``movies`` localizes many movies of two frames each and prints the slope of the memory and the
CPU seconds beyond the work itself.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import tifffile

MODEL = "tetrapod_telomere"
SIDE = 512
BRIGHT_ADU = 5000
RUN = "import sys, resource; from smlm_bridge.cli import main; code = main(sys.argv[1:]); "
RUN += "print('PEAK', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr); sys.exit(code)"


def constant_model(path: Path) -> None:
    """An ONNX file of ours whose maps are a few pixels above the threshold, whatever the frames."""

    from onnx import TensorProto, helper, numpy_helper

    from smlm_bridge.io.model import load_model, save_model
    from smlm_bridge.networks.maps import MAP_NAMES

    info = load_model(MODEL).info
    weight = np.zeros((len(MAP_NAMES), 1, 1, 1), np.float32)
    bias = np.full(len(MAP_NAMES), 1.0, np.float32)
    bright = float(info.calibration.camera.to_photons(np.full((1, 1, 1), BRIGHT_ADU, np.float32))[0, 0, 0])
    weight[0], bias[0] = 1.0, -bright / 2  # the bright pixels are emitters
    nodes = [
        helper.make_node("Conv", ["frames", "w", "b"], ["raw"]),
        helper.make_node("Clip", ["raw", "low", "high"], ["maps"]),
    ]
    constants = {"w": weight, "b": bias, "low": np.float32(0), "high": np.float32(1)}
    shape = ["n", 1, "h", "w"]
    graph = helper.make_graph(
        nodes,
        "constant",
        [helper.make_tensor_value_info("frames", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("maps", TensorProto.FLOAT, ["n", len(MAP_NAMES), "h", "w"])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, info.to_metadata())
    save_model(path, model.SerializeToString())


def long_movie(path: Path, gigabytes: float) -> int:
    """A BigTIFF whose frames differ, written block by block; returns its number of frames."""
    draw = np.random.default_rng(1)
    block = draw.poisson(30, (64, SIDE, SIDE)).astype(np.uint16) + 100
    block[:, 20::64, 20::64] = BRIGHT_ADU
    frames = max(64, int(gigabytes * 1e9 / block[0].nbytes) // 64 * 64)

    def rolled() -> "np.ndarray":
        for i in range(frames // 64):
            yield from np.roll(block, i, axis=2)

    tifffile.imwrite(
        path,
        rolled(),
        shape=(frames, SIDE, SIDE),
        dtype=np.uint16,
        bigtiff=True,
        photometric="minisblack",
        metadata=None,
    )
    return frames


def memory(given: argparse.Namespace, folder: Path) -> None:
    constant_model(folder / "constant.onnx")
    frames = long_movie(folder / "movie.tif", given.gigabytes)
    size = (folder / "movie.tif").stat().st_size / 1e9
    began = time.perf_counter()
    command = ["localize", str(folder / "movie.tif"), "-o", str(folder / "t.csv"), "--threads", "1", "--json"]
    found, peak = subprocess_run([*command, "--model", str(folder / "constant.onnx")])
    print(f"{size:.2f} GB, {frames} frames of {SIDE} x {SIDE}: {found['localizations']} localizations")
    print(f"peak RSS {peak:.2f} GB (bar 1.5), {time.perf_counter() - began:.0f} s by the clock")


def subprocess_run(arguments: list[str]) -> tuple[dict[str, object], float]:
    """The JSON of one verb in a process of its own, and its peak RSS in GB."""
    ended = subprocess.run(
        [sys.executable, "-P", "-c", RUN, *arguments], capture_output=True, text=True, check=False
    )
    if ended.returncode:
        raise SystemExit(ended.stderr)
    return json.loads(ended.stdout), int(ended.stderr.rsplit("PEAK", 1)[1]) / 1e6


def sample_movie(path: Path, frames: int) -> None:
    """The shipped model's own frames, over and over, shifted."""
    from smlm_bridge.cluster.recipe import absolute_model
    from smlm_bridge.io.images import read_stack

    sample = read_stack(Path(absolute_model(MODEL)).with_name("sample.tif"))
    blocks = [np.roll(sample, 7 * i, axis=2) for i in range(-(-frames // len(sample)))]
    tifffile.imwrite(path, np.concatenate(blocks)[:frames], imagej=True, metadata={"axes": "TYX"})


def recipe_of(path: Path) -> "object":
    from smlm_bridge.cluster.recipe import Recipe, absolute_model
    from smlm_bridge.io.model import load_model

    camera = load_model(MODEL, threads=1).info.calibration.camera
    return Recipe((str(path),), absolute_model(MODEL), camera, threads=1)


def parts(given: argparse.Namespace, folder: Path) -> None:
    import pandas as pd

    from smlm_bridge.cluster.engines import engine
    from smlm_bridge.cluster.movie import localize_parts, merged
    from smlm_bridge.frames import in_blocks

    sample_movie(folder / "movie.tif", given.frames)
    recipe = recipe_of(folder / "movie.tif")

    def plain() -> pd.DataFrame:
        with recipe.opened() as (source, work):
            return pd.concat([block.table for block in in_blocks(source, work)], ignore_index=True)

    def through_parts() -> pd.DataFrame:
        with engine(None) as running:
            store = localize_parts(recipe, folder / "parts", running)
        table = merged(store).table
        store.remove()
        return table

    seconds = {"plain": plain, "parts": through_parts}
    spent = medians(seconds, given.repeats)
    extra = 100 * (spent["parts"] / spent["plain"] - 1)
    print(f"{given.frames} frames, CPU seconds, medians of {given.repeats} alternating runs: {spent}")
    print(f"parts and manifest cost {extra:+.1f} % (bar 3 %)")
    # The same with tables that are there already in place of the network: what is left is the cost itself.
    found = recipe.work()
    with recipe.opened() as (source, _work):
        table = found.find(source.read(0, 1))
    count = max(1, found.block_pixels // (source.height * source.width))
    tables = pd.concat([table] * count, ignore_index=True)
    idle = replace(found, find=lambda _counts: tables.copy())
    with mock.patch.object(type(recipe), "work", return_value=idle):
        alone = medians(seconds, 5 * given.repeats)
    cost = alone["parts"] - alone["plain"]
    print(f"without the network {alone}: {1e3 * cost:.1f} ms, {100 * cost / spent['plain']:+.2f} %")


def medians(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median CPU seconds of each, run in turns and in changing order; the first turn does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(repeats + 1):
        for name in list(runs)[:: 1 if number % 2 else -1]:
            began = time.process_time()
            runs[name]()
            seconds[name].append(time.process_time() - began)
    return {name: round(statistics.median(values[1:]), 4) for name, values in seconds.items()}


def processes(given: argparse.Namespace, folder: Path) -> None:
    from smlm_bridge.cluster.engines import engine
    from smlm_bridge.cluster.movie import localize_parts

    sample_movie(folder / "movie.tif", given.frames)
    recipe = recipe_of(folder / "movie.tif")
    seconds: dict[str, list[float]] = {"1": [], "2": []}
    print(f"load of the machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs")
    for workers, values in seconds.items():
        with engine(workers) as running:
            for number in range(1 + given.repeats):  # the first loads the network in every process
                began = time.perf_counter()
                localize_parts(recipe, folder / f"{workers}-{number}", running, block_frames=6)
                values.append(time.perf_counter() - began)
    least = {name: min(values[1:]) for name, values in seconds.items()}
    print(f"{given.frames} frames, seconds by the clock, least of {given.repeats}: {least}")
    print(f"two processes are {least['1'] / least['2']:.2f} x one (bar 1.8)")


def movies(given: argparse.Namespace, folder: Path) -> None:
    """The verb over a folder, in this process, its memory looked at after every movie."""
    from smlm_bridge.cli import main as program
    from smlm_bridge.cluster import movie as room

    (folder / "movies").mkdir()
    sample_movie(folder / "movies" / "0.tif", given.movie_frames)
    for number in range(1, given.movies):
        os.link(folder / "movies" / "0.tif", folder / "movies" / f"{number}.tif")
    resident: list[float] = []
    merged = room.merged

    def noted(store: object) -> object:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        resident.append(pages * resource.getpagesize() / 1e6)
        return merged(store)

    room.merged = noted
    command = ["localize", str(folder / "movies"), "-o", str(folder / "out"), "--model", MODEL]
    began = time.process_time()
    code = program([*command, "--threads", "1", "--quiet"])
    spent = time.process_time() - began
    recipe = recipe_of(folder / "movies" / "0.tif")
    with recipe.opened() as (source, work):
        counts = source.read(0, given.movie_frames)
        began = time.process_time()
        for _ in range(10):
            work.find(counts)
        alone = (time.process_time() - began) / 10
    half = np.array(resident[len(resident) // 4 :])
    slope = np.polyfit(np.arange(len(half)), half, 1)[0]
    print(f"exit {code}; {given.movies} movies of {given.movie_frames} frames, {spent:.1f} CPU-s")
    print(f"overhead {1e3 * (spent / given.movies - alone):.0f} ms CPU a movie (bar 50)")
    print(f"RSS {half[0]:.0f} to {half[-1]:.0f} MB, slope {1e3 * slope:.1f} kB a movie, over the last 3/4")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("memory", "parts", "processes", "movies"))
    parser.add_argument("--gigabytes", type=float, default=20.0)
    parser.add_argument("--frames", type=int, default=120)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--movies", type=int, default=1000)
    parser.add_argument("--movie-frames", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        {"memory": memory, "parts": parts, "processes": processes, "movies": movies}[given.what](
            given, Path(name)
        )


if __name__ == "__main__":
    main()
