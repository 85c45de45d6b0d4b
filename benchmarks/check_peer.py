"""How close the PyTorch peer comes to the numbers of the released model.

    PEER_ENV/bin/python -m benchmarks.check_peer                 against tests/golden
    PEER_ENV/bin/python -m benchmarks.check_peer --golden=DIR    against another set of the same layout

Prints the largest differences of outputs, TLC outputs, losses, gradients and weights after three steps, in float32, and
of the training also in float64; exits with status 1 if one is above its bound.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from benchmarks.torch_peer import ConcertormerPeer, Trainer, load_state
from concertormer_jax.runtime import errors
from concertormer_jax.runtime.errors import UserError

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
KEPT_ELEMENTS = 512  # of each gradient and weight in a cut set


def archive_of(folder: Path, name: str):
    """Open `folder`/`name`; raises UserError if it is missing."""
    if not (folder / name).is_file():
        raise UserError(f"--golden={folder}: holds no {name}; name a folder of golden numbers.")
    return np.load(folder / name)


def with_prefix(archive, prefix):
    return {name.removeprefix(prefix): archive[name] for name in archive.files if name.startswith(prefix)}


def build(config, state, dtype=torch.float32, **settings):
    network = ConcertormerPeer(
        config["width"],
        config["enc_blk_nums"],
        config["middle_blk_num"],
        config["dec_blk_nums"],
        config["enc_heads"],
        config["middle_heads"],
        config["dec_heads"],
        expansion=config["ffn_expansion_factor"],
        **settings,
    )
    return load_state(network, state).to(dtype)


def like(array, golden):
    """`array` cut as a cut golden set is, where it is."""
    array = array.detach().numpy()
    if array.shape == golden.shape:
        return array
    return array.ravel()[np.linspace(0, array.size - 1, min(array.size, KEPT_ELEMENTS)).astype(int)]


def check_network(archive, config, state):
    """Yield (what, largest difference, bound)."""
    network = build(config, state)
    for case in ("aligned", "padded"):
        with torch.no_grad():
            outputs = network(torch.as_tensor(archive[f"{case}/input"]))
        worst = max(np.abs(like(o, archive[f"{case}/output{i}"]) - archive[f"{case}/output{i}"]).max()
                    for i, o in enumerate(outputs))  # fmt: skip
        yield f"outputs, {case}, float32, absolute", worst, 1e-4


def check_tlc(archive, config, state):
    """Yield (what, largest difference, bound) for every case in the archive."""
    for key in (name for name in archive.files if name.endswith("meta")):
        case = key.removesuffix("meta")
        (window, _), *_ = json.loads(str(archive[key]))["kernel_sizes"]
        for together in (True, False):
            network = build(config, state, tlc_window=window, windows_together=together)
            with torch.no_grad():
                restored = network(torch.as_tensor(archive[f"{case}input"]))[-1]
            difference = np.abs(restored.numpy() - archive[f"{case}output"]).max()
            how = "together" if together else "one by one"
            yield f"outputs with TLC, windows of {window} {how}, float32, absolute", difference, 2e-4


def check_training(archive, config, state, dtype):
    """Yield (what, largest difference, bound) for the three training steps."""
    network = build(config, state, dtype=dtype)
    trainer = Trainer(network, steps=10)
    losses, norms, errors_of_gradient = [], [], {}
    for number in range(3):
        images, target = (torch.as_tensor(archive[f"train/{part}"][number]).to(dtype) for part in ("input", "target"))
        loss, norm = trainer.step(images, target)
        losses.append(loss.item())
        norms.append(norm.item())
        if number == 0:
            scale = max(1.0, norms[0] / 0.01)  # gradients are clipped in place
            for name, parameter in network.named_parameters():
                golden = archive[f"train/grad/{name}"]
                ours = like(parameter.grad * scale, golden)
                errors_of_gradient[name] = np.linalg.norm(ours - golden) / np.linalg.norm(golden)
    precise = dtype == torch.float64
    name = str(dtype).removeprefix("torch.")
    yield f"losses, {name}, relative", relative(losses, archive["train/losses"]), 1e-5
    yield f"gradient norms, {name}, relative", relative(norms, archive["train/grad_norms"]), 1e-4
    yield f"gradients, {name}, relative by norm", max(errors_of_gradient.values()), 1e-4 if precise else 1e-3
    if precise:  # in float32, gradients below AdamW's epsilon let rounding decide the step
        after = max(
            np.abs(like(parameter, archive[f"train/after3/{key}"]) - archive[f"train/after3/{key}"]).max()
            for key, parameter in network.named_parameters()
        )
        yield f"weights after three steps, {name}, absolute", after, 1e-5


def relative(values, golden):
    return np.max(np.abs(np.asarray(values) / golden - 1))


def main(arguments=None) -> None:
    """The command described at the top of this file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.check_peer", description=__doc__.split("\n")[0])
    parser.add_argument("--golden", type=Path, default=GOLDEN, help="folder with network.npz and tlc.npz")
    flags = parser.parse_args(arguments)
    with errors.reported():
        archive = archive_of(flags.golden, "network.npz")
        config, state = json.loads(str(archive["config"])), with_prefix(archive, "state/")
        checks = [*check_network(archive, config, state)]
        checks += check_tlc(archive_of(flags.golden, "tlc.npz"), config, state)
        checks += check_training(archive, config, state, torch.float32)
        checks += check_training(archive, config, state, torch.float64)
    failed = False
    for what, difference, bound in checks:
        ok = difference <= bound
        failed |= not ok
        print(f"{'ok  ' if ok else 'FAIL'} {difference:8.1e} (at most {bound:.0e})  {what}")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
