"""Runs pytorch-fid, torch-fidelity, clean-fid and OpenCLIP, in a process of their own.

    python fid_programs.py TASK FOLDER [OPTIONS]

They need torchvision, which must stay out of the other tests' environment (diffusers
and transformers take other ways when they see it), so they lie in a folder that only
this process has on its path.  `reference` starts it from a test.
"""

import importlib.machinery
import json
import os
import pathlib
import subprocess
import sys
import types

import numpy as np

PROGRAMS = pathlib.Path(sys.prefix) / "programs"  # made by `make test`


def available():
    """Whether the programs are installed (requirements-programs.txt)."""
    return (PROGRAMS / "pytorch_fid").is_dir()


def reference(task, folder, *options):
    """Run one of the tasks below; returns the arrays it saved."""
    environment = {**os.environ, "PYTHONPATH": str(PROGRAMS), "OMP_NUM_THREADS": "2"}
    command = [sys.executable, __file__, task, str(folder), *map(str, options)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(pathlib.Path(folder) / f"{task}.npz") as file:
        return dict(file)


def _stub_compiled_parts():
    """torchvision's compiled operators are not there beside a CPU torch; not needed."""
    for name in ("_meta_registrations", "_autograd_registrations"):
        module = types.ModuleType(f"torchvision.{name}")
        module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
        sys.modules[module.__name__] = module


def _network(state=None):
    """pytorch-fid's network; without a state dict, as initialised."""
    import torch
    from pytorch_fid import inception

    inception.load_state_dict_from_url = lambda *_, **__: state
    load = torch.nn.Module.load_state_dict
    if state is None:
        torch.nn.Module.load_state_dict = lambda self, state: None
    try:
        return inception.fid_inception_v3()
    finally:
        torch.nn.Module.load_state_dict = load


def _calibrated():
    """State dict of random weights whose activations keep a useful size."""
    import torch

    torch.manual_seed(0)
    net = _network()
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            torch.nn.init.kaiming_normal_(module.weight)
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
            torch.nn.init.uniform_(module.weight, 0.8, 1.2)
            torch.nn.init.normal_(module.bias, 0.0, 0.1)
    net.train()
    with torch.no_grad():
        coarse = torch.rand(8, 3, 6, 6) * 2 - 1  # smooth pictures
        net(torch.nn.functional.interpolate(coarse, size=139, mode="bilinear"))
    return net.state_dict()


def weights(folder):
    """weights.pth, and in float64 every layer's features of 4 pictures of 75 x 75."""
    import torch
    from pytorch_fid.inception import InceptionV3

    state = _calibrated()
    torch.save(state, folder / "weights.pth")
    _network(state)  # sets what InceptionV3 will load
    net = InceptionV3([0, 1, 2, 3], resize_input=False, normalize_input=False)
    x = np.random.default_rng(0).uniform(-1, 1, (4, 75, 75, 3))
    with torch.no_grad():
        maps = net.double().eval()(torch.from_numpy(x.transpose(0, 3, 1, 2)))
        found = [m.mean(dim=(2, 3)) for m in maps]
        logits = found[-1] @ state["fc.weight"].double().T
    names = ("64", "192", "768", "2048", "logits_unbiased")
    features = zip(names, [*found, logits], strict=True)
    return {"images": x, **{name: f.numpy() for name, f in features}}


def distances(folder, width):
    """The three programs' distances between folder/a and folder/b.

    The layer has a width of 64, 192, 768 or 2048; with 2048 the square root of a
    matrix takes each of them ten seconds and more.  Besides, pytorch-fid reads the
    statistics ours.npz if they are there, and writes its own of `a`.
    """
    import torch
    import torch_fidelity
    from cleanfid import fid as clean
    from pytorch_fid import fid_score
    from pytorch_fid.inception import InceptionV3

    width = int(width)
    block = InceptionV3.BLOCK_INDEX_BY_DIM[width]
    _network(torch.load(folder / "weights.pth", weights_only=True))
    a, b, theirs, ours = (str(folder / x) for x in ("a", "b", "theirs.npz", "ours.npz"))
    options = dict(batch_size=8, device="cpu", dims=width, num_workers=0)
    fid_score.save_fid_stats([a, theirs], **options)
    distance = fid_score.calculate_fid_given_paths
    found = {"pytorch-fid": distance([theirs, b], **options)}
    if os.path.exists(ours):
        found["ours"] = distance([ours, theirs], **options)

    values = torch_fidelity.calculate_metrics(
        input1=a,
        input2=b,
        cuda=False,
        fid=True,
        feature_layer_fid=str(width),
        feature_extractor_weights_path=str(folder / "weights.pth"),
        batch_size=8,
        cache=False,
        verbose=False,
    )
    found["torch-fidelity"] = values["frechet_inception_distance"]

    net = InceptionV3([block], resize_input=False, normalize_input=False).eval()

    def extract(images):
        with torch.no_grad():
            return net((images - 128) / 128)[0].mean(dim=(2, 3))

    options = dict(device=torch.device("cpu"), num_workers=0, batch_size=8)
    found["clean"] = clean.compute_fid(
        a, b, mode="clean", custom_feat_extractor=extract, verbose=False, **options
    )
    return {name: np.float64(value) for name, value in found.items()}


def whole(folder):
    """pytorch-fid between folder/a and folder/b, by its own command's defaults."""
    import torch
    from pytorch_fid import fid_score

    _network(torch.load(folder / "weights.pth", weights_only=True))
    paths = [str(folder / "a"), str(folder / "b")]
    workers = min(len(os.sched_getaffinity(0)), 8)
    distance = fid_score.calculate_fid_given_paths(
        paths, batch_size=50, device="cpu", dims=2048, num_workers=workers
    )
    return {"fid": np.float64(distance)}


def metrics(folder):
    """torch-fidelity's other metrics of features given in folder/features.npz."""
    import torch
    from torch_fidelity import metric_isc, metric_kid, metric_prc

    with np.load(folder / "features.npz") as file:
        x, y, logits = (torch.from_numpy(file[k]) for k in ("x", "y", "logits"))
    quiet = dict(verbose=False, cuda=False, save_cpu_ram=False)
    found = {
        **metric_isc.isc_features_to_metric(logits, splits=10, shuffle=True),
        **metric_kid.kid_features_to_metric(
            x, y, kid_subsets=20, kid_subset_size=50, **quiet
        ),
        **metric_prc.prc_features_to_metric(x, y, prc_neighborhood=3, **quiet),
    }
    return {name: np.float64(value) for name, value in found.items()}


def open_clip(folder):
    """OpenCLIP's embeddings of folder/images/*.png and captions.json by folder/clip."""
    import open_clip
    import torch
    from PIL import Image

    name = f"local-dir:{folder / 'clip'}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    tokens = open_clip.get_tokenizer(name)(
        json.loads((folder / "captions.json").read_text())
    )
    images = [Image.open(file) for file in sorted((folder / "images").iterdir())]
    with torch.no_grad():
        pixels = torch.stack([preprocess(image) for image in images])
        embeddings = {
            "clip_image": model.eval().encode_image(pixels),
            "clip_text": model.encode_text(tokens),
        }
    return {name: value.numpy() for name, value in embeddings.items()}


if __name__ == "__main__":
    _stub_compiled_parts()
    task, where, *options = sys.argv[1], pathlib.Path(sys.argv[2]), *sys.argv[3:]
    tasks = (weights, distances, whole, metrics, open_clip)
    saved = {t.__name__: t for t in tasks}[task](where, *options)
    np.savez(where / f"{task}.npz", **saved)
    print(json.dumps(sorted(saved)))
