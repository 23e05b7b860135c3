"""Metrics and extractors are found by the names of their files."""

import importlib
import pkgutil
from typing import Any


def find_subclasses(package: str, base: type) -> dict[str, Any]:
    """{file name: its subclass of `base`} of a package's files that have one.

    Args:
      package: its full name; all its files are imported.
      base: the class.
    """
    classes = {}
    for entry in pkgutil.iter_modules(importlib.import_module(package).__path__):
        module = importlib.import_module(f"{package}.{entry.name}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, base):
                if value.__module__ == module.__name__:
                    classes[entry.name] = value
    return classes
