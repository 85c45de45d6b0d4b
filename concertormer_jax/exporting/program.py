"""The network as one function of pictures alone, for other software to run, and the description that goes with it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from concertormer_jax import __version__
from concertormer_jax.models import variant_name
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.weights.checkpoints import LoadedModel
from concertormer_jax.weights.integrity import architecture_dict

INPUT, OUTPUT = "image", "restored"
IMPLEMENTATION = "reference"  # plain operations, which every platform has and which take any batch


class Program(NamedTuple):
    """A network that restores pictures of height x width pixels.

    tlc_window: in pixels, None for no TLC. half: the weights are rounded to float16 and stored so; what is computed
    with them stays float32.
    """

    model: LoadedModel
    height: int
    width: int
    tlc_window: int | None
    half: bool = False

    def function(self) -> Callable[[Float[Array, "b H W 3"]], Float[Array, "b H W 3"]]:
        """Return the function, whose constants are the weights. Pictures are float32 in [0, 1].

        Raises UserError for weights that float16 does not hold, with `half`.
        """
        module = self.model.module.clone(
            tlc_window=self.tlc_window, implementation=IMPLEMENTATION, dtype=jnp.float32, remat=False
        )
        stored = jax.tree.map(_float16, self.model.params) if self.half else self.model.params

        def restore(images):
            params = jax.tree.map(lambda leaf: jax.lax.convert_element_type(leaf, jnp.float32), stored)
            outputs: Any = module.apply({"params": params}, images)
            return jnp.clip(outputs[-1], 0, 1)

        return restore

    def shape(self, batch: Any) -> jax.ShapeDtypeStruct:
        """Return the input's shape for `batch` pictures, which may be symbolic."""
        return jax.ShapeDtypeStruct((batch, self.height, self.width, 3), jnp.float32)

    def manifest(self, batch: int | str, **format: object) -> dict:
        """Return the description as JSON takes it. batch: 1, or the name of a batch of any size."""
        module, pictures = self.model.module, [batch, self.height, self.width, 3]
        tensor = {"shape": pictures, "axes": "NHWC", "channels": "RGB", "dtype": "float32", "range": [0, 1]}
        return {
            **format,
            "input": {"name": INPUT, **tensor},
            "output": {"name": OUTPUT, **tensor, "clipped": True},
            "padding": {
                "multiple": module.multiple,
                "mode": "reflect, the border pixel not doubled",
                "side": "bottom and right, cut off again from the output",
            },
            "tlc_window_px": self.tlc_window,
            "products": "float32",
            "network": {"variant": variant_name(module), "architecture": architecture_dict(module)},
            "weights": {
                "name": self.model.name,
                "step": self.model.step,
                "dtype": "float16" if self.half else "float32",
            },
            "versions": {"concertormer_jax": __version__, "jax": jax.__version__},
        }


def _float16(leaf) -> jax.Array:
    """A JAX array, as JAX converts NumPy's back to float32 while it traces, and the program would hold that."""
    with np.errstate(over="ignore"):
        half = np.asarray(leaf).astype(np.float16)
    if not np.isfinite(half).all():
        raise UserError("--half: these weights have numbers that float16 does not hold; leave --half out")
    return jnp.asarray(half)


def require_fitting(width: int, height: int, multiple: int) -> None:
    """Raise UserError, naming the nearest size, unless the network takes pictures of this size without padding."""
    if height % multiple or width % multiple:
        nearest = "x".join(str(-(-length // multiple) * multiple) for length in (width, height))
        raise UserError(
            f"--size={width}x{height}: this network takes multiples of {multiple} pixels; export --size={nearest} "
            "and pad pictures by reflection"
        )
