"""A network in two lines with the interface of a loaded checkpoint."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class FakeModule:
    """Multiplies by `params`; with TLC it also adds 0.1. Leaves the network's bounds unclipped, as the real one."""

    tlc_window: int | None = None
    multiple: ClassVar[int] = 64
    dtype: ClassVar = jnp.float32

    def clone(self, tlc_window):
        return FakeModule(tlc_window)

    def apply(self, variables, images):
        restored = images * variables["params"] + (0.0 if self.tlc_window is None else 0.1)
        return (None, None, None, restored)


@dataclasses.dataclass(frozen=True)
class FakeModel:
    params: jnp.ndarray
    module: FakeModule = dataclasses.field(default_factory=FakeModule)
    train_crop_px: int | None = 256
    step: int = 300
    name: str = "fake, step 300"


def fake_model(factor=1.0):
    return FakeModel(jnp.float32(factor))
