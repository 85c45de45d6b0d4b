"""Checkpoints on disk: what training saves and resumes from, and the model that evaluation loads.

A checkpoint directory holds one folder per step, with the items `params`, `average` (with a moving average only),
`optimizer` (in training only) and `model` (JSON: the network's fields and where the weights come from). Orbax writes a
step beside its place and renames it, or in a bucket marks it when it is complete: for us a step is whole or absent.
"""

import contextlib
import dataclasses
import json
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from concertormer_jax.errors import UserError
from concertormer_jax.models import Network, create, parameter_shapes, settings_of
from concertormer_jax.weights import load_weights_file

FOLDER = "checkpoints"


def size_of(module: Network) -> dict:
    """The fields of `module` that its parameters and its function depend on, as JSON keeps them."""
    return {name: list(v) if isinstance(v, tuple) else v for name, v in settings_of(module).items()}


def _module_of(size: dict) -> Network:
    return create(None, **{name: tuple(v) if isinstance(v, list) else v for name, v in size.items()})


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A network with its weights. name: a short description; train_crop_px: the largest training crop, if known."""

    module: Network
    params: Any
    train_crop_px: int | None
    step: int
    name: str


def _psnr(metrics) -> float:
    return metrics["psnr"]


class Checkpoints:
    """The checkpoints of a training run: the latest and the best by validation PSNR are kept.

    Saving returns as soon as the arrays are copied and goes on in the background.
    """

    def __init__(self, workdir):
        policies = checkpoint_managers
        best = policies.BestN(get_metric_fn=_psnr, n=1, keep_checkpoints_without_metrics=False)
        self._manager = ocp.CheckpointManager(
            epath.Path(workdir).resolve() / FOLDER,  # Orbax wants absolute paths, and says so only while it saves
            options=ocp.CheckpointManagerOptions(
                cleanup_tmp_directories=True,
                best_fn=_psnr,
                best_mode="max",
                keep_checkpoints_without_metrics=False,
                preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(1), best]),
            ),
        )

    def latest_step(self) -> int | None:
        """The last step that was saved, None if there is none."""
        return self._manager.latest_step()

    def save(self, state, model: dict, psnr: float | None) -> None:
        """Save a training state under its step; `psnr` is its validation PSNR in dB, None if it was not validated."""
        step = int(jax.device_get(state.step))
        items = {
            "params": ocp.args.StandardSave(state.params),
            "optimizer": ocp.args.StandardSave(state.optimizer),
            "model": ocp.args.JsonSave({**model, "step": step, "psnr": psnr}),
        }
        if state.average is not None:
            items["average"] = ocp.args.StandardSave(state.average)
        metrics = None if psnr is None else {"psnr": psnr}
        with self._full_disk_explained():
            self._manager.save(step, args=ocp.args.Composite(**items), metrics=metrics)

    def restore(self, abstract):
        """The latest state, laid out like `abstract` (a state of `jax.ShapeDtypeStruct`s with shardings)."""
        step = self.latest_step()
        items = {
            "params": ocp.args.StandardRestore(abstract.params),
            "optimizer": ocp.args.StandardRestore(abstract.optimizer),
        }
        if abstract.average is not None:
            items["average"] = ocp.args.StandardRestore(abstract.average)
        restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        count = jax.device_put(np.int32(step), abstract.step.sharding)
        return abstract.replace(step=count, average=None).replace(**restored)

    def reached_preemption(self, step: int) -> bool:
        """Whether the hosts agreed that one of them is about to be taken away (several hosts only)."""
        return self._manager.reached_preemption(step)

    def wait(self) -> None:
        """Wait until everything is on the disk."""
        with self._full_disk_explained():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _full_disk_explained(self):
        """Turn the failure of this save, or of the one before in the background, into one sentence."""
        try:
            yield
        except Exception as error:  # Orbax and TensorStore raise several kinds, with the reason in the text
            if "No space left" not in str(error) and "Disk quota" not in str(error):
                raise
            reason = f"{self._manager.directory}: no space is left for the checkpoint; free some and start again"
        else:
            return
        raise UserError(f"{reason}, the last whole one is kept")

    def close(self) -> None:
        """Wait, and release the manager's threads."""
        with self._full_disk_explained():
            self._manager.close()


def save_converted(directory, module: Network, params, train_crop_px: int) -> None:
    """Make `directory` a checkpoint directory with `params` as its only step, 0.

    Raises UserError when it exists and is not empty.
    """
    directory = epath.Path(directory).resolve()
    if directory.exists() and any(directory.iterdir()):
        raise UserError(f"{directory} is not empty; choose a new directory")
    model = {"size": size_of(module), "train_crop_px": train_crop_px, "step": 0, "psnr": None, "weights": "params"}
    with ocp.CheckpointManager(directory / FOLDER) as manager:
        items = {"params": ocp.args.StandardSave(params), "model": ocp.args.JsonSave(model)}
        manager.save(0, args=ocp.args.Composite(**items))


def _step_folder(directory) -> tuple[epath.Path, str]:
    """The folder of the step that `directory` stands for, and why: it is named itself, or the best, or the latest."""
    path = epath.Path(directory).resolve()
    if not path.exists():
        raise UserError(f"the checkpoint directory {directory} does not exist")
    if (path / "model").exists() and (path / "params").exists():
        return path, "chosen"
    if (path / FOLDER).exists():
        path = path / FOLDER
    numbered = [child for child in path.iterdir() if child.name.isdigit()]
    steps = {int(child.name): child for child in numbered if ocp.path.step.is_path_finalized(child)}
    if not steps:
        raise UserError(f"{directory} holds no checkpoint; give a training folder or the output of convert")
    psnr = {step: _read_model(child)["psnr"] for step, child in steps.items()}
    scored = [step for step in steps if psnr[step] is not None]
    if scored:
        best = max(scored, key=lambda step: (psnr[step], step))
        return steps[best], "best"
    return steps[max(steps)], "latest"


def _read_model(step_folder: epath.Path) -> dict:
    try:
        return json.loads((step_folder / "model" / "metadata").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{step_folder} is no checkpoint of this program or is damaged") from error


def load_model(directory) -> LoadedModel:
    """Load the network for use: from a training folder (its best step, else the latest), one step's folder in it,
    converted weights, or a weights file. With a moving average, that is loaded. Parameters are NumPy arrays.

    Raises UserError when there is no checkpoint or it cannot be read.
    """
    if epath.Path(directory).is_file():
        return _loaded_from_file(directory)
    folder, reason = _step_folder(directory)
    model = _read_model(folder)
    module = _module_of(model["size"])
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            shapes = parameter_shapes(module)
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
            params = checkpointer.restore(
                folder / model["weights"], args=ocp.args.PyTreeRestore(shapes, restore_args=as_numpy)
            )
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"the weights in {folder} cannot be read ({error}); choose another checkpoint") from error
    name = f"{epath.Path(directory).name}, step {model['step']}" + (", best" if reason == "best" else "")
    return LoadedModel(module, params, model["train_crop_px"], model["step"], name)


def _loaded_from_file(path) -> LoadedModel:
    weights = load_weights_file(path)
    print(weights.remark)
    return LoadedModel(weights.module, weights.params, weights.train_crop_px, 0, epath.Path(path).name)


def require_same_size(source, stored: dict, module: Network) -> None:
    """Raise UserError naming the first field in which the network `stored` in `source` differs from `module`."""
    for field, value in size_of(module).items():
        if stored[field] != value:
            raise UserError(
                f"{source} holds another architecture: {field} is {stored[field]} there and {value} in this config"
            )
