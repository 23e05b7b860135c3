"""Arithmetic of a traced function: multiply-adds of matrix products and convolutions.

One multiply-add counts as two operations. Loops count as often as they run (the
compiler's own cost analysis counts a loop's body once), and what rematerialisation
computes again counts again: utilisation from it is of the hardware (HFU); of the model
(MFU) it is when the function is traced without rematerialisation.
"""

import math
from collections.abc import Callable

import jax


def count_flops(function: Callable, *args) -> int:
    """Operations of function(*args); args may be ShapeDtypeStructs."""
    return _of_jaxpr(jax.make_jaxpr(function)(*args).jaxpr)


def model_flops(stage, batch_size: int, params) -> int:
    """Operations that the model itself takes for one training step, on all devices.

    3 F, where F is the loss of the global batch, forward: the sum over its

        matrix products   2 M N K        (attention's included)
        convolutions      2 (outputs) (kernel taps) (input channels per group)

    and 3, because the backward pass multiplies twice for each product: for the gradient
    of its input, and of its weights. As in PaLM (Chowdhery et al. 2022, appendix B),
    what rematerialisation computes again, elementwise work and the optimizer do not
    count.

    Args:
      stage: of training (see stages/).
      batch_size: global.
      params: of the stage; may be ShapeDtypeStructs.
    """
    batch = {
        name: jax.ShapeDtypeStruct((batch_size, *shape), dtype)
        for name, (shape, dtype) in stage.batch_spec.items()
    }
    rng = jax.eval_shape(lambda: jax.random.key(0))
    return 3 * count_flops(stage.loss, params, rng, batch)


def _of_jaxpr(jaxpr) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return _of_dot(equation)
    if name == "conv_general_dilated":
        return _of_convolution(equation)
    if name == "cond":  # the dearest branch
        return max(_of_jaxpr(branch.jaxpr) for branch in params["branches"])
    if name == "while":  # runs an unknown number of times; counted once
        return _of_jaxpr(params["body_jaxpr"].jaxpr)
    times = params["length"] if name == "scan" else 1
    inner = (getattr(value, "jaxpr", value) for value in params.values())
    return times * sum(_of_jaxpr(j) for j in inner if hasattr(j, "eqns"))


def _of_dot(equation) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    depth = math.prod(left[axis] for axis in contracted)
    return 2 * depth * equation.outvars[0].aval.size


def _of_convolution(equation) -> int:
    """Output elements times the kernel taps and input channels that each one sees.

    A dilated input (the gradient of a strided convolution) is zero in between, and the
    zeros are not counted.
    """
    params = equation.params
    numbers = params["dimension_numbers"]
    kernel = equation.invars[1].aval.shape
    out_features = kernel[numbers.rhs_spec[0]]
    taps = math.prod(kernel) // out_features  # with the group's input channels
    dilation = math.prod(params["lhs_dilation"])
    size = equation.outvars[0].aval.size // params["batch_group_count"]
    return 2 * taps * size // dilation
