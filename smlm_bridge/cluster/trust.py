"""Is the model meant for the movie that it has localized? Asked at the end of a run, of its table."""

import numpy as np
import pandas as pd

from smlm_bridge.cluster.recipe import Recipe, loaded_tool
from smlm_bridge.coverage import QUICK, Coverage, CoverageOptions, check_localized
from smlm_bridge.errors import SmlmError
from smlm_bridge.model import ModelInfo, cameras_of

PIXEL_TOLERANCE = 0.02
_LARGE, _ENOUGH = 20_000, 5000  # rows of a table
_LEAST_FRAMES = 200
_NO_PHOTONS = (
    "A network of volumes counts no photons, so its emitters cannot be drawn again; the check was not made."
)


def thinned(table: pd.DataFrame, n_frames: int) -> tuple[pd.DataFrame, int]:
    """Whole frames of a large table, as much as a check looks at, and how many; so that the rest can be let go.

    Parameters
    ----------
    table
        Localizations; a table that is not large comes back as it is.
    n_frames
        Frames that were localized.
    """
    count = max(_LEAST_FRAMES, -(-n_frames * _ENOUGH // max(len(table), 1)))
    if len(table) <= _LARGE or count >= n_frames:
        return table, n_frames
    frame = table["frame"].to_numpy(np.int64)
    first = int(frame.min())
    chosen = np.zeros(int(frame.max()) - first + 1, bool)
    wanted = np.random.default_rng(0).choice(n_frames, count, replace=False)
    chosen[wanted[wanted < len(chosen)]] = True
    return table[chosen[frame - first]].reset_index(drop=True), count


def checked(
    recipe: Recipe, table: pd.DataFrame, *, looked_at: int, options: CoverageOptions = QUICK
) -> Coverage | None:
    """The coverage check of a table; None of a run without a network.

    It looks at a sample of boxes that depends on the table alone, and never fails: what goes wrong is its reason.

    Parameters
    ----------
    recipe, table
        How the movie was localized, and what came of it.
    looked_at
        Frames that the table is about.
    options
        How much is looked at.
    """
    if recipe.model is None:
        return None
    # A calibration beside the model replaces its own for fitting; what it was trained on is asked here.
    trained = loaded_tool(recipe.model, None, recipe.threads, recipe.device).model
    assert trained is not None
    try:
        with recipe.source() as source:
            stops = misfits(
                trained.info,
                pixel_nm=source.pixel_nm,
                em_gain=cameras_of(trained, recipe.cameras)[0].em_gain,
                calibration_hash=recipe.tool.calibration.hash,
            )
            if trained.info.volume is not None and not stops:
                return Coverage("unknown", None, (_NO_PHOTONS,))
            return check_localized(
                source,
                table,
                trained,
                camera=recipe.cameras,
                options=options,
                stops=stops,
                looked_at=looked_at,
                corner_nm=recipe.corner_nm,
            )
    except (SmlmError, OSError) as error:
        return Coverage("unknown", None, (f"The check could not be made: {error}",))


def misfits(
    info: ModelInfo, *, pixel_nm: float | None, em_gain: float, calibration_hash: str | None = None
) -> tuple[str, ...]:
    """What differs so that no box needs to be looked at: pixel, kind of camera, PSF.

    Parameters
    ----------
    info
        Of the model.
    pixel_nm
        That the file states; None if it does not.
    em_gain
        Of the movie's camera.
    calibration_hash
        Of the PSF that is used beside the model; None for its own.
    """
    known, texts = info.calibration, []
    wanted = known.optics.pixel_nm
    if pixel_nm and abs(pixel_nm / wanted - 1) > PIXEL_TOLERANCE:
        texts.append(
            f"The file says a pixel is {pixel_nm:g} nm, the model was trained for {wanted:g} nm. Train a model "
            "for this pixel."
        )
    if (em_gain > 1) != (known.camera.em_gain > 1):
        kinds = {True: "an EMCCD", False: "a camera without EM gain"}
        texts.append(
            f"The movie is of {kinds[em_gain > 1]}, the model was trained for {kinds[known.camera.em_gain > 1]}: "
            "the noise is another. Train a model for this camera."
        )
    if calibration_hash is not None and calibration_hash != known.hash:
        texts.append(
            "The calibration given is not the one that the model was trained on. Train a model on it, "
            "or leave it out."
        )
    return tuple(texts)
