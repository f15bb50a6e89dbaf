"""Formulas of ThunderSTORM, such as ``2*std(Wave.F1)`` or ``uncertainty_xy < 20 & z > -300``.

They are read by this file, never by Python. There are numbers, names (``F``, ``Wave.F1``, ``x``),
``+ - * / % ^``, comparisons ``< > <= >= = == !=``, ``& | !`` (also ``&& || and or not``), and the functions of
``FUNCTIONS``. From loose to tight: ``|``, ``&``, ``!``, comparisons, ``+ -``, ``* / %``, signs, ``^`` (to the
right: ``2^3^2`` is 512). ``%`` has the sign of its first operand, ``std`` and ``var`` divide by n - 1, both as in
ThunderSTORM.

A formula is a number or a truth, and that is known before it has a value: comparisons take numbers and give
truths, ``& | !`` take and give truths, all else takes and gives numbers.
"""

import difflib
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from smlm_bridge.errors import InputRejected

Axes = int | tuple[int, ...]

LONGEST: Final = 400
DEEPEST: Final = 40

_TOKEN: Final = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<name>[^\W\d]\w*(?:\.\w+)*)"
    r"|(?P<sign><=|>=|==|!=|&&|\|\||[-+*/%^&|<>=!()])|(?P<end>$)|(?P<wrong>.))"
)
_SAME: Final = {"&&": "&", "||": "|", "and": "&", "or": "|", "not": "!"}
_HINTS: Final = {
    ",": "decimals have a point",
    "[": "names stand without their unit",
    "~": "'not' is !",
}
_ALLOWED: Final = "allowed are names, numbers, ( ) and + - * / % ^ < <= > >= = != & | !"


def _variance(values: NDArray[Any], axis: Axes) -> NDArray[Any]:
    mean = np.mean(values, axis=axis, keepdims=True)
    deviation = values - mean
    squares = np.sum(np.square(deviation, out=deviation), axis=axis, keepdims=True)
    return np.asarray(squares / max(values.size // max(mean.size, 1) - 1, 1))


def _over(function: Callable[..., Any]) -> Callable[[NDArray[Any], Axes], NDArray[Any]]:
    return lambda values, axis: np.asarray(function(values, axis=axis, keepdims=True))


_REDUCTIONS: Final[Mapping[str, Callable[[NDArray[Any], Axes], NDArray[Any]]]] = {
    "mean": _over(np.mean),
    "std": lambda values, axis: np.sqrt(_variance(values, axis)),
    "var": _variance,
    "median": _over(np.median),
    "min": _over(np.min),
    "max": _over(np.max),
    "sum": _over(np.sum),
}
#: Names of the functions: all but ``abs`` make one number of an array.
FUNCTIONS: Final = ("abs", *_REDUCTIONS)

_NOT, _COMPARISON, _SIGN = 3, 4, 7
#: How tightly an operator binds, and what it does.
_BINARY: Final[Mapping[str, tuple[int, Callable[..., Any]]]] = {
    "|": (1, np.logical_or),
    "&": (2, np.logical_and),
    "=": (_COMPARISON, np.equal),
    "==": (_COMPARISON, np.equal),
    "!=": (_COMPARISON, np.not_equal),
    "<": (_COMPARISON, np.less),
    ">": (_COMPARISON, np.greater),
    "<=": (_COMPARISON, np.less_equal),
    ">=": (_COMPARISON, np.greater_equal),
    "+": (5, np.add),
    "-": (5, np.subtract),
    "*": (6, np.multiply),
    "/": (6, np.true_divide),
    "%": (6, np.fmod),
    "^": (8, np.power),
}
_PREFIX: Final[Mapping[str, tuple[int, Callable[..., Any]]]] = {
    "-": (_SIGN, np.negative),
    "+": (_SIGN, np.positive),
    "!": (_NOT, np.logical_not),
}


@dataclass(frozen=True)
class _Node:
    """One operation; ``what`` is a number, the name of a variable or reduction, or a numpy function."""

    kind: str
    what: Any
    parts: tuple["_Node", ...] = ()
    is_array: bool = False
    is_truth: bool = False


@dataclass(frozen=True)
class Expression:
    """A parsed formula.

    Parameters
    ----------
    text
        As it was given.
    names
        The variables it uses.
    is_array
        Whether its value has one element for each of the variables' elements, or is one.
    is_truth
        Whether its value is true or false, or a number.
    """

    text: str
    names: frozenset[str]
    is_array: bool
    is_truth: bool
    _root: _Node

    def evaluate(
        self, variables: Mapping[str, NDArray[Any]], *, axis: Axes, finite_only: bool = False
    ) -> NDArray[np.float64]:
        """The value; functions such as ``mean`` run over ``axis`` and keep it with length 1.

        Where the formula has no value (a division by 0) it is infinite or NaN. A truth is 1 or 0; what is NaN
        fulfils no comparison but ``!=``. ``std`` and ``var`` of one value are 0.

        Parameters
        ----------
        variables
            Arrays that broadcast, at least those of ``names``.
        axis
            What makes up "an array" to the functions: (1, 2) for images (T, H, W), 0 for columns.
        finite_only
            Whether the functions leave out what is not finite; of nothing at all they are NaN. For columns (N,)
            only.
        """
        with np.errstate(all="ignore"):
            return np.asarray(_value(self._root, variables, axis, finite_only), dtype=np.float64)


def parse(text: str, names: Collection[str] | None) -> Expression:
    """Parse a formula.

    Parameters
    ----------
    text
        The formula, at most 400 characters.
    names
        The variables it may use. None takes any: whoever asks looks up ``Expression.names``.

    Raises
    ------
    InputRejected
        If it is no formula, uses another name, takes the mean of a number, or has a number where a truth is
        needed or the other way round; the message shows where.
    """
    if len(text) > LONGEST:
        raise InputRejected(
            f"a formula of {len(text)} characters was given; allowed are {LONGEST}. Write it shorter, or "
            "filter in two steps."
        )
    parser = _Parser(text, names)
    root = parser.expression(0, 0)
    parser.expect("end")
    return Expression(text, frozenset(_names(root)), root.is_array, root.is_truth, root)


class _Parser:
    """Reads tokens from left to right, by precedence climbing (Pratt 1973)."""

    def __init__(self, text: str, names: Collection[str] | None) -> None:
        self.text = text
        self.names = names
        self.matches = list(_TOKEN.finditer(text))
        self.index = -1
        self.advance()

    def advance(self) -> None:
        self.index += 1
        match = self.matches[self.index]
        self.kind = str(match.lastgroup)
        self.token = match[self.kind]
        self.position = match.start(self.kind)
        if self.token in _SAME:
            self.kind, self.token = "sign", _SAME[self.token]
        if self.kind == "wrong":
            self.refuse(f"'{self.token}' means nothing; {_HINTS.get(self.token, _ALLOWED)}.")

    def refuse(self, problem: str) -> NoReturn:
        where = f"at '{self.text[self.position :][:20]}'" if self.kind != "end" else "at its end"
        raise InputRejected(f"the formula '{self.text}' {where}: {problem}")

    def expect(self, token: str) -> None:
        """The end, or this sign; step over a sign."""
        if token == "end" and self.kind == "end":
            return
        if self.kind != "sign" or self.token != token:
            wanted = "an operator or the end" if token == "end" else f"'{token}'"
            self.refuse(f"expected {wanted}.")
        self.advance()

    def expression(self, least: int, depth: int) -> _Node:
        """Everything to the right that binds at least as tightly as ``least``."""
        if depth > DEEPEST:
            self.refuse(f"nested deeper than {DEEPEST} levels; write it shorter.")
        left = self.operand(depth)
        compared = False
        while self.kind == "sign" and self.token in _BINARY and _BINARY[self.token][0] >= least:
            sign = self.token
            power, function = _BINARY[sign]
            if compared and power == _COMPARISON:
                self.refuse("a comparison has two sides; write a < b & b < c.")
            compared = power == _COMPARISON
            self.advance()
            right = self.expression(power if function is np.power else power + 1, depth + 1)
            self.check(sign, left, right, truth=power < _COMPARISON)
            is_array = left.is_array or right.is_array
            left = _Node("apply", function, (left, right), is_array, is_truth=power <= _COMPARISON)
        return left

    def check(self, sign: str, *operands: _Node, truth: bool) -> None:
        """Refuse numbers where truths are needed, and the other way round."""
        if all(operand.is_truth == truth for operand in operands):
            return
        if truth:
            problem = "a number; it joins comparisons, for example (x > 100) & (y > 100)."
        else:
            problem = (
                "a comparison; it takes numbers. Join comparisons with & (and), | (or): 100 < x & x < 200."
            )
        raise InputRejected(f"in the formula '{self.text}' '{sign}' stands beside {problem}")

    def operand(self, depth: int) -> _Node:
        kind, token = self.kind, self.token
        if kind == "number":
            if not np.isfinite(float(token)):
                self.refuse("the number is too large to be finite.")
            self.advance()
            return _Node("number", float(token))
        if kind == "name":
            called = self.matches[self.index + 1]["sign"] == "("
            return self.function(depth) if called else self.variable()
        if kind == "sign" and token in _PREFIX:
            power, function = _PREFIX[token]
            self.advance()
            inner = self.expression(power, depth + 1)
            self.check(token, inner, truth=power == _NOT)
            return _Node("apply", function, (inner,), inner.is_array, inner.is_truth)
        if kind == "sign" and token == "(":
            return self.bracket(depth)
        self.refuse("expected a number, a name, a function or '('.")

    def bracket(self, depth: int) -> _Node:
        self.expect("(")
        inner = self.expression(0, depth + 1)
        self.expect(")")
        return inner

    def variable(self) -> _Node:
        token = self.token
        if self.names is not None and token not in self.names:
            if token in FUNCTIONS:
                self.refuse(f"expected '(' after {token}.")
            self.refuse(
                f"unknown name {token}.{_nearest(token, [*self.names, *FUNCTIONS])} Variables: "
                f"{', '.join(sorted(self.names))}; functions: {', '.join(FUNCTIONS)}."
            )
        self.advance()
        return _Node("variable", token, is_array=True)

    def function(self, depth: int) -> _Node:
        name = self.token
        if name not in FUNCTIONS:
            self.refuse(
                f"it calls '{name}', which is no function.{_nearest(name, FUNCTIONS)} Functions: "
                f"{', '.join(FUNCTIONS)}."
            )
        self.advance()
        inner = self.bracket(depth)
        self.check(name, inner, truth=False)
        if name == "abs":
            return _Node("apply", np.abs, (inner,), inner.is_array)
        if not inner.is_array:
            self.refuse(f"{name}(...) is of one number; give it a variable.")
        return _Node("reduce", name, (inner,))


def _nearest(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {near[0]}?" if near else ""


def _names(node: _Node) -> Iterator[str]:
    if node.kind == "variable":
        yield node.what
    for part in node.parts:
        yield from _names(part)


def _value(node: _Node, variables: Mapping[str, NDArray[Any]], axis: Axes, finite_only: bool) -> Any:
    if node.kind == "number":
        return node.what
    if node.kind == "variable":
        return variables[node.what]
    values = [_value(part, variables, axis, finite_only) for part in node.parts]
    if node.kind == "apply":
        return np.asarray(node.what(*values), dtype=np.float64)
    if finite_only:
        values[0] = values[0][np.isfinite(values[0])]
        if not values[0].size:
            return np.full(1, np.nan)
    return _REDUCTIONS[node.what](values[0], axis)
