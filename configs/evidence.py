"""The smallest runs that set forms of the network side by side: a tiny network on the bundled photographs.

    python -m concertormer_jax ablation_study --output=runs/evidence
    python train.py --config=configs/evidence.py --workdir=runs/tiny      (trains the full form alone)

The forms are the paper's ablations; these are not its experiment (that is configs/ablation.py): one level in place of
three, a sixth of the width, a few hundred crops. Expected for 19 forms x 3 seeds: 26 minutes of processor time, about
20 minutes on two quiet cores. A TPU or GPU allows wider networks and more steps (--config.model.width=16 --steps=2000).
"""

from configs import demo


def get_config():
    """One level, one head, blocks 1, 2 and 1: the second of the middle blocks is shifted."""
    config = demo.get_config()
    config.model.variant = ""
    config.model.width = 8
    config.model.encoder_blocks = (1,)
    config.model.middle_blocks = 2
    config.model.decoder_blocks = (1,)
    config.model.encoder_heads = (1,)
    config.model.middle_heads = 1
    config.model.decoder_heads = (1,)
    config.model.expansion = 2
    config.model.remat = False
    config.stages.steps = (120,)
    config.stages.batch = (4,)
    config.optimizer.learning_rate = 6e-3
    config.validation.source = "bundled:photos/test"
    config.validation.images = 8
    config.validation.crop_px = 256
    return config
