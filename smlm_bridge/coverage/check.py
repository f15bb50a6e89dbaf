"""Is this model meant for these data? Ranges, re-rendered deviance and features, on a sample of emitters.

Möckl, Roy & Moerner 2020 (Biomed. Opt. Express 11:1633) name the danger: a network answers outside of what it was
trained for too, and nothing in its answer says so.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from smlm_bridge.camera import Camera
from smlm_bridge.coverage.boxes import Boxes, inside
from smlm_bridge.coverage.limits import Allowed, piled_up
from smlm_bridge.coverage.reference import Reference
from smlm_bridge.coverage.scoring import learned, scored
from smlm_bridge.coverage.seen import A_FRAME, boxes_of_counts
from smlm_bridge.coverage.verdict import Coverage, Findings, light_of, table_warnings, verdict
from smlm_bridge.errors import InputRejected
from smlm_bridge.frames import Frames, Work
from smlm_bridge.model import Cameras, Model, cameras_of
from smlm_bridge.pair import PairCalibration

if TYPE_CHECKING:
    from smlm_bridge.coverage.pairs import PairRenderer
    from smlm_bridge.coverage.rendered import Renderer

OnStep = Callable[[int, int], None]

_SEED: Final = 20_201  # of the boxes that the tests are calibrated on: the same for everyone
_FEWEST: Final = 20  # boxes that can be judged together
_DENSE: Final = 3.0  # standard deviations of a frame's count above the densest that was trained


@dataclass(frozen=True)
class CoverageOptions:
    """How much is looked at.

    Parameters
    ----------
    boxes
        Emitters that are looked at, about.
    drawn
        Boxes that the tests are calibrated on where the model does not bring what they would show.
    """

    boxes: int = 300
    drawn: int = 2000

    def __post_init__(self) -> None:
        if self.boxes < _FEWEST or self.drawn < 200:
            raise InputRejected(
                f"coverage needs {_FEWEST} boxes and 200 drawn ones or more, got {self.boxes} and {self.drawn}."
            )


#: For within ``localize``.
QUICK: Final = CoverageOptions(boxes=60, drawn=400)


def coverage(
    frames: Frames,
    work: Work,
    model: Model,
    *,
    camera: Cameras,
    options: CoverageOptions = CoverageOptions(),
    seed: int = 0,
    stops: tuple[str, ...] = (),
    corner_nm: tuple[float, float] = (0.0, 0.0),
    on_step: OnStep | None = None,
) -> Coverage:
    """Localize a few frames of a movie, spread over it, and check whether the model was made for them.

    Parameters
    ----------
    frames, work
        The movie, and what localizes its frames with the model.
    model
        The network.
    camera
        Of the movie's region, or those of two channels; None takes the calibration's.
    options, seed
        See ``CoverageOptions``; of the sample.
    stops
        What is known to be wrong already, in words; it makes the light red.
    corner_nm
        Where the movie's region begins within either channel (x, y): a pair's transform is that of whole frames.
    on_step
        Called with (frames done, frames in all).

    Raises
    ------
    InputRejected
        If no frame can be localized, or the statistics inside the model are damaged.
    """
    table, looked = localized_sample(frames, work, options=options, seed=seed, on_step=on_step)
    return check_localized(
        frames,
        table,
        model,
        camera=camera,
        options=options,
        seed=seed,
        stops=stops,
        looked_at=looked,
        corner_nm=corner_nm,
    )


def localized_sample(
    frames: Frames,
    work: Work,
    *,
    options: CoverageOptions = CoverageOptions(),
    seed: int = 0,
    on_step: OnStep | None = None,
) -> tuple[pd.DataFrame, int]:
    """Localizations in some frames spread over a movie, and how many frames; arguments as of ``coverage``."""
    order = np.random.default_rng(seed).permutation(frames.n_frames)[: options.boxes]
    tables: list[pd.DataFrame] = []
    found, failure = 0, ""
    for done, index in enumerate(int(i) for i in order):
        if found >= 4 * options.boxes:
            break
        try:
            table = work.find(frames.read(index, index + 1))
        except InputRejected as error:
            failure = str(error)
            continue
        tables.append(_in_movie(table, frames, index, work))
        found += len(table)
        if on_step is not None:
            on_step(done + 1, len(order))
    if on_step is not None:
        on_step(len(order), len(order))
    if not tables:
        raise InputRejected(f"no frame could be localized: {failure or 'the movie has none'}")
    return pd.concat([part for part in tables if len(part)] or tables[:1], ignore_index=True), len(tables)


def check_localized(
    frames: Frames,
    table: pd.DataFrame,
    model: Model,
    *,
    camera: Cameras,
    options: CoverageOptions = QUICK,
    seed: int = 0,
    stops: tuple[str, ...] = (),
    looked_at: int | None = None,
    corner_nm: tuple[float, float] = (0.0, 0.0),
) -> Coverage:
    """Check whether a model was made for the movie that it has localized.

    Parameters
    ----------
    frames, table
        The movie and what was localized in it; ``frame``, x and y refer to the whole movie.
    model, camera, options, seed, stops, corner_nm
        As for ``coverage``.
    looked_at
        Frames that the table is about; None for all of the movie.

    Notes
    -----
    Without torch boxes are not rendered again: the ranges, and the features where the model brings their
    statistics, are tested alone, and the reasons say so. The same table gives the same answer, however it was
    made.
    """
    allowed = Allowed.of(model.info.ranges, model.info.calibration.z_range_nm)
    findings = replace(_of_table(frames, table, model, allowed, looked_at or frames.n_frames), stops=stops)
    if len(table) < _FEWEST:
        text = f"{len(table)} localizations are too few, {_FEWEST} or more are needed"
        return _unjudged(findings, allowed, f"No boxes were judged: {text}.")
    why_not = _why_not(model)
    tools = None if why_not else _tools(model, options.drawn)
    reference = tools.reference if tools is not None else _stored(model)
    side = _side(model, reference)
    if side is None:
        return _unjudged(findings, allowed, f"No boxes were judged: {why_not}.")
    cameras = cameras_of(model, camera)
    boxes = _sampled(
        frames, table, model, cameras, corner_nm, side, options.boxes, np.random.default_rng(seed)
    )
    if boxes is None or len(boxes) < _FEWEST:
        return _unjudged(
            findings,
            allowed,
            f"No boxes were judged: fewer than {_FEWEST} emitters lie far enough inside the frames.",
        )
    if why_not:
        findings = replace(findings, notes=(f"Boxes were not rendered again: {why_not}.",))
    measured = None if tools is None else tools.renderer.with_cameras(cameras).measure(boxes)
    scores = scored(boxes, measured, reference, allowed)
    quantities = (
        np.stack([boxes.xyz_nm[:, 2], boxes.photons_found, boxes.background_found], axis=1)
        if measured is None
        else measured.quantities
    )
    picture = None if measured is None else measured.model
    return verdict(scores, boxes, picture, quantities, allowed, findings)


def reference_of(model: Model, *, boxes: int = 4000) -> Reference:
    """What a model's training space looks like to the tests; its ``to_json`` belongs into the model's metadata.

    Raises
    ------
    InputRejected
        If the model takes boxes of two channels or several frames, returns volumes, or finds nothing in its own
        training space.
    MissingDependency
        If torch is not installed.
    """
    if why_not := _why_not(model):
        raise InputRejected(f"the training space of '{model.info.name}' cannot be drawn: {why_not}.")
    return _drawn(model, _renderer(model), boxes)


@dataclass(frozen=True)
class _Tools:
    renderer: "Renderer | PairRenderer"
    reference: Reference


_known: "weakref.WeakKeyDictionary[Any, dict[int, _Tools]]" = weakref.WeakKeyDictionary()


def _tools(model: Model, drawn: int) -> _Tools:
    """The renderer and the reference of a model, made once a process."""
    kept = _known.setdefault(model.run, {})
    if drawn not in kept:
        renderer = _renderer(model)
        kept[drawn] = _Tools(renderer, _stored(model) or _drawn(model, renderer, drawn))
    return kept[drawn]


def _renderer(model: Model) -> "Renderer | PairRenderer":
    from smlm_bridge.coverage.pairs import PairRenderer, pair_side
    from smlm_bridge.coverage.rendered import Renderer, box_side

    info = model.info
    stored = _stored(model)
    if isinstance(info.calibration, PairCalibration):
        side = stored.side_px if stored else pair_side(info.calibration, info.ranges)
        return PairRenderer.of(info.calibration, info.ranges, side_px=side)
    side = info.box_px or (stored.side_px if stored else box_side(info.one_channel, info.ranges))
    return Renderer.of(info.one_channel, info.ranges, side_px=side)


def _drawn(model: Model, renderer: "Renderer | PairRenderer", boxes: int) -> Reference:
    from smlm_bridge.coverage.drawn import drawn

    renderer = renderer.exact()
    found = drawn(model, renderer, boxes=boxes, seed=_SEED)
    if len(found) < boxes // 2:
        raise InputRejected(
            f"'{model.info.name}' finds {len(found)} emitters where {boxes} were wanted, in frames drawn from its "
            "own training ranges: it is not trained. Train it longer, or localize with --no-coverage."
        )
    allowed = Allowed.of(model.info.ranges, model.info.calibration.z_range_nm)
    return learned(found, renderer.measure(found), allowed, side_px=renderer.side_px)


def _stored(model: Model) -> Reference | None:
    """What the model brings."""
    return Reference.from_json(model.info.coverage) if model.info.coverage else None


def _side(model: Model, reference: Reference | None) -> int | None:
    return model.info.box_px or (None if reference is None else reference.side_px)


def _why_not(model: Model) -> str:
    """Why boxes cannot be rendered again; empty where they can."""
    if model.info.inputs != model.info.channels:
        return f"the model takes {model.info.inputs // model.info.channels} frames at once, and one is built"
    if model.info.channels > 1 and model.info.box_px:
        return "the model takes boxes of two channels, and boxes of one or frames are built"
    if model.info.volume is not None:
        return "the model returns volumes, and maps are built"
    if find_spec("torch") is None:
        return "torch is not installed; pip install 'smlm_bridge[train]' brings it"
    return ""


def _unjudged(findings: Findings, allowed: Allowed, why: str) -> Coverage:
    warnings = table_warnings(findings, allowed)
    light = light_of(None, warned=bool(warnings), stopped=bool(findings.stops))
    return Coverage(light, None, (*findings.stops, *warnings, why))


def _sampled(
    frames: Frames,
    table: pd.DataFrame,
    model: Model,
    cameras: tuple[Camera, ...],
    corner_nm: tuple[float, float],
    side: int,
    boxes: int,
    rng: np.random.Generator,
) -> Boxes | None:
    """Boxes of some localizations, of many frames rather than many of one."""
    optics = model.info.calibration.optics
    corner = np.array([frames.x0, frames.y0]) * optics.pixel_nm
    groups = table.groupby("frame")
    order = rng.permutation(np.unique(table["frame"].to_numpy(np.int64)))
    each = max(A_FRAME, -(-boxes // max(len(order), 1)))
    parts: list[Boxes] = []
    for frame in order:
        if sum(map(len, parts)) >= boxes:
            break
        rows = groups.get_group(frame).reset_index(drop=True)
        xy = optics.seen_at(rows[["x_nm", "y_nm"]].to_numpy(np.float64)) - corner
        rows = rows.assign(x_nm=xy[:, 0], y_nm=xy[:, 1])
        index = int(frame) - frames.first_frame
        where: dict[str, Any] = {"side_px": side, "corner_nm": corner_nm, "most": each, "frame": int(frame)}
        try:
            counts = frames.read(index, index + 1)[0]
            if not inside(xy, side_px=side, pixel_nm=optics.pixel_nm, shape=counts.shape[1:]).any():
                continue
            parts.append(boxes_of_counts(model, counts, cameras, rows, **where))
        except InputRejected:
            continue
    return Boxes.joined(parts) if parts else None


def _in_movie(table: pd.DataFrame, frames: Frames, index: int, work: Work) -> pd.DataFrame:
    """The table of one frame with positions of the whole movie."""
    xy = table[["x_nm", "y_nm"]].to_numpy(np.float64) + np.array([frames.x0, frames.y0]) * work.pixel_nm
    if work.stands_at is not None:
        xy = work.stands_at(xy)
    return table.assign(frame=frames.first_frame + index, x_nm=xy[:, 0], y_nm=xy[:, 1])


def _of_table(
    frames: Frames, table: pd.DataFrame, model: Model, allowed: Allowed, looked_at: int
) -> Findings:
    """What the whole table shows: heights that crowd at an end of the range, and density."""
    if not len(table):
        return Findings()
    piled = piled_up(table["z_nm"].to_numpy(float), allowed.z_nm) if "z_nm" in table else (False, False)
    height, width = frames.read(0, 1).shape[-2:]
    area_um2 = height * width * (model.info.calibration.optics.pixel_nm / 1000) ** 2
    counts = np.zeros(max(looked_at, table["frame"].nunique()))
    counts[: table["frame"].nunique()] = table["frame"].value_counts().to_numpy(float)
    most = allowed.density_um2[1] * area_um2
    dense = 0.0
    if np.isfinite(most) and not model.info.box_px:
        dense = float(np.mean(counts > most + _DENSE * np.sqrt(most + 1.0)))
    return Findings(piled, dense, float(counts.max() / area_um2))
