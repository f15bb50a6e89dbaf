"""``join``: the calibrations of two channels to one of the pair."""

from pathlib import Path

import click

from smlm_bridge.cli.common import PATH, Run, file_option, output_option, verb
from smlm_bridge.cli.reporting import Summary, aligned


@verb(
    "join",
    units="lengths in nm.",
    example="smlm-bridge join left.psf.h5 right.psf.h5 --transform T.json --photon-ratio 0.85 -o pair.psf.h5",
)
@click.argument("first", metavar="CAL1", type=PATH)
@click.argument("second", metavar="CAL2", type=PATH)
@output_option("The pair, .psf.h5.")
@file_option(
    "--transform", "From positions in channel 1 to channel 2 (see register); absent: they lie on each other."
)
@click.option("--photon-ratio", type=float, default=1.0, show_default=True,
              help="Photons of an emitter in channel 2 over those in channel 1.")  # fmt: skip
def command(
    run: Run, first: Path, second: Path, *, output: Path, transform: Path | None, photon_ratio: float
) -> Summary:
    """Join the calibrations CAL1 and CAL2 of two channels that see each emitter at once.

    Heights must mean the same in both: calibrate both from one bead stack, or with the same --first-focus-nm.
    """
    run.outputs(output)
    from smlm_bridge import __version__
    from smlm_bridge.io.calibration import load_calibration, load_transform, save_calibration
    from smlm_bridge.pair import PairCalibration
    from smlm_bridge.transform import Transform

    channels = [load_calibration(path) for path in (first, second)]
    pair = PairCalibration(
        channels[0],
        channels[1],
        Transform.identity() if transform is None else load_transform(transform),
        photon_ratio,
        {
            "made_by": f"smlm_bridge {__version__}, join",
            "channels": [first.name, second.name],
            "transform": None if transform is None else transform.name,
        },
    )
    save_calibration(output, pair, overwrite=run.overwrite)
    values = {
        "channels": len(pair.channels),
        "photon_ratio": pair.photon_ratio,
        "transform": pair.transform.kind,
        "z_range_nm": list(pair.z_range_nm),
        "hash": pair.hash,
    }
    return Summary(values, aligned({"pair": str(output), **values}))
