"""What a run reports every config.log_every steps."""

from unclip_jax.parallel.batches import Prefetch
from unclip_jax.progress import ProgressLine, duration
from unclip_jax.training.run_config import TrainConfig
from unclip_jax.training.skipped_steps import SkippedSteps
from unclip_jax.training.timing import DeviceUse, Goodput, StepTimer, worst_process
from unclip_jax.training.writers import Writer

NOTABLE = (
    0.05  # share of the time that a process waits for data, from which it is named
)


class MetricLog:
    """Writes means of the steps' metrics, their speed and what the devices made of it.

    The first row also has `compile_seconds`.
    """

    def __init__(
        self,
        config: TrainConfig,
        writer: Writer,
        progress: ProgressLine,
        goodput: Goodput,
        device_use: DeviceUse,
        skipped_steps: SkippedSteps,
        compile_seconds: float,
    ):
        self._steps, self._batch_size = config.steps, config.batch_size
        self._writer, self._progress = writer, progress
        self._goodput, self._device_use = goodput, device_use
        self._skipped_steps = skipped_steps
        self._once = {"compile_seconds": compile_seconds}

    def write(self, step: int, timer: StepTimer, batches: Prefetch) -> None:
        """Reports the steps that `timer` has seen since the last time, up to `step`.

        Raises UsageError when too many steps were skipped, see SkippedSteps.
        """
        waited, batches.waited = batches.waited, 0.0
        values, self._once = timer.close(waited) | self._once, {}
        seconds = values["step_seconds"]
        values |= self._device_use.at(seconds)
        values |= worst_process(values)
        wait, process = values["data_wait"], values.get("data_wait_process")
        productive = seconds * len(timer.skipped) * (1 - wait)
        values["goodput"] = self._goodput.add(step, productive)
        self._writer.scalars(step, values)
        rate = values["images_per_second"]
        left = (self._steps - step) * self._batch_size / max(rate, 1e-9)
        self._progress.show(
            f"{step}/{self._steps}  loss {values['loss']:.4f}  {rate:.0f} images/s  "
            f"data wait {wait:.0%}{_whose(wait, process)}  {duration(left)} left",
            last=step >= self._steps,
        )
        self._skipped_steps.note(step, timer.skipped)


def _whose(wait: float, process: float | None) -> str:
    """Which process waited, where there are several and it did for long."""
    return "" if process is None or wait < NOTABLE else f" of process {process}"
