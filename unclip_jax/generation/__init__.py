"""The frozen stack that turns text or images into images."""

from unclip_jax.generation.unclip import UnCLIP

__all__ = ["UnCLIP"]
