"""REDS deblurring without JPEG: 24,000 training pairs (`python -m concertormer_jax prepare reds_blur --source=DIR`).

    python train.py --config=configs/reds_blur.py --workdir=runs/reds_blur

No figure of the paper is at hand for this set; the schedule is that of REDS with JPEG artifacts. Expected hardware: 8
TPU chips or GPUs. This recipe has not been run to its end with this code.
"""

from configs import reds


def get_config():
    """The phases of `reds.py`."""
    config = reds.get_config()
    config.data.source = "tfds:reds_blur"
    return config
