"""A trained prior of any encoder's embeddings, from numpy to numpy.

prior = Prior.load("exports/any")
embeddings = prior.sample({"voxels": voxels}, n=4, guidance=2.0, seed=0)
"""

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unclip_jax.diffusion import guidance as guidance_lib
from unclip_jax.diffusion import process, samplers
from unclip_jax.errors import UsageError
from unclip_jax.generation.options import EmbeddingOptions, takes
from unclip_jax.interop import native
from unclip_jax.interop.components import Component, read_native
from unclip_jax.models.conditions import FLOATS, MASK, Condition, merge_repeats
from unclip_jax.parallel.batched_runner import BatchedRunner
from unclip_jax.parallel.mesh import make_mesh

USUAL_STEPS, USUAL_SAMPLER = 32, "ddpm"

Arrays = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class _Program:
    """What a program that draws is compiled for."""

    draws: int
    guided: bool = False
    sampler: str = USUAL_SAMPLER
    steps: int | str = USUAL_STEPS
    strength: float = 1.0


class Prior:
    """Draws embeddings for conditions.

    Attributes:
      component: the trained model.
      conditions: {name: models.conditions.Condition}, in the prior's order.
      target_shape: (D,), or (N, D) of a grid of tokens.
      encoder: what made the targets it learnt from, as the data said.
    """

    def __init__(self, component: Component, batch_size: int = 256):
        """Of a loaded model; see `load`."""
        self.component = component
        module: Any = component.module
        self.conditions: dict[str, Condition] = module.described
        self.target_shape: tuple[int, ...] = tuple(module.target_shape)
        self.encoder = component.clip_fingerprint
        self._mesh, self._batch_size = make_mesh(), batch_size
        runner = BatchedRunner(self._mesh, batch_size)
        self._params = runner.place_params(component.params)
        self._programs: dict[_Program, Callable] = {}

    @classmethod
    def load(
        cls, folder: str | os.PathLike, dtype: str = "float32", batch_size: int = 256
    ) -> "Prior":
        """Reads a native export.

        Args:
          folder: of `python -m unclip_jax.export`.
          dtype: of the computation, "float32" or "bfloat16".
          batch_size: embeddings that are drawn at a time.

        Raises:
          FileNotFoundError: no export, or one without an embedding prior.
          UsageError: damaged files, an unknown dtype.
        """
        parts = native.read_index(folder)["parts"]
        kinds = [kind for kind in native.EMBEDDING_PRIORS if kind in parts]
        if not kinds:
            raise native.missing_part(folder, native.EMBEDDING_PRIORS[0], [*parts])
        if len(kinds) > 1:
            raise UsageError(
                f"{folder} has {' and '.join(kinds)}: export each into its own folder"
            )
        return cls(read_native(folder, kinds[0], dtype), batch_size)

    @property
    def is_deterministic(self) -> bool:
        """Whether it makes its prediction in a single pass, without noise."""
        module: Any = self.component.module
        return module.single_pass

    @takes(EmbeddingOptions)
    def sample(
        self,
        conditions: Arrays,
        *,
        n: int | None = None,
        seed: int = 0,
        negative: Arrays | None = None,
        start=None,
        first: int = 0,
        progress: Callable[[int, int], None] | None = None,
        **options,
    ) -> np.ndarray:
        """Draws embeddings, or predicts them if the prior is deterministic.

        A row's draws depend on its conditions, the seed and its number alone.

        Args:
          conditions: {name: array (B, *shape)}; of repeats any number of measurements,
            which are averaged. NAME_mask is true where NAME has something. One that is
            left out is missing from every row.
          n: draws per row; None is one, without an axis for it.
          seed: of all randomness.
          negative: conditions that guidance leads away from, in place of none.
          start: (B, *target_shape) embeddings, to which the noise of the first step
            that is taken is added; with `strength`.
          first: number of the first row, where B rows are part of more.
          progress: called with (rows done, of all).
          guidance, steps, sampler, strength: see generation.options.EmbeddingOptions.

        Returns:
          float32 (B, *target_shape), or (B, n, *target_shape); as the encoder makes
          them, or of norm 1 by the conventions that scale unit embeddings.

        Raises:
          UsageError: conditions that do not fit, options that cannot be.
        """
        values = EmbeddingOptions(**options)
        draws = 1 if n is None else n
        if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
            raise UsageError(f"n must be a whole number of draws, got {n!r}")
        rows, inputs = 0, {}
        for name, arrays in (("conditions", conditions), ("negative", negative)):
            if arrays is not None:
                inputs[name] = self._check(arrays, name, rows)
                rows = len(jax.tree.leaves(inputs[name])[0])
        program, scale = _Program(draws), 1.0
        if self.is_deterministic:
            self._refuse_noise(values, draws, negative, start)
        else:
            program, scale = self._resolve(values, program)
        if negative is not None and not program.guided:
            raise UsageError("negative conditions need a guidance other than 1")
        if start is not None:
            inputs["start"] = self._check_start(start, rows)
        elif program.strength < 1:
            raise UsageError("strength is for embeddings to start from: give start")
        inputs["index"] = np.arange(first, first + rows, dtype=np.int32)
        if program not in self._programs:
            drawn = functools.partial(self._draw, program)
            self._programs[program] = jax.jit(drawn)
        run = self._programs[program]
        seed_, scale_ = np.uint32(seed % 2**32), np.float32(scale)
        runner = BatchedRunner(self._mesh, max(1, self._batch_size // draws))
        with jax.set_mesh(self._mesh):
            out = runner.map(
                lambda batch: run(self._params, seed_, scale_, batch),
                (inputs,),
                progress,
            )
        return out[:, 0] if n is None else out

    def _draw(self, program: _Program, params, seed, scale, batch):
        """(B, draws, *target_shape) of a batch on the devices."""
        variables, draws = {"params": params}, program.draws

        def prepare(condition):
            """(arrays (B * draws, ...), which are missing) of what `_check` made."""
            arrays = merge_repeats(self.conditions, condition["arrays"])
            return jax.tree.map(
                lambda a: jnp.repeat(a, draws, axis=0), (arrays, condition["missing"])
            )

        conditions = prepare(batch["conditions"])
        if self.is_deterministic:
            z: Any = self.component.module.apply(variables, None, None, *conditions)
        else:
            negative = prepare(batch["negative"]) if "negative" in batch else None
            args = (conditions, negative), seed, scale, batch
            z = self._denoise(program, params, *args)
        out: Any = self.component.module.apply(variables, z, method="denormalize")
        return out.reshape(-1, draws, *self.target_shape)

    def _model(self, params, x, t, conditions, drop):
        """What guidance asks for: rows of `drop` see the negative, or nothing."""
        own, negative = conditions
        if negative is None:
            arrays, missing = own
            missing = {name: rows | drop for name, rows in missing.items()}
        else:

            def choose(a, b):
                return jnp.where(drop.reshape(-1, *(1,) * (a.ndim - 1)), a, b)

            arrays, missing = jax.tree.map(choose, negative, own)
        return self.component.module.apply({"params": params}, x, t, arrays, missing)

    def _denoise(self, program, params, conditions, seed, scale, batch):
        """Runs the sampler: (B * draws, *target_shape) in the prior's space."""
        module, config = self.component.module, self.component.config["diffusion"]
        schedule, draws = self.component.noise_schedule, program.draws
        fold = jax.vmap(jax.random.fold_in, (None, 0))
        keys = fold(jax.random.key(seed), batch["index"])
        keys = jax.vmap(fold, (0, None))(keys, jnp.arange(draws)).reshape(-1)
        starts, steps_keys = (
            jax.vmap(lambda key, i=i: jax.random.fold_in(key, i))(keys) for i in (0, 1)
        )
        model = functools.partial(self._model, params)
        guided = guidance_lib.classifier_free(
            model, conditions, scale if program.guided else 1
        )
        predict = process.make_denoiser(
            guided, schedule, config["prediction"], config.get("clip")
        )
        timesteps = samplers.timesteps(program.sampler, schedule, program.steps)
        kept = max(1, math.ceil(program.strength * len(timesteps) - 1e-9))
        timesteps = timesteps[-kept:]
        x = samplers.normal(starts, self.target_shape)
        if "start" in batch:
            z: Any = module.apply(
                {"params": params}, batch["start"], method="normalize"
            )
            z = jnp.repeat(z, draws, axis=0)
            t = jnp.full(len(z), timesteps[0])
            x = process.q_sample(schedule, z, t, x)
        own = {}
        if program.sampler == "ddpm" and config.get("variance"):
            own["variance"] = config["variance"]
        sampler = samplers.SAMPLERS[program.sampler]
        return sampler(predict, schedule, x, timesteps, steps_keys, **own)

    def _check(self, given: Arrays, where: str, rows: int) -> dict[str, Any]:
        """{"arrays": {name: array}, "missing": {name: (B,) bool}}, of every condition.

        `rows` is how many there must be; 0: any number.
        """
        names = [*self.conditions, *(name + MASK for name in self.conditions)]
        if unknown := [name for name in given if name not in names]:
            raise UsageError(
                f"{where}: the prior knows no {unknown[0]!r}; its conditions are "
                f"{', '.join(self.conditions)}"
            )
        arrays: dict[str, np.ndarray] = {}
        for name, condition in self.conditions.items():
            if name in given:
                mask = given.get(name + MASK)
                own = _check_array(given[name], mask, condition, f"{where}: {name}")
                arrays |= {name + suffix: x for suffix, x in own.items()}
        lengths = {name: len(x) for name, x in arrays.items()}
        rows = rows or max(lengths.values(), default=0)
        if not rows or set(lengths.values()) != {rows}:
            raise UsageError(
                f"{where}: expected at least one row, and {rows or 'as many'} of each; "
                f"got {lengths or 'no condition'}"
            )
        missing = {name: np.full(rows, name not in arrays) for name in self.conditions}
        for name, condition in self.conditions.items():
            if name not in arrays:
                zero = np.zeros((), "float32" if condition.kind in FLOATS else "int32")
                arrays[name] = np.broadcast_to(zero, (rows, *condition.shape))
            if condition.kind in FLOATS and name + MASK not in arrays:
                shape = arrays[name].shape[:-1]
                arrays[name + MASK] = np.broadcast_to(np.array(True), shape)
        return {"arrays": arrays, "missing": missing}

    def _check_start(self, start, rows) -> np.ndarray:
        start, shape = np.asarray(start, np.float32), (rows, *self.target_shape)
        if start.shape != shape or not np.isfinite(start).all():
            raise UsageError(
                f"start: expected finite embeddings {shape}, got {start.shape}"
            )
        return start

    def _refuse_noise(self, values, draws, negative, start) -> None:
        plain = EmbeddingOptions(guidance=values.guidance)
        if values != plain or values.guidance not in (None, 1) or draws > 1:
            raise UsageError(
                "this prior is deterministic, one pass without noise: it takes no n, "
                "guidance, steps, sampler or strength"
            )
        if negative is not None or start is not None:
            raise UsageError(
                "this prior is deterministic: it takes no negative conditions and no "
                "embeddings to start from"
            )

    def _resolve(self, values: EmbeddingOptions, program: _Program):
        """(the program, the guidance scale), completed by what the export says."""
        config = self.component.config["diffusion"]
        guidance = values.guidance
        if guidance is None:
            guidance = config.get("guidance") or 1.0
        if not math.isfinite(guidance):
            raise UsageError(f"guidance must be a finite number, got {guidance}")
        sampler = values.sampler or config.get("sampler") or USUAL_SAMPLER
        if sampler not in samplers.SAMPLERS:
            raise UsageError(
                f"sampler {sampler!r}: expected one of {', '.join(samplers.SAMPLERS)}"
            )
        if not 0 < values.strength <= 1:
            raise UsageError(f"strength {values.strength}: expected above 0, up to 1")
        schedule = self.component.noise_schedule
        usual = config.get("sampling_steps") or min(USUAL_STEPS, schedule.num_steps)
        steps = values.steps or usual
        samplers.timesteps(sampler, schedule, steps)  # refuses what cannot be
        program = dataclasses.replace(
            program,
            guided=guidance != 1,
            sampler=sampler,
            steps=steps,
            strength=float(values.strength),
        )
        return program, guidance


def _check_array(given, mask, condition: Condition, where: str):
    """{"": array, MASK: its mask, if it has one}, of the types the model takes.

    Raises UsageError for shapes and values that cannot be.
    """
    x, shape = np.asarray(given), list(condition.shape)
    if condition.kind == "repeats" and x.ndim == 3:
        shape[0] = x.shape[1]  # however many there are
    if x.shape[1:] != tuple(shape) or x.ndim != len(shape) + 1:
        sizes = "".join(f", {size}" for size in condition.shape)
        raise UsageError(f"{where} has shape {x.shape}, expected (rows{sizes})")
    if condition.kind not in FLOATS:
        if mask is not None or x.dtype.kind not in "iub":
            raise UsageError(
                f"{where} is {x.dtype}; expected whole numbers without a mask, "
                "negative where there is none"
            )
        if x.size and x.max() >= (condition.size or 0):
            raise UsageError(
                f"{where} holds {x.max()}, expected numbers below {condition.size}"
            )
        return {"": x.astype(np.int32)}
    if x.dtype.kind not in "fiub":
        raise UsageError(f"{where} is {x.dtype}, expected numbers")
    x, own = x.astype(np.float32), {}
    if mask is not None:
        mask = np.asarray(mask, bool)
        if mask.shape != x.shape[:-1]:
            raise UsageError(
                f"{where}{MASK} has shape {mask.shape}, expected {x.shape[:-1]}"
            )
        x, own = np.where(mask[..., None], x, 0), {MASK: mask}
    finite = np.isfinite(x).reshape(len(x), -1).all(1)
    if not finite.all():
        bad = np.flatnonzero(~finite)
        raise UsageError(
            f"{where}: {len(bad)} rows hold NaN or infinity, e.g. row {bad[0]}; mask "
            f"them with an array NAME{MASK}, or leave them out"
        )
    return {"": x, **own}
