"""Evaluate an exported model: generate from captions, measure, write a report.

python -m unclip_jax.evaluate --config=configs/icons/eval.py --workdir=runs/icons/eval
    [--config.model=exports/icons] [--config.generation.decoder_guidance=3.0]
"""

from unclip_jax import config


def main(args):
    """Run the evaluation of args.config in args.workdir."""
    from unclip_jax.evaluation.runner import evaluate

    evaluate(args.config, args.workdir)


if __name__ == "__main__":
    config.run(main)
