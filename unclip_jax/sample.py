"""Draws pictures with an export.

    python -m unclip_jax.sample --model=exports/icons --out=heart.png \\
        --prompt="a red heart on a white background"
    python -m unclip_jax.sample --model=exports/icons --out=pictures \\
        --prompts_file=prompts.txt --samples=4
    python -m unclip_jax.sample --model=exports/icons --mode=variations \\
        --image=heart.png --samples=8 --out=hearts.png
"""

from unclip_jax import config as config_lib

FLAGS = {
    "model": (config_lib.REQUIRED, "folder of an export"),
    "out": (config_lib.REQUIRED, "a .png file, or a folder"),
    "mode": ("text2image", "text2image or variations"),
    "prompt": ([], "a caption; may be repeated"),
    "prompts_file": ("", "text file with a caption per line"),
    "image": ([], "a picture to vary; may be repeated"),
    "samples": (1, "pictures per prompt or image"),
    "seed": (0, "of all randomness"),
    "prior_guidance": (4.0, "classifier-free guidance of the prior; 1 is none"),
    "decoder_guidance": (8.0, "classifier-free guidance of the decoder; 1 is none"),
    "num_candidates": (2, "embeddings drawn per prompt; the best one is decoded"),
    "prior_steps": (64, "sampling steps of the prior"),
    "decoder_steps": (50, "sampling steps of the decoder"),
    "prior_sampler": ("ddpm", "ddim, ddpm, dpmpp_2m, dpmpp_2m_sde or heun"),
    "prior": ("auto", "diffusion, autoregressive, or auto: the one that is there"),
    "temperature": (1.0, "of the autoregressive prior; 0 takes the likeliest"),
    "top_k": (0, "it draws from so many codes at most; 0: all"),
    "top_p": (1.0, "and from the fewest that hold this probability"),
    "dot_quantile": (0.5, "and its dot products from above this quantile"),
    "decoder_sampler": ("ddim", "likewise"),
    "eta": (-1.0, "noise of DDIM steps; -1: 0 for text2image, 1 for variations"),
    "batch_size": (32, "pictures drawn at a time"),
    "dtype": ("float32", "float32 or bfloat16"),
}


def main(args):
    from unclip_jax.generation.command import sample

    sample(args)


if __name__ == "__main__":
    config_lib.run(main, config=False, extra_flags=FLAGS)
