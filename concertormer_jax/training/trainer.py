"""The training run: from a config and a work folder to checkpoints, resumable at any step."""

import functools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from concertormer_jax.data import pipeline
from concertormer_jax.data.images import require_memory_for
from concertormer_jax.runtime.devices import (
    data_mesh,
    end_with_lost_hosts,
    explain_out_of_memory,
    place_batch,
)
from concertormer_jax.runtime.errors import Stopped, UserError
from concertormer_jax.runtime.paths import user_path
from concertormer_jax.training.config_limits import flat, require_valid
from concertormer_jax.training.preemption import PreemptionGuard
from concertormer_jax.training.profiling import Goodput, Profiler, peak_flops_per_s, training_flops
from concertormer_jax.training.schedule import Phase, make_phases, require_divisible
from concertormer_jax.training.setup import compile_step, data_notes, sources_from, starting_state, training_from
from concertormer_jax.training.trackers import Trackers
from concertormer_jax.training.validation import Validation
from concertormer_jax.training.workdir import check_and_write_config, digests_of, only_run_in
from concertormer_jax.training.writers import Interval, Writer
from concertormer_jax.weights.checkpoints import Checkpoints, architecture_dict

SHOWN_PICTURES = 3
_ON_ALL_HOSTS = "start the same command on all hosts again, and it goes on from the latest whole checkpoint."
_LESS_MEMORY = "raise config.train.accumulation, up to the images on each device, or set config.model.remat=True."


def train(config, workdir) -> int:
    """Train as `config` says, going on from the latest whole checkpoint in `workdir`; returns the last step.

    Raises UserError for a config, data or work folder that cannot be used, when another process trains in the folder,
    and when the loss is not finite. Raises Stopped, when what is new is saved, if a signal asks for it.
    """
    trainer = Trainer(config, workdir)
    with only_run_in(trainer.workdir):
        return trainer.train()


class _Dispatched(NamedTuple):
    """A step that the device may still be working on."""

    step: int
    metrics: dict[str, jax.Array]
    positions: np.ndarray  # of its images in the stream of samples


class Trainer:
    """One run in one work folder. `__init__` reads the config and the data, `train` does the rest.

    state: the training state, None until the first step is compiled; step: the number of updates in it;
    saved_step: that of the latest checkpoint.
    """

    def __init__(self, config, workdir):
        require_valid(config)
        self.workdir = user_path(workdir, "--workdir")
        self.config = flat(config)
        self.trackers = Trackers(config.run.tracker if jax.process_index() == 0 else "", self._note)
        self.profiler = Profiler(config.run.profile_steps, self.workdir)
        self.phases = make_phases(config.stages.steps, config.stages.crop_px, config.stages.batch)
        self.last_step = self.phases[-1].end
        self.training = training_from(config, self.phases)
        self.mesh = data_mesh()
        self.peak_flops_per_s = peak_flops_per_s(list(self.mesh.devices.flat), self.training.module.dtype)
        require_divisible(self.phases, self.mesh.size, config.train.accumulation)

        self.source, held_out = sources_from(config, self.workdir)
        self.cached_bytes = require_memory_for(self.source) if config.run.cache else 0
        self.notes = data_notes(self.source, held_out, config)
        self.seed = config.seed
        self.batches = functools.partial(
            pipeline.batches,
            self.source,
            seed=config.seed,
            flip=config.data.flip,
            rotate=config.data.rotate,
            input_dtype=self.training.input_dtype,
            host_index=jax.process_index(),
            host_count=jax.process_count(),
        )

        self.validation = Validation(
            self.training.apply,
            held_out,
            self.mesh,
            images=config.validation.images,
            crop_px=config.validation.crop_px,
            fingerprint=self.training.fingerprint,
            log=self._note,
        )

        self.name = config.model.variant or "custom"
        self.init_from = config.init_from
        # The weights that are validated, and that a checkpoint is loaded for: the moving average, where there is one.
        self.evaluated = "average" if config.train.ema_decay else "params"
        self.log_every_steps, self.save_every_steps = config.run.log_every_steps, config.run.checkpoint_every_steps
        self.write_config = functools.partial(
            check_and_write_config, self.workdir, config, data=digests_of(self.source, held_out)
        )

    def train(self) -> int:
        """Run the steps that remain; returns the last step. The lock of the work folder is held meanwhile.

        Raises like `train`.
        """
        self.goodput, self.flops = Goodput(), 0
        self.checkpoints = Checkpoints(self.workdir)
        self.write_config(begun=self.checkpoints.latest_step() is not None)
        with self.goodput.spent_on("starting"):
            self.shapes, self.first_state = starting_state(
                self.training, self.checkpoints, self.mesh, seed=self.seed, init_from=self.init_from
            )
        self.state, self.first_is_shown = None, False
        # Restoring may have passed over a damaged step.
        self.step = self.saved_step = self.checkpoints.latest_step() or 0
        self.checkpoints.open()
        self.writer = Writer(
            self.workdir,
            step=self.step,
            total_steps=self.last_step,
            enabled=jax.process_index() == 0,
            trackers=self.trackers,
        )
        self.stop = PreemptionGuard(self.checkpoints)
        try:
            with self.goodput.spent_on("starting"):
                self.trackers.start(self.workdir, self.config, resumed=self.step > 0)
            self._describe()
            with end_with_lost_hosts(_ON_ALL_HOSTS), self.stop.listening():
                self._run_phases()
            self.writer.note(f"step {self.step} is saved in {self.workdir}")
            return self.step
        finally:
            self.profiler.finish()
            self.writer.close()
            self.checkpoints.close()

    def _note(self, text: str) -> None:
        self.writer.note(text)

    def _describe(self) -> None:
        parameters = sum(leaf.size for leaf in jax.tree.leaves(self.shapes.params))
        gib = self.cached_bytes / 2**30
        self.writer.note(
            f"{self.name}: {parameters:,} parameters, {self.mesh.size} x {jax.devices()[0].device_kind}; "
            f"{len(self.source)} training and {len(self.validation)} validation images; {self.last_step} steps"
            + (f"; the cache of decoded pictures takes {gib:.1f} GiB" if self.cached_bytes else "")
            + (f", going on from step {self.step}" if self.step else "")
        )
        for line in self.notes:
            self.writer.note(line)

    def _run_phases(self) -> None:
        """Run all phases, and wait until the checkpoints are written, also when the run is asked to stop."""
        try:
            with jax.transfer_guard("disallow"), explain_out_of_memory(_LESS_MEMORY):
                for phase in self.phases:
                    if self.step < phase.end:
                        self._run_phase(phase)
        except Stopped as request:
            self._finish()
            saved = self.checkpoints.latest_step()
            kept = "nothing is saved yet" if saved is None else f"step {saved} is saved"
            raise Stopped(request.number, f"{request.text}; {kept}, the same command goes on") from None
        self._finish()

    def _finish(self) -> None:
        """Wait until the checkpoints are written, and write the summary."""
        with self.goodput.spent_on("saving"):
            self.checkpoints.wait()
        best = self.checkpoints.best()
        seconds, shares = self.goodput.seconds(), self.goodput.shares()
        stepping_s = seconds * (shares["training"] + shares["data_wait"])
        self.writer.summary(
            {
                "finished": self.step == self.last_step,
                "step": self.step,
                "last_step": self.last_step,
                "network": self.name,
                "devices": f"{self.mesh.size} x {jax.devices()[0].device_kind}",
                "best_step": best and best[0],
                "best_psnr": best and best[1],
                "input_psnr": self.validation.input_psnr,
                "seconds": seconds,
                "shares": shares,
                "mfu": self.flops / stepping_s / self.peak_flops_per_s if self.peak_flops_per_s else None,
            }
        )

    def _run_phase(self, phase: Phase) -> None:
        """Run the steps of `phase` that remain."""
        compiled, batches, batch = self._begin(phase)
        interval = Interval()
        running = None
        while self.step < phase.end:
            self.profiler.before(self.step + 1)
            with jax.profiler.StepTraceAnnotation("train", step_num=self.step + 1):
                self.state, metrics = compiled(self.state, batch["images"])
                previous, running = running, _Dispatched(self.step, metrics, batch["position"])
                self.step += 1
                if self.step < phase.end:
                    waiting = time.perf_counter()
                    with self.goodput.spent_on("data_wait"):
                        batch = next(batches)
                    interval.data_wait_s += time.perf_counter() - waiting
            # The device has the next step to work on while the metrics of the one before are fetched.
            if previous is not None:
                interval.add(self._fetch(previous), phase)

            stopping = self.stop.asked(self.step)
            saving = self.step % self.save_every_steps == 0 or self.step == self.last_step
            logging = self.step % self.log_every_steps == 0 or self.step == phase.end or stopping
            traced = self.profiler.ends_with(self.step)
            if saving or logging or traced:
                interval.add(self._fetch(running), phase)
                running = None
            if traced:
                self.profiler.finish()
                self.writer.note(f"the trace of the steps up to {self.step} is in {self.profiler.folder}")
            self.writer.progress(self.step)
            if logging:
                self._log(phase, interval)
                interval = Interval()
            if saving or stopping:
                paused = time.perf_counter()
                self._save(validate=saving and not stopping)
                interval.start += time.perf_counter() - paused
            if stopping and self.step < self.last_step:
                raise Stopped(stopping)

    def _begin(self, phase: Phase):
        """Return the compiled step for `phase`, its batches on the devices, and the first of them.

        Raises Stopped, with the state saved if it is new, when a stop is or was asked for.
        """
        try:
            with self.stop.interruptible():
                batches = self._placed_batches(phase)
                with self.goodput.spent_on("compiling"):
                    compiled, first = self._compile(phase, meanwhile=lambda: next(batches))
                if self.state is None:
                    with self.goodput.spent_on("starting"):
                        self.state = self.first_state()
                return compiled, batches, first
        except Stopped:
            if self.step > self.saved_step:
                self._save(validate=False)
            raise

    def _compile(self, phase: Phase, meanwhile: Callable[[], Any]) -> tuple[Callable, Any]:
        """Return the compiled step for `phase`, and what `meanwhile` returns while the compiler works."""
        self.writer.note(f"compiling the step of phase {phase.number} ({phase.crop_px} px x {phase.batch}) ...")
        start = time.perf_counter()
        with jax.transfer_guard("allow"):
            compiled_step = compile_step(self.training, self.shapes, phase, self.mesh)
        done = meanwhile()
        compiled = compiled_step()
        self.writer.note(f"compiled in {time.perf_counter() - start:.1f} s")
        return compiled, done

    def _placed_batches(self, phase: Phase):
        """Yield the batches from the next step on: {"images": {"input", "target"} on the devices, "position"}."""
        for batch in self.batches(
            position=phase.position_at(self.step),
            batch=phase.batch,
            crop_px=phase.crop_px,
            steps=phase.end - self.step,
        ):
            if not self.first_is_shown:
                self.writer.first_batch(self.step, batch["input"], batch["target"])
                self.first_is_shown = True
            images = place_batch(self.mesh, {name: batch[name] for name in ("input", "target")})
            yield {"images": images, "position": batch["position"]}

    def _fetch(self, dispatched: _Dispatched) -> dict[str, float]:
        """Fetch the metrics of a step; raises UserError naming step and images if they are not finite."""
        values = {name: float(value) for name, value in jax.device_get(dispatched.metrics).items()}
        if not all(math.isfinite(value) for value in values.values()):
            names = pipeline.sample_names(self.source, self.seed, dispatched.positions)
            latest = self.checkpoints.latest_step()
            kept = "no checkpoint was saved yet" if latest is None else f"the checkpoint of step {latest} is kept"
            raise UserError(
                f"the loss is {values['loss']} and the gradient norm {values['gradient_norm']} at step "
                f"{dispatched.step}, on the batch of {', '.join(names)}; {kept}; check these images or lower "
                "config.optimizer.learning_rate"
            )
        return values

    def _log(self, phase: Phase, interval: Interval) -> None:
        remaining = sum(each.work * (each.end - max(each.start, self.step)) for each in self.phases[phase.number - 1 :])
        values = interval.summary()
        flops = training_flops(self.training.module, phase.crop_px)
        self.flops += interval.images * flops
        if self.peak_flops_per_s:
            values["mfu"] = values["images_per_s"] * flops / self.peak_flops_per_s
        eta_s = interval.seconds_for(remaining)
        self.writer.training(self.step, self.last_step, phase, values, self.goodput.shares(), eta_s)

    def _save(self, *, validate: bool) -> None:
        """Validate if asked to, and save. Raises Stopped, with the state saved, when the validation is to be left."""
        psnr, stopped = None, None
        with jax.transfer_guard("allow"):  # Orbax moves arrays on its own
            if validate:
                try:
                    with self.stop.interruptible(), self.goodput.spent_on("validating"):
                        psnr, pictures = self.validation(getattr(self.state, self.evaluated), SHOWN_PICTURES)
                    self.writer.validation(self.step, psnr, self.validation.input_psnr, pictures)
                except Stopped as request:
                    psnr, stopped = None, request
            model = {
                "size": architecture_dict(self.training.module),
                "train_crop_px": max(phase.crop_px for phase in self.phases),
                "weights": self.evaluated,
            }
            with self.goodput.spent_on("saving"):
                self.checkpoints.save(self.state, model, psnr)
            self.saved_step = self.step
        if stopped is not None:
            raise stopped
