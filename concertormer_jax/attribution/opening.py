"""From what the user names to what is attributed: the network as a function of pictures, and the pictures."""

from pathlib import Path

import jax
from jax.tree_util import Partial

from concertormer_jax.data.images import list_images
from concertormer_jax.errors import UserError
from concertormer_jax.paths import local_path


def restoring(model) -> Partial:
    """The network of a loaded checkpoint (`checkpoints.LoadedModel`) as a function of images, differentiable.

    float32 [B, H, W, 3] to the finest output, of the same shape and not clipped; without TLC, and with the blocks
    recomputed for the gradient.
    """
    module = model.module.clone(remat=True)

    def restore(params, images):
        return module.apply({"params": params}, images)[-1]

    return Partial(restore, jax.device_put(model.params))


def named_pictures(source) -> dict[str, Path]:
    """The picture `source`, or all in the folder `source`, by a name without `/` and suffix to call results by.

    Raises UserError if there is none, or if two have the same name.
    """
    source = local_path(source, "IMAGE")
    if source.is_file():
        return {source.stem: source}
    if not source.exists():
        raise UserError(f"{source}: no such picture or folder; check the path.")
    named = {}
    for path in list_images(source):
        name = path.relative_to(source).with_suffix("").as_posix().replace("/", "-")
        if name in named:
            raise UserError(f"{path}: {named[name].name} has the same name; remove one of the two.")
        named[name] = path
    return named
