"""One picture over several devices: its rows are split among them where one device cannot hold the network's features."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from concertormer_jax.ops.image import padded_size
from concertormer_jax.ops.sharded import RowShards, row_shards

_AXIS = "rows"


def shards_of(height: int, multiple: int, devices: int) -> RowShards:
    """Return how the rows of a picture of `height` pixels lie on at most `devices` devices.

    multiple: of the network. As few devices are taken as hold the rows with equal parts of whole multiples.
    """
    total = -(-height // multiple)
    each = -(-total // devices)
    return RowShards(_AXIS, -(-total // each), each, total)


def row_mesh(devices: Sequence[jax.Device], shards: RowShards) -> Mesh:
    """Return the mesh of the first of `devices` that `shards` needs."""
    return jax.make_mesh((shards.devices,), (_AXIS,), axis_types=(AxisType.Auto,), devices=devices[: shards.devices])


def row_sharding(mesh: Mesh) -> NamedSharding:
    """Split the rows of pictures [B, H, W, C] over the devices of `mesh`."""
    return NamedSharding(mesh, PartitionSpec(None, _AXIS))


@dataclasses.dataclass(frozen=True)
class ShardedNetwork:
    """A network whose `apply` takes pictures with their rows on the devices of `mesh`, as `shards` says."""

    module: Any
    mesh: Mesh
    shards: RowShards

    @property
    def multiple(self) -> int:
        """That of the module."""
        return self.module.multiple

    @property
    def dtype(self) -> Any:
        """That of the module."""
        return self.module.dtype

    def apply(self, variables: Any, images: jax.Array) -> tuple[jax.Array]:
        """Restore images [B, devices * each * multiple, W, 3]: a tuple of one, whose padding rows are those given."""

        def apply_to_rows(variables, images):
            with row_shards(self.shards):
                return self.module.apply(variables, images)[-1]

        split = PartitionSpec(None, _AXIS)
        on_devices = jax.shard_map(
            apply_to_rows, mesh=self.mesh, in_specs=(PartitionSpec(), split), out_specs=split, check_vma=False
        )
        inside = np.arange(images.shape[1]) < self.shards.total * self.multiple
        return (jnp.where(inside[:, None, None], on_devices(variables, images), images),)
