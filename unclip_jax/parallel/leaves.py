"""Runs a function of random keys output by output, each by a small program.

Compiling the initialization of a model as one program takes longer than compiling its
training step: each of hundreds of arrays has a random generator of its own. Many of
them differ in their key alone. Here arrays of one shape, one distribution and one
sharding share a program, and what else the function computes is never compiled.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import partial_eval

LEVEL = "xla_backend_optimization_level"


def run_by_leaf(function: Callable, shardings: Any, *args) -> Any:
    """function(*args), where each output is made on its devices.

    The values are those of `jax.jit(function, out_shardings=shardings)(*args)`.

    Args:
      function: traceable. What its outputs share, other than keys and scalars, is
        computed for each of them.
      shardings: of the outputs, a tree like what the function returns.
      args: arrays and keys.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    known = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    known |= dict(zip(closed.jaxpr.invars, jax.tree.leaves(args), strict=True))
    # without what no output needs: of a model, its forward pass
    everything = [True] * len(closed.jaxpr.outvars)
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, everything)
    made_by = {}
    for equation in jaxpr.eqns:
        if _is_small(equation) and all(_is_known(v, known) for v in equation.invars):
            inputs: list[Any] = [v for v in equation.invars if not _is_literal(v)]
            one = core.Jaxpr((), inputs, equation.outvars, [equation])
            run = core.jaxpr_as_fun(core.ClosedJaxpr(one, ()))
            found = run(*(known[v] for v in inputs))
            known |= dict(zip(equation.outvars, found, strict=True))
        else:
            made_by |= dict.fromkeys(equation.outvars, equation)
    places, tree = jax.tree.flatten(shardings)
    jax.tree.map(lambda *_: None, shapes, shardings)  # of one structure
    options = _compiler_options()
    programs: dict[Any, Callable] = {}
    leaves = []
    for out, place in zip(jaxpr.outvars, places, strict=True):
        program, inputs = _program_of(out, made_by, known)
        key = str(program), place
        if key not in programs:
            closed = core.ClosedJaxpr(program, ())
            programs[key] = jax.jit(
                core.jaxpr_as_fun(closed),
                out_shardings=[place],
                compiler_options=options,
            )
        leaves.append(programs[key](*inputs)[0])
    return jax.tree.unflatten(tree, leaves)


def _compiler_options() -> dict[str, int] | None:
    """On CPUs LLVM's first level of optimization, unless XLA_FLAGS has another.

    A program that runs once costs what it takes to compile. The first level takes half
    the time, draws as fast as the usual one, and gives the same numbers.
    """
    if jax.default_backend() != "cpu" or LEVEL in os.environ.get("XLA_FLAGS", ""):
        return None
    return {LEVEL: 1}


def _is_literal(variable) -> bool:
    return isinstance(variable, core.Literal)


def _is_known(variable, known) -> bool:
    return _is_literal(variable) or variable in known


def _is_small(equation) -> bool:
    """Whether it makes keys or scalars, of few operations."""
    return all(
        jax.dtypes.issubdtype(v.aval.dtype, jax.dtypes.prng_key) or v.aval.size == 1
        for v in equation.outvars
    )


def _program_of(out, made_by, known) -> tuple[core.Jaxpr, list]:
    """What computes `out` from known values, and those values."""
    needed, inputs, queue = {}, {}, [out]
    while queue:
        variable = queue.pop()
        if _is_literal(variable):
            continue
        if variable in known:
            inputs[variable] = known[variable]
        elif id(made_by[variable]) not in needed:
            equation = made_by[variable]
            needed[id(equation)] = equation
            queue.extend(equation.invars)
    order = {id(equation): i for i, equation in enumerate(made_by.values())}
    equations = sorted(needed.values(), key=lambda equation: order[id(equation)])
    program = core.Jaxpr((), list(inputs), [out], equations)
    # within a loop over layers, too, only what makes this output is left
    program, used = partial_eval.dce_jaxpr(program, [True])
    values = zip(inputs.values(), used, strict=True)
    return program, [value for value, is_used in values if is_used]
