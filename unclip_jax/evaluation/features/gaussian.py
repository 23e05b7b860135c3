"""Files of Gaussian statistics, as FID programs exchange them.

An npz with `mu` (D,) and `sigma` (D, D), float64: what pytorch-fid reads and writes and
what OpenAI published besides the images (`arr_0`, uint8 NHWC).  Ours holds `about`
besides, a JSON text that says what the numbers depend on; other programs ignore it.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from unclip_jax import files
from unclip_jax.errors import UsageError


@dataclasses.dataclass(frozen=True)
class GaussianStatistics:
    """Mean and covariance of the features of some images.

    Attributes:
      mean: float64 (D,).
      covariance: float64 (D, D), ddof 1.
      about: what they depend on: "n", "convention", "layer", "weights_sha256", ...;
        {} when the file does not say.
    """

    mean: np.ndarray
    covariance: np.ndarray
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def fingerprint(self):
        """Hex sha256 of the numbers."""
        return files.sha256_json(
            [files.sha256_array(self.mean), files.sha256_array(self.covariance)]
        )


def write(path, statistics):
    """Write statistics so that the file is whole or absent; makes the folder."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {
        "mu": np.asarray(statistics.mean, np.float64),
        "sigma": np.asarray(statistics.covariance, np.float64),
        "about": json.dumps(dict(statistics.about), sort_keys=True),
    }
    files.atomic_write(path, lambda file: np.savez_compressed(file, **arrays))


def read(path):
    """GaussianStatistics of a file; of pytorch-fid's and OpenAI's too.

    Raises:
      FileNotFoundError: no such file.
      UsageError: not an npz with mu and sigma, or numbers that cannot be right.
    """
    arrays = read_npz(path, ("mu", "sigma", "about"))
    if "mu" not in arrays or "sigma" not in arrays:
        raise UsageError(f"{str(path)!r} holds no `mu` and `sigma`")
    mean = np.asarray(arrays["mu"], np.float64)
    covariance = np.asarray(arrays["sigma"], np.float64)
    if mean.ndim != 1 or covariance.shape != (mean.size, mean.size):
        raise UsageError(
            f"{str(path)!r}: mu {mean.shape} and sigma {covariance.shape} should be "
            "(D,) and (D, D)"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UsageError(f"{str(path)!r} holds NaN or infinity")
    about = json.loads(str(arrays["about"])) if "about" in arrays else {}
    return GaussianStatistics(mean, covariance, about)


def read_npz(path, names):
    """{name: array} of those of `names` that an npz file has.

    Raises:
      FileNotFoundError: no such file.
      UsageError: it is not an npz, or broken.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise UsageError("a single array")
            return {name: file[name] for name in names if name in file.files}
    except FileNotFoundError:
        raise FileNotFoundError(f"{str(path)!r} does not exist") from None
    except files.NUMPY_DAMAGE as error:
        raise UsageError(f"{str(path)!r} is not a readable npz: {error}") from None


def check_fits(statistics, about, where):
    """Refuse statistics that were made otherwise than `about` says.

    Args:
      statistics: GaussianStatistics.
      about: what the generated images' features depend on.
      where: the file, for the message.

    Returns:
      A list of warnings: what the file does not say.

    Raises:
      UsageError: the file says something else.
    """
    said = statistics.about
    for key, want in about.items():
        if key in said and said[key] != want:
            raise UsageError(
                f"{where} was made with {key} = {said[key]!r}, but here it is "
                f"{want!r}: the distance would mean nothing; make the reference again "
                "with --make_reference"
            )
    unknown = sorted(set(about) - set(said))
    if not unknown:
        return []
    return [f"{where} does not say its {', '.join(unknown)}: taken to be the same"]


def cached(folder, about, compute):
    """The statistics of a folder of caches that were made as `about` says.

    Args:
      folder: the caches.
      about: a JSON-able mapping of all they depend on (data fingerprint, n, crop and
        resize, convention, weights, layer); a hash of it names the file.
      compute: () -> (mean, covariance), when they are not there yet.

    Raises:
      UsageError: a file under that hash that says something else.
    """
    path = pathlib.Path(folder) / f"{files.sha256_json(about)[:16]}.npz"
    if not path.exists():
        mean, covariance = compute()
        write(path, GaussianStatistics(mean, covariance, about))
    statistics = read(path)
    if statistics.about != about:
        raise UsageError(f"{path} holds statistics of {statistics.about}: remove it")
    return statistics
