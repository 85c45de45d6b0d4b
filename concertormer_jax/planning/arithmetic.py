"""The floating-point operations of a function: of its products and convolutions, and as XLA counts them."""

import math
from collections.abc import Iterator
from typing import Any

import jax
from jax.extend import core


def flops(jaxpr: core.ClosedJaxpr | core.Jaxpr) -> int:
    """Return the floating-point operations of all matrix products and convolutions, two for each multiply-accumulate.

    A scan counts as often as it runs, a loop of unknown length once, and a conditional as its costliest branch. The
    count depends on the platform for which the function was traced, since the forms of an operation differ.
    """
    jaxpr = jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = _array(equation.invars[0]).shape
            total += 2 * _array(equation.outvars[0]).size * math.prod(shape[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            kernel = _array(equation.invars[1])
            outputs = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
            total += 2 * _array(equation.outvars[0]).size * kernel.size // outputs
        elif name == "cond":
            total += max(flops(branch) for branch in equation.params["branches"])
        else:
            times = equation.params["length"] if name == "scan" else 1
            total += times * sum(flops(inner) for inner in _inner(equation.params))
    return total


def _array(variable: Any) -> Any:
    """The shape and type of an equation's input or output."""
    return variable.aval


def counted_by_xla(traced: jax.stages.Traced) -> dict[str, float]:
    """Return the floating-point operations as XLA counts them before it optimises: {scan: FLOPs}, with "" for the rest.

    XLA counts element-wise operations as well, and the body of a loop once; here a scan counts as often as it runs. The
    name of a scan is that of the module that it is in.
    """
    return _counted_by_xla(traced)[1]


def _counted_by_xla(traced: jax.stages.Traced) -> tuple[float, dict[str, float]]:
    """The FLOPs with every scan counted once, and those of `counted_by_xla`."""
    once = traced.lower().cost_analysis()["flops"]
    found = {"": once}
    for equation in _scans(traced.jaxpr.jaxpr):
        name = str(equation.source_info.name_stack).rpartition("/")[2]
        body = equation.params["jaxpr"]
        body_once, inside = _counted_by_xla(jax.jit(core.jaxpr_as_fun(body)).trace(*body.in_avals))
        found[name] = found.get(name, 0.0) + equation.params["length"] * sum(inside.values())
        found[""] -= body_once
    return once, found


def _scans(jaxpr: core.Jaxpr) -> Iterator[core.JaxprEqn]:
    """The outermost scans of a function."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            yield equation
        else:
            for inner in _inner(equation.params):
                yield from _scans(inner.jaxpr if isinstance(inner, core.ClosedJaxpr) else inner)


def _inner(params: dict[str, Any]) -> Iterator[core.ClosedJaxpr | core.Jaxpr]:
    """The functions that an equation calls."""
    for value in params.values():
        if isinstance(value, core.ClosedJaxpr | core.Jaxpr):
            yield value
