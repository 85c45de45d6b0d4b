"""Tiny training runs for tests: a network of one level on small generated photographs."""

import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from concertormer_jax.data.images import write_png

ROOT = Path(__file__).parent.parent

TINY_NETWORK = {
    "model.variant": "",
    "model.width": 4,
    "model.encoder_blocks": (1,),
    "model.middle_blocks": 1,
    "model.decoder_blocks": (1,),
    "model.encoder_heads": (1,),
    "model.middle_heads": 1,
    "model.decoder_heads": (1,),
    "model.expansion": 2,
}
WITHOUT_ATTENTION = {"model.groups": "", "model.skip": "sum"}  # for what is no matter of the network: quick to compile
TINY_RUN = TINY_NETWORK | {
    "stages.steps": (4, 4),
    "stages.crop_px": (16, 32),
    "stages.batch": (8, 8),
    "validation.images": 3,
    "validation.crop_px": 32,
    "run.log_every_steps": 1,
    "run.checkpoint_every_steps": 2,
    "run.cache": False,
}

ONE_STAGE = {"stages.steps": (2,), "stages.crop_px": (16,), "stages.batch": (8,)}


# One small network with all that the real ones have: attention of all groups with communication, between heads too,
# cross attention, several scales; trained by Muon, with a moving average.
REAL_RUN = TINY_RUN | {
    "model.width": 8,
    "model.middle_heads": 2,
    "stages.steps": (4,),
    "stages.crop_px": (32,),
    "stages.batch": (2,),
    "train.ema_decay": 0.5,
    "optimizer.name": "muon",
    "run.checkpoint_every_steps": 1,
}


def write_photos(folder, count=6, size=48) -> None:
    """Write `count` pictures of random coloured stripes."""
    rng = np.random.default_rng(0)
    for number in range(count):
        stripes = rng.integers(0, 256, (size // 4, 1, 3)).repeat(4, axis=0).repeat(size, axis=1)
        write_png(Path(folder) / f"photo{number}.png", stripes.astype(np.uint8))


def override(config, settings: dict):
    """Set dotted keys of a config; an unknown key is an error."""
    with config.unlocked():
        for key, value in settings.items():
            node = config
            *parents, last = key.split(".")
            for parent in parents:
                node = node[parent]
            assert last in node, key
            node[last] = value
    return config


def command(workdir, settings: dict, config="configs/custom.py") -> list[str]:
    """The training command with `settings` as flags."""
    flags = [
        f"--config.{key}={','.join(map(str, value)) + ',' if isinstance(value, tuple) else value}"
        for key, value in settings.items()
    ]
    return [sys.executable, str(ROOT / "train.py"), f"--config={ROOT / config}", f"--workdir={workdir}", *flags]


def start(arguments, devices=8, **settings) -> subprocess.Popen:
    """Start a command with faked CPU devices, by default those of the tests; its output is one stream of text."""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "PYTHONUNBUFFERED": "1", **settings}
    return subprocess.Popen(
        arguments, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen, timeout_s=1200, status=0) -> str:
    """Wait for a command that must end with `status`; returns its output."""
    output, _ = process.communicate(timeout=timeout_s)
    assert process.returncode == status, output
    return output


def kill_when(process: subprocess.Popen, seen, timeout_s=1200) -> bool:
    """Kill `process` as soon as `seen()` is true; False if it ended before that."""
    deadline = time.monotonic() + timeout_s
    while process.poll() is None and time.monotonic() < deadline:
        if seen():
            process.kill()
            process.communicate()
            return True
        time.sleep(0.001)
    return False


def stored_state(workdir, step: int) -> dict[str, np.ndarray]:
    """All arrays of the checkpoint of `step`, by item and path."""
    arrays = {}
    for item in ("params", "optimizer", "average"):
        path = Path(workdir).resolve() / "checkpoints" / str(step) / item
        if item == "average" and not path.exists():
            continue
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            shapes = checkpointer.metadata(path).item_metadata.tree
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
            tree = checkpointer.restore(path, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
        for key, leaf in jax.tree_util.tree_leaves_with_path(tree):
            arrays[item + jax.tree_util.keystr(key)] = leaf
    return arrays


def assert_close(one: dict[str, np.ndarray], other: dict[str, np.ndarray], before: dict[str, np.ndarray]) -> None:
    """Assert that the weights of two stored states differ by rounding, measured by how far they are from `before`.

    Not each by itself: AdamW takes a whole step along a gradient that is nothing but rounding.
    """
    assert one.keys() == other.keys() == before.keys()
    names = [name for name in one if name.startswith(("params", "average"))]
    moved, apart = (
        np.sqrt(sum(np.sum((state[name] - other[name]) ** 2, dtype=np.float64) for name in names))
        for state in (before, one)
    )
    assert apart < 0.01 * moved, (apart, moved)


def assert_identical(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    """Assert that two stored states are equal bit for bit."""
    assert one.keys() == other.keys()
    different = [name for name in one if one[name].tobytes() != other[name].tobytes()]
    assert not different, different
