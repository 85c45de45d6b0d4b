"""What each part of the network is worth: GoPro with one form of `lite` after another, the paper's ablations and more.

    python train.py --config=configs/ablation.py:NAME --workdir=runs/NAME

NAME, as in concertormer_jax/models/variants.py; in brackets the paper's PSNR / SSIM on GoPro. The paper's steps, each
from the one before: gdmlp (32.35 / 0.951), spatial_ripieno (32.58 / 0.953), spatial_csa (33.11 / 0.958), channel_csa
(33.20 / 0.958), sca (33.31 / 0.959) and full (33.53 / 0.961), which is configs/gopro.py:lite; and two_stage (31.90 /
0.945). Comparisons, `full` with one part changed: window, window_unshifted, transposed, ripieno, concertino,
spatial_cdc, channel_cdc, block_4, block_16, single_scale, skip_sum, skip_concatenation.

Expected hardware: 8 TPU chips or GPUs. These recipes have not been run to their end with this code.
"""

from concertormer_jax.models import ABLATIONS
from concertormer_jax.runtime.errors import UserError
from configs import gopro


def get_config(name: str = "full"):
    """name: one of `concertormer_jax.models.ABLATIONS`."""
    if name not in ABLATIONS:
        raise UserError(f"configs/ablation.py:{name} is unknown; choose {', '.join(ABLATIONS)}")
    config = gopro.get_config("lite")
    config.model.variant = name
    return config
