"""Takes a trained run out of its checkpoints: a part of an export folder.

python -m unclip_jax.export --run=runs/icons/clip    --out=exports/icons
python -m unclip_jax.export --run=runs/icons/prior   --out=exports/icons
python -m unclip_jax.export --run=runs/icons/decoder --out=exports/icons
"""

from unclip_jax import config as config_lib

FLAGS = {
    "run": (config_lib.REQUIRED, "folder of a run (a --workdir of unclip_jax.train)"),
    "out": (config_lib.REQUIRED, "folder of the export; its other parts stay"),
    "format": (
        "native",
        "native; diffusers: folders that its classes load; of a CLIP, transformers or "
        "open_clip: a folder that the library loads",
    ),
}


def main(args):
    from unclip_jax.interop.export import export
    from unclip_jax.training.checkpoint import load_run

    params, meta = load_run(args.run)
    print(export(params, meta, args.run, args.out, args.format))


if __name__ == "__main__":
    config_lib.run(main, config=False, extra_flags=FLAGS)
