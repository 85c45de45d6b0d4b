"""Operations in the form that the platform they run on serves best."""

from collections.abc import Callable

import jax

# The platform ("cpu", "gpu", "tpu") that is traced for, where it is not this process's own: `with traced_for("tpu"):`.
traced_for = jax.make_user_context(default_value=None)


def on_platform(*arguments, default: Callable, **forms: Callable):
    """Call the one of `forms`, named by platform, for the platform that is traced for, or `default`.

    All forms compute the same. Unlike `jax.lax.platform_dependent` it traces only one of them, as tracing is slow; a
    program that is traced for one platform and compiled for another is right, but not as fast as it could be.
    """
    return forms.get(traced_for.value or jax.default_backend(), default)(*arguments)
