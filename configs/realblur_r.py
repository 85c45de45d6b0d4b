"""RealBlur-R deblurring from GoPro weights: 3,758 pairs (`python -m concertormer_jax prepare realblur_r --source=DIR`).

    python train.py --config=configs/realblur_r.py --workdir=runs/realblur_r --config.init_from=runs/gopro

`init_from` is a GoPro training folder or converted GoPro weights. The paper's figure is 40.78 dB / 0.977 SSIM, after
the benchmark's alignment. Expected hardware: 8 TPU chips or GPUs. This recipe has not been run to its end with this
code.
"""

from configs import common


def get_config():
    """One phase, starting from GoPro weights."""
    config = common.get_config()
    config.data.source = "tfds:realblur_r"
    config.init_from = "runs/gopro"
    config.stages.steps = (300_000,)
    config.stages.crop_px = (128,)
    config.stages.batch = (64,)
    return config
