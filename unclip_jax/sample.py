"""Generates or edits images with an exported model.

    python -m unclip_jax.sample --model=exports/icons --out=heart.png \\
        --prompt="a red heart on a white background"
    python -m unclip_jax.sample --model=exports/icons --out=samples \\
        --prompts_file=prompts.txt --samples=4
    python -m unclip_jax.sample --model=exports/icons --mode=variations \\
        --image=heart.png --samples=8 --out=hearts.png
    python -m unclip_jax.sample --model=exports/icons --mode=text_diff \\
        --image=heart.png --source="a red heart" --target="a blue heart" --out=x.png

Modes that draw a list of images (into a folder, the same command continues where it
was stopped):
  text2image    samples for prompts
  variations    same CLIP embedding as an image, new noise
  reconstruct   an image inverted to its latents and decoded again
  inpaint       an image drawn anew where a mask is white
  img2img       an image drawn over, from noise of a strength that is added to it
  emb2emb       an image's embedding changed by the prior, and decoded
Modes that draw one figure of the paper:
  interpolate   from one image to another
  text_diff     an image changed as a caption changes
  pca           the first principal components of an image's embedding, decoded
  conditioning  the decoder given the caption, the text embedding, the prior's embedding
  guidance      one prompt at rising decoder guidance
  zero_shot     CLIP's probabilities of labels for each image
  typographic   the same beside variations, for images with misleading text in them

A flag that the mode does not use is refused. "The export's" default is what the
training config recommended (docs/sampling.md), and is printed before drawing starts.
"""

from unclip_jax import command_line
from unclip_jax.generation import options

FLAGS = {
    "model": (
        command_line.REQUIRED,
        "folder of an export, or of a diffusers unCLIP; Kandinsky's two, with a comma",
    ),
    "lora": (str, "adapters in diffusers' names, a file or folder, that are merged"),
    "out": (command_line.REQUIRED, "a .png or .webp file, or a folder"),
    "overwrite": (False, "replace a file or figure that is there already"),
    "mode": ("text2image", "what to draw: one of the modes above"),
    "prompt": ([], "a caption; may be repeated"),
    "prompts_file": (str, "text file with one caption per line"),
    "image": ([], "an image file, or a folder of images; may be repeated"),
    "hint": (
        [],
        "what a decoder with a hint draws after, such as a depth map: an image file "
        "or a folder, one for all or one per prompt or image; may be repeated",
    ),
    "mask": (str, "inpaint: an image that is white where to draw anew"),
    "strength": (
        float,
        "img2img, emb2emb: the share of the steps that is taken, in (0, 1] (default "
        "0.3)",
    ),
    "samples": (int, "images per prompt or input image (default 1; typographic 3)"),
    "seed": (0, "seed of all randomness"),
    **options.flags(options.PriorOptions),
    **options.flags(options.DecoderOptions),
    **options.flags(options.UpsamplerOptions),
    "inverted": (bool, "variations: start from the image's own inverted noise"),
    "corrections": (
        int,
        "corrections per step of DDIM inversion, each one more call of the decoder "
        "(default 0)",
    ),
    "noise": (
        str,
        "interpolate: inverted, which reproduces the two images at the ends, or shared "
        "(default inverted)",
    ),
    "frames": (int, "interpolate: images per row (default 8)"),
    "source": (str, 'text_diff: a caption of the image (default "a photo")'),
    "target": (str, "text_diff: the caption to move to"),
    "thetas": (
        str,
        "text_diff: how far to go, as fractions of the spherical interpolation "
        "(default 0,0.1,0.2,0.3,0.4)",
    ),
    "dims": (
        str,
        "pca: numbers of components (default 20,30,40,80,120,160,200,320)",
    ),
    "scales": (str, "guidance: guidance scales (default 1,2,3,4,6,8)"),
    "label": ([], "zero_shot, typographic: a label; may be repeated"),
    "template": (
        [],
        'zero_shot, typographic: e.g. "a photo of a {}"; may be repeated',
    ),
    "batch_size": (32, "images drawn at a time"),
    "dtype": ("float32", "of the computation: float32 or bfloat16"),
    "format": ("png", "of images in a folder: png or webp (lossless)"),
    "columns": (int, "columns of the grid (lists only)"),
    "scale": (1, "enlarges each image by this whole factor, without smoothing"),
    "process": (0, "number of this process, from 0, where several fill one folder"),
    "processes": (1, "how many processes fill the folder; they need not communicate"),
}

GROUPS = {
    "The prior": [*options.flags(options.PriorOptions)],
    "The decoder and the upsamplers": [
        *options.flags(options.DecoderOptions),
        *options.flags(options.UpsamplerOptions),
    ],
    "Options of some modes": (
        "mask hint inverted corrections noise frames source target thetas dims scales "
        "label template"
    ).split(),
    "Output": ["format", "columns", "scale", "overwrite"],
    "Computation": ["batch_size", "dtype", "process", "processes"],
}


def main(args):
    """Draws what `args.mode` names."""
    from unclip_jax.generation.cli.command import sample

    sample(args)


if __name__ == "__main__":
    command_line.run(main, config=False, extra_flags=FLAGS, groups=GROUPS)
