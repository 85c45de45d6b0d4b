"""The small network for laptops, on photographs that are blurred anew and on real pairs.

    python train.py --config=configs/pocket.py:short --workdir=runs/pocket-short DATA
    python train.py --config=configs/pocket.py --workdir=runs/pocket --config.init_from=runs/pocket-short DATA
    python train.py --config=configs/pocket.py:decay --workdir=runs/pocket-decay --config.init_from=runs/pocket DATA

with DATA = --config.data.source=PHOTOS,GRAPHICS,GOPRO,REDS --config.data.shares=0.55,0.05,0.25,0.15. The first command
begins with what is learnt fast. The second goes on at a constant learning rate for as long as it is let, by Muon, with
crops that have noise alone: what is sharp must stay so. The third lets the learning rate fall to zero over its steps,
without such crops, so the length of the training need not be known before; should its weights sharpen what is sharp, a
mean of them and of the second's does so less. PHOTOS holds sharp photographs, GRAPHICS what
benchmarks/graphics.py draws, GOPRO and REDS pairs in input/ and target/. Hardware: one CPU core or more, or a GPU.
docs/weights.md says what was trained for how long.

    python train.py --config=configs/pocket.py:finetune --workdir=runs/mine --config.data.source=FOLDER

goes on from the weights that come with this software, for a minute on two cores (--config.stages.steps=2000, longer).
"""

from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.paths import BUNDLED_WEIGHTS
from configs import common


def get_config(part: str = "constant"):
    """part: "short", "constant", "decay" or "finetune"."""
    config = common.get_config()
    config.model.variant = "pocket"
    config.model.remat = False
    config.data.source = "bundled:photos/train"
    config.data.blur_min_px = 0.0  # what is sharp must stay so
    config.data.shot_noise = 1e-4
    config.data.read_noise = 7e-4
    config.data.blur_max_px = 14.0
    config.stages.crop_px = (128,)
    config.stages.batch = (8,)
    config.optimizer.learning_rate = 2e-3
    config.optimizer.beta2 = 0.99
    config.train.ema_decay = 0.999
    config.validation.images = 16
    config.run.log_every_steps = 50
    config.run.checkpoint_every_steps = 250
    config.run.cache = True
    if part == "short":
        config.data.degradation = "shake,frames"
        config.stages.steps = (500,)
        config.optimizer.constant_steps = 499
        return config
    if part == "finetune":
        config.init_from = BUNDLED_WEIGHTS
        config.data.degradation = "shake"
        config.stages.steps = (25,)
        config.optimizer.learning_rate = 1e-4
        config.train.ema_decay = 0.0
        config.validation.images = 4
        config.run.log_every_steps = 5
        return config
    config.optimizer.name = "muon"
    if part == "constant":
        config.data.degradation = "shake,shake,shake,frames,noise"
        config.stages.steps = (1_000_000,)
        config.optimizer.constant_steps = 999_999
        config.train.ema_decay = 0.995
    elif part == "decay":
        config.data.degradation = "shake,shake,shake,frames"
        config.stages.steps = (700,)
        config.train.ema_decay = 0.99
    else:
        raise UserError(f"configs/pocket.py:{part} is unknown; choose short, constant, decay or finetune")
    return config
