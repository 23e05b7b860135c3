"""Stage decoder: CLIP image embedding and caption -> image, or latents of one.

Paper, section 2.1. Embeddings and captions are dropped, each from rows of its own, for
guidance. A decoder whose model says so (`is_latent`: Kandinsky's, Stable unCLIP's)
learns latents of a frozen autoencoder, which records hold or the training loop makes;
where they are Gaussians each step draws from them. One that reads a noise level sees
embeddings with as much noise (conditioning augmentation, Ho et al. 2022); one that
inpaints sees the image around holes that are drawn for each row (GLIDE, section 2.4);
one that reads a hint, such as a depth map, has it from the records.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from unclip_jax import config as config_lib
from unclip_jax import models, stages
from unclip_jax.data_spec import DataSpec
from unclip_jax.diffusion import guidance, process, samplers, schedule
from unclip_jax.errors import UsageError
from unclip_jax.models.decoder import HINT_FACTOR, Decoder
from unclip_jax.models.stable_decoder import StableDecoder
from unclip_jax.stages.diffusion import DiffusionConfig, DiffusionStage

NULLS = ("learned", "zero_image")
STABLE = "stable_diffusion"  # the backbone of Stable unCLIP
HOLES = 3  # rectangles that are cut out of an image, for a decoder that inpaints
ALL_HIDDEN = 0.1  # its rows that see nothing of the image


@dataclasses.dataclass(frozen=True)
class Options:
    """config.stage_options of this stage."""

    drop_clip: float = 0.1  # rows trained without the CLIP image embedding
    drop_text: float = 0.5  # rows trained without the caption
    embedding: str = "standardize"  # see stages.with_embedding_space
    # what stands for a dropped embedding: a learned one, or Kandinsky's, that of an
    # image of zeros
    null_embedding: str = "learned"
    preview_steps: int = 25
    preview_guidance: float = 3.0

    def __post_init__(self):
        if self.null_embedding not in NULLS:
            raise UsageError(
                f"config.stage_options.null_embedding {self.null_embedding!r}: "
                f"expected one of {', '.join(NULLS)}"
            )


@dataclasses.dataclass(frozen=True)
class Diffusion(DiffusionConfig):
    """config.diffusion of this stage.

    Attributes:
      train_variance: False leaves the variance that the model predicts untrained, as
        diffusers' scripts do; sampling should not use it then.
      clip: bound on |x_0| of latents in sampling; images are bounded by 1.
      threshold: (quantile, most) of dynamic thresholding of latents, or None.
      spacing: of sampling's steps, "leading", "leading+1", ... or "linspace", as
        diffusers counts them; None: evenly, from the last one.
      to_x0: False ends DDIM at the noise of timestep 0, as Stable Diffusion does.
      augmentation: {"schedule", "num_steps"} of the noise that is added to embeddings,
        for a decoder that reads its level.
    """

    min_snr_gamma: float | None = None
    guidance: float | None = None  # of sampling, by default
    guidance_interval: tuple[int, int] | None = None  # likewise
    consistency: int | None = None  # steps, see DiffusionConfig
    train_variance: bool = True
    clip: float | None = None
    threshold: tuple[float, float] | None = None
    spacing: str | None = None
    to_x0: bool = True
    augmentation: dict[str, Any] = dataclasses.field(default_factory=dict)


# keys that exports have for decoders of latents alone
OF_LATENTS = ("train_variance", "clip", "threshold", "spacing", "to_x0", "augmentation")


@dataclasses.dataclass(frozen=True)
class Stage(DiffusionStage):
    """Trains the decoder on records of images, captions and CLIP embeddings."""

    model: Decoder | StableDecoder
    fields: dict[str, Any]
    diffusion: Diffusion
    options: Options
    spec: DataSpec
    batch_spec: dict[str, Any]

    num_input_keys = 2

    @classmethod
    def from_config(cls, config: stages.StageConfig, spec: DataSpec):
        """Fits the stage to the data; UsageError where it does not."""
        options = config_lib.build(
            Options, config.stage_options, "config.stage_options"
        )
        fields, pixels = _fields(config, options, spec)
        length, dim = fields["context_length"], fields["embed_dim"]
        model = models.build("decoder", fields, stages.compute_dtype(config))
        batch_spec: dict[str, Any] = {
            **pixels,
            "tokens": ((length,), "int32"),
            "clip_image": ((dim,), "float32"),
        }
        if model.caption == "clip_states":
            batch_spec["clip_text"] = ((dim,), "float32")
            width = fields["text_states_width"]
            batch_spec["text_states"] = ((length, width), "float16")
        elif model.caption == "text_states":
            batch_spec["text_states"] = ((length, fields["text_width"]), "float16")
        if model.extra == "hint":
            side = HINT_FACTOR * fields["image_size"]
            batch_spec["hint"] = ((side, side, 3), "uint8")
        diffusion = Diffusion.from_config(config, model.learned_sigma)
        if (model.extra == "noise_level") != bool(diffusion.augmentation):
            raise UsageError(
                f"config.diffusion.augmentation {diffusion.augmentation}: the decoder "
                f"of backbone {STABLE!r} needs it, {{'schedule', 'num_steps'}}, and no "
                "other takes it"
            )
        return cls(
            model=model,
            fields=fields,
            diffusion=diffusion,
            options=options,
            spec=spec,
            batch_spec=batch_spec,
        )

    def init(self, rng):
        """Fresh parameters, float32, with what the data decides."""
        batch, no = stages.example_batch(self.batch_spec), jnp.zeros(1, bool)
        t = jnp.zeros(1, int)
        if self.diffusion.augmentation:
            batch["extra"] = t
        x = batch["latents" if self.model.is_latent else "image"].astype(jnp.float32)
        if self.model.extra == "inpaint":
            batch["extra"] = surroundings(x, jnp.ones_like(x[..., :1]))
        params = self.model.init(rng, x, t, *self.inputs(batch, no, no))["params"]
        params = stages.with_constants(params, self.options.embedding, self.spec)
        if self.options.null_embedding == "zero_image":
            zero = jnp.asarray(self.spec.empty_clip_image, jnp.float32)
            params = {**params, "null_clip_image": zero}
        if self.diffusion.augmentation:  # added between these, not what is seen
            params = stages.with_embedding_space(params, "standardize", self.spec)
        return params

    def loss(self, params, rng, batch):
        """Computes the denoising loss.

        `rng` also draws latents, the noise of embeddings and holes.

        See DiffusionStage.loss.
        """
        rng_latents, rng_level, rng_noise = jax.random.split(
            jax.random.fold_in(rng, 1), 3
        )
        if "latent_std" in batch:
            noise = jax.random.normal(rng_latents, batch["latents"].shape)
            drawn = self.x_0(params, batch) + batch["latent_std"] * noise
            batch = {**batch, "latents": drawn}
        if self.diffusion.augmentation:
            z = batch["clip_image"]
            levels = self._noise_process.num_steps
            level = jax.random.randint(rng_level, (len(z),), 0, levels)
            noise = jax.random.normal(rng_noise, z.shape)
            batch = {**batch, "extra": level}
            batch["clip_image"] = self.noise_embeddings(params, z, level, noise)
        if self.model.extra == "inpaint":
            x_0 = self.x_0(params, batch)
            keep = draw_keep(jax.random.fold_in(rng, 2), len(x_0), x_0.shape[1])
            batch = {**batch, "extra": surroundings(x_0, keep)}
        if self.options.null_embedding != "learned":
            fixed = jax.lax.stop_gradient(params["null_clip_image"])
            params = {**params, "null_clip_image": fixed}
        return super().loss(params, rng, batch)

    @property
    def _noise_process(self) -> schedule.Schedule:
        names = "schedule", "num_steps"
        return schedule.make_schedule(*(self.diffusion.augmentation[n] for n in names))

    def noise_embeddings(self, params, clip_image, level, noise):
        """Raw embeddings (B, D) with the noise (B, D) of levels (B,), raw again."""
        space = self.model.bind({"params": params})
        z = space.normalize(clip_image)
        return space.denormalize(process.q_sample(self._noise_process, z, level, noise))

    def x_0(self, params, batch):
        """What is to be denoised, float32."""
        del params
        if self.model.is_latent:
            return batch["latents"].astype(jnp.float32)
        return process.from_uint8(batch["image"])

    def inputs(self, batch, drop_clip, drop_text):
        """The model's after (x_t, t); (B,) bool say which rows lose what."""
        extra = batch.get("extra")
        if "hint" in batch:
            extra = process.from_uint8(batch["hint"])
        return (
            batch["clip_image"],
            batch["tokens"],
            drop_clip,
            drop_text,
            batch.get("clip_text"),
            batch.get("text_states"),
            extra,
        )

    def training_inputs(self, batch, keys):
        """Drops embeddings and captions, each from rows of its own."""
        rng_clip, rng_text = keys
        rows, options = len(batch["tokens"]), self.options
        drop_clip = stages.bernoulli(rng_clip, options.drop_clip, rows)
        drop_text = stages.bernoulli(rng_text, options.drop_text, rows)
        return self.inputs(batch, drop_clip, drop_text)

    def preview(self, params, rng, batch):
        """Pairs of (true picture, picture drawn from its embedding and caption).

        Of latents (2 B, h, w, C) float32, which somebody has to decode. A decoder that
        inpaints sees nothing of the middle, a quarter of the image.
        """

        def model(x_t, t, condition, drop):
            inputs = self.inputs(condition, drop, drop)
            return self.model.apply({"params": params}, x_t, t, *inputs)

        latent = self.model.is_latent
        true = self.x_0(params, batch) if latent else batch["image"]
        left_out = ("image", "latents", "latent_std")
        condition = {name: a for name, a in batch.items() if name not in left_out}
        if self.diffusion.augmentation:
            condition["extra"] = jnp.zeros(len(true), int)
        if self.model.extra == "inpaint":
            x_0, side = self.x_0(params, batch), true.shape[1]
            middle = slice(side // 4, side - side // 4)
            keep = jnp.ones_like(x_0[..., :1]).at[:, middle, middle].set(0)
            condition["extra"] = surroundings(x_0, keep)
        scale = self.options.preview_guidance
        bound = self.diffusion.clip if latent else 1.0
        denoise = self.denoiser(
            guidance.classifier_free(model, condition, scale), bound
        )
        noise_schedule = self.diffusion.noise_schedule
        sample, steps = self.diffusion.preview_sampler(self.options.preview_steps)
        keys = jax.random.split(rng, len(true))
        x_T = samplers.normal(keys, true.shape[1:])
        drawn = sample(denoise, noise_schedule, x_T, steps, keys)
        drawn = drawn if latent else process.to_uint8(drawn)
        pairs = jnp.stack([true, drawn], axis=1)
        return pairs.reshape(-1, *true.shape[1:])

    def export(self):
        """{"part", "config"}: what rebuilds the model for sampling."""
        diffusion = dataclasses.asdict(self.diffusion)
        for name in OF_LATENTS:
            if not self.model.is_latent or not diffusion[name]:
                del diffusion[name]
        if self.model.is_latent:
            diffusion["to_x0"] = self.diffusion.to_x0
        return {
            "part": "decoder",
            "config": {
                "model": self.fields,
                "diffusion": diffusion,
                "embedding": self.options.embedding,
            },
        }


def draw_keep(rng, n: int, side: int):
    """(n, side, side, 1) float32 masks, 0 in holes and 1 around them.

    A hole is the union of HOLES rectangles, whose sides lie between two uniform numbers
    each; ALL_HIDDEN of the masks are 0 everywhere.
    """
    rng_ends, rng_all = jax.random.split(rng)
    ends = side * jnp.sort(jax.random.uniform(rng_ends, (n, HOLES, 2, 2)), axis=-1)
    pixels = jnp.arange(side) + 0.5
    inside = (ends[..., :1] < pixels) & (pixels < ends[..., 1:])  # (n, HOLES, 2, side)
    holes = inside[..., 0, :, None] & inside[..., 1, None, :]
    hidden = jax.random.bernoulli(rng_all, ALL_HIDDEN, (n, 1, 1))
    return 1.0 - (holes.any(1) | hidden)[..., None]


def surroundings(x_0, keep):
    """(B, H, W, C + 1): x_0 where keep is 1, zeros elsewhere, and keep."""
    return jnp.concatenate([x_0 * keep, keep], axis=-1)


def _fields(config, options, spec):
    """(the model's fields, batch_spec of what is denoised)."""
    module = models.module_of("decoder", config.model.get("backbone"))
    stable = config.model.get("backbone") == STABLE
    channels = config.model.get("image_channels", module.image_channels)
    pixels: dict[str, Any] = {}
    if channels != 3:
        shape = _latent_shape(config, spec, channels)
        spec = dataclasses.replace(spec, image_size=shape[0])
        names = ("latents", "latent_std") if spec.has_latent_std else ("latents",)
        pixels = {name: (shape, "float16") for name in names}
    from_data = ["image_size", "embed_dim", "vocab_size", "context_length", "eot_id"]
    # the model's own text_width is its UNet's, but in Stable unCLIP
    text_width = "text_width" if stable else ""
    if config.model.get("caption") == "clip_states":
        text_width = "text_states_width"
    if stable and spec.pad_id is not None:
        from_data.append("pad_id")
    fields = stages.model_fields(config, spec, from_data, text_width)
    if stable:
        if options.embedding != "raw":
            raise UsageError(
                f"config.stage_options.embedding {options.embedding!r}: the decoder of "
                "Stable unCLIP sees embeddings as they are, 'raw'"
            )
    else:
        fields["unit_norm"] = options.embedding in stages.UNIT_SCALES
    if options.null_embedding == "zero_image":
        if stable:
            raise UsageError(
                "config.stage_options.null_embedding 'zero_image': Stable unCLIP has "
                "zeros for a dropped embedding; leave it out"
            )
        if spec.empty_clip_image is None:
            raise UsageError(
                "config.stage_options.null_embedding 'zero_image': the records do not "
                "have the embedding of an image of zeros; make them again with "
                "`python -m unclip_jax.embed`"
            )
    if not pixels:
        side = fields["image_size"]
        pixels = {"image": ((side, side, 3), "uint8")}
    return fields, pixels


def _latent_shape(config, spec, channels) -> tuple[int, int, int]:
    if spec.latent_shape is None:
        raise UsageError(
            f"this decoder denoises latents (config.model.image_channels {channels}) "
            "and the data has none: set config.autoencoder to the folder of one, or "
            "embed with --config.autoencoder=FOLDER"
        )
    rows, columns, found = spec.latent_shape
    if rows != columns or found != channels:
        raise UsageError(
            f"config.model.image_channels is {channels}, for square latents of as many "
            f"channels; the data's are {spec.latent_shape}"
        )
    return spec.latent_shape
