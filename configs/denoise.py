"""Gaussian colour denoising, on sharp photographs such as DIV2K, Flickr2K, BSD500 and WED.

    python train.py --config=configs/denoise.py --workdir=runs/denoise --config.data.source=FOLDER
                                                           one network for all noise, sigma from 0 to 50
    python train.py --config=configs/denoise.py:25 --workdir=runs/denoise_25 --config.data.source=FOLDER
                                                           one for sigma 25; likewise 15 and 50

No figure of the paper is at hand for this task; the schedule is that of SIDD with mirrored and turned crops. Expected
hardware: 8 TPU chips or GPUs. This recipe has not been run to its end with this code.
"""

from concertormer_jax.runtime.errors import UserError
from configs import common

_SIGMAS = ("15", "25", "50")


def get_config(sigma: str = "blind"):
    """sigma: "blind", "15", "25" or "50"."""
    config = common.get_config()
    config.model.variant = "sidd"
    config.data.degradation = "gaussian"
    if sigma in _SIGMAS:
        config.data.noise_sigma = (float(sigma), float(sigma))
    elif sigma != "blind":
        raise UserError(f"configs/denoise.py:{sigma} is unknown; choose blind, 15, 25 or 50")
    config.stages.steps = (400_000,)
    config.stages.crop_px = (256,)
    config.stages.batch = (32,)
    return config
