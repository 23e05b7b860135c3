"""What `python -m unclip_jax.init` does: configs of all stages for anybody's data.

Sizes and steps follow from the number and size of the images, the speed of the devices
and the minutes that there are. The speed is that of a matrix product, measured now,
times the share of it that training steps reached when they were measured.
"""

import dataclasses
import pathlib
import pprint
import re
import time
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from unclip_jax import config as config_lib
from unclip_jax import stages
from unclip_jax.data.own_data import OwnData, inspect_folder
from unclip_jax.errors import UsageError
from unclip_jax.files import atomic_write, read_json, write_json
from unclip_jax.planning.plan import assumed_spec
from unclip_jax.training.flops import model_flops
from unclip_jax.training.run_config import read_config

STAGES = ("clip", "prior", "decoder")
SHARE = {"clip": 0.2, "prior": 0.15, "decoder": 0.65}  # of the minutes of training
OTHER = 4.0  # minutes of compiling, embedding, drawing and scoring, and
OTHER_SHARE = 0.1  # this share of all
# Share of a matrix product's speed that a step reaches, see docs/own_data.md.
EFFICIENCY = {"clip": 0.2, "prior": 0.12, "decoder": 0.3}
# More epochs than these teach a CLIP or a prior the training examples by heart.
MOST_EPOCHS = {"clip": 40, "prior": 80, "decoder": 1000}
ENOUGH = 80_000  # images that a decoder must see, or draw smaller ones
PATCH = 8  # of the decoder: a grid of 8x8 or 4x4
# (side of the images, channels of the decoder), the most demanding first
SIZES = ((64, 256), (64, 128), (32, 128))
VOCABULARY = 2048
BATCH = {"clip": 128, "prior": 128, "decoder": 64}
RATES = {"clip": 1e-3, "prior": 1e-3, "decoder": 2e-3}
IN_MEMORY = 2**30  # bytes of images, beyond which they are read as they are needed
SCORED = 224  # held-out captions
HEADER = '''"""{title} of {data}, written by `python -m unclip_jax.init`.

    {command}

Edit it before the stage has begun.
"""

import ml_collections

'''


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is trained on some data.

    Attributes:
      configs: {name of the file: values}.
      minutes: {stage: minutes that its training is expected to take}.
      parameters: {stage: how many}.
      epochs: {stage: how often it sees the data}.
    """

    configs: Mapping[str, Mapping[str, Any]]
    minutes: Mapping[str, float]
    parameters: Mapping[str, int]
    epochs: Mapping[str, float]


def init(args: types.SimpleNamespace, log: Callable[[str], None] = print) -> None:
    """Writes runs/NAME/configs and says what to expect.

    Args:
      args: the flags of unclip_jax.init.
      log: called with lines of text.

    Raises:
      UsageError, FileNotFoundError: what was wrong with the flags or the data.
    """
    if not re.fullmatch(r"[\w-][\w.-]*", args.name):
        raise UsageError(f"--name {args.name!r}: expected letters, digits, - and _")
    if not 5 <= args.minutes <= 100_000:
        raise UsageError(f"--minutes {args.minutes}: expected at least 5")
    folder = pathlib.Path("runs") / args.name
    asked = {"data": str(args.data), "name": args.name, "minutes": args.minutes}
    file = folder / "plan.json"
    if file.is_file() and not args.overwrite:
        before = read_json(file, "")["asked"]
        if before == asked:
            log(f"{folder}/configs are there already: kept")
            return
        raise UsageError(
            f"{folder} was planned for {before}, now {asked}: use another --name, or "
            "--overwrite, before anything is trained"
        )
    data = inspect_folder(args.data, VOCABULARY)
    log(describe_data(str(args.data), data))
    speed = measure_speed()
    plan = make_plan(args.name, data, args.minutes, speed, jax.device_count())
    (folder / "configs").mkdir(parents=True, exist_ok=True)
    for name, values in plan.configs.items():
        text = _source(name, values, args)
        atomic_write(folder / "configs" / f"{name}.py", text)
    export = pathlib.Path("exports") / args.name
    export.mkdir(parents=True, exist_ok=True)
    atomic_write(export / "prompts.txt", "".join(f"{p}\n" for p in data.prompts))
    about = {"minutes": plan.minutes, "epochs": plan.epochs, "speed": speed}
    write_json(file, {"asked": asked, "counts": dict(data.counts), **about})
    for line in describe_plan(plan, speed):
        log(line)
    log(f"written: {folder}/configs, which you may edit. Then train, or go on, with")
    log(f"  make own DATA={args.data} NAME={args.name} MINUTES={args.minutes:g}")


def measure_speed(size: int = 2048) -> float:
    """Operations per second of float32 matrix products, the best of some, per device.

    On accelerators of bfloat16 ones, in which training computes there.
    """
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    a = jax.random.normal(jax.random.key(0), (size, size), dtype)
    product = jax.jit(jnp.matmul)
    product(a, a).block_until_ready()
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        product(a, a).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


def make_plan(
    name: str, data: OwnData, minutes: float, speed: float, devices: int
) -> Plan:
    """Chooses sizes and steps.

    Args:
      name: of the runs and the export.
      data: to train on.
      minutes: for everything.
      speed: operations per second of a device, of `measure_speed`.
      devices: how many of them.
    """
    left = max(1.0, minutes - OTHER - OTHER_SHARE * minutes)
    is_small = data.side < 48  # to enlarge images is to teach blur
    sizes = [s for s in SIZES if not is_small or s[0] == min(side for side, _ in SIZES)]
    *larger, smallest = sizes
    for size in larger:
        plan = _fill(name, data, left, speed, devices, *size)
        config = plan.configs["decoder"]
        if config["steps"] * config["batch_size"] >= ENOUGH:
            return plan
    return _fill(name, data, left, speed, devices, *smallest)


def _fill(name, data, minutes, speed, devices, side, channels) -> Plan:
    """The plan for images of this side, and a decoder of so many channels."""
    configs = stage_configs(name, data, side, channels, devices)
    taken, parameters, epochs = {}, {}, {}
    for stage in STAGES:  # what one leaves is the next one's
        shares = sum(SHARE[later] for later in STAGES[STAGES.index(stage) :])
        own = (minutes - sum(taken.values())) * SHARE[stage] / shares
        config = configs[stage]
        flops, parameters[stage] = _step_cost(config, data, side)
        rate = speed * devices * EFFICIENCY[stage] / flops  # steps per second
        batch, count = config["batch_size"], data.counts["train"]
        steps = min(own * 60 * rate, MOST_EPOCHS[stage] * count / batch)
        config["steps"] = steps = max(20, _rounded(steps))
        taken[stage] = steps / rate / 60
        epochs[stage] = steps * batch / count
        _fill_in_steps(config, steps, taken[stage], data)
    return Plan(configs, taken, parameters, epochs)


def stage_configs(name, data, side, channels, devices) -> dict[str, dict[str, Any]]:
    """{file: values} of all configs, those of training without their steps."""
    runs, records = f"runs/{name}", f"runs/{name}/records"
    count = sum(data.counts.values())
    feed = "arrays" if count * 3 * side**2 <= IN_MEMORY else "tf"
    source = {**data.options, "image_size": side}
    held_out = {"path": f"{records}/validation"}
    scored = min(SCORED, data.counts["validation"])
    batch = {s: max(b, 8 * devices) for s, b in BATCH.items()}
    shared = {s: {"stage": s, "batch_size": batch[s]} for s in STAGES}
    if jax.default_backend() != "cpu":
        for values in shared.values():
            values["compute_dtype"] = "bfloat16"
    return {
        "clip": {
            **shared["clip"],
            "data": {
                **source,
                **data.splits["train"],
                "feed": feed,
                "vocab_size": data.vocab_size,
            },
            "model": dict(
                embed_dim=channels,
                patch_size=side // 4,
                vision_width=channels,
                vision_depth=4,
                vision_heads=4,
                text_width=channels,
                text_depth=2,
                text_heads=4,
            ),
            "optimizer": dict(weight_decay=0.05, b2=0.98, eps=1e-6),
            "evaluators": dict(
                retrieval=dict(count=scored, data=dict(data.splits["validation"]))
            ),
        },
        "prior": {
            **shared["prior"],
            "data": dict(source="records", path=f"{records}/train", feed="arrays"),
            "model": dict(width=channels, depth=4, num_heads=4),
            "diffusion": dict(sampling_steps=25, guidance=2.0),
            "optimizer": dict(weight_decay=0.06, b2=0.96, eps=1e-6),
            "evaluators": dict(prior=dict(count=scored, data=held_out)),
        },
        "decoder": {
            **shared["decoder"],
            "data": dict(source="records", path=f"{records}/train", feed=feed),
            "model": dict(
                channels=channels,
                channel_mult=(1,),
                num_res_blocks=2,
                attention_resolutions=(side // PATCH,),
                head_channels=32,
                patch_size=PATCH,
                refine_channels=16,
                learned_sigma=False,
                text_width=channels // 2,
                text_depth=1,
                text_heads=2,
            ),
            "diffusion": dict(prediction="x0", sampling_steps=25, guidance=1.5),
            "optimizer": dict(b2=0.99),
        },
        "embed": {
            "clip": f"{runs}/clip",
            "data": source,
            "splits": {name: dict(values) for name, values in data.splits.items()},
            "shard_size": 2000,
        },
        "eval": {
            "model": f"exports/{name}",
            "data": {**source, **data.splits["validation"]},
            "count": scored,
            "reference": dict(
                data=dict(data.splits["train"]),
                count=min(1000, data.counts["train"]),
            ),
            "metrics": dict(
                clip_score=dict(convention="cosine"),
                r_precision=dict(pool=min(100, scored)),
                frechet_clip=dict(metric="frechet", features="clip"),
            ),
        },
    }


def _fill_in_steps(config, steps, minutes, data):
    """What depends on how long a stage is trained."""
    stage, few = config["stage"], max(1, steps // 4)
    rate = RATES[stage] * (128 / max(128, _width(config)))
    config["optimizer"] |= dict(
        learning_rate=rate,
        warmup_steps=min(100, max(1, steps // 10)),
        schedule="cosine",
        grad_clip_norm=1.0,
    )
    config["ema_decay"] = round(min(0.9999, max(0.9, 1 - 12 / steps)), 4)
    config["log_every"] = max(1, steps // 60)
    config["checkpoint"] = dict(every=max(1, steps // max(4, int(minutes / 2))))
    for options in config.get("evaluators", {}).values():
        options["every"] = few
    if stage == "decoder":
        config["preview"] = dict(every=few)


def _width(config) -> int:
    model = config["model"]
    return model.get("channels") or model.get("width") or model["vision_width"]


def _step_cost(config, data, side) -> tuple[int, int]:
    """(operations of one step, parameters) of a stage's config."""
    dim = {} if config["stage"] == "clip" else {"embed_dim": _width(config)}
    values = {**config, "steps": 1, "optimizer": {"learning_rate": 1e-3}}
    values.pop("evaluators", None)
    built = read_config(values)
    spec = assumed_spec(
        built,
        {
            "image_size": side,
            "vocab_size": data.vocab_size,
            "context_length": data.context_length,
            "eot_id": data.vocab_size - 1,
            **dim,
        },
    )
    stage = stages.make_stage(built, spec)
    params = jax.eval_shape(stage.init, jax.random.key(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    return model_flops(stage, built.batch_size, params), count


def _rounded(steps: float) -> int:
    """A number of steps that is easily read."""
    unit = 10 ** max(0, len(str(int(steps))) - 2)
    return int(steps) // unit * unit


def describe_data(path: str, data: OwnData) -> str:
    """One sentence of what there is."""
    train, validation = data.counts["train"], data.counts["validation"]
    failed = "".join(f"; {n:,} left out: {why}" for why, n in data.failed.items())
    return (
        f"{path}: {train:,} images with captions to train on, {validation:,} held out "
        f"({data.options['source']}; half of them have {data.side} pixels a side or "
        f"more){failed}"
    )


def describe_plan(plan: Plan, speed: float) -> Iterator[str]:
    """Lines that say what will be trained, and what may come of it."""
    side = plan.configs["clip"]["data"]["image_size"]
    yield (
        f"{jax.device_count()} {jax.devices()[0].device_kind} device(s), "
        f"{speed / 1e12:.2g} TFLOP/s in matrix products; images of {side}x{side}"
    )
    for stage in STAGES:
        config = plan.configs[stage]
        yield (
            f"  {stage:8}{plan.parameters[stage] / 1e6:5.1f}M parameters, "
            f"{config['steps']:,} steps of {config['batch_size']} "
            f"({plan.epochs[stage]:.0f} epochs), {plan.minutes[stage]:.0f} minutes"
        )
    decoder = plan.configs["decoder"]
    seen = decoder["steps"] * decoder["batch_size"]
    what = (
        "what is frequent in the data to be recognized, rare things not"
        if seen >= ENOUGH
        else "little more than colors: give it more minutes"
    )
    yield f"The decoder sees {seen:,} images. Expect {what} (docs/own_data.md)."


def _source(name: str, values: Mapping[str, Any], args) -> str:
    """The text of a config file."""
    command, workdir = {
        "embed": ("embed", "records"),
        "eval": ("evaluate", "eval"),
    }.get(name, ("train", name))
    file, workdir = (
        f"runs/{args.name}/configs/{name}.py",
        f"runs/{args.name}/{workdir}",
    )
    line = f"python -m unclip_jax.{command} --config={file} --workdir={workdir}"
    header = HEADER.format(
        title={"embed": "Embeddings", "eval": "Evaluation"}.get(name, f"The {name}"),
        data=args.data,
        command=line,
    )
    body = pprint.pformat(config_lib.to_plain(values), sort_dicts=False, width=80)
    body = body.replace("\n", "\n    ")
    return (
        f"{header}\ndef get_config():\n"
        '    """See docs/training.md, docs/data.md, docs/evaluation.md."""\n'
        f"    values = {body}\n    return ml_collections.ConfigDict(values)\n"
    )
