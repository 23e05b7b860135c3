"""Where a result comes from: fingerprints and versions that go into its json."""

import hashlib
import importlib.metadata
import json
import pathlib
import platform

import jax
import numpy as np

import unclip_jax

LIBRARIES = ("jax", "jaxlib", "flax", "numpy", "pillow")
_BLOCK = 2**22


def of_json(value):
    """Hex sha256 of a JSON-able value, independent of the order of dict keys."""
    text = json.dumps(value, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def of_array(array):
    """Hex sha256 of an array's shape, dtype and bytes."""
    array = np.ascontiguousarray(array)
    digest = hashlib.sha256(f"{array.shape} {array.dtype.str}".encode())
    digest.update(array.tobytes())
    return digest.hexdigest()


def of_folder(folder):
    """Hex sha256 of all files in a folder: their relative paths and bytes.

    Raises:
      FileNotFoundError: no such folder.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no exported model in {str(folder)!r}; write one with "
            "python -m unclip_jax.export, or set config.model to where it is"
        )
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode())
        digest.update(f"{path.stat().st_size}\0".encode())
        with open(path, "rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()


def versions():
    """Versions of this package, Python and the libraries; the devices used."""
    devices = jax.devices()
    found = {"unclip_jax": getattr(unclip_jax, "__version__", "unknown")}
    found["python"] = platform.python_version()
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    found["devices"] = f"{len(devices)} x {devices[0].device_kind}"
    return found
