"""How the rows of one picture lie on the devices of a mesh, and what these exchange; used inside `jax.shard_map`.

Rows are counted in units: the multiple of pixels that the network pads to, so that a device holds whole blocks at every
level. Where the devices do not divide the units, the picture ends before the last device does, and below it are padding
rows, whose content has no meaning.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num


class RowShards(NamedTuple):
    """The rows of a picture on the mesh axis `axis` of `devices` devices, in the order of the devices.

    each: units on every device; total: units of the picture. Devices that hold padding alone take part too, as a TPU
    does not run programs for any number of its chips.
    """

    axis: str
    devices: int
    each: int
    total: int

    @property
    def last(self) -> int:
        """The number of the last device that holds rows of the picture."""
        return -(-self.total // self.each) - 1

    def rows_of_picture(self, height: int) -> int:
        """The rows of a map that has `height` rows on every device, without the padding."""
        return height // self.each * self.total

    def first(self, height: int) -> Int[Array, ""]:
        """The number of this device's first row in the whole map."""
        return jax.lax.axis_index(self.axis) * height

    def valid(self, height: int) -> Int[Array, ""]:
        """How many of this device's `height` rows are the picture's."""
        return jnp.clip(self.rows_of_picture(height) - self.first(height), 0, height)

    def masked(self, maps: Num[Array, "b H *rest"]) -> Num[Array, "b H *rest"]:
        """The maps with zeros in the padding rows."""
        if self.total == self.devices * self.each:
            return maps
        inside = jnp.arange(maps.shape[1]) < self.valid(maps.shape[1])
        return jnp.where(inside.reshape(-1, *[1] * (maps.ndim - 2)), maps, 0)

    def sum(self, array: Num[Array, "*shape"]) -> Num[Array, "*shape"]:
        """The sum of the devices' arrays."""
        return jax.lax.psum(array, self.axis)

    def from_above(self, rows: Num[Array, "*shape"], *, circular: bool = False) -> Num[Array, "*shape"]:
        """The `rows` of the device above; on the first device zeros, or those of the `last` one if circular."""
        pairs = [(index, index + 1) for index in range(self.last)]
        return jax.lax.ppermute(rows, self.axis, pairs + [(self.last, 0)] * circular)

    def from_below(self, rows: Num[Array, "*shape"], *, circular: bool = False) -> Num[Array, "*shape"]:
        """The `rows` of the device below; on the `last` device zeros, or those of the first one if circular."""
        pairs = [(index + 1, index) for index in range(self.last)]
        return jax.lax.ppermute(rows, self.axis, pairs + [(0, self.last)] * circular)

    def convolve(self, convolution: Callable[[Array], Array], maps: Num[Array, "b H *rest"]) -> Num[Array, "b H *out"]:
        """The result of a convolution over 3 rows, with zeros outside the picture, for this device's rows.

        convolution: a linear function from maps with any number of rows to as many, with zero padding. What it makes of
        the neighbours' rows is added to the first and to the last row.
        """
        maps = self.masked(maps)
        above, below = self.from_above(maps[:, -1:]), self.from_below(maps[:, :1])
        nothing = jnp.zeros_like(above)
        result = convolution(maps)
        result = result.at[:, :1].add(convolution(jnp.concatenate([above, nothing], axis=1))[:, 1:])
        return result.at[:, -1:].add(convolution(jnp.concatenate([nothing, below], axis=1))[:, :1])

    def moved_up(self, maps: Float[Array, "b H W C"], border: int, pixels: Int[Array, ""]) -> Float[Array, "b H W C"]:
        """The maps moved up and left by `pixels`, 0 or `border`, circularly in the whole picture."""
        height = maps.shape[1]
        extended = jnp.pad(maps, ((0, 0), (0, border), (0, 0), (0, 0)))
        below = self.from_below(maps[:, :border], circular=True)
        extended = jax.lax.dynamic_update_slice_in_dim(extended, below, self.valid(height), axis=1)
        extended = jnp.concatenate([extended, extended[:, :, :border]], axis=2)
        return jax.lax.dynamic_slice(extended, (0, pixels, pixels, 0), maps.shape)

    def moved_down(self, maps: Float[Array, "b H W C"], border: int, pixels: Int[Array, ""]) -> Float[Array, "b H W C"]:
        """The inverse of `moved_up`."""
        _, height, width, _ = maps.shape
        last = jax.lax.dynamic_slice_in_dim(maps, self.valid(height) - border, border, axis=1)
        extended = jnp.concatenate([self.from_above(last, circular=True), maps], axis=1)
        extended = jnp.concatenate([extended[:, :, width - border :], extended], axis=2)
        return jax.lax.dynamic_slice(extended, (0, border - pixels, border - pixels, 0), maps.shape)


# How the rows lie in what is traced, inside `jax.shard_map`: `with row_shards(RowShards(...)):`. None: whole pictures.
row_shards = jax.make_user_context(default_value=None)
