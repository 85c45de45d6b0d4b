"""A program as ONNX, written from its jaxpr by the package onnx.

What does not depend on the picture is computed here and becomes constants: loops over blocks are unrolled, and shifts
and masks have numbers in them. The rest is few operations, a method each in `_Graph`.
"""

import hashlib
import importlib
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import Literal

from concertormer_jax.exporting.program import INPUT, OUTPUT, Program
from concertormer_jax.runtime.errors import UserError

OPSET = 17
IR_VERSION = 8  # the first with this opset, so that old runtimes read the file


def onnx_file(program: Program) -> tuple[bytes, dict]:
    """Return the file's content and its manifest, for one picture.

    Raises UserError if the package onnx is missing, and for a network with an operation that is not known here.
    """
    try:
        onnx = importlib.import_module("onnx")
    except ImportError as error:
        raise UserError(f"ONNX files need the package onnx ({error}): pip install onnx (the extra `onnx`)") from error
    shape = program.shape(1)
    closed = jax.make_jaxpr(program.function())(shape)
    graph = _Graph(onnx, half=program.half)
    (result,) = graph.run(closed.jaxpr, closed.consts, [_Tensor(INPUT, shape.shape, shape.shape)])
    graph.finish(result, OUTPUT)
    given, restored = (
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape.shape)] for name in (INPUT, OUTPUT)
    )
    model = onnx.helper.make_model(
        onnx.helper.make_graph(graph.nodes, "concertormer", given, restored, list(graph.initializers.values())),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="concertormer_jax",
    )
    onnx.checker.check_model(model)
    return model.SerializeToString(), program.manifest(1, format="ONNX", opset=OPSET)


class _Tensor(NamedTuple):
    """A value that depends on the picture. stored: its shape in the graph, 1 where it is yet to be broadcast."""

    name: str
    shape: tuple[int, ...]
    stored: tuple[int, ...]


_Value = _Tensor | np.ndarray  # what is no _Tensor is a constant

_ELEMENTWISE = {
    "add": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "div": "Div",
    "max": "Max",
    "min": "Min",
    "neg": "Neg",
    "exp": "Exp",
}
_CONV3X3 = "conv3x3"  # of ops.reference, which is jitted, so that a jaxpr shows its name
_SMALL_BYTES = 256  # about what the operation takes that reads a constant of float16
_SAME = ("stop_gradient", "optimization_barrier", "copy")
_INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr")  # parameters in which operations hold a function


class _Graph:
    """An ONNX graph that grows. half: large constants that are float16 numbers are stored as such."""

    def __init__(self, onnx: Any, *, half: bool):
        self._onnx = onnx
        self._half = half
        self.nodes: list[Any] = []
        self.initializers: dict[bytes, Any] = {}
        self._names: dict[bytes, str] = {}  # of constants, as operations take them
        self._doubled: dict[str, tuple[_Tensor, int]] = {}  # by name: what was joined with itself, and along which axis

    def run(self, jaxpr: Any, consts: Sequence[Any], arguments: Sequence[_Value]) -> list[_Value]:
        """Return the results of a jaxpr; nodes are added for what depends on the picture."""
        known = dict(zip(jaxpr.constvars, consts, strict=True)) | dict(zip(jaxpr.invars, arguments, strict=True))

        def value(variable):
            return variable.val if isinstance(variable, Literal) else known[variable]

        for equation in jaxpr.eqns:
            values = [value(variable) for variable in equation.invars]
            known.update(zip(equation.outvars, self._apply(equation, values), strict=True))
        return [value(variable) for variable in jaxpr.outvars]

    def _apply(self, equation, values) -> Sequence[_Value]:
        name, params = equation.primitive.name, equation.params
        if name == "scan":
            return self._scan(params, values)
        if params.get("name") == _CONV3X3 and any(isinstance(value, _Tensor) for value in values):
            return [self._conv3x3(*values[:2])]  # behind them stand constants that JAX has taken out of its inside
        if inner := next((params[key] for key in _INNER if key in params), None):
            return self.run(inner.jaxpr, inner.consts, values)
        if not any(isinstance(value, _Tensor) for value in values):
            results = equation.primitive.bind(*values, **params)
            return results if equation.primitive.multiple_results else [results]
        if name in _SAME:
            return values
        shapes = [variable.aval.shape for variable in equation.outvars]
        if name == "split":
            return self._split(values[0], params["axis"], params["sizes"], shapes)
        if name in _ELEMENTWISE:
            return [self.elementwise(_ELEMENTWISE[name], *values)]
        write = getattr(self, f"_{name}", None)
        if write is None:
            raise UserError(f"this network has the operation {name}, which has no form in ONNX here; export .stablehlo")
        return [write(*values, **params | {"shape": shapes[0]})]

    def _scan(self, params, values):
        """The loop's steps one after the other. It stacks no results that depend on the picture."""
        body = params["jaxpr"]
        if "ft_in" in params:  # JAX 0.12 and newer: the arguments as a tree (constants, carry, stacked)
            fixed, carried, _ = map(len, params["ft_in"].unpack())
        else:
            fixed, carried = params["num_consts"], params["num_carry"]
        consts, carry, stacked = values[:fixed], values[fixed : fixed + carried], values[fixed + carried :]
        for step in range(params["length"]):
            given = [*consts, *carry, *(np.asarray(array)[step] for array in stacked)]
            carry = self.run(body.jaxpr, body.consts, given)
        return carry

    def _conv3x3(self, maps, kernel):
        """`ops.reference.conv3x3` of maps [b, y, x, *e, s] as one convolution.

        e becomes groups of channels, or where all share a kernel of several channels, more pictures.
        """
        kernel, (b, y, x, *e, s), t = np.asarray(kernel), maps.shape, kernel.shape[-1]
        rank, inside = len(maps.shape), range(3, len(maps.shape) - 1)
        groups = math.prod(e) if math.prod(kernel.shape[2:-2]) > 1 or s == 1 else 1
        kernel = np.broadcast_to(kernel, (3, 3, *(e if groups > 1 else [1] * len(e)), s, t))
        weights = kernel.reshape(3, 3, groups, s, t).transpose(2, 4, 3, 0, 1).reshape(groups * t, s, 3, 3)
        pictures = math.prod([b, *e]) // groups
        channels_first = self.transposed(maps, [0, *inside, rank - 1, 1, 2])
        given = self.reshaped(channels_first, [pictures, groups * s, y, x])
        names = [self.full(given), self.constant(weights)]
        result = self.node("Conv", names, [pictures, groups * t, y, x], pads=[1] * 4, group=groups)
        back = [0, rank - 2, rank - 1, *(axis - 2 for axis in inside), rank - 3]
        return self.transposed(self.reshaped(result, [b, *e, t, y, x]), back)

    def node(self, operation: str, inputs: Sequence[str], shape: Sequence[int], **attributes: Any) -> _Tensor:
        """Add an operation with one result."""
        name = f"t{len(self.nodes)}"
        self.nodes.append(self._onnx.helper.make_node(operation, inputs, [name], **attributes))
        return _Tensor(name, tuple(shape), tuple(shape))

    def constant(self, array: Any) -> str:
        """Return the name of a constant, which equal ones share."""
        array = np.ascontiguousarray(array).reshape(np.shape(array))
        key = hashlib.sha256(f"{array.shape}{array.dtype}".encode() + array.tobytes()).digest()
        if key not in self._names:
            stored = self._stored(array)
            name = self._names[key] = f"c{len(self.initializers)}"
            self.initializers[key] = self._onnx.numpy_helper.from_array(stored, name)
            if stored.dtype != array.dtype:  # runtimes do this once, when they load the file
                self._names[key] = self.node("Cast", [name], array.shape, to=self._onnx.TensorProto.FLOAT).name
        return self._names[key]

    def _stored(self, array: np.ndarray) -> np.ndarray:
        if self._half and array.dtype == np.float32 and array.nbytes > _SMALL_BYTES:
            with np.errstate(over="ignore"):
                half = array.astype(np.float16)
            return half if (half == array).all() else array
        return array

    def numbers(self, values: Sequence[int]) -> str:
        """Return the name of a constant vector, such as a shape."""
        return self.constant(np.array(values, np.int64))

    def full(self, value: _Value) -> str:
        """Return the name of a value in its whole shape."""
        if not isinstance(value, _Tensor):
            return self.constant(value)
        if value.stored == value.shape:
            return value.name
        return self.node("Expand", [value.name, self.numbers(value.shape)], value.shape).name

    def elementwise(self, operation: str, *values: _Value) -> _Tensor:
        """An operation that broadcasts its operands."""
        shape = np.broadcast_shapes(*(np.shape(v) if not isinstance(v, _Tensor) else v.shape for v in values))
        small = [value if isinstance(value, _Tensor) else _without_repetition(np.asarray(value)) for value in values]
        stored = np.broadcast_shapes(*(v.stored if isinstance(v, _Tensor) else v.shape for v in small))
        names = [value.name if isinstance(value, _Tensor) else self.constant(value) for value in small]
        return self.node(operation, names, stored)._replace(shape=shape)

    def reshaped(self, value: _Value, shape: Sequence[int]) -> _Value:
        """In another shape of as many numbers."""
        if not isinstance(value, _Tensor):
            return np.asarray(value).reshape(shape)
        if value.shape == tuple(shape):
            return value
        return self.node("Reshape", [self.full(value), self.numbers(shape)], shape)

    def transposed(self, value: _Value, order: Sequence[int]) -> _Value:
        """With the axes in another order."""
        if not isinstance(value, _Tensor):
            return np.asarray(value).transpose(order)
        shape = [value.shape[axis] for axis in order]
        if sorted(moved := [axis for axis in order if value.shape[axis] > 1]) == moved:
            return self.reshaped(value, shape)
        return self.node("Transpose", [self.full(value)], shape, perm=list(order))

    def finish(self, result: _Value, name: str) -> None:
        """Call the result `name`, and remove all that it does not depend on."""
        self.nodes.append(self._onnx.helper.make_node("Identity", [self.full(result)], [name]))
        needed, nodes = {name}, []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                needed.update(node.input)
                nodes.insert(0, node)
        self.nodes = nodes
        self.initializers = {key: array for key, array in self.initializers.items() if array.name in needed}

    def _split(self, value, axis, sizes, shapes):
        names = [f"t{len(self.nodes)}_{index}" for index in range(len(sizes))]
        inputs = [self.full(value), self.numbers(sizes)]
        self.nodes.append(self._onnx.helper.make_node("Split", inputs, names, axis=axis))
        return [_Tensor(name, shape, shape) for name, shape in zip(names, shapes, strict=True)]

    # A method for every other operation, which takes its operands, the shape of its result, and its parameters.

    def _square(self, x, **_):
        return self.elementwise("Mul", x, x)

    def _rsqrt(self, x, **_):
        return self.elementwise("Reciprocal", self.elementwise("Sqrt", x))

    def _erfc(self, x, **_):
        return self.elementwise("Sub", np.ones((), np.float32), self.elementwise("Erf", x))

    def _convert_element_type(self, x, new_dtype, **_):
        if new_dtype != np.float32:
            raise UserError("this network computes in another type than float32; export .stablehlo")
        return x  # as everything is float32 that depends on the picture

    def _select_n(self, which, if_false, if_true, **_):
        which = np.asarray(which)
        if which.all() or not which.any():
            return if_true if which.all() else if_false
        return self.elementwise("Where", which, if_true, if_false)

    def _reduce_sum(self, x, shape, axes, **_):
        """Along one axis at a time: ONNX Runtime adds the numbers of a sum one by one, in float32."""
        kept = list(x.shape)
        for axis in axes:
            kept[axis] = 1
            x = self.node("ReduceSum", [self.full(x), self.numbers([axis])], kept)
        return self.reshaped(x, shape)

    def _reduce_max(self, x, shape, axes, **_):
        return self.node("ReduceMax", [self.full(x)], shape, keepdims=0, axes=list(axes))

    def _reshape(self, x, shape, **_):
        return self.reshaped(x, shape)

    _squeeze = _expand_dims = _reshape

    def _transpose(self, x, permutation, **_):
        return self.transposed(x, permutation)

    def _broadcast_in_dim(self, x: _Tensor, shape, broadcast_dimensions, **_):
        stored = [1] * len(shape)
        for axis, place in enumerate(broadcast_dimensions):
            stored[place] = x.shape[axis]
        small = self.reshaped(x, stored)
        assert isinstance(small, _Tensor)  # as x is one
        return _Tensor(small.name, shape, small.shape)

    def _concatenate(self, *parts, shape, dimension):
        result = self.node("Concat", [self.full(part) for part in parts], shape, axis=dimension)
        if len(parts) == 2 and parts[0] is parts[1]:
            self._doubled[result.name] = parts[0], dimension
        return result

    def _slice(self, x, shape, start_indices, limit_indices, strides):
        vectors = (start_indices, limit_indices, range(len(shape)), strides or [1] * len(shape))
        return self.node("Slice", [self.full(x), *map(self.numbers, vectors)], shape)

    def _dynamic_slice(self, x, *starts, shape, slice_sizes):
        first = [
            min(max(int(start), 0), length - size)
            for start, length, size in zip(starts, x.shape, slice_sizes, strict=True)
        ]
        if x.name in self._doubled:
            once, axis = self._doubled[x.name]
            if once.shape == tuple(shape):
                return self._rolled(once, axis, first[axis])
        return self._slice(x, shape, first, [a + size for a, size in zip(first, slice_sizes, strict=True)], None)

    def _rolled(self, x, axis, first):
        """x from `first` on, then x up to it: a slice of x joined with itself (`jnp.roll`), of half the memory."""
        shape, length = list(x.shape), x.shape[axis]
        if first % length == 0:
            return x

        def part(start, stop):
            starts, stops = [0] * len(shape), list(shape)
            starts[axis], stops[axis] = start, stop
            return self._slice(x, [b - a for a, b in zip(starts, stops, strict=True)], starts, stops, None)

        return self._concatenate(part(first, length), part(0, first), shape=shape, dimension=axis)

    def _pad(self, x, value, shape, padding_config):
        low, high, _ = zip(*padding_config, strict=True)
        return self.node("Pad", [self.full(x), self.numbers([*low, *high]), self.constant(value)], shape)

    def _scatter(self, around, indices, x, shape, dimension_numbers, **_):
        """Of a whole slice into what has the same number everywhere, as TLC puts a window back into the map."""
        low = [0] * len(shape)
        for axis, start in zip(dimension_numbers.scatter_dims_to_operand_dims, np.asarray(indices), strict=True):
            low[axis] = int(start)
        sides = zip(shape, x.shape, low, strict=True)
        config = [(before, length - size - before, 0) for length, size, before in sides]
        return self._pad(x, np.asarray(around).flat[0], shape, config)

    def _conv_general_dilated(self, x, kernel, shape, window_strides, padding, feature_group_count, **_):
        """Of features NHWC and a kernel HWIO, the only ones that Flax makes."""
        first = self.full(self.transposed(x, (0, 3, 1, 2)))
        weights = self.constant(np.asarray(kernel).transpose(3, 2, 0, 1))
        (top, bottom), (left, right) = padding
        convolved = self.node(
            "Conv",
            [first, weights],
            [shape[axis] for axis in (0, 3, 1, 2)],
            strides=list(window_strides),
            pads=[top, left, bottom, right],
            group=feature_group_count,
        )
        return self.transposed(convolved, (0, 2, 3, 1))

    def _reduce_window_sum(self, x, shape, window_dimensions, window_strides, **_):
        """Over windows of pixels, NHWC, inside the picture."""
        first = self.full(self.transposed(x, (0, 3, 1, 2)))
        mean = self.node(
            "AveragePool",
            [first],
            [shape[axis] for axis in (0, 3, 1, 2)],
            kernel_shape=list(window_dimensions[1:3]),
            strides=list(window_strides[1:3]),
        )
        return self.transposed(
            self.elementwise("Mul", mean, np.asarray(math.prod(window_dimensions), np.float32)), (0, 2, 3, 1)
        )

    def _dot_general(self, a, b, shape, dimension_numbers, **_):
        """A product of matrices [batch, free, summed] and [batch, summed, free]."""
        summed, batch = dimension_numbers
        free = [
            [axis for axis in range(len(value.shape)) if axis not in (*s, *t)]
            for value, s, t in zip((a, b), summed, batch, strict=True)
        ]
        sizes = partial(_sizes, a.shape)
        batch_shape, terms = sizes(batch[0]), math.prod(sizes(summed[0]))
        first = self.transposed(a, [*batch[0], *free[0], *summed[0]])
        if not batch_shape and not isinstance(b, _Tensor):  # a projection of the last axis
            kernel = np.asarray(b).transpose([*summed[1], *free[1]]).reshape(terms, -1)
            rows = self.reshaped(first, [*sizes(free[0]), terms])
            if terms == 1 == kernel.size:
                return self.reshaped(self.elementwise("Mul", rows, kernel.reshape(())), shape)
            product = self.node("MatMul", [self.full(rows), self.constant(kernel)], [*sizes(free[0]), kernel.shape[1]])
            return self.reshaped(product, shape)
        left, right = math.prod(sizes(free[0])), math.prod(_sizes(b.shape, free[1]))
        second = self.transposed(b, [*batch[1], *summed[1], *free[1]])
        first = self.reshaped(first, [*batch_shape, left, terms])
        second = self.reshaped(second, [*batch_shape, terms, right])
        if terms == 1:
            return self.reshaped(self.elementwise("Mul", first, second), shape)
        product = self.node("MatMul", [self.full(first), self.full(second)], [*batch_shape, left, right])
        return self.reshaped(product, shape)


def _sizes(shape, axes):
    return [shape[axis] for axis in axes]


def _without_repetition(array: np.ndarray) -> np.ndarray:
    """With one number in place of an axis along which all are the same."""
    for axis in range(array.ndim):
        first = array.take([0], axis)
        if array.shape[axis] > 1 and (array == first).all():
            array = first
    return array
