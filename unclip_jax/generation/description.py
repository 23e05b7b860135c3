"""What a stack is made of, in words: the lines that `print(model)` shows."""

import contextlib
from typing import Any

import jax
import numpy as np

from unclip_jax.errors import UsageError
from unclip_jax.generation.loading import Stack
from unclip_jax.generation.resolve import resolve_all
from unclip_jax.interop import native


def describe(stack: Stack) -> list[str]:
    """A line per component: its sizes, and how it draws unless it is told."""
    lines = []
    for kind, component in sorted(stack.parts.items(), key=_order):
        count = sum(np.size(leaf) for leaf in jax.tree.leaves(component.params))
        about = [f"{count:,} parameters", *_sizes(component.module)]
        if component.clip_fingerprint:
            about.append(f"CLIP {component.clip_fingerprint[:12]}")
        with contextlib.suppress(UsageError, FileNotFoundError):
            for name, value in resolve_all(stack, [kind], {}).get(kind, {}).items():
                about.append(f"{name} {value}")
        lines.append(f"  {kind}: {', '.join(about)}")
    return lines


def _order(item: tuple[str, Any]) -> tuple[int, str]:
    """Components in the order in which they draw."""
    return native.KINDS.index(native.kind_of(item[0])), item[0]


def _sizes(module) -> list[str]:
    """What a module takes and gives, where it says so."""
    names = {
        "image_size": "{0}x{0} pixels",
        "embed_dim": "embeddings of {}",
        "context_length": "captions of {} tokens",
    }
    return [
        text.format(getattr(module, name))
        for name, text in names.items()
        if getattr(module, name, None)
    ]
