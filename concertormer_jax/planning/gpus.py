"""GPUs that need not be there: the memory that JAX would take, and the text from which XLA compiles for them."""

import os

from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.peaks import ARCHITECTURES, GPUS, VISIBLE, Gpu

FRACTION = "XLA_CLIENT_MEM_FRACTION"  # the environment variable that says which part of the memory JAX takes
OLD_FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"  # its deprecated name
_DEFAULT_FRACTION = 0.75

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
        f"Of its {found.memory_gib:g} GiB the driver leaves about {100 * VISIBLE:.0f} %, of which JAX takes "
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
    architecture = ARCHITECTURES[found.capability]
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
