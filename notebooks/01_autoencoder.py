# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 1. The autoencoder, read as a model
#
# An autoencoder squeezes an image x through a small code z and draws it again from the code. It
# looks like no probability is involved. There is: squared error is a Gaussian log-likelihood, and
# the encoder is a guide that puts all its mass on one point. What is missing is a prior on z. This
# notebook shows what one gets without it, and what one does not get.
#
# | | here | notebook 2 |
# |---|---|---|
# | prior | none (flat) | z ~ N(0, I) |
# | likelihood | x given z ~ N(decoder(z), I) | x given z ~ N(μ(z), diag σ²(z)) |
# | guide | a point, z = encoder(x) | z given x ~ N(μ(x), diag σ²(x)) |
#
# All runs offline, on 8×8 digits that come with scikit-learn. For real MNIST, write
# `load("mnist", data_root="folder/of/the/archives")` below: seconds become minutes, and numbers in
# the text and in an `assert` are no longer those of the data.

# %%
# %matplotlib inline
import math
import warnings

warnings.filterwarnings("ignore", "IProgress")  # a Jupyter widget that nothing here needs

import matplotlib.pyplot as plt
import numpy as np
import pyro
import torch
from sklearn.decomposition import PCA
from tabulate import tabulate

from evidence.experiments.reports import plots
from evidence.experiments.setup.datasets import load
from evidence.guides import Delta
from evidence.inference import fit, importance_weighted_evidence, log_prob_terms
from evidence.models import Autoencoder

torch.set_num_threads(1)  # nets this small gain nothing from a second thread
plt.rcParams["font.size"] = 12
data = load("digits")
print(f"{len(data.x_train)} training and {len(data.x_test)} test images of {data.data_dim} pixels")
plots.gallery(data.x_test[:: len(data.x_test) // 20], data.image_shape, title="test images")

# %% [markdown]
# ## Model and guide
#
# The model says how an image comes from a code, the guide how a code comes from an image. Both have
# one hidden layer of 600 ELU units. The code has 60 entries.
#
# - `Autoencoder` is the likelihood N(decoder(z), I). Its "prior" is the constant 1.
# - `Delta` is the guide: a point mass at encoder(x).
#
# `fit` does the rest: Adam, learning rate 1e-3, batches of 128. Leave out `progress=False` and it
# shows a progress bar with the loss.

# %%
pyro.set_rng_seed(0)
model = Autoencoder(data.data_dim, latent_dim=60)
guide = Delta(model.latent_dim, data.data_dim)
history = fit(model, guide, data.x_train, x_test=data.x_test, num_epochs=60, progress=False)
print(f"{len(history.epochs)} epochs in {history.seconds:.1f} s")

# %% [markdown]
# ## What the loss says
#
# The loss is −log p(x | z) in nats per image. With unit variance and D pixels,
#
# $$-\log p(x \mid z) = \tfrac12 \lVert x - \hat x \rVert^2 + \tfrac D2 \log 2\pi .$$
#
# So it is half the squared error plus a constant that no training can change. Here the constant is
# 32 log 2π. The next cell checks the formula image by image.

# %%
constant = data.data_dim / 2 * math.log(2 * math.pi)
terms = log_prob_terms(model, guide, data.x_test)
with torch.no_grad():
    drawn_again = model.likelihood(guide.posterior_mean(data.x_test)).mean  # [B, D]
squared_error = (data.x_test - drawn_again).square().sum(1)  # [B]

torch.testing.assert_close(-terms.log_p_x[0], squared_error / 2 + constant)
assert not terms.log_p_z.any()
assert not terms.log_q_z.any()
print(f"constant {constant:.3f} nats, squared error {squared_error.mean():.4f} per test image")
print(f"loss {-terms.log_p_x.mean():.3f} nats per test image; prior and guide add nothing")

# %% [markdown]
# The curve uses both units: nats on the left, squared error on the right. Test images are scored
# after each epoch, training images during it, with weights that still change. That is why the
# training curve starts above the test curve.


# %%
def to_squared_error(loss):
    return 2 * (np.asarray(loss) - constant)


def to_loss(error):
    return np.asarray(error) / 2 + constant


figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
epochs = range(1, len(history.epochs) + 1)
axes.plot(epochs, history.train_loss, "--", label="training")
axes.plot(epochs, history.test_loss, label="test")
axes.axhline(constant, color="black", linewidth=1, label="½ D log 2π: no error left")
axes.set_ylim(constant - 0.05, constant + 1.0)
axes.set_xlabel("epoch")
axes.set_ylabel("loss (nats per image)")
axes.secondary_yaxis("right", functions=(to_squared_error, to_loss)).set_ylabel(
    "squared error per image"
)
axes.legend()
axes.grid(alpha=0.3)

# %%
step = len(data.x_test) // 12
plots.reconstructions(
    data.x_test[::step], drawn_again[::step], data.image_shape, title="test images, 60 codes"
)

# %% [markdown]
# Nearly perfect. But 60 codes for 64 pixels are barely a bottleneck. On MNIST, with 784 pixels,
# they are one. Here the test of an autoencoder is a short code: 6 entries, as many as the VAE will
# have. The yardstick is principal component analysis (PCA), the best *linear* autoencoder.

# %%
pyro.set_rng_seed(0)
small_model = Autoencoder(data.data_dim, latent_dim=6)
small_guide = Delta(small_model.latent_dim, data.data_dim)
fit(small_model, small_guide, data.x_train, num_epochs=100, lr=3e-3, lr_decay=0.97, progress=False)


def with_se(values):
    """Mean ± standard error of a tensor [N]."""
    return f"{values.mean():.3f} ± {values.std() / math.sqrt(len(values)):.3f}"


def autoencoder_error(model, guide):
    with torch.no_grad():
        x_hat = model.likelihood(guide.posterior_mean(data.x_test)).mean
    return (data.x_test - x_hat).square().sum(1)


def pca_error(num_components):
    pca = PCA(num_components).fit(data.x_train.numpy())
    x_hat = pca.inverse_transform(pca.transform(data.x_test.numpy()))
    return (data.x_test - torch.from_numpy(x_hat)).square().sum(1)


small_error, small_pca_error = autoencoder_error(small_model, small_guide), pca_error(6)
rows = [
    ["mean training image", 0, with_se((data.x_test - data.x_train.mean(0)).square().sum(1))],
    ["PCA", 6, with_se(small_pca_error)],
    ["autoencoder", 6, with_se(small_error)],
    ["PCA", 60, with_se(pca_error(60))],
    ["autoencoder", 60, with_se(squared_error)],
]
print(tabulate(rows, headers=["", "codes", "squared error per test image ± SE"]))

gain = small_pca_error - small_error  # paired: the same images
print(f"\nPCA − autoencoder, 6 codes: {with_se(gain)}")
assert gain.mean() > 5 * gain.std() / math.sqrt(len(gain))

# %% [markdown]
# With 6 codes the nonlinear autoencoder beats PCA clearly. With 60 codes nothing is left to
# compress, and PCA needs no training to see it.
#
# ## The codes
#
# Nobody told the codes where to lie, how far apart, or on what scale. Digits of one kind still lie
# together, because similar images get similar codes.

# %%
codes = guide.posterior_mean(data.x_train)  # [N, 60]
plots.latent_codes(
    guide.posterior_mean(data.x_test), data.y_test, title="codes of the test images (60 dimensions)"
)

# %% [markdown]
# ## No prior, no images
#
# Now draw a new image. The recipe would be: draw a code from the prior, decode it. The model has no
# prior, and says so.

# %%
try:
    model(size=10)
except ValueError as error:
    print("simulate:", error)

try:
    importance_weighted_evidence(model, guide, data.x_test[:10], num_particles=100)
except ValueError as error:
    print("evidence:", error)

# %% [markdown]
# We can insist. Two makeshift priors suggest themselves:
#
# 1. z ~ N(0, I), because everybody does;
# 2. a Gaussian fitted to the codes of the training images.

# %%
pyro.set_rng_seed(1)
num_samples = len(data.x_test)


def fitted_gaussian(points):
    """The Gaussian with the mean and covariance of points [N, D]."""
    covariance = torch.cov(points.mT) + 1e-6 * torch.eye(points.shape[1])
    return torch.distributions.MultivariateNormal(points.mean(0), covariance)


@torch.no_grad()
def decode(model, z):
    return model.likelihood(z).mean


small_codes = small_guide.posterior_mean(data.x_train)
for z in (codes, small_codes):
    low, high = z.std(0).min(), z.std(0).max()
    print(f"{z.shape[1]} codes: means up to {z.mean(0).abs().max():.2f}, σ {low:.2f} to {high:.2f}")

samples = {
    "60 codes, N(0, I)": decode(model, torch.randn(num_samples, 60)),
    "60 codes, fitted": decode(model, fitted_gaussian(codes).sample((num_samples,))),
    "6 codes, N(0, I)": decode(small_model, torch.randn(num_samples, 6)),
    "6 codes, fitted": decode(small_model, fitted_gaussian(small_codes).sample((num_samples,))),
    "no codes, fitted to pixels": fitted_gaussian(data.x_train).sample((num_samples,)),
}
plots.gallery(
    samples["60 codes, N(0, I)"][:20],
    data.image_shape,
    title="autoencoder, 60 codes ~ N(0, I), decoded",
)

# %%
plots.gallery(
    samples["60 codes, fitted"][:20],
    data.image_shape,
    title="autoencoder, 60 codes ~ Gaussian fitted to the training codes, decoded",
)

# %%
plots.gallery(
    samples["6 codes, N(0, I)"][:20],
    data.image_shape,
    title="autoencoder, 6 codes ~ N(0, I), decoded",
)

# %%
plots.gallery(
    samples["6 codes, fitted"][:20],
    data.image_shape,
    title="autoencoder, 6 codes ~ Gaussian fitted to the training codes, decoded",
)

# %% [markdown]
# Eyes are easily fooled, so measure. *Realism*: how far is a sample from the nearest training
# image? *Coverage*: how far is a test image from the nearest sample? Real test images set the mark
# for realism, and as many training images set it for coverage.


# %%
def nearest(from_images, to_images):
    """Distance of each image [N, D] to the nearest of the others [M, D]: [N]."""
    parts = from_images.split(500)  # all at once would need gigabytes on MNIST
    return torch.cat([torch.cdist(part, to_images).min(1).values for part in parts])


some = torch.randperm(len(data.x_train))[:num_samples]
rows = [
    [name, with_se(nearest(x, data.x_train)), with_se(nearest(data.x_test, x))]
    for name, x in samples.items()
]
real = (
    with_se(nearest(data.x_test, data.x_train)),
    with_se(nearest(data.x_test, data.x_train[some])),
)
rows.append(["real images", *real])
print(tabulate(rows, headers=["", "realism (small is good)", "coverage (small is good)"]))

realism = {name: nearest(x, data.x_train).mean() for name, x in samples.items()}
assert realism["60 codes, N(0, I)"] > 2 * realism["6 codes, fitted"]
assert abs(realism["60 codes, fitted"] - realism["no codes, fitted to pixels"]) < 0.1

# %% [markdown]
# What the table says:
#
# - **N(0, I) fails.** The training codes have another mean and another scale (printed above).
#   Elsewhere the decoder was never trained and may do what it likes.
# - **60 codes with a fitted Gaussian** do no better than a Gaussian fitted to the 64 *pixels*. The
#   codes are the pixels in other words, so nothing was learned about digits.
# - **6 codes with a fitted Gaussian** are passable. A prior added after the fact is a prior. But it
#   was no part of the objective: nothing made the codes Gaussian, and there is still no log p(x) to
#   compare models with.
#
# ## A warning about σ = 1
#
# Unit variance is a strange assumption for pixels in [0, 1]: the noise is as wide as the whole grey
# scale. So why not estimate σ? On the training images the best σ² is the mean squared residual.

# %%
residual = data.x_train - decode(model, codes)
sigma = residual.square().mean().sqrt()
log_p = torch.distributions.Normal(0.0, sigma).log_prob(residual).sum(1)
ceiling = data.data_dim * math.log(data.num_levels)
print(f"best σ {sigma:.4f}; log p(x | z) {-constant:.1f} nats at σ = 1 and zero residual,")
print(f"{log_p.mean():.1f} nats at the best σ; ceiling of grey levels: {ceiling:.1f} nats")
assert log_p.mean() > ceiling

# %% [markdown]
# The log-density passes 64 log 17, the most that any honest density of these grey levels can reach
# (notebook 2 says why). It would rise for ever as the residuals go to zero: 60 codes can copy the
# image. A likelihood with a free σ needs a prior that makes codes cost something, and a floor on σ.
#
# **Next:** `02_vae` adds the prior.
#
# ## Try it
#
# 1. Train the model with 6 codes for 10 and for 300 epochs. Does the test error ever turn up
#    again?
# 2. Decode points on the line between the codes of a 0 and a 6. Where do the images stop being
#    digits?
# 3. Fit a Gaussian *per digit* to the codes. Does realism improve? What is the model then?
