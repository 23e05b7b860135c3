"""DALLE2-pytorch's layers as a prior of token grids, as MindEye puts them together.

For benchmarks.torch_step; the package must be on PYTHONPATH.
"""

from unclip_jax.errors import UsageError


def make(config, assume):
    """Returns ([module], loss), as large as a config's embedding prior of a grid.

    The sequence is MindEye2's: condition tokens, the timestep, noised tokens to which
    a learned query is added. Layers are the package's, each of as many parameters as
    ours: 12 D^2, most of what a narrower key and value saves given to the feed-forward.

    Args:
      config: of stage embedding_prior, model.width the target's.
      assume: embed_dim, target_tokens and condition_tokens, as of `plan`.

    Raises UsageError for another config, or where the package is not installed.
    """
    import torch

    from benchmarks.dalle2_worker import import_package

    try:
        package = import_package().dalle2_pytorch
    except ImportError as error:
        raise UsageError(
            f"--versus=torch: this config's peer is dalle2-pytorch ({error}): put a "
            "folder with it and what it needs on PYTHONPATH"
        ) from None
    model, rows, dim = config.model, config.batch_size, assume.get("embed_dim")
    grid = [assume.get(name, 0) for name in ("target_tokens", "condition_tokens")]
    if model["width"] != dim or 0 in grid or model.get("causal", True):
        raise UsageError(
            "--versus=torch: expected model.width and embed_dim alike, model.causal "
            "False, --assume=target_tokens and --assume=condition_tokens"
        )
    count, others = grid
    head = dim // model["num_heads"]

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.query = torch.nn.Parameter(torch.randn(count, dim))
            self.null_brain = torch.nn.Parameter(torch.randn(others, dim))
            self.null_image = torch.nn.Parameter(torch.randn(count, dim))
            self.times = torch.nn.Sequential(
                package.SinusoidalPosEmb(dim), package.MLP(dim, dim)
            )
            # q and out 2 D^2, k and v 2 D head, the gated layers 3 ff_mult D^2
            ff_mult = (12 - 2 - 2 * head / dim) / 3
            self.transformer = package.CausalTransformer(
                dim=dim,
                depth=model["depth"],
                dim_head=head,
                heads=model["num_heads"],
                ff_mult=ff_mult,
            )
            for attention, _ in self.transformer.layers:
                attention.causal = False

        def forward(self, x, t, brain):
            drop = config.stage_options.get("drop", 0.1)
            keep = torch.rand(len(x), 1, 1) >= drop
            brain = torch.where(keep, brain, self.null_brain)
            x = torch.where(keep, x, self.null_image) + self.query
            time = self.times(t.float())[:, None]
            return self.transformer(torch.cat([brain, time, x], 1))[:, -count:]

    network = Network()
    noise = package.NoiseScheduler(
        beta_schedule="cosine", timesteps=1000, loss_type="l2"
    )
    x_0, brain = torch.randn(rows, count, dim), torch.randn(rows, others, dim)

    def loss():
        t = torch.randint(0, 1000, (rows,))
        x_t = noise.q_sample(x_start=x_0, t=t)
        return noise.loss_fn(network(x_t, t, brain), x_0)

    return [network], loss
