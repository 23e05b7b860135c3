"""PCA and buckets against numpy's own, and what does not fit is refused."""

import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.models import codebook

RNG = np.random.default_rng(0)
# 4,000 embeddings of 12 dimensions, of very different variances
SPREAD = 3.0 * 0.6 ** np.arange(12)
TURN = np.linalg.qr(RNG.standard_normal((12, 12)))[0]
Z = RNG.standard_normal((4000, 12)) * SPREAD @ TURN + 5.0
DOTS = RNG.uniform(-1, 1, 4000)


def apply(fitted, method, *inputs):
    rows, buckets = fitted["centres"].shape
    module = codebook.Codebook(len(fitted["mean"]), rows - 1, buckets)
    inputs = [
        jnp.asarray(x, np.asarray(x).dtype.name.replace("64", "32")) for x in inputs
    ]
    return np.asarray(module.apply({"params": fitted}, *inputs, method=method))


@pytest.fixture(scope="module")
def fitted():
    return codebook.fit(Z, DOTS, 7, 16)


def test_components_are_the_principal_ones(fitted):
    singular = np.linalg.svd(Z - Z.mean(0), full_matrices=False)[2][:7].T
    agreement = np.abs((singular * fitted["components"]).sum(0))
    np.testing.assert_allclose(agreement, 1, atol=1e-5)
    codes = apply(fitted, "encode", Z, DOTS)[:, 1:]
    order = np.var(fitted["centres"][np.arange(1, 8), codes], axis=0)
    assert (np.diff(order) < 0).all()  # by decreasing eigenvalue


def test_buckets_have_equal_mass_and_decode_to_their_means(fitted):
    codes = apply(fitted, "encode", Z, DOTS)
    assert codes.dtype == np.int32 and codes.shape == (4000, 8)
    values = np.column_stack([DOTS, (Z - Z.mean(0)) @ fitted["components"]])
    for row in range(8):
        counts = np.bincount(codes[:, row], minlength=16)
        assert abs(counts - 250).max() <= 2, counts
        for code in (0, 7, 15):
            mean = values[codes[:, row] == code, row].mean()
            assert fitted["centres"][row, code] == pytest.approx(mean, abs=2e-2)


@pytest.mark.slow
def test_the_error_is_that_of_the_dropped_components_and_the_buckets():
    variances = np.sort(np.linalg.eigvalsh(np.cov(Z.T)))[::-1]
    for count in (1, 4, 12):
        fine = codebook.fit(Z, DOTS, count, 2000)
        decoded = apply(fine, "decode", apply(fine, "encode", Z, DOTS)[:, 1:])
        error = np.square(decoded - Z).sum(1).mean()
        dropped = variances[count:].sum()
        assert error == pytest.approx(dropped, rel=2e-3, abs=2e-3 * variances[0])
    coarse = codebook.fit(Z, DOTS, 12, 16)
    decoded = apply(coarse, "decode", apply(coarse, "encode", Z, DOTS)[:, 1:])
    error = np.square(decoded - Z).sum(1).mean() / variances.sum()
    assert 0.002 < error < 0.03  # and coarse buckets cost something


def test_encoding_what_was_decoded_changes_nothing(fitted):
    codes = apply(fitted, "encode", Z, DOTS)
    decoded = apply(fitted, "decode", codes[:, 1:])
    again = apply(fitted, "encode", decoded, DOTS)
    assert (again == codes).mean() > 0.9999  # but for a float32 on an edge


def test_dot_codes_follow_the_training_distribution(fitted):
    low = np.quantile(DOTS, 0.5)
    quantiles = 0.5 + 0.5 * RNG.uniform(size=2000)
    codes = apply(fitted, "dot_code", quantiles)
    drawn = fitted["centres"][0, codes]
    assert (drawn > low).all() and set(codes) == set(range(8, 16))
    np.testing.assert_array_equal(
        apply(fitted, "dot_code", np.array([0.0, 0.99999, 1.0])), [0, 15, 15]
    )


def test_repeated_values_share_one_code_which_the_draw_uses_too():
    dots = np.where(np.arange(4000) < 3000, 0.25, DOTS)
    fitted = codebook.fit(Z, dots, 2, 16)
    assert np.isfinite(fitted["centres"]).all()
    codes = apply(fitted, "encode", Z, dots)[:, 0]
    assert len(set(codes[:3000])) == 1
    drawn = apply(fitted, "dot_code", np.linspace(0, 0.9999, 500))
    assert set(drawn) <= set(codes)
    share = (drawn == codes[0]).mean()
    assert share == pytest.approx((codes == codes[0]).mean(), abs=0.07)


def test_the_same_embeddings_give_the_same_codebook(fitted):
    again = codebook.fit(Z, DOTS, 7, 16)
    for name, array in fitted.items():
        np.testing.assert_array_equal(array, again[name])


@pytest.mark.parametrize(
    "rows, components, buckets, message",
    [
        (4000, 13, 16, "num_components 13: expected 1 to 12"),
        (4000, 0, 16, "num_components 0: expected 1 to 12"),
        (4000, 7, 1, "num_buckets must be at least 2, got 1"),
        (100, 7, 128, "100 training embeddings for 128 buckets.*at least 128"),
        (7, 7, 4, "7 training embeddings.*at least 8"),
    ],
)
def test_what_does_not_fit_is_refused(rows, components, buckets, message):
    with pytest.raises(ValueError, match=message):
        codebook.fit(Z[:rows], DOTS[:rows], components, buckets)


def test_components_that_do_not_vary_are_refused():
    flat = Z @ TURN.T[:, :5] @ TURN[:5]
    with pytest.raises(ValueError, match="along 5 directions only.*at most 5"):
        codebook.fit(flat, DOTS, 6, 16)
    assert codebook.fit(flat, DOTS, 5, 16)["components"].shape == (12, 5)
