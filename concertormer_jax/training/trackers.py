"""Experiment trackers that a run reports to beside TensorBoard: Weights & Biases, Trackio and MLflow.

Each works as its own environment variables and files say: where it sends or stores, under which account and project.
"""

import importlib
import json
import os
import re
import secrets
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.files import write_text
from concertormer_jax.runtime.paths import is_remote, user_path

PROJECT = "concertormer"  # unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME names another
FILE = "trackers.json"  # the ids of a work folder's runs, by tracker


class Tracker(Protocol):
    """One run at one tracker. Made from the tracker's package, the id of the run that goes on (None: a new one), the
    name of a new run, its work folder and its config by key.
    """

    run_id: str

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Send the values of a step, by name."""

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Send a picture, uint8 [H, W, 3]."""

    def close(self) -> None:
        """End the run at the tracker, when all is sent."""


class _WandB:
    """Of steps that are logged again, since a run goes on from an earlier checkpoint, W&B keeps the first."""

    def __init__(self, wandb: Any, run_id: str | None, name: str, workdir: Any, config: dict):
        self._wandb = wandb
        self.run_id = run_id or name
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=self.run_id,
            name=self.run_id,
            resume="allow",
            config=config,
            dir=None if is_remote(workdir) or "WANDB_DIR" in os.environ else os.fspath(workdir),
        )

    def scalars(self, step, values):
        self._run.log(dict(values), step=step)

    def picture(self, step, name, picture):
        self._run.log({name: self._wandb.Image(picture)}, step=step)

    def close(self):
        self._run.finish()


class _Trackio:
    def __init__(self, trackio: Any, run_id: str | None, name: str, workdir: Any, config: dict):
        self._trackio = trackio
        self.run_id = run_id or name  # Trackio finds a run by its name
        self._run = trackio.init(project=PROJECT, name=self.run_id, resume="allow", config=config, embed=False)

    def scalars(self, step, values):
        self._run.log(dict(values), step=step)

    def picture(self, step, name, picture):
        self._run.log({name: self._trackio.Image(picture)}, step=step)

    def close(self):
        self._trackio.finish()


class _MLflow:
    def __init__(self, mlflow: Any, run_id: str | None, name: str, workdir: Any, config: dict):
        self._mlflow = mlflow
        if run_id is None:
            mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
        self.run_id = mlflow.start_run(run_id=run_id, run_name=None if run_id else name).info.run_id
        if run_id is None:
            mlflow.log_params(config)

    def scalars(self, step, values):
        self._mlflow.log_metrics(dict(values), step=step)

    def picture(self, step, name, picture):
        self._mlflow.log_image(picture, key=name, step=step)

    def close(self):
        self._mlflow.end_run()


TRACKERS: dict[str, Callable[..., Tracker]] = {"wandb": _WandB, "trackio": _Trackio, "mlflow": _MLflow}


class Trackers:
    """The runs at all trackers that a config names. One that fails is left out from then on; the training goes on.

    names: as `config.run.tracker`; log: called with a line on a tracker that failed. Raises UserError where the package
    of a tracker is missing.
    """

    def __init__(self, names: str, log: Callable[[str], object] = tqdm.write):
        self._packages = {name: _package(name) for name in (n.strip() for n in names.split(",")) if name}
        self._log = log
        self._open: dict[str, Tracker] = {}

    def start(self, workdir, config: dict, *, resumed: bool) -> None:
        """Begin a run at each tracker, or with `resumed` go on with the one of this work folder, if there is one.

        Raises UserError where a tracker cannot be used, and when the file of the runs' ids is damaged.
        """
        if not self._packages:
            return
        file = user_path(workdir) / FILE
        known = _read(file) if resumed else {}
        name = f"{re.sub('[^A-Za-z0-9_.-]', '_', file.parent.name)[:64]}-{secrets.token_hex(4)}"
        for tracker, package in self._packages.items():
            try:
                self._open[tracker] = TRACKERS[tracker](package, known.get(tracker), name, file.parent, config)
            except Exception as error:  # each package has exceptions of its own
                raise UserError(
                    f"config.run.tracker={tracker}: the run cannot be opened there ({_words(error)}); check its "
                    "account and settings, or leave it out"
                ) from error
        write_text(file, json.dumps(known | {name: each.run_id for name, each in self._open.items()}, indent=2) + "\n")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Report numbers by name."""
        self._report(lambda tracker: tracker.scalars(step, values))

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Report a picture, uint8 [H, W, 3]."""
        self._report(lambda tracker: tracker.picture(step, name, picture))

    def close(self) -> None:
        """Send what is left."""
        self._report(lambda tracker: tracker.close())
        self._open.clear()

    def _report(self, send: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            try:
                send(tracker)
            except Exception as error:
                del self._open[name]
                self._log(f"{name}: failed and gets no more of this run, which goes on ({_words(error)})")


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"config.run.tracker={name}: the package {name} cannot be imported ({_words(error)}); pip install {name} "
            f"(the extra `{name}`), or leave it out"
        ) from error


def _read(file) -> dict[str, str]:
    if not file.exists():
        return {}
    try:
        known = json.loads(file.read_text())
        if all(isinstance(run_id, str) for run_id in known.values()):
            return known
    except (ValueError, AttributeError):
        pass
    raise UserError(f"{file}: is damaged; delete it to begin new runs at the trackers")


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
