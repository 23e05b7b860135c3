"""The one training loop. It knows a stage only by its contract (see stages/).

Order within an iteration: save, preview, evaluate, next batch, step; so that what is
saved is exactly what a resumed run starts from. To resume a run, start it again.
"""

import dataclasses
import io
import sys
import time
from typing import Any

import jax

from unclip_jax import config as config_lib
from unclip_jax import files, stages
from unclip_jax.data import loader
from unclip_jax.parallel import batches as parallel_batches
from unclip_jax.parallel import distributed, sharding
from unclip_jax.parallel import mesh as mesh_lib
from unclip_jax.progress import ProgressLine, duration
from unclip_jax.training import (
    evaluators,
    optimizer,
    previews,
    profiling,
    run_config,
    run_folder,
    state,
    timing,
    train_step,
    watchdog,
)
from unclip_jax.training.checkpoint import Checkpoints, make_meta
from unclip_jax.training.interrupts import Interrupts
from unclip_jax.training.mirror import Mirror
from unclip_jax.training.skipped_steps import SkippedSteps
from unclip_jax.training.writers import Writer, check_wandb


def train(
    config,
    workdir,
    *,
    stage=None,
    data=None,
    stream=None,
    load_initial=None,
    restore_step=None,
    profile_steps="",
) -> state.TrainState:
    """Trains a stage from a config, or goes on with the run in `workdir`.

    Args:
      config: see configs/ and run_config.py.
      workdir: folder of the run, on a disk or gs://.
      stage, data: instead of those the config names.
      stream: where progress goes; standard output by default.
      load_initial: (config.init_from, meta of the run) -> parameters to start from;
        those it leaves out are as the stage makes them.
      restore_step: go on from this checkpoint instead of the newest, see Checkpoints.
      profile_steps: "first:last" to trace, see profiling.py.

    Returns:
      The final state, on the devices.

    Raises:
      ValueError, FileNotFoundError: something asked for cannot be; nothing is lost.
      KeyboardInterrupt: after Ctrl-C, once the state is saved.
    """
    began = time.perf_counter()
    run_config.check_config(config)
    check_wandb(config)
    tracing = profiling.parse_steps(profile_steps)
    plain = config_lib.to_plain(config)
    build = config_lib.build
    saving = build(run_config.CheckpointOptions, config.checkpoint, "config.checkpoint")
    drawing = build(run_config.PreviewOptions, config.preview, "config.preview")
    tx = optimizer.make_optimizer(
        build(optimizer.Options, config.optimizer, "config.optimizer"), config.steps
    )
    mesh_options = build(run_config.MeshOptions, config.mesh, "config.mesh")
    mesh = mesh_lib.make_mesh(**dataclasses.asdict(mesh_options))
    parallel_batches.check_batch_size(config.batch_size, mesh, config.grad_accum)
    workdir = run_folder.claim(workdir, plain)
    tokenizer = Mirror(workdir / "tokenizer", fetch="*")
    if data is None:
        data = loader.open_data(config.data, tokenizer_dir=tokenizer.folder)
        tokenizer.sync(now=True)
    distributed.check_consistency(workdir, plain, data.info.get("fingerprint"))
    if stage is None:
        stage = stages.make_stage(config, data.info)
    run = _Run(
        config,
        workdir,
        stage,
        data,
        tokenizer,
        tx,
        mesh,
        saving,
        drawing,
        stream,
        load_initial,
        tracing,
        began,
    )
    with (
        jax.set_mesh(mesh),
        Checkpoints(workdir, saving.keep, restore_step) as checkpoints,
    ):
        meta = make_meta(config.stage, plain, stage.export(), data.info)
        # from here on a signal is kept for later
        with Interrupts() as interrupts, checkpoints.full_disk_named():
            return run.go(meta, checkpoints, interrupts)


@dataclasses.dataclass
class _Run:
    """What stays the same over one run."""

    config: Any
    workdir: Any
    stage: Any
    data: Any
    tokenizer: Mirror  # its folder
    tx: Any
    mesh: Any
    saving: run_config.CheckpointOptions
    drawing: run_config.PreviewOptions
    stream: Any
    load_initial: Any
    tracing: tuple[int, int] | None  # steps
    began: float  # time.perf_counter() of the start

    def __post_init__(self):
        # of several processes only the first one speaks
        stream = io.StringIO() if jax.process_index() else self.stream or sys.stdout
        self.progress = ProgressLine(self.config.stage, stream=stream, every=2.0)
        self.replicated = sharding.replicated(self.mesh)

    def go(self, meta, checkpoints, interrupts) -> state.TrainState:
        config, say = self.config, self.progress.say
        current, abstract = self._start(checkpoints, meta)
        start = int(jax.device_get(current.step))
        if start >= config.steps:
            say(f"finished already: step {start} of {config.steps} in {self.workdir}")
            return current
        if start:
            say(f"going on from step {start}")
        elif (self.workdir / "metrics.jsonl").exists():
            say("no checkpoint was saved yet: starting from step 0")
        rng = jax.device_put(jax.random.key(config.seed), self.replicated)
        judges = evaluators.Evaluators(config, self.stage, self.data, self.mesh)
        step, compile_seconds = self._compile(abstract)
        rows = parallel_batches.process_rows(self.mesh, config.batch_size)
        placing = sharding.batch_sharding(self.mesh)
        batches = parallel_batches.Prefetch(
            self.data.batches(
                tuple(self.stage.batch_spec),
                config.seed,
                config.batch_size,
                start,
                rows,
            ),
            lambda batch: parallel_batches.place(
                batch, placing, config.batch_size, self.stage.batch_spec, rows
            ),
        )
        preview = None
        if self.drawing.every:
            preview = previews.Previews(
                self.stage,
                self.data,
                self.drawing.count,
                config.seed,
                self.replicated,
            )
        writer = Writer(self.workdir, start, meta["config"])
        window = timing.Window(
            config.batch_size, self.mesh.size, int(jax.device_get(current.skipped))
        )
        log = _Log(self, start, abstract.params, writer, compile_seconds)
        profile = profiling.Profile(self.workdir, self.tracing)
        dog = watchdog.Watchdog(
            self.workdir,
            config_lib.build(watchdog.Options, config.get("watchdog", {})),
        )
        # XLA:CPU's devices share one thread pool: programs with collectives that
        # overlap can take each other's threads and wait for ever
        one_by_one = self.mesh.size > 1 and jax.default_backend() == "cpu"
        try:
            with dog:
                for n in range(start, config.steps):
                    dog.waiting_for(f"saves, previews and evaluators of step {n}")
                    if n > start and n % self.saving.every == 0:
                        checkpoints.save(n, current, meta)
                        window.pause()
                    if (
                        preview
                        and n % self.drawing.every == 0
                        and not interrupts.poll()
                    ):
                        preview.draw(n, current, writer)
                        window.pause()
                    if judges.due(n) and not interrupts.poll():
                        judges.run(n, current, writer, interrupts.poll)
                        window.pause()
                    if received := interrupts.poll():
                        checkpoints.save(n, current, meta)
                        checkpoints.wait()
                        say(f"{received.name}: saved step {n}")
                        if received.name == "SIGINT":
                            raise KeyboardInterrupt
                        return current
                    profile.before(n + 1)
                    with jax.transfer_guard("disallow"):
                        dog.waiting_for(f"the data, at step {n + 1}")
                        batch = batches.take(window.busy)
                        dog.waiting_for(f"the devices, at step {n + 1}")
                        current, metrics = step(current, rng, batch)
                    window.add(metrics, one_by_one)
                    profile.after(n + 1, metrics)
                    if (n + 1) % config.log_every == 0 or n + 1 == config.steps:
                        log.write(n + 1, window, batches)
                        checkpoints.check()
                dog.waiting_for("the last save, preview and evaluators")
                checkpoints.save(config.steps, current, meta)
                checkpoints.wait()
                if preview:
                    preview.draw(config.steps, current, writer)
                judges.run(config.steps, current, writer, interrupts.poll)
        finally:
            profile.close()
            writer.close()
        say(f"done: {config.steps} steps, in {self.workdir}")
        return current

    def _start(self, checkpoints, meta):
        """The restored or a fresh state, and its shapes with shardings."""
        abstract = train_step.abstract_state(
            self.stage, self.tx, self.mesh, self.config.sharding_rules
        )
        count = sum(leaf.size for leaf in jax.tree.leaves(abstract.params))
        self.progress.say(
            f"{count:,} parameters, {self.mesh.size} "
            f"{jax.devices()[0].platform} device(s), batches of "
            f"{self.config.batch_size} from {len(self.data):,} examples"
        )
        self._tell_shardings(abstract)
        restored = checkpoints.restore(abstract, meta)
        if restored is not None:
            return restored, abstract
        # jitted as one program, so that each buffer is made where it will live
        init = train_step.init_function(self.stage, self.tx)
        shardings = jax.tree.map(lambda s: s.sharding, abstract)
        rng = jax.random.key(self.config.seed)
        fresh = jax.jit(init, out_shardings=shardings)(rng)
        if self.config.get("init_from"):
            fresh = self._from_folder(fresh, meta)
        return fresh, abstract

    def _tell_shardings(self, abstract):
        """Says how the state is split; every array of it goes to sharding.txt."""
        rows = sharding.describe(abstract, jax.tree.map(lambda s: s.sharding, abstract))
        if self.mesh.size > 1:
            self.progress.say(sharding.summary(rows))
        if jax.process_index() == 0:
            path = self.workdir / "sharding.txt"
            files.atomic_write(path, sharding.table(rows) + "\n")

    def _from_folder(self, fresh, meta):
        """The fresh state with parameters, and their average, from init_from."""
        loaded = self.load_initial(self.config.init_from, meta)
        self.progress.say(f"starting from the parameters in {self.config.init_from}")

        def place(a, like):
            return jax.make_array_from_callback(
                a.shape, like.sharding, lambda index: a[index]
            )

        def replaced(params):
            old = {name: params[name] for name in loaded}
            return {**params, **jax.tree.map(place, loaded, old)}

        return fresh.replace(params=replaced(fresh.params), ema=replaced(fresh.ema))

    def _compile(self, abstract):
        self.progress.say("compiling the training step")
        began = time.perf_counter()
        compiled = train_step.lower_step(
            self.stage, self.tx, self.mesh, self.config, abstract
        ).compile()
        seconds = time.perf_counter() - began
        self.progress.say(f"compiled in {duration(seconds)}")
        return compiled, seconds


class _Log:
    """What is written every log_every steps."""

    def __init__(self, run: _Run, start, params, writer, compile_seconds):
        self._config = config = run.config
        self._writer, self._progress = writer, run.progress
        self._once = {"compile_seconds": compile_seconds}
        self._goodput = timing.Goodput(run.workdir, start, run.began)
        self._devices = timing.DeviceUse(run.stage, run.mesh, config.batch_size, params)
        self._skipped = SkippedSteps(run.workdir, config, len(run.data))

    def write(self, n: int, window, batches) -> None:
        """Closes the window at step `n`. ValueError: too many steps were skipped."""
        waited, batches.waited = batches.waited, 0.0
        values, self._once = window.close(waited) | self._once, {}
        seconds = values["step_seconds"]
        working = seconds * len(window.skipped) * (1 - values["data_wait"])
        values |= self._devices.at(seconds)
        values["goodput"] = self._goodput.add(n, working)
        self._writer.scalars(n, values)
        rate, total = values["images_per_second"], self._config.steps
        left = (total - n) * self._config.batch_size / max(rate, 1e-9)
        self._progress.show(
            f"{n}/{total}  loss {values['loss']:.4f}  {rate:.0f} images/s  "
            f"data wait {values['data_wait']:.0%}  {duration(left)} left",
            last=n >= total,
        )
        self._skipped.note(n, window.skipped)
