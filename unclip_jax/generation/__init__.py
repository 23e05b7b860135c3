"""The frozen stack that turns text or images into images."""

import typing

if typing.TYPE_CHECKING:
    from unclip_jax.generation.embedding_prior import Prior
    from unclip_jax.generation.unclip import UnCLIP

__all__ = ["Prior", "UnCLIP"]


def __getattr__(name: str) -> typing.Any:
    """Imports a class when it is first used: the options alone are cheap."""
    if name == "Prior":
        from unclip_jax.generation.embedding_prior import Prior

        return Prior
    if name == "UnCLIP":
        from unclip_jax.generation.unclip import UnCLIP

        return UnCLIP
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
