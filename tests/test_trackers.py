"""What W&B, Trackio and MLflow are sent: by modules that only note it and, if they are installed, by the real ones."""

import json
import sys
from unittest.mock import MagicMock

import numpy as np
import pytest

from concertormer_jax.runtime.errors import UserError
from concertormer_jax.training.trackers import TRACKERS, Trackers
from concertormer_jax.training.writers import Writer

CONFIG = {"seed": 3, "stages.steps": (4, 4)}
PICTURE = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


def faked(monkeypatch, name):
    """Put a module that notes all calls in the place of a tracker's package; return it."""
    module = MagicMock()
    module.start_run.side_effect = lambda run_id, run_name: MagicMock(info=MagicMock(run_id=run_id or "made by mlflow"))
    module.Image.side_effect = lambda picture: ("image", picture)
    monkeypatch.setitem(sys.modules, name, module)
    for variable in ("WANDB_PROJECT", "WANDB_DIR", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(variable, raising=False)
    return module


def report(workdir, names, *, step=0, log=lambda _: None):
    """A run that reports from `step` on; it trains nothing."""
    trackers = Trackers(names, log)
    writer = Writer(workdir, step=step, total_steps=4, enabled=True, trackers=trackers)
    trackers.start(workdir, CONFIG, resumed=step > 0)
    writer.scalars(step + 1, {"train/loss": 0.5, "train/psnr": 21.0})
    writer.validation(step + 1, 20.0, 19.0, [(PICTURE,) * 3])
    writer.close()


def sent(module, name):
    """(scalars by step, names of pictures by step) that a faked module got, in order."""
    if name == "mlflow":
        scalars = [(call.kwargs["step"], call.args[0]) for call in module.log_metrics.call_args_list]
        return scalars, [(call.kwargs["step"], call.kwargs["key"]) for call in module.log_image.call_args_list]
    calls = [(call.kwargs["step"], call.args[0]) for call in module.init.return_value.log.call_args_list]
    pictures = [(step, name) for step, values in calls for name, value in values.items() if isinstance(value, tuple)]
    return [(step, values) for step, values in calls if "validation" not in values], pictures


@pytest.mark.parametrize("name", TRACKERS)
def test_numbers_and_pictures_are_sent_and_a_resumed_run_goes_on(name, tmp_path, monkeypatch):
    module = faked(monkeypatch, name)
    report(tmp_path / "my run", name)
    scalars, pictures = sent(module, name)
    assert scalars == [
        (1, {"train/loss": 0.5, "train/psnr": 21.0}),
        (1, {"validation/psnr": 20.0, "validation/gain": 1.0}),
    ]
    assert pictures == [(1, "validation")]
    known = json.loads((tmp_path / "my run" / "trackers.json").read_text())
    assert known[name] == "made by mlflow" if name == "mlflow" else known[name].startswith("my_run-")
    opened = module.start_run if name == "mlflow" else module.init
    given = module.log_params.call_args.args[0] if name == "mlflow" else opened.call_args.kwargs["config"]
    assert given == CONFIG

    report(tmp_path / "my run", name, step=1)
    again = opened.call_args.kwargs
    assert (again["run_id"] if name == "mlflow" else again["name"]) == known[name]
    assert name == "mlflow" or again["resume"] == "allow"
    assert json.loads((tmp_path / "my run" / "trackers.json").read_text()) == known
    assert module.log_params.call_count <= 1, "MLflow refuses another value of a parameter, and keys of run may change"

    report(tmp_path / "my run", name)
    begun_anew = opened.call_args.kwargs
    assert (begun_anew["run_id"] is None) if name == "mlflow" else (begun_anew["name"] != known[name])
    ends = module.end_run if name == "mlflow" else module.finish if name == "trackio" else opened.return_value.finish
    assert ends.call_count == 3


def test_several_are_told_and_one_that_fails_stops_nothing(tmp_path, monkeypatch):
    wandb, trackio = faked(monkeypatch, "wandb"), faked(monkeypatch, "trackio")
    wandb.init.return_value.log.side_effect = OSError("no network")
    notes = []
    report(tmp_path, "wandb, trackio", log=notes.append)
    assert notes == ["wandb: failed and gets no more of this run, which goes on (no network)"]
    assert len(sent(trackio, "trackio")[0]) == 2
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_package_is_one_sentence_that_names_the_extra(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)  # so that its import fails
    with pytest.raises(UserError, match=rf"config.run.tracker={name}: .* pip install {name} \(the extra `{name}`\)"):
        Trackers(name, print)


def test_a_tracker_that_cannot_be_opened_is_one_sentence(tmp_path, monkeypatch):
    faked(monkeypatch, "wandb").init.side_effect = RuntimeError("api_key not configured\n(no-tty)")
    with pytest.raises(UserError, match=r"config.run.tracker=wandb: .*\(api_key not configured \(no-tty\)\); check"):
        Trackers("wandb", print).start(tmp_path, CONFIG, resumed=False)
    assert not (tmp_path / "trackers.json").exists()


@pytest.mark.parametrize("content", ["", "[]", '{"wandb": 3}', "\udcff"])
def test_damaged_ids_are_one_sentence(content, tmp_path, monkeypatch):
    faked(monkeypatch, "wandb")
    (tmp_path / "trackers.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"trackers.json: is damaged; delete it"):
        Trackers("wandb", print).start(tmp_path, CONFIG, resumed=True)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # those of the trackers' own dependencies
@pytest.mark.parametrize("name", TRACKERS)
def test_the_real_package_keeps_a_run_that_is_resumed(name, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    pytest.importorskip(name, reason=f"pip install {name} to test it (the extra `{name}`)")
    monkeypatch.chdir(tmp_path)  # where MLflow puts pictures
    notes = []
    report(tmp_path / "run", name, log=notes.append)
    report(tmp_path / "run", name, step=1, log=notes.append)
    assert notes == []
    run_id = json.loads((tmp_path / "run" / "trackers.json").read_text())[name]
    if name == "mlflow":
        client = sys.modules[name].MlflowClient()
        losses = client.get_metric_history(run_id, "train/loss")
        assert [(entry.step, entry.value) for entry in losses] == [(1, 0.5), (2, 0.5)]
        assert any(file.path.endswith(".png") for file in client.list_artifacts(run_id, "images"))
    elif name == "trackio":
        assert len(list((tmp_path / "trackio").rglob(f"{run_id}/*/*.png"))) == 2
        run = sys.modules[name].Api().runs("concertormer")[0]
        assert run.name == run_id
    else:
        folders = list((tmp_path / "run" / "wandb").glob(f"offline-run-*-{run_id}"))
        assert len(folders) == 2 and all(list(folder.rglob("*.png")) for folder in folders)
