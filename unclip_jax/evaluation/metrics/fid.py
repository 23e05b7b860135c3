"""FID (Heusel et al. 2017): the Frechet distance of Inception's features."""

import dataclasses

from unclip_jax.evaluation.metrics import Quantity
from unclip_jax.evaluation.metrics.frechet import Frechet


@dataclasses.dataclass(frozen=True)
class FID(Frechet):
    """The Frechet distance of Inception features."""

    features: str = "inception"

    quantities = {
        "": Quantity(
            "how far the generated pictures as a set are from the real ones, in "
            "quality and variety together; 0 is the same. Compare only equal "
            "numbers of pictures, references and conventions",
            better="lower",
        )
    }
