"""What `python -m unclip_jax.tune` does: finds the guidance that an export recommends.

First the decoder's guidance is swept, then the prior's with the best of the decoder's.
The images of a setting are compared with true ones by the Fréchet distance in the
features of the export's own CLIP, from the same noise for every setting. Guidance costs
variety, which the distance sees, and makes images fit their captions: of the scales
whose distance is near the least, the one with the best CLIP score is taken.
"""

import dataclasses
import pathlib
import time
import types
from collections.abc import Callable, Mapping, Sequence

from unclip_jax import files
from unclip_jax.errors import UsageError
from unclip_jax.evaluation import records, sweep
from unclip_jax.evaluation.config import (
    EvaluateConfig,
    ReferenceConfig,
    make_metrics,
)
from unclip_jax.evaluation.runner import Scorer
from unclip_jax.generation import UnCLIP
from unclip_jax.interop import native
from unclip_jax.interop.recommended import Recommended

PARTS = ("clip", "prior", "decoder")
SELECT, FIT = "frechet", "clip_score"
NEAR = 0.02  # of the least distance: as much as few images tell apart


def tune(args: types.SimpleNamespace, log: Callable[[str], None] = print) -> None:
    """Writes the best guidances into the export args.model.

    Args:
      args: the flags of unclip_jax.tune.
      log: called with lines of text.

    Raises:
      UsageError, FileNotFoundError: what was wrong with the flags, an export in another
        format than native, records of another CLIP.
    """
    have = native.read_index(args.model)["parts"]
    for part in PARTS:
        if part not in have:
            raise native.missing_part(args.model, part, [*have])
    scales = {
        "decoder": _numbers("decoder_guidance", args.decoder_guidance),
        "prior": _numbers("prior_guidance", args.prior_guidance),
    }
    data = {"source": "records", "path": args.records}
    source = records.open_records(data, images=True)
    count = min(args.count, len(source))
    config = EvaluateConfig(
        metrics={SELECT: {}, FIT: {"convention": "cosine"}},
        model=str(args.model),
        data=data,
        count=count,
        seed=args.seed,
        generation={"batch_size": args.batch_size},
        reference=ReferenceConfig(count=count),
    )
    metrics = make_metrics(config, count)
    model = UnCLIP.load(
        args.model, parts=(*PARTS, "autoencoder"), batch_size=args.batch_size
    )
    records.check_clip(source, args.records, model, args.model)
    fingerprint, workdir = files.sha256_folder(args.model), pathlib.Path(args.workdir)
    scorer = Scorer.open(config, workdir, metrics, model, fingerprint, log, True)

    def score(point):
        return scorer.score(point, scorer.generate(point), time.time(), {})[0]

    for kind, values in scales.items():
        option = f"{kind}_guidance"
        points = tuple({option: value} for value in values)
        folder = workdir / kind
        folder.mkdir(exist_ok=True)
        trial = sweep.Sweep(points, count, SELECT)
        sweep.run(trial, config, score, folder, log)
        best = choose(files.read_json(folder / "sweep.json", "")["points"])[option]
        generation = {**config.generation, option: best}
        config = dataclasses.replace(config, generation=generation)
    for kind in scales:
        guidance = config.generation[f"{kind}_guidance"]
        part = model.stack.part(kind)
        recommended = Recommended(guidance=guidance).apply(part.config, kind)
        native.write_config(args.model, kind, recommended)
        log(f"{args.model} now recommends {kind} guidance {guidance:g}")


def choose(points: Sequence[Mapping[str, float]]) -> Mapping[str, float]:
    """The point of a sweep that fits its captions best, of those near the least."""
    least = min(point[SELECT] for point in points)
    near = [point for point in points if point[SELECT] <= (1 + NEAR) * least]
    return max(near, key=lambda point: point[FIT])


def _numbers(flag: str, value: str) -> Sequence[float]:
    """The numbers of a flag, with commas between."""
    try:
        return [float(number) for number in value.split(",")]
    except ValueError:
        raise UsageError(
            f"--{flag} {value!r}: expected numbers with commas between, 1,1.5,2"
        ) from None
