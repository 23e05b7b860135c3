"""Priors that DALLE2-pytorch trained (version 1.9 to 1.15), and MindEye's, as ours.

A file holds tensors but few settings. What the tensors do not say has the package's
defaults, or stands in a JSON file of its training config beside them: NAME.json beside
NAME.pth, or prior_config.json. MindEye's networks add the keys "causal" and
"learned_query_mode" of their constructor.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from unclip_jax import config as config_lib
from unclip_jax.diffusion.schedule import make_schedule
from unclip_jax.errors import UsageError
from unclip_jax.files import read_json
from unclip_jax.interop import components, mapping, native, weights
from unclip_jax.interop.mapping import SQUEEZE_1, Entry
from unclip_jax.models.conditions import describe

SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")
PRIOR_CONFIG = "prior_config.json"
STATE = ("ema_model", "model_state_dict", "model", "state_dict")  # of a checkpoint
ANCHOR = "net.causal_transformer.rel_pos_bias.relative_attention_bias.weight"
# conditions, named as in this project's records: the order of the LAION prior
TEXT, STATES, BRAIN = "clip_text", "text_states", "brain"
MINDEYE = "null_brain_embeds"
# Of the config, what changes nothing of a trained prior, or is in the tensors.
NO_MATTER = (
    "clip",
    "image_size",
    "image_channels",
    "loss_type",
    "cond_drop_prob",
    "text_cond_drop_prob",
    "image_cond_drop_prob",
    "condition_on_text_encodings",
    "image_embed_dim",
    "training_clamp_l2norm",
)
UNSUPPORTED = (
    "sampling_clamp_l2norm",
    "sampling_final_clamp_l2norm",
    "init_image_embed_l2norm",
)
SCHEDULES = {  # theirs -> ours
    "cosine": "cosine",
    "linear": "linear",
    "quadratic": "scaled_linear:{first}:{last}",
}


@dataclasses.dataclass(frozen=True)
class Net:
    """The keys of config["net"]; None: as the tensors say."""

    dim: int | None = None
    depth: int | None = None
    num_timesteps: int | None = None
    num_time_embeds: int | None = None
    num_image_embeds: int | None = None
    num_text_embeds: int | None = None
    max_text_len: int | None = None
    num_tokens: int | None = None
    dim_head: int | None = None
    heads: int | None = None
    ff_mult: float | None = None
    norm_in: bool | None = None
    norm_out: bool | None = None
    final_proj: bool | None = None
    normformer: bool | None = None
    rotary_emb: bool | None = None
    attn_dropout: float = 0.0
    ff_dropout: float = 0.0
    self_cond: bool = False
    causal: bool | None = None  # None: LAION's is, MindEye's is not
    learned_query_mode: str | None = None  # of MindEye's; None: pos_emb


def is_dalle2_pytorch(path: str | os.PathLike) -> bool:
    """Whether `path` names a file of tensors rather than a folder."""
    path = pathlib.Path(path)
    return path.suffix in SUFFIXES and not path.is_dir()


def load_prior(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, Any]]:
    """A prior of DALLE2-pytorch as a part of ours; nothing of the file is executed.

    Of a trainer's checkpoint the moving average is read, if there is one. The
    conditions are clip_text (D,) and text_states (L, D), CLIP's states with zeros for
    padding; of MindEye's networks brain (N, D).

    Args:
      path: a file of torch or safetensors, see the file's docstring for settings.

    Returns:
      (part config, parameters).

    Raises:
      FileNotFoundError: no such file.
      UsageError: no prior of these versions, or settings without counterpart here.
    """
    path = pathlib.Path(path)
    expected = "a prior of DALLE2-pytorch"
    tensors = weights.read_tensors(path, expected, STATE, skip_objects=True)
    anchors = [name for name in tensors if name.endswith(ANCHOR)]
    if not anchors:
        raise UsageError(
            f"{path} holds no prior of DALLE2-pytorch: no tensor is called ...{ANCHOR}"
        )
    prefix = anchors[0].removesuffix(ANCHOR)
    tensors = {
        name.removeprefix(prefix): a
        for name, a in weights.to_float32(tensors).items()
        if name.startswith((f"{prefix}net.", f"{prefix}noise_scheduler."))
    }
    net = {k[4:]: a for k, a in tensors.items() if k.startswith("net.")}
    where = f"the prior in {path}"
    given, options = _settings(path)
    fields = model_fields(net, given, where)
    betas = tensors.get("noise_scheduler.betas")
    if betas is None:
        raise UsageError(f"{where}: no noise_scheduler.betas, its noise schedule")
    diffusion = _diffusion(betas, options, where)
    params = mapping.from_torch(table(fields), net, where, ignore=_frequencies(net))
    scale = options.get("image_embed_scale") or fields["target_shape"][-1] ** 0.5
    return {"model": fields, "diffusion": diffusion, "embedding": "raw"}, _add_spaces(
        params, fields, float(scale)
    )


def read_prior(path: str | os.PathLike, dtype: str = "float32"):
    """`load_prior` as a Component, ready to sample; raises what that does."""
    config, params = load_prior(path)
    where = f"the prior in {path}"
    return components.build_component(
        "embedding_prior", config, params, {}, dtype=dtype, where=where
    )


def export(path: str | os.PathLike, folder: str | os.PathLike, dtype: str) -> str:
    """Writes a prior of DALLE2-pytorch as a native export; returns a sentence."""
    config, params = load_prior(path)
    meta = {"source": pathlib.Path(path).name}
    native.write_part(folder, "embedding_prior", config, params, meta, dtype)
    return f"exported the prior of {path} to {folder}"


def model_fields(tensors: Mapping[str, np.ndarray], net: Net, where: str):
    """The fields of models.Dalle2Prior, as the tensors' shapes and `net` say.

    Args:
      tensors: of the network, without "net.".
      net: the network's section of the config.
      where: for messages.

    Raises UsageError for another layout, or a config that contradicts the tensors.
    """
    mind_eye = MINDEYE in tensors
    if not mind_eye and "null_text_encodings" not in tensors:
        raise UsageError(
            f"{where} has no null_text_encodings: it is of a version before 1.9, which "
            "computed otherwise; only 1.9 to 1.15 are read"
        )
    if net.self_cond:
        raise UsageError(f"{where}: self_cond=True is not supported")

    def shape(name):
        if name not in tensors:
            raise UsageError(f"{where}: the tensor net.{name} is missing")
        return tensors[name].shape

    block = "causal_transformer.layers.0"
    inner, width = shape(f"{block}.0.to_q.weight")
    head_width = shape(f"{block}.0.null_kv")[1]
    ff_width = shape(f"{block}.1.5.weight")[1]
    rows = None
    if "to_time_embeds.0.weight" in tensors:
        rows, time_size = shape("to_time_embeds.0.weight")
    else:
        time_size = shape("to_time_embeds.0.1.net.2.weight")[0]
    number = r"causal_transformer\.layers\.(\d+)\."
    found = [re.match(number, name) for name in tensors]
    fields = {
        "backbone": "dalle2_pytorch",
        "depth": 1 + max(int(match[1]) for match in found if match),
        "num_heads": inner // head_width,
        "head_width": head_width,
        "ff_width": ff_width,
        "num_timesteps": rows,
        "time_tokens": time_size // width,
        "norm_in": "causal_transformer.init_norm.g" in tensors,
        "norm_out": "causal_transformer.norm.g" in tensors,
        "project_out": "causal_transformer.project_out.weight" in tensors,
        "normformer": f"{block}.1.3.g" in tensors,
        "rotary": bool(_frequencies(tensors)),
        "dropout": net.ff_dropout,
        "attention_dropout": net.attn_dropout,
        "causal": not mind_eye if net.causal is None else net.causal,
        "unit_norm": False,
        "single_pass": False,
    }
    says = {
        "dim": width,
        "depth": fields["depth"],
        "num_timesteps": rows,
        "num_time_embeds": fields["time_tokens"],
        "dim_head": head_width,
        "heads": fields["num_heads"],
        "ff_mult": ff_width / width,
        "norm_in": fields["norm_in"],
        "norm_out": fields["norm_out"],
        "final_proj": fields["project_out"],
        "normformer": fields["normformer"],
        "rotary_emb": fields["rotary"],
    }
    if mind_eye:
        count = shape(MINDEYE)[0]
        says["num_tokens"] = count
        fields |= {
            "target_shape": (count, width),
            "conditions": {BRAIN: {"kind": "sequence", "shape": [count, width]}},
            "queries": _query_mode(tensors, net, count, where),
        }
    else:
        _, length, _ = shape("null_text_encodings")
        texts = shape("null_text_embeds")[1]
        noised = tensors.get("to_image_embeds.0.weight")
        states = {"kind": "sequence", "shape": [length, width], "masked": True}
        fields |= {
            "target_shape": (width,),
            "conditions": {
                STATES: states,
                TEXT: {"kind": "vector", "shape": [width], "position": 1},
            },
            "queries": "token",
            "vector_tokens": texts,
            "noised_tokens": 1 if noised is None else noised.shape[0] // width,
        }
        says["max_text_len"], says["num_text_embeds"] = length, texts
        says["num_image_embeds"] = fields["noised_tokens"]
        if net.learned_query_mode is not None:
            raise UsageError(f"{where}: learned_query_mode is for MindEye's networks")
    for name, value in says.items():
        told = getattr(net, name)
        if told is not None and told != value:
            raise UsageError(
                f"{where}: its config says {name} {told}, its tensors {value}: is it "
                "that of another file?"
            )
    return fields


def table(fields: Mapping[str, Any]) -> list[Entry]:
    """Every tensor of a network with these fields of models.Dalle2Prior."""
    grid = len(fields["target_shape"]) == 2
    entries = [
        Entry(
            "relative_positions",
            "causal_transformer.rel_pos_bias.relative_attention_bias.weight",
        )
    ]
    if fields["queries"] != "none":
        entries.append(Entry("query", "learned_query"))
    entries.append(Entry("null_noised", "null_image_embed"))
    if grid:
        entries.append(Entry(f"condition_{BRAIN}/null", MINDEYE))
    else:
        entries += [
            Entry(f"condition_{STATES}/null", "null_text_encodings", SQUEEZE_1),
            Entry(f"condition_{TEXT}/null", "null_text_embeds", SQUEEZE_1),
        ]
        if fields["vector_tokens"] > 1:
            entries += mapping.dense(f"condition_{TEXT}/in", "to_text_embeds.0")
        if fields["noised_tokens"] > 1:
            entries += mapping.dense("noised_in", "to_image_embeds.0")
    if fields["num_timesteps"] is not None:
        entries.append(Entry("time_table/embedding", "to_time_embeds.0.weight"))
    else:
        for i, place in enumerate(("0.0", "1.0", "2"), 1):
            entries += mapping.dense(f"time_{i}", f"to_time_embeds.0.1.net.{place}")

    def norm(ours, theirs):
        return [Entry(f"{ours}/norm/scale", f"causal_transformer.{theirs}.g")]

    def dense(ours, theirs):
        return mapping.dense(ours, f"causal_transformer.{theirs}", bias=False)

    for i in range(fields["depth"]):
        ours, attn, ff = f"block_{i}", f"layers.{i}.0", f"layers.{i}.1"
        entries += [
            Entry(f"{ours}/null_kv", f"causal_transformer.{attn}.null_kv"),
            *norm(f"{ours}/norm", f"{attn}.norm"),
            *dense(f"{ours}/q", f"{attn}.to_q"),
            *dense(f"{ours}/kv", f"{attn}.to_kv"),
            *dense(f"{ours}/attn_out", f"{attn}.to_out.0"),
            *norm(f"{ours}/norm_2", f"{attn}.to_out.1"),
            *norm(f"{ours}/ff_norm", f"{ff}.0"),
            *dense(f"{ours}/ff_in", f"{ff}.1"),
            *dense(f"{ours}/ff_out", f"{ff}.5"),
        ]
        if fields["normformer"]:
            entries += norm(f"{ours}/ff_norm_2", f"{ff}.3")
    if fields["norm_in"]:
        entries += norm("norm_in", "init_norm")
    if fields["norm_out"]:
        entries += norm("norm_out", "norm")
    if fields["project_out"]:
        entries += dense("out", "project_out")
    return entries


def _frequencies(tensors) -> list[str]:
    """Names of the rotary embeddings' frequencies, which are constants."""
    return [name for name in tensors if name.endswith("rotary_emb.freqs")]


def _query_mode(tensors, net: Net, count, where) -> str:
    query = tensors.get("learned_query")
    rows = {None: ("none",), count: ("pos_emb", "token")}  # by shape
    rows[2 * count + 1] = ("all_pos_emb",)
    modes = rows.get(None if query is None else len(query))
    if modes is None:
        raise UsageError(f"{where}: learned_query has shape {query.shape}")
    mode = net.learned_query_mode or modes[0]
    if mode not in modes:
        raise UsageError(
            f"{where}: its config says learned_query_mode {mode!r}, its tensors "
            f"{' or '.join(map(repr, modes))}"
        )
    return mode


def _settings(path: pathlib.Path) -> tuple[Net, dict[str, Any]]:
    """(the network's settings, the others) of the config beside a file, if any."""
    for file in (path.with_suffix(".json"), path.with_name(PRIOR_CONFIG)):
        if file.is_file():
            break
    else:
        return Net(), {}
    config = read_json(file, "")
    options = dict(config.get("prior", config))
    net = config_lib.build(Net, options.pop("net", {}), f"{file}: net")
    for name in UNSUPPORTED:
        if options.pop(name, False):
            raise UsageError(f"{file}: {name}=True has no counterpart here")
    names = ("predict_x_start", "predict_v", "image_embed_scale", "sample_timesteps")
    names += ("timesteps", "beta_schedule")
    config_lib.check_keys(options, (*NO_MATTER, *names), str(file))
    return net, options


def _diffusion(betas, options, where) -> dict[str, Any]:
    """config["diffusion"] of a part."""
    steps = len(betas)
    ends = {"first": 0.1 / steps, "last": min(20 / steps, 0.999)}
    names = {theirs: ours.format(**ends) for theirs, ours in SCHEDULES.items()}
    same = [
        theirs
        for theirs, name in names.items()
        if np.allclose(make_schedule(name, steps).betas, betas, rtol=1e-4, atol=1e-7)
    ]
    if not same:
        raise UsageError(
            f"{where}: its betas are none of the schedules {', '.join(SCHEDULES)}"
        )
    for key, value in (("timesteps", steps), ("beta_schedule", same[0])):
        if options.get(key, value) != value:
            raise UsageError(
                f"{where}: its config says {key} {options[key]!r}, its tensors "
                f"{value!r}: is it that of another file?"
            )
    x_start = options.get("predict_x_start", True)
    prediction = "x0" if x_start else "epsilon"
    if options.get("predict_v"):
        prediction = "v"
    return {
        "schedule": names[same[0]],
        "num_steps": steps,
        "shift": None,
        "prediction": prediction,
        "clip": None if x_start else 1.0,
        "sampler": "ddpm",
        "sampling_steps": options.get("sample_timesteps"),
        "variance": None,
        "guidance": None,
    }


def _add_spaces(params, fields, scale: float) -> dict[str, Any]:
    """The parameters with the constants that ours have: targets times `scale`."""
    shape = fields["target_shape"]
    params = dict(params)
    params["space"] = {
        "mean": np.zeros(shape, np.float32),
        "std": np.full(shape, 1 / scale, np.float32),
    }
    for name, condition in describe(fields["conditions"]).items():
        width = condition.shape[-1]
        space = {"mean": np.zeros(width, "f4"), "std": np.ones(width, "f4")}
        params[f"condition_{name}"] = {**params[f"condition_{name}"], "space": space}
    return params
