"""REDS deblurring with JPEG artifacts: 24,000 training pairs (`python -m concertormer_jax prepare reds --source=DIR`).

    python train.py --config=configs/reds.py --workdir=runs/reds

No figure of the paper is at hand for this set. Expected hardware: 8 TPU chips or GPUs. This recipe has not been run to
its end with this code.
"""

from configs import common


def get_config():
    """Four phases of growing crops."""
    config = common.get_config()
    config.data.source = "tfds:reds"
    config.stages.steps = (100_000, 100_000, 300_000, 100_000)
    config.stages.crop_px = (128, 192, 256, 320)
    config.stages.batch = (64, 24, 16, 8)
    return config
