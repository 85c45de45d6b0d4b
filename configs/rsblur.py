"""RSBlur deblurring: 8,878 training pairs (`python -m concertormer_jax prepare rsblur --source=DIR`).

    python train.py --config=configs/rsblur.py --workdir=runs/rsblur

No figure of the paper is at hand for this set; the schedule is GoPro's. Expected hardware: 8 TPU chips or GPUs. This
recipe has not been run to its end with this code.
"""

from configs import common


def get_config():
    """The released GoPro schedule on real blurred pictures."""
    config = common.get_config()
    config.data.source = "tfds:rsblur"
    return config
