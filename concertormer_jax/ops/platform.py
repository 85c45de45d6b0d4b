"""What operations are traced for."""

import jax

# The platform ("cpu", "gpu", "tpu") that is traced for, where it is not this process's own: `with traced_for("tpu"):`.
traced_for = jax.make_user_context(default_value=None)

# The kind of the device, such as "TPU v5e", where what is traced is inference on this one device: kernels without
# derivatives, which are not divided among devices, can serve then. None for all else.
single_device_kind = jax.make_user_context(default_value=None)

# The mesh over whose devices the pictures of a batch are split, where what is traced is a training step: kernels with
# derivatives serve each device's pictures then. None for all else.
training_mesh = jax.make_user_context(default_value=None)


def platform() -> str:
    """The platform that is traced for: the default backend where no other is named."""
    return traced_for.value or jax.default_backend()
