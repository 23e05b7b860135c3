"""A file of prompts, as `sample` reads it."""

from unclip_jax.generation.cli import listings


def make(folder):
    """Prompts of several scripts."""
    text = "a cat\n\n  un café \r\n猫の写真\na\u2028b\n"
    (folder / "prompts.txt").write_text(text, encoding="utf-8")


def open_it(folder):
    """The prompts."""
    file = str(folder / "prompts.txt")
    return listings.prompts({"prompt": [], "prompts_file": file})
