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
# # 6. Annealing, from below and from above
#
# Importance weighting (notebook 5) jumps from the guide to the posterior, and cannot see what the
# guide has missed. Annealing walks: through densities between a start and the posterior, with
# steps of Markov chain Monte Carlo at each. Started at the prior it needs no guide. And from an
# exact draw of the posterior it can walk back, which bounds log p(x) from above.
#
# | estimate | needs | in expectation |
# |---|---|---|
# | AIS, annealed importance sampling | gradients of log p(x, z) | below |
# | reverse AIS, of bidirectional Monte Carlo (BDMC) | an exact draw of z given x | **above** |
#
# **Goal.** Write the path, the weight of a chain and both bounds; read the bracket against the
# number of temperatures; say what may be claimed of two models. Three functions are yours to write.
#
# All runs offline, on data drawn from the models and on 8×8 digits that come with scikit-learn.

# %%
# %matplotlib inline
import math
import warnings

warnings.filterwarnings("ignore", "IProgress")  # a Jupyter widget that nothing here needs

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from tabulate import tabulate

from evidence.experiments.setup.datasets import load
from evidence.guides import FullRank, MeanField
from evidence.inference import (
    annealed_evidence,
    bidirectional_evidence,
    estimate_evidence,
    fit,
)
from evidence.inference.estimation.comparison import compare_evidences
from evidence.inference.estimation.evidence import Evidence
from evidence.models import VAE, GaussianMixture2D, LinearGaussian
from evidence.notebooks import checks

torch.set_num_threads(1)  # nets this small gain nothing from a second thread
plt.rcParams["font.size"] = 12


def with_se(values):
    """Mean ± standard error of a tensor [N]."""
    return f"{values.mean():+.3f} ± {values.std() / math.sqrt(len(values)):.3f}"


# %% [markdown]
# ## A path
#
# One latent, so that all can be drawn: prior z ~ N(0, 3²), and a likelihood with two narrow peaks,
#
# $$p(x \mid z) = \tfrac34 \mathrm N(z; 2, 0.4^2) + \tfrac14 \mathrm N(z; -3, 0.4^2).$$
#
# The path is geometric: $\log f_\beta(z) = (1 - \beta) \log f_0(z) + \beta \log f_1(z)$, from the
# prior $f_0 = p(z)$ at β = 0 to $f_1 = p(x, z)$ at β = 1 (Neal 2001,
# https://arxiv.org/abs/physics/9803008).


# %%
def tempered(beta, log_f0, log_f1):
    """log f_β from log f_0 and log f_1 of the same places: a number, [C], [C] -> [C]."""
    ### BEGIN SOLUTION
    # Hint: (1 − β) log f₀ + β log f₁
    return (1 - beta) * log_f0 + beta * log_f1
    ### END SOLUTION


# %% points=1
checks.tempered(tempered)

# %%
prior = dist.Normal(0.0, 3.0)
peaks = dist.MixtureSameFamily(
    dist.Categorical(torch.tensor([0.75, 0.25])),
    dist.Normal(torch.tensor([2.0, -3.0]), torch.tensor([0.4, 0.4])),
)


def log_f0(z):
    return prior.log_prob(z)


def log_f1(z):
    return prior.log_prob(z) + peaks.log_prob(z)


line = torch.linspace(-8, 8, 4001)
spacing = line[1] - line[0]
log_px = (log_f1(line).logsumexp(0) + spacing.log()).item()
print(f"log p(x) = {log_px:.4f} nats, by quadrature")

figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
shades = plt.cm.viridis([0, 0.2, 0.4, 0.6, 0.8])
styles = ["-", "--", "-.", ":", "-"]
for beta, color, style in zip((0.0, 0.01, 0.1, 0.4, 1.0), shades, styles, strict=True):
    log_f = tempered(beta, log_f0(line), log_f1(line))
    density = (log_f - log_f.logsumexp(0) - spacing.log()).exp()
    axes.plot(line, density, style, color=color, linewidth=2.5, label=f"β = {beta:g}")
axes.set(xlabel="z", ylabel="density, normalized", xlim=(-8, 8))
axes.legend()
axes.grid(alpha=0.3)

# %% [markdown]
# ## The weight of a chain
#
# A chain starts at a draw $z_0$ of $f_0$. At each temperature its weight changes *first*, where it
# stands, and then it moves, by a transition that leaves $f_{\beta_t}$ as it is:
#
# $$\log w = \sum_{t=1}^T \log \frac{f_{\beta_t}(z_{t-1})}{f_{\beta_{t-1}}(z_{t-1})}
# = \sum_{t=1}^T (\beta_t - \beta_{t-1}) \bigl[\log f_1(z_{t-1}) - \log f_0(z_{t-1})\bigr].$$
#
# With this order, and transitions that do not adapt while they are measured, E[w] = p(x) for *any*
# number of temperatures and any number of steps.


# %%
def chain_log_weight(betas, log_f0, log_f1):
    """Log-weights of C chains, from log f_0 and log f_1 at z_0, …, z_T: [T + 1, C] -> [C].

    The temperatures `betas` are [T + 1], from 0 to 1.
    """
    ### BEGIN SOLUTION
    # Hint: betas.diff() times log f₁ − log f₀ at z_0, …, z_{T−1}, summed over t
    return (betas.diff()[:, None] * (log_f1 - log_f0)[:-1]).sum(0)
    ### END SOLUTION


# %% points=3
checks.chain_log_weight(chain_log_weight)

# %% [markdown]
# Transitions: three random-walk Metropolis steps at each temperature, long, short, long. (The order
# reads the same backwards, so that a transition is its own reversal; the next section needs that.)


# %%
def transition(z, beta):
    """Steps that leave f_β invariant: [C] -> [C]."""
    for length in (3.0, 0.5, 3.0):
        proposal = z + length * torch.randn_like(z)
        log_f = [tempered(beta, log_f0(place), log_f1(place)) for place in (z, proposal)]
        z = torch.where(torch.rand_like(z).log() < log_f[1] - log_f[0], proposal, z)
    return z


def forward(num_temperatures, num_chains=4000):
    """Log-weights of chains from the prior: [C]."""
    betas = torch.linspace(0, 1, num_temperatures + 1) ** 4
    places = [prior.sample((num_chains,))]
    for beta in betas[1:]:
        places.append(transition(places[-1], beta))
    z = torch.stack(places)
    return chain_log_weight(betas, log_f0(z), log_f1(z))


def log_mean_exp(log_w):
    return log_w.logsumexp(0) - math.log(len(log_w))


def mc_se(log_w):
    return (log_w.softmax(0).square().sum(0) - 1 / len(log_w)).clamp(min=0).sqrt()


pyro.set_rng_seed(0)
lengths = (1, 3, 10, 30, 100, 300)
below = {T: forward(T) for T in lengths}
rows = []
for T, log_w in below.items():
    off, ess = log_mean_exp(log_w) - log_px, 1 / log_w.softmax(0).square().sum()
    rows.append([T, f"{off:+.4f} ± {mc_se(log_w):.4f}", f"{log_w.mean() - log_px:+.3f}"])
    rows[-1].append(f"{ess:,.0f}")
headers = ["temperatures T", "log mean w − log p(x) ± SE", "mean log w − log p(x)", "ESS of 4,000"]
print(tabulate(rows, headers=headers, disable_numparse=True))
for log_w in below.values():
    assert abs(log_mean_exp(log_w) - log_px) < 5 * mc_se(log_w)

# %% [markdown]
# The mean weight is right at every T. What more temperatures buy is that the weights become equal:
# the mean of the *logs* rises towards log p(x), and few chains do.
#
# ## From above
#
# Let someone hand us an exact draw of the posterior. (For data that we simulate ourselves, z and x
# together, the z is one.) Start chains there and walk the same path *back*, β from 1 to 0: first
# move, then weigh. With the same formula for w along the way, now E[1/w] = 1/p(x). So, by Jensen's
# inequality, $-\log \frac1C \sum_c w_c^{-1}$ is *above* log p(x) in expectation (Grosse et al.
# 2015, https://arxiv.org/abs/1511.02543).


# %%
def upper_bound(log_w):
    """The bound from log-weights of C reverse chains: [C, ...] -> [...], in nats."""
    ### BEGIN SOLUTION
    # Hint: −log of the mean of exp(−log_w), by logsumexp
    return math.log(len(log_w)) - (-log_w).logsumexp(0)
    ### END SOLUTION


# %% points=2
checks.upper_bound(upper_bound)

# %%
# Exact draws, by the posterior's distribution function on the line.
cdf = (log_f1(line) - log_px).exp().cumsum(0) * spacing


def reverse(num_temperatures, num_chains=4000):
    """Log-weights of chains from exact draws, walked back to the prior: [C]."""
    betas = torch.linspace(0, 1, num_temperatures + 1) ** 4
    z = line[torch.searchsorted(cdf, torch.rand(num_chains)).clamp(max=len(line) - 1)]
    places = []
    for beta in betas[1:].flip(0):
        z = transition(z, beta)
        places.append(z)
    z = torch.stack([*places[::-1], z])  # in the order of rising β; the last is not used
    return chain_log_weight(betas, log_f0(z), log_f1(z))


above = {T: reverse(T) for T in lengths}
figure, panels = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
for axes, name in zip(panels, ("one chain: E[log w]", "4,000 chains"), strict=True):
    for side, runs, marker in (("reverse", above, "v--"), ("forward", below, "^-")):
        if axes is panels[0]:
            values = [w.mean() - log_px for w in runs.values()]
            errors = [2 * w.std() / math.sqrt(len(w)) for w in runs.values()]
        else:
            estimate, sign = (upper_bound, -1) if side == "reverse" else (log_mean_exp, 1)
            values = [estimate(w) - log_px for w in runs.values()]
            errors = [2 * mc_se(sign * w) for w in runs.values()]
        axes.errorbar(lengths, values, errors, fmt=marker, capsize=4, label=side)
    axes.axhline(0, color="black", linewidth=1)
    axes.set(xscale="log", xlabel="temperatures T", title=name)
    axes.set_xticks(lengths, [str(T) for T in lengths])
    axes.minorticks_off()
    axes.legend()
    axes.grid(alpha=0.3)
panels[0].set_ylabel("estimate − log p(x)\n(nats), ± 2 SE")
assert above[1].mean() > log_px > below[1].mean()
assert abs(upper_bound(above[300]) - log_px) < 5 * mc_se(-above[300])

# %% [markdown]
# One chain each way brackets log p(x), and the bracket closes as T grows. Its width is a statement
# about the *run*, at a price that can be raised until it is small enough.
#
# **Discuss.** Reverse AIS needs an exact posterior draw. May one use a draw from NUTS instead, on
# real data, and report the upper bound?
#
# ### BEGIN SOLUTION
# No bound can be claimed then. A draw of a Markov chain is exact only in the limit; if it is
# stuck in one mode, its 1/w averages to something else than 1/p(x), and the "upper bound" may lie
# below log p(x). On simulated data the draw is exact. What is learned there is how wide the bracket
# of this path is for data like those of the model.
# ### END SOLUTION
#
# ## The suite's bracket
#
# `annealed_evidence` and `bidirectional_evidence` do the same for any Pyro model, with Hamiltonian
# Monte Carlo, step sizes and temperatures from a pilot run, and a guide as the start where there is
# one. Here is the linear model of notebook 5, with a guide that cannot be right.

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

# %%
FAST = {"num_chains": 16, "num_leapfrog_steps": 5, "num_pilot_temperatures": 50}


def bracket_of(model, size, guide, num_temperatures):
    return bidirectional_evidence(
        model, size=size, guide=guide, num_temperatures=num_temperatures, **FAST
    )


SIZE = 100
brackets = {
    "from MeanField": {T: bracket_of(model, SIZE, guides["MeanField"], T) for T in (10, 30, 100)},
    "from the prior": {T: bracket_of(model, SIZE, None, T) for T in (20, 60, 200)},
}
best = brackets["from MeanField"][100]
x = best.x  # the simulated data
exact = model.log_evidence(x)
for bracket in (*brackets["from MeanField"].values(), *brackets["from the prior"].values()):
    assert torch.equal(bracket.x, x)  # the seed is the same, and so are the data
print("AIS and reverse AIS from the guide, 100 temperatures:")
print(best)

# %%
figure, panels = plt.subplots(1, 2, figsize=(9, 4.2), layout="constrained")
for axes, (start, by_length) in zip(panels, reversed(brackets.items()), strict=True):
    for side, direction in (("log_px_upper", "reverse"), ("log_px_lower", "forward")):
        offs = [getattr(bracket, side) - exact for bracket in by_length.values()]
        means = [off.mean() for off in offs]
        errors = [2 * off.std() / math.sqrt(len(x)) for off in offs]
        number = int(direction == "forward")
        style = {"color": ["C0", "C1"][number], "fmt": ["v--", "^-"][number], "capsize": 4}
        beside = [[0.97, 1.03][number] * T for T in by_length]  # so that bars do not overlap
        axes.errorbar(beside, means, errors, label=direction, **style)
    axes.axhline(0, color="black", linewidth=1)
    axes.set(xscale="log", xlabel="temperatures T", title=f"annealing {start}")
    axes.set_xticks(list(by_length), [str(T) for T in by_length])
    axes.minorticks_off()
    axes.legend(loc="lower right")
panels[0].set_ylabel("estimate − log p(x)\n(nats per datum)")
figure.suptitle("± 2 SE; 100 data, 16 chains; the panels differ in scale")
for axes in panels:
    axes.grid(alpha=0.3)

# %% [markdown]
# The two sides close in on log p(x) as T grows. From the guide, 10 temperatures do what takes
# hundreds from the prior.
#
# ## A mode that the guide has missed
#
# The example of notebook 5: two modes, a guide that has found one, importance weights that look
# perfect. Two ways to notice:
#
# 1. **Start elsewhere.** AIS from the prior knows nothing of the guide.
# 2. **BDMC on simulated data.** Its z are exact draws, half of them from the mode that the guide
#    has missed. Walked back to the guide, they get absurd weights, and the gap opens.

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

# %%
chains = FAST | {"num_chains": 64, "num_temperatures": 100}
rows = []
for name, start in {"the guide": one_mode, "the prior": None}.items():
    ais = annealed_evidence(two_modes, x_one, guide=start, **chains)
    bracket = bracket_of(two_modes, 50, start, 100)
    low = f"{truth - ais.mean:+.3f} ± {ais.mc_se:.3f}"
    rows.append([name, low, f"{bracket.gap:.2f} ± {bracket.gap_se:.2f}"])
    if start is not None:
        assert bracket.gap > 5 * bracket.gap_se
headers = ["AIS from", "log p(x) − AIS ± MC SE", "BDMC gap ± SE (50 simulated data)"]
print(tabulate(rows, headers=headers))

# %% [markdown]
# AIS that starts from the guide inherits its blindness: the chains never cross the valley. The
# gap of BDMC shows it, by nats. From the prior AIS is right, and the gap is small.
# %% [markdown]
# ## Comparing two models
#
# Two models differ in the evidence itself, and estimates of it are lower bounds. A model may look
# worse only because its bound is looser. So `compare_evidences` asks for the gaps, and without
# them refuses to name a winner. BDMC measures a gap, on each model's own simulated data.
#
# The second model has 4 factors in place of 8 and is fitted to the same training data.

# %%
pyro.set_rng_seed(6)
small, small_guide = LinearGaussian(10, 4), FullRank(4, 10, hidden_dims=())
fit(small, small_guide, x_train, num_epochs=40, lr=0.02, lr_decay=0.92, progress=False)
small.requires_grad_(False)
pairs = {"8 factors": (model, guides["FullRank"]), "4 factors": (small, small_guide)}
x_both = model(size=50)
annealing = {"num_temperatures": 30} | FAST
evidences = {n: annealed_evidence(m, x_both, guide=g, **annealing) for n, (m, g) in pairs.items()}
gaps = {}
for name, (one, guide) in pairs.items():
    bracket = bracket_of(one, 50, guide, 30)
    gaps[name] = bracket.likely_gap
    print(f"{name}: BDMC gap {bracket.gap:.3f} ± {bracket.gap_se:.3f}, taken as {gaps[name]:.3f}")
print("without gaps:", compare_evidences(evidences)[0].verdict)
verdict = compare_evidences(evidences, gaps=gaps)[0]
print("with gaps:   ", verdict.verdict)
print(f"difference {verdict.difference}")

exact_records = {n: Evidence.exact(m.log_evidence(x_both)) for n, (m, _) in pairs.items()}
print(f"exact:     {compare_evidences(exact_records)[0].difference.mean:+.4f} nats per datum")
assert verdict.winner == "8 factors"

# %% [markdown]
# ## Digits
#
# A VAE with 6 latents on binary digits. Nobody knows its log p(x). The test images are made binary
# once; other draws would be other data.

# %%
digits = load("digits")
pyro.set_rng_seed(0)
x_digits = torch.bernoulli(digits.x_test)[:40]
vae = VAE(digits.data_dim, 6, hidden_dims=(200,))
vae_guide = MeanField(6, digits.data_dim, hidden_dims=(200,))
fit(
    vae,
    vae_guide,
    digits.x_train,
    transform=torch.bernoulli,
    num_epochs=80,
    lr=3e-3,
    lr_decay=0.97,
    progress=False,
)
vae.requires_grad_(False)
print(f"{sum(p.numel() for p in vae.parameters()):,} weights in the model, frozen from here on")

# %% [markdown]
# **Step 1, simulated data.** What the options are worth, on data of the model's own.

# %%
options = {"num_temperatures": 100} | FAST
vae_bracket = bidirectional_evidence(vae, size=30, guide=vae_guide, **options)
simulated = estimate_evidence(vae, vae_guide, vae_bracket.x, 5000)
rows = [
    ["ELBO", simulated["elbo"].log_px],
    ["IW-5,000", simulated["iw"].log_px],
    ["AIS", vae_bracket.log_px_lower],
    ["reverse AIS", vae_bracket.log_px_upper],
]
below = [[n, f"{v.mean():.3f}", with_se(v - vae_bracket.log_px_upper)] for n, v in rows]
headers = ["30 simulated images", "nats per image", "minus reverse AIS ± SE"]
print(tabulate(below, headers=headers, disable_numparse=True))
print(f"\nbracket: {vae_bracket}")

# %% [markdown]
# **Step 2, real data.** Now there is no upper bound, and the column says so.

# %%
pyro.set_rng_seed(7)
real = estimate_evidence(vae, vae_guide, x_digits, 5000)
real["ais"] = annealed_evidence(vae, x_digits, guide=vae_guide, **options)
names = {"elbo": "ELBO", "iw": "IW-5,000", "ais": "AIS, T = 100"}
rows = []
for key, name in names.items():
    record = real[key]
    bad = "–" if key == "ais" else f"{record.share_bad:.0%}"  # 16 chains are too few for a tail
    rows.append([name, f"{record.mean:.3f} ± {record.mc_se:.3f} ± {record.data_se:.3f}", bad])
headers = [f"{len(x_digits)} test images", "lower bound ± MC SE ± data SE (nats)", "bad k̂"]
print(tabulate(rows, headers=headers))
print(f"\nAIS − IW, paired: {with_se(real['ais'].log_px - real['iw'].log_px)} nats per image")

# %%
figure, axes = plt.subplots(figsize=(9, 3.8), layout="constrained")
values = {
    "simulated: ELBO": simulated["elbo"].log_px - vae_bracket.log_px_upper,
    "simulated: IW-5,000": simulated["iw"].log_px - vae_bracket.log_px_upper,
    "simulated: AIS": vae_bracket.log_px_lower - vae_bracket.log_px_upper,
    "real: ELBO": real["elbo"].log_px - real["ais"].log_px,
    "real: IW-5,000": real["iw"].log_px - real["ais"].log_px,
}
for place, (_name, off) in enumerate(values.items()):
    number = int(place > 2)
    error = 2 * off.std() / math.sqrt(len(off))
    style = {"color": f"C{number}", "fmt": "os"[number], "capsize": 5}
    axes.errorbar(off.mean(), place, xerr=error, **style)
axes.set_yticks(range(len(values)), list(values))
axes.margins(y=0.15)
axes.invert_yaxis()
axes.axvline(0, color="black", linewidth=1)
axes.set_xlabel("estimate − reverse AIS (simulated) or − AIS (real)\nnats per image, ± 2 SE")
axes.locator_params(axis="x", nbins=6)
axes.grid(axis="x", alpha=0.3)

# %% [markdown]
# What may be claimed:
#
# - On **simulated** images log p(x) lies between AIS and reverse AIS, in expectation, and the two
#   agree within their error.
# - On **real** images all three numbers are **lower bounds**. That AIS and IW agree, and that the
#   bracket was tight on simulated images, makes it plausible that they are close. It is no proof: a
#   real image need not look like one of the model's.
# - Monte Carlo SE and data SE are both stated, as is the number of images and how they were made
#   binary.
#
# A sentence for a report: *"a lower bound on the log-evidence by AIS from the guide, in nats per
# image, with its Monte Carlo and its data SE; the bidirectional gap on data simulated from the
# model is below so many nats."*
#
# **Next:** `07_models` leaves images: regressions, hierarchies, and which model to believe.
#
# ## Try it
#
# 1. Leave out the longest step of `transition`. At which T do the chains get the peaks' shares
#    wrong, and does the mean weight notice?
# 2. How many temperatures does AIS from the prior need for the digits, to have the gap of AIS from
#    the guide?
# 3. Replace `one_mode` by `Mixture(2, 2, num_components=2)`. Does the gap of BDMC from the guide
#    close?
