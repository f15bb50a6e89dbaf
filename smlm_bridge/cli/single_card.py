"""The part of a model's card that only single emitters have: the bound cell by cell, calibration, timing."""

import os
import platform
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from smlm_bridge.train_single.comparison import Comparison

_CELL_PARAMETERS = ("x", "y", "z")


def single_sections(comparison: "Comparison", *, boxes_per_second: float, threads: int, command: str) -> str:
    """Sections of a card, Markdown.

    Parameters
    ----------
    comparison
        The network beside the maximum-likelihood fit.
    boxes_per_second
        Of CPU time in ONNX Runtime.
    threads
        That were used.
    command
        Which makes the model again.
    """
    return "\n".join(
        [
            _cells(comparison),
            _calibration(comparison),
            f"## Timing\n\n{boxes_per_second:.0f} boxes a second of CPU time in ONNX Runtime with {threads} "
            f"thread(s), on {processor()}.\n",
            f"## Train it again\n\n    {command}\n",
        ]
    )


def _cells(comparison: "Comparison") -> str:
    """RMSE and bias over the bound, network / fit."""
    failed = f" {comparison.failed_fits:.1%} of the fits did not converge and are left out."
    text = (
        f"## Against the bound, cell by cell\n\n{comparison.boxes} boxes of seed {comparison.seed}, which no "
        "training saw, cut into cells of equal counts. First RMSE, then the size of the bias, both over the root "
        "of the mean Cramér-Rao bound: the network / a maximum-likelihood fit of the same boxes."
        f"{failed if 'MLE' in comparison.alarms else ' This PSF has no height to fit.'}\n\n"
    )
    names = list(comparison.alarms)
    heads = [f"RMSE {p}" for p in _CELL_PARAMETERS] + [f"bias {p}" for p in _CELL_PARAMETERS]
    text += (
        "| photons | z (nm) | background | " + " | ".join(heads) + " |\n" + "|---" * (3 + len(heads)) + "|\n"
    )
    for ends, row in comparison.cells.iterrows():
        low, high = list(ends)[::2], list(ends)[1::2]  # type: ignore[call-overload]
        cells = [f"{a:.0f} to {b:.0f}" for a, b in zip(low, high, strict=True)]
        for kind in ("ratio", "bias"):
            cells += [
                " / ".join(f"{row[(name, kind, parameter)]:.2f}" for name in names)
                for parameter in _CELL_PARAMETERS
            ]
        text += "| " + " | ".join(cells) + " |\n"
    whole = [
        f"{parameter} {' / '.join(f'{alarm.overall[parameter][0]:.3f}' for alarm in comparison.alarms.values())}"
        for parameter in next(iter(comparison.alarms.values())).overall
    ]
    text += f"\nRMSE over the bound, all boxes: {', '.join(whole)}.\n"
    messages = [
        f"- {name}: {message}" for name, alarm in comparison.alarms.items() for message in alarm.messages
    ]
    return text + ("\n" + "\n".join(messages) + "\n" if messages else "")


def _calibration(comparison: "Comparison") -> str:
    """Nominal against found shares of errors."""
    curve: pd.DataFrame = comparison.calibration
    names, parameters = list(comparison.alarms), list(curve.columns)
    text = (
        "## Calibration\n\nShare of boxes whose error lies within as many of their own sigmas as hold the nominal "
        f"share of a Gaussian: {' / '.join(names)}.\n\n"
        f"| nominal | {' | '.join(parameters)} |\n{'|---' * (1 + len(parameters))}|\n"
    )
    for share in curve.loc[names[0]].index:
        found = [" / ".join(f"{curve.loc[(name, share), p]:.3f}" for name in names) for p in parameters]
        text += f"| {share:g} | {' | '.join(found)} |\n"
    return text


def processor() -> str:
    """Name and number of processors, as far as the system says."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as text:
            name = next(
                (line.split(":", 1)[1].strip() for line in text if line.startswith("model name")), name
            )
    except OSError:
        pass
    return f"{name} ({os.cpu_count()} processors)"
