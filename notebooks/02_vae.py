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
# # 2. The variational autoencoder
#
# Notebook 1 ended with a decoder, a point per image and no prior. Now the model is complete:
#
# $$z \sim \mathrm N(0, I), \qquad x \mid z \sim \mathrm N(\mu(z), \sigma^2(z)),$$
#
# and the guide is a Gaussian instead of a point: $q(z \mid x) = \mathrm N(\mu(x), \sigma^2(x))$,
# all with diagonal covariances. Both are trained on one number, the evidence lower bound
#
# $$\mathrm{ELBO}(x) = \mathrm E_{q}[\log p(x \mid z)] - \mathrm{KL}(q(z \mid x) \,\|\, p(z))
# = \log p(x) - \mathrm{KL}(q(z \mid x) \,\|\, p(z \mid x)) \le \log p(x).$$
#
# The first term wants good reconstructions, the second wants codes that look like the prior.
#
# All runs offline, on 8×8 digits that come with scikit-learn. For real MNIST, write
# `load("mnist", data_root="folder/of/the/archives")` below: seconds become minutes, and numbers in
# the text and in an `assert` are no longer those of the data.
#
# **Goal.** Write the loss of a VAE from its parts, know what each part is for, and report evidence
# with two error bars. Five functions are yours to write, each with a check.

# %%
# %matplotlib inline
import math
import warnings

warnings.filterwarnings("ignore", "IProgress")  # a Jupyter widget that nothing here needs

import matplotlib.pyplot as plt
import pyro
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from tabulate import tabulate

from evidence.experiments.reports import plots
from evidence.experiments.setup.datasets import load
from evidence.experiments.setup.preprocessing import bits_per_dim, prepare
from evidence.guides import Delta, MeanField
from evidence.inference import (
    estimate_evidence,
    fit,
    importance_weighted_evidence,
    log_prob_terms,
    log_weights,
)
from evidence.inference.programs.estimators import iwae_curve
from evidence.models import VAE, Autoencoder
from evidence.notebooks import checks

torch.set_num_threads(1)  # nets this small gain nothing from a second thread
plt.rcParams["font.size"] = 12
data = load("digits")
print(f"{len(data.x_train)} training and {len(data.x_test)} test images of {data.data_dim} pixels")


# %% [markdown]
# ## The two terms, written out
#
# For a Gaussian with diagonal covariance the log-density is a sum over entries,
#
# $$\log \mathrm N(x; \mu, \sigma^2) = \sum_d \Bigl[-\frac{(x_d - \mu_d)^2}{2\sigma_d^2}
# - \log\sigma_d - \tfrac12\log 2\pi\Bigr],$$
#
# and so is the KL divergence from N(0, I),
#
# $$\mathrm{KL} = \tfrac12\sum_j \bigl[\sigma_j^2 + \mu_j^2 - 1 - 2\log\sigma_j\bigr].$$
#
# Both functions take log σ (the reason comes below) and return nats, one number per datum.


# %%
def log_likelihood(x, mu, logsigma):
    """log N(x; mu, sigma²), summed over the entries of a datum: [..., D] -> [...]."""
    ### BEGIN SOLUTION
    # Hint: the formula above, with σ = exp(logsigma), summed over the last dimension
    standardized = (x - mu) / logsigma.exp()
    return -(standardized**2 / 2 + logsigma + math.log(2 * math.pi) / 2).sum(-1)
    ### END SOLUTION


# %% points=2
checks.log_likelihood(log_likelihood)


# %%
def KL_divergence(mu, logsigma):
    """KL(N(mu, sigma²) ‖ N(0, I)), summed over the entries: [..., Z] -> [...]."""
    ### BEGIN SOLUTION
    # Hint: the formula above, with σ² = exp(2 logsigma), summed over the last dimension
    return ((2 * logsigma).exp() + mu**2 - 1 - 2 * logsigma).sum(-1) / 2
    ### END SOLUTION


# %% points=2
checks.KL_divergence(KL_divergence)

# %% [markdown]
# An optimizer minimizes, and its learning rate should not depend on the size of the batch. So the
# loss is the *negative* ELBO, as a *mean* over the data.


# %%
def negative_elbo(log_p_x, kl):
    """The loss of a batch, from its log-likelihoods [B] and KL divergences [B]: a number."""
    ### BEGIN SOLUTION
    # Hint: −(log-likelihood − KL), averaged over the batch
    return (kl - log_p_x).mean()
    ### END SOLUTION


# %% points=1
checks.negative_elbo(negative_elbo)

# %% [markdown]
# ## The reparameterization trick
#
# The first term is an expectation under q, and q depends on the parameters. To differentiate it,
# draw ε ~ N(0, I), which depends on nothing, and write
#
# $$z = \mu + e^{\log\sigma}\,\varepsilon .$$
#
# Now z is a function of μ and log σ, with derivatives 1 and σε.


# %%
def reparameterize(mu, logsigma):
    """A draw from N(mu, sigma²) that can be differentiated: [..., Z], [..., Z] -> [..., Z]."""
    ### BEGIN SOLUTION
    # Hint: ε by torch.randn_like(mu); then the formula above
    return mu + logsigma.exp() * torch.randn_like(mu)
    ### END SOLUTION


# %% points=2
checks.reparameterize(reparameterize)

# %% [markdown]
# The older way is the score-function estimator: average $f(z)\,\nabla \log q(z)$. It needs no
# derivative of f, and it too is right on average. Compare the two where the answer is known:
# $f(z) = -\tfrac12\lVert z - 1\rVert^2$ and q = N(0, I). The gradients with respect to the first
# entries of μ and log σ are exactly 1 and −1.

# %%
num_draws = 100_000


def gradients(dim):
    """Both estimates for each draw: {estimator: [num_draws, 2]} for the first μ and log σ."""
    z = torch.randn(num_draws, dim)  # μ = 0 and σ = 1, so z = ε
    f = -((z - 1) ** 2).sum(1) / 2
    df = -(z - 1)[:, 0]
    return {
        "reparameterized": torch.stack([df, df * z[:, 0]], 1),
        "score function": torch.stack([f * z[:, 0], f * (z[:, 0] ** 2 - 1)], 1),
    }


exact = torch.tensor([1.0, -1.0])
rows = []
for name, draws in gradients(6).items():
    se = draws.std(0) / math.sqrt(num_draws)
    z_scores = (draws.mean(0) - exact) / se
    assert (z_scores.abs() < 5).all()
    rows.append([name, *(f"{m:.3f} ± {s:.3f}" for m, s in zip(draws.mean(0), se, strict=True))])
print(
    tabulate([["exact", "1", "-1"], *rows], headers=["6 latents", "d/dμ₁ ± SE", "d/d log σ₁ ± SE"])
)

# %% [markdown]
# Both are right. The error bars differ, and they differ more with every dimension: the score
# function multiplies by *all* of f, the trick only by the slope in its own direction.

# %%
dims = [1, 2, 4, 8, 16, 32, 64]
variances = {dim: {n: draws[:, 0].var() for n, draws in gradients(dim).items()} for dim in dims}

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for name in ("score function", "reparameterized"):
    axes.loglog(dims, [variances[dim][name] for dim in dims], "o-", base=2, label=name)
axes.set_xlabel("number of latents")
axes.set_ylabel("variance of one draw of d/dμ₁")
axes.legend()
axes.grid(alpha=0.3)
assert variances[64]["score function"] > 100 * variances[64]["reparameterized"]

# %% [markdown]
# ## Why log σ
#
# A network's output can be any real number. σ must be positive, log σ need not be. And σ differs by
# orders of magnitude from pixel to pixel. Take a residual of half a σ, at several σ. The loss says
# "σ is too large". How far does one gradient step of size 0.1 go?

# %%
step = 0.1
rows = []
for value in (10.0, 1.0, 0.1, 0.01):
    x, mu = torch.tensor([value / 2]), torch.zeros(1)
    sigma = torch.tensor([value], requires_grad=True)
    logsigma = torch.tensor([math.log(value)], requires_grad=True)
    log_likelihood(x, mu, sigma.log()).neg().backward()
    log_likelihood(x, mu, logsigma).neg().backward()
    torch.testing.assert_close(logsigma.grad, torch.tensor([0.75]))  # at every scale
    moved = [(sigma - step * sigma.grad).item(), (logsigma - step * logsigma.grad).exp().item()]
    rows.append([value, sigma.grad.item(), moved[0], logsigma.grad.item(), moved[1]])
headers = ["σ", "d loss / dσ", "σ after a step in σ", "d loss / d log σ", "after a step in log σ"]
print(tabulate(rows, headers=headers, floatfmt=".4g"))

# %% [markdown]
# In σ the step does nothing at 10 and ends below zero at 0.1: the next loss is NaN. In log σ it is
# 7% at every scale. Here is the run that breaks: one pixel, one start, one optimizer.

# %%
residual = torch.tensor([0.05])


def descend(to_logsigma, start, num_steps=60):
    """σ after each step of gradient descent on its parameter, until it is no number."""
    parameter, path = torch.tensor([start], requires_grad=True), []
    for _ in range(num_steps):
        logsigma = to_logsigma(parameter)
        path.append(logsigma.exp().item())
        value = -log_likelihood(residual, torch.zeros(1), logsigma)
        if not torch.isfinite(value):
            break
        (slope,) = torch.autograd.grad(value, parameter)
        parameter = (parameter - step * slope).detach().requires_grad_()
    return path


in_sigma, in_logsigma = descend(torch.log, 0.5), descend(lambda p: p, math.log(0.5))
print("in σ:    ", ", ".join(f"{sigma:.3f}" for sigma in in_sigma[-4:]), "after", len(in_sigma))
print(
    "in log σ:", ", ".join(f"{sigma:.3f}" for sigma in in_logsigma[-4:]), "after", len(in_logsigma)
)
assert not math.isfinite(in_sigma[-1])
assert abs(in_logsigma[-1] - 0.05) < 0.01

# %% [markdown]
# **Discuss.** Would `sigma = softplus(parameter)` do as well as the exponential?
#
# ### BEGIN SOLUTION
# It keeps σ positive, so the run does not break. But for small σ it is the exponential anyway, and
# for large σ it is linear: there a step in the parameter is again a step in σ, whose gradient dies
# like 1/σ. The exponential makes the same relative step at every scale.
# ### END SOLUTION
#
# ## Grey levels are not real numbers
#
# A density can be as high as it likes on a narrow spot. Three border pixels are black in every
# training image. Put μ there and let σ → 0, and the log-likelihood grows without bound, with no
# merit to the model. Two measures, both in the suite:
#
# - **Dequantization.** Add uniform noise as wide as one grey level, fresh for each minibatch:
#   (16x + u)/17, u ~ U[0, 1). Now no pixel is constant.
# - **A floor on σ.** `VAE(likelihood="gaussian(scale_floor=...)")`, in units of x.
#
# The picture is the likelihood of one black pixel at the best μ, without and with noise.

# %%
black = (data.x_train == 0).all(0)
print(
    f"{black.sum()} pixels are black in all images; {(data.x_train == 0).float().mean():.0%} of all"
)

logsigma = torch.linspace(math.log(1e-6), 0, 200)
as_grey_level = log_likelihood(torch.zeros(200, 1), torch.zeros(1), logsigma[:, None])
noise_variance = 1 / 12 / data.num_levels**2
with_noise = as_grey_level - noise_variance / 2 * (-2 * logsigma).exp()

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
axes.semilogx(logsigma.exp(), as_grey_level, label="grey level: no end")
axes.semilogx(logsigma.exp(), with_noise, label="dequantized: a maximum")
axes.axvline(math.sqrt(noise_variance), color="black", linestyle=":", label="σ of the noise")
axes.set_ylim(-3, 14)
axes.set_xlabel("σ of the pixel (units of x)")
axes.set_ylabel("E[log p(pixel | z)] (nats)")
axes.legend()
axes.grid(alpha=0.3)

# %% [markdown]
# The same on whole images. A density of dequantized grey levels has a ceiling: by Jensen's
# inequality $\mathrm E_u \log p(x + u) \le \log \int p(x + u)\,du$, which is the log-probability of
# the grey levels plus D log L ≤ D log L, with L levels. For 64 pixels with 17 levels that is 181.3
# nats. Densities of bare grey levels have no ceiling, as notebook 1 saw.
#
# Short trainings with three floors show which number can be trusted.

# %%
x_train, x_test, dequantize = prepare(
    data.x_train, data.x_test, binarize="none", num_levels=data.num_levels, seed=0
)
in_closed_form = TraceMeanField_ELBO()  # more on it below
by_floor, rows = {}, []
for floor in (0.1, 0.01, 0.001):
    row = [floor]
    for test, transform in ((data.x_test, None), (x_test, dequantize)):
        pyro.set_rng_seed(0)
        likelihood = f"gaussian(scale_floor={floor})"
        model = VAE(data.data_dim, 6, likelihood=likelihood, hidden_dims=(200,))
        guide = MeanField(6, data.data_dim, hidden_dims=(200,))
        history = fit(
            model,
            guide,
            x_train,
            x_test=test,
            transform=transform,
            objective=in_closed_form,
            num_epochs=40,
            lr=3e-3,
            lr_decay=0.95,
            progress=False,
        )
        row.append(-history.test_loss[-1])
    by_floor[floor] = model  # the one with dequantized data
    rows.append(row)
headers = ["floor on σ", "test ELBO, grey levels", "test ELBO, dequantized (nats per image)"]
print(tabulate(rows, headers=headers, floatfmt=("g", ".1f", ".1f")))
assert rows[2][1] > rows[1][1] > rows[0][1]
assert abs(rows[2][2] - rows[1][2]) < 5

# %% [markdown]
# On grey levels the "ELBO" follows the floor. Dequantized, it stops at the noise (σ = 0.017).
#
# A floor of 0.01 scores 20 nats more than 0.1. Half of all pixels are black, and a small σ pays for
# saying which. The codes are spent on that, and samples get worse, as a table below shows.
# A good likelihood does not make good pictures, nor the reverse (Theis et al. 2016,
# https://arxiv.org/abs/1511.01844). For its pictures this notebook takes the floor 0.1. No ELBO may
# be compared across these choices without saying so.
#
# ## Training
#
# 600 ELU units, 6 latents, Adam, batches of 128. The same pair twice, from the same weights:
#
# - `Trace_ELBO` draws z and averages log p(x, z) − log q(z | x);
# - `TraceMeanField_ELBO` takes the KL term in closed form and averages log p(x | z) alone.


# %%
def new_pair(latent_dim, hidden_dims=(600,)):
    pyro.set_rng_seed(0)
    nets = {"hidden_dims": hidden_dims}
    model = VAE(data.data_dim, latent_dim, likelihood="gaussian(scale_floor=0.1)", **nets)
    return model, MeanField(latent_dim, data.data_dim, **nets)


def train(model, guide, objective):
    return fit(
        model,
        guide,
        x_train,
        x_test=x_test,
        transform=dequantize,
        objective=objective,
        num_epochs=150,
        lr=3e-3,
        lr_decay=0.98,
        progress=False,
    )


histories = {"KL by sampling": train(*new_pair(6), Trace_ELBO())}

# %%
model, guide = new_pair(6)
histories["KL in closed form"] = train(model, guide, in_closed_form)
for name, history in histories.items():
    last = history.epochs[-1]
    print(f"{name}: test ELBO {-last.test_loss:.2f} = {last.reconstruction:.2f} − {last.kl:.2f}")
plots.training_curves(histories)

# %% [markdown]
# The curves nearly lie on each other: both objectives are the same number on average. Do they
# differ in noise? Take one batch and ask for the gradient 100 times, at fresh weights and at
# trained ones.


# %%
def gradient_noise(model, guide, elbo, num_repeats=100):
    """Variance of the encoder's gradient, summed over its weights, ± SE, on one batch."""
    gradients = []
    for _ in range(num_repeats):
        loss = elbo.differentiable_loss(model, guide, x_test[:128]) / 128
        parts = torch.autograd.grad(loss, list(guide.parameters()))
        gradients.append(torch.cat([part.flatten() for part in parts]))
    gradients = torch.stack(gradients)
    squared_distance = (gradients - gradients.mean(0)).square().sum(1)
    return squared_distance.mean().item(), squared_distance.std().item() / num_repeats**0.5


pyro.set_rng_seed(1)
rows = []
for name, pair in {"fresh": new_pair(6), "trained": (model, guide)}.items():
    noise = [gradient_noise(*pair, elbo) for elbo in (Trace_ELBO(), in_closed_form)]
    rows.append([name, *(f"{variance:.1f} ± {se:.1f}" for variance, se in noise)])
    if name == "fresh":
        assert noise[0][0] > 2 * noise[1][0]
print("variance of the encoder's gradient ± SE")
print(tabulate(rows, headers=["weights", "KL by sampling", "KL in closed form"]))

# %% [markdown]
# The closed form is much quieter at the start. At the end the two differ little: nearly all that is
# left is the noise of the reconstruction term, which both have. Closed forms exist for few pairs of
# distributions. For flows (notebook 3) there is none, and sampling will do.
#
# ## The suite's ELBO is the one written out above
#
# Same model, same guide, two programs: ours with `log_likelihood` and `KL_divergence`, and
# `log_prob_terms`, which traces any Pyro pair. They must agree within Monte Carlo error.

# %%
pyro.set_rng_seed(2)
num_particles = 200
with torch.no_grad():
    q = guide.posterior(x_test).base_dist
    mu, logsigma = q.loc, q.scale.log()  # [B, Z]
    many = num_particles, *mu.shape
    z = reparameterize(mu.expand(many), logsigma.expand(many))  # [S, B, Z]
    p = model.likelihood(z).base_dist
    written_out = log_likelihood(x_test, p.loc, p.scale.log()) - KL_divergence(mu, logsigma)

suite = log_prob_terms(model, guide, x_test, num_particles).log_w  # [S, B]
by_draw = written_out.mean(1), suite.mean(1)  # mean over the images, for each particle
difference = (by_draw[0].mean() - by_draw[1].mean()).item()
se = math.sqrt(sum(draws.var().item() / num_particles for draws in by_draw))
print(f"written out {by_draw[0].mean():.3f}, suite {by_draw[1].mean():.3f} nats per image")
print(f"difference {difference:.3f} ± {se:.3f}")
assert abs(difference) < 5 * se

# %% [markdown]
# ## A training loop of your own
#
# `fit` hides nothing: here are your five functions in a loop. A small VAE, two hundred steps.

# %%
pyro.set_rng_seed(0)
encoder = torch.nn.Sequential(
    torch.nn.Linear(data.data_dim, 100), torch.nn.ELU(), torch.nn.Linear(100, 2 * 6)
)
decoder = torch.nn.Sequential(
    torch.nn.Linear(6, 100), torch.nn.ELU(), torch.nn.Linear(100, 2 * data.data_dim)
)
optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=3e-3)
losses = []
for _ in range(200):
    batch = dequantize(x_train[torch.randint(len(x_train), (128,))])
    mu, logsigma = encoder(batch).chunk(2, dim=-1)
    mu_x, logsigma_x = decoder(reparameterize(mu, logsigma)).chunk(2, dim=-1)
    logsigma_x = logsigma_x.clamp(min=math.log(0.1))  # the floor
    log_p_x = log_likelihood(batch, mu_x, logsigma_x)
    value = negative_elbo(log_p_x, KL_divergence(mu, logsigma))
    optimizer.zero_grad()
    value.backward()
    optimizer.step()
    losses.append(value.item())
at_the_end = sum(losses[-20:]) / 20
print(f"loss {losses[0]:.1f} at the first step, {at_the_end:.1f} at the end (nats per image)")
assert at_the_end < 0

# %% [markdown]
# ## Reconstructions
#
# At test time take the posterior mean as the code, not a draw. A draw adds noise that was needed
# for training only.

# %%
with torch.no_grad():
    from_mean = model.likelihood(guide.posterior_mean(x_test)).mean
    from_draw = model.likelihood(guide.posterior(x_test).sample()).mean


def with_se(values):
    """Mean ± standard error of a tensor [N]."""
    return f"{values.mean():.3f} ± {values.std() / math.sqrt(len(values)):.3f}"


errors = [(x_test - x_hat).square().sum(1) for x_hat in (from_mean, from_draw)]
print(f"squared error per test image: code = mean {with_se(errors[0])}")
print(f"                              code = draw {with_se(errors[1])}")
print(f"paired difference {with_se(errors[1] - errors[0])}")
assert (errors[1] - errors[0]).mean() > 0
step = len(x_test) // 12
plots.reconstructions(
    x_test[::step], from_mean[::step], data.image_shape, title="test images, VAE with 6 latents"
)

# %% [markdown]
# ## Samples: VAE beside autoencoder
#
# Train the autoencoder of notebook 1 again, with 6 codes. Then draw codes from N(0, I) for both.
# For the VAE this is the prior it was trained with. Pictures show the decoder's mean μ(z).

# %%
pyro.set_rng_seed(0)
autoencoder, point_guide = Autoencoder(data.data_dim, 6), Delta(6, data.data_dim)
fit(autoencoder, point_guide, x_train, transform=dequantize, num_epochs=60, progress=False)

pyro.set_rng_seed(1)
z = torch.randn(len(x_test), 6)
codes = point_guide.posterior_mean(x_train)
fitted = torch.distributions.MultivariateNormal(codes.mean(0), torch.cov(codes.mT))
with torch.no_grad():
    samples = {
        "autoencoder, N(0, I)": autoencoder.likelihood(z).mean,
        "autoencoder, fitted Gaussian": autoencoder.likelihood(fitted.sample((len(z),))).mean,
        "VAE": model.likelihood(z).mean,
        "small VAE, floor 0.1": by_floor[0.1].likelihood(z).mean,
        "small VAE, floor 0.01": by_floor[0.01].likelihood(z).mean,
    }
plots.gallery(
    samples["autoencoder, N(0, I)"][:30], data.image_shape, title="autoencoder, z ~ N(0, I)"
)

# %%
plots.gallery(samples["VAE"][:30], data.image_shape, title="VAE, z ~ N(0, I)")

# %% [markdown]
# The measure of notebook 1: realism is the distance of a sample to the nearest training image,
# coverage the distance of a test image to the nearest sample.


# %%
def nearest(from_images, to_images):
    """Distance of each image [N, D] to the nearest of the others [M, D]: [N]."""
    parts = from_images.split(500)  # all at once would need gigabytes on MNIST
    return torch.cat([torch.cdist(part, to_images).min(1).values for part in parts])


realism = {name: nearest(x, x_train) for name, x in samples.items()}
rows = [[n, with_se(realism[n]), with_se(nearest(x_test, x))] for n, x in samples.items()]
some = x_train[torch.randperm(len(x_train))[: len(x_test)]]
rows.append(["real images", with_se(nearest(x_test, x_train)), with_se(nearest(x_test, some))])
print(tabulate(rows, headers=["", "realism (small is good)", "coverage (small is good)"]))
assert realism["VAE"].mean() < realism["autoencoder, N(0, I)"].mean() - 0.2
assert realism["small VAE, floor 0.1"].mean() < realism["small VAE, floor 0.01"].mean()

# %% [markdown]
# - The VAE's prior was part of its training, so drawing from it works. N(0, I) means nothing to the
#   autoencoder.
# - An autoencoder with a Gaussian fitted *after* training does as well by this measure. What it
#   lacks is an objective that covers both steps, and with it a log p(x).
# - The small VAEs differ in nothing but the floor. The one with the higher ELBO has the worse
#   samples.
#
# ## Two latents: the whole model on one page
#
# With two latents the latent plane can be drawn. Left to right and bottom to top are quantiles of
# the prior, so each picture stands for the same share of prior mass. Two numbers must say it all,
# so the nets get a second hidden layer to unfold them.

# %%
flat_model, flat_guide = new_pair(2, hidden_dims=(200, 200))
flat_history = train(flat_model, flat_guide, in_closed_form)
print(f"test ELBO {-flat_history.test_loss[-1]:.2f} nats per image with 2 latents")
plots.manifold(flat_model, data.image_shape)

# %%
codes = flat_guide.posterior_mean(x_test)
inside, expected = (codes.norm(dim=1) < 2).float().mean(), 1 - math.exp(-2)
print(f"{inside:.0%} of the codes lie within radius 2, and {expected:.0%} of the prior's mass")
figure = plots.latent_codes(
    codes, data.y_test, title="posterior means of the test images, prior N(0, I)"
)
for radius in (1, 2):  # where the prior puts its mass
    figure.axes[0].add_patch(plt.Circle((0, 0), radius, fill=False, color="grey", linestyle=":"))
figure.axes[0].set_aspect("equal")
figure

# %% [markdown]
# The guide never saw a label, yet digits of one kind are neighbours. Now the codes lie where the
# prior puts its mass (dotted: 1 and 2 standard deviations).
#
# ## Evidence, with two error bars
#
# The ELBO mixes two things: how good the model is, log p(x), and how good the guide is, the KL gap.
# Importance weighting shrinks the gap. With S draws $z_s \sim q(z \mid x)$ and weights $w_s = p(x,
# z_s) / q(z_s \mid x)$,
#
# $$\log \hat p(x) = \log \frac1S \sum_s w_s$$
#
# is a lower bound in expectation and goes to log p(x) as S grows (Burda et al. 2016,
# https://arxiv.org/abs/1509.00519). `estimate_evidence` computes both from the same weights.

# %%
pyro.set_rng_seed(3)
records = estimate_evidence(model, guide, x_test, num_particles=1000)
print(records["elbo"])
print(records["iw"])
ceiling = data.data_dim * math.log(data.num_levels)
assert records["elbo"].mean < records["iw"].mean < ceiling
bits = bits_per_dim(records["iw"].mean, data_dim=data.data_dim, num_levels=data.num_levels)
print(f"\ngap between the two: {records['iw'].mean - records['elbo'].mean:.2f} nats per image")
print(f"{bits:.2f} bits per pixel; a uniform guess costs {math.log2(data.num_levels):.2f}")

# %% [markdown]
# How to read a line:
#
# - The **Monte Carlo** error is what more particles would shrink. The data are held fixed.
# - The **data** error is what more test images would shrink. It is about other images from the same
#   source.
# - **NOT RELIABLE** stands where the weights themselves do not support the number; what k̂ is comes
#   below. Such a line states no Monte Carlo error, for it would be too small.
# - Comparing two guides on the *same* images, the data error mostly cancels. Comparing with another
#   paper's test set, it does not.
#
# The pictures show both. Each estimate uses its own draws. Monte Carlo bars shrink with S, data
# bars stay, and the estimate rises: more particles also mean less bias, which *no* bar shows. The
# bias is measured on one set of 3,000 draws, cut into blocks of S: by Jensen's inequality the mean
# over the blocks cannot exceed the estimate from all of them. The difference is what an estimate
# with S particles has still to rise, at least.

# %%
counts, most = [3, 10, 30, 100, 300, 1000], 3000
estimates = [importance_weighted_evidence(model, guide, x_test, count) for count in counts]
means = [estimate.mean for estimate in estimates]
mc_se, data_se = [e.mc_se for e in estimates], [e.data_se for e in estimates]
by_blocks = iwae_curve(log_weights(model, guide, x_test, most).double(), [*counts, most]).mean(1)
still_to_rise = by_blocks[-1] - by_blocks[:-1]
assert (still_to_rise > 0).all()

figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4), layout="constrained")
left.errorbar(counts, means, [2 * se for se in data_se], fmt="o", capsize=6, label="± 2 data SE")
left.axhline(records["elbo"].mean, color="black", linestyle=":", label="ELBO")
left.set_title("estimate of log p(x)")
left.set_ylabel("nats per test image")
right.loglog(counts, data_se, "o-", label="data SE")
right.loglog(counts, mc_se, "s-", label="Monte Carlo SE")
right.loglog(counts, still_to_rise, "k^:", label="still to rise")
right.set_title(f"standard errors, and bias against S = {most:,}")
right.set_ylabel("nats")
left.set_xscale("log")
left.set_ylim(bottom=min(means) - 2)
for axes in (left, right):
    axes.set_xlabel("number of particles S")
    axes.legend(loc="lower right" if axes is left else "lower left")
    axes.grid(alpha=0.3)
assert mc_se[0] > 2 * mc_se[-1]
assert means[-1] > means[0] > records["elbo"].mean

# %% [markdown]
# How far can the last point be trusted? The tail of the weights tells. k̂ is the shape of a Pareto
# tail fitted to them, per image. Above the threshold (0.67 for S = 1000) the average rests on a few
# huge weights: estimate and Monte Carlo error are then both too small (Vehtari et al. 2024,
# https://jmlr.org/papers/v25/19-556.html).

# %%
iw = records["iw"]
print(f"k̂: median {iw.k_hat.median():.2f}, above {iw.k_hat_threshold:.2f} for {iw.share_bad:.0%}")
print(f"effective sample size: median {iw.ess.median():.0f} of {iw.num_particles}")
print("the verdict:", "a lower bound" if iw.share_bad > 0.1 else "an estimate")

# %% [markdown]
# **Discuss.** The IW estimate lies above the ELBO by some nats. Has the model become better?
#
# ### BEGIN SOLUTION
# No: model and guide are the same, and so is log p(x). The ELBO lies below it by the KL divergence
# of the guide from the posterior; the weights make up for some of that. What a paper may report is
# a lower bound on log p(x) and how it was obtained, never the ELBO of one model against the IW
# value of another.
# ### END SOLUTION
#
# Where many k̂ are bad, say "lower bound" and mean it. Two cures: more particles, or a better
# guide.
#
# **Next:** `03_planar_flows` swaps the guide and keeps the model.
#
# ## Try it
#
# 1. Which of the six latents are used? Average `KL_divergence` over the test images, entry by
#    entry.
# 2. Train with `num_epochs=1000`. When does the test ELBO turn? What does the KL term do then?
# 3. Swap `MeanField` for `FullRank` in `new_pair`. Which of gap, ELBO and evidence move?
