"""Which form of an operation runs: the one place where that is decided."""

from collections.abc import Callable
from functools import partial

from concertormer_jax.ops import cpu, gpu, reference, tpu
from concertormer_jax.ops.platform import platform, traced_for
from concertormer_jax.ops.sharded import OPERATIONS, OWN_OPERATIONS, row_shards

__all__ = ["FORMS", "IMPLEMENTATIONS", "OWN_FORMS", "form", "own_form", "require_implementation", "traced_for"]


FORMS: dict[str, dict[str, Callable]] = {
    "concerto_attention": {
        "reference": reference.concerto_attention,
        "cpu": cpu.concerto_attention,
        "gpu": gpu.concerto_attention,
        "tpu": tpu.concerto_attention,
    },
    "transposed_attention": {
        "reference": reference.transposed_attention,
        "cpu": cpu.transposed_attention,
        "gpu": gpu.transposed_attention,
        "tpu": tpu.transposed_attention,
    },
    "gated_mlp": {
        "reference": reference.gated_mlp,
        "cpu": cpu.gated_mlp,
        "gpu": gpu.gated_mlp,
        "tpu": tpu.gated_mlp,
    },
    "on_windows": {
        "reference": reference.on_windows,
        "cpu": cpu.on_windows,
        "gpu": gpu.on_windows,
        "tpu": tpu.on_windows,
    },
    "depthwise_3x3": {
        "reference": reference.depthwise_3x3,
        "cpu": cpu.depthwise_3x3,
        "gpu": gpu.depthwise_3x3,
        "tpu": tpu.depthwise_3x3,
    },
    "convolve_to_few": {
        "reference": reference.conv3x3,
        "cpu": cpu.convolve_to_few,
        "gpu": gpu.convolve_to_few,
        "tpu": tpu.convolve_to_few,
    },
}
# Operations for which only some platforms have a form. Where `own_form` gives None, the caller takes simpler ones.
OWN_FORMS: dict[str, dict[str, Callable]] = {
    "tiled_stage": {"tpu": tpu.tiled_stage},
    "convolve": {"tpu": tpu.convolve},
}
IMPLEMENTATIONS = tuple(FORMS["concerto_attention"])


def form(operation: str, implementation: str | None) -> Callable:
    """The function that computes `operation`, one of `FORMS`; all its forms compute the same.

    implementation: one of `IMPLEMENTATIONS`; None for that of the platform that is traced for, and of the default
    backend where no other is named. Only that form is traced, as tracing is slow: a program that is traced for one
    platform and compiled for another is right, but not as fast as it could be. A platform without forms of its own
    takes those of a GPU. Where the rows of a picture lie on several devices, the function is that of `ops.sharded`,
    which exchanges rows and sums between the devices. Raises ValueError for an unknown name.
    """
    local, rows = FORMS[operation][_chosen(implementation)], row_shards.value
    return local if rows is None else partial(OPERATIONS[operation], rows, local)


def own_form(operation: str, implementation: str | None) -> Callable | None:
    """The function that computes `operation`, one of `OWN_FORMS`, or None where it has none.

    implementation: as of `form`.
    """
    local, rows = OWN_FORMS[operation].get(_chosen(implementation)), row_shards.value
    if rows is None:
        return local
    return partial(OWN_OPERATIONS[operation], rows, local) if operation in OWN_OPERATIONS else None


def _chosen(implementation):
    if implementation is None:
        return platform() if platform() in IMPLEMENTATIONS else "gpu"
    require_implementation(implementation)
    return implementation


def require_implementation(implementation: str | None) -> None:
    """Raise ValueError unless `implementation` is None or one of `IMPLEMENTATIONS`."""
    if implementation is not None and implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation={implementation!r} is unknown; choose one of {', '.join(IMPLEMENTATIONS)}")
