"""Open unCLIP (DALL-E 2) in JAX: train every stage, evaluate, export, sample."""

import typing

if typing.TYPE_CHECKING:
    from unclip_jax.generation import Prior, UnCLIP

__version__ = "0.1.0"
__all__ = ["Prior", "UnCLIP"]


def __getattr__(name: str) -> typing.Any:
    """Imports a public class when it is first used: the package itself is cheap."""
    if name in __all__:
        from unclip_jax import generation

        return getattr(generation, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
