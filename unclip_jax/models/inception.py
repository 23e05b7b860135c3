"""InceptionV3 as FID knows it: the network of the 2015-12-05 TensorFlow graph.

It is not torchvision's: the weights differ, 1008 logits instead of 1000, no auxiliary
head, average pools inside blocks do not count the padding, and the pool of the last
block is a maximum (an oddity of that graph).  Submodules carry torchvision's names, so
that weights map one to one.  Source: pytorch-fid and torch-fidelity, whose networks
this one equals in float64 (tests/parity/test_inception.py).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from unclip_jax.errors import UsageError
from unclip_jax.shapes import Maps, Vector

# Name of a layer -> width of its features.
LAYERS = {"64": 64, "192": 192, "768": 768, "2048": 2048, "logits_unbiased": 1008}
SIZE = 299  # pixels a side of the pictures it was trained on
SMALLEST = 75  # below this a layer has no pixels left


class BasicConv2d(nn.Module):
    """Convolution without bias, frozen batch norm, ReLU: (N, H, W, C) -> features."""

    features: int
    kernel: tuple[int, int]
    stride: int = 1
    valid: bool = False  # no padding; otherwise half the kernel, which keeps H and W

    @nn.compact
    def __call__(self, x: Maps) -> Maps:
        """(N, H, W, C) -> (N, H', W', features)."""
        half = [(k // 2, k // 2) for k in self.kernel]
        x = nn.Conv(
            self.features,
            self.kernel,
            strides=(self.stride, self.stride),
            padding="VALID" if self.valid else half,
            use_bias=False,
            precision=jax.lax.Precision.HIGHEST,  # TPUs would round to bfloat16
            name="conv",
        )(x)
        x = nn.BatchNorm(use_running_average=True, epsilon=1e-3, name="bn")(x)
        return nn.relu(x)


def _chain(x, *layers):
    """BasicConv2d after another: each of `layers` is (name, features, (kh, kw))."""
    for name, features, kernel in layers:
        x = BasicConv2d(features, kernel, name=name)(x)
    return x


def _shrink(x, name, features):
    """3 x 3 at every second pixel, without padding."""
    return BasicConv2d(features, (3, 3), stride=2, valid=True, name=name)(x)


def _average(x):
    """3 x 3 mean that counts only pixels inside the picture."""
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def _halve(x):
    return nn.max_pool(x, (3, 3), strides=(2, 2))


class InceptionA(nn.Module):
    """A block at 35x35: four branches, of which one has two 3x3 convolutions."""

    pool_features: int

    @nn.compact
    def __call__(self, x: Maps) -> Maps:
        """(N, H, W, C) -> (N, H, W, 224 + pool_features)."""
        branches = (
            _chain(x, ("branch1x1", 64, (1, 1))),
            _chain(x, ("branch5x5_1", 48, (1, 1)), ("branch5x5_2", 64, (5, 5))),
            _chain(
                x,
                ("branch3x3dbl_1", 64, (1, 1)),
                ("branch3x3dbl_2", 96, (3, 3)),
                ("branch3x3dbl_3", 96, (3, 3)),
            ),
            _chain(_average(x), ("branch_pool", self.pool_features, (1, 1))),
        )
        return jnp.concatenate(branches, axis=-1)


class InceptionB(nn.Module):
    """The reduction from 35x35 to 17x17."""

    @nn.compact
    def __call__(self, x: Maps) -> Maps:
        """(N, H, W, C) -> (N, H / 2, W / 2, 480 + C)."""
        double = ("branch3x3dbl_1", 64, (1, 1)), ("branch3x3dbl_2", 96, (3, 3))
        branches = (
            _shrink(x, "branch3x3", 384),
            _shrink(_chain(x, *double), "branch3x3dbl_3", 96),
            _halve(x),
        )
        return jnp.concatenate(branches, axis=-1)


class InceptionC(nn.Module):
    """A block at 17x17: convolutions factored into 1x7 and 7x1."""

    channels_7x7: int

    @nn.compact
    def __call__(self, x: Maps) -> Maps:
        """(N, H, W, C) -> (N, H, W, 768)."""
        c = self.channels_7x7
        branches = (
            _chain(x, ("branch1x1", 192, (1, 1))),
            _chain(
                x,
                ("branch7x7_1", c, (1, 1)),
                ("branch7x7_2", c, (1, 7)),
                ("branch7x7_3", 192, (7, 1)),
            ),
            _chain(
                x,
                ("branch7x7dbl_1", c, (1, 1)),
                ("branch7x7dbl_2", c, (7, 1)),
                ("branch7x7dbl_3", c, (1, 7)),
                ("branch7x7dbl_4", c, (7, 1)),
                ("branch7x7dbl_5", 192, (1, 7)),
            ),
            _chain(_average(x), ("branch_pool", 192, (1, 1))),
        )
        return jnp.concatenate(branches, axis=-1)


class InceptionD(nn.Module):
    """The reduction from 17x17 to 8x8."""

    @nn.compact
    def __call__(self, x: Maps) -> Maps:
        """(N, H, W, C) -> (N, H / 2, W / 2, 512 + C)."""
        seven = (
            ("branch7x7x3_1", 192, (1, 1)),
            ("branch7x7x3_2", 192, (1, 7)),
            ("branch7x7x3_3", 192, (7, 1)),
        )
        branches = (
            _shrink(_chain(x, ("branch3x3_1", 192, (1, 1))), "branch3x3_2", 320),
            _shrink(_chain(x, *seven), "branch7x7x3_4", 192),
            _halve(x),
        )
        return jnp.concatenate(branches, axis=-1)


class InceptionE(nn.Module):
    """A block at 8x8: branches that end in a 1x3 beside a 3x1 convolution."""

    max_pool: bool  # of the pooled branch; False: the mean

    @nn.compact
    def __call__(self, x: Maps) -> Maps:
        """(N, H, W, C) -> (N, H, W, 2048)."""
        three = _chain(x, ("branch3x3_1", 384, (1, 1)))
        double = _chain(
            x, ("branch3x3dbl_1", 448, (1, 1)), ("branch3x3dbl_2", 384, (3, 3))
        )
        if self.max_pool:
            pooled = nn.max_pool(x, (3, 3), padding="SAME")
        else:
            pooled = _average(x)
        branches = (
            _chain(x, ("branch1x1", 320, (1, 1))),
            _chain(three, ("branch3x3_2a", 384, (1, 3))),
            _chain(three, ("branch3x3_2b", 384, (3, 1))),
            _chain(double, ("branch3x3dbl_3a", 384, (1, 3))),
            _chain(double, ("branch3x3dbl_3b", 384, (3, 1))),
            _chain(pooled, ("branch_pool", 192, (1, 1))),
        )
        return jnp.concatenate(branches, axis=-1)


class InceptionV3(nn.Module):
    """Features of pictures; with `LAYERS` not used, jit leaves their part out.

    23,849,952 parameters.  The public file has the logits' bias besides (1008), which
    no score uses.
    """

    @nn.compact
    def __call__(self, x: Maps) -> dict[str, Vector]:
        """Features by layer.

        Args:
          x: (N, H, W, 3) in about [-1, 1]; H = W = 299 for comparable numbers, at
            least 75.

        Returns:
          {name: (N, width)} for the names and widths of LAYERS: spatial means after
          the stem's two pools, after Mixed_6e, after Mixed_7c; and the logits of that
          last one, without bias.

        Raises:
          UsageError: pictures smaller than 75 pixels, or not of three channels.
        """
        if x.ndim != 4 or x.shape[-1] != 3 or min(x.shape[1:3]) < SMALLEST:
            raise UsageError(
                f"InceptionV3 takes pictures (N, H, W, 3) of {SMALLEST} or more "
                f"pixels a side, got {x.shape}"
            )
        found = {}
        stem = dict(kernel=(3, 3), valid=True)
        # shapes for 299 x 299 pictures
        x = BasicConv2d(32, stride=2, **stem, name="Conv2d_1a_3x3")(x)  # 149, 149, 32
        x = BasicConv2d(32, **stem, name="Conv2d_2a_3x3")(x)  # 147, 147, 32
        x = BasicConv2d(64, (3, 3), name="Conv2d_2b_3x3")(x)  # 147, 147, 64
        x = _halve(x)  # 73, 73, 64
        found["64"] = x.mean(axis=(1, 2))
        x = BasicConv2d(80, (1, 1), name="Conv2d_3b_1x1")(x)  # 73, 73, 80
        x = BasicConv2d(192, **stem, name="Conv2d_4a_3x3")(x)  # 71, 71, 192
        x = _halve(x)  # 35, 35, 192
        found["192"] = x.mean(axis=(1, 2))
        x = InceptionA(32, name="Mixed_5b")(x)  # 35, 35, 256
        x = InceptionA(64, name="Mixed_5c")(x)  # 35, 35, 288
        x = InceptionA(64, name="Mixed_5d")(x)  # 35, 35, 288
        x = InceptionB(name="Mixed_6a")(x)  # 17, 17, 768
        for name, channels in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
            x = InceptionC(channels, name=f"Mixed_{name}")(x)  # 17, 17, 768
        found["768"] = x.mean(axis=(1, 2))
        x = InceptionD(name="Mixed_7a")(x)  # 8, 8, 1280
        x = InceptionE(max_pool=False, name="Mixed_7b")(x)  # 8, 8, 2048
        x = InceptionE(max_pool=True, name="Mixed_7c")(x)  # 8, 8, 2048
        x = x.mean(axis=(1, 2))
        found["2048"] = x
        found["logits_unbiased"] = nn.Dense(
            LAYERS["logits_unbiased"],
            use_bias=False,
            precision=jax.lax.Precision.HIGHEST,
            name="fc",
        )(x)
        return found
