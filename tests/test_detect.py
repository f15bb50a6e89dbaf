"""Detection, against the formulas written down slowly with scipy.ndimage and explicit padding."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from smlm_bridge.bandpass import bspline_kernel
from smlm_bridge.camera import Camera
from smlm_bridge.detect import (
    DetectOptions,
    box_corners,
    coarse_centroid,
    crop_boxes,
    detect,
    detect_frames,
)
from smlm_bridge.errors import InputRejected, SmlmError

PIXEL_NM = 110.0
K1 = np.array([1, 4, 6, 4, 1]) / 16
K2 = np.array([1, 0, 4, 0, 6, 0, 4, 0, 1]) / 16
SQUARE, CROSS = np.ones((3, 3), bool), ndimage.generate_binary_structure(2, 1)


def movie(frames: int = 3, height: int = 40, width: int = 52, *, seed: int = 0) -> NDArray[np.uint16]:
    """Spots on a background, with noise; also spots at the edge."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] + 0.5
    expected = np.full((frames, height, width), 20.0)
    for frame in expected:
        for u, v in generator.uniform((0, 0), (width, height), (12, 2)):
            frame += 90 * np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * 1.4**2))
    return (100 + generator.poisson(expected)).astype(np.uint16)


def slow_levels(
    frame: NDArray[np.float64], k1: NDArray[np.float64] = K1, k2: NDArray[np.float64] = K2
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """F1 = I - V1 and F = V1 - V2 of one frame."""
    pad = len(k2) // 2
    padded = np.pad(frame, pad, mode="edge")
    v1 = ndimage.convolve(padded, np.outer(k1, k1), mode="constant", cval=0.0)
    v2 = ndimage.convolve(v1, np.outer(k2, k2), mode="constant", cval=0.0)
    inner = (slice(pad, -pad),) * 2
    return frame - v1[inner], v1[inner] - v2[inner]


def slow_maxima(
    plane: NDArray[np.float64], threshold: float, neighbours: NDArray[np.bool_] = SQUARE
) -> set[tuple[int, int]]:
    largest = ndimage.maximum_filter(plane, footprint=neighbours, mode="constant", cval=-np.inf)
    return set(
        zip(*map(np.ndarray.tolist, np.nonzero((plane >= threshold) & (plane == largest))), strict=True)
    )


def above(frame: NDArray[np.generic], offset: float) -> NDArray[np.float64]:
    image = frame.astype(np.float64) - offset
    return image - min(image.min(), 0.0)


def pixels(table: pd.DataFrame, frame: int = 0) -> set[tuple[int, int]]:
    rows = table[table["frame"] == frame]
    return set(zip(rows["row"].tolist(), rows["column"].tolist(), strict=True))


# ---- the detector


@pytest.mark.parametrize("offset", [0.0, 100.0, 110.5])
def test_the_default_is_thunderstorms_detector(offset: float) -> None:
    counts = movie()
    table = detect_frames(counts, pixel_nm=PIXEL_NM, camera=Camera(offset=offset))
    for index, frame in enumerate(counts):
        first, second = slow_levels(above(frame, offset))
        expected = slow_maxima(second, float(np.std(first, ddof=1)))
        assert len(expected) > 5
        assert pixels(table, index) == expected
        rows = table[table["frame"] == index]
        values = second[rows["row"], rows["column"]]
        np.testing.assert_allclose(rows["value"], values, rtol=1e-12)
    np.testing.assert_allclose(table["x_nm"], (table["column"] + 0.5) * PIXEL_NM)
    np.testing.assert_allclose(table["y_nm"], (table["row"] + 0.5) * PIXEL_NM)
    assert list(table.columns) == ["frame", "x_nm", "y_nm", "row", "column", "value"]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (2, 3), (5, 4), (9, 1)])
def test_frames_smaller_than_the_kernel(height: int, width: int) -> None:
    counts = np.random.default_rng(4).integers(0, 50, (2, height, width)).astype(np.uint16)
    table = detect_frames(counts, DetectOptions(threshold="-1000"), pixel_nm=PIXEL_NM)
    for index, frame in enumerate(counts):
        expected = slow_maxima(slow_levels(above(frame, 0.0))[1], -1000) if frame.size > 1 else set()
        assert pixels(table, index) == expected


def test_four_neighbours_leave_more_maxima() -> None:
    counts = movie()
    options = DetectOptions(connectivity=4, threshold="0.2*std(Wave.F1)")
    table = detect_frames(counts, options, pixel_nm=PIXEL_NM)
    first, second = slow_levels(above(counts[0], 0.0))
    four = slow_maxima(second, 0.2 * float(np.std(first, ddof=1)), CROSS)
    assert pixels(table) == four
    assert four > slow_maxima(second, 0.2 * float(np.std(first, ddof=1)))


def test_ties_are_all_kept_also_at_the_corner() -> None:
    counts = np.full((1, 30, 30), 10, np.uint16)
    counts[0, 14:16, 14:16] = 500
    assert pixels(detect_frames(counts, pixel_nm=PIXEL_NM)) == {(14, 14), (14, 15), (15, 14), (15, 15)}
    counts[0] = 10
    counts[0, 0, 0] = 500
    assert (0, 0) in pixels(detect_frames(counts, pixel_nm=PIXEL_NM))


def test_a_maximum_may_equal_the_threshold() -> None:
    counts = movie(1)
    brightest = detect_frames(counts, DetectOptions(threshold="max(F)"), pixel_nm=PIXEL_NM)
    assert len(brightest) == 1
    just_above = DetectOptions(threshold="max(F) + 1e-6")
    assert detect_frames(counts, just_above, pixel_nm=PIXEL_NM).empty


@pytest.mark.parametrize("value", [0, 7, 1000])
@pytest.mark.parametrize("detector", ["wavelet", "dog"])
def test_a_frame_of_one_value_has_no_candidates(value: int, detector: str) -> None:
    counts = np.concatenate([np.full((1, 40, 52), value, np.uint16), movie(1)])
    table = detect_frames(counts, DetectOptions(detector=detector), pixel_nm=PIXEL_NM)
    assert set(table["frame"]) == {1}


@pytest.mark.parametrize("shape", [(0, 20, 20), (3, 0, 20)])
def test_nothing_gives_an_empty_table(shape: tuple[int, ...]) -> None:
    table = detect_frames(np.zeros(shape, np.uint16), pixel_nm=PIXEL_NM)
    assert table.empty
    assert table["frame"].dtype == np.int64
    assert table["x_nm"].dtype == np.float64


def test_the_offset_of_the_camera_is_taken_away() -> None:
    counts = movie()
    table = detect_frames(counts, pixel_nm=PIXEL_NM, camera=Camera(offset=80.0))
    raised = detect_frames(counts + np.uint16(250), pixel_nm=PIXEL_NM, camera=Camera(offset=330.0))
    pd.testing.assert_frame_equal(table, raised)
    offsets = np.random.default_rng(2).integers(0, 200, counts.shape[1:]).astype(np.float32)
    per_pixel = (counts + offsets.astype(np.uint16)).astype(np.uint16)
    mapped = detect_frames(per_pixel, pixel_nm=PIXEL_NM, camera=Camera(offset=offsets))
    pd.testing.assert_frame_equal(mapped, detect_frames(counts, pixel_nm=PIXEL_NM))


def test_below_the_offset_the_level_does_not_matter() -> None:
    counts = movie()
    tables = [detect_frames(counts, pixel_nm=PIXEL_NM, camera=Camera(offset=o)) for o in (400.0, 900.0)]
    pd.testing.assert_frame_equal(*tables)


@settings(max_examples=15, deadline=None)
@given(st.integers(-9, 9), st.integers(-9, 9), st.integers(0, 5))
def test_moving_the_light_moves_the_candidates(dy: int, dx: int, seed: int) -> None:
    patch = np.random.default_rng(seed).poisson(30.0, (16, 16))
    counts = np.zeros((2, 64, 64), np.uint16)
    counts[0, 24:40, 24:40] = patch
    counts[1, 24 + dy : 40 + dy, 24 + dx : 40 + dx] = patch
    table = detect_frames(counts, pixel_nm=PIXEL_NM)
    assert {(row + dy, column + dx) for row, column in pixels(table, 0)} == pixels(table, 1)
    assert pixels(table, 0)


def test_the_result_does_not_depend_on_the_block() -> None:
    counts = movie(5)
    whole = detect_frames(counts, pixel_nm=PIXEL_NM)
    for block in (1, 2 * 40 * 52, 3 * 40 * 52 + 7):
        parts = detect_frames(counts, DetectOptions(block_pixels=block), pixel_nm=PIXEL_NM)
        pd.testing.assert_frame_equal(parts, whole)


def test_difference_of_gaussians() -> None:
    counts = movie()
    options = DetectOptions(detector="dog", threshold="mean(DoG.G1) / 8 + 2*std(F)")
    table = detect_frames(counts, options, pixel_nm=PIXEL_NM, camera=Camera(offset=90.0))
    for index, frame in enumerate(counts):
        narrow, wide = (
            ndimage.gaussian_filter(above(frame, 90.0), sigma, mode="nearest", radius=radius)
            for sigma, radius in ((1.0, 4), (1.6, 7))
        )
        threshold = narrow.mean() / 8 + 2 * np.std(narrow - wide, ddof=1)
        expected = slow_maxima(narrow - wide, threshold)
        assert len(expected) > 3
        assert pixels(table, index) == expected


# ---- kernels


def test_the_default_kernel_is_binomial() -> None:
    np.testing.assert_allclose(bspline_kernel(3, 2.0), K1, rtol=1e-15)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("scale", [1.0, 2.0, 2.7, 5.0])
def test_kernels_are_sampled_b_splines(order: int, scale: float) -> None:
    kernel = bspline_kernel(order, scale)
    assert kernel.sum() == pytest.approx(1.0)
    assert len(kernel) == 2 * np.ceil(order * scale / 2) - 1
    np.testing.assert_allclose(kernel, kernel[::-1], atol=1e-15)
    # A B-spline is a box convolved with itself order - 1 times: on a fine grid, then sampled.
    fine = 1000
    box = np.ones(fine) / fine
    spline = np.ones(fine)
    for _ in range(order - 1):
        spline = np.convolve(spline, box)
    position = (np.arange(len(spline)) + 0.5) / fine - len(spline) / fine / 2
    t = (np.arange(len(kernel)) - len(kernel) // 2) / scale
    sampled = np.interp(t, position, spline)
    np.testing.assert_allclose(kernel, sampled / sampled.sum(), atol=2e-3)


def test_another_scale_has_its_own_padding() -> None:
    counts = movie()
    table = detect_frames(counts, DetectOptions(wavelet_scale=3.0), pixel_nm=PIXEL_NM)
    k1 = bspline_kernel(3, 3.0)
    k2 = np.zeros(2 * len(k1) - 1)
    k2[::2] = k1
    first, second = slow_levels(above(counts[0], 0.0), k1, k2)
    expected = slow_maxima(second, float(np.std(first, ddof=1)))
    assert expected
    assert pixels(table) == expected


# ---- thresholds


@pytest.mark.parametrize(
    ("threshold", "value"),
    [
        ("12.5", lambda i, f, f1: 12.5),
        ("1.5*std(Wave.F1)", lambda i, f, f1: 1.5 * np.std(f1, ddof=1)),
        ("mean(I) / 10 + var(F) ^ 0.5", lambda i, f, f1: i.mean() / 10 + np.std(f, ddof=1)),
        ("median(abs(F - median(F))) / 0.6745", lambda i, f, f1: np.median(abs(f - np.median(f))) / 0.6745),
        ("sum(abs(I)) % 7", lambda i, f, f1: np.sum(abs(i)) % 7),
        ("(max(Wave.F2) - min(Wave.F)) / 4", lambda i, f, f1: np.ptp(f) / 4),
        ("std(DoG.I - Wave.I + F) * 2", lambda i, f, f1: 2 * np.std(f, ddof=1)),
    ],
)
def test_a_threshold_is_a_formula(threshold: str, value: object) -> None:
    assert callable(value)
    counts = movie()
    table = detect_frames(
        counts, DetectOptions(threshold=threshold), pixel_nm=PIXEL_NM, camera=Camera(offset=95.0)
    )
    for index, frame in enumerate(counts):
        image = above(frame, 95.0)
        first, second = slow_levels(image)
        assert pixels(table, index) == slow_maxima(second, float(value(image, second, first)))


@pytest.mark.parametrize(
    ("threshold", "words"),
    [
        ("Wave.F1", "std"),
        ("I > mean(I)", "one threshold"),
        ("mean(I) > 40", "number of counts"),
        ("sum(I > 40)", "beside a comparison"),
        ("std(Wave.F3)", "Did you mean Wave.F"),
        ("", "expected"),
    ],
)
def test_thresholds_that_are_none(threshold: str, words: str) -> None:
    with pytest.raises(InputRejected, match=words):
        DetectOptions(threshold=threshold)


def test_a_threshold_that_is_no_number_names_the_frame() -> None:
    counts = movie(2)
    with pytest.raises(InputRejected, match="frame 0"):
        detect_frames(counts, DetectOptions(threshold="1 / (mean(I) - mean(I))"), pixel_nm=PIXEL_NM)


# ---- refusals


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"detector": "thunderstorm"}, "'thunderstorm' is unknown"),
        ({"connectivity": 6}, "connectivity 6"),
        ({"wavelet_order": 0}, "order 0"),
        ({"wavelet_scale": float("nan")}, "scale nan"),
        ({"wavelet_scale": 1000.0}, "scale 1000"),
        ({"dog_sigma_px": (2.0, 1.0)}, "dog_sigma_px 2 and 1"),
        ({"dog_sigma_px": (0.0, 1.0)}, "dog_sigma_px 0 and 1"),
        ({"block_pixels": 0}, "block_pixels 0"),
    ],
)
def test_options_that_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(InputRejected, match=words):
        DetectOptions(**options)


def test_frames_that_are_refused() -> None:
    counts = movie(2).astype(np.float32)
    with pytest.raises(InputRejected, match="frame, row, column"):
        detect_frames(counts[0], pixel_nm=PIXEL_NM)
    with pytest.raises(InputRejected, match="pixel_nm"):
        detect_frames(counts, pixel_nm=0.0)
    with pytest.raises(InputRejected, match="pixel_nm"):
        next(detect(Source(counts), pixel_nm=float("nan")))
    with pytest.raises(InputRejected, match="offset map"):
        detect_frames(counts, pixel_nm=PIXEL_NM, camera=Camera(offset=np.zeros((2, 2), np.float32)))
    counts[1, 3, 3] = np.nan
    with pytest.raises(InputRejected, match="frame 1 "):
        detect_frames(counts, pixel_nm=PIXEL_NM)


# ---- a movie in blocks


@dataclass(frozen=True)
class Source:
    counts: NDArray[np.generic]
    first_frame: int = 0
    x0: int = 0
    y0: int = 0
    broken: int | None = None

    @property
    def n_frames(self) -> int:
        return len(self.counts)

    def read(self, start: int, stop: int) -> NDArray[np.generic]:
        if self.broken is not None and start <= self.broken < stop:
            raise SmlmError("damaged")
        return self.counts[start:stop, None]


def test_a_stream_is_the_batch() -> None:
    counts = movie(7)
    steps: list[tuple[int, int]] = []
    options = DetectOptions(block_pixels=3 * 40 * 52)
    stream = list(
        detect(Source(counts), options, pixel_nm=PIXEL_NM, on_step=lambda *step: steps.append(step))
    )
    assert [(block.first, block.stop) for block in stream] == [(0, 1), (1, 4), (4, 7)]
    assert steps == [(1, 7), (4, 7), (7, 7)]
    table = pd.concat([block.table for block in stream], ignore_index=True)
    pd.testing.assert_frame_equal(table, detect_frames(counts, pixel_nm=PIXEL_NM))


def test_a_stream_refers_to_the_whole_movie() -> None:
    counts = movie(2)
    (first, second) = detect(Source(counts, first_frame=10, x0=5, y0=7), pixel_nm=PIXEL_NM)
    table = pd.concat([first.table, second.table], ignore_index=True)
    alone = detect_frames(counts, pixel_nm=PIXEL_NM)
    for name, shift in (("frame", 10), ("column", 5), ("row", 7), ("x_nm", 550.0), ("y_nm", 770.0)):
        np.testing.assert_allclose(table[name], alone[name] + shift, rtol=1e-12)


def test_a_bad_frame_is_reported_and_the_rest_goes_on() -> None:
    counts = movie(6).astype(np.float32)
    counts[2, 0, 0] = np.inf
    blocks = list(detect(Source(counts, first_frame=1, broken=4), pixel_nm=PIXEL_NM))
    failed = {frame: reason for block in blocks for frame, reason in block.failed.items()}
    assert set(failed) == {3, 5}
    assert "not finite" in failed[3]
    assert failed[5] == "damaged"
    found = pd.concat([block.table for block in blocks], ignore_index=True)
    expected = detect_frames(movie(6), pixel_nm=PIXEL_NM)
    kept = expected[~expected["frame"].isin([2, 4])]
    assert (found["frame"] - 1).tolist() == kept["frame"].tolist()


def test_two_channels_are_refused() -> None:
    @dataclass(frozen=True)
    class TwoChannels(Source):
        def read(self, start: int, stop: int) -> NDArray[np.generic]:
            return np.repeat(self.counts[start:stop, None], 2, axis=1)

    with pytest.raises(InputRejected, match="one channel"):
        list(detect(TwoChannels(movie(1)), pixel_nm=PIXEL_NM))


# ---- windows and centroids


def at(*positions: tuple[int, int, int]) -> pd.DataFrame:
    return pd.DataFrame(np.array(positions).reshape(-1, 3), columns=["frame", "row", "column"])


def test_boxes_are_windows_that_lie_inside() -> None:
    frames = movie(2, 20, 30)
    detections = at((0, 2, 2), (1, 17, 27), (0, 1, 10), (0, 10, 1), (1, 18, 10), (1, 10, 28), (1, 9, 11))
    boxes, inside = crop_boxes(frames, detections, 5)
    assert inside.tolist() == [True, True, False, False, False, False, True]
    for box, (frame, row, column) in zip(boxes, detections[inside].to_numpy(), strict=True):
        np.testing.assert_array_equal(box, frames[frame, row - 2 : row + 3, column - 2 : column + 3])
    boxes[0] = 0
    assert frames[0, 2, 2] > 0


def test_boxes_of_two_channels() -> None:
    frames = np.stack([movie(3, 20, 30), movie(3, 20, 30, seed=1)], axis=1)
    boxes, _ = crop_boxes(frames, at((2, 9, 11), (0, 8, 7)), 3)
    assert boxes.shape == (2, 2, 3, 3)
    np.testing.assert_array_equal(boxes[0, 1], frames[2, 1, 8:11, 10:13])


def test_boxes_that_do_not_exist() -> None:
    frames = movie(1, 20, 30)
    boxes, inside = crop_boxes(frames, at((0, 3, 3)), 41)
    assert boxes.shape == (0, 41, 41)
    assert not inside.any()
    assert crop_boxes(frames, at(), 5)[0].shape == (0, 5, 5)
    with pytest.raises(InputRejected, match="odd"):
        crop_boxes(frames, at((0, 3, 3)), 4)
    with pytest.raises(InputRejected, match="frames 0 to 1"):
        crop_boxes(frames, at((0, 3, 3), (1, 3, 3)), 3)


def test_the_centroid_is_that_of_the_light() -> None:
    y, x = np.mgrid[-8:9, -8:9]
    shifts = np.array([(0.0, 0.0), (0.4, -0.3), (-0.5, 0.2)])
    spots = np.stack([np.exp(-((x - dx) ** 2 + (y - dy) ** 2) / (2 * 1.3**2)) for dx, dy in shifts])
    np.testing.assert_allclose(coarse_centroid(100 + 500 * spots), shifts, atol=1e-3)
    np.testing.assert_array_equal(coarse_centroid(np.full((1, 5, 5), 3, np.uint16)), [[0.0, 0.0]])
    with pytest.raises(InputRejected, match="size"):
        coarse_centroid(spots[0])


def test_corners_follow_the_border_rule() -> None:
    found = at((0, 1, 5), (0, 6, 6), (0, 10, 11))
    corners, kept = box_corners(found, 5, (12, 12))
    assert corners.tolist() == [[4, 4]]
    assert kept.tolist() == [False, True, False]
    shifted, kept = box_corners(found, 5, (12, 12), border="shift")
    assert shifted.tolist() == [[0, 3], [4, 4], [7, 7]]
    assert kept.all()
    frame = np.arange(144).reshape(1, 12, 12)
    boxes, _ = crop_boxes(frame, found, 5, border="shift")
    assert boxes[:, 0, 0].tolist() == [3, 52, 91]
    # A frame smaller than the box has no room to shift to.
    assert not box_corners(found, 13, (12, 12), border="shift")[1].any()
    with pytest.raises(InputRejected, match="border rule 'mirror'"):
        box_corners(found, 5, (12, 12), border="mirror")  # type: ignore[arg-type]
