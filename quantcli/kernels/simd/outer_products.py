"""Register tiles (grids) of accumulators: the outer products that GEMM kernels are made of.

A grid is a tuple of `rows * columns` vectors of one type; that of row r and column c has index r * columns + c. Its lanes
are neighbouring rows of a matrix. A row's vectors are loaded once and multiplied by a broadcast number of each column, so
no horizontal reduction is needed. A grid held in a loop variable stays in registers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.extending import intrinsic

from quantcli.kernels.simd.bfloat_dot import emit_dot_bfloats
from quantcli.kernels.simd.integer_dot import emit_dot_quads
from quantcli.kernels.simd.vector import I32, LLVM_ELEMENTS, Vector, broadcast, call, pointer, suffix


@dataclass(frozen=True, slots=True)
class GridOperations:
    """Intrinsics on grids. Every array is contiguous, `at` is an index into it, and `stride` the distance of two columns.

    zeros()  no_integers()                              a grid of zeros, float32 or int32
    read(array, at, stride)                             load rows from `at + column * stride` on, contiguous
    write(grid, array, at, stride)                      the inverse store
    columns_of(array, at, stride)                       broadcast array[at + column * stride] to all lanes of all rows
    add_outer(grid, a, a_at, b, b_at, stride)           grid + a[a_at:, the rows' lanes] * b[b_at + column * stride], floats
    add_bfloats(grid, a, a_at, b, b_at, stride)         the same with two bfloat16 in each uint32 of `a` and of `b`, where
                                                        `HAS_BFLOAT_DOT`
    add_quads(grid, a, a_at, b, b_at, stride)           the same with four neighbouring int8 or uint8 of `a` in each int32
                                                        lane, times four int8 of `b`
    add_scaled(grid, integers, scales, at)              grid + integers, as float32, * scales[at:, the rows' lanes]
    add_columns(grid, values, scales, at, stride)       grid + values * scales[at + column * stride]
    """

    zeros: Any
    no_integers: Any
    read: Any
    write: Any
    columns_of: Any
    add_outer: Any
    add_bfloats: Any
    add_quads: Any
    add_scaled: Any
    add_columns: Any


class _Emitter:
    """Lowering of the operations on a grid of these sizes, for a call `(context, builder, sig, args)`."""

    def __init__(self, rows: int, columns: int, lanes: int, context: Any, builder: Any, sig: Any, args: Any) -> None:
        self.rows, self.columns, self.lanes = rows, columns, lanes
        self.context, self.builder, self.sig, self.args = context, builder, sig, args

    def places(self) -> Iterator[tuple[int, int]]:
        return ((row, column) for row in range(self.rows) for column in range(self.columns))

    def grid(self, number: int) -> dict[tuple[int, int], Any]:
        """Argument `number`, unpacked."""
        parts = cgutils.unpack_tuple(self.builder, self.args[number])
        return dict(zip(self.places(), parts, strict=True))

    def at(self, number: int, step: int, stride: int | None = None) -> Any:
        """The index in argument `number` plus `step`, or plus `step` times the index in argument `stride`."""
        base = self.args[number]
        offset: Any = ir.Constant(base.type, step)
        if stride is not None:
            offset = self.builder.mul(offset, self.args[stride])
        return self.builder.add(base, offset)

    def load(self, array: int, index: Any, lanes: int) -> Any:
        """Elements of the array in argument `array`: a vector, or for no lanes a scalar."""
        element = self.sig.args[array].dtype
        kind = LLVM_ELEMENTS[element]
        place = pointer(
            self.context, self.builder, self.sig.args[array], self.args[array], index,
            ir.VectorType(kind, lanes) if lanes else kind,
        )  # fmt: skip
        return self.builder.load(place, align=element.bitwidth // 8)

    def row_vectors(self, array: int, at: int, per_lane: int = 1) -> list[Any]:
        """The rows' vectors, side by side, of `per_lane` elements a lane."""
        lanes = self.lanes * per_lane
        return [self.load(array, self.at(at, row * lanes), lanes) for row in range(self.rows)]

    def column_numbers(self, array: int, at: int, stride: int) -> list[Any]:
        """One element of each column, broadcast to all lanes."""
        loaded = (self.load(array, self.at(at, column, stride), 0) for column in range(self.columns))
        return [broadcast(self.builder, value, self.lanes) for value in loaded]

    def column_quads(self, array: int, at: int, stride: int) -> list[Any]:
        """Four neighbouring bytes of each column, broadcast to all lanes as int32."""
        kind, words = self.sig.args[array], []
        for column in range(self.columns):
            place = pointer(self.context, self.builder, kind, self.args[array], self.at(at, column, stride), I32)
            words.append(broadcast(self.builder, self.builder.load(place, align=1), self.lanes))
        return words

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """a * b + c with one rounding (FMA)."""
        return call(self.builder, f"llvm.fma.{suffix(a.type)}", a.type, [a, b, c])

    def result(self, value: Callable[[int, int], Any]) -> Any:
        parts = [value(row, column) for row, column in self.places()]
        return self.context.make_tuple(self.builder, self.sig.return_type, parts)


@dataclass(frozen=True, slots=True)
class _Sizes:
    """The sizes of the grids that an operation is made for."""

    rows: int
    columns: int
    lanes: int

    def emitter(self, lowering: tuple[Any, ...]) -> _Emitter:
        return _Emitter(self.rows, self.columns, self.lanes, *lowering)

    def grid_of(self, element: types.Type) -> types.Type:
        return types.UniTuple(Vector(element, self.lanes), self.rows * self.columns)


_AT: Final = types.intp


def _zeros(sizes: _Sizes, element: types.Type) -> Any:
    def zeros(typing: Any) -> Any:
        def code(*lowering: Any) -> Any:
            nothing = ir.Constant(ir.VectorType(LLVM_ELEMENTS[element], sizes.lanes), [0] * sizes.lanes)
            return sizes.emitter(lowering).result(lambda row, column: nothing)

        return sizes.grid_of(element)(), code

    return zeros


def _read(sizes: _Sizes) -> Any:
    def read(typing: Any, array: Any, first: Any, stride: Any) -> Any:
        def code(*lowering: Any) -> Any:
            emit = sizes.emitter(lowering)

            def part(row: int, column: int) -> Any:
                start = emit.builder.add(emit.at(1, column, 2), ir.Constant(emit.args[1].type, row * sizes.lanes))
                return emit.load(0, start, sizes.lanes)

            return emit.result(part)

        return sizes.grid_of(array.dtype)(array, _AT, _AT), code

    return read


def _write(sizes: _Sizes) -> Any:
    def write(typing: Any, grid: Any, array: Any, first: Any, stride: Any) -> Any:
        def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            emit = sizes.emitter((context, builder, sig, args))
            for (row, column), value in emit.grid(0).items():
                start = builder.add(emit.at(2, column, 3), ir.Constant(args[2].type, row * sizes.lanes))
                builder.store(value, pointer(context, builder, sig.args[1], args[1], start, value.type), align=4)
            return context.get_dummy_value()

        return types.void(grid, array, _AT, _AT), code

    return write


def _columns_of(sizes: _Sizes) -> Any:
    def columns_of(typing: Any, array: Any, first: Any, stride: Any) -> Any:
        def code(*lowering: Any) -> Any:
            emit = sizes.emitter(lowering)
            numbers = emit.column_numbers(0, 1, 2)
            return emit.result(lambda row, column: numbers[column])

        return sizes.grid_of(array.dtype)(array, _AT, _AT), code

    return columns_of


def _add_outer(sizes: _Sizes) -> Any:
    def add_outer(typing: Any, grid: Any, a: Any, a_at: Any, b: Any, b_at: Any, stride: Any) -> Any:
        def code(*lowering: Any) -> Any:
            emit = sizes.emitter(lowering)
            old, vectors, numbers = emit.grid(0), emit.row_vectors(1, 2), emit.column_numbers(3, 4, 5)
            return emit.result(lambda row, column: emit.fma(vectors[row], numbers[column], old[row, column]))

        return grid(grid, a, _AT, b, _AT, _AT), code

    return add_outer


def _add_bfloats(sizes: _Sizes) -> Any:
    def add_bfloats(typing: Any, grid: Any, a: Any, a_at: Any, b: Any, b_at: Any, stride: Any) -> Any:
        def code(*lowering: Any) -> Any:
            emit = sizes.emitter(lowering)
            old, vectors, words = emit.grid(0), emit.row_vectors(1, 2), emit.column_numbers(3, 4, 5)
            return emit.result(
                lambda row, column: emit_dot_bfloats(emit.builder, old[row, column], vectors[row], words[column])
            )

        return grid(grid, a, _AT, b, _AT, _AT), code

    return add_bfloats


def _add_quads(sizes: _Sizes) -> Any:
    def add_quads(typing: Any, grid: Any, a: Any, a_at: Any, b: Any, b_at: Any, stride: Any) -> Any:
        def code(*lowering: Any) -> Any:
            emit = sizes.emitter(lowering)
            old, vectors, words = emit.grid(0), emit.row_vectors(1, 2, 4), emit.column_quads(3, 4, 5)
            words = [emit.builder.bitcast(word, vectors[0].type) for word in words]
            return emit.result(
                lambda row, column: emit_dot_quads(
                    emit.builder, a.dtype.signed, old[row, column], vectors[row], words[column]
                )
            )

        return grid(grid, a, _AT, b, _AT, _AT), code

    return add_quads


def _add_scaled(sizes: _Sizes) -> Any:
    def add_scaled(typing: Any, grid: Any, integers: Any, scales: Any, first: Any) -> Any:
        def code(*lowering: Any) -> Any:
            emit = sizes.emitter(lowering)
            old, whole, vectors = emit.grid(0), emit.grid(1), emit.row_vectors(2, 3)

            def part(row: int, column: int) -> Any:
                value = emit.builder.sitofp(whole[row, column], vectors[row].type)
                return emit.fma(value, vectors[row], old[row, column])

            return emit.result(part)

        return grid(grid, integers, scales, _AT), code

    return add_scaled


def _add_columns(sizes: _Sizes) -> Any:
    def add_columns(typing: Any, grid: Any, values: Any, scales: Any, first: Any, stride: Any) -> Any:
        def code(*lowering: Any) -> Any:
            emit = sizes.emitter(lowering)
            old, new, numbers = emit.grid(0), emit.grid(1), emit.column_numbers(2, 3, 4)
            return emit.result(lambda row, column: emit.fma(new[row, column], numbers[column], old[row, column]))

        return grid(grid, values, scales, _AT, _AT), code

    return add_columns


def grid_operations(rows: int, columns: int, lanes: int) -> GridOperations:
    """The operations on grids of `rows` x `columns` vectors of `lanes`. Make them once, in module constants."""
    sizes = _Sizes(rows, columns, lanes)
    makers = (_read, _write, _columns_of, _add_outer, _add_bfloats, _add_quads, _add_scaled, _add_columns)
    zeros = (_zeros(sizes, types.float32), _zeros(sizes, types.int32))
    return GridOperations(*(intrinsic(operation) for operation in (*zeros, *(maker(sizes) for maker in makers))))
