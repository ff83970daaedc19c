"""A guide in one of several modes: the right number, or NOT RELIABLE and what helps."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms
from torch import nn

from evidence.guides import FullRank
from evidence.inference import (
    adaptive_evidence,
    annealed_evidence,
    estimate_evidence,
    fit,
    importance_weighted_evidence,
)
from evidence.inference.estimation.modes import Draws, missed_modes
from evidence.inference.paths import mode_search
from evidence.inference.paths.guide_path import GuidePath
from evidence.inference.paths.isolation import annealing_mode
from evidence.inference.paths.log_joint import PriorPath
from evidence.inference.paths.peaks import Peaks, peaks_of
from evidence.inference.programs.data import as_data, takes
from evidence.models.problems import PROBLEMS
from evidence.models.problems.hierarchies import SCHOOL_ERRORS, SCHOOLS, eight_schools

NO_DATA = ()


@pytest.fixture(autouse=True)
def doubles():
    torch.set_default_dtype(torch.float64)


def mixture(weights, locs, scales):
    """Z `[Z]` is of Gaussians, whose density is normalized: the evidence is 1, its log 0."""
    locs, scales = torch.tensor(locs), torch.tensor(scales)
    components = dist.Normal(locs, scales.expand(locs.shape)).to_event(1)

    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros(locs.shape[1]), 20.0).to_event(1))
        log_p = dist.MixtureSameFamily(dist.Categorical(torch.tensor(weights)), components)
        wide = dist.Normal(torch.zeros(locs.shape[1]), 20.0).to_event(1)
        pyro.factor("posterior", log_p.log_prob(z) - wide.log_prob(z))

    return model


def gaussian(loc, scale):
    def guide():
        loc_ = torch.as_tensor(loc)
        pyro.sample("z", dist.Normal(loc_, torch.as_tensor(scale).expand(loc_.shape)).to_event(1))

    return guide


TWO = mixture([0.5, 0.5], [[-10.0], [10.0]], 1.0)
ONE_OF_TWO = gaussian([-10.0], 1.05)


def test_half_of_the_evidence_is_missed_and_the_advice_leads_to_all_of_it():
    """Without the search, the twin, a wrong number passes for a reliable one."""
    found = importance_weighted_evidence(TWO, ONE_OF_TWO, NO_DATA)
    assert "missed about 50% of the evidence (near z = 10" in found.not_reliable
    assert "NOT RELIABLE" in str(found)
    assert "±" not in str(found)
    assert "anneal from the prior (annealed_evidence" in found.not_reliable
    annealed = annealed_evidence(TWO, NO_DATA, num_temperatures=60, num_pilot_temperatures=60)
    assert annealed.not_reliable is None
    assert abs(annealed.mean) < 4 * annealed.mc_se < 0.5
    pyro.set_rng_seed(0)
    planted = importance_weighted_evidence(TWO, ONE_OF_TWO, NO_DATA, search_modes=False)
    assert planted.not_reliable is None
    assert abs(planted.mean) / planted.mc_se > 100
    assert torch.equal(planted.log_px, found.log_px)


def test_the_elbo_is_a_bound_all_the_same():
    assert estimate_evidence(TWO, ONE_OF_TWO, NO_DATA)["elbo"].caveat is None


@pytest.mark.parametrize(
    ("weight", "scale", "num_particles", "is_missed"),
    [
        (0.995, 1.02, 5000, True),  # 0.005 nats, ± 0.0004
        (0.995, 1.8, 200, False),  # … ± 0.05
        (0.7, 1.8, 200, True),  # 0.36 nats
    ],
)
def test_what_is_missed_counts_where_the_error_bar_does_not_cover_it(
    weight, scale, num_particles, is_missed
):
    model = mixture([weight, 1 - weight], [[-10.0], [10.0]], 1.0)
    found = importance_weighted_evidence(model, gaussian([-10.0], scale), NO_DATA, num_particles)
    assert (found.not_reliable is not None) is is_missed
    z = abs(found.mean) / found.mc_se
    assert z < 4 or is_missed


def label_switching(num_components):
    """Unordered locations of components, one of two data each: K! modes."""
    middles = torch.arange(num_components) * 10.0
    data = torch.cat([middles - 0.1, middles + 0.1])

    def model():
        locs = pyro.sample("locs", dist.Normal(10.0, 10.0).expand([num_components]).to_event(1))
        apart = dist.Normal(locs.unsqueeze(-2), 1.0).log_prob(data.unsqueeze(-1))
        pyro.factor("data", (apart.logsumexp(-1) - math.log(num_components)).sum(-1))

    def guide():
        pyro.sample("locs", dist.Normal(middles, 0.72).to_event(1))

    return model, guide


@pytest.mark.parametrize(("num_components", "missed"), [(2, "50%"), (3, "83%")])
def test_components_that_may_change_places(num_components, missed):
    found = importance_weighted_evidence(*label_switching(num_components), NO_DATA, 2000)
    assert f"missed about {missed} of the evidence" in found.not_reliable


def both(scale=1.1):
    def guide():
        locs = torch.tensor([[-10.0], [10.0]])
        components = dist.Normal(locs, scale).to_event(1)
        pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), components))

    return guide


def student():
    """Tails are heavier than the guide's."""
    z = pyro.sample("z", dist.Normal(torch.zeros(2), 20.0).to_event(1))
    wide = dist.Normal(torch.zeros(2), 20.0).to_event(1).log_prob(z)
    pyro.factor("posterior", dist.StudentT(10.0).expand([2]).to_event(1).log_prob(z) - wide)


def flat():
    """The data say nothing of one latent, and little of another."""
    pyro.sample("free", dist.HalfCauchy(1.0))
    z = pyro.sample("z", dist.Uniform(-1.0, 1.0))
    pyro.sample("x", dist.Normal(0.1 * z, 1.0), obs=torch.tensor(0.3))


def flat_guide():
    pyro.sample("free", dist.HalfCauchy(1.0))
    pyro.sample("z", dist.Uniform(-1.0, 1.0))


def funnel_guide(y, sigma):
    """Eight schools: given τ all is Gaussian; the density grows without end as τ goes to 0."""
    tau = pyro.sample("tau", dist.LogNormal(math.log(4.0), 1.5))
    precisions = 1 / (sigma**2 + tau**2)
    variance = 1 / (precisions.sum(-1, keepdim=tau.ndim > 0) + 1 / 25)
    mean = variance * (y * precisions).sum(-1, keepdim=tau.ndim > 0)
    mu = pyro.sample("mu", dist.Normal(mean, variance.sqrt()))
    shrink = tau**2 * precisions
    with pyro.plate("schools", len(y)):
        pyro.sample("theta", dist.Normal(mu + shrink * (y - mu), sigma * shrink.sqrt()))


SCHOOLS_DATA = (SCHOOLS.double(), SCHOOL_ERRORS.double())
COVERED = {
    "a component for either mode": (TWO, both(), NO_DATA),
    "wide enough for both modes": (TWO, gaussian([0.0], 12.0), NO_DATA),
    "heavy tails": (student, gaussian([0.0, 0.0], 1.3), NO_DATA),
    "flat": (flat, flat_guide, NO_DATA),
    "a funnel": (eight_schools, funnel_guide, SCHOOLS_DATA),
}


@pytest.mark.parametrize("name", COVERED)
def test_no_false_alarm(name):
    model, guide, data = COVERED[name]
    for seed in range(3):
        pyro.set_rng_seed(seed)
        assert importance_weighted_evidence(model, guide, data, 2000).caveat is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["eight-schools", "pines", "pumps", "shells-2"])
def test_no_false_alarm_with_a_fitted_guide(name):
    """Whether k̂ is content with it or not."""
    known = PROBLEMS[name]
    torch.set_default_dtype(torch.float32)
    guide = FullRank.for_model(known.model, known.data)
    fit(known.model, guide, known.data, num_steps=1500, lr=0.01, progress=False)
    for _ in range(3):
        assert importance_weighted_evidence(known.model, guide, known.data, 2000).caveat is None


def test_adaptive_numbers_of_particles():
    assert "missed" in adaptive_evidence(TWO, ONE_OF_TWO, NO_DATA).not_reliable
    assert adaptive_evidence(TWO, both(), NO_DATA).not_reliable is None
    planted = adaptive_evidence(TWO, ONE_OF_TWO, NO_DATA, search_modes=False)
    assert planted.not_reliable is None


BRIEF = {"num_temperatures": 60, "num_pilot_temperatures": 60, "num_chains": 60}


def test_annealing_from_a_guide_is_asked_where_its_chains_have_come_to():
    """A guide that is far too narrow for the one mode is no fault: chains leave it."""
    found = annealed_evidence(TWO, NO_DATA, guide=ONE_OF_TWO, **BRIEF)
    assert "missed about 50%" in found.not_reliable
    options = BRIEF | {"search_modes": False}
    planted = annealed_evidence(TWO, NO_DATA, guide=ONE_OF_TWO, **options)
    assert planted.not_reliable is None
    assert torch.equal(planted.log_px, found.log_px)
    one = mixture([1.0], [[3.0]], 1.0)
    narrow = annealed_evidence(one, NO_DATA, guide=gaussian([2.5], 0.4), **BRIEF)
    assert narrow.not_reliable is None
    assert abs(narrow.mean) < 4 * narrow.mc_se


def search_of(model, guide, x=NO_DATA, **options):
    x = as_data(x)
    options = {"log_evidence": 0.0, "mc_se": 0.01, "num_particles": 1000, "seed": 0} | options
    return missed_modes(takes(model, x), takes(guide, x), x, **options)


def test_draws_that_have_been_in_both_modes_have_missed_nothing():
    """As those of a bridge may: log p/q there is 0 in the guide's mode, and large in the other."""
    log_ratio = torch.tensor([0.0, 150.0]).repeat(100)
    assert search_of(TWO, ONE_OF_TWO, draws=Draws(log_ratio, torch.zeros(200))) is None
    log_w = torch.tensor([0.0, math.log(0.1)]).repeat(100)  # of which too few were in one
    few = Draws(log_ratio, log_w)
    assert "45%" in search_of(TWO, ONE_OF_TWO, draws=few, log_evidence=math.log(0.55))


def planar_guide():
    """It can score what it has just drawn, and nothing else."""
    base = dist.Normal(torch.tensor([-10.0, 0.0]), 1.0).to_event(1)
    pyro.sample("z", dist.TransformedDistribution(base, [PLANAR]))


PLANAR = transforms.Planar(2).double()


def test_a_guide_that_cannot_score_is_compared_as_a_whole():
    model = mixture([0.5, 0.5], [[-10.0, 0.0], [10.0, 0.0]], 1.0)
    with torch.no_grad():
        for parameter in PLANAR.parameters():
            parameter.zero_()
    assert "50%" in search_of(model, planar_guide, log_evidence=math.log(0.5))
    assert search_of(model, planar_guide, log_evidence=0.0) is None


class Net(nn.Module):
    """Latents through a layer with dropout, and parameters that training would move."""

    def __init__(self):
        super().__init__()
        self.scale, self.dropout = nn.Parameter(torch.ones(())), nn.Dropout(0.5)

    def forward(self):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.factor("x", -(self.dropout(self.scale * z) ** 2).sum(-1))


def test_the_search_leaves_everything_as_it_was():
    net, guide = Net(), gaussian([0.0, 0.0], 0.6)
    numbers = []
    for search_modes in (True, False):
        pyro.set_rng_seed(5)
        options = {"search_modes": search_modes}
        found = importance_weighted_evidence(net, guide, NO_DATA, 500, **options)
        numbers.append((found.log_px, torch.rand(3)))
    assert all(torch.equal(*pair) for pair in zip(*numbers, strict=True))
    assert found.not_reliable is None
    assert net.training
    assert net.dropout.training
    assert net.scale.requires_grad
    assert net.scale.grad is None
    assert dict(pyro.get_param_store()) == {}


# The parts: climbers, and draws about the peaks.


def test_every_peak_once_and_its_covariance():
    locs = torch.tensor([[10.0, 0.0], [-10.0, 0.0], [0.0, 30.0]])
    scales = torch.tensor([[1.0, 1.0], [0.1, 2.0], [1.0, 0.01]])
    components = dist.Normal(locs, scales).to_event(1)
    target = dist.MixtureSameFamily(dist.Categorical(torch.ones(3)), components)
    starts = 20 * torch.randn(48, 2)
    found = peaks_of(target.log_prob, starts, torch.ones(2), torch.full((2,), 20.0))
    assert len(found.z) == 3
    nearest = torch.cdist(found.z, locs).argmin(1)
    assert sorted(nearest.tolist()) == [0, 1, 2]
    assert ((found.z - locs[nearest]).abs() < 0.1 * scales[nearest]).all()
    covariance = found.factors @ found.factors.mT
    exact = torch.diag_embed(scales[nearest].square())
    assert torch.allclose(covariance, exact, rtol=1e-3, atol=1e-5)


def test_a_ridge_has_peaks_no_wider_than_they_may_be_and_a_slope_without_end_has_none():
    starts, one = torch.randn(20, 2), torch.ones(2)
    ring = peaks_of(lambda z: -50 * (z.norm(dim=-1) - 2) ** 2, starts, 0.1 * one, one)
    assert len(ring.z) > 1
    assert torch.allclose(ring.z.norm(dim=-1), torch.tensor(2.0), atol=0.05)
    widths = torch.linalg.svdvals(ring.factors)
    assert torch.allclose(widths, torch.tensor([1.0, 0.1]).expand_as(widths), rtol=0.05)
    slope = peaks_of(lambda z: -3 * z[:, 0] - z[:, 1] ** 2, starts, one, one)
    assert len(slope.z) == 0


@pytest.mark.parametrize("dim", [1, 7])
def test_draws_about_the_peaks_weigh_the_evidence(dim):
    """|z| < 4 by their own standard error; and the twin, no 1/K."""
    locs = torch.zeros(2, dim)
    locs[:, 0] = torch.tensor([-9.0, 9.0])
    peaks = Peaks(locs, torch.zeros(2), torch.eye(dim).expand(2, -1, -1))
    proposal = mode_search.StudentMixture(peaks)
    z = proposal.sample(4000)
    target = dist.MixtureSameFamily(
        dist.Categorical(torch.tensor([0.8, 0.2])), dist.Normal(locs, 1.0).to_event(1)
    )
    weights = (target.log_prob(z) - proposal.log_prob(z)).exp()
    se = weights.std() / len(weights) ** 0.5
    assert abs(weights.mean() - 1) < 4 * se < 0.1
    assert abs(weights.mean() / 2 - 1) > 5 * se


def test_the_latents_of_a_prior_are_found_in_the_coordinates_of_a_guide():
    """Drawn as an auxiliary variable, moved and scaled: the search of it begins at the prior."""

    def guide():
        v = pyro.sample("v", dist.Normal(torch.zeros(2), 0.1).to_event(1), infer=AUXILIARY)
        log_density = torch.tensor(-math.log(6.0))
        z = torch.tensor([-10.0, 0.0]) + v * torch.tensor([2.0, 3.0])
        pyro.sample("z", dist.Delta(z, log_density=log_density, event_dim=1))

    model = mixture([0.5, 0.5], [[-10.0, 0.0], [10.0, 0.0]], 0.25)
    x = as_data(NO_DATA)
    model, guide = takes(model, x), takes(guide, x)
    with annealing_mode(model, guide, 0, x.device):
        path, prior = GuidePath(model, guide, x), PriorPath(model, x)
        found = mode_search.weighed(path, mode_search.search(path, prior, level=5.0))
        u = path.model_latents(found.z.unsqueeze(1))[:, 0]
    assert abs(found.log_w.logsumexp(0) - math.log(len(u))) < 0.1
    assert 0.4 < (u[:, 0] > 0).double().mean() < 0.6
    assert "50%" in missed_modes(
        model, guide, x, log_evidence=math.log(0.5), mc_se=0.01, num_particles=1000, seed=0
    )


AUXILIARY = {"is_auxiliary": True}
