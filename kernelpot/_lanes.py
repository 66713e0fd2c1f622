"""Short vectors of numbers for compiled code: a register of 256 bits, or a group of eight.

LLVM vectorises a loop over arrays only behind a check that they do not overlap, which costs as
much as eight elements of work, and Numba leaves the vectoriser of straight-line code off. So the
inner loops here are written with vectors. ``load`` reads a register of consecutive elements of a
flat array, four of double precision or eight of single (``width`` tells), ``load8`` a group of
eight of either; ``zero`` makes a register of zeros for an array's precision, ``filled`` a vector
like another one; ``store`` writes consecutive elements, ``spread`` elements some distance apart.
Vectors are added to and multiplied with one another and with numbers. LLVM makes 256-bit code of
them on AVX2 and AVX-512, 128-bit code on SSE and NEON. Measured on the kernels of
``_soap_numba``: four times faster than the same source with tuples.

The precision is that of the arrays: the same source is compiled for both.

Uncompiled (``NUMBA_DISABLE_JIT``) the same source runs with NumPy arrays as vectors. Indices are
trusted and never negative.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from llvmlite import ir
from numba import extending as _extending
from numba import types as _types

__all__ = ["LANES", "at", "filled", "load", "load8", "spread", "store", "total", "width", "zero"]

LANES = 8

_REGISTER = 32
"""Bytes."""

# As in ``_jit``: sums may be reordered and fused; NaN and infinity keep their meaning.
_FLAGS = ("reassoc", "contract", "nsz", "arcp")

_ELEMENT = {_types.float32: ir.FloatType(), _types.float64: ir.DoubleType()}


class Lanes(_types.Type):
    """Numba's type of a vector.

    Parameters
    ----------
    dtype : _types.Float
        Of its numbers.
    width : int
        How many they are.
    """

    def __init__(self, dtype: _types.Float, width: int):
        self.dtype = dtype
        self.width = width
        super().__init__(name=f"Lanes({dtype}, {width})")

    @property
    def llvm(self) -> ir.VectorType:
        """The same for LLVM."""
        return ir.VectorType(_ELEMENT[self.dtype], self.width)


@_extending.register_model(Lanes)
class _LanesModel(_extending.models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Lanes):
        super().__init__(dmm, fe_type, fe_type.llvm)


def width(a):
    """How many elements of an array fit into a register."""
    return _REGISTER // a.itemsize


def load(a, i):
    """A register of consecutive elements."""
    return a[i : i + _REGISTER // a.itemsize].copy()


def load8(a, i):
    """Eight consecutive elements."""
    return a[i : i + 8].copy()


def store(a, i, v):
    """Write consecutive elements."""
    a[i : i + len(v)] = v


def spread(a, i, step, v):
    """Write elements that are ``step`` apart."""
    a[i : i + step * len(v) : step] = v


def zero(a):
    """A register of zeros."""
    return np.zeros(_REGISTER // a.itemsize, a.dtype)


def filled(v, s):
    """As many times the same number as ``v`` has."""
    return np.full_like(v, s)


def at(a, i):
    """One element."""
    return a[i]


def total(v):
    """Sum of the numbers of a vector."""
    return v.sum()


def _pointer(context, builder, signature, args, element):
    """Address of an element of a flat array, as a pointer to ``element``."""
    array = context.make_array(signature.args[0])(context, builder, args[0])
    return builder.bitcast(builder.gep(array.data, [args[1]]), element.as_pointer())


def _index(k):
    return ir.Constant(ir.IntType(32), k)


def _constant(vector, value):
    return ir.Constant(vector, [value] * vector.count)


def _broadcast(builder, value, vector):
    """A vector of a number, which is rounded to single precision where the vector is."""
    if value.type != vector.element:
        value = builder.fptrunc(value, vector.element)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, _index(0))
    mask = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), [0] * vector.count)
    return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), mask)


def _align(kind):
    return kind.dtype.bitwidth // 8


def _register(array):
    return Lanes(array.dtype, 8 * _REGISTER // array.dtype.bitwidth)


def _make_load(kind_of):
    @_extending.intrinsic
    def load_lanes(typingctx, a, i):
        kind = kind_of(a)

        def code(context, builder, signature, args):
            pointer = _pointer(context, builder, signature, args, kind.llvm)
            return builder.load(pointer, align=_align(kind))

        return kind(a, _types.intp), code

    return load_lanes


@_extending.intrinsic
def _store(typingctx, a, i, v):
    def code(context, builder, signature, args):
        pointer = _pointer(context, builder, signature, args, v.llvm)
        builder.store(args[2], pointer, align=_align(v))
        return context.get_dummy_value()

    return _types.void(a, _types.intp, v), code


@_extending.intrinsic
def _spread(typingctx, a, i, step, v):
    def code(context, builder, signature, args):
        pointer = _pointer(context, builder, signature, args, v.llvm.element)
        for k in range(v.width):
            builder.store(builder.extract_element(args[3], _index(k)), pointer)
            pointer = builder.gep(pointer, [args[2]])
        return context.get_dummy_value()

    return _types.void(a, _types.intp, _types.intp, v), code


@_extending.intrinsic
def _zero(typingctx, a):
    kind = _register(a)

    def code(context, builder, signature, args):
        return _constant(kind.llvm, 0.0)

    return kind(a), code


@_extending.intrinsic
def _filled(typingctx, v, s):
    def code(context, builder, signature, args):
        return _broadcast(builder, args[1], v.llvm)

    return v(v, s), code


@_extending.intrinsic
def _at(typingctx, a, i):
    def code(context, builder, signature, args):
        return builder.load(_pointer(context, builder, signature, args, _ELEMENT[a.dtype]))

    return a.dtype(a, _types.intp), code


@_extending.intrinsic
def _total(typingctx, v):
    def code(context, builder, signature, args):
        # Halves are added to one another, so that no rounding is worse than another.
        found = [builder.extract_element(args[0], _index(k)) for k in range(v.width)]
        while len(found) > 1:
            half = len(found) // 2
            found = [builder.fadd(found[k], found[k + half], flags=_FLAGS) for k in range(half)]
        return found[0]

    return v.dtype(v), code


def _make_arithmetic(instruction):
    @_extending.intrinsic
    def combine(typingctx, a, b):
        vector = a if isinstance(a, Lanes) else b

        def code(context, builder, signature, args):
            x, y = (
                value if isinstance(kind, Lanes) else _broadcast(builder, value, vector.llvm)
                for kind, value in zip(signature.args, args, strict=True)
            )
            return getattr(builder, instruction)(x, y, flags=_FLAGS)

        kinds = [k if k in (vector, vector.dtype) else _types.float64 for k in (a, b)]
        return vector(*kinds), code

    return combine


_load, _load8 = _make_load(_register), _make_load(lambda array: Lanes(array.dtype, 8))
_add, _sub, _mul = _make_arithmetic("fadd"), _make_arithmetic("fsub"), _make_arithmetic("fmul")


@_extending.overload(width)
def _overload_width(a):
    number = _register(a).width
    return lambda a: number


@_extending.overload(load)
def _overload_load(a, i):
    return lambda a, i: _load(a, i)


@_extending.overload(load8)
def _overload_load8(a, i):
    return lambda a, i: _load8(a, i)


@_extending.overload(store)
def _overload_store(a, i, v):
    return lambda a, i, v: _store(a, i, v)


@_extending.overload(spread)
def _overload_spread(a, i, step, v):
    return lambda a, i, step, v: _spread(a, i, step, v)


@_extending.overload(zero)
def _overload_zero(a):
    return lambda a: _zero(a)


@_extending.overload(filled)
def _overload_filled(v, s):
    return lambda v, s: _filled(v, s)


@_extending.overload(at)
def _overload_at(a, i):
    return lambda a, i: _at(a, i)


@_extending.overload(total)
def _overload_total(v):
    return lambda v: _total(v)


@_extending.overload(operator.add)
def _overload_add(a, b):
    if isinstance(a, Lanes) or isinstance(b, Lanes):
        return lambda a, b: _add(a, b)


@_extending.overload(operator.sub)
def _overload_sub(a, b):
    if isinstance(a, Lanes) or isinstance(b, Lanes):
        return lambda a, b: _sub(a, b)


@_extending.overload(operator.mul)
def _overload_mul(a, b):
    if isinstance(a, Lanes) or isinstance(b, Lanes):
        return lambda a, b: _mul(a, b)
