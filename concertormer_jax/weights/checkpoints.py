"""Checkpoints on disk: what training saves and resumes from, and the model that evaluation loads.

The folder `checkpoints` has one folder per step, with the items `params`, `average` (with a moving average only),
`optimizer` (in training only) and `model` (JSON, see `integrity`). Orbax writes a step beside its place and renames it,
or in a bucket marks it, when it is complete: a save that is interrupted leaves no step. The digests in `model` reveal
damage that happens later.
"""

import contextlib
import dataclasses
import functools
import json
import math
import re
from collections.abc import Callable, Generator, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers
from tqdm import tqdm

from concertormer_jax.models import Network
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.paths import BUNDLED_WEIGHTS, AnyPath, is_bundled, user_path
from concertormer_jax.weights import hub, load_weights_file
from concertormer_jax.weights.integrity import (
    Damaged,
    architecture_dict,
    first_words,
    module_of,
    read_arrays,
    read_metadata,
    shapes_of,
    with_digests,
)

FOLDER = "checkpoints"
_STEP = re.compile("0|[1-9][0-9]{0,9}")
_METRICS = "metrics/metrics"  # a file that Orbax reads if it is there; earlier versions of this software wrote it


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A network with its weights. name: for messages; train_crop_px: the largest training crop, None if not known."""

    module: Network
    params: Any
    train_crop_px: int | None
    step: int
    name: str


class Checkpoints:
    """The checkpoints of a training run: the latest two and the best by validation PSNR stay, the others are removed.

    `save` returns as soon as the arrays are copied; Orbax writes them in the background. Damaged checkpoints are passed
    over and named by `log`; once an undamaged one is restored, they are renamed to STEP.damaged. Raises UserError for a
    folder of converted weights.
    """

    def __init__(self, workdir: AnyPath, log: Callable[[str], object] = tqdm.write):
        self._folder = user_path(workdir) / FOLDER
        self._log = log
        self._damaged: dict[int, str] = {}
        self._models: dict[int, dict] = {}  # the metadata of the steps that are not known to be damaged
        for step, folder in _steps_in(self._folder).items():
            try:
                self._models[step] = _vetted(folder)
            except Damaged as reason:
                self._damaged[step] = str(reason)
            else:
                _require_of_a_training(folder, self._models[step], workdir)

    def latest_step(self) -> int | None:
        """Return the last saved step that is not known to be damaged, None if nothing was saved.

        Raises UserError when all checkpoints are damaged.
        """
        if self._damaged and not self._models:
            raise UserError(f"{self._folder}: {self._named_damages()}; none is whole: remove them to start anew")
        return max(self._models, default=None)

    def best(self) -> tuple[int, float] | None:
        """Return the step of the highest validation PSNR and that PSNR in dB, None if nothing was validated."""
        step = _best(self._models)
        return None if step is None else (step, self._models[step]["psnr"])

    def restore(self, abstract: Any, module: Network) -> Any:
        """Return the latest undamaged state, laid out like `abstract` (a state of `jax.ShapeDtypeStruct`s, sharded).

        Raises UserError when there is none, or when it is one of another network than `module`.
        """
        step, arrays = self._latest_arrays(abstract, module)
        _require_one_step_on_all_hosts(step)
        self._put_damaged_aside(step)

        def placed(array: np.ndarray, like: Any) -> jax.Array:
            return jax.make_array_from_callback(like.shape, like.sharding, lambda index: array[index])

        count = jax.device_put(np.int32(step), abstract.step.sharding)
        return abstract.replace(step=count, **{name: jax.tree.map(placed, *pair) for name, pair in arrays.items()})

    def _latest_arrays(self, abstract: Any, module: Network) -> tuple[int, dict[str, Any]]:
        """The latest undamaged step and its `_arrays`."""
        while (step := self.latest_step()) is not None:
            model = self._models[step]
            require_same_architecture(self._folder / str(step), architecture_dict(module_of(model["size"])), module)
            try:
                return step, self._arrays(step, model, abstract)
            except Damaged as reason:
                self._damaged[step] = str(reason)
                del self._models[step]
        raise UserError(f"{self._folder} holds no checkpoint to go on from")

    def _arrays(self, step: int, model: dict, abstract: Any) -> dict[str, Any]:
        """{item: (its arrays, its part of `abstract`)} of a step."""
        items = {"params": abstract.params, "optimizer": abstract.optimizer}
        if abstract.average is not None:
            items["average"] = abstract.average
        return {
            name: (read_arrays(self._folder / str(step), model, name, shapes), shapes) for name, shapes in items.items()
        }

    def _named_damages(self) -> str:
        return "; ".join(f"{step} is damaged ({reason})" for step, reason in sorted(self._damaged.items()))

    def _put_damaged_aside(self, step: int) -> None:
        """Rename the damaged steps, now that `step` is known to be undamaged. All hosts call this."""
        if self._damaged and jax.process_index() == 0:
            self._log(f"{self._folder}: {self._named_damages()}; put aside, going on from step {step}")
            for damaged in self._damaged:
                aside = self._folder / f"{damaged}.damaged"
                if aside.exists():
                    aside.rmtree()
                (self._folder / str(damaged)).rename(aside)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints are put aside")
        self._damaged.clear()

    @functools.cached_property
    def _manager(self) -> ocp.CheckpointManager:
        """Orbax's manager. It is made after the damaged steps are renamed, since it reads all and fails on those."""
        return ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                cleanup_tmp_directories=True, preservation_policy=_LatestAndBest(self._models)
            ),
        )

    def open(self) -> None:
        """Remove what an interrupted save left, and get ready to save. All hosts call this together."""
        self._manager.check_for_errors()

    def save(self, state: Any, model: dict, psnr: float | None) -> None:
        """Save a training state under its step. psnr: of its validation in dB, None if it was not validated."""
        step = int(jax.device_get(state.step))
        trees = {"params": state.params, "optimizer": state.optimizer}
        if state.average is not None:
            trees["average"] = state.average
        model = {**model, "step": step, "psnr": psnr}
        if jax.process_index() == 0:  # which writes the metadata
            model = with_digests(model, trees)
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        with self._save_errors():
            self._models[step] = model
            self._manager.save(step, args=ocp.args.Composite(**items, model=ocp.args.JsonSave(model)))

    def reached_preemption(self, step: int) -> bool:
        """Return whether the hosts agreed that one of them is preempted; with one host always False."""
        return self._manager.reached_preemption(step)

    def wait(self) -> None:
        """Wait until every save is on the disk."""
        with self._save_errors():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _save_errors(self) -> Generator[None]:
        """Turn the failure of this save, or of the one before in the background, into a UserError."""
        try:
            yield
        except Exception as error:  # Orbax and TensorStore raise several kinds, with the reason in the text
            if "No space left" in str(error) or "Disk quota" in str(error):
                reason = "no space is left for the checkpoint; free some and start again"
            elif isinstance(error, OSError | ValueError):
                reason = f"the checkpoint cannot be written ({first_words(error)}); start again when it can"
            else:
                raise
            raise UserError(f"{self._folder}: {reason}, the last whole one is kept") from error

    def close(self) -> None:
        """Wait until every save is on the disk, and end the manager's threads."""
        with self._save_errors():
            self._manager.close()


class _LatestAndBest(checkpoint_managers.PreservationPolicy):
    """Keeps the latest two checkpoints, so that one is left if the other is damaged, and the best.

    models: {step: metadata}, which `Checkpoints` adds new steps to.
    """

    def __init__(self, models: dict[int, dict]):
        self._models = models

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        preserved = {*sorted(steps)[-2:], _best(self._models)}
        return [step in preserved for step in steps]


def _best(models: dict[int, dict]) -> int | None:
    """The step of the highest validation PSNR, the latest of equal ones; None if none was validated."""
    psnr = {step: model["psnr"] for step, model in models.items()}
    scored = [step for step, value in psnr.items() if value is not None and math.isfinite(value)]
    return max(scored, key=lambda step: (psnr[step], step), default=None)


def _steps_in(folder: epath.Path) -> dict[int, epath.Path]:
    """The complete steps in `folder`. In a bucket, a step is visible before it is complete."""
    if not folder.exists():
        return {}
    numbered = [child for child in folder.iterdir() if _STEP.fullmatch(child.name)]
    return {int(child.name): child for child in numbered if ocp.path.step.is_path_finalized(child)}


def _vetted(folder: epath.Path) -> dict:
    """The metadata of the step in `folder`. Raises Damaged for damage to it, or to what Orbax reads of every step."""
    model = read_metadata(folder)
    module_of(model["size"])
    if model["step"] != int(folder.name):
        raise Damaged(f"its metadata is that of step {model['step']}")
    try:
        if (folder / _METRICS).exists():
            json.loads((folder / _METRICS).read_text())
        _ = ocp.path.step.Metadata(step=model["step"], path=folder).commit_timestamp
    except Exception as error:
        raise Damaged(f"what Orbax wrote of it cannot be read ({first_words(error)})") from error
    return model


def _require_of_a_training(folder: epath.Path, model: dict, workdir: AnyPath) -> None:
    """Raise UserError for converted weights, which have no optimiser's state."""
    if "optimizer" not in model.get("digests", {"optimizer": None}):
        raise UserError(
            f"{folder}: holds weights alone, from which no run goes on; train in another folder from them: "
            f"--workdir=NEW --config.init_from={workdir}"
        )


def _require_one_step_on_all_hosts(step: int) -> None:
    if jax.process_count() > 1:
        steps = set(multihost_utils.process_allgather(np.int32(step)).tolist())
        if len(steps) > 1:
            raise UserError(f"the hosts see different checkpoints as the latest: {sorted(steps)}; give them one folder")


def save_converted(directory: AnyPath, module: Network, params: Any, train_crop_px: int | None) -> None:
    """Make `directory` a checkpoint directory with `params` as its only step, 0.

    Raises UserError when it exists and is not empty.
    """
    directory = user_path(directory)
    if directory.exists() and any(directory.iterdir()):
        raise UserError(f"{directory} is not empty; choose a new directory")
    model = {
        "size": architecture_dict(module),
        "train_crop_px": train_crop_px,
        "step": 0,
        "psnr": None,
        "weights": "params",
    }
    model = with_digests(model, {"params": params})
    with ocp.CheckpointManager(directory / FOLDER) as manager:
        items = {"params": ocp.args.StandardSave(params), "model": ocp.args.JsonSave(model)}
        manager.save(0, args=ocp.args.Composite(**items))


def load_model(directory: AnyPath = BUNDLED_WEIGHTS, name: str = "") -> LoadedModel:
    """Load a network for use, its parameters as NumPy arrays.

    directory: a training folder (its best step, or else the latest, is loaded), the folder of one step, converted
    weights, or a weights file, which may be on the Hub (`hf://USER/NAME[/FILE]`); by default the weights that come with
    this software. If a moving average was saved, it is loaded in place of the weights. name: the flag that gave it, for
    messages. Raises UserError when there is no checkpoint or it is damaged; the message names the undamaged ones beside
    it.
    """
    if hub.is_address(directory):
        return dataclasses.replace(_loaded_from_file(hub.fetch(directory, name), bundled=False), name=str(directory))
    path = user_path(directory, name)
    if not path.exists():
        raise UserError(f"{directory} does not exist; give a training folder, a checkpoint or a weights file")
    if not path.is_dir():
        return _loaded_from_file(path, bundled=is_bundled(directory))
    if _STEP.fullmatch(path.name) and path.parent.name == FOLDER:
        return _load(path, _steps_in(path.parent), path.name)
    if (path / "model").exists() and (path / "params").exists():
        return _load(path, {}, path.name)
    steps = _steps_in(path / FOLDER if (path / FOLDER).exists() else path)
    steps = {step: folder for step, folder in steps.items() if folder.is_dir() and any(folder.iterdir())}
    if not steps:
        raise UserError(f"{directory} holds no checkpoint; give a training folder or the output of convert")
    models = {}
    for step, folder in steps.items():
        try:
            models[step] = _vetted(folder)
        except Damaged as reason:
            raise UserError(_damage_message(folder, reason, steps)) from reason
    best = _best(models)
    chosen = steps[max(steps) if best is None else best]
    return _load(chosen, steps, path.name, "" if best is None else ", best")


def _load(folder: epath.Path, beside: dict, name: str, remark: str = "") -> LoadedModel:
    """Load the checkpoint in `folder`. beside: the steps that the message offers if it is damaged."""
    try:
        loaded = _read(folder)
    except Damaged as reason:
        raise UserError(_damage_message(folder, reason, beside)) from reason
    return dataclasses.replace(loaded, name=f"{name}, step {loaded.step}{remark}")


def _read(folder: epath.Path) -> LoadedModel:
    model = read_metadata(folder)
    module = module_of(model["size"])
    params = read_arrays(folder, model, model["weights"], shapes_of(module))
    return LoadedModel(module, params, model["train_crop_px"], model["step"], folder.name)


def _damage_message(folder: epath.Path, reason: Damaged, beside: dict) -> str:
    """A sentence on a damaged checkpoint that offers the undamaged ones of the steps beside it."""
    whole = []
    for other in beside.values():
        with contextlib.suppress(Damaged):
            if other != folder:
                _read(other)
                whole.append(str(other))
    offer = f"choose a whole one: {', '.join(whole)}" if whole else "no whole one is beside it, choose another"
    return f"{folder} is damaged: {reason}; {offer}"


def _loaded_from_file(path: epath.Path, bundled: bool) -> LoadedModel:
    weights = load_weights_file(path)
    print(f"the weights that come with this software are used: {path.stem}" if bundled else weights.remark)
    name = f"{path.stem}, bundled" if bundled else path.name
    return LoadedModel(weights.module, weights.params, weights.train_crop_px, 0, name)


def require_same_architecture(source: object, stored: dict, module: Network) -> None:
    """Raise UserError naming the first field in which the network `stored` in `source` differs from `module`."""
    for field, value in architecture_dict(module).items():
        if stored[field] != value:
            raise UserError(
                f"{source} holds another architecture: {field} is {stored[field]} there and {value} in this config"
            )
