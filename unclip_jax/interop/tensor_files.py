"""Files of named tensors: safetensors, and PyTorch's pickles read without executing."""

import os
import pathlib
import pickle
import tempfile
import zipfile

import numpy as np
import safetensors
import safetensors.numpy


def read_tensors(path: str | os.PathLike, expected: str) -> dict[str, np.ndarray]:
    """Tensors of a .safetensors or .pth file, by name.

    Args:
      path: the file; anything but .safetensors is read by torch, which must then be
        installed, with `weights_only`: nothing in it is executed.
      expected: what the file should be, for messages.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a broken file, or one with other things than tensors in it.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{str(path)!r} does not exist; expected {expected}")
    if path.suffix == ".safetensors":
        try:
            return safetensors.numpy.load_file(path)
        except safetensors.SafetensorError as error:
            raise ValueError(
                f"{str(path)!r} is not whole ({error}): remove it"
            ) from None
    try:
        import torch
    except ImportError:
        raise ValueError(
            f"reading {str(path)!r} once needs PyTorch (its CPU build will do): "
            "pip install torch"
        ) from None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {name: tensor.numpy() for name, tensor in state.items()}
    except (RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile, EOFError) as e:
        raise ValueError(
            f"{str(path)!r} is not a PyTorch file of plain tensors "
            f"({str(e).splitlines()[0]}); expected {expected}"
        ) from None
    except AttributeError:
        raise ValueError(f"{str(path)!r} holds no dict of tensors") from None


class scratch_file:
    """A temporary file beside `target`, renamed to it unless an error came."""

    def __init__(self, target: pathlib.Path):
        self.target = target
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        os.close(handle)
        self.partial = pathlib.Path(name)

    def __enter__(self) -> pathlib.Path:
        return self.partial

    def __exit__(self, kind, value, traceback):
        if kind is None:
            os.replace(self.partial, self.target)
        self.partial.unlink(missing_ok=True)
