"""CLIP image embeddings as sequences of codes: PCA, then buckets of equal mass.

Paper, section 2.2: the principal components in the order of decreasing eigenvalue,
each quantized into 1,024 buckets; 319 of 1,024 components keep the mean squared error
under 1%. Where the buckets' edges lie the paper does not say. Here they are quantiles
of the training embeddings, so that no bucket is wasted, and a bucket decodes to the
mean of what fell into it, the best single value.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from unclip_jax.errors import UsageError
from unclip_jax.shapes import Array, Codes, Embeddings, Indices, PerSample, Vector

FLAT = 1e-10  # of the largest eigenvalue: below it, a component is rounding


def fit(
    z: Float[Array, "n dim"],
    dots: Float[Array, " n"],
    num_components: int,
    num_buckets: int,
) -> dict[str, np.ndarray]:
    """The parameters of a Codebook, from training embeddings.

    Args:
      z: (n, D) image embeddings in the prior's space.
      dots: (n,) the dot products z_i . z_t.

    Returns:
      float32 arrays: mean (D,), components (D, K) with orthonormal columns, edges
      (1 + K, N - 1) rising along each row and centres (1 + K, N); row 0 is the dot
      product's. The same input gives the same output.

    Raises:
      UsageError: more components than dimensions or than vary at all, or fewer rows
        than the buckets and components need.
    """
    z, dots = np.asarray(z, np.float64), np.asarray(dots, np.float64)
    n, dim = z.shape
    check_sizes(dim, num_components, num_buckets)
    least = max(num_buckets, num_components + 1)
    if n < least:
        raise UsageError(
            f"{n} training embeddings for {num_buckets} buckets and {num_components} "
            f"components: at least {least} are needed; embed more examples, or lower "
            "config.model.num_buckets or num_components"
        )
    mean = z.mean(0)
    variances, directions = principal_components(np.cov(z.T).reshape(dim, dim))
    varying = int((variances > FLAT * variances[0]).sum())
    if varying < num_components:
        raise UsageError(
            f"the embeddings vary along {varying} directions only: "
            f"config.model.num_components {num_components} is too many; lower it to "
            f"at most {varying}"
        )
    components = directions[:, :num_components]
    edges, centres = [], []
    for values in (dots, *((z - mean) @ components).T):
        found = _buckets(values, num_buckets)
        edges.append(found[0])
        centres.append(found[1])
    arrays = {
        "mean": mean,
        "components": components,
        "edges": np.stack(edges),
        "centres": np.stack(centres),
    }
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def check_sizes(dim: int, num_components: int, num_buckets: int) -> None:
    """Raises UsageError for sizes that no codebook can have."""
    if not 1 <= num_components <= dim:
        raise UsageError(
            f"num_components {num_components}: expected 1 to {dim}, the width of the "
            "embeddings"
        )
    if num_buckets < 2:
        raise UsageError(f"num_buckets must be at least 2, got {num_buckets}")


def principal_components(covariance: Float[Array, "dim dim"]):
    """Eigenvalues (D,) of a covariance (D, D), largest first, and unit vectors (D, D).

    The vectors are columns; of the two signs, the one whose largest entry is positive.
    """
    variances, vectors = np.linalg.eigh(covariance)
    variances, vectors = variances[::-1], vectors[:, ::-1]
    largest = np.abs(vectors).argmax(0)
    signs = np.sign(vectors[largest, np.arange(len(largest))])
    return variances.clip(0), vectors * signs


def _buckets(values, count):
    """Inner edges (count - 1,) and centres (count,) of buckets of equal mass."""
    values = np.sort(values)
    edges = np.quantile(values, np.arange(1, count) / count)
    codes = np.searchsorted(edges, values, side="left")
    number = np.bincount(codes, minlength=count)
    sums = np.bincount(codes, values, minlength=count)
    # values that repeat more often than a bucket holds make edges equal, and the
    # buckets between them empty: those stand for the edge itself
    empty = np.append(edges, edges[-1])
    return edges, np.where(number > 0, sums / np.maximum(number, 1), empty)


class Codebook(nn.Module):
    """Embeddings to codes and back; its arrays are parameters no gradient reaches.

    A module so that they travel with every checkpoint and export. A stage puts there
    what `fit` found; as initialised, the codebook knows nothing.
    """

    dim: int
    num_components: int
    num_buckets: int

    def setup(self):
        """Declares the codebook's arrays; UsageError for sizes that do not fit."""
        check_sizes(self.dim, self.num_components, self.num_buckets)
        zeros, rows = nn.initializers.zeros, 1 + self.num_components
        shapes = {
            "mean": (self.dim,),
            "components": (self.dim, self.num_components),
            "edges": (rows, self.num_buckets - 1),
            "centres": (rows, self.num_buckets),
        }
        found = {name: self.param(name, zeros, shape) for name, shape in shapes.items()}
        self.arrays = jax.lax.stop_gradient(found)

    def encode(self, z: Embeddings, dots: PerSample) -> Codes:
        """z (B, D), dots (B,) -> int32 (B, 1 + K) codes, the dot product's first."""
        exact = jax.lax.Precision.HIGHEST  # a rounded component is another code
        components, mean = self.arrays["components"], self.arrays["mean"]
        values = jnp.dot(z - mean, components, precision=exact)  # (B, K)
        values = jnp.concatenate([dots[:, None], values], axis=1)  # (B, 1 + K)
        # a value on an edge belongs below it, as in `fit`
        return (values[..., None] > self.arrays["edges"]).sum(-1, dtype=jnp.int32)

    def decode(self, codes: Codes) -> Embeddings:
        """int32 (B, K) codes of the components -> z (B, D)."""
        rows = jnp.arange(1, 1 + self.num_components)
        return self.expand(self.arrays["centres"][rows, codes])

    def expand(self, values: Vector) -> Embeddings:
        """Values of the components (B, K) -> z (B, D)."""
        exact = jax.lax.Precision.HIGHEST
        components, mean = self.arrays["components"], self.arrays["mean"]
        return jnp.dot(values, components.T, precision=exact) + mean

    def dot_code(self, quantile: PerSample) -> Indices:
        """(B,) quantiles in [0, 1) -> the codes that dot products there have."""
        place = (quantile * self.num_buckets).astype(jnp.int32)
        place = place.clip(0, self.num_buckets - 1)
        value = self.arrays["centres"][0, place]
        # not `place` itself, which training never saw where edges are equal
        return (value[:, None] > self.arrays["edges"][0]).sum(-1, dtype=jnp.int32)

    def component_values(self) -> Float[Array, "components codes"]:
        """(K, N), what each code of each component stands for."""
        return self.arrays["centres"][1:]
