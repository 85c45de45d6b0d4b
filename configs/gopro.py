"""GoPro deblurring: 2,103 training pairs of 1280x720 (`python -m concertormer_jax prepare gopro --source=DIR`).

    python train.py --config=configs/gopro.py --workdir=runs/gopro            the released schedule
    python train.py --config=configs/gopro.py:paper --workdir=runs/paper      the paper's schedule
    python train.py --config=configs/gopro.py:lite --workdir=runs/lite        the small network, its released schedule
    python train.py --config=configs/gopro.py:synthetic --workdir=runs/synthetic --config.data.source=FOLDER
                                                                              the released schedule on photographs

The paper's figures on GoPro are 34.42 dB / 0.971 SSIM, for the small network 33.53 / 0.961, and with the weights of the
full one 32.12 / 0.951 on HIDE. Expected hardware: 8 TPU chips or GPUs. This recipe has not been run to its end with
this code.
"""

from concertormer_jax.runtime.errors import UserError
from configs import common


def get_config(schedule: str = "released"):
    """schedule: "released", "paper", "lite" or "synthetic" (photographs, blurred as GoPro's frames are)."""
    config = common.get_config()
    config.data.source = "tfds:gopro"
    if schedule == "released":
        pass
    elif schedule == "paper":
        config.stages.steps = (200_000, 200_000, 200_000)
    elif schedule == "lite":
        config.model.variant = "lite"
        config.stages.steps = (400_000, 100_000, 100_000)
        config.stages.crop_px = (256, 320, 384)
        config.stages.batch = (32, 16, 8)
    elif schedule == "synthetic":
        config.data.source = "bundled:photos/train"
        config.data.degradation = "frames"
        config.run.cache = True
    else:
        raise UserError(f"configs/gopro.py:{schedule} is unknown; choose released, paper, lite or synthetic")
    return config
