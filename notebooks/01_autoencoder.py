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
#
# **Goal.** Read a squared error as a likelihood, see what a code without a prior is worth, and know
# what a probabilistic model will have to add. Four functions are yours to write; a check after each
# says whether it is right, and if not, what is wrong with it.

# %%
# %matplotlib inline
import math
import warnings

warnings.filterwarnings("ignore", "IProgress")  # a Jupyter widget that nothing here needs

import matplotlib.pyplot as plt
import numpy as np
import pyro
import torch
from tabulate import tabulate

from evidence.experiments.reports import plots
from evidence.experiments.setup.datasets import load
from evidence.guides import Delta
from evidence.inference import fit, importance_weighted_evidence, log_prob_terms
from evidence.models import Autoencoder
from evidence.notebooks import checks

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
# 32 log 2π. Write it down.


# %%
def loss(x, x_hat):
    """−log N(x; x_hat, I) of each image, in nats: [..., D], [..., D] -> [...]."""
    ### BEGIN SOLUTION
    # Hint: half the squared error, summed over the D pixels, plus D/2 log 2π
    constant = x.shape[-1] / 2 * math.log(2 * math.pi)
    return (x - x_hat).square().sum(-1) / 2 + constant
    ### END SOLUTION


# %% points=2
checks.loss(loss)

# %% [markdown]
# The suite knows nothing of this formula: it scores the model as Pyro does. The two must agree,
# image by image.

# %%
constant = data.data_dim / 2 * math.log(2 * math.pi)
terms = log_prob_terms(model, guide, data.x_test)
with torch.no_grad():
    drawn_again = model.likelihood(guide.posterior_mean(data.x_test)).mean  # [B, D]
squared_error = (data.x_test - drawn_again).square().sum(1)  # [B]

torch.testing.assert_close(-terms.log_p_x[0], loss(data.x_test, drawn_again))
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
# have. The yardstick is principal component analysis (PCA), the best *linear* autoencoder: with
# the centred training images as rows of a matrix, its singular value decomposition
# $X - \bar x = U S V^\top$ has the directions of the largest variance in the first rows of
# $V^\top$.


# %%
def pca_reconstruction(x, x_train, num_components):
    """Images [B, D], squeezed through the principal components of others, and back: [B, D]."""
    ### BEGIN SOLUTION
    # Hint: torch.linalg.svd of the centred training images; project x − mean on the first rows of
    # Vᵀ and back; add the mean
    mean = x_train.mean(0)
    directions = torch.linalg.svd(x_train - mean, full_matrices=False).Vh[:num_components]
    return (x - mean) @ directions.mT @ directions + mean
    ### END SOLUTION


# %% points=2
checks.pca_reconstruction(pca_reconstruction)

# %%
pyro.set_rng_seed(0)
small_model = Autoencoder(data.data_dim, latent_dim=6)
small_guide = Delta(small_model.latent_dim, data.data_dim)
settings = {"num_epochs": 100, "lr": 3e-3, "lr_decay": 0.97, "progress": False}
fit(small_model, small_guide, data.x_train, **settings)

linear_model = Autoencoder(data.data_dim, latent_dim=6, hidden_dims=())
linear_guide = Delta(linear_model.latent_dim, data.data_dim, hidden_dims=())
settings |= {"num_epochs": 150, "lr": 1e-2, "lr_decay": 0.98}
fit(linear_model, linear_guide, data.x_train, **settings)


def with_se(values):
    """Mean ± standard error of a tensor [N]."""
    return f"{values.mean():.3f} ± {values.std() / math.sqrt(len(values)):.3f}"


def autoencoder_error(model, guide):
    with torch.no_grad():
        x_hat = model.likelihood(guide.posterior_mean(data.x_test)).mean
    return (data.x_test - x_hat).square().sum(1)


def pca_error(num_components):
    x_hat = pca_reconstruction(data.x_test, data.x_train, num_components)
    return (data.x_test - x_hat).square().sum(1)


small_error, small_pca_error = autoencoder_error(small_model, small_guide), pca_error(6)
rows = [
    ["mean training image", 0, with_se((data.x_test - data.x_train.mean(0)).square().sum(1))],
    ["PCA", 6, with_se(small_pca_error)],
    ["linear autoencoder", 6, with_se(autoencoder_error(linear_model, linear_guide))],
    ["autoencoder", 6, with_se(small_error)],
    ["PCA", 60, with_se(pca_error(60))],
    ["autoencoder", 60, with_se(squared_error)],
]
print(tabulate(rows, headers=["", "codes", "squared error per test image ± SE"]))

gain = small_pca_error - small_error  # paired: the same images
print(f"\nPCA − autoencoder, 6 codes: {with_se(gain)}")
assert gain.mean() > 5 * gain.std() / math.sqrt(len(gain))

# %% [markdown]
# The linear autoencoder comes close to PCA from above: on the training images no linear map does
# better. With 6 codes the nonlinear one beats PCA clearly. With 60 codes nothing is left to
# compress, and PCA needs no training to see it.
#
# **Discuss.** Trained for ever, the linear autoencoder has the error of PCA. Are its six codes the
# six principal components?
#
# ### BEGIN SOLUTION
# No. Any invertible 6 × 6 matrix between encoder and decoder leaves the reconstruction as it is, so
# the codes span the same plane in another basis, with other scales. The same freedom is why an
# autoencoder's codes have no scale of their own, and why N(0, I) means nothing to them.
# ### END SOLUTION
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
# ## Between two codes
#
# Walk on a straight line from the code of one image to that of another, and decode on the way.


# %%
def segment(start, end, num_points):
    """Points at equal distances from start [Z] to end [Z], both included: [num_points, Z]."""
    ### BEGIN SOLUTION
    # Hint: start + t (end − start) for num_points values of t from 0 to 1, as rows
    shares = torch.linspace(0, 1, num_points, dtype=start.dtype)[:, None]
    return start + shares * (end - start)
    ### END SOLUTION


# %% points=1
checks.segment(segment)

# %%
zero, six = (data.x_test[data.y_test == digit][0] for digit in (0, 6))
walks = []
for some_model, some_guide in ((model, guide), (small_model, small_guide)):
    ends = some_guide.posterior_mean(torch.stack([zero, six]))
    with torch.no_grad():
        walks.append(some_model.likelihood(segment(*ends, 10)).mean)
pixels = segment(zero, six, 10)
plots.gallery(
    torch.cat([*walks, pixels]),
    data.image_shape,
    title="from a 0 to a 6: in 60 codes, in 6 codes, and pixel by pixel",
)

# %% [markdown]
# With 60 codes the walk is nearly a cross-fade of pixels: two half images on top of each other.
# With 6 codes strokes move. Neither walk knows where it leaves the region of the training codes.
#
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
# 2. a Gaussian fitted to the codes of the training images. Write that one.


# %%
def fitted_gaussian(codes):
    """Mean [Z] and covariance matrix [Z, Z] of codes [N, Z]; divide by N − 1."""
    ### BEGIN SOLUTION
    # Hint: Cov = Σ (z − m)(z − m)ᵀ / (N − 1); torch.cov takes variables as rows
    return codes.mean(0), torch.cov(codes.mT)
    ### END SOLUTION


# %% points=1
checks.fitted_gaussian(fitted_gaussian)

# %%
pyro.set_rng_seed(1)
num_samples = len(data.x_test)


def draws_like(points):
    """As many draws as test images from the Gaussian fitted to points [N, D]."""
    mean, covariance = fitted_gaussian(points)
    covariance = covariance + 1e-6 * torch.eye(len(mean))
    fitted = torch.distributions.MultivariateNormal(mean, covariance)
    return fitted.sample((num_samples,))


@torch.no_grad()
def decode(model, z):
    return model.likelihood(z).mean


small_codes = small_guide.posterior_mean(data.x_train)
for z in (codes, small_codes):
    low, high = z.std(0).min(), z.std(0).max()
    print(f"{z.shape[1]} codes: means up to {z.mean(0).abs().max():.2f}, σ {low:.2f} to {high:.2f}")

samples = {
    "60 codes, N(0, I)": decode(model, torch.randn(num_samples, 60)),
    "60 codes, fitted": decode(model, draws_like(codes)),
    "6 codes, N(0, I)": decode(small_model, torch.randn(num_samples, 6)),
    "6 codes, fitted": decode(small_model, draws_like(small_codes)),
    "no codes, fitted to pixels": draws_like(data.x_train),
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
# **Discuss.** Why is the number above no success, although it is a log-likelihood of real images?
#
# ### BEGIN SOLUTION
# It is a density of numbers that lie on a grid of 17 grey levels. A density may be as high as it
# likes on a set of volume zero, and each point of the grid is such a set. An honest density of grey
# levels spreads each level over a cell of width 1/17, and cannot exceed log 17 a pixel.
# ### END SOLUTION
#
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
# 2. Between which digits does a straight line of codes pass through images that are no digits?
# 3. Fit a Gaussian *per digit* to the codes. Does realism improve? What is the model then?
