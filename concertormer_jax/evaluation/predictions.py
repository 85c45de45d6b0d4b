"""Pictures restored by other software, matched with the pictures of a set."""

import re
from pathlib import Path

from concertormer_jax.data.cache import image_sizes
from concertormer_jax.data.images import images_by_name
from concertormer_jax.evaluation.scores import EvaluationSet
from concertormer_jax.runtime.errors import UserError


def predictions_folder(folder, pairs: EvaluationSet, alone: bool) -> Path:
    """Return the folder with the pictures of a set: one in `folder` that is named like it, else, if the set is the only
    one (`alone`), `folder` itself.

    Case, `-` and `_` do not count in the name. Raises UserError if there is none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"--predictions={folder}: no such folder; check the path.")
    named = [path for path in sorted(folder.iterdir()) if path.is_dir() and _plain(path.name) == _plain(pairs.name)]
    if named:
        return named[0]
    if alone:
        return folder
    raise UserError(f"{folder}: has no folder {pairs.name}/; several sets are scored, so each needs one of its own.")


def find_predictions(folder, pairs: EvaluationSet) -> list[Path]:
    """Return the picture of `folder` for every pair of the set, matched by name without extension.

    A subfolder in a name may be written as `<folder>-<name>`. Raises UserError naming the first picture that is
    missing, belongs to no pair, shares its name with another, or has another size than its target.
    """
    folder = Path(folder)
    found = images_by_name(folder, _flat)
    wanted = [_flat(name) for name in pairs.names]
    if missing := [name for name in wanted if name not in found]:
        raise UserError(
            f"{folder}: has no picture {missing[0]}.*{_more(missing)} of the {len(wanted)} of {pairs.name}; every "
            "picture of the set must be scored, so add it."
        )
    if surplus := sorted(found.keys() - set(wanted)):
        raise UserError(
            f"{found[surplus[0]]}: is none of the {len(wanted)} pictures of {pairs.name}{_more(surplus)}; remove it, "
            "or check that --data is the set that was restored."
        )
    paths = [found[name] for name in wanted]
    for path, size, target in zip(paths, image_sizes(paths), pairs.sizes, strict=True):
        if size != tuple(target):
            raise UserError(
                f"{path}: is {size[1]}x{size[0]} but its target in {pairs.name} is {target[1]}x{target[0]}; restore "
                "the pictures at their own size."
            )
    return paths


def _more(names):
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _flat(name):
    return name.replace("/", "-")


def _plain(name):
    return re.sub("[-_]", "", name).lower()
