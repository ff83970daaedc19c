"""The ArviZ object of a pair: groups, dims, values, and that ArviZ itself can use it."""

import importlib.util
import math
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray
from pyro.infer.autoguide import AutoNormal

from evidence.guides import MeanField, Planar
from evidence.inference import log_weights
from evidence.inference.diagnostics.arviz_export import to_arviz
from evidence.inference.programs.estimators import k_hat, pareto_smoothed
from evidence.models import VAE, Autoencoder, EightSchools
from tests.test_weights import exact_guide, layered_guide, layered_model

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import arviz

GROUPS = {
    "posterior",
    "prior",
    "posterior_predictive",
    "prior_predictive",
    "observed_data",
    "log_likelihood",
    "sample_stats",
}


def smoothed_log_weights(log_w):
    smoothed, _ = pareto_smoothed(log_w)
    return smoothed - smoothed.logsumexp(0)


def groups_of(result):
    """Of `InferenceData` (0.x) and of `DataTree` (1.x)."""
    groups = result.groups() if callable(result.groups) else result.groups
    return {name.removeprefix("/") for name in groups} - {""}


def wide_guide(model, scale=1.3):
    def guide(x):
        with pyro.plate("data", len(x)):
            exact = model.posterior(x)
            pyro.sample(
                "z", dist.MultivariateNormal(exact.loc, scale_tril=scale * exact.scale_tril)
            )

    return guide


@pytest.fixture
def data(oracle):
    return oracle(None, size=7)


@pytest.fixture
def exported(oracle, data):
    return to_arviz(oracle, wide_guide(oracle), data)


def test_it_is_what_the_installed_arviz_works_with(exported):
    if arviz.__version__.startswith("0."):
        assert isinstance(exported, arviz.InferenceData)
    else:
        assert isinstance(exported, xarray.DataTree)
    assert groups_of(exported) == GROUPS
    assert exported["posterior"].attrs["inference_library"] == "pyro-ppl"


def test_dims_and_labels(oracle, data):
    result = to_arviz(
        oracle,
        wide_guide(oracle),
        data,
        num_draws=5,
        num_chains=2,
        dims={"z": ["factor"], "x": ["pixel"]},
        coords={"factor": ["a", "b", "c"], "datum": list("ABCDEFG")},
    )
    z = result["posterior"]["z"]
    assert z.dims == ("chain", "draw", "datum", "factor")
    assert z.shape == (2, 5, 7, 3)
    assert list(z.coords["factor"].values) == ["a", "b", "c"]
    assert list(z.coords["chain"].values) == [0, 1]
    assert result["prior"]["z"].dims == z.dims
    assert result["posterior_predictive"]["x"].dims == ("chain", "draw", "datum", "pixel")
    assert result["observed_data"]["x"].dims == ("datum", "pixel")
    assert result["log_likelihood"]["x"].dims == ("chain", "draw", "datum")
    assert result["sample_stats"]["k_hat"].dims == ("datum",)
    assert np.array_equal(result["observed_data"]["x"].values, data.numpy())
    assert list(result["sample_stats"]["k_hat"].coords["datum"].values) == list("ABCDEFG")


@pytest.mark.parametrize("chunk_size", [50, 2048])
def test_the_numbers_are_the_densities_at_the_draws(oracle, data, chunk_size):
    guide = wide_guide(oracle)
    result = to_arviz(oracle, guide, data, num_draws=50, chunk_size=chunk_size)
    z = torch.from_numpy(result["posterior"]["z"].values).flatten(0, 1)  # [S, B, Z]
    stats = result["sample_stats"]
    with torch.no_grad():
        exact = oracle.posterior(data)
        q = dist.MultivariateNormal(exact.loc, scale_tril=1.3 * exact.scale_tril)
        log_q, log_p = q.log_prob(z), oracle.log_joint(data, z)
        log_p_x = oracle.likelihood(z).log_prob(data)

    def same(variable, tensor):
        return np.allclose(variable.values.reshape(200, 7), tensor.numpy())

    assert same(stats["log_q_z"], log_q)
    assert same(stats["log_p_xz"], log_p)
    assert same(stats["log_weight"], log_p - log_q)
    assert same(result["log_likelihood"]["x"], log_p_x)
    assert not same(stats["log_p_xz"], log_p_x)  # the planted error: the prior left out
    assert np.allclose(stats["k_hat"].values, k_hat(log_p - log_q).numpy(), atol=1e-6)
    assert same(stats["psis_log_weight"], smoothed_log_weights(log_p - log_q))


def test_smoothed_weights_give_the_exact_posterior_mean(oracle, data):
    """|z| < 5 with the standard error of the weighted mean; the plain mean of a biased q fails."""

    def biased(x):
        with pyro.plate("data", len(x)):
            exact = oracle.posterior(x)
            loc = exact.loc + 0.3
            pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=1.3 * exact.scale_tril))

    result = to_arviz(oracle, biased, data, num_draws=2500, predictive=False)
    z, exact = result["posterior"]["z"], oracle.posterior(data).loc.numpy()
    weight = np.exp(result["sample_stats"]["psis_log_weight"])
    assert np.allclose(weight.sum(("chain", "draw")), 1)
    mean = (weight * z).sum(("chain", "draw"))
    se = np.sqrt((weight**2 * (z - mean) ** 2).sum(("chain", "draw")))
    assert np.abs((mean.values - exact) / se.values).max() < 5
    assert np.abs((z.mean(("chain", "draw")).values - exact) / se.values).min() > 5


def test_prior_and_predictive_draws_have_the_models_moments(oracle, data):
    """|z| < 5 against N(0, I), N(b, WWᵀ + Ψ) and the exact posterior predictive mean.

    The twin: draws given the guide are not those of the prior.
    """
    result = to_arviz(oracle, exact_guide(oracle), data, num_draws=1000)
    size = 4000

    def z_scores(draws, mean, variance):
        return (draws.mean(("chain", "draw")).values - mean) / np.sqrt(variance / size)

    with torch.no_grad():
        marginal = oracle.marginal()
        mean, variance = marginal.mean.numpy(), marginal.variance.numpy()
        given = oracle.posterior(data)
        loc = (given.loc @ oracle.weight.mT + oracle.loc).numpy()
        spread = oracle.weight @ given.covariance_matrix @ oracle.weight.mT
        spread = spread.diagonal(dim1=-2, dim2=-1) + oracle.log_scale.exp() ** 2
    assert np.abs(z_scores(result["prior"]["z"], 0.0, 1.0)).max() < 5
    assert np.abs(z_scores(result["prior_predictive"]["x"], mean, variance)).max() < 5
    predictive = result["posterior_predictive"]["x"]
    assert np.abs(z_scores(predictive, loc, spread.numpy())).max() < 5
    ratio = predictive.var(("chain", "draw")).values / spread.numpy()
    assert np.abs(ratio - 1).max() < 5 * math.sqrt(2 / size)
    assert np.abs(z_scores(predictive, mean, variance)).max() > 5


def test_several_guides_lie_along_a_dim(oracle, data):
    guides = {"MeanField": MeanField(3, 10).double(), "exact": exact_guide(oracle)}
    result = to_arviz(oracle, guides, data, num_draws=30)
    assert result["posterior"]["z"].dims == ("chain", "draw", "guide", "datum", "z_dim_0")
    assert list(result["posterior"]["guide"].values) == ["MeanField", "exact"]
    assert result["sample_stats"]["k_hat"].dims == ("guide", "datum")
    for group in ("prior", "prior_predictive", "observed_data"):
        assert "guide" not in result[group].dims
    for name, guide in guides.items():
        alone = to_arviz(oracle, guide, data, num_draws=30, prior=name == "MeanField")
        chosen = result.sel(guide=name)
        for group in groups_of(alone):
            for variable, values in alone[group].data_vars.items():
                assert values.dims == chosen[group][variable].dims
                if group != "posterior_predictive" and name == "MeanField":
                    assert np.array_equal(values, chosen[group][variable], equal_nan=True)


def test_a_summary_has_a_row_per_entry_and_the_right_means(oracle, data):
    result = to_arviz(oracle, exact_guide(oracle), data, num_draws=1000)
    table = arviz.summary(result, round_to="none")
    assert len(table) == 7 * 3
    exact = oracle.posterior(data)
    z_scores = (table["mean"].to_numpy().reshape(7, 3) - exact.loc.numpy()) / (
        exact.stddev.numpy() / math.sqrt(4000)
    )
    assert np.abs(z_scores).max() < 5
    assert (np.abs(table["r_hat"].to_numpy() - 1) < 0.02).all()  # independent draws
    assert (table["ess_bulk"].to_numpy() > 3000).all()


def test_arviz_can_plot_it(exported, oracle, data):
    import matplotlib  # noqa: PLC0415
    import matplotlib.pyplot as plt  # noqa: PLC0415

    matplotlib.use("Agg")
    several = {"wide": wide_guide(oracle), "exact": exact_guide(oracle)}
    both = to_arviz(oracle, several, data, num_draws=50, predictive=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ArviZ's and matplotlib's own
        arviz.plot_pair(exported, coords={"datum": 0})
        arviz.plot_forest(both)
        old = arviz.__version__.startswith("0.")
        plot_ppc = arviz.plot_ppc if old else arviz.plot_ppc_dist
        plot_ppc(exported)
        plot_both = arviz.plot_dist_comparison if old else arviz.plot_prior_posterior
        plot_both(exported, coords={"datum": 0})
        plt.close("all")


@pytest.mark.skipif(
    not importlib.util.find_spec("h5netcdf") or not importlib.util.find_spec("h5py"),
    reason="netCDF needs h5netcdf with h5py, or netcdf4",
)
def test_it_survives_a_netcdf_file(exported, tmp_path):
    path = str(tmp_path / "pair.nc")
    exported.to_netcdf(path, engine="h5netcdf")
    read = arviz.from_netcdf(path, engine="h5netcdf")
    assert groups_of(read) == GROUPS
    for group in GROUPS:
        for name, values in exported[group].data_vars.items():
            assert np.array_equal(read[group][name].values, values.values, equal_nan=True)
    read.close()


def test_plain_functions_sites_and_plates():
    x = torch.randn(5, 4).double()
    result = to_arviz(layered_model, layered_guide, x, num_draws=8, dims={"pixel": ["pixels"]})
    assert result["posterior"]["top"].dims == ("chain", "draw", "datum")
    assert result["posterior_predictive"]["pixel"].shape == (4, 8, 5, 4)
    assert result["observed_data"]["pixel"].dims == ("datum", "pixels")
    assert np.array_equal(result["observed_data"]["pixel"].values, x.numpy())


@pytest.mark.parametrize("options", [{}, {"chunk_size": 3}])
def test_several_constrained_sites(options):
    schools = EightSchools(8)
    x = torch.tensor([schools.effects] * 2).float()
    guide = MeanField.for_model(schools, x)
    result = to_arviz(
        schools, guide, x, num_draws=10, num_chains=1, dims={"theta": ["school"]}, **options
    )
    assert set(result["posterior"].data_vars) == {"mu", "tau", "theta"}
    assert result["posterior"]["theta"].dims == ("chain", "draw", "datum", "school")
    assert (result["posterior"]["tau"] > 0).all()
    z = [result["posterior"][n].values.reshape(10, 2, -1) for n in ("mu", "tau", "theta")]
    log_p = schools.log_joint(x, torch.from_numpy(np.concatenate(z, -1)))
    assert np.allclose(result["sample_stats"]["log_p_xz"].values[0], log_p.numpy(), atol=1e-3)


def test_weights_are_those_of_log_weights(oracle, data):
    """The same seed gives `log_weights` the same draws."""
    guide = Planar(3, 10, hidden_dims=()).double()
    result = to_arviz(oracle, guide, data, num_draws=8, prior=False, predictive=False, seed=4)
    pyro.set_rng_seed(4)
    expected = log_weights(oracle, guide, data, 32).numpy()
    got = result["sample_stats"]["log_weight"].values.reshape(32, 7)
    assert np.allclose(got, expected)
    assert groups_of(result) == {"posterior", "log_likelihood", "sample_stats", "observed_data"}


def test_the_random_state_outside_is_untouched(oracle, data):
    state = torch.get_rng_state()
    first = to_arviz(oracle, wide_guide(oracle), data, num_draws=4, seed=1)
    again = to_arviz(oracle, wide_guide(oracle), data, num_draws=4, seed=1)
    other = to_arviz(oracle, wide_guide(oracle), data, num_draws=4, seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(first["posterior"]["z"], again["posterior"]["z"])
    assert not np.array_equal(first["posterior"]["z"], other["posterior"]["z"])


def test_smoothing_needs_a_tail():
    log_w = torch.randn(15, 3)
    assert torch.allclose(smoothed_log_weights(log_w), log_w.log_softmax(0).double())
    equal = smoothed_log_weights(torch.zeros(500, 2))
    assert torch.allclose(equal, torch.full((500, 2), -math.log(500)).double())
    heavy = 3 * torch.randn(500, 2, generator=torch.Generator().manual_seed(0)).double()
    smoothed = smoothed_log_weights(heavy)
    assert torch.allclose(smoothed.logsumexp(0), torch.zeros(2).double())
    assert not torch.allclose(smoothed, heavy.log_softmax(0))
    assert (smoothed.argsort(0) == heavy.argsort(0)).all()  # smoothing keeps the order
    flipped = smoothed_log_weights(-heavy)  # the planted error: ArviZ's sign
    assert not torch.allclose(flipped, smoothed)


def improper():
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))

    return to_arviz(Autoencoder(10, 3), guide, torch.zeros(2, 10), num_draws=4)


def plain(**options):
    return to_arviz(VAE(10, 3), MeanField(3, 10), torch.ones(2, 10), num_draws=4, **options)


BAD = {
    "draws": (lambda: plain(num_chains=0), "at least 1, got 4 and 0"),
    "improper prior": (improper, "pass prior=False"),
    "no guides": (lambda: to_arviz(VAE(10, 3), {}, torch.ones(2, 10)), "at least one guide"),
    "dims": (lambda: plain(dims={"z": ["a", "b"]}), r"expected 1 dims for 'z', got \['a', 'b'\]"),
    "unknown site": (lambda: plain(dims={"w": ["a"]}), r"dims of .*, got \['w'\]"),
    "coords": (lambda: plain(coords={"datum": ["a"]}), "got 1 labels for 'datum'"),
    "unknown dim": (lambda: plain(coords={"factor": ["a"]}), "got 1 labels for 'factor'"),
    "data": (lambda: to_arviz(VAE(10, 3), MeanField(3, 10), torch.ones(2, 10) / 2), "binarize"),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def schools(y, sigma):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("schools", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, 3.0))
        with pyro.plate("tests", 2):
            pyro.sample("y", dist.Normal(theta, sigma), obs=y.expand(2, -1))


def test_shared_latents_have_the_dims_of_their_plates():
    data = torch.tensor([28.0, 8.0, -3.0]), torch.tensor([15.0, 10.0, 16.0])
    guide = AutoNormal(schools)
    guide(*data)
    result = to_arviz(schools, guide, data, num_draws=5, num_chains=2, seed=1)
    dims = {
        "posterior": {"mu": ("chain", "draw"), "theta": ("chain", "draw", "schools")},
        "log_likelihood": {"y": ("chain", "draw", "tests", "schools")},
        "posterior_predictive": {"y": ("chain", "draw", "tests", "schools")},
        "observed_data": {"y": ("tests", "schools")},
        "sample_stats": {"log_p_xz": ("chain", "draw"), "k_hat": ()},
    }
    for group, named in dims.items():
        for name, expected in named.items():
            assert result[group][name].dims == expected, (group, name)
    theta = result["posterior"]["theta"].values
    log_p = dist.Normal(torch.tensor(theta), data[1]).log_prob(data[0])
    np.testing.assert_allclose(
        result["log_likelihood"]["y"].values, np.stack([log_p, log_p], axis=2), rtol=1e-5
    )
    total = result["log_likelihood"]["y"].sum(("tests", "schools")).values
    mu = torch.tensor(result["posterior"]["mu"].values)
    prior = dist.Normal(0.0, 5.0).log_prob(mu)
    prior = prior + dist.Normal(mu.unsqueeze(-1), 3.0).log_prob(torch.tensor(theta)).sum(-1)
    np.testing.assert_allclose(
        result["sample_stats"]["log_p_xz"].values, total + prior.numpy(), rtol=1e-5
    )
