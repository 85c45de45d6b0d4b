"""Super-resolution of bicubically reduced pictures, on sharp photographs such as DIV2K and Flickr2K (DF2K).

    python train.py --config=configs/super_resolution.py --workdir=runs/sr_x4 --config.data.source=FOLDER
    python train.py --config=configs/super_resolution.py:x2 --workdir=runs/sr_x2 --config.data.source=FOLDER

The network is that of deblurring: its input is the small picture, enlarged bicubically to the size of the target. No
figure of the paper is at hand for this task; the schedule is GoPro's. Expected hardware: 8 TPU chips or GPUs. This
recipe has not been run to its end with this code.
"""

from concertormer_jax.runtime.errors import UserError
from configs import common


def get_config(scale: str = "x4"):
    """scale: "x2" or "x4"."""
    if scale not in ("x2", "x4"):
        raise UserError(f"configs/super_resolution.py:{scale} is unknown; choose x2 or x4")
    config = common.get_config()
    config.data.degradation = f"bicubic_{scale}"
    return config
