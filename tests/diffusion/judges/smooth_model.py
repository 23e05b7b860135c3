"""The model that guided-diffusion's code and ours both sample from."""


def output(x, t, lib, learned: bool):
    """0.8 tanh(x) + 0.2 sin(t / 100 + x), and as the learned variance sin(t / 50 - x).

    Args:
      x: (B, C) of `lib`, jax.numpy or torch.
      t: (B,) timesteps.
      learned: whether the variance is there, as channels C to 2C.
    """
    t = t[:, None]
    mean = 0.8 * lib.tanh(x) + 0.2 * lib.sin(t / 100 + x)
    return lib.concatenate([mean, lib.sin(t / 50 - x)], -1) if learned else mean
