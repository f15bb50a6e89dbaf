"""Formulas over the columns of a table, as ThunderSTORM's filter knows them: read into a tree, then computed.

Operators, from the loosest: ``|``, ``&``, ``!``, comparisons (``< <= > >= = == !=``), ``+ -``, ``* /``, sign,
``^``. Functions: abs, mean, std, median, min, max, sum; all but abs give one number for the whole table.
Nothing of a formula is ever handed to Python.
"""

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from smlm_bridge.errors import InputRejected

Value = NDArray[Any]
#: Gives the values of a column by its name, or raises ``InputRejected``.
Lookup = Callable[[str], Value]

_MAX_TOKENS: Final = 300  # bounds the depth of the tree; formulas of people have ten
_TOKEN: Final = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<name>[^\W\d]\w*)"
    r"|(?P<operator>&&|\|\||[<>=!]=|[-+*/^()<>=&|!])|(?P<other>\S))"
)
_SAME: Final = {"&&": "&", "||": "|", "==": "=", "and": "&", "or": "|", "not": "!"}
_LOGIC: Final = {"|": np.logical_or, "&": np.logical_and}
_COMPARE: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
    "=": operator.eq, "!=": operator.ne,
}  # fmt: skip
_ARITHMETIC: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "+": np.add, "-": np.subtract, "*": np.multiply, "/": np.divide, "^": np.power,
}  # fmt: skip
#: How tightly an operator binds; ``^`` binds to its right.
_POWER: Final = {
    "|": 1, "&": 2, **dict.fromkeys(_COMPARE, 4), "+": 5, "-": 5, "*": 6, "/": 6, "^": 8,
}  # fmt: skip
_NOT_POWER, _SIGN_POWER = 3, 7
_STATISTICS: Final[dict[str, Callable[[Value], Any]]] = {
    "mean": np.mean,
    "median": np.median,
    "min": np.min,
    "max": np.max,
    "sum": np.sum,
    "std": lambda values: np.std(values, ddof=1) if values.size > 1 else 0.0,
}
FUNCTIONS: Final = ("abs", *_STATISTICS)


@dataclass(frozen=True)
class Number:
    """A number."""

    value: float


@dataclass(frozen=True)
class Name:
    """A column."""

    name: str


@dataclass(frozen=True)
class Call:
    """A function of one argument, or a prefix operator."""

    function: str
    argument: "Node"


@dataclass(frozen=True)
class Binary:
    """An operator between two operands."""

    operator: str
    left: "Node"
    right: "Node"


Node = Number | Name | Call | Binary


def parse(text: str) -> Node:
    """Read a formula.

    Raises
    ------
    InputRejected
        If it is no formula; the message says where and what is allowed.
    """
    return _Parser(text).whole()


def compute(node: Node, lookup: Lookup) -> Value:
    """The value of a formula: an array of numbers or of truths, 0-d where no column is left in it.

    Values that are not finite are left out of statistics; of no value at all they are NaN.

    Raises
    ------
    InputRejected
        If numbers stand where truths are needed or the other way round, or ``lookup`` does not know a column.
    """
    with np.errstate(all="ignore"):
        return _compute(node, lookup)


def _compute(node: Node, lookup: Lookup) -> Value:
    match node:
        case Number(value):
            return np.asarray(value)
        case Name(name):
            return lookup(name)
        case Call(function, argument):
            return _call(function, _compute(argument, lookup))
        case Binary(sign, left, right):
            truth = sign in _LOGIC
            operands = (_operand(_compute(side, lookup), sign, truth=truth) for side in (left, right))
            action = (_LOGIC | _COMPARE | _ARITHMETIC)[sign]
            return np.asarray(action(*operands))


def _call(function: str, value: Value) -> Value:
    value = _operand(value, function, truth=function == "!")
    if function == "!":
        return np.logical_not(value)
    if function in ("+", "-", "abs"):
        action: Callable[[Value], Value] = {"+": np.positive, "-": np.negative, "abs": np.abs}[function]
        return np.asarray(action(value))
    finite = value[np.isfinite(value)]
    return np.asarray(_STATISTICS[function](finite) if finite.size else np.nan)


def _operand(value: Value, sign: str, *, truth: bool) -> Value:
    if (value.dtype.kind == "b") == truth:
        return value
    if truth:
        raise InputRejected(
            f"'{sign}' in the expression stands beside a number; it joins comparisons, for example "
            "(x > 100) & (y > 100)."
        )
    raise InputRejected(
        f"'{sign}' in the expression stands beside a comparison; it takes numbers. Join comparisons with & "
        "(and), | (or): 100 < x & x < 200."
    )


class _Parser:
    """Precedence climbing (Pratt 1973) over the tokens of one formula."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = _tokens(text)
        if len(self._tokens) > _MAX_TOKENS:
            raise InputRejected(
                f"the expression has {len(self._tokens)} parts, allowed are {_MAX_TOKENS}. Filter in two steps."
            )
        self._next = 0

    def whole(self) -> Node:
        node = self._expression(0)
        if self._next < len(self._tokens):
            self._refuse("an operator such as & | < > + -")
        return node

    def _peek(self) -> tuple[str, str]:
        kind, value, _ = self._tokens[self._next] if self._next < len(self._tokens) else ("end", "", 0)
        return kind, value

    def _expression(self, least: int) -> Node:
        left = self._operand()
        compared = False
        while True:
            kind, sign = self._peek()
            power = _POWER.get(sign, -1) if kind == "operator" else -1
            if power <= least:
                return left
            if sign in _COMPARE and compared:
                self._refuse("& (a comparison has two sides: write a < b & b < c)")
            compared = sign in _COMPARE
            self._next += 1
            left = Binary(sign, left, self._expression(power - 1 if sign == "^" else power))

    def _operand(self) -> Node:
        kind, value = self._peek()
        self._next += 1
        if kind == "number":
            return Number(float(value))
        if kind == "name":
            return self._call(value) if self._peek() == ("operator", "(") else Name(value)
        if value == "(":
            return self._closed()
        if value in ("-", "+"):
            return Call(value, self._expression(_SIGN_POWER))
        if value == "!":
            return Call(value, self._expression(_NOT_POWER))
        self._next -= 1
        self._refuse("a column, a number or (")

    def _call(self, name: str) -> Node:
        if name not in FUNCTIONS:
            raise InputRejected(
                f"the expression calls '{name}', which is no function; allowed are {', '.join(FUNCTIONS)}."
            )
        self._next += 1
        return Call(name, self._closed())

    def _closed(self) -> Node:
        node = self._expression(0)
        if self._peek() != ("operator", ")"):
            self._refuse(")")
        self._next += 1
        return node

    def _refuse(self, wanted: str) -> NoReturn:
        if self._next >= len(self._tokens):
            found = "ends"
        else:
            _, value, place = self._tokens[self._next]
            found = f"has '{value}' at character {place + 1}"
        raise InputRejected(
            f"the expression '{self._text}' {found}, where {wanted} is needed. "
            'For example "uncertainty_xy < 20 & z > -300".'
        )


def _tokens(text: str) -> list[tuple[str, str, int]]:
    """Kind, text and place of every token."""
    found = []
    for match in _TOKEN.finditer(text):
        kind = str(match.lastgroup)
        value, place = match[kind], match.start(kind)
        if kind == "other":
            hint = {
                ",": "decimals have a point",
                "[": "columns are named without their unit",
                "~": "'not' is !",
            }.get(value, "allowed are columns, numbers, ( ) and + - * / ^ < <= > >= = != & | !")
            raise InputRejected(
                f"the expression '{text}' has '{value}' at character {place + 1}, which means nothing: {hint}."
            )
        if value in _SAME:
            kind, value = "operator", _SAME[value]
        found.append((kind, value, place))
    return found
