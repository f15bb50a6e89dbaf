"""Put what a model's training space looks like to the coverage check into its file.

    python benchmarks/describe_training_space.py MODEL.onnx [--boxes 1500] [-o OTHER.onnx]

Boxes are drawn from the training ranges inside the file and localized by the network itself; weights stay as they
are. ``localize`` and ``coverage`` then need not draw them at every first use.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch

from smlm_bridge.coverage import reference_of
from smlm_bridge.io.model import load_model, save_model
from smlm_bridge.io.onnx_file import with_metadata


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--boxes", type=int, default=1500)
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(given.model, threads=1)
    began = time.process_time()
    plain = replace(model, info=replace(model.info, coverage={}))
    reference = reference_of(plain, boxes=given.boxes)
    info = replace(model.info, coverage=reference.to_json())
    target = given.output or given.model
    save_model(target, with_metadata(given.model.read_bytes(), info.to_metadata()), overwrite=True)
    limits = ", ".join(f"{name} {value:.2f}" for name, value in reference.limits.items())
    print(f"{target}: {reference.boxes} boxes in {time.process_time() - began:.0f} CPU-s; limits {limits}")


if __name__ == "__main__":
    main()
