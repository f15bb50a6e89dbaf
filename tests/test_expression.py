"""Formulas: their values, their precedence, and what is no formula."""

import contextlib
import math
import operator

import numpy as np
import pytest
from hypothesis import given, settings
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
        ("2 > 1 | 1 < 2 & 2 < 1", 1.0),
        ("2 < 1 & 2 < 1 | 1 < 2", 1.0),
        ("1 < 2 && 2 < 1 || 1 < 2", 1.0),
        ("not 1 > 2 and 2 > 1 or 1 > 2", 1.0),
        ("1 < 2 & !(2 < 1)", 1.0),
        ("!1 + 1 > 2", 1.0),
        ("1 + 1 < 2 * 2", 1.0),
        ("1 != 1", 0.0),
        ("2 == 2", 1.0),
        ("abs(-3)", 3.0),
        ("--3", 3.0),
        ("+4", 4.0),
        ("1.5E-3 + 1.", 1.0015),
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


def test_functions_of_columns_leave_out_what_is_not_finite_if_asked() -> None:
    def column(text: str, x: list[float], *, finite_only: bool = True) -> list[float]:
        formula = parse(text, ["x"])
        return list(formula.evaluate({"x": np.array(x)}, axis=0, finite_only=finite_only))

    x = [1.0, 2.0, 6.0, math.nan, math.inf]
    for name, expected in {"mean": 3, "median": 2, "min": 1, "max": 6, "sum": 9}.items():
        assert column(f"{name}(x)", x) == [expected]
    assert column("std(x)", x) == pytest.approx([np.std([1, 2, 6], ddof=1)])
    assert column("var(x)", x) == pytest.approx([np.var([1, 2, 6], ddof=1)])
    assert math.isnan(column("mean(x)", x, finite_only=False)[0])
    assert column("abs(x - 2)", [1.0, 4.0]) == [1, 2]
    assert column("mean(x) = mean(x)", [math.nan]) == [0]  # NaN, without a warning
    assert math.isnan(column("max(x)", [])[0])


@pytest.mark.parametrize("finite_only", [False, True])
def test_one_value_does_not_spread(finite_only: bool) -> None:
    formula = parse("std(a) + var(a)", ["a"])
    assert formula.evaluate({"a": np.ones(1)}, axis=0, finite_only=finite_only) == 0


@pytest.mark.parametrize("text", ["1 < 2", "!(F > 1)", "F > 1 & F < 2", "(F != 1)", "not F > mean(F)"])
def test_a_truth_is_known_before_it_has_a_value(text: str) -> None:
    assert parse(text, ["F"]).is_truth


@pytest.mark.parametrize("text", ["1", "F", "-F", "abs(F)", "mean(F) ^ 2"])
def test_a_number_is_known_before_it_has_a_value(text: str) -> None:
    assert not parse(text, ["F"]).is_truth


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("F & F > 1", "'&' stands beside a number; it joins comparisons"),
        ("F > 1 or 1", "'\\|' stands beside a number"),
        ("!F", "'!' stands beside a number"),
        ("!F + 1", "'!' stands beside a number"),
        ("(F > 5) + 1", "'\\+' stands beside a comparison; it takes numbers"),
        ("-(F > 5)", "'-' stands beside a comparison"),
        ("abs(F > 5)", "'abs' stands beside a comparison"),
        ("mean(F > 5)", "'mean' stands beside a comparison"),
        ("(100 < F) < 200", "'<' stands beside a comparison"),
        ("100 < F < 200", "at '< 200': .* write a < b & b < c"),
        ("F > 1 & 100 < F + 1 != 200", "at '!= 200': .* write a < b & b < c"),
    ],
)
def test_truths_and_numbers_are_kept_apart(text: str, words: str) -> None:
    with pytest.raises(InputRejected, match=words):
        parse(text, ["F"])


def test_any_name_is_taken_where_the_caller_looks_it_up() -> None:
    formula = parse("largeur_µm + sum + max(µ.x)", None)
    assert formula.names == {"largeur_µm", "sum", "µ.x"}
    assert parse("sum > 1", ["sum"]).names == {"sum"}


def test_an_expression_knows_its_variables() -> None:
    formula = parse("2*std(Wave.F1) + mean(I - I)", ["I", "F", "Wave.F1"])
    assert formula.names == {"I", "Wave.F1"}
    assert not formula.is_array


def test_what_has_no_value_is_not_finite_and_does_not_warn() -> None:
    assert math.isnan(value("0 / 0"))
    assert math.isinf(value("1 / 0"))
    assert math.isnan(value("(-8) ^ 0.5"))


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
        ("1 $ 2", "at '\\$ 2': '\\$' means nothing; allowed are"),
        ("F > 1,5", "decimals have a point"),
        ("~(F > 5)", "'not' is !"),
        ("F.__class__", "unknown name F.__class__"),
        ("__import__('os')", "calls '__import__'"),
        ("exp(F)", "calls 'exp'.*abs, mean"),
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


PARTS = ["1", "2.5", "x", "+", "-", "*", "/", "^", "<", "&", "|", "!", "(", ")", "abs", "mean", "and", "not"]


@given(st.one_of(st.lists(st.sampled_from(PARTS), max_size=20).map(" ".join), st.text(max_size=60)))
@settings(max_examples=200, deadline=None)
def test_any_text_is_a_formula_or_refused(text: str) -> None:
    with contextlib.suppress(InputRejected):
        formula = parse(text, ["x"])
        assert text.strip()
        result = formula.evaluate({"x": np.array([1.0, 2.0])}, axis=0)
        assert result.shape in ([(2,)] if formula.is_array else [(), (1,)])
        assert not formula.is_truth or set(result.reshape(-1)) <= {0.0, 1.0}
