"""The arithmetic of a function: what its products and convolutions cost on any device."""

import math

from jax.extend import core


def flops(jaxpr: core.ClosedJaxpr | core.Jaxpr) -> int:
    """Floating-point operations of all matrix products and convolutions: two for each multiplication and addition.

    Scans count as often as they run, loops of unknown length once, and of a conditional the costliest branch.
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


def _inner(params: dict):
    for value in params.values():
        if isinstance(value, core.ClosedJaxpr | core.Jaxpr):
            yield value
