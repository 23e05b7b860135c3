"""The one training loop. It knows a stage only by its contract (see stages/).

Order within an iteration: save, preview, evaluate, next batch, step; so that what is
saved is exactly what a resumed run starts from. To resume a run, start it again.
"""

import contextlib
import dataclasses
import io
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax

from unclip_jax import files, stages
from unclip_jax.config import to_plain
from unclip_jax.data import loader
from unclip_jax.errors import UsageError
from unclip_jax.parallel import batches as parallel_batches
from unclip_jax.parallel import distributed, sharding
from unclip_jax.parallel.mesh import make_mesh
from unclip_jax.progress import ProgressLine, duration
from unclip_jax.stages.lora import LoraStage
from unclip_jax.training import checksums, optimizer, profiling, run_folder, timing
from unclip_jax.training import state as train_state
from unclip_jax.training.actions import Previews, Save
from unclip_jax.training.checkpoint import Checkpoints, make_meta
from unclip_jax.training.evaluators import Evaluators
from unclip_jax.training.interrupts import Interrupts
from unclip_jax.training.latents import Latents
from unclip_jax.training.metric_log import MetricLog
from unclip_jax.training.mirror import Mirror
from unclip_jax.training.run_config import TrainConfig
from unclip_jax.training.skipped_steps import SkippedSteps
from unclip_jax.training.train_step import lower_step
from unclip_jax.training.watchdog import Watchdog
from unclip_jax.training.writers import Writer, check_wandb


def train(
    config: TrainConfig,
    workdir,
    *,
    stage=None,
    data=None,
    stream=None,
    load_initial: Any = None,
    load_autoencoder: Any = None,
    restore_step=None,
    allow_change: Sequence[str] = (),
    profile_steps="",
) -> train_state.TrainState:
    """Trains a stage from a config, or resumes the run in `workdir`.

    Args:
      config: of run_config.read_config.
      workdir: folder of the run, on a disk or gs://.
      stage, data: instead of those the config names.
      stream: where progress goes; standard output by default.
      load_initial: (config.init_from, meta of the run) -> parameters to start from;
        those it leaves out are as the stage makes them.
      load_autoencoder: (config.autoencoder, config.compute_dtype) -> the frozen
        autoencoder, see latents.py.
      restore_step: go on from this checkpoint instead of the newest, see Checkpoints.
      allow_change: keys of the config that may differ from the run in `workdir`, of
        run_folder.CHANGEABLE.
      profile_steps: "first:last" to trace, see profiling.py.

    Returns:
      The final state, on the devices.

    Raises:
      UsageError, FileNotFoundError: something asked for cannot be; nothing is lost.
      KeyboardInterrupt: after Ctrl-C, once the state is saved.
    """
    start_time = time.perf_counter()

    # --- Options: what is wrong with them is said before anything is written ----------

    plain_config = to_plain(config)
    check_wandb(plain_config)
    profiled_steps = profiling.parse_steps(profile_steps)
    tx = optimizer.make_optimizer(config.optimizer, config.steps)
    mesh = make_mesh(**dataclasses.asdict(config.mesh))
    parallel_batches.check_batch_size(config.batch_size, mesh, config.grad_accum)

    # --- The run's folder, data and stage ---------------------------------------------

    with contextlib.ExitStack() as stack:
        claim = stack.enter_context(
            run_folder.Claim(workdir, plain_config, allow_change)
        )
        workdir = claim.folder
        tokenizer = Mirror(workdir / "tokenizer", fetch="*")
        if data is None:
            data = loader.open_data(config.data, tokenizer_dir=tokenizer.folder)
            if jax.process_index() == 0:
                tokenizer.sync(now=True)
        distributed.check_consistency(workdir, plain_config, data.spec.fingerprint)
        claim.remove_partials()
        autoencoder = None
        if config.autoencoder:
            autoencoder = load_autoencoder(config.autoencoder, config.compute_dtype)
        latents = Latents(autoencoder, data.spec)
        if stage is None:
            stage = stages.make_stage(config, latents.spec)
        if config.lora.rank:
            stage = LoraStage(stage, config.lora)
        meta = make_meta(config.stage, plain_config, stage.export(), latents.spec)
        # of several processes only the first one speaks
        stream = io.StringIO() if jax.process_index() else stream or sys.stdout
        progress = ProgressLine(config.stage, stream=stream, every=2.0)
        log = progress.say
        stack.enter_context(jax.set_mesh(mesh))
        checkpoints = stack.enter_context(
            Checkpoints(
                workdir,
                config.checkpoint.keep,
                restore_step,
                config.checkpoint.keep_every,
            )
        )
        # from here on a signal is kept for later
        interrupts = stack.enter_context(Interrupts())
        stack.enter_context(checkpoints.full_disk_named())

        latents.start(stage, mesh)

        # --- The state, restored or fresh ---------------------------------------------

        abstract = train_state.abstract_state(
            stage, tx, mesh, config.sharding_rules, config.ema_profiles
        )
        count = sum(leaf.size for leaf in jax.tree.leaves(abstract.params))
        log(
            f"{count:,} parameters, {mesh.size} {jax.devices()[0].platform} device(s), "
            f"batches of {config.batch_size} from {len(data):,} examples"
        )
        shardings = sharding.describe(
            abstract, jax.tree.map(lambda leaf: leaf.sharding, abstract)
        )
        if mesh.size > 1:
            log(sharding.summary(shardings))
        if jax.process_index() == 0:
            files.atomic_write(
                workdir / "sharding.txt", sharding.table(shardings) + "\n"
            )
        initial = None
        if abstract.frozen is not None:  # what no checkpoint holds
            initial = load_initial(config.init_from, meta)
            meta["init_checksum"] = checksums.tree_checksum(initial)
        state = checkpoints.restore(abstract, meta)
        fresh = state is None
        if fresh or initial is not None:
            made = train_state.init_sharded(stage, tx, config.seed, abstract)
            if config.init_from:
                if initial is None:
                    initial = load_initial(config.init_from, meta)
                made = train_state.replace_params(made, initial)
                log(f"starting from the parameters in {config.init_from}")
            state = made if fresh else dataclasses.replace(state, frozen=made.frozen)
        del initial
        start = int(jax.device_get(state.step))
        for key, old, new in claim.changes:
            log(f"config.{key} is {new!r} from step {start} on, it was {old!r}")
        if start > config.steps:
            raise UsageError(
                f"{workdir} is at step {start} already, beyond config.steps "
                f"{config.steps}: give more steps, or go back with --restore_step"
            )
        if start == config.steps:
            if run_folder.read_status(workdir)["done"]:
                log(f"finished already: step {start} of {config.steps} in {workdir}")
                return state
            log(f"step {start} is the last: its preview and evaluators were cut short")
        elif start:
            log(f"going on from step {start}")
        elif (workdir / "metrics.jsonl").exists():
            log("no checkpoint was saved yet: starting from step 0")

        # --- What happens now and then ------------------------------------------------

        replicated = sharding.replicated(mesh)
        writer = stack.enter_context(
            contextlib.closing(Writer(workdir, start, plain_config))
        )
        save = Save(checkpoints, meta, config.checkpoint.every, start)
        previews = Previews(config, stage, data, replicated, writer, latents)
        evaluators = Evaluators(config, stage, data, mesh, writer, interrupts.poll)
        actions = (save, previews, evaluators)  # in this order, on purpose

        # --- The step and its batches -------------------------------------------------

        log("compiling the training step")
        compile_start = time.perf_counter()
        train_step = lower_step(stage, tx, mesh, config, abstract).compile()
        compile_seconds = time.perf_counter() - compile_start
        log(f"compiled in {duration(compile_seconds)}")
        rng = jax.device_put(jax.random.key(config.seed), replicated)
        batch_sharding = sharding.batch_sharding(mesh)
        rows = parallel_batches.process_rows(mesh, config.batch_size)
        data_spec = latents.data_spec(stage.batch_spec)
        batches = parallel_batches.Prefetch(
            data.batches(tuple(data_spec), config.seed, config.batch_size, start, rows),
            lambda batch: parallel_batches.place(
                batch, batch_sharding, config.batch_size, data_spec, rows
            ),
        )
        stack.enter_context(contextlib.closing(batches))

        # --- What is measured ---------------------------------------------------------

        timer = timing.StepTimer(
            config.batch_size, mesh.size, int(jax.device_get(state.skipped))
        )
        metric_log = MetricLog(
            config,
            writer,
            progress,
            timing.Goodput(workdir, start, start_time),
            timing.DeviceUse(
                stage,
                mesh,
                config.batch_size,
                train_state.joined(abstract.params, abstract.frozen),
            ),
            SkippedSteps(workdir, config, len(data)),
            compile_seconds,
        )
        profile = stack.enter_context(
            contextlib.closing(profiling.Profile(workdir, profiled_steps))
        )
        watchdog = stack.enter_context(Watchdog(workdir, config.watchdog))
        # XLA:CPU's devices share one thread pool: programs with collectives that
        # overlap can take each other's threads and wait for ever
        one_by_one = mesh.size > 1 and jax.default_backend() == "cpu"

        # --- The loop -----------------------------------------------------------------

        for step in range(start, config.steps):
            watchdog.waiting_for(f"saves, previews and evaluators of step {step}")
            for action in actions:
                if action.due(step) and not interrupts.poll():
                    action.run(step, state)
                    timer.pause()
            if signal := interrupts.poll():
                save.run(step, state)
                checkpoints.wait()
                log(f"{signal.name}: saved step {step}")
                if signal.name == "SIGINT":
                    raise KeyboardInterrupt
                return state
            profile.before(step + 1)
            with jax.transfer_guard("disallow"):
                watchdog.waiting_for(f"the data, at step {step + 1}")
                batch = batches.take(timer.busy)
                watchdog.waiting_for(f"the devices, at step {step + 1}")
                state, metrics = train_step(state, rng, latents.encode(batch))
            claim.keep()
            timer.add(metrics, one_by_one)
            profile.after(step + 1, metrics)
            if (step + 1) % config.log_every == 0 or step + 1 == config.steps:
                metric_log.write(step + 1, timer, batches)
                checkpoints.check()

        # --- The end ------------------------------------------------------------------

        watchdog.waiting_for("the last save, preview and evaluators")
        save.run(config.steps, state)
        checkpoints.wait()
        for action in (previews, evaluators):
            if action.due(config.steps) and not interrupts.poll():
                action.run(config.steps, state)
        if signal := interrupts.poll():
            log(
                f"{signal.name}: saved step {config.steps}; start it again for the rest"
            )
            if signal.name == "SIGINT":
                raise KeyboardInterrupt
            return state
        if jax.process_index() == 0:
            run_folder.note_done(workdir)
    log(f"done: {config.steps} steps, in {workdir}")
    return state
