"""The limits of chips, by the name that JAX gives to the device."""

from collections.abc import Mapping
from typing import NamedTuple

import jax

# The precisions of products: of bfloat16 and other short types; of float32 that the device may round (a GPU to TF32, a
# TPU to bfloat16); of float32 as it is.
SHORT, TF32, FLOAT32 = "bfloat16", "float32, default precision", "float32, highest precision"


class Peak(NamedTuple):
    """The limits of a chip.

    flops_per_s: dense bfloat16, at which a TPU also multiplies float32 by default; bytes_per_s: of the main memory;
    clock_hz: of the cores; tf32_flops_per_s: of float32 products at the default precision, float32_flops_per_s: of
    those that round nothing; None where they run at `flops_per_s`.
    """

    flops_per_s: float
    bytes_per_s: float
    clock_hz: float
    tf32_flops_per_s: float | None = None
    float32_flops_per_s: float | None = None

    def arithmetic_s(self, products: Mapping[str, float]) -> float:
        """Return the least seconds of {precision: FLOPs}, as `costs.flops_by_precision` counts them."""
        rates = {TF32: self.tf32_flops_per_s, FLOAT32: self.float32_flops_per_s}
        return sum(flops / (rates.get(precision) or self.flops_per_s) for precision, flops in products.items())


# FLOP/s and bandwidth: docs.cloud.google.com/tpu/docs/v4, v5e, v5p and v6e. Clocks: v4 from Jouppi et al., "TPU v4",
# ISCA 2023; v5e and v5p follow from their FLOP/s and matrix units (4 and 8 of 128x128, 2 operations for each cell and
# cycle); v6e has no published clock, so that of v5p stands in.
TPU_V4 = Peak(275e12, 1228e9, 1.05e9)
TPU_V5E = Peak(197e12, 819e9, 1.5e9)
TPU_V5P = Peak(459e12, 2765e9, 1.75e9)
TPU_V6E = Peak(918e12, 1640e9, 1.75e9)

_BY_DEVICE_KIND = {
    "TPU v4": TPU_V4,
    "TPU v5 lite": TPU_V5E,
    "TPU v5e": TPU_V5E,
    "TPU v5": TPU_V5P,
    "TPU v5p": TPU_V5P,
    "TPU v6 lite": TPU_V6E,
    "TPU v6e": TPU_V6E,
}


def peak_of(device: jax.Device) -> Peak | None:
    """The limits of `device`, None where they are not known: of everything but the TPUs above."""
    return _BY_DEVICE_KIND.get(device.device_kind)
