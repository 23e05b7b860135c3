"""The command line of `unclip_jax.sample`: modes, their flags, and their figures."""
