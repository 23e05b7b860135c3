"""Makes tests/data/dalle2_pytorch: priors of that package and what they compute.

    PYTHONPATH=FOLDER python tests/data/make_dalle2_pytorch.py

FOLDER holds dalle2-pytorch 1.15.6 and what it needs (pip install --target FOLDER),
apart from the project's environment. NAME.pth is a prior of random weights, NAME.npz
inputs and outputs of its network, of guidance, and of all DDPM steps with their noise.
"""

import pathlib

import numpy as np
import torch
from dalle2_pytorch import DiffusionPrior, DiffusionPriorNetwork, DiffusionPriorTrainer
from dalle2_pytorch import dalle2_pytorch as package

OUT = pathlib.Path(__file__).parent / "dalle2_pytorch"
ROWS, WIDTH, LENGTH, GRID = 4, 16, 6, 5


class GridNetwork(torch.nn.Module):
    """MindEye's network, of the package's layers: all see all, tokens are predicted."""

    self_cond = False

    def __init__(self, mode):
        super().__init__()
        self.dim, self.mode = WIDTH, mode
        rows = {"pos_emb": GRID, "token": GRID, "all_pos_emb": 2 * GRID + 1}[mode]
        self.learned_query = torch.nn.Parameter(torch.randn(rows, WIDTH))
        self.null_brain_embeds = torch.nn.Parameter(torch.randn(GRID, WIDTH))
        self.null_image_embed = torch.nn.Parameter(torch.randn(GRID, WIDTH))
        mlp = package.MLP(WIDTH, WIDTH)
        sinusoids = package.SinusoidalPosEmb(WIDTH)
        self.to_time_embeds = torch.nn.Sequential(torch.nn.Sequential(sinusoids, mlp))
        self.causal_transformer = package.CausalTransformer(
            dim=WIDTH, depth=2, dim_head=40, heads=2
        )
        for attention, _ in self.causal_transformer.layers:
            attention.causal = False

    def forward_with_cond_scale(self, x, t, *, text_embed, self_cond=None, cond_scale):
        cond = self(x, t, text_embed)
        if cond_scale == 1:
            return cond
        nulls = self.null_image_embed, self.null_brain_embeds
        x, brain = (null.expand(len(x), -1, -1) for null in nulls)
        null = self(x, t, brain)
        return null + (cond - null) * cond_scale

    def forward(self, x, t, brain):
        query = self.learned_query.expand(len(x), -1, -1)
        time = self.to_time_embeds(t.float())[:, None]
        if self.mode == "pos_emb":
            x = x + query
        tokens = torch.cat([brain, time, x], dim=1)
        if self.mode == "token":
            tokens = torch.cat([tokens, query], dim=1)
        if self.mode == "all_pos_emb":
            tokens = tokens + query
        return self.causal_transformer(tokens)[:, -GRID:]


def save(name, prior, cond, shape, checkpoint=None):
    """Writes NAME.pth and NAME.npz."""
    prior.eval()
    steps = prior.noise_scheduler.num_timesteps
    x = torch.randn(ROWS, *shape)
    t = torch.randint(0, steps, (ROWS,))
    noise = [torch.randn(ROWS, *shape) for _ in range(steps + 1)]
    arrays = {"x": x, "t": t, "noise": torch.stack(noise), **cond}
    left = list(noise)
    with torch.no_grad():
        for scale in (1.0, 3.0):
            arrays[f"output_{scale:g}"] = prior.net.forward_with_cond_scale(
                x, t, cond_scale=scale, **cond
            )
        randn, randn_like = torch.randn, torch.randn_like
        torch.randn = torch.randn_like = lambda *_, **__: left.pop(0)
        arrays["sampled"] = prior.p_sample_loop((ROWS, *shape), cond, cond_scale=2.0)
        torch.randn, torch.randn_like = randn, randn_like
    assert not left
    np.savez_compressed(
        OUT / f"{name}.npz", **{k: a.numpy() for k, a in arrays.items()}
    )
    torch.save(prior.state_dict(), OUT / f"{name}.pth")
    if checkpoint is not None:
        checkpoint.save(str(OUT / f"{name}.pth"))


def main():
    """Four priors: a trainer's checkpoint, every other option, and grids of tokens."""
    torch.manual_seed(0)
    OUT.mkdir(exist_ok=True)
    states = torch.randn(ROWS, LENGTH, WIDTH)
    states[1, 3:] = 0  # padding
    cond = {"text_embed": torch.randn(ROWS, WIDTH), "text_encodings": states}
    shared = {"dim": WIDTH, "dim_head": 8, "heads": 3, "max_text_len": LENGTH}
    net = DiffusionPriorNetwork(
        **shared, depth=2, num_timesteps=12, normformer=True, ff_mult=2
    )
    prior = DiffusionPrior(net, image_embed_dim=WIDTH, timesteps=12, cond_drop_prob=0.1)
    trainer = DiffusionPriorTrainer(prior, use_ema=True, lr=1e-3, wd=1e-2)
    save("trainer", prior, cond, (WIDTH,), trainer)
    net = DiffusionPriorNetwork(
        **shared,
        depth=1,
        num_time_embeds=2,
        num_image_embeds=2,
        num_text_embeds=3,
        norm_in=True,
        norm_out=False,
        final_proj=False,
        rotary_emb=False,
    )
    prior = DiffusionPrior(
        net,
        image_embed_dim=WIDTH,
        timesteps=40,
        cond_drop_prob=0.1,
        beta_schedule="quadratic",
        predict_v=True,
        image_embed_scale=3.0,
    )
    save("options", prior, cond, (WIDTH,))
    cond = {"text_embed": torch.randn(ROWS, GRID, WIDTH)}
    for mode in ("pos_emb", "token", "all_pos_emb"):
        net = GridNetwork(mode)
        options = {"image_embed_dim": WIDTH, "timesteps": 12, "cond_drop_prob": 0.1}
        prior = DiffusionPrior(net, **options, condition_on_text_encodings=False)
        save(mode, prior, cond, (GRID, WIDTH))


if __name__ == "__main__":
    main()
