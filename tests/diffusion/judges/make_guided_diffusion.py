"""Computes guided_diffusion.npz with the code of openai/guided-diffusion.

    git clone https://github.com/openai/guided-diffusion
    python tests/diffusion/judges/make_guided_diffusion.py guided-diffusion

Needs torch, on the CPU. README.md says what the numbers are.
"""

import pathlib
import sys

import numpy as np
import torch
from smooth_model import output

HERE = pathlib.Path(__file__).parent
RNG = np.random.default_rng(0)
T = np.array([0, 1, 2, 10, 100, 300, 500, 900, 998, 999])
COUNTS = [*range(1, 257), 300, 333, 500, 750, 999, 1000]
SECTIONS = ("20,10,5", "10,10,3,2,2", "3,1,2", "2,0", "7,7,7", "500,1")
LOOPS = ("250", "27", "ddim25", "20,10,5", "10,10,3,2,2")


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def main():
    sys.path.insert(0, sys.argv[1])
    from guided_diffusion import gaussian_diffusion as gd
    from guided_diffusion import respace

    def process(name, mean="EPSILON", variance="LEARNED_RANGE", spec=None):
        steps = range(1000) if spec is None else respace.space_timesteps(1000, spec)
        return respace.SpacedDiffusion(
            use_timesteps=steps,
            betas=gd.get_named_beta_schedule(name, 1000),
            model_mean_type=gd.ModelMeanType[mean],
            model_var_type=gd.ModelVarType[variance],
            loss_type=gd.LossType.RESCALED_MSE,
        )

    def model(learned):
        return lambda x, t: output(x, t, torch, learned)

    t, x = torch.from_numpy(T), normal(len(T), 3)
    x_0 = RNG.uniform(-1, 1, x.shape).astype(np.float32)
    noise, raw = normal(*x.shape), RNG.uniform(-1, 1, (len(T), 6)).astype(np.float32)
    draws, x_T = normal(250, 4, 3), normal(4, 3)
    numbers = {"t": T, "x": x, "x_0": x_0, "noise": noise, "output": raw}
    numbers |= {"draws": draws, "x_T": x_T}

    # schedules, the posterior, the model's mean and variance
    for name in ("cosine", "linear"):
        for count in (100, 250, 1000):
            numbers[f"betas/{name}/{count}"] = gd.get_named_beta_schedule(name, count)
        whole = process(name)
        for kind in ("mean_coef1", "mean_coef2", "variance", "log_variance_clipped"):
            numbers[f"posterior/{name}/{kind}"] = getattr(whole, f"posterior_{kind}")[T]
        for clip in (True, False):
            terms = whole.p_mean_variance(
                model(True), torch.from_numpy(x), t, clip_denoised=clip
            )
            for key in ("mean", "log_variance", "pred_xstart"):
                numbers[f"p_mean_variance/{name}/{clip}/{key}"] = terms[key].numpy()
        for variance in ("FIXED_SMALL", "FIXED_LARGE"):
            terms = process(name, variance=variance).p_mean_variance(
                model(False), torch.from_numpy(x), t
            )
            numbers[f"p_mean_variance/{name}/{variance}"] = terms[
                "log_variance"
            ].numpy()

    # losses and their gradients with respect to the model's output
    for mean, variance in (("EPSILON", "LEARNED_RANGE"), ("START_X", "FIXED_SMALL")):
        leaf = raw if variance == "LEARNED_RANGE" else raw[:, :3]
        leaf = torch.from_numpy(leaf).requires_grad_()
        losses = process("cosine", mean, variance).training_losses(
            lambda x, t: leaf,  # noqa: B023
            torch.from_numpy(x_0),
            t,
            noise=torch.from_numpy(noise),
        )
        for key in set(losses) - {"loss"}:
            numbers[f"losses/{mean}/{key}"] = losses[key].detach().numpy()
            gradient = torch.autograd.grad(losses[key].sum(), leaf, retain_graph=True)
            numbers[f"losses/{mean}/{key}/gradient"] = gradient[0].numpy()
    prior = process("cosine")._prior_bpd(torch.from_numpy(x_0))
    numbers["prior_bpd"] = prior.numpy()

    # respacings: rows of bits for COUNTS, strides of "ddimN" (0 where refused)
    bits = np.zeros((len(COUNTS), 1000), bool)
    for row, count in zip(bits, COUNTS, strict=True):
        row[list(respace.space_timesteps(1000, [count]))] = True
    strides = np.zeros(1001, np.int16)
    for count in range(2, 1001):
        try:
            strides[count] = sorted(respace.space_timesteps(1000, f"ddim{count}"))[1]
        except ValueError:
            pass
    numbers |= {"counts": np.array(COUNTS), "strided": np.packbits(bits, 1)}
    numbers["ddim_strides"] = strides
    for spec in SECTIONS:
        numbers[f"sections/{spec}"] = sorted(respace.space_timesteps(1000, spec))

    # loops; the i-th step draws draws[i]
    for name, specs in (("cosine", LOOPS), ("linear", ("27",))):
        for spec in specs:
            small = process(name, variance="FIXED_SMALL", spec=spec)
            learned = process(name, spec=spec)
            loops = {
                "ddim_0": (small.ddim_sample_loop, False, {"eta": 0.0}),
                "ddim_1": (small.ddim_sample_loop, False, {"eta": 1.0}),
                "fixed_small": (small.p_sample_loop, False, {}),
                "learned_range": (learned.p_sample_loop, True, {}),
            }
            for key, (loop, has_variance, options) in loops.items():
                source = iter(torch.from_numpy(draws))
                torch.randn_like = lambda _: next(source)  # noqa: B023
                final = loop(
                    model(has_variance),
                    x_T.shape,
                    noise=torch.from_numpy(x_T),
                    device="cpu",
                    **options,
                )
                if final.isfinite().all():
                    numbers[f"loop/{name}/{spec}/{key}"] = final.numpy()
                else:
                    print(f"left out, not finite: {name} {spec} {key}")
            y = torch.from_numpy(x_0[:4])
            for i in range(small.num_timesteps - 1):  # the last goes to abar = 0
                where = torch.full((4,), i)
                y = small.ddim_reverse_sample(
                    model(False), y, where, clip_denoised=False
                )["sample"]
            numbers[f"loop/{name}/{spec}/reverse"] = y.numpy()
    np.savez_compressed(HERE / "guided_diffusion.npz", **numbers)


if __name__ == "__main__":
    main()
