#!/bin/sh
# The pictures docs/latents_*.png, from the model that `make demo` trained: four drawn
# pictures, then what can be done with their latents.
set -e
draw="python -m unclip_jax.sample --overwrite --model=exports/icons"
inputs=runs/icons/latents
heart=$inputs/000000.png
fish=$inputs/000002.png
cat=$inputs/000003.png

$draw --out=$inputs --decoder_guidance=3 \
    --prompt="a red heart on a white background" \
    --prompt="a blue star on a white background" \
    --prompt="a yellow fish on a blue background" \
    --prompt="a green cat on a black background"
$draw --mode=interpolate --image=$heart --image=$fish --out=docs/latents_interpolate.png
$draw --mode=text_diff --image=$heart --thetas=0,0.1,0.2,0.3,0.4,0.5 \
    --source="a red heart on a white background" \
    --target="a blue heart on a white background" --out=docs/latents_text_diff.png
$draw --mode=pca --dims=1,2,4,8,16,32,64 --decoder_guidance=3 \
    --image=$heart --image=$fish --image=$cat --out=docs/latents_pca.png
$draw --mode=conditioning --decoder_guidance=3 \
    --prompt="a red heart on a white background" \
    --prompt="a purple umbrella on a yellow background" \
    --prompt="a white robot on a blue background" --out=docs/latents_conditioning.png
$draw --mode=guidance --prompt="a red heart on a white background" \
    --prompt="a purple umbrella on a yellow background" --out=docs/latents_guidance.png
