"""Picasso's side of ``single_emitters.py``; runs in Picasso's own environment, on what that wrote.

    PICASSO_PYTHON picasso_fits.py TASKS.npz RESULTS.npz

Picasso 0.11 (picassosr on PyPI). CPU seconds are of one thread, the median of the repeats after one call that
compiles.
"""

import os
import sys
import time
import warnings

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
warnings.filterwarnings("ignore")

import numpy as np  # noqa: E402
from picasso import gaussmle, localize, spline  # noqa: E402
from picasso.fitting import precision  # noqa: E402


def timed(task, repeats):
    """The result of ``task()`` and its median CPU seconds."""
    seconds = []
    for _ in range(repeats + 1):
        began = time.process_time()
        result = task()
        seconds.append(time.process_time() - began)
    return result, float(np.median(seconds[1:]))


def calibration(stack, z_step_nm, pixel_nm):
    """Picasso's spline of a stack (z, y, x) without noise: what its calibration makes of ideal beads."""
    middle = len(stack) // 2
    template = stack.transpose(2, 1, 0) / stack[middle].max()
    coefficients = spline.spline_coefficients(template)
    return {
        "model": "spline-3d",
        "coefficients": coefficients,
        "n_data": list(template.shape),
        "n_intervals": [int(n) for n in coefficients.shape[1:]],
        "oversampling": 1.0,
        "lateral_centered": True,
        "z_center": float(middle),
        "z_init": float(middle),
        "z_step_nm": float(z_step_nm),
        "magnification_factor": 1.0,
        "effective_sigma": 1.3,
        "photon_scale": float(template[:, :, middle].sum()),
        "box": stack.shape[1],
        "pixelsize": float(pixel_nm),
        "n_channels": 1,
    }


def main():
    given, out = np.load(sys.argv[1]), {}
    repeats = int(given["repeats"])
    if "frames" in given:
        frames, least = given["frames"], int(given["net_gradient"])
        found, seconds = timed(
            lambda: [localize.identify_in_frame(frame, least, 7) for frame in frames], repeats
        )
        out["detection_seconds"] = seconds
        out["detection_found"] = np.concatenate(
            [np.column_stack([np.full(len(y), t), y, x]) for t, (y, x, _) in enumerate(found)]
        )
    for name in [key[4:] for key in given if key.startswith("2d__")]:
        boxes = given["2d__" + name]
        # One width, as ours; photons, x, y, two widths, background. Its time is without the bounds, which come
        # from Picasso's older fit of the same boxes.
        theta, seconds = timed(
            lambda boxes=boxes: localize.fit_spots_gauss(boxes, mle=True, spherical=True), repeats
        )
        _, variance, _, _ = gaussmle.gaussmle(boxes, 0.001, 1000, method="sigma")
        out["2d__" + name], out["2d_bound__" + name] = theta[:, 1:3], np.sqrt(variance[:, :2])
        out["2d_seconds__" + name] = seconds
    if "stack" in given:
        made = calibration(given["stack"], given["z_step_nm"], given["pixel_nm"])
        for name in [key[4:] for key in given if key.startswith("3d__")]:
            boxes = given["3d__" + name]
            theta, seconds = timed(
                lambda boxes=boxes: localize.fit_spots_splinefit(boxes, made, mle=True, multiprocess=False),
                repeats,
            )
            cropped = localize.crop_spline_calibration(made, boxes.shape[1])
            bound = precision._spline_crlb(theta, cropped, boxes.shape[1], mle=True, em=False)
            z_nm = (theta[:, 3] + made["z_init"]) * made["z_step_nm"]
            out["3d__" + name] = np.column_stack([theta[:, 1], theta[:, 2], z_nm])
            out["3d_bound__" + name] = np.sqrt(bound[:, :3]) * [1, 1, made["z_step_nm"]]
            out["3d_seconds__" + name] = seconds
    np.savez(sys.argv[2], **out)


if __name__ == "__main__":
    main()
