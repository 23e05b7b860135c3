"""Does this config fit that slice? Compiles the real training step for absent chips.

The TPU compiler is in the libtpu package and needs no TPU (requirements-tpu.txt). What
it reports is per device: bytes of arguments (the state and a batch), of temporary
buffers, and the collectives of the optimised program. A CPU or GPU topology cannot be
compiled for without the device: there, only the bytes of the state are known.

The compiler spends most of its time on finding the fastest way to run each operation,
and little of it on what is said here: a plan lets it take the first way it finds (the
option QUICK) unless it shall be thorough. State and arithmetic are the same; temporary
bytes are about a run's (for a large program) or more (for one that fits the chip's own
memory).
"""

import collections
import dataclasses
import math
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from unclip_jax import config as config_lib
from unclip_jax import stages
from unclip_jax.data.degradations import make_degradation
from unclip_jax.data_spec import DataSpec
from unclip_jax.errors import UsageError
from unclip_jax.parallel import batches, sharding
from unclip_jax.parallel import mesh as mesh_lib
from unclip_jax.planning.topology import count_devices, fill_axes, make_devices
from unclip_jax.stages.lora import LoraStage
from unclip_jax.training import optimizer, train_step
from unclip_jax.training import state as train_state
from unclip_jax.training.flops import count_flops
from unclip_jax.training.hardware import CHIPS, GIB
from unclip_jax.training.run_config import TrainConfig

# What paper-sized records say of themselves; --assume replaces single values.
ASSUMED: dict[str, Any] = {
    "embed_dim": 1024,
    "vocab_size": 49408,
    "context_length": 256,
    "eot_id": 49407,
}
# Of aligned arrays: a target of this many tokens (0: a vector) and a condition, all of
# them embed_dim numbers wide.
GRID = {"target_tokens": 0, "condition_tokens": 0}
IMAGE_SIZE = {"clip": 256, "decoder": 64, "autoencoder": 256}
# XLA's effort levels: -1 is the least.
QUICK: dict[str, Any] = {"exec_time_optimization_effort": -1.0}
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all")
COLLECTIVES += ("collective-permute",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What one config on one topology takes; bytes are per device."""

    topology: str
    devices: int
    mesh: Mapping[str, int]
    batch_size: int
    grad_accum: int
    remat: Any
    parameters: int
    state_bytes: int
    batch_bytes: int
    rows: Sequence[sharding.Row] = ()  # of the state

    @property
    def fits(self) -> bool | None:
        """Whether it fits the chip's memory; None where that is not known."""
        return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompiledPlan(Plan):
    """A plan with what the compiler says; operations, too, are per device."""

    temp_bytes: int
    hbm: int
    flops: float  # of one step, with what is computed twice
    peak: float
    compiler_seconds: float | None = None  # its bound, of a loop's body once
    lower_seconds: float = 0.0
    compile_seconds: float = 0.0
    thorough: bool = False
    # name -> count, bytes; None where it refuses the program for want of memory
    collectives: Mapping[str, tuple[int, int]] | None = None

    @property
    def total_bytes(self) -> int:
        """The most that is in use at once."""
        return self.state_bytes + self.batch_bytes + self.temp_bytes

    @property
    def fits(self) -> bool:
        """Whether it fits the chip's memory."""
        return self.total_bytes <= self.hbm

    @property
    def step_seconds(self) -> float:
        """The least time of a step: all arithmetic at the peak, or the compiler's."""
        return max(self.flops / self.peak, self.compiler_seconds or 0.0)


def plan(
    config: TrainConfig,
    topology: str,
    assume: Mapping[str, Any] | None = None,
    thorough: bool = False,
) -> Plan:
    """Compiles the step of `config` for `topology`.

    Args:
      config: of a training run.
      topology: "v5p:4x4x8", "v5e:16x16", ... or "cpu:8", "gpu:8".
      assume: what the data would say of itself, where it is not the paper's.
      thorough: compile as a run does, however long that takes.

    Returns:
      A CompiledPlan, but of CPUs and GPUs, which have no compiler without the device.

    Raises:
      UsageError: a topology, mesh or batch that cannot be, with the numbers.
    """
    stage = stages.make_stage(config, assumed_spec(config, assume or {}))
    if config.lora.rank:
        stage = LoraStage(stage, config.lora)
    tx = optimizer.make_optimizer(config.optimizer, config.steps)
    devices = make_devices(topology)
    count = len(devices) if devices else count_devices(topology)
    sizes = fill_axes(dataclasses.asdict(config.mesh), count, topology)
    shards = sizes["data"] * sizes["fsdp"] * config.grad_accum
    if config.batch_size % shards:
        raise UsageError(
            f"batch_size {config.batch_size} is not divisible by {shards} = data "
            f"{sizes['data']} x fsdp {sizes['fsdp']} x grad_accum {config.grad_accum}"
        )
    mesh: Any = (  # an AbstractMesh does where nothing is compiled
        mesh_lib.make_mesh(**sizes, devices=devices)
        if devices
        else jax.sharding.AbstractMesh(tuple(sizes.values()), mesh_lib.AXES)
    )
    abstract = train_state.abstract_state(
        stage, tx, mesh, config.sharding_rules, config.ema_profiles
    )
    shardings = jax.tree.map(lambda s: s.sharding, abstract)
    rows = sharding.describe(abstract, shardings)
    example = sum(math.prod(s) * np.dtype(d).itemsize for s, d in _spec(stage))
    base = Plan(
        topology=topology,
        devices=count,
        mesh=sizes,
        batch_size=config.batch_size,
        grad_accum=config.grad_accum,
        remat=config.model.get("remat", False),
        parameters=sum(leaf.size for leaf in jax.tree.leaves(abstract.params)),
        state_bytes=sum(row.bytes_per_device for row in rows),
        batch_bytes=example * config.batch_size // (sizes["data"] * sizes["fsdp"]),
        rows=rows,
    )
    if not devices:
        return base
    with jax.set_mesh(mesh):
        batches.check_batch_size(config.batch_size, mesh, config.grad_accum)
        began = time.perf_counter()
        lowered = train_step.lower_step(stage, tx, mesh, config, abstract)
        lower_seconds = time.perf_counter() - began
        try:
            compiled = lowered.compile(compiler_options=None if thorough else QUICK)
        except jax.errors.JaxRuntimeError as error:
            temp_bytes, bound, moved = too_much(error), None, None
        else:
            memory: Any = compiled.memory_analysis()
            more = memory.output_size_in_bytes - memory.alias_size_in_bytes
            temp_bytes = memory.temp_size_in_bytes + max(more, 0)
            bound = compiler_seconds(compiled)
            moved = collectives(compiled.as_text() or "")
        compile_seconds = time.perf_counter() - began - lower_seconds
    chip = CHIPS[topology.partition(":")[0]]
    return CompiledPlan(
        **vars(base),
        temp_bytes=temp_bytes,
        hbm=chip.hbm,
        peak=chip.peak,
        flops=step_flops(stage, config, abstract) / count,
        lower_seconds=lower_seconds,
        compile_seconds=compile_seconds,
        thorough=thorough,
        compiler_seconds=bound,
        collectives=moved,
    )


def too_much(error: jax.errors.JaxRuntimeError) -> int:
    """The bytes that a program needs which the compiler refused for want of memory.

    Raises what it is given, if that says something else.
    """
    found = re.search(r"RESOURCE_EXHAUSTED.* \(([\d.]+)([KMG])\) exceeds", str(error))
    if not found:
        raise error
    return round(float(found[1]) * 2 ** {"K": 10, "M": 20, "G": 30}[found[2]])


def parse_assumptions(items: Sequence[str]) -> dict[str, int]:
    """Reads ["embed_dim=768", ...], what --assume says of the data.

    Raises UsageError for an item of another form.
    """
    assume = {}
    for item in items:
        name, _, value = item.partition("=")
        if not value.isdigit():
            raise UsageError(f"--assume={item}: expected NAME=WHOLE_NUMBER")
        assume[name] = int(value)
    return assume


def assumed_spec(config: TrainConfig, assume: Mapping[str, Any]) -> DataSpec:
    """What data of the size that the config is made for would say of itself.

    Raises UsageError for a name that no data has.
    """
    side = IMAGE_SIZE.get(config.stage, 64)
    if config.stage == "upsampler":
        side = 4 * config.model["low_res_size"]
    known: dict[str, Any] = {**ASSUMED, "image_size": side}
    grid = GRID if config.data.get("source") == "aligned" else {}
    config_lib.check_keys(assume, {**known, **grid}, "--assume")
    known |= assume
    arrays = {}
    if grid:
        tokens, others = (known.pop(name, 0) for name in grid)
        arrays = _assumed_arrays(tokens, others, known["embed_dim"])
    degradation = make_degradation(config.data.get("degradation"), known["image_size"])
    dim = known["embed_dim"]

    def embedding_sample():  # as many as a codebook of this config asks for
        rows = 1 + max(dim, config.model.get("num_buckets", 0))
        drawn = np.random.default_rng(0).standard_normal((2, rows, dim), np.float32)
        return dict(zip(("clip_image", "clip_text"), drawn, strict=True))

    channels = config.model.get("image_channels", 3)
    if config.model.get("backbone") == "stable_diffusion":
        channels = config.model.get("image_channels", 4)
    if channels != 3:  # a decoder of latents
        latents = {"latent_shape": (known["image_size"],) * 2 + (channels,)}
        known |= latents
    shape = arrays.get("target_shape", (dim,))
    return DataSpec(
        **known,
        **arrays,
        embedding_mean=np.zeros(shape),
        embedding_std=np.ones(shape),
        embedding_sample=embedding_sample,
        text_width=dim,
        empty_text_states=np.zeros((known["context_length"], dim)),
        empty_clip_text=np.zeros(dim),
        empty_clip_image=np.zeros(dim),
        clip_fingerprint="assumed",
        crop_size=degradation.crop if degradation else None,
        low_res_size=degradation.low_res_size if degradation else None,
    )


def _assumed_arrays(tokens: int, condition_tokens: int, dim: int) -> dict[str, Any]:
    """The fields of DataSpec that tell of aligned arrays: a target, a condition."""
    condition: dict[str, Any] = {"kind": "vector", "shape": (dim,)}
    if condition_tokens:
        condition = {"kind": "sequence", "shape": (condition_tokens, dim)}
    return {
        "target": "target",
        "target_shape": (tokens, dim) if tokens else (dim,),
        "target_dtype": "float32",
        "conditions": {"condition": condition},
    }


def step_flops(stage, config, state) -> int:
    """Operations of one step on all devices: loss and gradient of the global batch.

    The optimizer's few operations per parameter are left out.
    """
    rows = config.batch_size // config.grad_accum
    batch = {
        name: jax.ShapeDtypeStruct((rows, *shape), dtype)
        for name, (shape, dtype) in stage.batch_spec.items()
    }

    def loss(params, frozen, rng, batch):
        return stage.loss(train_state.joined(params, frozen), rng, batch)

    grad = jax.value_and_grad(loss, has_aux=True)
    rng = jax.eval_shape(lambda: jax.random.key(0))
    operations = count_flops(grad, state.params, state.frozen, rng, batch)
    return config.grad_accum * operations


def compiler_seconds(compiled) -> float | None:
    """What the compiler says a step takes at least, with its traffic to memory.

    The body of a loop (scan_layers, grad_accum) counts once, and each operation that
    it cannot estimate takes a second off, so None where nothing is left.
    """
    costs = compiled.cost_analysis()
    costs = costs[0] if isinstance(costs, list) else costs  # by version of jax
    seconds = (costs or {}).get("optimal_seconds", -1.0)
    return seconds if seconds > 0 else None


def collectives(text: str) -> dict[str, tuple[int, int]]:
    """Collective operations of an optimised program: name -> (count, bytes).

    Bytes are those of the results on one device, of a loop's body once.
    """
    found: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
    names = "|".join(COLLECTIVES)
    # "%x = (bf16[8,128]{1,0:T(8,128)}, ...) all-gather-start(...)"; the -done half of
    # a pair is not an operation of its own
    pattern = rf"= (.*?) ({names})(?:-start)?\("
    for shapes, name in re.findall(pattern, text):
        found[name][0] += 1
        sizes = [_bytes(dtype, dims) for dtype, dims in _SHAPE.findall(shapes)]
        found[name][1] += max(sizes, default=0)
    return {name: (count, size) for name, (count, size) in sorted(found.items())}


_SHAPE = re.compile(r"\b(pred|[usf]\d+|bf16)\[([\d,]*)\]")


def _bytes(dtype: str, dims: str) -> int:
    bits = 8 if dtype == "pred" else int(re.sub(r"\D", "", dtype))
    return math.prod(int(d) for d in dims.split(",") if d) * bits // 8


def report(p: Plan) -> str:
    """The plan as lines for people."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in p.mesh.items())
    lines = [
        f"{p.topology}: {p.devices} devices, mesh {mesh}",
        f"batch {p.batch_size} in {p.grad_accum} micro-batch(es), remat {p.remat}",
        f"parameters           {p.parameters / 1e6:,.1f}M",
        f"state per device     {gib(p.state_bytes)} GiB (parameters, EMA, optimizer)",
        f"batch per device     {gib(p.batch_bytes)} GiB",
    ]
    if not isinstance(p, CompiledPlan):
        kind = p.topology.partition(":")[0]
        return "\n".join(
            [*lines, f"activations          unknown: no compiler for an absent {kind}"]
        )
    said = p.compiler_seconds
    verdict = "fits" if p.fits else "DOES NOT FIT"
    lines += [
        f"temporary per device {gib(p.temp_bytes)} GiB (activations and gradients)",
        f"total per device     {gib(p.total_bytes)} of {gib(p.hbm)} GiB: {verdict}",
        f"arithmetic           {p.flops / 1e12:,.2f} TFLOP per device and step",
        f"a step takes at least {p.step_seconds:.3f} s "
        f"({p.batch_size / p.step_seconds / p.devices:,.1f} examples/s per device):",
        f"  {p.flops / p.peak:.3f} s of arithmetic at {p.peak / 1e12:.0f} TFLOP/s"
        + (f"; {said:.3f} s says the compiler (a loop's body once)" if said else ""),
        f"traced, compiled in   {p.lower_seconds:.0f} s, {p.compile_seconds:.0f} s"
        + ("" if p.thorough else " (quickly: a run's program is faster)"),
    ]
    if p.collectives is None:
        return "\n".join([*lines, "the compiler refuses it for want of memory"])
    lines.append("collectives (a loop's once):")
    for name, (count, size) in p.collectives.items():
        lines.append(f"  {name:<19}{count:>5} x, {size / 2**20:,.1f} MiB in all")
    return "\n".join(lines)


def gib(size: int) -> str:
    """Bytes in GiB, for people."""
    return f"{size / GIB:.2f}"


def _spec(stage):
    return stage.batch_spec.values()
