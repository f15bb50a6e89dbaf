"""Where the truth is known: localizations against the Cramér-Rao bound."""

from typing import Final

import numpy as np
import pandas as pd
import torch

from smlm_bridge.alarm import CrlbAlarm, crlb_alarm
from smlm_bridge.camera import Camera
from smlm_bridge.coverage.rendered import Renderer, box_side
from smlm_bridge.crlb import crlb
from smlm_bridge.errors import InputRejected
from smlm_bridge.evaluate import evaluate
from smlm_bridge.model import ModelInfo

_NAMES: Final = ("x_nm", "y_nm", "z_nm", "photons", "background")
_FEWEST: Final = 50


def truth_alarm(table: pd.DataFrame, truth: pd.DataFrame, info: ModelInfo, *, camera: Camera) -> CrlbAlarm:
    """The CRLB alarm of localizations that lie within 150 nm of an emitter.

    Every bound is that of the emitter alone; light of others only raises it, so that a table that undercuts it
    does so all the more.

    Parameters
    ----------
    table, truth
        Localizations, and the emitters of the same frames, with photons and background.
    info
        What the model was trained for.
    camera
        Of the frames; of maps the mean.

    Raises
    ------
    InputRejected
        If a column is missing, or fewer than 50 emitters are found.
    """
    for name, part in (("truth", truth), ("table", table)):
        if missing := [column for column in _NAMES if column not in part or part[column].isna().all()]:
            raise InputRejected(f"the {name} lacks {', '.join(missing)}, which the bound needs.")
    emitters = truth[truth["frame"].isin(table["frame"].unique())].reset_index(drop=True)
    matches, _ = evaluate(table, emitters)
    if len(matches.loc_index) < _FEWEST:
        raise InputRejected(
            f"{len(matches.loc_index)} localizations lie within 150 nm of the truth; the alarm needs {_FEWEST} or "
            "more."
        )
    found, known = (
        part[list(_NAMES)].to_numpy(np.float64)[rows]
        for part, rows in ((table, matches.loc_index), (emitters, matches.truth_index))
    )
    side = info.box_px or box_side(info.one_channel, info.ranges)
    psf = Renderer.of(info.one_channel, info.ranges, side_px=side, aberrations=False).psf
    xyz = known[:, :3].copy()
    xyz[:, :2] = xyz[:, :2] % psf.pixel_nm + side // 2 * psf.pixel_nm
    bound = crlb(
        psf,
        _mean(camera),
        torch.tensor(xyz, dtype=torch.float32),
        torch.tensor(known[:, 3], dtype=torch.float32),
        torch.tensor(known[:, 4], dtype=torch.float32),
        shape=(side, side),
    )
    return crlb_alarm(found, known, bound.double().numpy(), training=False)


def _mean(camera: Camera) -> Camera:
    values = (camera.offset, camera.e_per_adu, camera.read_noise_e)
    offset, gain, noise = (float(np.mean(value)) for value in values)
    return Camera(offset, gain, noise, camera.quantum_efficiency, camera.em_gain)
