"""The transform between channels: direction, inverse, and everything that is no transform."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smlm_bridge.errors import InputRejected
from smlm_bridge.transform import Transform

POINTS = np.random.default_rng(3).uniform(0, 20_000, (50, 2))
MATRIX, SHIFT = np.array([[1.01, 0.03], [-0.02, 0.98]]), np.array([340.0, -120.0])
CURVED = np.array([[10_000, 10_050], [9_900, 40], [-30, 10_100], [25, -10], [12, 8], [-18, 30]], dtype=float)
POLYNOMIAL = Transform("polynomial", CURVED, (10_000.0, 10_000.0), 10_000.0)


def test_an_affine_transform_is_a_matrix_and_a_shift() -> None:
    transform = Transform.affine(MATRIX, SHIFT)
    np.testing.assert_allclose(transform.apply(POINTS), POINTS @ MATRIX.T + SHIFT, rtol=1e-12)
    assert transform.apply([[1000.0, 0.0]])[0, 1] == pytest.approx(-140.0)  # y follows x by the second row


def test_the_terms_of_a_polynomial_are_in_the_documented_order() -> None:
    x, y = ((POINTS - 10_000) / 10_000).T
    terms = np.stack([np.ones(50), x, y, x * x, x * y, y * y], axis=1)
    np.testing.assert_allclose(POLYNOMIAL.apply(POINTS), terms @ CURVED, rtol=1e-12)


@pytest.mark.parametrize("transform", [Transform.affine(MATRIX, SHIFT), POLYNOMIAL, Transform.identity()])
def test_inverse_and_json_round_trip(transform: Transform) -> None:
    mapped = transform.apply(POINTS)
    np.testing.assert_allclose(transform.inverse(mapped), POINTS, atol=1e-5)
    again = Transform.from_json(transform.to_json())
    np.testing.assert_array_equal(again.apply(POINTS), mapped)
    assert again.kind == transform.kind
    assert transform.inverse(np.empty((0, 2))).shape == (0, 2)


@given(
    angle=st.floats(-3.1, 3.1),
    scale=st.floats(0.8, 1.2),
    mirrored=st.booleans(),
    shift=st.tuples(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4)),
)
@settings(max_examples=30, deadline=None)
def test_every_affine_transform_has_its_inverse(
    angle: float, scale: float, mirrored: bool, shift: tuple[float, float]
) -> None:
    cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
    matrix = np.array([[cosine, -sine], [sine, cosine]]) @ np.diag([-1.0 if mirrored else 1.0, 1.0])
    transform = Transform.affine(matrix, shift)
    np.testing.assert_allclose(transform.inverse(transform.apply(POINTS)), POINTS, atol=1e-5)


def test_a_fold_has_no_inverse() -> None:
    folded = CURVED.copy()
    folded[3] = (4000.0, 0.0)
    transform = Transform("polynomial", folded, (10_000.0, 10_000.0), 10_000.0)
    with pytest.raises(InputRejected, match="cannot be inverted"):
        transform.inverse([[-20_000.0, 10_000.0]])


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "another format": ({"format": "drift"}, "format"),
    "another version": ({"version": 2}, "version"),
    "pixels": ({"unit": "px"}, "unit"),
    "other direction": ({"maps": "channel 2 to channel 1"}, "maps"),
    "unknown key": ({"extra": 1}, "unknown keys extra"),
    "no coefficients": ({"coefficients": None}, "coefficients"),
    "missing": ({"scale_nm": ...}, "lacks scale_nm"),
    "one coordinate": ({"coefficients": [[0.0], [1.0], [0.0]]}, r"\(terms, 2\)"),
    "degree": ({"kind": "polynomial"}, "6, 10, 15, 21"),
    "kind": ({"kind": "homography"}, "affine or polynomial"),
    "flat": ({"coefficients": [[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]]}, "areas"),
    "scale of pixels": ({"coefficients": [[0.0, 0.0], [0.009, 0.0], [0.0, 0.009]]}, "not in pixels"),
    "far": ({"coefficients": [[1e9, 0.0], [1.0, 0.0], [0.0, 1.0]]}, "100 mm"),
    "text": ({"scale_nm": "one"}, "wrong kind"),
    "zero": ({"scale_nm": 0.0}, "above 0"),
    "provenance": ({"provenance": [1]}, "provenance"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_no_transform_is_named(change: str) -> None:
    values, words = CHANGES[change]
    content = json.loads(Transform.identity().to_json()) | values
    content = {key: value for key, value in content.items() if value is not ...}
    with pytest.raises(InputRejected, match=words) as caught:
        Transform.from_json(json.dumps(content), name="t.json")
    assert "t.json" in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"scale_nm": NaN}', "[" * 100_000])
def test_what_is_no_json_object_is_rejected(text: str) -> None:
    with pytest.raises(InputRejected, match=r"t\.json"):
        Transform.from_json(text, name="t.json")


def test_positions_have_two_columns() -> None:
    with pytest.raises(InputRejected, match=r"\(N, 2\)"):
        Transform.identity().apply([[1.0, 2.0, 3.0]])


@pytest.mark.parametrize("kind", ["affine", "polynomial"])
def test_a_region_of_both_channels_has_its_own_transform(kind: str) -> None:
    """Cut at one corner of either channel, a point goes to the same place."""
    terms = 3 if kind == "affine" else 6
    coefficients = np.random.default_rng(2).normal(0, 5, (terms, 2))
    coefficients[:3] += [[3000.0, 4000.0], [1010.0, 20.0], [-15.0, 990.0]]
    whole = Transform(kind, coefficients, (2000.0, 2500.0), 1000.0)  # type: ignore[arg-type]
    corner = (1100.0, 300.0)
    at = np.array([[1500.0, 900.0], [4000.0, 3500.0]])
    np.testing.assert_allclose(whole.between(corner).apply(at - corner), whole.apply(at) - corner, atol=1e-9)


def test_slopes_are_finite_differences() -> None:
    coefficients = np.random.default_rng(3).normal(0, 20, (6, 2))
    coefficients[1:3] += [[1000.0, 0.0], [0.0, -1000.0]]
    transform = Transform("polynomial", coefficients, (2000.0, 2500.0), 1000.0)
    at = np.array([[1500.0, 900.0]])
    for axis in (0, 1):
        step = np.zeros(2)
        step[axis] = 0.5
        difference = transform.apply(at + step) - transform.apply(at - step)
        np.testing.assert_allclose(transform.slopes(at)[0, :, axis], difference[0], atol=1e-6)
