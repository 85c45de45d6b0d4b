"""Deraining on Rain13K: 13,711 training pairs (`python -m concertormer_jax prepare rain13k --source=DIR`).

    python train.py --config=configs/derain.py --workdir=runs/derain
    python train.py --config=configs/derain.py:synthetic --workdir=runs/rain --config.data.source=FOLDER
                                                                       rain that is drawn over photographs

The paper's figure is 34.60 dB / 0.943 SSIM on Y, the average of Test100, Rain100H, Rain100L and Test2800. Expected
hardware: 8 TPU chips or GPUs. This recipe has not been run to its end with this code.
"""

from concertormer_jax.runtime.errors import UserError
from configs import common


def get_config(data: str = "rain13k"):
    """data: "rain13k" or "synthetic"."""
    config = common.get_config()
    config.data.source = "tfds:rain13k"
    config.stages.steps = (200_000,)
    config.stages.crop_px = (128,)
    config.stages.batch = (64,)
    config.optimizer.learning_rate = 1e-4
    config.optimizer.weight_decay = 1e-4
    if data == "synthetic":
        config.data.source = "bundled:photos/train"
        config.data.degradation = "rain"
        config.run.cache = True
    elif data != "rain13k":
        raise UserError(f"configs/derain.py:{data} is unknown; choose rain13k or synthetic")
    return config
