"""Weights of FID's InceptionV3: found, checked, converted once, cached.

The public file is a PyTorch pickle.  It is read once, with `weights_only` (nothing in
it is executed), and kept as safetensors beside the other downloads of this package;
from then on torch is not needed.
"""

import dataclasses
import hashlib
import os
import pathlib
import shutil
import urllib.request
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from unclip_jax.errors import UsageError
from unclip_jax.files import atomic_path, sha256_file
from unclip_jax.interop import mapping
from unclip_jax.interop.native import flatten, leaves, unflatten
from unclip_jax.interop.tensor_checks import check_tensors
from unclip_jax.interop.weights import read_tensors, to_float32
from unclip_jax.models.inception import SMALLEST, InceptionV3

FILE = "pt_inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE}"
SHA256 = "6726825d"  # what the hash of the public file begins with
RANDOM = "random"  # the name that asks for weights that mean nothing
NOT_COMPARABLE = "NOT COMPARABLE: random weights"


@dataclasses.dataclass(frozen=True)
class Inception:
    """A network's variables and where they are from.

    Attributes:
      variables: {"params", "batch_stats"} of models.inception.InceptionV3.
      fingerprint: hex sha256 over the names and bytes of the tensors.
      label: for results; it begins with NOT COMPARABLE for random weights.
    """

    variables: Mapping[str, Any]
    fingerprint: str
    label: str


def load_inception(
    weights: str = "",
    cache: str | os.PathLike = "",
    url: str = URL,
    sha256: str = SHA256,
) -> Inception:
    """The network's weights, from a file, the cache, or the network.

    Args:
      weights: a .pth or .safetensors file; "" is the cache, filled from `url` when
        empty; "random" draws weights (same each time) and says so in every result.
      cache: folder for the converted file; "" is $XDG_CACHE_HOME/unclip_jax, or
        ~/.cache/unclip_jax.
      url: where the public file is.
      sha256: what the hash of the downloaded file must begin with.

    Raises:
      FileNotFoundError: no such file, or none in the cache and no way to download.
      UsageError: a broken, foreign or different file.
    """
    if weights == RANDOM:
        variables = random_variables()
        return Inception(variables, fingerprint(variables), NOT_COMPARABLE)
    cache = pathlib.Path(cache or default_cache())
    path = pathlib.Path(weights)
    if not weights:
        path = cache / f"{FILE.removesuffix('.pth')}.safetensors"
        if not path.is_file():
            if not (cache / FILE).is_file():
                _download(url, sha256, cache / FILE)
            convert(cache / FILE, path)
    expected = f"{FILE} (sha256 begins with {sha256}) from {url}"
    variables = from_torch(read_tensors(path, expected), str(path))
    found = fingerprint(variables)
    return Inception(variables, found, f"{path.name} ({found[:12]})")


def default_cache() -> pathlib.Path:
    """Folder of this package's downloads."""
    root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(root) / "unclip_jax"


def fingerprint(variables) -> str:
    """Hex sha256 over the paths, shapes and bytes of all tensors."""
    digest = hashlib.sha256()
    for name, array in sorted(flatten(variables).items()):
        digest.update(f"{name} {array.shape} {array.dtype.str}\0".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def random_variables(seed: int = 0):
    """Variables that keep activations near unit size, drawn with numpy from a seed."""
    shapes = variable_shapes()
    random = np.random.default_rng(seed)
    flat = {}
    for name, leaf in sorted(leaves(shapes)):
        if name.endswith("kernel"):
            fan_in = np.prod(leaf.shape[:-1])
            flat[name] = random.normal(0, np.sqrt(2 / fan_in), leaf.shape)
        else:
            flat[name] = np.full(leaf.shape, name.endswith(("scale", "var")))
    return unflatten({k: v.astype(np.float32) for k, v in flat.items()})


def variable_shapes():
    """The variables' tree with shapes and dtypes instead of arrays."""
    x = jax.ShapeDtypeStruct((1, SMALLEST, SMALLEST, 3), jnp.float32)
    return jax.eval_shape(InceptionV3().init, jax.random.key(0), x)


def entries() -> list[mapping.Entry]:
    """Our variables' paths and PyTorch's names, from the modules' own names."""
    table = []
    for ours, _ in leaves(variable_shapes()):
        collection, *module, leaf = ours.split("/")
        if collection == "batch_stats":
            theirs = {"mean": "running_mean", "var": "running_var"}[leaf]
        else:
            theirs = {"kernel": "weight", "scale": "weight", "bias": "bias"}[leaf]
        layout = mapping.IDENTITY
        if leaf == "kernel":
            layout = mapping.DENSE if module == ["fc"] else mapping.CONV
        table.append(mapping.Entry(ours, ".".join([*module, theirs]), layout))
    return table


def from_torch(tensors: Mapping[str, np.ndarray], where: str = "weights"):
    """Our variables from pytorch-fid's state dict.

    Raises:
      UsageError: tensors missing, too many, or of another shape.
    """
    ignored = ("num_batches_tracked", "fc.bias")  # no score uses the logits' bias
    tensors = {k: v for k, v in tensors.items() if not k.endswith(ignored)}
    try:
        variables = mapping.from_torch(entries(), to_float32(tensors), where)
        check_tensors(variables, variable_shapes(), where)
    except ValueError as error:
        raise UsageError(
            f"{error}: not the InceptionV3 of FID; expected {FILE}"
        ) from None
    return variables


def convert(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """A .pth file's tensors as safetensors, under the same names; whole or absent."""
    tensors = read_tensors(source, FILE)
    from_torch(tensors, str(source))  # refuses what is not the network
    target = pathlib.Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target) as partial:
        safetensors.numpy.save_file(tensors, partial)


def _download(url, sha256, target) -> None:
    """Fetch the public file; it appears whole and right, or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target) as partial:
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:
                with open(partial, "wb") as file:
                    shutil.copyfileobj(answer, file)
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise FileNotFoundError(
                f"Inception weights {FILE} (sha256 begins with {sha256}) are not in "
                f"{str(target.parent)!r} and cannot be downloaded from {url}: "
                f"{reason}. Download them elsewhere and give their path in the option "
                "`weights`, or put them there"
            ) from None
        found = sha256_file(partial)
        if not found.startswith(sha256):
            raise UsageError(
                f"{url} has sha256 {found}, expected {sha256}...: the download is "
                "broken or another file; nothing was kept"
            )
