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
# # 4. Swapping the guide
#
# A guide q(z | x) stands in for a posterior p(z | x) that it cannot reach exactly. Four things
# decide how close it comes, and they are easily confused:
#
# | | question | here |
# |---|---|---|
# | family | which densities *can* q be? | Gaussians, mixtures, flows |
# | objective | which of them counts as closest? | ELBO, importance-weighted bound, forward KL |
# | search | does gradient descent *find* it? | starts, warm-up |
# | encoder | does one network find it for *every* x? | the amortization gap |
#
# This notebook takes them one at a time, on posteriors in the plane, where a grid tells the truth.
# All runs offline.
#
# **Goal.** Measure a guide in both directions, draw what it holds, write one of your own, and say
# which of the four things is to blame for a gap. Four functions are yours to write.

# %%
# %matplotlib inline
import math
import warnings

warnings.filterwarnings("ignore", "IProgress")  # a Jupyter widget that nothing here needs

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from matplotlib.colors import BoundaryNorm
from pyro.infer import Trace_ELBO
from tabulate import tabulate

from evidence.guides import (
    AbstractGuide,
    FullRank,
    MeanField,
    Mixture,
    NeuralSpline,
    Planar,
    Refined,
)
from evidence.inference import estimate_evidence, fit
from evidence.inference.diagnostics.divergences import grid_divergences, square_grid
from evidence.inference.estimation.evidence import Evidence
from evidence.inference.estimation.gaps import inference_gaps
from evidence.inference.objectives import IWAE, DReG, ForwardKL
from evidence.models import Energy2D, GaussianMixture2D, LinearGaussian
from evidence.notebooks import checks

torch.set_num_threads(1)  # nets this small gain nothing from a second thread
plt.rcParams["font.size"] = 12

# %% [markdown]
# ## A posterior with two modes
#
# z comes from one of two Gaussians, at (0, 2) and (0, −2), with standard deviation 0.6. We see it
# through noise of standard deviation 2. One x cannot tell the two apart, so the posterior keeps
# both. Everything is known:
#
# $$p(z \mid x) = w\,\mathrm N(z; m_+, s^2 I) + (1 - w)\,\mathrm N(z; m_-, s^2 I).$$

# %%
model = GaussianMixture2D(2, num_components=2, component_scale=0.6)
x = torch.tensor([[0.3, 0.5]])
exact = model.log_evidence(x).item()

posterior = model.posterior(x)
weights = posterior.mixture_distribution.probs[0]  # [K]
modes = posterior.component_distribution.base_dist.loc[0]  # [K, 2]
scale = posterior.component_distribution.base_dist.scale[0, 0, 0]
for weight, mode in zip(weights, modes, strict=True):
    print(f"weight {weight:.3f} at ({mode[0]:.2f}, {mode[1]:.2f}), standard deviation {scale:.3f}")
print(f"distance {(modes[0] - modes[1]).norm() / scale:.1f} standard deviations")
print(f"log p(x) = {exact:.4f} nats")

# %% [markdown]
# ## Two ways to be close
#
# $$\mathrm{KL}(q \,\|\, p) = \int q \log \frac qp\,dz, \qquad
# \mathrm{KL}(p \,\|\, q) = \int p \log \frac pq\,dz .$$
#
# The first is expensive where q has mass and p has none: q keeps out of such places, and may leave
# out a mode. The second is expensive where p has mass and q has none: q must cover everything. The
# ELBO is about the first, because log p(x) − ELBO = KL(q ‖ p(z | x)). (Bishop 2006,
# https://www.microsoft.com/en-us/research/publication/pattern-recognition-machine-learning/,
# section 10.1.2.)
#
# On a grid an integral is a sum over the cells, times the area of one. Only q is normalized there;
# of p we have log p(x, z), so its integral has to be found, too.


# %%
def reverse_kl(log_p, log_q, cell_area):
    """KL(q ‖ p), from log p up to a constant and log q at the cells [N]: a number, in nats."""
    ### BEGIN SOLUTION
    # Hint: normalize log_p by its logsumexp and log(cell_area); then Σ q (log q − log p) · area
    log_p = log_p - log_p.logsumexp(0) - math.log(cell_area)
    return (log_q.exp() * (log_q - log_p)).sum() * cell_area
    ### END SOLUTION


# %% points=2
checks.reverse_kl(reverse_kl)


# %%
def forward_kl(log_p, log_q, cell_area):
    """KL(p ‖ q), from log p up to a constant and log q at the cells [N]: a number, in nats."""
    ### BEGIN SOLUTION
    # Hint: as above; now p weighs log p − log q
    log_p = log_p - log_p.logsumexp(0) - math.log(cell_area)
    return (log_p.exp() * (log_p - log_q)).sum() * cell_area
    ### END SOLUTION


# %% points=1
checks.forward_kl(forward_kl)

# %% [markdown]
# Here the two coordinates of z are independent given x, and only z₂ has two modes. So the best
# Gaussian can be found by looking at all of them: every location μ and every σ for z₂. A grid over
# z₂ gives both KLs for each.

# %%
NUM_CELLS, LOW, HIGH = 800, -10.0, 10.0
z2 = torch.linspace(LOW, HIGH, NUM_CELLS + 1, dtype=torch.float64)[:-1, None]
z2 = z2 + (HIGH - LOW) / NUM_CELLS / 2  # centres of the cells, [N, 1]
p_z2 = dist.MixtureSameFamily(
    dist.Categorical(weights.double()), dist.Normal(modes[:, 1].double(), scale.double())
)
locs = torch.linspace(-2.6, 2.6, 79).double()
scales = torch.linspace(math.log(0.35), math.log(3.0), 60).double().exp()
candidates = torch.cartesian_prod(locs, scales)  # [79 · 60, 2]
log_q = dist.Normal(*candidates.T).log_prob(z2)  # [N, 79 · 60]
found = grid_divergences(p_z2.log_prob(z2).expand_as(log_q), log_q, (HIGH - LOW) / NUM_CELLS)
assert found.mass.min() > 0.99  # the grid holds all of every candidate
some = log_q[:, 1000], (HIGH - LOW) / NUM_CELLS  # your functions and the suite's, on one candidate
torch.testing.assert_close(reverse_kl(p_z2.log_prob(z2)[:, 0], *some), found.reverse[1000])
torch.testing.assert_close(forward_kl(p_z2.log_prob(z2)[:, 0], *some), found.forward[1000])


def valleys(surface):
    """Indices of the points of [L, S] that are lower than all of their neighbours."""
    padded = torch.nn.functional.pad(surface[None, None], (1, 1, 1, 1), value=math.inf)[0, 0]
    around = padded.unfold(0, 3, 1).unfold(1, 3, 1).flatten(2)  # [L, S, 9]
    return (surface == around.min(-1).values).nonzero().tolist()


surfaces = {
    "KL(q ‖ p)": found.reverse.reshape(len(locs), -1),
    "KL(p ‖ q)": found.forward.reshape(len(locs), -1),
}
LEVELS = [0.3, 0.5, 0.6, 0.8, 0.95, 1.05, 1.2, 1.5, 2, 3, 5, 10, 20]
steps = BoundaryNorm(LEVELS, 256, extend="max")
figure, row = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained", sharey=True)
for axes, (name, surface) in zip(row, surfaces.items(), strict=True):
    filled = axes.contourf(
        locs, scales, surface.mT, LEVELS, cmap="cividis", norm=steps, extend="max"
    )
    axes.contour(locs, scales, surface.mT, LEVELS, colors="black", linewidths=0.4)
    for place in valleys(surface):
        loc, sigma, kl = locs[place[0]], scales[place[1]], surface[tuple(place)]
        axes.plot(loc, sigma, "o", color="white", markeredgecolor="black", markersize=8)
        axes.annotate(
            f"{kl:.2f}", (loc, sigma), (0, 9), textcoords="offset points", color="white",
            ha="center", weight="bold",
        )  # fmt: skip
        print(f"{name}: a lowest point at μ = {loc:+.2f}, σ = {sigma:.2f}: {kl:.3f} nats")
    axes.set(title=f"{name} of N(μ, σ²); circles: lowest points", xlabel="location μ of z₂")
    axes.set(yscale="log", yticks=[0.5, 1, 2], yticklabels=["0.5", "1", "2"])
    axes.minorticks_off()
row[0].set_ylabel("scale σ of z₂")
figure.colorbar(filled, ax=row, label="nats", ticks=LEVELS, format="{x:g}")
assert len(valleys(surfaces["KL(q ‖ p)"])) == 3
assert len(valleys(surfaces["KL(p ‖ q)"])) == 1

# %% [markdown]
# KL(q ‖ p) has three valleys: one per mode, and a wide Gaussian across both. Which one training
# ends in depends on where it starts. KL(p ‖ q) has a single one, the Gaussian with the mean and
# variance of p.
#
# Sitting on one mode of weight w costs only about −log w, the logarithm of the mass left out:

# %%
for weight in weights:
    print(f"−log {weight:.3f} = {-weight.log():.3f} nats")
mean, std = p_z2.mean, p_z2.stddev
print(f"mean and standard deviation of z₂ given x: {mean:.2f} and {std:.2f}")
assert (surfaces["KL(q ‖ p)"].min() + weights[0].log()).abs() < 0.02

# %% [markdown]
# ## Five families, one objective
#
# Now the guides themselves, all trained on the ELBO. The batch is the same x, 256 times: 256 draws
# for each step. An encoder for one x needs no hidden layer. `start_at` moves the guide's first
# location. `FullRank` may correlate z₁ and z₂. `Planar` and `NeuralSpline` are flows (Rezende &
# Mohamed 2015, https://arxiv.org/abs/1505.05770; Durkan et al. 2019,
# https://arxiv.org/abs/1906.04032).

# %%
SIZE, REACH = 400, 8.0  # cells along a side, and half the side
grid = square_grid(-REACH, REACH, SIZE).float().unsqueeze(1)  # [N, 1, 2]
cell_area = (2 * REACH) ** 2 / len(grid)


def start_at(guide, loc):
    with torch.no_grad():
        guide.encoder[-1].bias[:2] = torch.as_tensor(loc)
    return guide


def train(model, guide, x, **options):
    settings = {"num_epochs": 40, "batch_size": 256, "lr": 0.02, "lr_decay": 0.9, "clip_norm": 5.0}
    fit(model, guide, x.repeat(2560, 1), progress=False, **(settings | options))
    return guide


@torch.no_grad()
def on_grid(guide):
    """Both divergences between the posterior and the guide."""
    log_q = guide.posterior(x).log_prob(grid)  # [N, 1]
    return grid_divergences(model.log_joint(x, grid), log_q, cell_area)


def new(family, **options):
    pyro.set_rng_seed(0)
    return family(2, 2, hidden_dims=(), **options)


above = modes[0]
guides = {
    "MeanField": train(model, new(MeanField), x),
    "MeanField, from above": train(model, start_at(new(MeanField), above), x),
    "FullRank, from above": train(model, start_at(new(FullRank), above), x),
    "Mixture, 2 Gaussians": train(model, new(Mixture, num_components=2), x),
    "Planar, 8 layers": train(model, new(Planar, num_flows=8), x),
    "NeuralSpline, 2 layers": train(model, new(NeuralSpline, num_flows=2), x),
}

# %% [markdown]
# The ELBO is estimated with draws, KL(q ‖ p) is summed on the grid. Two roads to one number, so
# `log p(x) − ELBO` and `KL(q ‖ p)` must agree.

# %%
pyro.set_rng_seed(1)
rows = []
for name, guide in guides.items():
    elbo = estimate_evidence(model, guide, x, 5000)["elbo"]
    kl = on_grid(guide)
    with torch.no_grad():
        upper = (guide.posterior(x).sample((5000,))[..., 1] > 0).float().mean()
    rows.append(
        [name, f"{exact - elbo.mean:.3f} ± {elbo.mc_se:.3f}", kl.reverse, kl.forward, upper]
    )
    assert abs(kl.mass - 1) < 1e-3  # the grid holds all of the guide
    assert abs(exact - elbo.mean - kl.reverse) < 5 * elbo.mc_se + 2e-3
with torch.no_grad():
    upper = (model.posterior(x).sample((5000,))[..., 1] > 0).float().mean()
rows.append(["posterior", "0", 0.0, 0.0, upper])
headers = ["guide", "log p(x) − ELBO ± MC SE", "KL(q ‖ p)", "KL(p ‖ q)", "share above"]
print(tabulate(rows, headers=headers, floatfmt=(None, None, ".3f", ".3f", ".2f")))
print("\nnats; 'share above': mass of the upper mode")

# %% [markdown]
# A picture of q needs contours that mean something: the one that holds 90% of its mass, and the one
# that holds 50%. They are the borders of the smallest regions that do.


# %%
def mass_level(density, share):
    """The height whose contour holds this share of the mass of equal cells [N]: a number."""
    ### BEGIN SOLUTION
    # Hint: sort from the highest cell down, add up, and stop at the first that reaches the share
    descending = density.sort(descending=True).values
    mass = descending.cumsum(0) / descending.sum()
    return descending[int(torch.searchsorted(mass, share))]
    ### END SOLUTION


# %% points=2
checks.mass_level(mass_level)


# %%
def show(axes, log_p, log_q, reach, title):
    """The posterior in blue, and contours of the guide that hold 90% and 50% of its mass."""
    p, q = ((v - v.max()).exp().reshape(SIZE, SIZE).mT for v in (log_p, log_q))
    levels = [mass_level(q.flatten(), share) for share in (0.9, 0.5)]
    centres = np.linspace(-reach, reach, 2 * SIZE + 1)[1::2]
    axes.imshow(p, origin="lower", extent=(-reach, reach) * 2, cmap="Blues")
    axes.contour(centres, centres, q, levels, colors="C1", linewidths=2)
    axes.set(title=title, xlabel="z₁", xticks=[-4, 0, 4], yticks=[-4, 0, 4])
    axes.set(xlim=(-4.5, 4.5), ylim=(-4.5, 4.5))


figure, panels = plt.subplots(2, 3, figsize=(11, 8), layout="constrained", sharey=True)
with torch.no_grad():
    for axes, (name, guide) in zip(panels.flat, guides.items(), strict=True):
        log_q = guide.posterior(x).log_prob(grid)
        show(axes, model.log_joint(x, grid), log_q, REACH, name)
figure.suptitle("blue: posterior; orange: guide, contours with 90% and 50% of its mass")
for axes in panels[:, 0]:
    axes.set_ylabel("z₂")

# %% [markdown]
# - **MeanField** started in the middle and stayed in the wide valley. Started above, it takes the
#   upper mode and is *better* by the ELBO, with the other mode missing. By KL(p ‖ q) it is far
#   worse.
# - **FullRank** gains nothing: within a mode z₁ and z₂ are independent. A richer family helps only
#   if the posterior asks for it.
# - **Mixture** contains the posterior, and finds it.
# - **Planar** bends towards both modes, from the start where `MeanField` could only widen. A bridge
#   is left between them. What a family can express and what training finds are two questions.
# - **NeuralSpline** covers both, with somewhat ragged edges.
#
# ## The objective changes the answer
#
# One family, `MeanField`, three objectives.
#
# - `Trace_ELBO` maximizes $\mathrm E_q[\log w]$ with $w = p(x, z) / q(z \mid x)$.
# - `IWAE` maximizes $\mathrm E_q[\log \frac1K \sum_k w_k]$, a tighter bound (Burda et al. 2016,
#   https://arxiv.org/abs/1509.00519). `DReG` has the same maximum and less noisy gradients (Tucker
#   et al. 2018, https://arxiv.org/abs/1810.04152). Here K = 16.
# - `ForwardKL` minimizes KL(p ‖ q), with weighted draws of q in place of draws of p (Bornschein &
#   Bengio 2015, https://arxiv.org/abs/1406.2751). The best Gaussian has the mean and the standard
#   deviations of p.
#
# Each starts twice: in the middle, and on the upper mode.

# %%
objectives = {
    "ELBO": Trace_ELBO,
    "IWAE, K = 16": lambda: IWAE(num_particles=16),
    "DReG, K = 16": lambda: DReG(num_particles=16),
    "ForwardKL, K = 64": lambda: ForwardKL(num_particles=64),
}
starts = {"middle": torch.zeros(2), "above": above}
by_objective, rows = {}, []
for name, objective in objectives.items():
    for start, loc in starts.items():
        guide = start_at(new(MeanField), loc)
        train(model, guide, x, objective=objective(), lr=0.05)
        by_objective[name, start] = guide
        with torch.no_grad():
            kl, q = on_grid(guide), guide.posterior(x).base_dist
        rows.append([name, start, q.loc[0, 1], q.scale[0, 1], kl.reverse, kl.forward])
rows.append(["moments of the posterior", "", mean, std, "", ""])
headers = ["objective", "start", "μ of z₂", "σ of z₂", "KL(q ‖ p)", "KL(p ‖ q)"]
print(tabulate(rows, headers=headers, floatfmt=(None, None, ".2f", ".2f", ".3f", ".3f")))

for start in ("middle", "above"):
    q = by_objective["ForwardKL, K = 64", start].posterior(x).base_dist
    assert abs(q.loc[0, 1] - mean) < 0.15
    assert abs(q.scale[0, 1] - std) < 0.15

# %%
axis = torch.linspace(-6, 6, 400)
line = axis[:, None]
figure, panels = plt.subplots(1, 2, figsize=(12, 4), layout="constrained", sharey=True)
for axes, start in zip(panels, ("middle", "above"), strict=True):
    axes.fill_between(axis, p_z2.log_prob(axis.double()).exp(), color="0.8", label="posterior")
    for number, name in enumerate(["ELBO", "IWAE, K = 16", "ForwardKL, K = 64"]):
        with torch.no_grad():
            q = by_objective[name, start].posterior(x).base_dist
            density = dist.Normal(q.loc[0, 1], q.scale[0, 1]).log_prob(axis).exp()
        axes.plot(
            axis, density, color=f"C{number}", ls=["-", "--", ":"][number], lw=2.5, label=name
        )
    axes.set(title={"middle": "started in the middle", "above": "started on the upper mode"}[start])
    axes.set(xlabel="z₂", ylabel="density", xlim=(-6, 6), ylim=(0, 0.75))
    axes.legend(loc="upper left", fontsize=10)
    axes.grid(alpha=0.3)

# %% [markdown]
# - The **ELBO** ends in one of two valleys, by its start.
# - **ForwardKL** ends at the mean and standard deviation of p from both starts, as it must.
# - **IWAE** and **DReG** want a q from which *some* of K draws is good. So q covers both modes, its
#   single-draw ELBO gets worse, and importance weights from it work better.
#
# No answer is the right one. For a cheap approximation near one mode take the ELBO. For importance
# weights (notebook 5) take a guide that covers.
#
# ## A bent posterior, and a warm-up
#
# The energy U₁ of Rezende & Mohamed 2015 (table 1): $p(z \mid x) \propto e^{-U_1(z)}$ on the square
# [−4, 4]², two crescents of a ring, of equal mass. Here log p(x) is ln Z, and x plays no part.
#
# The square needs one new thing: `for_model` maps the draws of any family from the plane into the
# support of the model's latents. (x is 1, not 0: what the encoder says about the layers starts as
# weights times x, and at u = w = 0 a planar layer has no gradient.)
#
# `likelihood_warmup_epochs` multiplies U by β, rising from 0 to 1. At first there are no hills
# between the modes, and the guide spreads before it commits. To show it, both flows start badly, as
# a small bell on the right crescent.

# %%
ring, one = Energy2D(1, energy="U1"), torch.ones(1, 1)
log_z = ring.log_evidence(one).item()
RING_REACH = 4.0
ring_grid = square_grid(-RING_REACH, RING_REACH, SIZE).float().unsqueeze(1)


def new_on_ring(family, **options):
    pyro.set_rng_seed(0)
    return family.for_model(ring, one, hidden_dims=(), standardize="none", **options)


def on_the_right(guide):
    """Start as a small bell on the right crescent (in the plane, before the square)."""
    with torch.no_grad():
        guide.guide.encoder[-1].bias[:4] = torch.tensor([1.1, 0.0, -1.5, -1.5])  # μ and log σ
    return guide


families = {
    "FullRank": (FullRank, {}, 20),
    "Mixture, 6 Gaussians": (Mixture, {"num_components": 6}, 20),
    "Planar, 16 layers, no warm-up": (Planar, {"num_flows": 16}, 0),
    "Planar, 16 layers": (Planar, {"num_flows": 16}, 20),
}
on_ring = {}
settings = {"num_epochs": 60, "lr": 0.03, "lr_decay": 0.93}
for name, (family, options, warmup) in families.items():
    guide = new_on_ring(family, **options)
    guide = on_the_right(guide) if family is Planar else guide
    on_ring[name] = train(ring, guide, one, likelihood_warmup_epochs=float(warmup), **settings)

# %%
figure, panels = plt.subplots(2, 2, figsize=(8.5, 8.8), layout="constrained", sharey=True)
rows = []
with torch.no_grad():
    log_p = ring.log_joint(one, ring_grid)  # [N, 1]
    for axes, (name, guide) in zip(panels.flat, on_ring.items(), strict=True):
        log_q = guide.posterior(one).log_prob(ring_grid)
        kl = grid_divergences(log_p, log_q, (2 * RING_REACH) ** 2 / len(ring_grid))
        assert abs(kl.mass - 1) < 5e-3
        rows.append([name, kl.reverse, kl.forward])
        show(axes, log_p, log_q, RING_REACH, name)
for axes in panels[:, 0]:
    axes.set_ylabel("z₂")
figure.suptitle("blue: exp(−U₁); orange: guide, contours with 90% and 50% of its mass")
print(f"ln Z = {log_z:.4f} by quadrature, {kl.log_px.item():.4f} on the grid")
print(tabulate(rows, headers=["guide (nats)", "KL(q ‖ p)", "KL(p ‖ q)"], floatfmt=".3f"))
print(f"\none of two equal modes left out: ln 2 = {math.log(2):.3f}")
assert rows[2][1] > rows[3][1]

# %% [markdown]
# The same planar flow, the same number of steps: with warm-up it finds both crescents, without it
# loses one, and KL(q ‖ p) is near ln 2. The Gaussian, squashed into the square, lies across both
# and pays for the hole in the middle.
#
# The warm-up is no cure-all. It flattens the *likelihood*. In the first example the two modes are
# in the *prior*, so it would not help there.
#
# ## Your own guide, in ten lines
#
# A guide is a class with one method: x goes in, a distribution comes out. Encoder, plate and sample
# site are supplied. Take Student's t with 4 degrees of freedom, a bell with heavy tails. Write the
# distribution; the class around it is short.


# %%
def student_t(loc, log_scale):
    """Independent Student-t latents, ν = 4, one density per datum: [N, Z], [N, Z] -> distribution.

    Its batch shape is [N] and its event shape [Z].
    """
    ### BEGIN SOLUTION
    # Hint: dist.StudentT(4.0, location, scale), with .to_event(1) for one density per datum
    return dist.StudentT(4.0, loc, log_scale.exp()).to_event(1)
    ### END SOLUTION


# %% points=2
checks.student_t(student_t)


# %%
class StudentT(AbstractGuide):
    """Independent Student-t posteriors."""

    def __init__(self, latent_dim, data_dim, **encoder):
        sizes = (latent_dim, latent_dim)  # location and log-scale
        super().__init__(latent_dim, data_dim, output_dims=sizes, **encoder)

    def posterior(self, x):
        return student_t(*self.encode(x))


guides["StudentT, from above"] = train(model, start_at(new(StudentT), above), x)

# %% [markdown]
# Beside the others, with two more columns. Log p(x) is estimated by importance weighting with
# S = 10,000 draws, 30 times over (30 rows with the same x): how far is the estimate short of the
# exact value? k̂ is the shape of the tail of the weights; above 0.7 an estimate is not to be trusted
# (Vehtari et al. 2024, https://jmlr.org/papers/v25/19-556.html).

# %%
NUM_REPEATS = 30
pyro.set_rng_seed(2)
rows, shortfalls = [], {}
for name, guide in guides.items():
    with torch.no_grad():
        kl = on_grid(guide)
    iw = estimate_evidence(model, guide, x.repeat(NUM_REPEATS, 1), 10_000)["iw"]
    short = shortfalls[name] = exact - iw.log_px  # [30]
    cell = f"{short.mean():+.3f} ± {short.std() / math.sqrt(NUM_REPEATS):.3f}"
    rows.append([name, kl.reverse, kl.forward, cell, iw.k_hat.median()])
headers = ["guide", "KL(q ‖ p)", "KL(p ‖ q)", "log p(x) − IW ± SE", "median k̂"]
print(tabulate(rows, headers=headers, floatfmt=(None, ".3f", ".3f", None, ".2f")))
assert shortfalls["StudentT, from above"].mean() < shortfalls["MeanField, from above"].mean()

# %% [markdown]
# Compare the two rows "from above", `MeanField` and `StudentT`. The t sits on the same mode and has
# a *worse* ELBO than the Gaussian: its tails are too heavy for that mode. But a few of its draws
# land on the other mode, so KL(p ‖ q) drops and the evidence comes out nearly right. The Gaussian's
# is short by most of −log 0.613 = 0.49 nats.
#
# k̂ warns of both, because a few draws reach the valley and see the slope of the other mode. With
# modes farther apart there is no such draw and no warning; notebook 5 has an example.
#
# ## Family or encoder?
#
# So far there was one x. An encoder has to serve all of them, and may be worse than the family
# allows. With q* the best member of the family for each x,
#
# $$\underbrace{\log p(x) - \mathrm{ELBO}(q)}_{\text{total}}
# = \underbrace{\log p(x) - \mathrm{ELBO}(q^*)}_{\text{approximation gap: the family}}
# + \underbrace{\mathrm{ELBO}(q^*) - \mathrm{ELBO}(q)}_{\text{amortization gap: the encoder}}$$
#
# (Cremer et al. 2018, https://arxiv.org/abs/1801.03558). `inference_gaps` searches q* for every
# datum by gradient ascent.
#
# The test bed is a linear Gaussian model with 3 latents and 10 observed entries, whose log p(x) and
# posterior are known. The posterior is a Gaussian with a full covariance, and its mean is linear in
# x. So a linear encoder suffices. We add an encoder that is too small: two hidden units for three
# latents.

# %%
pyro.set_rng_seed(0)
linear = LinearGaussian(10, 3).requires_grad_(False)
linear.weight.normal_()
x_train, x_test = linear(size=2000), linear(size=50)
truth = Evidence.exact(linear.log_evidence(x_test))


def fit_amortized(guide):
    fit(linear, guide, x_train, num_epochs=40, lr=0.02, lr_decay=0.92, progress=False)
    return guide


pyro.set_rng_seed(1)
narrow = fit_amortized(FullRank(3, 10, hidden_dims=(2,)))
amortized = {
    "MeanField": fit_amortized(MeanField(3, 10, hidden_dims=())),
    "FullRank": fit_amortized(FullRank(3, 10, hidden_dims=())),
    "FullRank, small encoder": narrow,
}
gaps = {
    name: inference_gaps(linear, guide, x_test, evidence=truth, num_particles=500)
    for name, guide in amortized.items()
}

# %%
rows = []
for name, found in gaps.items():
    parts = (found.approximation, found.amortization, found.total)
    cells = [f"{part.mean:+.4f} ± {part.mc_se:.4f}" for part in parts]
    rows.append([name, *cells, "yes" if found.converged else "no"])
headers = ["nats per datum, ± MC SE", "approximation", "amortization", "total", "search done"]
print(tabulate(rows, headers=headers))

# The best diagonal Gaussian has the precisions on the diagonal of the posterior's precision.
precision = torch.linalg.inv(linear.posterior(x_test[:1]).covariance_matrix[0])
by_hand = (precision.diagonal().log().sum() - precision.logdet()) / 2
print(f"\napproximation gap of MeanField in closed form: {by_hand:.4f}")
found = gaps["MeanField"].approximation
assert abs(found.mean - by_hand) < 5 * found.mc_se + 0.005

figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
bottom = np.zeros(len(gaps))
for number, part in enumerate(("approximation", "amortization")):
    heights = np.array([getattr(found, part).mean for found in gaps.values()])
    errors = [2 * getattr(found, part).mc_se for found in gaps.values()]
    label = f"{part} gap: the {('family', 'encoder')[number]}"
    axes.bar(range(len(gaps)), heights, 0.55, bottom, yerr=errors, capsize=5, label=label)
    bottom += heights
axes.set_xticks(range(len(gaps)), list(gaps))
axes.set_ylabel("log p(x) − ELBO (nats per datum)")
axes.set_title("± 2 Monte Carlo SE")
axes.legend()
axes.grid(axis="y", alpha=0.3)

# %% [markdown]
# **Discuss.** A colleague has a guide with a large gap and asks for a flow. What do you measure
# first?
#
# ### BEGIN SOLUTION
# Which of the two gaps it is. If the amortization gap is the large one, no family helps: a wider
# encoder, longer training, or a few steps per datum do. If the approximation gap is large, look at
# a posterior before choosing a family: several modes want a mixture or another objective, a bend
# wants a flow, correlations want a full covariance.
# ### END SOLUTION
#
# Two guides with a gap, for opposite reasons. `MeanField` needs a richer family, and no encoder can
# help it: its gap is the one known in closed form. The small encoder has the right family, and no
# flow can help it.
#
# ## Between encoder and search
#
# `Refined` takes the encoder's answer as a start and improves it by a few gradient steps on the
# ELBO of each datum (Kim et al. 2018, https://arxiv.org/abs/1802.02550). It keeps its noise draws
# fixed over the steps. With few draws it fits the draws and not the posterior.

# %%
pyro.set_rng_seed(3)
rows = [["no refinement", gaps["FullRank, small encoder"].total.mean]]
for num_particles in (8, 64, 256):
    guide = Refined(narrow, linear, num_steps=20, lr=0.1, num_particles=num_particles)
    elbo = estimate_evidence(linear, guide, x_test, 500)["elbo"]
    rows.append([f"20 steps, {num_particles} draws", (truth.log_px - elbo.log_px).mean()])
headers = ["small encoder", "log p(x) − ELBO (nats per datum)"]
print(tabulate(rows, headers=headers, floatfmt=".3f"))
assert rows[-1][1] < rows[0][1] / 4

# %% [markdown]
# **Next:** `05_evidence` turns guides into numbers that can be defended.
#
# ## Try it
#
# 1. Move x to (0.3, 0) and to (0.3, 2). What does a missing mode cost then? Which of the three
#    valleys are left?
# 2. Train `MeanField` with `IWAE` for K = 1, 2, 4 and 8, from above. At which K does it leave the
#    mode?
# 3. Let `StudentT` have its degrees of freedom from the encoder (a third output). Which does the
#    ELBO choose, which does `ForwardKL`?
# 4. `Unamortized(narrow, x_test)` from `guides` stores parameters for each datum of `x_test`. Train
#    it on `x_test`. Which of the two gaps is left?
