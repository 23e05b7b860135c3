"""Zero-shot FID on MS-COCO, as in section 5.3 and table 3 of the paper.

python -m unclip_jax.evaluate --config=configs/paper/eval_coco30k.py \
    --workdir=runs/eval_coco30k --config.model=exports/unclip

30,000 captions of the 2014 validation set, one fixed list (its hash is in results.json,
the captions in pictures.jsonl), pictures of 256 x 256 at decoder guidance 1.25; the
prior takes 64 ancestral steps with the analytic variance, whose table
`python -m unclip_jax.estimate_variance --model=exports/unclip --records=FOLDER` adds to
the export, the decoder 250 with its learned variance, the upsamplers DDIM; the
reference is the whole validation set, shorter side to 256, then the centre.  From the
literature: unCLIP 10.39, GLIDE 12.24, Karlo 15.24 (25 steps).  The same pictures
against COCO's training set give another number, and so does every other crop and
convention: results.json names them.

Pictures drawn by any other model: --images=FOLDER_OR_NPZ, in the order of the captions.
The reference once for several evaluations:
    ... --make_reference=coco256.npz      then
    ... --config.reference.statistics=coco256.npz --config.reference.count=0
A curve of FID and CLIP score over the guidance (same noise for every point):
    --config=configs/paper/eval_coco30k.py:sweep
"""

import ml_collections

from configs import common


def get_config(variant=""):
    """MS-COCO 30k; "sweep" first finds the decoder guidance on 5,000 captions."""
    common.check_variant(variant, "sweep")
    c = ml_collections.ConfigDict()
    c.model = "exports/unclip"  # folder written by unclip_jax.export
    # The 40,504 pictures of 2014's validation set, which TFDS divides into three.  Tars
    # made by img2dataset: dict(source="webdataset", path="coco2014val", image_size=256)
    c.data = dict(
        source="tfds",
        name="coco_captions/2014",
        split="restval+val+test",
        caption="captions/text",
        image_size=256,
    )
    c.crop = dict(name="shorter_side", size=256)  # or square_lanczos (GigaGAN's)
    c.count = 30_000
    c.select = "random"  # pictures, by the seed; of each the first caption
    c.seed = 0  # of the list and of all noise
    c.generation = dict(
        batch_size=64,
        prior_guidance=4.0,
        decoder_guidance=1.25,
        num_candidates=2,
        prior_sampler="ddpm",
        prior_variance="analytic",
        prior_steps=64,
        decoder_sampler="ddpm",
        decoder_variance="learned_range",
        decoder_steps=250,
    )
    c.reference = dict(count=-1)  # all
    # for FD-DINOv2 add dinov2=dict(weights="dinov2-large"), and to the metrics
    # frechet=dict(features="dinov2")
    c.extractors = dict(
        inception=dict(
            convention="pytorch-fid",  # or torch-fidelity, clean
            weights="",  # a file; "" downloads it once; "random" for a dry run
            batch_size=64,
        )
    )
    c.metrics = dict(
        fid=dict(features="inception"),
        kid=dict(features="inception"),
        inception_score=dict(),
        precision_recall=dict(features="inception"),
        density_coverage=dict(features="inception"),
        clip_score=dict(convention="cosine"),
        cmmd=dict(),
    )
    if variant == "sweep":
        c.sweep = dict(
            decoder_guidance=(1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0),
            count=5_000,
            select="fid",
        )
    return c
