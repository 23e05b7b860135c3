"""CLIP in OpenCLIP's names, against torch's own nn.MultiheadAttention.

The reference below is this file's: modules named as in OpenCLIP's state dicts, around
torch.nn.MultiheadAttention and torch.nn.Linear. float32, differences <= 1e-4.
"""

import json

import jax
import numpy as np
import pytest

from unclip_jax import models
from unclip_jax.interop import open_clip, public_clip, transformers_clip

from .conftest import randomise

torch = pytest.importorskip("torch")
nn = torch.nn

FIELDS = {
    "embed_dim": 24,
    "image_size": 16,
    "patch_size": 4,
    "vision_width": 32,
    "vision_depth": 2,
    "vision_heads": 2,
    "vision_mlp_ratio": 3.25,
    "vocab_size": 50,
    "context_length": 10,
    "text_width": 64,
    "text_depth": 2,
    "text_heads": 1,
    "text_mlp_ratio": 2.0,
    "eot_id": 49,
    "activation": "gelu",
    "image_mean": (0.5, 0.4, 0.3),
    "image_std": (0.2, 0.3, 0.4),
}


class Block(nn.Module):
    def __init__(self, width, heads, hidden, act):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(width, hidden), "c_proj": nn.Linear(hidden, width)}
        )
        self.act = act

    def forward(self, x, mask):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp["c_proj"](self.act(self.mlp["c_fc"](self.ln_2(x))))


class Stack(nn.Module):
    def __init__(self, depth, *args):
        super().__init__()
        self.resblocks = nn.ModuleList(Block(*args) for _ in range(depth))

    def forward(self, x, mask=None):
        for block in self.resblocks:
            x = block(x, mask)
        return x


class Visual(nn.Module):
    def __init__(self, f, act):
        super().__init__()
        width, patch = f["vision_width"], f["patch_size"]
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        count = (f["image_size"] // patch) ** 2 + 1
        self.positional_embedding = nn.Parameter(torch.zeros(count, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        hidden = round(width * f["vision_mlp_ratio"])
        self.transformer = Stack(
            f["vision_depth"], width, f["vision_heads"], hidden, act
        )
        self.proj = nn.Parameter(torch.zeros(width, f["embed_dim"]))

    def forward(self, x):
        x = self.conv1(x).flatten(2).transpose(1, 2)
        cls = self.class_embedding.expand(len(x), 1, -1)
        x = torch.cat([cls, x], 1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class Reference(nn.Module):
    def __init__(self, f):
        super().__init__()
        act = nn.GELU()
        if f["activation"] == "quick_gelu":
            act = lambda x: x * torch.sigmoid(1.702 * x)  # noqa: E731
        width, length = f["text_width"], f["context_length"]
        self.visual = Visual(f, act)
        self.token_embedding = nn.Embedding(f["vocab_size"], width)
        self.positional_embedding = nn.Parameter(torch.zeros(length, width))
        hidden = round(width * f["text_mlp_ratio"])
        self.transformer = Stack(f["text_depth"], width, f["text_heads"], hidden, act)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.zeros(width, f["embed_dim"]))
        self.logit_scale = nn.Parameter(torch.zeros(()))
        mask = torch.full((length, length), -torch.inf).triu(1)
        self.register_buffer("attn_mask", mask)

    def forward(self, images, tokens):
        x = self.token_embedding(tokens) + self.positional_embedding
        x = self.ln_final(self.transformer(x, self.attn_mask))
        pooled = x[torch.arange(len(x)), tokens.argmax(-1)]
        return self.visual(images), pooled @ self.text_projection


def write_folder(folder, fields, state):
    """As OpenCLIP's push_to_hub_hf leaves them, with torch's file."""
    model = {
        "embed_dim": fields["embed_dim"],
        "quick_gelu": fields["activation"] == "quick_gelu",
        "vision_cfg": {
            "image_size": fields["image_size"],
            "layers": fields["vision_depth"],
            "width": fields["vision_width"],
            "head_width": fields["vision_width"] // fields["vision_heads"],
            "patch_size": fields["patch_size"],
            "mlp_ratio": fields["vision_mlp_ratio"],
        },
        "text_cfg": {
            "context_length": fields["context_length"],
            "vocab_size": fields["vocab_size"],
            "width": fields["text_width"],
            "heads": fields["text_heads"],
            "layers": fields["text_depth"],
        },
    }
    pixels = {"mean": fields["image_mean"], "std": fields["image_std"]}
    config = {"model_cfg": model, "preprocess_cfg": pixels}
    folder.mkdir(exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.save(state, folder / "open_clip_pytorch_model.bin")


def run_ours(fields, params, images, tokens):
    apply = jax.jit(models.build("clip", fields).apply)
    return jax.device_get(apply({"params": params}, images, tokens))


@pytest.fixture(scope="module", params=["gelu", "quick_gelu"])
def written(request, tmp_path_factory):
    """(reference, folder, fields)."""
    fields = {**FIELDS, "activation": request.param}
    reference = randomise(Reference(fields), 5)
    folder = tmp_path_factory.mktemp("open") / "clip"
    write_folder(folder, fields, reference.state_dict())
    return reference, folder, fields


def test_equals_the_reference(written):
    reference, folder, fields = written
    found, params = open_clip.load_open_clip(folder)
    assert found == fields
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    tokens = rng.integers(1, 48, (3, 10)).astype(np.int32)
    for row, end in enumerate((3, 9, 6)):
        tokens[row, end], tokens[row, end + 1 :] = 49, 0
    pixels = (images / 255 - np.array(fields["image_mean"])) / fields["image_std"]
    with torch.no_grad():
        pixels = torch.tensor(pixels.transpose(0, 3, 1, 2), dtype=torch.float32)
        theirs = reference(pixels, torch.tensor(tokens).long())
    for ours, value in zip(
        run_ours(found, params, images, tokens), theirs, strict=True
    ):
        assert value.abs().max() > 0.1
        np.testing.assert_allclose(ours, value.numpy(), rtol=0, atol=1e-4)


def test_back_in_their_names(written, tmp_path):
    reference, folder, fields = written
    _, params = open_clip.load_open_clip(folder)
    tensors = open_clip.to_open_clip(fields, params)
    state = {k: v for k, v in reference.state_dict().items() if k != "attn_mask"}
    assert tensors.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(tensors[name], value.numpy(), name)
    open_clip.save_open_clip(tmp_path, fields, params)
    again = open_clip.load_open_clip(tmp_path)
    assert again[0] == fields
    jax.tree.map(np.testing.assert_array_equal, again[1], params)


def test_one_clip_in_two_formats_has_one_fingerprint(written, tmp_path):
    _, folder, fields = written
    first = public_clip.read_public_clip(folder)
    transformers_clip.save_clip_model(tmp_path, fields, first.params)
    assert public_clip.is_public_clip(tmp_path) and public_clip.is_public_clip(folder)
    second = public_clip.read_public_clip(tmp_path)
    assert second.clip_fingerprint == first.clip_fingerprint
    assert not public_clip.is_public_clip(tmp_path / "none")


def test_bare_state_dicts(written, tmp_path):
    """OpenAI's say what they are; of others the activation must be told."""
    reference, _, _ = written
    state = {k: v for k, v in reference.state_dict().items() if k != "attn_mask"}
    torch.save({"state_dict": state}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="does not say its activation"):
        open_clip.load_open_clip(tmp_path / "a.pt")
    fields, _ = open_clip.load_open_clip(tmp_path / "a.pt", activation="gelu")
    sizes = ("embed_dim", "image_size", "vision_depth", "text_depth", "text_heads")
    assert all(fields[name] == FIELDS[name] for name in sizes)
    assert fields["vision_mlp_ratio"] == 3.25 and fields["activation"] == "gelu"
    extra = {k: torch.tensor(16) for k in open_clip.OPENAI_ONLY}
    half = {k: v.half() for k, v in state.items()}  # as OpenAI's are
    torch.save({**half, **extra}, tmp_path / "b.pt")
    fields, params = open_clip.load_open_clip(tmp_path / "b.pt")
    assert fields["activation"] == "quick_gelu"
    assert params["logit_scale"].dtype == np.float32


def test_mistakes(written, tmp_path):
    reference, _, fields = written
    state = reference.state_dict()
    write_folder(tmp_path, fields, {**state, "visual.ls_1.gamma": state["logit_scale"]})
    with pytest.raises(ValueError, match="1 unexpected: visual.ls_1.gamma"):
        open_clip.load_open_clip(tmp_path)
    lacking = {k: v for k, v in state.items() if k != "ln_final.bias"}
    write_folder(tmp_path, fields, lacking)
    with pytest.raises(ValueError, match="1 missing: ln_final.bias"):
        open_clip.load_open_clip(tmp_path)
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["hf_model_name"] = "roberta"
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="text_cfg has hf_model_name"):
        open_clip.load_open_clip(tmp_path)
    torch.save({"weights": object}, tmp_path / "code.pt")
    with pytest.raises(ValueError, match="holds more than tensors"):
        open_clip.load_open_clip(tmp_path / "code.pt")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="is not a CLIP .*it has weight"):
        open_clip.load_open_clip(tmp_path / "other.pt", activation="gelu")


# (vision width and depth, text width and depth, MLP ratio), heads, parameters
SIZES = {
    "ViT-L/14": ((1024, 24, 768, 12, 4.0), (16, 12), 427_616_513),
    "ViT-H/14": ((1280, 32, 1024, 24, 4.0), (16, 16), 986_109_441),
    "ViT-bigG/14": ((1664, 48, 1280, 32, 8192 / 1664), (16, 20), 2_539_567_105),
}


@pytest.mark.parametrize("name", SIZES)
def test_shapes_tell_the_public_sizes(name):
    (vw, vd, tw, td, ratio), heads, count = SIZES[name]
    sizes = {
        "embed_dim": {1024: 768, 1280: 1024, 1664: 1280}[vw],
        "image_size": 224,
        "patch_size": 14,
        "vision_width": vw,
        "vision_depth": vd,
        "vision_heads": heads[0],
        "vision_mlp_ratio": ratio,
        "vocab_size": 49408,
        "context_length": 77,
        "text_width": tw,
        "text_depth": td,
        "text_heads": heads[1],
        "text_mlp_ratio": 4.0,
        "activation": "gelu",
    }
    with torch.device("meta"):
        state = Reference(sizes).state_dict()
    fields = open_clip.fields_of(state, {}, "gelu", name)
    assert {k: fields[k] for k in sizes} == sizes
    assert sum(v.numel() for k, v in state.items() if k != "attn_mask") == count
