"""Parameter trees in files that are quick to read."""

import jax
import numpy as np


def write_params(path, params) -> None:
    """Write a parameter tree as a .npz file with names as `stage/blocks/project`."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    names = [jax.tree_util.keystr(place, simple=True, separator="/") for place, _ in leaves]
    np.savez(path, **dict(zip(names, (np.asarray(leaf) for _, leaf in leaves), strict=True)))


def read_params(path) -> dict:
    """Read what `write_params` wrote, as NumPy arrays."""
    params = {}
    with np.load(path) as archive:
        for name in archive.files:
            *folders, leaf = name.split("/")
            tree = params
            for folder in folders:
                tree = tree.setdefault(folder, {})
            tree[leaf] = archive[name]
    return params
