"""Draws images with an export.

    python -m unclip_jax.sample --model=exports/icons --out=heart.png \\
        --prompt="a red heart on a white background"
    python -m unclip_jax.sample --model=exports/icons --out=pictures \\
        --prompts_file=prompts.txt --samples=4
    python -m unclip_jax.sample --model=exports/icons --mode=variations \\
        --image=heart.png --samples=8 --out=hearts.png
    python -m unclip_jax.sample --model=exports/icons --mode=text_diff \\
        --image=heart.png --source="a red heart" --target="a blue heart" --out=x.png

Modes: text2image, variations, reconstruct and inpaint draw lists: into a folder, the
same command goes on where it was stopped. interpolate, text_diff, pca, zero_shot,
typographic, conditioning and guidance draw the paper's figures. A flag that means
nothing to a mode is refused, with those that it takes.
"""

from unclip_jax import config as config_lib

FLAGS = {
    "model": (config_lib.REQUIRED, "folder of an export"),
    "out": (config_lib.REQUIRED, "a .png or .webp file, or a folder"),
    "mode": ("text2image", "what to draw, see above"),
    "prompt": ([], "a caption; may be repeated"),
    "prompts_file": (str, "text file with a caption per line"),
    "image": ([], "a picture, or a folder of pictures; may be repeated"),
    "mask": (str, "picture, white where to paint anew"),
    "samples": (int, "pictures per prompt or image; 1, in typographic 3"),
    "seed": (0, "of all randomness"),
    "prior": (str, "diffusion, autoregressive, or auto: the one that is there"),
    "prior_guidance": (
        float,
        "classifier-free guidance of the prior; the model's own, else 4; 1 is none",
    ),
    "prior_steps": (
        str,
        "sampling steps of the prior, or a respacing: ddim25, 10,10,3,2,2; the model's "
        "own",
    ),
    "prior_sampler": (str, "ddim, ddpm, dpmpp_2m, dpmpp_2m_sde or heun; the model's"),
    "prior_variance": (str, "of ddpm's steps, as --decoder_variance"),
    "num_candidates": (int, "embeddings drawn per prompt, the best is decoded; 2"),
    "temperature": (float, "of the autoregressive prior; 1; 0 takes the likeliest"),
    "top_k": (int, "it draws from so many codes at most; 0: all"),
    "top_p": (float, "and from the fewest that hold this probability; 1"),
    "dot_quantile": (float, "and its dot products from above this quantile; 0.5"),
    "decoder_guidance": (
        float,
        "of the decoder; the model's own, else 8; with inverted noise 1",
    ),
    "decoder_steps": (
        str,
        "of the decoder; the model's own, with inverted noise 250",
    ),
    "decoder_sampler": (str, "likewise"),
    "decoder_variance": (
        str,
        "of ddpm's steps: fixed_small, fixed_large, learned_range, or analytic after "
        "unclip_jax.estimate_variance; the model's own",
    ),
    "decoder_guidance_interval": (str, "FIRST,LAST timesteps that are guided; all"),
    "decoder_guidance_rescale": (float, "0 to 1: takes guidance's contrast back; 0"),
    "dynamic_threshold": (float, "0 to 1: quantile of pixels not to clip, e.g. 0.995"),
    "upsampler_steps": (str, "sampling steps of each upsampler; the model's own"),
    "eta": (float, "noise of DDIM steps; 0, for variations 1"),
    "inverted": (bool, "variations start from the picture's own noise"),
    "corrections": (int, "of inversion: more calls of the decoder per step; 0"),
    "noise": (str, "interpolate: inverted (ends at the pictures) or shared; inverted"),
    "frames": (int, "interpolate: pictures per row; 8"),
    "source": (str, 'text_diff: what the picture shows; "a photo"'),
    "target": (str, "text_diff: what it should show"),
    "thetas": (str, "text_diff: how far to go; 0,0.1,0.2,0.3,0.4"),
    "dims": (str, "pca: numbers of components; 20,30,40,80,120,160,200,320"),
    "scales": (str, "guidance: scales; 1,2,3,4,6,8"),
    "label": ([], "zero_shot, typographic: a label; may be repeated"),
    "template": ([], 'of labels, e.g. "a photo of a {}"; may be repeated'),
    "batch_size": (32, "pictures drawn at a time"),
    "dtype": ("float32", "float32 or bfloat16"),
    "format": ("png", "of pictures in a folder: png or webp (lossless)"),
    "columns": (int, "pictures per row of a list's grid"),
    "process": (0, "number of this process, where several fill a folder"),
    "processes": (1, "how many they are; they need not know of each other"),
}


def main(args):
    """Draws what args.mode names."""
    from unclip_jax.generation.cli.command import sample

    sample(args)


if __name__ == "__main__":
    config_lib.run(main, config=False, extra_flags=FLAGS)
