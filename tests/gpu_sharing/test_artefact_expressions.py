"""The grammar of symbolic expressions: what export writes passes, and what passes is harmless to sympify."""

from __future__ import annotations

import re

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_sharing.runtimes.base import ArtefactRefused
from gpu_sharing.runtimes.expressions import check_expression, check_symbol

WRITTEN_BY_TORCH = [
    "Symbol('s43', positive=True, integer=True)",
    "Symbol('u0', integer=True)",
    "Add(Mul(Integer(2), Symbol('s0', positive=True, integer=True)), Integer(-1))",
    "Mul(Integer(-1), Symbol('s0', integer=True))",
    "FloorDiv(Symbol('s0', integer=True), Integer(2))",
    "Max(Integer(1), Symbol('u3', integer=True, nonnegative=True))",
    "Equality(Symbol('s0', integer=True), Integer(4))",
    "StrictLessThan(Symbol('s0', integer=True), Integer(4))",
    "Pow(Symbol('s0', positive=True, integer=True), Integer(2))",
    "PythonMod(Symbol('s0', integer=True), Integer(8))",
    "Mul(Rational(1, 2), Symbol('s0', integer=True))",
    "Float('0.5', precision=53)",
    "2*s0 + s1 // 2 - 1",
    "Eq(s0, 4)",
    "s0 <= 16",
    "-s0",
]

HOSTILE = [
    "__import__('os').system('true')",
    "().__class__.__base__.__subclasses__()",
    "open('/etc/passwd')",
    "exec('1')",
    "eval('1')",
    "lambda: 1",
    "[x for x in (1,)]",
    "s0.func",
    "s0[0]",
    "f'{s0}'",
    "'s0'",
    "Symbol('__import__(\"os\")')",
    "Symbol('s0', cls=Function)",
    "Symbol(s0)",
    "Symbol(*s0)",
    "Symbol(**s0)",
    "Float('__import__(\"os\")')",
    "sympify('1')",
    "Function('f')(s0)",
    "Lambda(s0, s0)",
    "E",
    "S",
    "Integer",
    "9 ** 9",
    "Pow(Integer(9), Integer(9999999))",
    "Pow(Pow(Integer(9), Integer(60)), Integer(60))",
    "Pow(Integer(9), Symbol('s0'))",
    "LShift(Integer(1), Integer(1000000))",
    "PowByNatural(Integer(2), PowByNatural(Integer(2), Integer(60)))",
    "1" * 400,
    "1e309",
    "s0 if s0 else s1",
    "s0 and s1",
    "s0; s1",
    "s0 := 1",
    "(s0",
    "",
    "s0" + " + s0" * 3000,
    "-" * 500 + "s0",
    "s9999999",
    "x",
]


@pytest.mark.parametrize("text", WRITTEN_BY_TORCH)
def test_what_export_writes_passes(text: str) -> None:
    assert check_expression(text, "here") == text


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:40])
def test_anything_else_is_refused_by_place(text: str) -> None:
    with pytest.raises(ArtefactRefused, match=r"here: expression "):
        check_expression(text, "here")


@pytest.mark.parametrize("value", [None, 3, ["s0"], {"s0": 1}, b"s0"])
def test_an_expression_must_be_text(value: object) -> None:
    with pytest.raises(ArtefactRefused, match="not text"):
        check_expression(value, "here")


@pytest.mark.parametrize("name", ["s", "S0", "s0 ", "s0\n", "s-1", "s1234567", "_s0", "é0", 0])
def test_a_symbol_must_have_a_name_that_torch_gives(name: object) -> None:
    with pytest.raises(ArtefactRefused, match="not a symbol"):
        check_symbol(name, "here")


PIECES = st.sampled_from(
    [
        *"()[]{}+-*/%<>=!.,:;'\"@\\~ ",
        "s0",
        "u1",
        "Integer",
        "Symbol",
        "Max",
        "__import__",
        "os",
        "lambda",
        "1",
        "\n",
        "\0",
    ]
)


@settings(max_examples=500, deadline=None)
@given(st.lists(PIECES, max_size=12).map("".join))
def test_whatever_passes_has_no_name_but_symbols_and_arithmetic(text: str) -> None:
    try:
        check_expression(text, "here")
    except ArtefactRefused:
        return
    # What is left once plain numbers such as "1.", ".1" and "1.1" are taken out.
    rest = re.sub(r"\d+\.\d*|\.\d+", "", text)
    for forbidden in ("__import__", "os", "lambda", ".", "[", "{", ";", "@"):
        assert forbidden not in rest


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.sampled_from([sympy.Symbol("s0", integer=True), sympy.Symbol("u1", integer=True), sympy.Integer(3)]),
        lambda below: st.tuples(st.sampled_from([sympy.Add, sympy.Mul, sympy.Max, sympy.Min]), below, below).map(
            lambda parts: parts[0](parts[1], parts[2])
        ),
        max_leaves=8,
    )
)
def test_every_expression_of_plain_arithmetic_passes_as_torch_writes_it(expression: sympy.Expr) -> None:
    check_expression(sympy.srepr(expression), "here")
