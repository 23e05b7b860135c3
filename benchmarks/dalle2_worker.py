"""Trains DALLE2-pytorch's prior for benchmarks.embedding_prior, which starts this.

python benchmarks/dalle2_worker.py JOB.npz
"""

import json
import pathlib
import sys
import time

import numpy as np
import torch


def import_package():
    """dalle2_pytorch, beside a torchvision whose compiled operations do not load.

    The CPU build of torch lacks what the registry's torchvision links to; of it the
    package needs the parts in Python, so missing operations are passed over.
    """
    register = torch.library.register_fake

    def lenient(op, func=None, **options):
        if str(op).startswith("torchvision::"):
            return (lambda f: f) if func is None else func
        return register(op, func, **options)

    torch.library.register_fake = lenient
    try:
        import torchvision  # noqa: F401
    finally:
        torch.library.register_fake = register
    import dalle2_pytorch

    return dalle2_pytorch


class Network(torch.nn.Module):
    """A linear layer to the target's width, and the package's prior."""

    def __init__(self, package, width: int, target: int, ff: float):
        super().__init__()
        self.project = torch.nn.Linear(width, target)
        net = package.DiffusionPriorNetwork(
            dim=target,
            depth=1,
            dim_head=64,
            heads=4,
            ff_mult=ff,
            num_timesteps=1000,
            max_text_len=1,
        )
        self.prior = package.DiffusionPrior(
            net=net,
            image_embed_dim=target,
            timesteps=1000,
            cond_drop_prob=0.1,
            condition_on_text_encodings=False,
            image_embed_scale=1.0,  # targets are standardized
        )

    def loss(self, x, y):
        """The package's loss; its forward scales `y` in place."""
        return self.prior(text_embed=self.project(x), image_embed=y.clone())

    @torch.no_grad()
    def draw(self, x):
        """One draw per row, in 32 steps, as many as ours."""
        cond = {"text_embed": self.project(x)}
        shape = len(x), self.prior.image_embed_dim
        return self.prior.p_sample_loop(shape, text_cond=cond, timesteps=32)


def main(file: str):
    """Trains with the job's batches; writes result.npz beside it."""
    package = import_package()
    with np.load(file) as arrays:
        x, y = torch.tensor(arrays["x"]), torch.tensor(arrays["y"])
        batches, rates, test = arrays["batches"], arrays["rates"], arrays["test"]
        job = json.loads(str(arrays["job"]))
    torch.manual_seed(job["seed"])
    model = Network(package, x.shape[1], y.shape[1], job["ff"])
    params = [p for p in model.parameters() if p.requires_grad]
    average = [p.detach().clone() for p in params]
    tx = torch.optim.AdamW(
        params,
        betas=(job["b1"], job["b2"]),
        eps=job["eps"],
        weight_decay=job["weight_decay"],
    )
    start = 0.0
    for i, rows in enumerate(batches):
        if i == job["warm_up"]:
            start = time.process_time()
        for group in tx.param_groups:
            group["lr"] = rates[i]
        loss = model.loss(x[rows], y[rows])
        tx.zero_grad(set_to_none=True)
        loss.backward()
        if job["grad_clip_norm"]:
            torch.nn.utils.clip_grad_norm_(params, job["grad_clip_norm"])
        tx.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, params, 1 - job["ema_decay"])
    seconds = (time.process_time() - start) / (len(batches) - job["warm_up"])
    with torch.no_grad():
        for p, own in zip(params, average, strict=True):
            p.copy_(own)
    model.eval()
    drawn = sum(model.draw(x[test]) for _ in range(job["n"])) / job["n"]
    np.savez(
        pathlib.Path(file).with_name("result.npz"),
        drawn=drawn.numpy(),
        parameters=sum(p.numel() for p in params),
        seconds=seconds,
    )


if __name__ == "__main__":
    main(sys.argv[1])
