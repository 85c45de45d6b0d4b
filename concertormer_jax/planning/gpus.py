"""GPUs by name, which need not be there: their published figures, and the text from which XLA compiles for them."""

import os
from typing import NamedTuple

from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.peaks import Peak

FRACTION = "XLA_CLIENT_MEM_FRACTION"  # the environment variable that says which part of the memory JAX takes
OLD_FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"  # its deprecated name
_DEFAULT_FRACTION = 0.75
_VISIBLE = 0.98  # of the memory, what the driver leaves to programs


class _Architecture(NamedTuple):
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
        return int(_VISIBLE * self.memory_gib * 2**30)

    @property
    def peak(self) -> Peak:
        """The limits, of bfloat16, TF32 (half of it) and float32."""
        float32 = self.cores * _ARCHITECTURES[self.capability].units * 2 * self.clock_ghz * 1e9
        bfloat16 = self.bfloat16_tflops * 1e12 or float32
        tf32 = self.bfloat16_tflops * 1e12 / 2 or float32
        return Peak(bfloat16, self.bandwidth_gb_s * 1e9, self.clock_ghz * 1e9, tf32, float32)


# Table "Technical Specifications per Compute Capability" of NVIDIA's CUDA C++ Programming Guide.
_ARCHITECTURES = {
    (7, 5): _Architecture(64, 1024, 64 * 2**10, 64 * 2**10),
    (8, 0): _Architecture(64, 2048, 164 * 2**10, 163 * 2**10),
    (8, 6): _Architecture(128, 1536, 100 * 2**10, 99 * 2**10),
    (8, 9): _Architecture(128, 1536, 100 * 2**10, 99 * 2**10),
    (9, 0): _Architecture(128, 2048, 228 * 2**10, 227 * 2**10),
    (10, 0): _Architecture(128, 2048, 228 * 2**10, 227 * 2**10),
    (12, 0): _Architecture(128, 1536, 100 * 2**10, 99 * 2**10),
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

COMPILER_OPTIONS = {
    # XLA would time kernels on the GPU, which is not there, and cannot choose among Triton's without timing them.
    "xla_gpu_autotune_level": 0,
    "xla_gpu_enable_triton_gemm": False,
    # The kernels need not be optimised, as nothing is run, and neither memory nor traffic depends on it.
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_gpu_disable_gpuasm_optimizations": True,
}


def gpu(name: str) -> Gpu:
    """Return the GPU `name`, such as "rtx4090". Raises UserError, which lists all names, for one that is not known."""
    if name not in GPUS:
        raise UserError(f"--gpu={name} is unknown; give one of {', '.join(GPUS)}")
    return GPUS[name]


def usable_bytes(found: Gpu) -> int:
    """Return the memory that JAX takes of a GPU. Raises UserError for an environment variable that is no fraction."""
    return int(_memory_fraction() * found.visible_bytes)


def memory_note(found: Gpu) -> str:
    """Return a sentence on what `usable_bytes` is."""
    return (
        f"Of its {found.memory_gib:g} GiB the driver leaves about {100 * _VISIBLE:.0f} %, of which JAX takes "
        f"{100 * _memory_fraction():g} %; {FRACTION}=0.95, set for this command and for the run, is more."
    )


def _memory_fraction() -> float:
    """The part of a GPU's memory that JAX takes."""
    given = {name: text for name in (FRACTION, OLD_FRACTION) if (text := os.environ.get(name))}
    if len(given) > 1:
        raise UserError(f"the environment variables {' and '.join(given)} are both set; unset one, as JAX refuses both")
    name, text = next(iter(given.items()), (FRACTION, str(_DEFAULT_FRACTION)))
    try:
        fraction = float(text)
    except ValueError:
        fraction = 0.0
    if not 0 < fraction <= 1:
        raise UserError(f"the environment variable {name} is {text!r}; it must be a number above 0, at most 1")
    return fraction


def target_config(found: Gpu) -> str:
    """Return XLA's description of a GPU: a `stream_executor.GpuTargetConfigProto` in protobuf's text format."""
    architecture = _ARCHITECTURES[found.capability]
    major, minor = found.capability
    return f"""\
gpu_device_info {{
  name: "{found.name}"
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  core_count: {found.cores}
  fpus_per_core: {architecture.units}
  clock_rate_ghz: {found.clock_ghz}
  device_memory_size: {found.visible_bytes}
  memory_bandwidth: {round(found.bandwidth_gb_s * 1e9)}
  l2_cache_size: {found.l2_mib * 2**20}
  threads_per_core_limit: {architecture.threads}
  shared_memory_per_core: {architecture.shared_bytes}
  shared_memory_per_block: {48 * 2**10}
  shared_memory_per_block_optin: {architecture.block_shared_bytes}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_warp: 32
  threads_per_block_limit: 1024
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  block_dim_limit_x: {2**31 - 1}
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  driver_version: "13.0.0"
  runtime_version: "13.0.0"
  compile_time_toolkit_version: "13.0.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{found.name}"
"""
