"""Traces of programs, kept between processes: to trace a network takes as long as to load its compiled program.

A process that calls `keep_in` takes its traces from files, which may be removed at any time, and adds those it lacks.
"""

import hashlib
import uuid
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import jax
from etils import epath
from jax import export

from concertormer_jax.ops.dispatch import traced_for

_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy")
_DIGEST_BYTES = hashlib.sha256().digest_size
_folder, _code = None, None


def keep_in(folder) -> None:
    """From now on keep traces in `folder`, which may be gs://; None for not.

    To be called soon after this package is imported, as its files are taken for what was imported, and not by a process
    that changes functions of the package while it runs.
    """
    global _folder, _code
    _folder, _code = (None, None) if folder is None else (epath.Path(folder), _digest_of_sources())


def lower(function: Callable, *arguments, made_from: str, **jit_options) -> jax.stages.Lowered:
    """`jax.jit(function, **jit_options).lower(*arguments)`, traced only if no process before kept the trace.

    A kept trace serves for arguments of equal trees, shapes, types and shardings, with equal options, on equal devices,
    with the settings of JAX, the versions of the libraries and the files of this package as they were. made_from: all
    else that `function` depends on, such as the network's fields or a config, as text; what this package makes out of
    them is told apart by the function's name. arguments: arrays or their shapes, in trees that `jax.export` can write.
    """
    jitted = jax.jit(function, **jit_options)
    if _folder is None:
        return jitted.lower(*arguments)
    path = _folder / _key(function, arguments, jit_options, made_from)
    trace = _kept(path)
    if trace is None:
        trace = export.export(jitted)(*arguments).serialize()
        _keep(path, trace)
    exported = export.deserialize(trace)
    return jax.jit(exported.call, **jit_options).lower(*arguments)


def _key(function, arguments, options, made_from):
    devices = [(device.platform, device.device_kind) for device in jax.devices()]
    leaves, tree = jax.tree.flatten(arguments)
    kinds = [(leaf.shape, leaf.dtype, getattr(leaf, "sharding", None)) for leaf in leaves]
    parts = [
        f"{function.__module__}.{function.__qualname__}",
        made_from,
        sorted(options.items()),
        (tree, kinds),
        (devices, jax.process_count(), traced_for.value),
        sorted(jax.config.values.items()),
        [version(name) for name in _LIBRARIES],
        _code,
    ]
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()


def _digest_of_sources():
    folder = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)}\n".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _kept(path):
    """The trace in `path`, or None if there is none, it cannot be read, or the file was damaged."""
    try:
        if not path.exists():
            return None
        content = path.read_bytes()
    except OSError:
        return None
    digest, trace = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    return bytearray(trace) if hashlib.sha256(trace).digest() == digest else None


def _keep(path, trace):
    """Write `trace` to `path`, behind its digest; a folder that takes no files costs only a warning."""
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(hashlib.sha256(trace).digest() + trace)
        temporary.replace(path)
    except OSError as error:
        warnings.warn(f"the trace of a program cannot be kept in {path.parent}: {error}", stacklevel=3)
