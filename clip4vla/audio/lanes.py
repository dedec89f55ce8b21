"""Vectors of sixteen floats for kernels that numba compiles: one register of AVX-512, two of AVX2, four of NEON.

Numba leaves it to LLVM to find loops that can be vectorised, which fails where it can't prove that arrays don't
overlap. Inside a compiled function `load` gives a `Lanes`, `store` writes one, and `+ - *` work lane by lane; nothing
of it can be called from Python. Arrays are contiguous float32, places in them count from their start, and no bound is
checked.
"""

import operator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.typing.templates import ConcreteTemplate, infer_global
from numba.extending import intrinsic, lower_builtin, models, register_model

LANES = 16
_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_INTEGERS = ir.VectorType(ir.IntType(32), LANES)
_CONTRACT = ("contract", "nsz")
"""What LLVM may do to arithmetic: fuse a product and a sum, and lose the sign of a zero."""


class _Lanes(types.Type):
    def __init__(self) -> None:
        super().__init__(name=f"Lanes({LANES} x float32)")


lanes = _Lanes()


@register_model(_Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: _Lanes) -> None:
        super().__init__(manager, kind, _FLOATS)


@intrinsic
def load(_typing: Any, array: types.Array, place: types.Integer) -> Any:
    """The sixteen floats of `array` from `place` on."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        return builder.load(_pointer(context, builder, signature.args[0], *arguments), align=4)

    return lanes(array, types.intp), generate


@intrinsic
def store(_typing: Any, array: types.Array, place: types.Integer, values: _Lanes) -> Any:
    """Write `values` to `array` from `place` on."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        target, place, values = arguments
        builder.store(values, _pointer(context, builder, signature.args[0], target, place), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes), generate


@intrinsic
def fill(_typing: Any, number: types.Float) -> Any:
    """A float32 in every lane."""

    def generate(_context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> ir.Value:
        return _filled(builder, arguments[0])

    return lanes(types.float32), generate


@intrinsic
def larger(_typing: Any, values: _Lanes, others: _Lanes) -> Any:
    """The larger of each two, and the first where one is not a number."""

    def generate(_context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> ir.Value:
        values, others = arguments
        return builder.select(builder.fcmp_ordered("<", values, others), others, values)

    return lanes(lanes, lanes), generate


@intrinsic
def logarithm(_typing: Any, values: _Lanes) -> Any:
    """Natural logarithms of positive normal numbers, to one unit in the last place; what isn't finite stays as it is.

    The polynomial is that of Cephes' `logf`, around 1 after the exponent is taken off.
    """

    def generate(_context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> ir.Value:
        return _logarithm(builder, arguments[0])

    return lanes(lanes), generate


@intrinsic
def transpose(
    _typing: Any,
    source: types.Array,
    start: types.Integer,
    step: types.Integer,
    target: types.Array,
    place: types.Integer,
    target_step: types.Integer,
) -> Any:
    """Write the matrix whose 16 rows of 16 begin at `start`, `step` apart, in `source`, transposed, to `target`."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        source, start, step, target, place, target_step = arguments
        read, write = signature.args[0], signature.args[3]
        rows = [
            builder.load(_pointer(context, builder, read, source, _row(builder, start, step, row)), align=4)
            for row in range(LANES)
        ]
        for row, values in enumerate(_transposed(builder, rows)):
            at = _row(builder, place, target_step, row)
            builder.store(values, _pointer(context, builder, write, target, at), align=4)
        return context.get_dummy_value()

    size = types.intp
    return types.void(source, size, size, target, size, size), generate


def _integer(value: int) -> ir.Constant:
    return ir.Constant(ir.IntType(32), value)


def _filled(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """A value in all lanes."""
    vector = ir.VectorType(value.type, LANES)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, _integer(0))
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), ir.Constant(_INTEGERS, [0] * LANES))


def _constant(value: float) -> ir.Constant:
    return ir.Constant(_FLOATS, [value] * LANES)


def _pointer(context: Any, builder: ir.IRBuilder, kind: types.Array, array: ir.Value, place: ir.Value) -> ir.Value:
    """Where the sixteen floats begin that `array`, of the type `kind`, has from `place` on."""
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [place]), _FLOATS.as_pointer())


def _row(builder: ir.IRBuilder, start: ir.Value, step: ir.Value, row: int) -> ir.Value:
    return builder.add(start, builder.mul(step, ir.Constant(step.type, row)))


def _transposed(builder: ir.IRBuilder, rows: list[ir.Value]) -> list[ir.Value]:
    """Sixteen vectors as the columns of sixteen: pairs of rows exchange blocks of 8, 4, 2 and 1 lanes."""
    rows = list(rows)
    for block in (8, 4, 2, 1):
        low = [lane if not lane & block else LANES + lane - block for lane in range(LANES)]
        high = [lane + block if not lane & block else LANES + lane for lane in range(LANES)]
        for row in range(LANES):
            if not row & block:
                pair = rows[row], rows[row + block]
                rows[row] = builder.shuffle_vector(*pair, ir.Constant(_INTEGERS, low))
                rows[row + block] = builder.shuffle_vector(*pair, ir.Constant(_INTEGERS, high))
    return rows


def _logarithm(builder: ir.IRBuilder, values: ir.Value) -> ir.Value:
    """Code of `logarithm`."""

    def times(a: ir.Value, b: ir.Value | float, plus: ir.Value | float) -> ir.Value:
        b, plus = (value if isinstance(value, ir.Value) else _constant(value) for value in (b, plus))
        return builder.fadd(builder.fmul(a, b, flags=_CONTRACT), plus, flags=_CONTRACT)

    bits = builder.bitcast(values, _INTEGERS)
    # exponent and mantissa so that the mantissa lies between the roots of 1/2 and of 2
    above = builder.sub(bits, ir.Constant(_INTEGERS, [0x3F3504F3] * LANES))
    exponent = builder.ashr(above, ir.Constant(_INTEGERS, [23] * LANES))
    fraction = builder.sub(bits, builder.shl(exponent, ir.Constant(_INTEGERS, [23] * LANES)))
    power = builder.sitofp(exponent, _FLOATS)
    x = builder.fsub(builder.bitcast(fraction, _FLOATS), _constant(1.0))
    square = builder.fmul(x, x)
    series = _constant(7.0376836292e-2)
    for coefficient in _LOGARITHM:
        series = times(series, x, coefficient)
    found = builder.fmul(builder.fmul(series, x), square)
    found = times(power, -2.12194440e-4, found)
    found = times(square, -0.5, found)
    found = times(power, 0.693359375, builder.fadd(x, found))
    finite = builder.fcmp_ordered("<", values, _constant(float("inf")))
    return builder.select(finite, found, values)


_LOGARITHM = (
    *(-1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1),
    *(-1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1),
)


def _arithmetic(operation: Any, instruction: str, *others: types.Type) -> None:
    """Let `operation` combine `Lanes` with each of `others`, by the name of a method of LLVM's builder."""
    cases = [lanes(lanes, other) for other in others]
    infer_global(operation)(type(f"_{instruction}", (ConcreteTemplate,), {"cases": cases}))

    def generate(_context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        values, other = arguments
        other = other if signature.args[1] is lanes else _filled(builder, other)
        return getattr(builder, instruction)(values, other, flags=_CONTRACT)

    for other in others:
        lower_builtin(operation, lanes, other)(generate)


_arithmetic(operator.add, "fadd", lanes)
_arithmetic(operator.sub, "fsub", lanes)
_arithmetic(operator.mul, "fmul", lanes, types.float32)
