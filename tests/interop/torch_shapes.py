"""What a table of interop.mapping says of full-size models, without memory."""

from unclip_jax.interop.native import leaves


def torch_shapes(table, shapes):
    """The names and shapes of `mapping.to_torch`.

    Args:
      table: every tensor that they have.
      shapes: nested dict of anything with a `.shape`, blocks one by one.
    """
    flat = {name: leaf.shape for name, leaf in leaves(shapes)}
    return {e.theirs: e.layout.their_shape(flat[e.ours]) for e in table}
