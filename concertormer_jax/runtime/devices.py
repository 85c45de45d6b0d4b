"""The devices that share the work: one mesh axis over which batches are split."""

import contextlib
import gc
import os
from concurrent.futures import Future

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from concertormer_jax.runtime import threads, trace_cache
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.paths import user_path

_SHARE_CODE = "--xla_tpu_enable_deduplicated_calls"


def data_mesh(devices=None) -> Mesh:
    """Return a mesh with the one axis "data" over `devices` (all of them if None)."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Split the first axis of an array over the devices of `mesh`."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """Keep an array whole on every device of `mesh`."""
    return NamedSharding(mesh, PartitionSpec())


def place_batch(mesh: Mesh, arrays):
    """Put this host's share of a batch (a tree of NumPy arrays) on its devices of `mesh`."""
    sharding = batch_sharding(mesh)
    with jax.transfer_guard("allow"):  # it is explicit here; with several hosts the guard does not see that
        return jax.tree.map(lambda array: jax.make_array_from_process_local_data(sharding, array), arrays)


def to_run_once() -> dict:
    """Options of `jax.jit` for what runs once: on a CPU no optimisations, which would take longer than it runs."""
    on_cpu = jax.default_backend() == "cpu"
    return {"compiler_options": {"xla_backend_optimization_level": 0} if on_cpu else None}


def run_in_background(lowered: jax.stages.Lowered, *arguments) -> Future:
    """Compile what `jax.jit(...).lower(*arguments)` returned and run it, in a thread of its own.

    To compile a program, or read it from the cache, and to run it needs no Python: the next can be traced meanwhile.
    With several processes it is done before this returns: all must start their programs in the same order.
    """
    if jax.process_count() == 1:
        return threads.run(lambda: lowered.compile()(*arguments))
    done = Future()
    done.set_result(lowered.compile()(*arguments))
    return done


def compile_while_listening(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """`lowered.compile()`, from which a signal's handler that raises leaves at once; the compiler goes on alone."""
    if jax.process_count() > 1:
        return lowered.compile()
    return threads.run(lowered.compile).result()


def join_hosts() -> None:
    """Join the other processes of a training on several hosts. Raises UserError where JAX finds no cluster."""
    try:
        jax.distributed.initialize()
    except (ValueError, KeyError, TypeError) as error:  # of an environment that says nothing, or not enough
        raise UserError(
            f"--distributed: JAX finds no cluster that this process belongs to ({error}); start it on each host of a "
            "Cloud TPU pod, or by SLURM, Open MPI or Kubernetes, or leave --distributed out on a single host"
        ) from error


@contextlib.contextmanager
def out_of_memory_explained(advice: str):
    """Turn a device's running out of memory into a UserError that ends in `advice`."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "out of memory" not in str(error).lower():
            raise
        raise UserError(f"the device {jax.devices()[0].device_kind} ran out of memory; {advice}") from error


def share_code_on_tpus() -> None:
    """Have the compiler for TPUs write equal operations once; to be called before this process loads it.

    The stages on the way down and up are much alike: it nearly halves the network's program. Users may say otherwise.
    """
    given = os.environ.get("LIBTPU_INIT_ARGS", "")
    if _SHARE_CODE not in given:
        os.environ["LIBTPU_INIT_ARGS"] = f"{_SHARE_CODE}=true {given}".strip()


def prepare_to_compile() -> None:
    """Make this process quick to start its programs; to be called before it uses a device.

    Compiled programs are kept in JAX_COMPILATION_CACHE_DIR, or in the user's cache folder if that is not set, and their
    traces in the folder `traces` there. Garbage is collected less often: tracing a network makes millions of objects
    that stay, and searching them again and again takes a third of its time.
    """
    share_code_on_tpus()
    given = jax.config.jax_compilation_cache_dir
    if given is None:
        cache = user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "XDG_CACHE_HOME") / "concertormer_jax"
    else:
        cache = user_path(given, "JAX_COMPILATION_CACHE_DIR")
    jax.config.update("jax_compilation_cache_dir", os.fspath(cache))
    if jax.config.jax_enable_compilation_cache:
        trace_cache.set_cache_dir(cache / "traces")
    gc.set_threshold(1_000_000)
