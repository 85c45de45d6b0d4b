"""A cache of traced programs in files: tracing a network takes as long as loading its compiled program.

`set_cache_dir` turns the cache on for this process. Its files may be removed at any time. At most `MOST_TRACES` are
kept: when one more is written, the oldest are removed.
"""

import hashlib
import inspect
import uuid
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import jax
from etils import epath
from jax import export

from concertormer_jax.ops.platform import single_device_kind, traced_for

MOST_TRACES = 500
_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy")
_DIGEST_BYTES = hashlib.sha256().digest_size
_folder, _package = None, None


def set_cache_dir(folder) -> None:
    """Cache traces in `folder`, which may be gs://, from now on; None turns the cache off.

    The files of this package are hashed here and stand for the code that was imported. So call this soon after the
    import, and do not replace functions of the package in a process that uses the cache.
    """
    global _folder, _package
    _folder, _package = (None, None) if folder is None else (epath.Path(folder), _digest_of_package())


def fingerprint(module, *settings) -> str | None:
    """Text for `lower_cached` that changes when the network or the settings of a program change.

    module: the network; its fields and the file of its class count. settings: all else that the program is made of,
    such as parts of a config, each with a `str` that shows its value. Returns None if the class comes from no file.
    """
    source = _digest_of_source(type(module))
    return None if source is None else "\n".join(map(str, (source, module, *settings)))


def lower_cached(function: Callable, *arguments, fingerprint: str | None, **jit_options) -> jax.stages.Lowered:
    """`jax.jit(function, **jit_options).lower(*arguments)`, without tracing `function` if its trace is in the cache.

    function: named differently from the other functions of its file that have the same fingerprint; one that comes
        from no file is not cached.
    arguments: trees of arrays, or of their shapes, that `jax.export` can write.
    fingerprint: of all that `function` depends on (see `fingerprint`); None: it is not cached.

    A cached trace is used for arguments of the same trees, shapes, types and shardings, with the same options, devices,
    settings of JAX and versions of the libraries, if neither this package nor the file of `function` has changed.
    """
    jitted = jax.jit(function, **jit_options)
    source = _digest_of_source(function)
    if None in (_folder, fingerprint, source):
        return jitted.lower(*arguments)
    path = _folder / _key(function, source, fingerprint, arguments, jit_options)
    trace = _read(path)
    if trace is None:
        trace = export.export(jitted)(*arguments).serialize()
        _write(path, trace)
    exported = export.deserialize(trace)
    return jax.jit(exported.call, **jit_options).lower(*arguments)


def _key(function, source, fingerprint, arguments, options):
    devices = [(device.platform, device.device_kind) for device in jax.devices()]
    leaves, tree = jax.tree.flatten(arguments)
    kinds = [(leaf.shape, leaf.dtype, getattr(leaf, "sharding", None)) for leaf in leaves]
    parts = [
        f"{function.__module__}.{function.__qualname__}",
        source,
        fingerprint,
        sorted(options.items()),
        (tree, kinds),
        (devices, jax.process_count(), traced_for.value, single_device_kind.value),
        sorted(jax.config.values.items()),
        [version(name) for name in _LIBRARIES],
        _package,
    ]
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()


def _digest_of_source(defined) -> str | None:
    """The digest of the file in which a function or a class is defined, None if there is none."""
    try:
        return hashlib.sha256(Path(inspect.getfile(defined)).read_bytes()).hexdigest()
    except (TypeError, OSError):
        return None


def _digest_of_package() -> str:
    folder = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)}\n".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


# A file holds the digest of a trace and the trace.


def _read(path) -> bytearray | None:
    """The trace in `path`, or None if there is none, it cannot be read, or it is damaged."""
    try:
        if not path.exists():
            return None
        content = path.read_bytes()
    except OSError:
        return None
    digest, trace = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    return bytearray(trace) if hashlib.sha256(trace).digest() == digest else None


def _write(path, trace) -> None:
    """Write `trace` to `path` and prune the folder; if that fails, only warn."""
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(hashlib.sha256(trace).digest() + trace)
        temporary.replace(path)
        _prune(path.parent)
    except OSError as error:
        warnings.warn(f"traces cannot be cached in {path.parent}: {error}", stacklevel=3)


def _prune(folder) -> None:
    """Remove the oldest files of `folder` beyond `MOST_TRACES`."""
    files = list(folder.iterdir())
    if len(files) > MOST_TRACES:
        files.sort(key=lambda path: path.stat().mtime)
        for path in files[:-MOST_TRACES]:
            path.unlink(missing_ok=True)
