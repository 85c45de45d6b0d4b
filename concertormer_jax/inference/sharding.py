"""One picture over several devices: its rows are split among them where one cannot hold the network's features."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from concertormer_jax.inference.compiled import CompiledPerShape, precision_for
from concertormer_jax.ops.image import padded_size
from concertormer_jax.ops.sharded import RowShards, row_shards
from concertormer_jax.runtime.devices import replicated
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.trace_cache import fingerprint

SETTINGS = ("auto", "off")  # of --shard
SHARD_HELP = "auto, the default: split a picture that does not fit one device over all of them; off: never"
# The most arrays of the finest level's hidden channels, with their copies, that are in memory at once.
_ARRAYS = 16
_AXIS = "rows"
_SPLIT = PartitionSpec(None, _AXIS)


def require_setting(setting: str) -> None:
    """Raise UserError unless `setting` is one of `SETTINGS`."""
    if setting not in SETTINGS:
        raise UserError(f"--shard={setting}: must be {' or '.join(SETTINGS)}.")


def needs_sharding(setting: str, module: Any, height: int, width: int, devices: int, memory_bytes: int) -> bool:
    """Return whether a picture of height x width pixels is split over the devices: the one place that decides it.

    setting: one of `SETTINGS`. devices: how many there are; memory_bytes: of each, 0 if not known, as on a CPU, and
    then nothing is split. A picture fits one device if `_ARRAYS` arrays of the hidden channels of its finest level do.
    """
    if setting == "off" or devices == 1 or not memory_bytes:
        return False
    pixels = padded_size(height, module.multiple) * padded_size(width, module.multiple)
    return _ARRAYS * pixels * module.hidden_channels_per_pixel * jnp.dtype(module.dtype).itemsize > memory_bytes


def memory_bytes(device: jax.Device) -> int:
    """Return the bytes of memory that programs on an accelerator may take, 0 if it is not known, and for a CPU."""
    statistics = None if device.platform == "cpu" else device.memory_stats()
    return (statistics or {}).get("bytes_limit", 0)


def shards_of(height: int, multiple: int, devices: int) -> RowShards:
    """Return how the rows of a picture of `height` pixels lie on `devices` devices. multiple: of the network."""
    total = -(-height // multiple)
    return RowShards(_AXIS, devices, -(-total // devices), total)


def row_mesh(devices: Sequence[jax.Device]) -> Mesh:
    """Return the mesh of `devices` with the one axis that `RowShards` names."""
    return jax.make_mesh((len(devices),), (_AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def row_sharding(mesh: Mesh) -> NamedSharding:
    """Split the rows of pictures [B, H, W, C] over the devices of `mesh`."""
    return NamedSharding(mesh, _SPLIT)


@dataclasses.dataclass(frozen=True)
class ShardedNetwork:
    """A network whose `apply` takes pictures with their rows on the devices of `mesh`, as `shards` says."""

    module: Any
    mesh: Mesh
    shards: RowShards

    @property
    def padded_height(self) -> int:
        """Return the rows of a picture with those that make the parts equal."""
        return self.shards.devices * self.shards.each * self.module.multiple

    def apply(self, variables: Any, images: jax.Array) -> tuple[jax.Array]:
        """Restore images [B, padded height, W, 3]: a tuple of one, in which rows of padding are as they were given."""

        def apply_to_rows(variables, images):
            with row_shards(self.shards):
                return self.module.apply(variables, images)[-1]

        on_devices = jax.shard_map(
            apply_to_rows, mesh=self.mesh, in_specs=(PartitionSpec(), _SPLIT), out_specs=_SPLIT, check_vma=False
        )
        inside = np.arange(images.shape[1]) < self.shards.total * self.module.multiple
        return (jnp.where(inside[:, None, None], on_devices(variables, images), images),)


class ShardedRestorer:
    """A function like `CompiledPerShape` of pictures that are split over `devices`, one at a time.

    make: a function of a network that returns the `function(params, images)` to compile, such as
    `compiled.restore_floats`; module, params: the network; precision, log: as of `CompiledPerShape`.
    """

    def __init__(
        self, make: Callable, module: Any, params: Any, devices: Sequence[jax.Device], *, precision: str, log: Callable
    ):
        self._make, self._module, self._log = make, module, log
        self._mesh = row_mesh(devices)
        self._params = functools.cache(lambda: jax.device_put(params, replicated(self._mesh)))
        self._precision = precision_for(module, precision)
        self._programs = {}

    def __call__(self, picture: np.ndarray) -> Any:
        """Start on [H, W, C], H and W multiples of the network's; what the function returns for a batch of one.

        Below the picture the result has rows of padding.
        """
        shards = shards_of(picture.shape[0], self._module.multiple, self._mesh.size)
        network = ShardedNetwork(self._module, self._mesh, shards)
        if shards not in self._programs:
            self._programs[shards] = CompiledPerShape(
                self._make(network),
                self._log,
                precision=self._precision,
                fingerprint=fingerprint(self._module, shards),
                in_shardings=(replicated(self._mesh), row_sharding(self._mesh)),
            )
        images = np.pad(picture, ((0, network.padded_height - len(picture)), (0, 0), (0, 0)))[None]
        return self._programs[shards](self._params(), jax.device_put(images, row_sharding(self._mesh)))
