"""Evaluation pairs made of sharp photographs, the same bytes every time."""

from pathlib import Path

from tqdm import tqdm

from concertormer_jax.data.degrade import make_degradation
from concertormer_jax.data.images import picture_names, to_uint8, write_png
from concertormer_jax.data.listing import walk
from concertormer_jax.data.sources import PhotoSource, open_source
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.outputs import require_separate
from concertormer_jax.runtime.paths import AnyPath


def synthesize(photos: AnyPath, out: AnyPath, seed: int = 0, degradation: str = "shake") -> int:
    """Write every photograph below `photos` to OUT/target and, degraded once, to OUT/input, as PNG; return how many.

    degradation: a name of `DEGRADATIONS`. Raises UserError if `photos` holds pairs, no picture, or two of one name, if
    OUT holds other pictures already, and if a photograph would be overwritten.
    """
    source = open_source(photos, degradation=make_degradation(degradation))
    if not isinstance(source, PhotoSource):
        raise UserError(f"{photos}: holds pairs already; give a folder of sharp photographs.")
    names = [source.name(index) for index in range(len(source))]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UserError(f"{photos}: has two pictures named {repeated[0]}; rename one of them.")
    written = {Path(out, part, f"{name}.png") for part in ("input", "target") for name in names}
    for part in ("input", "target"):
        for place in walk(Path(out, part)) if Path(out, part).is_dir() else ():
            for path in (place.path / name for name in picture_names(place.files)):
                if path not in written:
                    raise UserError(f"{path}: is not one of these photographs; choose an empty folder.")
    require_separate(sorted(written), source.items)
    for index, name in enumerate(tqdm(names, desc="degrading photographs", unit="picture")):
        degraded, sharp = source.whole(index, seed)
        write_png(Path(out, "input", f"{name}.png"), to_uint8(degraded))
        write_png(Path(out, "target", f"{name}.png"), sharp)
    return len(names)
