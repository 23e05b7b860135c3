"""What `python -m unclip_jax.plan` does: one plan, or a search for the best."""

import dataclasses
from collections.abc import Sequence
from typing import cast

import jax

from unclip_jax.errors import UsageError
from unclip_jax.parallel import sharding
from unclip_jax.planning import plan as plan_lib
from unclip_jax.planning.plan import CompiledPlan, gib
from unclip_jax.planning.topology import make_devices
from unclip_jax.training.hardware import CHIPS
from unclip_jax.training.run_config import MeshConfig, TrainConfig, read_config

MICRO_BATCHES = (1, 2, 4, 8)  # that a search tries


def command(args) -> None:
    """What `python -m unclip_jax.plan` does; `args` as its FLAGS."""
    # what is compiled for absent chips cannot be loaded back from a cache
    jax.config.update("jax_enable_compilation_cache", False)
    assume = plan_lib.parse_assumptions(args.assume)
    config = read_config(args.config)
    if not args.search:
        found = plan_lib.plan(config, args.topology, assume, args.thorough)
        print(plan_lib.report(found))
        print((sharding.table if args.verbose else sharding.summary)(found.rows))
        return
    plans = search(config, args.topology, assume)
    if not plans:
        raise UsageError(f"nothing that was tried can run on {args.topology}")
    print(table(plans))


def search(
    config: TrainConfig, topology: str, assume=None, say=print
) -> list[CompiledPlan]:
    """Plans of several meshes, rematerialisations and micro-batches, best first.

    What fits comes before what does not; then the least arithmetic (least recomputed),
    the fewest micro-batches, the least communication. Tries fsdp in powers of two up to
    the number of devices; for each, the remat policies that the model has and up to 8
    micro-batches, in that order, until one fits: the others would come after it. What
    cannot fit, by what was compiled before, is not compiled.
    """
    devices = make_devices(topology)
    if not devices:
        raise UsageError(
            f"--search compiles, which --topology={topology} needs the device for: "
            f"expected one of {', '.join(CHIPS)}"
        )
    found = []
    count = len(devices)
    for fsdp in (2**i for i in range(count.bit_length()) if count % 2**i == 0):
        found += _search_fsdp(config, topology, assume, fsdp, say)
    return sorted(found, key=_rank)


def _search_fsdp(config, topology, assume, fsdp, say) -> list[CompiledPlan]:
    remat = config.model.get("remat")
    policies = {str: ("none", "dots", "full"), bool: (False, True)}
    found = []
    for policy in policies.get(type(remat), (None,)):
        last = None
        for accum in MICRO_BATCHES:
            label = f"fsdp {fsdp}, remat {policy}, grad_accum {accum}"
            if last is not None and not _may_fit(last, accum):
                say(f"{label}: cannot fit, by what was compiled")
                continue
            change = {} if policy is None else {"remat": policy}
            trial = dataclasses.replace(
                config,
                mesh=MeshConfig(fsdp=fsdp),
                grad_accum=accum,
                model={**config.model, **change},
            )
            try:
                last = cast(CompiledPlan, plan_lib.plan(trial, topology, assume))
            except (ValueError, jax.errors.JaxRuntimeError) as error:
                say(f"{label}: {str(error).splitlines()[0][:160]}")
                continue
            found.append(last)
            say(f"{label}: {gib(last.total_bytes)} GiB, fits: {last.fits}")
            if last.fits or last.state_bytes > last.hbm:
                return found
    return found


def _may_fit(p: CompiledPlan, grad_accum: int) -> bool:
    """Whether more micro-batches may: at best temporary memory shrinks as they do."""
    least = p.temp_bytes * p.grad_accum / grad_accum
    return p.state_bytes + p.batch_bytes + least <= p.hbm


def table(plans: Sequence[CompiledPlan]) -> str:
    """One line per plan, best first."""
    head = f"{'data':>5} {'fsdp':>5} {'accum':>5} {'remat':>6} {'GiB':>7} {'of':>5}"
    lines = [f"{head} {'TFLOP':>8}  fits"]
    for p in plans:
        lines.append(
            f"{p.mesh['data']:>5} {p.mesh['fsdp']:>5} {p.grad_accum:>5} "
            f"{p.remat!s:>6} {gib(p.total_bytes):>7} {gib(p.hbm):>5} "
            f"{p.flops / 1e12:>8.2f}  {'yes' if p.fits else 'no'}"
        )
    return "\n".join(lines)


def _rank(p: CompiledPlan):
    moved = sum(size for _, size in (p.collectives or {}).values())
    return (not p.fits, p.flops, p.grad_accum, moved, p.total_bytes)
