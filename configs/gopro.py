"""GoPro deblurring, `data/GoPro/train` with input/ and target/ (2,103 pairs of 1280x720, or crops of them).

    python train.py --config=configs/gopro.py --workdir=runs/gopro            the released schedule
    python train.py --config=configs/gopro.py:paper --workdir=runs/paper      the paper's schedule
    python train.py --config=configs/gopro.py:lite --workdir=runs/lite        the small network, its released schedule

The full network restores GoPro at 34.42 dB / 0.971 SSIM, the small one at 33.53 / 0.961 (the paper's figures). Expected
hardware: 8 TPU chips or GPUs. This recipe has not been run to its end with this code.
"""

from configs import common


def get_config(schedule: str = "released"):
    """schedule: "released", "paper" or "lite"."""
    config = common.get_config()
    config.data.source = "data/GoPro/train"
    if schedule == "released":
        pass
    elif schedule == "paper":
        config.stages.steps = (200_000, 200_000, 200_000)
    elif schedule == "lite":
        config.model.variant = "lite"
        config.stages.steps = (400_000, 100_000, 100_000)
        config.stages.crop_px = (256, 320, 384)
        config.stages.batch = (32, 16, 8)
    else:
        raise ValueError(f"configs/gopro.py:{schedule} is unknown; choose released, paper or lite")
    return config
