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
# # 5. Importance-weighted evidence
#
# log p(x) says how well a model explains the data. It is an integral over z, and nearly every
# number that is printed for it is an estimate, mostly from below. This notebook makes estimates by
# importance weighting, beside a log p(x) that is known exactly, and asks: how far off, how would we
# notice, and what may be claimed? Notebook 6 does the same for annealing.
#
# **Goal.** Write the estimate and both of its error bars, read k̂ and ESS, and know the one fault
# that neither of them sees. Four functions are yours to write.
#
# All runs offline, on data drawn from the models.

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

from evidence.guides import FullRank, MeanField
from evidence.inference import estimate_evidence, fit, log_weights
from evidence.inference.estimation.comparison import compare_elbos
from evidence.inference.programs.estimators import iwae_curve
from evidence.models import GaussianMixture2D, LinearGaussian
from evidence.notebooks import checks

torch.set_num_threads(1)  # nets this small gain nothing from a second thread
plt.rcParams["font.size"] = 12


def with_se(values):
    """Mean ± standard error of a tensor [N]."""
    return f"{values.mean():+.3f} ± {values.std() / math.sqrt(len(values)):.3f}"


# %% [markdown]
# ## A model that knows the answer
#
# z ~ N(0, I) with 8 entries, x ~ N(Wz, 0.5² I) with 10. Then x ~ N(0, WWᵀ + 0.5² I), so log p(x) is
# exact. Two guides with linear encoders: `MeanField` has independent entries and cannot be right,
# `FullRank` has a full covariance and can.

# %%
pyro.set_rng_seed(0)
model = LinearGaussian(10, 8).requires_grad_(False)
model.weight.normal_()
model.log_scale.fill_(math.log(0.5))
x_train = model(size=2000)
guides = {
    "MeanField": MeanField(8, 10, hidden_dims=()),
    "FullRank": FullRank(8, 10, hidden_dims=()),
}
for guide in guides.values():
    fit(model, guide, x_train, num_epochs=40, lr=0.02, lr_decay=0.92, progress=False)


x = model(size=100)
exact = model.log_evidence(x)
print(f"log p(x): {exact.mean():.3f} nats per datum, of {len(x)} data")

# %% [markdown]
# ## The estimate
#
# Draw $z_1, \dots, z_K \sim q(z \mid x)$ and weigh each, $w_k = p(x, z_k) / q(z_k \mid x)$. The
# weights average to p(x). So
#
# $$\log \hat p(x) = \log \frac1K \sum_{k=1}^K w_k, \qquad
# \mathrm{ELBO} = \mathrm E_q[\log w] \;\le\; L_K = \mathrm E_q[\log\hat p(x)] \;\le\; L_{K+1}
# \;\le\; \log p(x)$$
#
# (Burda et al. 2016, https://arxiv.org/abs/1509.00519). Computers have only the logs: a weight of
# an image may be e⁻⁸⁰⁰, which is zero as a floating-point number.


# %%
def log_mean_exp(log_w):
    """Log of the mean weight of each datum, from log-weights of K draws: [K, N] -> [N]."""
    ### BEGIN SOLUTION
    # Hint: logsumexp over the draws, minus log K
    return log_w.logsumexp(0) - math.log(len(log_w))
    ### END SOLUTION


# %% points=2
checks.log_mean_exp(log_mean_exp)

# %% [markdown]
# How many draws do the work? If one weight is as large as all others together, few. The effective
# sample size is
#
# $$\mathrm{ESS} = \frac{1}{\sum_k \tilde w_k^2}, \qquad \tilde w_k = \frac{w_k}{\sum_j w_j},$$
#
# from K, if all weights are equal, down to 1. It also gives the standard error of
# $\log\hat p(x)$ over other draws, by the delta method: $\sqrt{1/\mathrm{ESS} - 1/K}$.


# %%
def effective_sample_size(log_w):
    """ESS of the weights of each datum: [K, N] -> [N]."""
    ### BEGIN SOLUTION
    # Hint: the shares are log_w.softmax over the draws; one over the sum of their squares
    return 1 / log_w.softmax(0).square().sum(0)
    ### END SOLUTION


# %% points=1
checks.effective_sample_size(effective_sample_size)


# %%
def mc_se(log_w):
    """Monte Carlo standard error of log_mean_exp, in nats: [K, N] -> [N]."""
    ### BEGIN SOLUTION
    # Hint: √(1/ESS − 1/K)
    return (1 / effective_sample_size(log_w) - 1 / len(log_w)).sqrt()
    ### END SOLUTION


# %% points=2
checks.mc_se(mc_se)

# %% [markdown]
# Now everything on the same 100 data. The last column is the *paired* difference, estimate minus
# exact, datum by datum.

# %%
NUM_PARTICLES, CURVE = 20_000, [1, 3, 10, 30, 100, 300, 1000, 3000, 10_000]
pyro.set_rng_seed(1)
log_w = {name: log_weights(model, guide, x, NUM_PARTICLES) for name, guide in guides.items()}
curves = {name: iwae_curve(w.double(), CURVE) - exact for name, w in log_w.items()}  # [9, N]

rows = []
for name, w in log_w.items():
    by_k = {"ELBO": w.mean(0)} | {f"IW-{k:,}": log_mean_exp(w[:k]) for k in (100, 1000, 10_000)}
    for estimate, values in by_k.items():
        rows.append([name, estimate, f"{values.mean():.3f}", with_se(values - exact)])
rows.append(["", "exact", f"{exact.mean():.3f}", ""])
headers = ["guide", "estimate", "nats per datum", "minus exact ± SE"]
print(tabulate(rows, headers=headers, disable_numparse=True))
few = log_mean_exp(log_w["MeanField"][:100]).mean()
assert log_w["MeanField"].mean() < few < log_mean_exp(log_w["MeanField"]).mean() < exact.mean()

# %% [markdown]
# The same estimates with their error bars, of one datum: as K grows they rise, and the bars shrink.

# %%
figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", sharey=True)
for axes, (name, w) in zip(panels, log_w.items(), strict=True):
    counts = [10, 30, 100, 300, 1000, 3000, 10_000]
    estimates = [log_mean_exp(w[:k])[3] for k in counts]
    errors = [2 * mc_se(w[:k])[3] for k in counts]
    axes.errorbar(counts, estimates, errors, fmt="o", capsize=5, label="log p̂(x) ± 2 SE")
    axes.axhline(exact[3], color="black", linewidth=1, label="log p(x)")
    axes.set(xscale="log", xlabel="draws K", title=f"{name}, one datum")
    axes.locator_params(axis="y", nbins=5)
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)
panels[0].set_ylabel("log p̂(x) (nats)")

# %% [markdown]
# ## How the gap shrinks
#
# If the weights have a finite variance, then for large K
#
# $$\log p(x) - L_K \approx \frac{1}{2K} \operatorname{Var}\Bigl[\frac{w}{p(x)}\Bigr]$$
#
# (Domke & Sheldon 2018, https://arxiv.org/abs/1808.09034): ten times the draws, a tenth
# of the gap. If the variance is infinite, nothing of the kind holds. For Gaussians this can be
# decided. With precision matrices P of the posterior and Q of the guide, the variance is finite
# exactly when 2P − Q is positive definite.

# %%
posterior = model.posterior(x[:1])
with torch.no_grad():
    precisions = {
        "MeanField": torch.diag_embed(guides["MeanField"].posterior(x).base_dist.scale ** -2),
        "FullRank": guides["FullRank"].posterior(x).precision_matrix,
    }
for name, precision in precisions.items():
    smallest = torch.linalg.eigvalsh(2 * posterior.precision_matrix - precision).min(-1).values
    print(
        f"{name}: smallest eigenvalue of 2P − Q is {smallest.min():.2f} to {smallest.max():.2f}; "
        f"finite variance for {(smallest > 0).double().mean():.0%} of the data"
    )
for name, curve in curves.items():
    gaps = -curve[[CURVE.index(100), CURVE.index(1000)]].mean(1)
    print(f"{name}: gap {gaps[0]:.4f} nats at K = 100, {gaps[1]:.4f} at K = 1,000")

# %%
figure, axes = plt.subplots(figsize=(7, 4.4), layout="constrained")
for number, (name, curve) in enumerate(curves.items()):
    gap, se = -curve.mean(1), curve.std(1) / math.sqrt(len(x))
    seen = gap > 2 * se  # points that are lost in noise are left out
    counts = torch.tensor(CURVE)[seen]
    style = {"color": f"C{number}", "fmt": ["o-", "s--"][number], "capsize": 4}
    axes.errorbar(counts, gap[seen], 2 * se[seen], label=f"{name}, ± 2 SE", **style)
axes.plot(CURVE[3:], 2.0 / np.array(CURVE[3:]), "k:", label="a slope of 1/K")
axes.set(xscale="log", yscale="log", ylim=(1e-3, 6), xlabel="draws K")
axes.set(ylabel="log p(x) − IW-K (nats per datum)")
axes.legend(loc="lower left")
axes.grid(alpha=0.3)

# %% [markdown]
# `FullRank` falls like 1/K. `MeanField` has infinite variance, and its gap creeps.
#
# With data that have an exact answer we can draw such pictures. Without one, what is there to look
# at? The weights themselves. Here they are for one datum, relative to their mean.

# %%
figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", sharex=True)
for axes, (name, w) in zip(panels, log_w.items(), strict=True):
    relative = (w - log_mean_exp(w))[:, 3]
    share = (relative - math.log(len(w))).exp().sort(descending=True).values
    axes.hist(relative.numpy() / math.log(10), bins=80, color="C0", log=True)
    axes.set_title(
        f"{name}: ESS {effective_sample_size(w)[3]:,.0f} of {len(w):,},\n"
        f"largest 1%: {share[: len(w) // 100].sum():.0%} of the sum"
    )
    axes.set_xlabel("log₁₀ (weight / mean weight)")
    axes.locator_params(axis="x", nbins=5, integer=True)
    axes.grid(alpha=0.3)
panels[0].set_ylabel("draws")

# %% [markdown]
# ## What k̂ says
#
# k̂ is the shape of a Pareto tail fitted to the largest weights of a datum. Weights have a finite
# variance only if the true tail shape is below ½. Above min(1 − 1/log₁₀ K, 0.7), neither the
# estimate nor its error bar is to be trusted (Vehtari et al. 2024,
# https://jmlr.org/papers/v25/19-556.html).
#
# Put it to the test: 100 independent estimates of each datum with K = 1,000, and the share of them
# whose interval of ± 2 Monte Carlo SE holds the exact value. It should be about 95%.

# %%
NUM_REPEATS = 100
x_few, exact_few = x[:20], exact[:20]
pyro.set_rng_seed(2)
rows, coverage = [], {}
for name, guide in guides.items():
    iw = estimate_evidence(model, guide, x_few.repeat(NUM_REPEATS, 1), 1000)["iw"]
    off = iw.log_px - exact_few.repeat(NUM_REPEATS)
    se = iw.log_px_variance.sqrt()
    coverage[name] = (off.abs() < 2 * se).double().mean().item()
    stated, real = se.square().mean().sqrt(), off.square().mean().sqrt()
    ess = iw.ess.median()
    rows.append([name, iw.k_hat.median(), f"{iw.share_bad:.0%}", f"{ess:.0f}", stated, real])
    rows[-1].append(f"{coverage[name]:.0%}")
headers = ["guide", "median k̂", "bad k̂", "ESS", "stated SE", "real error", "held"]
print(tabulate(rows, headers=headers, floatfmt=(None, ".2f", None, None, ".3f", ".3f", None)))
print(f"\nK = 1,000: k̂ is bad above {iw.k_hat_threshold:.2f}; SE and error in nats, for one datum")
se = math.sqrt(0.95 * 0.05 / (NUM_REPEATS * len(x_few)))
assert coverage["FullRank"] > 0.95 - 5 * se
assert coverage["MeanField"] < 0.95 - 5 * se

# %% [markdown]
# Where k̂ is bad, the stated error is too small, and nearly half of the intervals miss. So read k̂
# first.
# %% [markdown]
# ## Two error bars
#
# A mean over 20 data has two kinds of error.
#
# - **Monte Carlo**: other draws of z, the same data. `mc_se` estimates it; more draws shrink it.
# - **Data**: other data from the same source. `data_se` estimates it; more data shrink it.
#
# Both can be checked by doing it: 100 times new draws, 100 times new data.


# %%
def data_se(log_px):
    """Standard error of the mean over the data, from log p̂ of each: [N] -> a number, in nats."""
    ### BEGIN SOLUTION
    # Hint: the standard deviation over the data (N − 1), divided by √N
    return log_px.std() / math.sqrt(len(log_px))
    ### END SOLUTION


# %% points=1
checks.data_se(data_se)

# %%
pyro.set_rng_seed(3)
guide, num_particles = guides["FullRank"], 100
record = estimate_evidence(model, guide, x_few, num_particles)["iw"]
print(record)
by_hand = float(data_se(record.log_px))
print(f"by hand {by_hand:.4f}; the record takes out the draws' share: {record.data_se:.4f}")
assert record.data_se <= by_hand < 1.1 * record.data_se

again = estimate_evidence(model, guide, x_few.repeat(NUM_REPEATS, 1), num_particles)["iw"]
same_data = again.log_px.reshape(NUM_REPEATS, -1).mean(1)  # [100]
other_x = model(size=NUM_REPEATS * len(x_few))
other = estimate_evidence(model, guide, other_x, num_particles)["iw"]
other_data = other.log_px.reshape(NUM_REPEATS, -1).mean(1)  # [100]
both = math.hypot(record.mc_se, record.data_se)
rows = [
    ["new draws, same data", record.mc_se, same_data.std()],
    ["new draws, new data", both, other_data.std()],
]
headers = ["20 data, K = 100 (nats)", "SE stated by one record", "spread of 100 means"]
print("\n" + tabulate(rows, headers=headers, floatfmt=".3f"))

# %% [markdown]
# Both come out as stated. (A data SE that is estimated from 20 data is itself uncertain, by about
# one part in $\sqrt{2 \cdot 19}$, 16%.) The data error is by far the larger. It is why two papers
# with different test sets cannot be compared to a tenth of a nat. It is *not* the error of a
# comparison on the same data, as we shall see.
# %% [markdown]
# ## What k̂ does not notice
#
# A posterior with two modes, and a guide that has found one of them. The other mode has weight 0.38
# for the x below, and lies about ten standard deviations away.

# %%
two_modes = GaussianMixture2D(2, num_components=2, component_scale=0.4)
x_one = torch.tensor([[0.3, 0.5]])
truth = two_modes.log_evidence(x_one).item()
pyro.set_rng_seed(0)
one_mode = MeanField(2, 2, hidden_dims=())
with torch.no_grad():
    one_mode.encoder[-1].bias[:2] = torch.tensor([0.0, 2.0])  # start at the upper mode
x_two_modes = two_modes(size=2000)
fit(two_modes, one_mode, x_two_modes, num_epochs=40, lr=0.02, lr_decay=0.92, progress=False)

pyro.set_rng_seed(4)
iw = estimate_evidence(two_modes, one_mode, x_one, 10_000)["iw"]
weight = two_modes.posterior(x_one).mixture_distribution.probs.max()
print(f"log p(x) − IW = {truth - iw.mean:.4f} nats, stated Monte Carlo SE {iw.mc_se:.4f}")
print(f"k̂ = {iw.k_hat[0]:.2f}, effective sample size {iw.ess[0]:,.0f} of 10,000")
print(f"−log(mass of the upper mode) = {-weight.log():.4f} nats")
assert iw.k_hat[0] < 0.5
assert truth - iw.mean > 100 * iw.mc_se

# %% [markdown]
# Every diagnostic is perfect, and the estimate is low by thousands of its error bars. Draws cannot
# tell of a place where no draw has been. Notebook 6 has two ways to notice.
#
# **Discuss.** Which of these would have helped: ten times the draws, a Pareto-smoothed estimate, a
# guide with heavier tails?
#
# ### BEGIN SOLUTION
# Only the last, and only if the tails reach ten standard deviations: one draw in a million from a
# Gaussian lies five away. Smoothing mends a tail that is seen. More draws of the same kind look at
# the same place. A share of draws from the prior (a defensive mixture) would reach the other mode.
# ### END SOLUTION

# %% [markdown]
# ## Comparing two guides
#
# Back to the linear model, where both guides have the same log p(x). So it cancels:
# ELBO_A − ELBO_B = KL(q_B ‖ p) − KL(q_A ‖ p). `compare_elbos` takes the difference *datum by
# datum*, where the data error nearly cancels too, and states a winner only where the 95% interval
# excludes 0, for these fits: other seeds give other fits, and several records of one label tell.
#
# A third guide is `FullRank` again, with other initial weights and another order of the data.

# %%
pyro.set_rng_seed(5)
twin = FullRank(8, 10, hidden_dims=())
fit(model, twin, x_train, num_epochs=40, lr=0.02, lr_decay=0.92, seed=1, progress=False)
x_test = model(size=200)
candidates = guides | {"FullRank, seed 1": twin}
records = {n: estimate_evidence(model, g, x_test, 500)["elbo"] for n, g in candidates.items()}
for name, record in records.items():
    print(f"{name:>16}: {record}")
print()
comparisons = compare_elbos(records)
for comparison in comparisons:
    difference = comparison.difference
    low, high = difference.interval()
    print(f"{comparison.first} − {comparison.second}: {difference.mean:+.3f} nats per datum,")
    print(f"    95% interval {low:+.3f} to {high:+.3f}: {comparison.verdict}")
assert comparisons[0].winner == "FullRank"

again = estimate_evidence(model, guides["FullRank"], x_test, 500)["elbo"]
control = compare_elbos({"FullRank": records["FullRank"], "the same with new draws": again})[0]
print(f"\n{control.first} − {control.second}: {control.difference.mean:+.3f} nats per datum,")
print(f"    {control.verdict}")
assert control.winner is None

# %% [markdown]
# The last pair differs by less than the data SE of either ELBO. Side by side as "mean ± SE" nobody
# could tell the two apart. The paired difference has a small error of its own, and does. A guide
# against itself is the control: nothing must be found, and nothing is.
#
# **Next:** `06_annealing` estimates log p(x) without trusting a guide, and from above as well.
#
# ## Try it
#
# 1. Set the number of factors of the model to 2 and to 10. How does the gap of IW-1,000 grow?
# 2. Estimate with `defensive=0.1` in `estimate_evidence` what `one_mode` has missed. What does k̂
#    say then?
# 3. Replace `one_mode` by `Mixture(2, 2, num_components=2)`. Are both modes found from one start?
