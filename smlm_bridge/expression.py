"""Formulas of ThunderSTORM, such as ``2*std(Wave.F1)``: parsed by this file, never by Python.

Numbers, names (``F``, ``Wave.F1``), ``+ - * / % ^``, comparisons ``< > <= >= = == !=`` and ``& | !`` (1 for
true, 0 for false; everything but 0 is true), and the functions of ``FUNCTIONS``. From loose to tight: ``|``,
``&``, comparisons, ``+ -``, ``* / %``, signs and ``!``, ``^`` (to the right: ``2^3^2`` is 512). ``%`` has the
sign of its first operand, ``std`` and ``var`` divide by n - 1, both as in ThunderSTORM.
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
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<name>[A-Za-z_]\w*(?:\.\w+)*)"
    r"|(?P<sign><=|>=|==|!=|[-+*/%^&|<>=!()])|(?P<end>$)|(?P<wrong>.))"
)


def _variance(values: NDArray[Any], axis: Axes) -> NDArray[Any]:
    mean = np.mean(values, axis=axis, keepdims=True)
    deviation = values - mean
    squares = np.sum(np.square(deviation, out=deviation), axis=axis, keepdims=True)
    return np.asarray(squares / (values.size // max(mean.size, 1) - 1))


def _over(function: Callable[..., Any]) -> Callable[[NDArray[Any], Axes], NDArray[Any]]:
    return lambda values, axis: np.asarray(function(values, axis=axis, keepdims=True))


_REDUCTIONS: Final[Mapping[str, Callable[[NDArray[Any], Axes], NDArray[Any]]]] = {
    "var": _variance,
    "std": lambda values, axis: np.sqrt(_variance(values, axis)),
    "mean": _over(np.mean),
    "median": _over(np.median),
    "max": _over(np.max),
    "min": _over(np.min),
    "sum": _over(np.sum),
}
#: Names of the functions: all but ``abs`` make one number of an array.
FUNCTIONS: Final = (*_REDUCTIONS, "abs")

_BINARY: Final[Mapping[str, tuple[int, Callable[..., Any]]]] = {
    "|": (1, np.logical_or),
    "&": (2, np.logical_and),
    "=": (3, np.equal),
    "==": (3, np.equal),
    "!=": (3, np.not_equal),
    "<": (3, np.less),
    ">": (3, np.greater),
    "<=": (3, np.less_equal),
    ">=": (3, np.greater_equal),
    "+": (4, np.add),
    "-": (4, np.subtract),
    "*": (5, np.multiply),
    "/": (5, np.true_divide),
    "%": (5, np.fmod),
    "^": (7, np.power),
}
_PREFIX: Final[Mapping[str, Callable[..., Any]]] = {
    "-": np.negative,
    "+": np.positive,
    "!": np.logical_not,
}
_PREFIX_POWER: Final = 6


@dataclass(frozen=True)
class _Node:
    """One operation; ``what`` is a number, the name of a variable or reduction, or a numpy function."""

    kind: str
    what: Any
    parts: tuple["_Node", ...] = ()
    is_array: bool = False


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
        Whether its value has one element for each of the variables' elements, or is one number.
    """

    text: str
    names: frozenset[str]
    is_array: bool
    _root: _Node

    def evaluate(self, variables: Mapping[str, NDArray[Any]], *, axis: Axes) -> NDArray[np.float64]:
        """The value; functions such as ``mean`` run over ``axis`` and keep it with length 1.

        Where the formula has no value (a division by 0) it is infinite or NaN.

        Parameters
        ----------
        variables
            Arrays that broadcast, at least those of ``names``.
        axis
            What makes up "an array" to the functions: (1, 2) for images (T, H, W), 0 for columns.
        """
        with np.errstate(all="ignore"):
            return np.asarray(_value(self._root, variables, axis), dtype=np.float64)


def parse(text: str, names: Collection[str]) -> Expression:
    """Parse a formula.

    Parameters
    ----------
    text
        The formula, at most 400 characters.
    names
        The variables it may use.

    Raises
    ------
    InputRejected
        If it is no formula, uses another name, or takes the mean of a number; the message shows where.
    """
    if len(text) > LONGEST:
        raise InputRejected(f"a formula of {len(text)} characters was given; allowed are {LONGEST}.")
    parser = _Parser(text, names)
    root = parser.expression(0, 0)
    parser.expect("end")
    return Expression(text, frozenset(_names(root)), root.is_array, root)


class _Parser:
    """Reads tokens from left to right, by precedence climbing."""

    def __init__(self, text: str, names: Collection[str]) -> None:
        self.text = text
        self.names = names
        self.matches = _TOKEN.finditer(text)
        self.advance()

    def advance(self) -> None:
        match = next(self.matches)
        self.kind = str(match.lastgroup)
        self.token = match[self.kind]
        self.position = match.start(self.kind)

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
        while self.kind == "sign" and self.token in _BINARY and _BINARY[self.token][0] >= least:
            power, function = _BINARY[self.token]
            self.advance()
            right = self.expression(power if function is np.power else power + 1, depth + 1)
            left = _Node("apply", function, (left, right), left.is_array or right.is_array)
        return left

    def operand(self, depth: int) -> _Node:
        kind, token = self.kind, self.token
        if kind == "number":
            if not np.isfinite(float(token)):
                self.refuse("the number is too large to be finite.")
            self.advance()
            return _Node("number", float(token))
        if kind == "name":
            return self.function(depth) if token in FUNCTIONS else self.variable()
        if kind == "sign" and token in _PREFIX:
            self.advance()
            inner = self.expression(_PREFIX_POWER, depth + 1)
            return _Node("apply", _PREFIX[token], (inner,), inner.is_array)
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
        if token not in self.names:
            near = difflib.get_close_matches(token, [*self.names, *FUNCTIONS], n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            self.refuse(
                f"unknown name {token}.{hint} Variables: {', '.join(sorted(self.names))}; functions: "
                f"{', '.join(FUNCTIONS)}."
            )
        self.advance()
        return _Node("variable", token, is_array=True)

    def function(self, depth: int) -> _Node:
        name = self.token
        self.advance()
        inner = self.bracket(depth)
        if name == "abs":
            return _Node("apply", np.abs, (inner,), inner.is_array)
        if not inner.is_array:
            self.refuse(f"{name}(...) is of one number; give it a variable.")
        return _Node("reduce", name, (inner,))


def _names(node: _Node) -> Iterator[str]:
    if node.kind == "variable":
        yield node.what
    for part in node.parts:
        yield from _names(part)


def _value(node: _Node, variables: Mapping[str, NDArray[Any]], axis: Axes) -> Any:
    if node.kind == "number":
        return node.what
    if node.kind == "variable":
        return variables[node.what]
    values = [_value(part, variables, axis) for part in node.parts]
    if node.kind == "reduce":
        return _REDUCTIONS[node.what](values[0], axis)
    return np.asarray(node.what(*values), dtype=np.float64)
