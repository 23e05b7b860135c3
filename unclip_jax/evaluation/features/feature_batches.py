"""Features of any number of pictures, batch after batch, one ahead of the host."""

from collections.abc import Callable, Sequence

import numpy as np

from unclip_jax.generation.batching import Programs


def run_batched(
    programs: Programs,
    images: np.ndarray,
    run: Callable,
    widths: Sequence[int],
) -> list[np.ndarray]:
    """What a network makes of pictures.

    Args:
      programs: where it runs.
      images: uint8 (N, H, W, 3).
      run: batch on the devices -> tuple of arrays (B, width) on the devices.
      widths: of those.

    Returns:
      Arrays (N, width) on the host.

    Raises ValueError for other pictures.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(
            f"pictures must be uint8 (N, H, W, 3), got {images.dtype} {images.shape}"
        )
    found, pending = [[np.zeros((0, width), np.float32)] for width in widths], None

    def fetch(arrays, rows):
        for parts, array in zip(found, arrays, strict=True):
            parts.append(programs.fetch(array, rows.stop - rows.start))

    for rows in programs.chunks(len(images)):
        (batch,) = programs.place([images[rows]], len(images))
        running = run(batch)
        if pending:  # fetched while the devices work on the next batch
            fetch(*pending)
        pending = running, rows
    if pending:
        fetch(*pending)
    return [np.concatenate(parts) for parts in found]
