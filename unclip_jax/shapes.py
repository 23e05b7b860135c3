"""Shapes and types of arrays in signatures: what each name of an axis or array means.

The tests check them at every call (jaxtyping and beartype): within one call an axis of
one name has one length. "batch" leads; "*size" is any number of axes, such as height
and width or none; "_" is an axis that is the same as no other; "#batch" is batch or 1.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, Num, UInt8

if TYPE_CHECKING:
    from typing import Any as Array  # of either library: only calls know which
else:
    Array = jax.Array | np.ndarray  # traced or not; the host's tables and batches

# --- of anything
Floats = Float[Array, "*size"]
Bytes = UInt8[Array, "*size"]
Rows = Float[Array, "batch *size"]
Vector = Float[Array, "batch _"]  # for each row, of any width
Indices = Int[Array, " batch"]  # for each row

# --- diffusion
Samples = Float[Array, "batch *size channels"]  # x_0, x_t or noise: images, embeddings
Output = Float[Array, "batch *size _"]  # of a model: as many channels, or twice that
PerSample = Float[Array, " batch"]
Timesteps = Int[Array, " batch"]
Times = Num[Array, " batch"]  # of models that take any number
# the timesteps that a sampler goes through
Path = Int[Array, " num_steps"] | Sequence[int]
HostPath = Int[np.ndarray, " num_steps"]
Table = Float[np.ndarray, " T"]  # a number for each of the T timesteps, float64
StepTable = Float[np.ndarray, " num_steps"]  # a number for each step of a path

# --- what models are conditioned on
Tokens = Int[Array, "batch length"]
Drop = Bool[Array, " batch"]  # rows that see no condition
Embeddings = Float[Array, "batch dim"]  # CLIP's
TextStates = Float[Array, "batch length text_width"]  # CLIP's, of each token

# --- inside of models
Images = Float[Array, "batch height width channels"]  # also latents
OutputImages = Float[Array, "batch height width _"]
Resized = Float[Array, "batch _ _ channels"]  # images of another size
Maps = Float[Array, "batch _ _ _"]  # feature maps of any size
States = Float[Array, "batch length width"]
Heads = Float[Array, "batch heads length head_width"]
Bias = Float[Array, "#batch #heads #length _"]  # of attention's logits
Context = Float[Array, "batch context context_width"]  # of cross-attention
ContextMask = Bool[Array, "batch context"]
Codes = Int[Array, "batch _"]  # of the autoregressive prior
Logits = Float[Array, "batch components codes"]  # of its codes
