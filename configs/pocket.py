"""The small network for laptops, on photographs that are blurred anew and on real pairs.

    python train.py --config=configs/pocket.py --workdir=runs/pocket \
        --config.data.source=PHOTOS,GOPRO,REDS --config.data.shares=0.5,0.3,0.2
    python train.py --config=configs/pocket.py:decay --workdir=runs/pocket-decay --config.init_from=runs/pocket \
        --config.data.source=PHOTOS,GOPRO,REDS --config.data.shares=0.5,0.3,0.2 --config.stages.steps=2000,

The first command trains at a constant learning rate for as long as it is let; the weights that count are their moving
average. The second lets the learning rate fall to zero over its steps, about a tenth of those of the first: the length
of the training need not be known before. PHOTOS holds sharp photographs, GOPRO and REDS pairs in input/ and target/.
Hardware: one CPU core or more, or a GPU. docs/weights.md says what was trained for how long.
"""

from configs import common


def get_config(part: str = "constant"):
    """part: "constant" or "decay"."""
    config = common.get_config()
    config.model.variant = "pocket"
    config.model.remat = False
    config.data.source = "bundled:photos/train"
    config.data.degradation = "shake,shake,frames,frames,noise"  # the last one is nearly sharp: it must stay so
    config.data.blur_min_px = 0.0
    config.data.blur_max_px = 28.0
    config.data.shot_noise = 5e-5
    config.data.read_noise = 5e-4
    config.stages.crop_px = (256,)
    config.stages.batch = (2,)
    config.train.ema_decay = 0.999
    config.validation.images = 16
    config.run.log_every_steps = 50
    config.run.checkpoint_every_steps = 250
    config.run.cache = True
    if part == "constant":
        config.stages.steps = (1_000_000,)
        config.optimizer.constant_steps = 999_999
    elif part == "decay":
        config.stages.steps = (2_000,)
    else:
        raise ValueError(f"configs/pocket.py:{part} is unknown; choose constant or decay")
    return config
