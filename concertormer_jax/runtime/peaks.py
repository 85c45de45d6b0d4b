"""The published limits of chips, by the name that JAX gives to the device."""

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

VISIBLE = 0.98  # of a GPU's memory, what the driver leaves to programs


class Architecture(NamedTuple):
    """What a core (streaming multiprocessor) has in all GPUs of one compute capability."""

    units: int  # float32 multiply-adds in a cycle
    threads: int  # at most
    shared_bytes: int  # shared memory
    block_shared_bytes: int  # the most of it that one block may take


class Gpu(NamedTuple):
    """One GPU."""

    name: str
    capability: tuple[int, int]
    cores: int
    clock_ghz: float
    memory_gib: float  # without what error correction takes
    bandwidth_gb_s: float
    l2_mib: int
    bfloat16_tflops: float  # of dense products; 0 where its tensor units do not know bfloat16 and TF32

    @property
    def visible_bytes(self) -> int:
        """The memory that programs see."""
        return int(VISIBLE * self.memory_gib * 2**30)

    @property
    def peak(self) -> Peak:
        """The limits, of bfloat16, TF32 (half of it) and float32."""
        float32 = self.cores * ARCHITECTURES[self.capability].units * 2 * self.clock_ghz * 1e9
        bfloat16 = self.bfloat16_tflops * 1e12 or float32
        tf32 = self.bfloat16_tflops * 1e12 / 2 or float32
        return Peak(bfloat16, self.bandwidth_gb_s * 1e9, self.clock_ghz * 1e9, tf32, float32)


# Table "Technical Specifications per Compute Capability" of NVIDIA's CUDA C++ Programming Guide.
ARCHITECTURES = {
    (7, 5): Architecture(64, 1024, 64 * 2**10, 64 * 2**10),
    (8, 0): Architecture(64, 2048, 164 * 2**10, 163 * 2**10),
    (8, 6): Architecture(128, 1536, 100 * 2**10, 99 * 2**10),
    (8, 9): Architecture(128, 1536, 100 * 2**10, 99 * 2**10),
    (9, 0): Architecture(128, 2048, 228 * 2**10, 227 * 2**10),
    (10, 0): Architecture(128, 2048, 228 * 2**10, 227 * 2**10),
    (12, 0): Architecture(128, 1536, 100 * 2**10, 99 * 2**10),
}

# NVIDIA's data sheets and the white papers of each architecture; boost clocks; bfloat16 with float32 sums, without
# sparsity. Error correction takes a sixteenth of the GDDR memory of T4, L4, A10 and L40S.
GPUS = {
    "t4": Gpu("Tesla T4", (7, 5), 40, 1.59, 15, 320, 4, 0),
    "l4": Gpu("NVIDIA L4", (8, 9), 58, 2.04, 22.5, 300, 48, 121),
    "a10": Gpu("NVIDIA A10", (8, 6), 72, 1.695, 22.5, 600, 6, 125),
    "a6000": Gpu("NVIDIA RTX A6000", (8, 6), 84, 1.8, 48, 768, 6, 154.8),
    "l40s": Gpu("NVIDIA L40S", (8, 9), 142, 2.52, 45, 864, 96, 362),
    "a100-40": Gpu("NVIDIA A100-SXM4-40GB", (8, 0), 108, 1.41, 40, 1555, 40, 312),
    "a100": Gpu("NVIDIA A100-SXM4-80GB", (8, 0), 108, 1.41, 80, 2039, 40, 312),
    "h100": Gpu("NVIDIA H100 80GB HBM3", (9, 0), 132, 1.98, 80, 3352, 50, 989.4),
    "h200": Gpu("NVIDIA H200", (9, 0), 132, 1.98, 141, 4800, 50, 989.4),
    "b200": Gpu("NVIDIA B200", (10, 0), 148, 1.965, 180, 7672, 126, 2250),
    "rtx3060": Gpu("NVIDIA GeForce RTX 3060", (8, 6), 28, 1.777, 12, 360, 3, 25.5),
    "rtx3070": Gpu("NVIDIA GeForce RTX 3070", (8, 6), 46, 1.725, 8, 448, 4, 40.6),
    "rtx3080": Gpu("NVIDIA GeForce RTX 3080", (8, 6), 68, 1.71, 10, 760, 5, 59.5),
    "rtx3090": Gpu("NVIDIA GeForce RTX 3090", (8, 6), 82, 1.695, 24, 936, 6, 71.2),
    "rtx4060": Gpu("NVIDIA GeForce RTX 4060", (8, 9), 24, 2.46, 8, 272, 24, 30.2),
    "rtx4070": Gpu("NVIDIA GeForce RTX 4070", (8, 9), 46, 2.475, 12, 504, 36, 58.3),
    "rtx4080": Gpu("NVIDIA GeForce RTX 4080", (8, 9), 76, 2.505, 16, 717, 64, 97.5),
    "rtx4090": Gpu("NVIDIA GeForce RTX 4090", (8, 9), 128, 2.52, 24, 1008, 72, 165.2),
    "rtx5080": Gpu("NVIDIA GeForce RTX 5080", (12, 0), 84, 2.617, 16, 960, 64, 112.6),
    "rtx5090": Gpu("NVIDIA GeForce RTX 5090", (12, 0), 170, 2.407, 32, 1792, 96, 209.5),
}

_BY_DEVICE_KIND = {
    "TPU v4": TPU_V4,
    "TPU v5 lite": TPU_V5E,
    "TPU v5e": TPU_V5E,
    "TPU v5": TPU_V5P,
    "TPU v5p": TPU_V5P,
    "TPU v6 lite": TPU_V6E,
    "TPU v6e": TPU_V6E,
} | {gpu.name: gpu.peak for gpu in GPUS.values()}


def peak_of(device: jax.Device) -> Peak | None:
    """The limits of `device`, None where they are not known: of everything but the TPUs and GPUs above."""
    return _BY_DEVICE_KIND.get(device.device_kind)
