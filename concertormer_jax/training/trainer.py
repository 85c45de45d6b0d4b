"""The training run: from a config and a work folder to checkpoints, resumable at any step."""

import contextlib
import functools
import json
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from concertormer_jax.data import pipeline
from concertormer_jax.data.cache import require_memory_for
from concertormer_jax.runtime.devices import compile_interruptibly, data_mesh, explain_out_of_memory, place_batch
from concertormer_jax.runtime.errors import Stopped, UserError
from concertormer_jax.runtime.files import locked, write_text
from concertormer_jax.runtime.paths import user_path
from concertormer_jax.training.config_limits import require_valid
from concertormer_jax.training.data import (
    NAMES_OF_DATA,
    data_notes,
    digests_of,
    require_same_data,
    sources_from,
    write_digests,
)
from concertormer_jax.training.preemption import PreemptionGuard
from concertormer_jax.training.schedule import Stage, make_stages, require_divisible
from concertormer_jax.training.setup import lower_step, starting_state, training_from
from concertormer_jax.training.step import TrainState
from concertormer_jax.training.validation import Validation
from concertormer_jax.training.writers import Interval, Writer
from concertormer_jax.weights.checkpoints import Checkpoints, architecture_dict

SHOWN_PICTURES = 3
_LESS_MEMORY = "raise config.train.accumulation, up to the images on each device, or set config.model.remat=True."
_MAY_CHANGE = ("run.", "train.accumulation", "model.remat")  # what makes no difference to the result but rounding


def check_and_write_config(workdir, config, *, begun: bool, flag: str = "--workdir", data: dict | None = None) -> None:
    """Write config.json into a work folder, and check that one in which something was `begun` is of the same config.

    The keys that make no difference to the result may change between restarts, and a key that this software did not
    have when the folder was made is not compared. Those that name data may, if the data are the same. flag: what named
    the folder; data: from `digests_of`. Raises UserError naming the first key that differs.
    """
    path = user_path(workdir, flag) / "config.json"
    wanted = json.loads(config.to_json_best_effort())
    if begun and path.exists():
        stored = _read_config(path)
        begin_again = another = f"another {flag}"
        if flag == "--workdir":
            begin_again = f"go on from its weights in another folder: {flag}=NEW --config.init_from={workdir}"
        for name, old, new in _differences(stored, wanted):
            remedy = another if name.startswith("config.model.") else begin_again  # other networks have other weights
            raise UserError(
                f"{workdir} was made with another config: {name} was {old} and is now {new}; use the old value, or "
                f"{remedy}"
            )
        require_same_data(workdir, stored, wanted, data, begin_again)
    if jax.process_index() == 0:
        if data is not None:
            write_digests(workdir, data)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(wanted, indent=2) + "\n")


def _read_config(path) -> dict:
    try:
        stored = json.loads(path.read_text())
    except ValueError:
        stored = None
    if not isinstance(stored, dict):
        raise UserError(f"{path} is damaged; remove it if this is the command of the run, which writes it anew")
    return stored


def _differences(stored: dict, wanted: dict):
    def flat(tree, prefix=""):
        for key, value in tree.items():
            if isinstance(value, dict):
                yield from flat(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value

    old, new = dict(flat(stored)), dict(flat(wanted))
    for name in sorted(old.keys() & new.keys()):
        if not name.startswith(_MAY_CHANGE) and name not in NAMES_OF_DATA and old[name] != new[name]:
            yield f"config.{name}", old[name], new[name]


class Run(NamedTuple):
    """What stays the same during a run."""

    config: Any
    source: Any
    stages: list[Stage]
    compile_step: Callable  # for the shapes of a stage
    validation: Validation
    input_psnr: float
    checkpoints: Checkpoints
    writer: Writer
    mesh: Any
    model: dict  # what a checkpoint says of its weights
    stop: PreemptionGuard


def train(config, workdir) -> int:
    """Train as `config` says, going on from the latest whole checkpoint in `workdir`; returns the last step.

    Raises UserError for a config, data or work folder that cannot be used, when another process trains in the folder,
    and when the loss is not finite. Raises Stopped, when what is new is saved, if a signal asks for it.
    """
    require_valid(config)
    workdir = user_path(workdir, "--workdir")
    stages = make_stages(config.stages.steps, config.stages.crop_px, config.stages.batch)
    training = training_from(config, stages)
    mesh = data_mesh()
    require_divisible(stages, mesh.size, config.train.accumulation)
    source, held_out = sources_from(config)
    with _only_run(workdir):
        return _train(config, workdir, stages, training, mesh, source, held_out)


def _only_run(workdir):
    """Hold the work folder against other runs; the hosts of one run share the hold of the first."""
    if jax.process_index() > 0:
        return contextlib.nullcontext()
    refusal = f"{workdir}: {{holder}} is training in this folder; wait for it, end it, or give another --workdir"
    return locked(workdir / ".lock", refusal)


def _train(config, workdir, stages, training, mesh, source, held_out) -> int:
    cache_bytes = require_memory_for(source) if config.run.cache else 0
    checkpoints = Checkpoints(workdir)
    check_and_write_config(
        workdir, config, begun=checkpoints.latest_step() is not None, data=digests_of(source, held_out)
    )
    shapes, first_state = starting_state(config, training, checkpoints, mesh)
    latest = checkpoints.latest_step()
    checkpoints.open()

    model = {
        "size": architecture_dict(training.module),
        "train_crop_px": max(stage.crop_px for stage in stages),
        "weights": "params" if shapes.average is None else "average",
    }
    writer = Writer(workdir, step=latest or 0, total_steps=stages[-1].end, enabled=jax.process_index() == 0)
    validation = Validation(
        training.apply,
        held_out,
        mesh,
        images=config.validation.images,
        crop_px=config.validation.crop_px,
        made_from=training.made_from,
        log=writer.note,
    )
    parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes.params))
    writer.note(
        f"{config.model.variant or 'custom'}: {parameters:,} parameters, {mesh.size} x {jax.devices()[0].device_kind}; "
        f"{len(source)} training and {len(validation)} validation images; {stages[-1].end} steps"
        + (f"; the cache of decoded pictures takes {cache_bytes / 2**30:.1f} GiB" if cache_bytes else "")
        + (f", going on from step {latest}" if latest is not None else "")
    )
    for line in data_notes(source, held_out, config):
        writer.note(line)
    stop = PreemptionGuard(checkpoints)
    compile_step = functools.partial(_compile, training, shapes, mesh, writer)
    run = Run(
        config, source, stages, compile_step, validation, validation.input_psnr, checkpoints, writer, mesh, model, stop
    )
    try:
        with stop.listening():
            stopped = None
            try:
                with jax.transfer_guard("disallow"), explain_out_of_memory(_LESS_MEMORY):
                    step = _steps(run, first_state, latest or 0)
            except Stopped as request:
                stopped = request
            with jax.transfer_guard("allow"):
                checkpoints.wait()
        if stopped is not None:
            saved = checkpoints.latest_step()
            kept = "nothing is saved yet" if saved is None else f"step {saved} is saved"
            raise Stopped(stopped.number, f"{stopped.text}; {kept}, the same command goes on") from None
        writer.note(f"step {step} is saved in {workdir}")
        return step
    finally:
        writer.close()
        checkpoints.close()


def _steps(run: Run, first_state: Callable[[], TrainState], step: int) -> int:
    """Run all remaining steps from the state that is given; returns the last step, which is saved.

    Raises Stopped when asked to, with the state saved if there is a new one.
    """
    state, saved = None, step
    for stage in run.stages:
        if step >= stage.end:
            continue
        try:
            with run.stop.at_once():
                compiled = run.compile_step(stage)
                state = first_state() if state is None else state
                batches = _batches(run, stage, step)
                batch = next(batches)
        except Stopped:
            if step > saved:
                _save(run, state, step, validate=False)
            raise
        interval = Interval()
        pending = None  # metrics of the step that the device may still be working on
        while step < stage.end:
            state, metrics = compiled(state, batch["images"])
            previous, pending = pending, (step, metrics, batch["position"])
            step += 1
            if step < stage.end:
                waiting = time.perf_counter()
                batch = next(batches)
                interval.data_wait_s += time.perf_counter() - waiting
            if previous is not None:
                interval.add(_finite(run, *previous), stage)
            saving = step % run.config.run.checkpoint_every_steps == 0 or step == run.stages[-1].end
            stopping = run.stop.asked(step)
            # What is left of an interval is told, too, where a stage or this process ends.
            logging = step % run.config.run.log_every_steps == 0 or step == stage.end or stopping
            if saving or logging:
                interval.add(_finite(run, *pending), stage)
                pending = None
            run.writer.progress(step)
            if logging:
                remaining = sum(s.work * (s.end - max(s.start, step)) for s in run.stages if s.end > step)
                run.writer.training(
                    step, run.stages[-1].end, stage, interval.summary(), interval.seconds_for(remaining)
                )
                interval = Interval()
            if saving or stopping:
                paused = time.perf_counter()
                _save(run, state, step, validate=saving and not stopping)
                interval.start += time.perf_counter() - paused
                saved = step
            if stopping and step < run.stages[-1].end:
                raise Stopped(stopping)
    return step


def _compile(training, shapes: TrainState, mesh, writer: Writer, stage: Stage):
    """Compile the step for the shapes of the state and of `stage`, saying so."""
    writer.note(f"compiling the step of stage {stage.number} ({stage.crop_px} px x {stage.batch}) ...")
    start = time.perf_counter()
    with jax.transfer_guard("allow"):
        compiled = compile_interruptibly(lower_step(training, shapes, stage, mesh))
    writer.note(f"compiled in {time.perf_counter() - start:.1f} s")
    return compiled


def _batches(run: Run, stage: Stage, step: int):
    """Batches on the devices, from that for `step` on: {"images": {"input", "target"}, "position"}."""
    batches = pipeline.batches(
        run.source,
        seed=run.config.seed,
        position=stage.position_at(step),
        batch=stage.batch,
        host_index=jax.process_index(),
        host_count=jax.process_count(),
        crop_px=stage.crop_px,
        steps=stage.end - step,
        flip=run.config.data.flip,
        rotate=run.config.data.rotate,
    )
    for batch in batches:
        images = place_batch(run.mesh, {name: batch[name] for name in ("input", "target")})
        yield {"images": images, "position": batch["position"]}


def _finite(run: Run, step: int, metrics: dict, positions: np.ndarray) -> dict[str, float]:
    """Fetch the metrics of a step; raises UserError naming step and images if they are not finite."""
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    if not all(math.isfinite(value) for value in values.values()):
        names = pipeline.sample_names(run.source, run.config.seed, positions)
        latest = run.checkpoints.latest_step()
        kept = "no checkpoint was saved yet" if latest is None else f"the checkpoint of step {latest} is kept"
        raise UserError(
            f"the loss is {values['loss']} and the gradient norm {values['gradient_norm']} at step {step}, on the "
            f"batch of {', '.join(names)}; {kept}; check these images or lower config.optimizer.learning_rate"
        )
    return values


def _save(run: Run, state: TrainState, step: int, *, validate: bool) -> None:
    """Validate if asked to, and save. Raises Stopped, with the state saved, when the validation is to be left."""
    psnr, stopped = None, None
    with jax.transfer_guard("allow"):  # Orbax moves arrays on its own
        if validate:
            params = state.params if state.average is None else state.average
            try:
                with run.stop.at_once():
                    psnr, pictures = run.validation(params, SHOWN_PICTURES)
                run.writer.validation(step, psnr, run.input_psnr, pictures)
            except Stopped as request:
                psnr, stopped = None, request
        run.checkpoints.save(state, run.model, psnr)
    if stopped is not None:
        raise stopped
