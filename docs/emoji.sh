#!/bin/sh
# The pictures docs/emoji_*.png, from the model that configs/emoji trained: captions of
# held-out emoji, and the way from one drawn picture to another.
set -e
draw="python -m unclip_jax.sample --overwrite --model=exports/emoji"
inputs=runs/emoji/latents

$draw --out=docs/emoji_samples.png --decoder_guidance=3 --prior_guidance=2 --samples=3 \
    --prompt="a red heart" --prompt="an orange circle" --prompt="an up-left arrow" \
    --prompt="a beaming face with smiling eyes" --prompt="the flag of Norway" \
    --prompt="a woman police officer" --prompt="an oncoming fist" \
    --prompt="a clock face showing twelve o'clock"
$draw --out=$inputs --decoder_guidance=3 --prior_guidance=2 \
    --prompt="an orange circle" --prompt="the flag of Norway"
$draw --mode=interpolate --image=$inputs/000000.png --image=$inputs/000001.png \
    --out=docs/emoji_interpolate.png
