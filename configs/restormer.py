"""Restormer on GoPro: 2,103 training pairs of 1280x720 (`python -m concertormer_jax prepare gopro --source=DIR`).

    python train.py --config=configs/restormer.py --workdir=runs/restormer           its own, transposed attention
    python train.py --config=configs/restormer.py:csa --workdir=runs/restormer_csa   with Concerto self-attention

The schedule of its paper (arXiv 2111.09881), batches for 8 devices. The papers' figures on GoPro are 32.92 dB, and
33.32 with Concerto self-attention; the first was measured without the test-time local converter (`evaluate.py
--tlc=off`). Expected hardware: 8 TPU chips or GPUs. This recipe has not been run to its end with this code.
"""

from concertormer_jax.runtime.errors import UserError
from configs import common


def get_config(attention: str = "transposed"):
    """attention: "transposed" or "csa"."""
    config = common.get_config()
    variants = {"transposed": "restormer", "csa": "restormer_csa"}
    if attention not in variants:
        raise UserError(f"configs/restormer.py:{attention} is unknown; choose transposed or csa")
    config.model.variant = variants[attention]
    config.data.source = "tfds:gopro"
    config.stages.steps = (92_000, 64_000, 48_000, 36_000, 36_000, 24_000)
    config.stages.crop_px = (128, 160, 192, 256, 320, 384)
    config.stages.batch = (64, 40, 32, 16, 8, 8)
    config.train.fft_weight = 0.0
    config.optimizer.constant_steps = 92_000
    config.optimizer.learning_rate = 3e-4
    config.optimizer.final_learning_rate = 1e-6
    config.optimizer.weight_decay = 1e-4
    config.optimizer.beta2 = 0.999
    return config
