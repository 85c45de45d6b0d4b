"""The data of a run: where they come from, and what the run says of them."""

from concertormer_jax.data.degrade import make_degradation
from concertormer_jax.data.sources import Mixture, leave_out, open_source, split_source
from concertormer_jax.runtime.errors import UserError

_MUCH_MORE = 1.5  # times the pictures to hold out, from which on that is said


def sources_from(config):
    """The sources for training and validation: held-out images of the former, unless config.validation names one.

    What is validated on is left out of the training. Raises UserError like `open_source`, and if nothing is left.
    """
    data = config.data
    degradation = make_degradation(
        data.degradation,
        min_length_px=data.blur_min_px,
        max_length_px=data.blur_max_px,
        shot_noise=data.shot_noise,
        read_noise=data.read_noise,
        jpeg_quality=data.jpeg_quality,
    )
    if not _places(data.source):
        raise UserError("config.data.source is empty; name a folder with input/ and target/ or one of photographs")
    settings = {"degradation": degradation, "data_dir": data.data_dir}
    opened = [open_source(place, cached=config.run.cache, **settings) for place in _places(data.source)]
    if _places(config.validation.source):
        held = [open_source(place, validation=True, **settings) for place in _places(config.validation.source)]
        training = [leave_out(source, held) for source in opened]
        for place, source in zip(_places(data.source), training, strict=True):
            if not len(source):
                raise UserError(
                    f"config.data.source={place}: config.validation.source={config.validation.source} holds all its "
                    "pictures, so that none is left to train on; name other pictures, or leave the latter empty"
                )
        validation = Mixture(held) if len(held) > 1 else held[0]
    else:
        split = [split_source(source, config.validation.fraction) for source in opened]
        training = [part for part, _ in split]
        validation = Mixture([part for _, part in split])
    source = Mixture(training, data.shares or None) if len(training) > 1 else training[0]
    return source, validation


def data_notes(source, validation, config) -> list[str]:
    """What to say of the sources at the start: kind, number, and an example of each part."""
    lines = [f"training on {part.describe()}" for part in source.parts()]
    held_out = "" if config.validation.source else "held out: "
    lines += [f"validating on {held_out}{part.describe()}" for part in validation.parts()]
    share = len(validation) / (len(source) + len(validation))
    if held_out and share > _MUCH_MORE * config.validation.fraction and len(validation) > len(validation.parts()):
        lines.append(
            f"{share:.0%} of the pictures are held out in place of {config.validation.fraction:.0%}, since whole "
            "sequences are; name pictures to validate on as config.validation.source to train on all of these"
        )
    return lines


def _places(text: str) -> list[str]:
    return [place for place in text.split(",") if place]
