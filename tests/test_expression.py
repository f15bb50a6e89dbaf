"""Formulas: their values, their precedence, and what is no formula."""

import math
import operator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smlm_bridge.errors import InputRejected
from smlm_bridge.expression import DEEPEST, LONGEST, parse

A = np.arange(12.0).reshape(2, 2, 3)


def value(text: str) -> float:
    return float(parse(text, ()).evaluate({}, axis=0))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 + 2 * 3", 7.0),
        ("(1 + 2) * 3", 9.0),
        ("8 - 3 - 2", 3.0),
        ("8 / 4 / 2", 1.0),
        ("2 ^ 3 ^ 2", 512.0),
        ("-2 ^ 2", -4.0),
        ("2 ^ -1", 0.5),
        ("2 * -3", -6.0),
        ("-7 % 3", -1.0),
        ("1.5e2 + .5", 150.5),
        ("1 < 2", 1.0),
        ("1 + 1 = 2 & 3 >= 4", 0.0),
        ("0 & 0 | 1", 1.0),
        ("1 | 0 & 0", 1.0),
        ("!0 + 1", 2.0),
        ("1 != 1", 0.0),
        ("2 == 2", 1.0),
        ("abs(-3)", 3.0),
        ("--3", 3.0),
    ],
)
def test_values(text: str, expected: float) -> None:
    assert value(text) == expected


def test_functions_run_over_the_axes_they_are_told() -> None:
    for name, function in (("mean", np.mean), ("median", np.median), ("max", np.max), ("min", np.min)):
        result = parse(f"{name}(a)", ["a"]).evaluate({"a": A}, axis=(1, 2))
        np.testing.assert_array_equal(result.ravel(), function(A, axis=(1, 2)))
    std = parse("std(a)", ["a"]).evaluate({"a": A}, axis=(1, 2))
    np.testing.assert_allclose(std.ravel(), np.std(A, axis=(1, 2), ddof=1))
    var = parse("var(a)", ["a"]).evaluate({"a": A[0, 0]}, axis=0)
    np.testing.assert_allclose(var, [1.0])
    above = parse("a > mean(a) & a != 5", ["a"])
    assert above.is_array
    np.testing.assert_array_equal(above.evaluate({"a": np.arange(6.0)}, axis=0), [0, 0, 0, 1, 1, 0])


def test_an_expression_knows_its_variables() -> None:
    formula = parse("2*std(Wave.F1) + mean(I - I)", ["I", "F", "Wave.F1"])
    assert formula.names == {"I", "Wave.F1"}
    assert not formula.is_array


def test_what_has_no_value_is_not_finite_and_does_not_warn() -> None:
    assert math.isnan(value("0 / 0"))
    assert math.isinf(value("1 / 0"))
    assert math.isnan(value("(-8) ^ 0.5"))
    assert np.isnan(parse("std(a)", ["a"]).evaluate({"a": np.ones(1)}, axis=0)).all()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "at its end"),
        ("1 +", "at its end: expected a number"),
        ("1 2", "at '2': expected an operator"),
        ("(1", "expected '\\)'"),
        ("1)", "at '\\)'"),
        ("std F", "expected '\\('"),
        ("std(1)", "of one number"),
        ("std(mean(F))", "of one number"),
        ("stdev(F)", "Did you mean std\\?"),
        ("wave.F1", "unknown name wave.F1. Did you mean Wave.F1"),
        ("1 $ 2", "at '\\$ 2'"),
        ("F.__class__", "unknown name F.__class__"),
        ("__import__('os')", "unknown name __import__"),
        ("F[0]", "at '\\[0\\]'"),
        ("1e999", "finite"),
        ("(" * (DEEPEST + 2) + "1" + ")" * (DEEPEST + 2), "nested"),
        ("-" * (DEEPEST + 2) + "1", "nested"),
        ("1" * (LONGEST + 1), "characters"),
    ],
)
def test_what_is_no_formula(text: str, words: str) -> None:
    with pytest.raises(InputRejected, match=words):
        parse(text, ["F", "Wave.F1"])


def test_the_longest_chain_is_evaluated() -> None:
    assert value("+".join("1" * (LONGEST // 2))) == LONGEST // 2


NUMBERS = st.integers(0, 99)


@given(NUMBERS, st.lists(st.tuples(st.sampled_from("+-*"), NUMBERS), max_size=8))
def test_arithmetic_is_that_of_everyone(first: int, rest: list[tuple[str, int]]) -> None:
    text = f"{first}" + "".join(f" {sign} {number}" for sign, number in rest)
    terms, sign = [first], operator.add
    signs = [operator.add]
    for symbol, number in rest:
        if symbol == "*":
            terms[-1] *= number
        else:
            sign = operator.add if symbol == "+" else operator.sub
            signs.append(sign)
            terms.append(number)
    total = 0
    for apply, term in zip(signs, terms, strict=True):
        total = apply(total, term)
    assert value(text) == total


@given(st.text(max_size=60))
def test_any_text_is_a_formula_or_refused(text: str) -> None:
    try:
        parse(text, ["F"])
    except InputRejected:
        return
    assert text.strip()
