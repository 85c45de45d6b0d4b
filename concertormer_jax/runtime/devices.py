"""The devices and the hosts that share the work.

Devices: the mesh, where arrays lie on it, and how programs are compiled for it. Hosts: the processes of one command,
which tell each other by files how far they are.
"""

import contextlib
import gc
import os
import pickle
import shutil
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from concertormer_jax.runtime import threads, trace_cache
from concertormer_jax.runtime.errors import UserError, end_at_once
from concertormer_jax.runtime.files import written_atomically
from concertormer_jax.runtime.outputs import require_writable
from concertormer_jax.runtime.paths import user_path

_DEDUPLICATE = "--xla_tpu_enable_deduplicated_calls"
_BACKEND_OPTIONS = "--xla_backend_extra_options"
_LOOK_S = 0.5
_VISIBLE_WITHIN_S = 90  # hosts see files of other hosts this late: network file systems cache listings for a minute


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return a mesh with the one axis "data" over `devices` (all of them if None)."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Split the first axis of an array over the devices of `mesh`."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """Keep an array whole on every device of `mesh`."""
    return NamedSharding(mesh, PartitionSpec())


def kind_of_single(mesh: Mesh) -> str | None:
    """Return the kind of the only device of `mesh` (see `ops.platform.single_device_kind`), None if it has several."""
    return mesh.devices.flat[0].device_kind if mesh.size == 1 else None


def place_batch(mesh: Mesh, arrays: Any) -> Any:
    """Put this host's share of a batch (a tree of NumPy arrays) on its devices of `mesh`."""
    sharding = batch_sharding(mesh)
    with jax.transfer_guard("allow"):  # with several hosts the guard takes this transfer for an implicit one
        return jax.tree.map(lambda array: jax.make_array_from_process_local_data(sharding, array), arrays)


def run_once_options() -> dict[str, Any]:
    """Options of `jax.jit` for a program that runs once: on a CPU, XLA optimises longer than such a program runs."""
    on_cpu = jax.default_backend() == "cpu"
    return {"compiler_options": {"xla_backend_optimization_level": 0} if on_cpu else None}


def run_in_background(lowered: jax.stages.Lowered, argument: Callable[[], Any]) -> Future:
    """Compile what `jax.jit(...).lower(...)` returned and run it on `argument()`, as `_in_background` does."""
    return _in_background(lambda: _compile(lowered)(argument()))


def compile_in_background(lowered: jax.stages.Lowered) -> "Future[jax.stages.Compiled]":
    """Compile what `jax.jit(...).lower(...)` returned, as `_in_background` does."""
    return _in_background(lambda: _compile(lowered))


def compile_interruptibly(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compile what `jax.jit(...).lower(...)` returned. A signal handler that raises ends the wait, not the compiler."""
    return compile_in_background(lowered).result()


def _compile(lowered):
    """`lowered.compile()`; on a CPU, XLA does not check its program between its passes."""
    on_cpu = jax.default_backend() == "cpu"
    return lowered.compile({"xla_disable_hlo_passes": "hlo-verifier"} if on_cpu else None)


def _in_background(function: Callable[[], Any]) -> Future:
    """Call `function`, which compiles, in a thread of its own: XLA holds no Python lock, so other work can go on.

    With several processes this returns when `function` has, as all processes must start their programs in the same
    order.
    """
    if jax.process_count() == 1:
        return threads.run(function)
    done = Future()
    done.set_result(function())
    return done


def join_hosts() -> None:
    """Join the processes of the other hosts. Raises UserError where JAX finds no cluster."""
    try:
        jax.distributed.initialize()
    except (ValueError, KeyError, TypeError) as error:  # environment variables of a cluster are missing
        raise UserError(
            f"--distributed: JAX finds no cluster that this process belongs to ({error}); start it on each host of a "
            "Cloud TPU pod, or by SLURM, Open MPI or Kubernetes, or leave --distributed out on a single host"
        ) from error


@contextlib.contextmanager
def explain_out_of_memory(advice: str) -> Generator[None]:
    """Turn JAX's error that a device ran out of memory into a UserError that ends in `advice`."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "out of memory" not in str(error).lower():
            raise
        raise UserError(f"the device {jax.devices()[0].device_kind} ran out of memory; {advice}") from error


@contextlib.contextmanager
def end_with_lost_hosts(advice: str) -> Generator[None]:
    """End this process, with a sentence that ends in `advice`, when its devices have lost those of another host.

    It ends at once, as Orbax would wait for that host. Devices that wait for it in silence are ended by JAX, which
    gives a host up after 100 s without a sign of life.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        host = f"host {jax.process_index()} of {jax.process_count()}"
        reason = " ".join(str(error).split())
        end_at_once(2, f"error: {host} cannot go on with the others, of which one may have ended ({reason}); {advice}")


def deduplicate_tpu_code() -> None:
    """Have libtpu emit equal operations once, unless LIBTPU_INIT_ARGS says otherwise. Call it before libtpu is loaded.

    The encoder's and decoder's stages are much alike, so the program is about half as large.
    """
    given = os.environ.get("LIBTPU_INIT_ARGS", "")
    if _DEDUPLICATE not in given:
        os.environ["LIBTPU_INIT_ARGS"] = f"{_DEDUPLICATE}=true {given}".strip()


def keep_cpu_loops_rolled() -> None:
    """Have XLA unroll no loops on a CPU, unless XLA_FLAGS has other options of that kind. Call it before XLA is used.

    Unrolled, a network's programs take longer to compile, and run no faster.
    """
    given = os.environ.get("XLA_FLAGS", "")
    if _BACKEND_OPTIONS not in given:
        os.environ["XLA_FLAGS"] = f"{given} {_BACKEND_OPTIONS}=xla_cpu_disable_loop_unrolling=1".strip()


def prepare_to_compile() -> None:
    """Cache compiled programs and their traces on disk. Call it before this process uses a device.

    Compiled programs go to JAX_COMPILATION_CACHE_DIR, or to the user's cache folder if that is not set, and traces to
    the folder `traces` there. Python's garbage collector runs less often: tracing a network makes millions of objects
    that stay alive, and the collector would visit them again and again.
    """
    deduplicate_tpu_code()
    keep_cpu_loops_rolled()
    given = jax.config.values["jax_compilation_cache_dir"]
    if given is None:
        cache = user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "XDG_CACHE_HOME") / "concertormer_jax"
    else:
        cache = user_path(given, "JAX_COMPILATION_CACHE_DIR")
    jax.config.update("jax_compilation_cache_dir", os.fspath(cache))
    if jax.config.values["jax_enable_compilation_cache"]:
        trace_cache.set_cache_dir(cache / "traces")
    gc.set_threshold(1_000_000)


class Hosts:
    """The processes that share a command's work: `index` is this one's number of `count`. A context manager.

    folder: a folder that all of them see; a subfolder holds their messages. None: this process is alone, and nothing is
    written. All processes call the same methods in the same order. An error that leaves the context on one process
    ends it on all of them: the others raise a UserError that names the host and says why.
    Files are used in place of the devices' collective operations, as one host may wait for another for hours, and the
    failure of one must stop the others at once.
    """

    def __init__(self, folder=None):
        self.index, self.count, self._calls = 0, 1, 0
        if folder is None:
            return
        self.index, self.count = jax.process_index(), jax.process_count()
        if self.count > 1:
            run = multihost_utils.broadcast_one_to_all(np.frombuffer(os.urandom(8), np.uint8))
            self._folder = Path(folder, f".hosts-{bytes(run).hex()}")
            require_writable(self._folder)
            self._require_common_folder()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _):
        if self.count == 1:
            return
        if error is None:
            self.gather(None)
        elif isinstance(error, Exception):
            self._tell("failed", str(error) or kind.__name__)
        else:  # a signal ends this process, and JAX the others when it misses this one
            return
        jax.distributed.shutdown()  # which waits for the others, so that they have read everything
        if self.first:
            shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes what is written once."""
        return self.index == 0

    def gather(self, value: Any) -> list:
        """Wait for all processes and return the `value` that each of them gave, which pickle must know, in order.

        Raises UserError as soon as another process has failed.
        """
        if self.count == 1:
            return [value]
        self._calls += 1
        self._tell(f"value-{self._calls}", value)
        return [self._answer(index) for index in range(self.count)]

    def require_none_failed(self) -> None:
        """Raise UserError if another process has failed; to be called now and then during long work."""
        if self.count == 1:
            return
        for path in self._folder.glob("failed-*"):
            raise UserError(f"host {path.name.rpartition('-')[2]} of {self.count} failed: {_read(path)}")

    def _require_common_folder(self):
        self._tell("there", None)
        end = time.monotonic() + _VISIBLE_WITHIN_S
        while missing := [i for i in range(self.count) if not self._path("there", i).exists()]:
            if time.monotonic() > end:
                raise UserError(
                    f"{self._folder.parent}: host {self.index} does not see what host {missing[0]} writes there; name "
                    "a folder for results that all hosts share."
                )
            time.sleep(_LOOK_S)

    def _tell(self, what, content):
        with written_atomically(self._path(what, self.index)) as temporary:
            temporary.write_bytes(pickle.dumps(content))

    def _answer(self, index):
        while not (path := self._path(f"value-{self._calls}", index)).exists():
            self.require_none_failed()
            time.sleep(_LOOK_S)
        return _read(path)

    def _path(self, what, index):
        return self._folder / f"{what}-{index}"


def _read(path):
    return pickle.loads(path.read_bytes())
