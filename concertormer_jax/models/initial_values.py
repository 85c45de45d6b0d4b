"""Initial values as in PyTorch, which the published networks have: drawn in a Flax program, or by NumPy without one.

A program that draws all parameters of a network takes long to compile, as each has a shape of its own.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Generator, Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

_declaring = contextvars.ContextVar("declaring", default=False)


@dataclasses.dataclass(frozen=True)
class Initial:
    """How the initial values of a parameter are distributed. Flax calls it as an initialiser.

    kind: "uniform" (within `scale` of zero), "normal" (standard deviation `scale`) or "constant" (all are `scale`).
    """

    kind: str
    scale: float

    def __call__(self, key: Key[Array, ""], shape: Sequence[int], dtype: Any = jnp.float32) -> Any:
        """Draw an array from `key`; inside `declaring`, return a `Declared` in its place."""
        if _declaring.get():
            return Declared(jnp.zeros(shape, dtype), self)
        if self.kind == "uniform":
            return jax.random.uniform(key, shape, dtype, -self.scale, self.scale)
        if self.kind == "normal":
            return jax.random.normal(key, shape, dtype) * self.scale
        return jnp.full(shape, self.scale, dtype)

    def drawn(self, generator: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
        """Draw a float32 array by NumPy."""
        if self.kind == "uniform":
            return self.scale * (2 * generator.random(shape, np.float32) - 1)
        if self.kind == "normal":
            return self.scale * generator.standard_normal(shape, np.float32)
        return np.full(shape, self.scale, np.float32)


class Declared(flax.struct.PyTreeNode, nn.meta.AxisMetadata):
    """A parameter that is not drawn but says how it would be. value: of its shape."""

    value: Any
    initial: Initial = flax.struct.field(pytree_node=False)

    def unbox(self) -> Any:
        """The value alone, which the modules see."""
        return self.value

    def replace_boxed(self, val: Any) -> "Declared":
        """With another value."""
        return self.replace(value=val)

    def add_axis(self, index: int, params: dict) -> "Declared":
        """The same: stacked parameters are drawn alike."""
        return self

    def remove_axis(self, index: int, params: dict) -> "Declared":
        """The same: stacked parameters are drawn alike."""
        return self


def draw(declared: Any, seed: int) -> Any:
    """Draw the arrays of a tree of `Declared`s by NumPy, the same for the same `seed` from 0."""
    generator = np.random.default_rng(seed)
    return jax.tree.map(
        lambda each: each.initial.drawn(generator, each.value.shape),
        declared,
        is_leaf=lambda node: isinstance(node, Declared),
    )


@contextlib.contextmanager
def declaring() -> Generator[None]:
    """Within it, what `init` of a module of Flax returns has a `Declared` for every parameter."""
    token = _declaring.set(True)
    try:
        yield
    finally:
        _declaring.reset(token)


def torch_uniform(fan_in: int) -> Initial:
    """PyTorch's default for convolutions, weights and biases: uniform within 1 / sqrt(fan_in) of zero."""
    return Initial("uniform", fan_in**-0.5)


def torch_kaiming_normal(fan_in: int) -> Initial:
    """Kaiming normal with a = sqrt(5): the standard deviation is 1 / sqrt(3 fan_in)."""
    return Initial("normal", (3 * fan_in) ** -0.5)


ONES, ZEROS = Initial("constant", 1.0), Initial("constant", 0.0)
