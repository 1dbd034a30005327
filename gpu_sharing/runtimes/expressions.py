"""The grammar of the symbolic expressions in an exported program; whatever else would reach `sympify` is code."""

from __future__ import annotations

import ast
import re

from gpu_sharing.runtimes.base import ArtefactRefused

MAX_LENGTH = 4096
MAX_TERMS = 512
MAX_DEPTH = 40
MAX_INTEGER = 1 << 63
MAX_POWER = 64
"""Powers and shifts, multiplied over their nesting: beyond it a short expression is a number that fills the memory."""

SYMBOL = re.compile(r"(?:s|u|zf|zuf)\d{1,6}", re.ASCII)
"""How torch names symbols. Six digits, since loading counts up to the largest unbacked one."""

ASSUMPTIONS = frozenset(
    (
        "integer",
        "positive",
        "nonnegative",
        "negative",
        "nonpositive",
        "real",
        "zero",
        "nonzero",
        "finite",
        "even",
        "odd",
    )
)

FUNCTIONS = frozenset(
    (
        *("Integer", "Rational", "Float", "Add", "Mul", "Max", "Min", "Abs", "floor", "ceiling", "Identity"),
        *("Mod", "PythonMod", "FloorDiv", "CeilDiv", "CleanDiv", "ModularIndexing", "IntTrueDiv", "FloatTrueDiv"),
        *("TruncToInt", "TruncToFloat", "CeilToInt", "FloorToInt", "RoundToInt", "RoundDecimal", "ToFloat", "Where"),
        *("Eq", "Ne", "Lt", "Le", "Gt", "Ge", "And", "Or", "Not", "Piecewise", "ExprCondPair"),
        *("Equality", "Unequality", "StrictLessThan", "LessThan", "StrictGreaterThan", "GreaterThan"),
        *("IsNonOverlappingAndDenseIndicator",),
    )
)
GROWING = frozenset(("Pow", "PowByNatural", "FloatPow", "LShift", "RShift"))
CONSTANTS = frozenset(("true", "false", "True", "False", "oo", "int_oo"))
OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod)
COMPARISONS = (ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE)


def check_expression(text: object, where: str) -> str:
    """Returns the expression if it is arithmetic over symbols and nothing else; raises ArtefactRefused naming `where`."""
    if not isinstance(text, str) or not text or len(text) > MAX_LENGTH:
        raise _refused(where, text, f"not text of 1 to {MAX_LENGTH} characters")
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as broken:
        raise _refused(where, text, "not an expression") from broken
    _Checker(where, text).visit(tree.body, depth=0, power=1)
    return text


def check_symbol(name: object, where: str) -> str:
    """Returns the name if it is one that torch gives to a symbol, such as s0 or u12."""
    if not isinstance(name, str) or not SYMBOL.fullmatch(name):
        raise _refused(where, name, "not a symbol such as s0 or u0")
    return name


def _refused(where: str, text: object, problem: str) -> ArtefactRefused:
    return ArtefactRefused(f"{where}: expression {str(text)[:120]!r}: {problem}")


class _Checker:
    def __init__(self, where: str, text: str) -> None:
        self._where = where
        self._text = text
        self._terms = 0

    def visit(self, node: ast.expr, *, depth: int, power: int) -> None:
        self._terms += 1
        if depth > MAX_DEPTH or self._terms > MAX_TERMS:
            raise _refused(self._where, self._text, f"more than {MAX_TERMS} terms, or deeper than {MAX_DEPTH}")
        below = {"depth": depth + 1, "power": power}
        match node:
            case ast.Constant(value=value):
                self._number(value)
            case ast.Name(id=name) if SYMBOL.fullmatch(name) or name in CONSTANTS:
                pass
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                self.visit(operand, **below)
            case ast.BinOp(left=left, op=op, right=right) if isinstance(op, OPERATORS):
                self.visit(left, **below)
                self.visit(right, **below)
            case ast.Compare(left=left, ops=[op], comparators=[right]) if isinstance(op, COMPARISONS):
                self.visit(left, **below)
                self.visit(right, **below)
            case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
                self._call(name, args, keywords, depth=depth, power=power)
            case _:
                raise _refused(self._where, self._text, f"{type(node).__name__} is not arithmetic")

    def _number(self, value: object) -> None:
        # No strings: sympify evaluates those that it finds inside an expression.
        if isinstance(value, bool) or (isinstance(value, float) and abs(value) < 1e300):
            return
        if not isinstance(value, int) or abs(value) > MAX_INTEGER:
            raise _refused(self._where, self._text, "only numbers of at most 64 bits may stand in it")

    def _call(self, name: str, args: list[ast.expr], keywords: list[ast.keyword], *, depth: int, power: int) -> None:
        if name in ("Symbol", "Float"):
            self._leaf(name, args, keywords)
            return
        if keywords or (name not in FUNCTIONS and name not in GROWING):
            raise _refused(self._where, self._text, f"{name} is not an allowed function")
        if name in GROWING:
            power *= self._exponent(args)
            if power > MAX_POWER:
                raise _refused(self._where, self._text, f"powers above {MAX_POWER} are not allowed")
        for arg in args:
            self.visit(arg, depth=depth + 1, power=power)

    def _exponent(self, args: list[ast.expr]) -> int:
        match args:
            case [_, ast.Constant(value=int(exponent))]:
                return max(abs(exponent), 1)
            case [_, ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(exponent)))]:
                return max(abs(exponent), 1)
            case [_, ast.Call(func=ast.Name(id="Integer"), args=[inner])]:
                return self._exponent([inner, inner])
            case [_, ast.Call(func=ast.Name(id="Rational"), args=[_, _])]:
                return 1
        raise _refused(self._where, self._text, "an exponent must be a number")

    def _leaf(self, name: str, args: list[ast.expr], keywords: list[ast.keyword]) -> None:
        allowed = ASSUMPTIONS if name == "Symbol" else frozenset(("precision",))
        pattern = SYMBOL if name == "Symbol" else re.compile(r"-?\d{1,64}(\.\d{1,64})?(e[+-]?\d{1,3})?", re.ASCII)
        match args:
            case [ast.Constant(value=str(value))] if pattern.fullmatch(value):
                pass
            case _:
                raise _refused(self._where, self._text, f"{name} needs one plain name or number")
        for keyword in keywords:
            said = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
            if keyword.arg not in allowed or not isinstance(said, int) or not 0 <= said <= 64:
                raise _refused(self._where, self._text, f"{name}: {keyword.arg} is not an allowed assumption")
