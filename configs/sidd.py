"""SIDD denoising: 320 training pairs (`python -m concertormer_jax prepare sidd --source=DIR`).

    python train.py --config=configs/sidd.py --workdir=runs/sidd

No figure of the paper is at hand for this set. Expected hardware: 8 TPU chips or GPUs. This recipe has not been run to
its end with this code.
"""

from configs import common


def get_config():
    """One phase without flips and rotations, which would move the pattern of the sensor."""
    config = common.get_config()
    config.model.variant = "sidd"
    config.data.source = "tfds:sidd"
    config.data.flip = False
    config.data.rotate = False
    config.stages.steps = (400_000,)
    config.stages.crop_px = (256,)
    config.stages.batch = (32,)
    return config
