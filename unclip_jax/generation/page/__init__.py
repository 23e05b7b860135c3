"""A page in the browser to play with a model.

`layout.make_page` puts it together: each tab (`tabs`) is a form (`forms`) whose button
hands a function of the model to the one queue (`jobs`); what it draws is shown as PNG
files that say how they were drawn (`results`). `server.serve` runs it, for known hosts
only (`guard`).
"""

from unclip_jax.generation.page.layout import make_page
from unclip_jax.generation.page.server import launch, serve

__all__ = ["launch", "make_page", "serve"]
