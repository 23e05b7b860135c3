"""CLIP features: of the evaluated model's own towers, or of another export's."""

import dataclasses

import numpy as np

from unclip_jax.errors import UsageError
from unclip_jax.evaluation.features import ExtractorOptions, refuse_layers
from unclip_jax.generation import UnCLIP
from unclip_jax.generation.loading import hash_model


class ClipExtractor:
    """CLIP features by the towers of an UnCLIP (which works in batches itself)."""

    default = ""

    def __init__(self, model, fingerprint):
        self.model = model
        self.about = {"network": "clip", "weights_sha256": fingerprint}
        self.label = f"CLIP {fingerprint[:12]}"

    def image(self, images):
        """float32 (N, D) of uint8 (N, H, W, 3), scaled to CLIP's size if need be."""
        images = self.model.fit_for_clip(images)
        return {"": np.asarray(self.model.encode_image(images, progress=False))}

    def text(self, captions):
        """float32 (N, D) of N strings."""
        return np.asarray(self.model.encode_text(captions, progress=False))


@dataclasses.dataclass(frozen=True)
class Clip(ExtractorOptions):
    """The CLIP of `model`, the folder of an export."""

    model: str = ""
    batch_size: int = 32

    def load(self, layers):
        refuse_layers(layers, "a CLIP")
        if not self.model:
            raise UsageError(
                "an extractor 'clip' needs `model`, the folder of an export"
            )
        loaded = UnCLIP.load(self.model, parts=("clip",), batch_size=self.batch_size)
        return ClipExtractor(loaded, hash_model(self.model))
