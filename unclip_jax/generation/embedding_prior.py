"""A trained prior of any encoder's embeddings, from numpy to numpy.

prior = Prior.load("exports/any")
embeddings = prior.sample({"voxels": voxels}, n=4, guidance=2.0, seed=0)
"""

import dataclasses
import functools
import math
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unclip_jax.diffusion import guidance as guidance_lib
from unclip_jax.diffusion import process, samplers
from unclip_jax.errors import UsageError
from unclip_jax.generation.embedding_inputs import Arrays, check_conditions
from unclip_jax.generation.options import EmbeddingOptions, make, takes
from unclip_jax.generation.slerp import slerp
from unclip_jax.interop import dalle2_pytorch, native
from unclip_jax.interop.components import Component, read_native
from unclip_jax.models.conditions import Condition, merge_repeats
from unclip_jax.parallel.batched_runner import BatchedRunner
from unclip_jax.parallel.mesh import make_mesh
from unclip_jax.progress import Progress, as_progress

USUAL_STEPS, USUAL_SAMPLER = 32, "ddpm"


@dataclasses.dataclass(frozen=True)
class _Program:
    """What a program that draws is compiled for."""

    draws: int
    guided: bool = False
    sampler: str = USUAL_SAMPLER
    steps: int | str = USUAL_STEPS
    strength: float = 1.0
    corrections: int | None = None  # of inversion; None: it draws


# Least signal of timesteps there and back: an error of epsilon is one of x0 1 / signal
# times as large, see samplers.ddim_inversion.
MIN_SIGNAL = 0.03


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
        """Reads a native export, or a file of DALLE2-pytorch.

        Args:
          folder: of `python -m unclip_jax.export`; or a file that DALLE2-pytorch or
            MindEye wrote, see interop.dalle2_pytorch.
          dtype: of the computation, "float32" or "bfloat16".
          batch_size: embeddings that are drawn at a time.

        Raises:
          FileNotFoundError: no export, or one without an embedding prior.
          UsageError: damaged files, an unknown dtype.
        """
        if dalle2_pytorch.is_dalle2_pytorch(folder):
            return cls(dalle2_pytorch.read_prior(folder, dtype), batch_size)
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
        noise=None,
        first: int = 0,
        progress: Progress | bool | None = None,
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
          noise: (B, *target_shape) noise of `invert` to begin with, in place of drawn
            noise; DDIM's steps unless another sampler is named.
          first: number of the first row, where B rows are part of more.
          progress: as for UnCLIP's methods.
          guidance, steps, sampler, strength: see generation.options.EmbeddingOptions.

        Returns:
          float32 (B, *target_shape), or (B, n, *target_shape); as the encoder makes
          them, or of norm 1 by the conventions that scale unit embeddings.

        Raises:
          UsageError: conditions that do not fit, options that cannot be.
        """
        values = make(EmbeddingOptions, options)
        draws = 1 if n is None else n
        if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
            raise UsageError(f"n must be a whole number of draws, got {n!r}")
        rows, inputs = 0, {}
        for name, arrays in (("conditions", conditions), ("negative", negative)):
            if arrays is not None:
                inputs[name] = check_conditions(self.conditions, arrays, name, rows)
                rows = len(jax.tree.leaves(inputs[name])[0])
        program, scale = _Program(draws), 1.0
        if self.is_deterministic:
            self._refuse_noise(values, draws, (negative, start, noise))
        else:
            if noise is not None and values.sampler is None:
                values = dataclasses.replace(values, sampler="ddim")
            program, scale = self._resolve(values, program)
        if negative is not None and not program.guided:
            raise UsageError("negative conditions need a guidance other than 1")
        if start is not None and noise is not None:
            raise UsageError("start and noise: give one of them")
        for name, value in (("start", start), ("noise", noise)):
            if value is not None:
                inputs[name] = self._check_embeddings(value, name, rows)
        if start is None and program.strength < 1:
            raise UsageError("strength is for embeddings to start from: give start")
        out = self._run(program, seed, scale, inputs, rows, first, progress)
        return out[:, 0] if n is None else out

    def edit(
        self, embeddings, conditions: Arrays, *, strength: float = 0.5, **options
    ) -> np.ndarray:
        """Draws embeddings near others that fit the conditions better.

        `sample` from embeddings (B, *target_shape) to which noise is added: the higher
        the strength, in (0, 1], the less of them is kept. `options` are sample's.
        """
        return self.sample(conditions, start=embeddings, strength=strength, **options)

    def invert(
        self,
        embeddings,
        conditions: Arrays,
        *,
        guidance: float = 1.0,
        steps: int | str | None = None,
        corrections: int = 3,
        progress: Progress | bool | None = None,
    ) -> np.ndarray:
        """The noise from which DDIM draws given embeddings, (B, *target_shape) float32.

        `sample(conditions, noise=...)` with the same guidance and steps gives them
        back: the more steps and corrections the closer.

        Args:
          embeddings: (B, *target_shape).
          conditions: as of `sample`.
          guidance, steps: as of `sample`.
          corrections: more calls of the model per step, see samplers.ddim_inversion.

        Raises:
          UsageError: inputs that do not fit, a deterministic prior.
        """
        if self.is_deterministic:
            raise UsageError(
                "this prior is deterministic: it has no noise to invert to"
            )
        if type(corrections) is not int or corrections < 0:
            raise UsageError(
                f"corrections must be a whole number of at least 0, got {corrections!r}"
            )
        asked = EmbeddingOptions(guidance=guidance, steps=steps, sampler="ddim")
        program, scale = self._resolve(asked, _Program(1, corrections=corrections))
        checked = check_conditions(self.conditions, conditions, "conditions", 0)
        rows = len(jax.tree.leaves(checked)[0])
        noise = self._check_embeddings(embeddings, "embeddings", rows)
        inputs = {"conditions": checked, "noise": noise}
        return self._run(program, 0, scale, inputs, rows, 0, progress)[:, 0]

    def interpolate(
        self, start, end, conditions: Arrays, *, num: int = 5, **options
    ) -> np.ndarray:
        """Embeddings between others, each of them one that the prior would draw.

        Both ends are inverted and their noise is interpolated spherically.

        Args:
          start, end: (B, *target_shape) embeddings.
          conditions: as of `sample`; of all of the way.
          num: embeddings on the way, start and end among them.
          options: guidance, steps and corrections of `invert`.

        Returns:
          (B, num, *target_shape) float32.
        """
        if num < 2:
            raise UsageError(f"num must be at least 2, both ends, got {num}")
        ends = [self.invert(x, conditions, **options) for x in (start, end)]
        options.pop("corrections", None)
        shape = ends[0].shape
        a, b = (noise.reshape(len(noise), -1) for noise in ends)
        way = [slerp(a, b, t) for t in np.linspace(0, 1, num)]
        options = {"guidance": 1.0, **options}
        drawn = [
            self.sample(conditions, noise=x.reshape(shape), **options) for x in way
        ]
        return np.stack(drawn, axis=1)

    def _run(self, program, seed, scale, inputs, rows, first, progress):
        """Runs a program on all rows: (B, draws, *target_shape)."""
        inputs["index"] = np.arange(first, first + rows, dtype=np.int32)
        if program not in self._programs:
            drawn = functools.partial(self._draw, program)
            self._programs[program] = jax.jit(drawn)
        run = self._programs[program]
        seed_, scale_ = np.uint32(seed % 2**32), np.float32(scale)
        size = max(1, self._batch_size // program.draws)
        runner = BatchedRunner(self._mesh, size)
        with jax.set_mesh(self._mesh):
            return runner.map(
                lambda batch: run(self._params, seed_, scale_, batch),
                (inputs,),
                as_progress(progress, by_default=rows > size),
            )

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
        if program.corrections is None:
            z = self.component.module.apply(variables, z, method="denormalize")
        out: Any = z
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
        # there and back nothing is clipped: epsilon would not be the model's
        clip = None if "noise" in batch else config.get("clip")
        predict = process.make_denoiser(guided, schedule, config["prediction"], clip)
        least = MIN_SIGNAL if "noise" in batch else 0.0
        timesteps = samplers.timesteps(program.sampler, schedule, program.steps, least)
        if program.corrections is not None:
            z = module.apply({"params": params}, batch["noise"], method="normalize")
            return samplers.ddim_inversion(
                predict, schedule, z, timesteps, program.corrections, to_x0=False
            )
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
        elif "noise" in batch:
            x = jnp.repeat(batch["noise"], draws, axis=0)
        own = {}
        if program.sampler == "ddpm" and config.get("variance"):
            own["variance"] = config["variance"]
        if program.sampler == "ddim" and "noise" in batch:
            own["to_x0"] = False  # that step could not be inverted
        sampler = samplers.SAMPLERS[program.sampler]
        return sampler(predict, schedule, x, timesteps, steps_keys, **own)

    def _check_embeddings(self, value, where: str, rows) -> np.ndarray:
        value, shape = np.asarray(value, np.float32), (rows, *self.target_shape)
        if value.shape != shape or not np.isfinite(value).all():
            raise UsageError(
                f"{where}: expected finite embeddings {shape}, got {value.shape}"
            )
        return value

    def _refuse_noise(self, values, draws, others) -> None:
        plain = EmbeddingOptions(guidance=values.guidance)
        if values != plain or values.guidance not in (None, 1) or draws > 1:
            raise UsageError(
                "this prior is deterministic, one pass without noise: it takes no n, "
                "guidance, steps, sampler or strength"
            )
        if any(value is not None for value in others):
            raise UsageError(
                "this prior is deterministic: it takes no negative conditions, no "
                "noise and no embeddings to start from"
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
        known = [name for name in samplers.SAMPLERS if name != "consistency"]
        if sampler not in known:
            raise UsageError(f"sampler {sampler!r}: expected one of {', '.join(known)}")
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
