"""The arithmetic of a function: what its products and convolutions cost, and what XLA counts."""

import math

import jax
from jax.extend import core


def flops(jaxpr: core.ClosedJaxpr | core.Jaxpr) -> int:
    """Floating-point operations of all matrix products and convolutions: two for each multiplication and addition.

    Scans count as often as they run, loops of unknown length once, and of a conditional the costliest branch.
    They are those of the platform that was traced for: on a CPU some products take the place of what is slower there.
    """
    jaxpr = jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            outputs = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
            total += 2 * equation.outvars[0].aval.size * kernel.size // outputs
        elif name == "cond":
            total += max(flops(branch) for branch in equation.params["branches"])
        else:
            times = equation.params["length"] if name == "scan" else 1
            total += times * sum(flops(inner) for inner in _inner(equation.params))
    return total


def counted_by_xla(traced) -> dict[str, float]:
    """Floating-point operations as XLA counts them, of what `jax.jit(...).trace` returned: {scan: FLOPs}, "" the rest.

    XLA counts sums and products of single elements as well, before it optimises, and the body of a loop once; here a
    scan counts as often as it runs. A scan is called like the module that it is in.
    """
    return _counted_by_xla(traced)[1]


def _counted_by_xla(traced) -> tuple[float, dict[str, float]]:
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


def _scans(jaxpr: core.Jaxpr):
    """The scans in a function as it is lowered here, but not those inside of these."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            yield equation
        else:
            for inner in _inner(equation.params):
                yield from _scans(inner.jaxpr if isinstance(inner, core.ClosedJaxpr) else inner)


def _inner(params: dict):
    for value in params.values():
        if isinstance(value, core.ClosedJaxpr | core.Jaxpr):
            yield value
