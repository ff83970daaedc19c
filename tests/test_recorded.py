"""The log joint from recorded graphs: the bits of the program, or to its rounding if compiled."""

from contextlib import nullcontext

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoMultivariateNormal

from evidence.guides import FullRank
from evidence.inference import anneal, annealed_evidence, nuts_reference, smc_evidence
from evidence.inference.compilation.functions import CompiledFunction
from evidence.inference.compilation.recording import NotRecordableError, same_bits, traced
from evidence.inference.paths.guide_path import path_of
from evidence.inference.paths.isolation import annealing_mode
from evidence.inference.paths.log_joint import Way
from evidence.inference.programs import recorded as recording_of
from evidence.inference.programs.data import as_data, takes
from evidence.inference.programs.recorded import RecordedFunction
from evidence.models import VAE

Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
FEW = {"num_temperatures": 30, "num_chains": 8, "num_leapfrog_steps": 4, "seed": 1}


def schools(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, 12.0), obs=y)


def by_matrices(y):
    """Its shapes allow no particles on the left: chains are run by `torch.vmap`."""
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 10.0).to_event(1))
    x = torch.linspace(-1, 1, len(y)).unsqueeze(1) ** torch.arange(3.0)
    pyro.sample("y", dist.Normal(x.mv(w), 10.0).to_event(1), obs=y)


@config_enumerate
def mixture(y):
    locs = pyro.sample("locs", dist.Normal(torch.zeros(2), 10.0).to_event(1))
    with pyro.plate("data", len(y)):
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7])))
        loc = torch.where(k == 0, locs[..., 0:1], locs[..., 1:2])
        pyro.sample("y", dist.Normal(loc, 5.0), obs=y)


def by_numpy(y):
    """Computes the likelihood outside of torch, where no graph sees it."""
    z = pyro.sample("z", dist.Normal(0.0, 10.0))
    away = np.square(np.asarray(z.detach())[..., None] - y.numpy()).sum(-1)
    pyro.factor("y", torch.as_tensor(-away / 200.0))


class SquareByNumPy(torch.autograd.Function):
    """Its backward pass is run where no mode for functions sees it."""

    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return z.square()

    @staticmethod
    def backward(ctx, grad):
        (z,) = ctx.saved_tensors
        return 2 * grad * z * float(np.abs(z.numpy()).max() < 4)


def scale_of_sizes(z):
    return 1.0 + len(torch.nonzero(z.reshape(-1) > 4))


def scale_of_masked(z):
    z = z.reshape(-1)
    return 1.0 + z[z > 4].numel()


def scale_of_unique(z):
    return float(len(torch.unique(z > 4)))


def scale_of_list(z):
    return 1 + torch.tensor([(z > 4).any()]).float()


def scale_of_items(z):
    return 1 + torch.tensor([z.detach().clamp(min=4).max().item(), 0.0]).sum()


def scale_of_new(z):
    return 1 + z.new_tensor([(z > 4).any()])


def scale_of_text(z):
    return 1.0 + ("5" in str((z > 4).sum() * 0 + (z > 4).any() * 5))


def scale_of_backward(z):
    return 1 + SquareByNumPy.apply(z)


def scale_of_caught(z):
    """The program knows what then; in estimates such a matrix is NaN, in a graph, too."""
    try:
        return torch.linalg.cholesky((4.0 - z.abs())[..., None, None])[..., 0, 0] + 0.1
    except RuntimeError:
        return 1 + 0 * z


FAR_AWAY = [
    scale_of_sizes,
    scale_of_masked,
    scale_of_unique,
    scale_of_list,
    scale_of_new,
    scale_of_text,
    scale_of_items,
    scale_of_backward,
    scale_of_caught,
]


def with_scale(scale):
    def model(y):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(z, scale(z)), obs=y)

    return model


def far_from_where_recorded(model):
    """States of the path and of the program, at rising distances; recorded at the first."""
    with annealing_mode(model, None, 1, Y.device):
        path, _ = states_of(model, None, Y)
        assert path.way is Way.PLATE
        for scale in (0.5, 1.0, 5.0, 20.0, 1.0):
            z = scale * torch.tensor([-0.9, 0.3, 0.8, 1.0]).reshape(4, 1, 1)
            yield path.state(z), path._differentiated(z)


def no_guide(model, y):
    return None


def full_rank(model, y):
    return FullRank.for_model(model, y)


def autoguide(model, y):
    guide = AutoMultivariateNormal(model)
    guide(y)
    return guide


def recorded(monkeypatch, calls=3):
    monkeypatch.setattr(recording_of, "_BEFORE_RECORDING", calls)
    monkeypatch.setattr(recording_of, "_FEWEST_CALLS", 1)


def states_of(model, guide, x):
    """The path, and a few positions on it."""
    x = as_data(x)
    path = path_of(takes(model, x), None if guide is None else takes(guide, x), x)
    return path, [path.sample(6) for _ in range(6)]


@pytest.mark.parametrize(
    ("model", "guide_of", "way"),
    [
        (schools, no_guide, Way.PLATE),
        (schools, full_rank, Way.PLATE),
        (schools, autoguide, Way.PLATE),
        (by_matrices, no_guide, Way.VMAP),
        (mixture, no_guide, None),
    ],
)
def test_recorded_states_are_those_of_the_program_to_the_bit(model, guide_of, way, monkeypatch):
    recorded(monkeypatch)
    guide = guide_of(model, Y)
    with annealing_mode(model, guide, 0, Y.device):
        path, positions = states_of(model, guide, Y)
        assert way in (None, path.way)
        for number, z in enumerate(positions, start=1):
            ours, theirs = path.state(z), path._differentiated(z)
            assert all(map(torch.equal, ours, theirs))
            is_recorded = any(graph is not None for graph in path._recorded._graphs.values())
            assert is_recorded == (number >= 3)


@pytest.mark.parametrize("model", [schools, by_matrices])
def test_whole_runs_have_the_same_bits(model, monkeypatch):
    recorded(monkeypatch)
    eager = anneal(model, Y, compile=False, **FEW)
    assert torch.equal(anneal(model, Y, **FEW).log_w, eager.log_w)


@pytest.mark.parametrize(
    ("expected", "num_calls", "is_recorded"),
    [(0, 249, False), (0, 250, True), (1999, 249, False), (1999, 250, True), (2000, 1, True)],
)
def test_a_short_run_is_not_recorded(expected, num_calls, is_recorded):
    """It would take longer: so many calls with inputs alike are not, where few are expected."""
    function = RecordedFunction(lambda z: (z.square(),))
    function.expect(expected, "auto")
    for number in range(num_calls):
        for size in (2, 3) if number % 2 else (2,):  # others do not count
            z = torch.full((size,), float(number))
            assert torch.equal(function(z)[0], z.square())
    found = [graph is not None for graph in function._graphs.values()]
    assert any(found) == is_recorded


def test_memory_order_makes_no_other_graph(monkeypatch):
    recorded(monkeypatch, calls=1)
    function = RecordedFunction(lambda z: (z.square(),))
    z = torch.randn(3, 2)
    assert torch.equal(function(z)[0], z.square())
    assert torch.equal(function(z.T.contiguous().T)[0], z.square())
    assert len(function._graphs) == 1


def test_parameters_that_change_are_seen(monkeypatch):
    recorded(monkeypatch, calls=1)
    x = torch.rand(3, 20).bernoulli()
    model = VAE(20, latent_dim=2, hidden_dims=(8,))
    with annealing_mode(model, None, 0, x.device):
        path, positions = states_of(model, None, x)
        path.state(positions[0])
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.5)
        assert all(map(torch.equal, path.state(positions[1]), path._differentiated(positions[1])))


@pytest.mark.parametrize("leave", [np.asarray, torch.Tensor.numpy, torch.Tensor.tolist])
def test_what_leaves_torch_is_not_recorded(leave):
    def function(z):
        return (z * torch.as_tensor(leave(z.detach())),)

    with pytest.raises(NotRecordableError, match="outside of torch"):
        traced(function, [torch.ones(3)])


def test_a_program_with_numpy_in_it_has_the_right_evidence(monkeypatch):
    """The twin: were it recorded, all that follows would have the likelihood of one position."""
    recorded(monkeypatch)
    eager = annealed_evidence(by_numpy, Y, compile=False, **FEW)
    assert torch.equal(annealed_evidence(by_numpy, Y, **FEW).log_px, eager.log_px)


def test_a_graph_that_holds_what_it_should_compute_is_found_out(monkeypatch):
    """Planted: nothing stops NumPy, and the graph is right where it was recorded alone."""
    recorded(monkeypatch)
    from evidence.inference.compilation import recording  # noqa: PLC0415 (planted)

    monkeypatch.setattr(recording, "_LEAVING", ())
    x = as_data(Y)
    with annealing_mode(by_numpy, None, 0, Y.device):
        path, positions = states_of(by_numpy, None, x)
        assert path.way is Way.PLATE
        for z in positions:
            assert all(map(torch.equal, path.state(z), path._differentiated(z)))
    assert list(path._recorded._graphs.values()) == [None]


def test_branches_are_not_recorded(monkeypatch):
    recorded(monkeypatch)

    def branching(z):
        return (z if z.sum() > 0 else -z,)

    function = RecordedFunction(branching)
    for number in range(6):
        z = torch.full((2, 3), float((-1) ** number))
        assert torch.equal(function(z)[0], z.abs())


@pytest.mark.parametrize("scale", FAR_AWAY)
def test_what_a_graph_cannot_see_is_that_of_the_program_far_away(scale, monkeypatch):
    recorded(monkeypatch, calls=1)
    for ours, theirs in far_from_where_recorded(with_scale(scale)):
        assert all(map(same_bits, ours, theirs))


@pytest.mark.parametrize("scale", FAR_AWAY[:-3])
def test_without_the_checks_it_would_not_be(scale, monkeypatch):
    """Planted: what Python reads of tensors stays as it was, at places that are near."""
    recorded(monkeypatch, calls=1)
    from evidence.inference.compilation import recording  # noqa: PLC0415 (planted)

    monkeypatch.setattr(recording, "_LEAVING", ())
    monkeypatch.setattr(recording, "_FROM_LISTS", ())
    monkeypatch.setattr(recording, "_expect_fixed_shapes", lambda graph: None)
    monkeypatch.setattr(recording_of, "_FAR", 1.0)
    pairs = far_from_where_recorded(with_scale(scale))
    assert not all(all(map(torch.equal, ours, theirs)) for ours, theirs in pairs)


def test_a_graph_that_fails_gives_way_to_the_program(monkeypatch):
    """The program knows what then. Planted: the failure leaves the run."""

    def rooted(z):
        try:
            return (torch.linalg.cholesky(z),)
        except RuntimeError:
            return (torch.zeros_like(z),)

    recorded(monkeypatch, calls=1)
    function = RecordedFunction(rooted)
    one = torch.eye(2).expand(3, 2, 2).clone()
    assert torch.equal(function(4 * one)[0], 2 * one)
    assert None not in function._graphs.values()
    assert torch.equal(function(-one)[0], 0 * one)
    monkeypatch.setattr(recording_of, "suppress", lambda *errors: nullcontext())
    with pytest.raises(RuntimeError, match="positive-definite"):
        function(-one)


def test_a_graph_is_tried_far_away_as_well(monkeypatch):
    """Planted: without, a branch that a graph does not hold would stay as it was nearby."""

    def bending(z):
        return (z * (1.0 + float(str((z.abs() > 4).any()) == "tensor(True)")),)

    recorded(monkeypatch, calls=1)
    from evidence.inference.compilation import recording  # noqa: PLC0415 (planted)

    monkeypatch.setattr(recording, "_LEAVING", ())
    far = torch.full((3,), 5.0)
    for factor, is_right in ((recording_of._FAR, True), (1.0, False)):
        monkeypatch.setattr(recording_of, "_FAR", factor)
        function = RecordedFunction(bending)
        function(torch.ones(3))
        assert torch.equal(function(far)[0], 2 * far) is is_right


def test_constant_masks_of_the_data_are_recorded(monkeypatch):
    recorded(monkeypatch, calls=1)

    def with_missing(y):
        z = pyro.sample("z", dist.Normal(0.0, 10.0))
        known = y[y > 0]
        pyro.factor("y", dist.Normal(z.unsqueeze(-1), 5.0).log_prob(known).sum(-1))

    with annealing_mode(with_missing, None, 1, Y.device):
        path, positions = states_of(with_missing, None, Y)
        for z in positions:
            assert all(map(torch.equal, path.state(z), path._differentiated(z)))
        assert None not in path._recorded._graphs.values()


@pytest.mark.parametrize("is_planted", [False, True])
def test_a_path_renewed_is_of_its_own_data_and_parameters(is_planted, monkeypatch):
    """Not of those of the path that it was made from. Planted: it keeps that one's graph."""
    recorded(monkeypatch, calls=1)
    loc = torch.tensor(0.5)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc * x, 0.8))

    with annealing_mode(model, guide, 0, Y.device):
        path, _ = states_of(model, guide, Y)
        z = path.sample(4)
        before = path.state(z)
        loc.fill_(0.1)
        renewed = path.renewed(as_data(-2 * Y))
        if is_planted:
            renewed._recorded = path._recorded
        ours = renewed.state(z)
        is_same = all(map(torch.equal, ours, renewed._differentiated(z)))
        assert is_same is not is_planted
        assert is_planted or not torch.allclose(ours.log_probs, before.log_probs)


def test_random_numbers_in_a_program_are_not_recorded_and_not_used_up(monkeypatch):
    recorded(monkeypatch)

    def noisy(z):
        return (torch.rand(3),)

    function = RecordedFunction(noisy)
    pyro.set_rng_seed(0)
    draws = [function(torch.zeros(2))[0] for _ in range(6)]
    pyro.set_rng_seed(0)
    assert all(torch.equal(draw, torch.rand(3)) for draw in draws)


def test_compiled_states_are_those_of_the_program_to_its_rounding():
    """A run of them is another walk in the end, as of any change in the last bit."""
    torch.set_default_dtype(torch.float64)
    with annealing_mode(schools, None, 0, Y.device):
        path, positions = states_of(schools, None, Y.double())
        path.expect_calls(1, compile=True)
        for z in positions:
            for ours, theirs in zip(path.state(z), path._differentiated(z), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        assert all(isinstance(g, CompiledFunction) for g in path._recorded._graphs.values())


def test_what_cannot_be_compiled_says_so_and_goes_on(monkeypatch):
    eager = annealed_evidence(by_numpy, Y, compile=False, **FEW)
    with pytest.warns(UserWarning, match="log joint is not compiled: it computes outside of torch"):
        assert torch.equal(annealed_evidence(by_numpy, Y, compile=True, **FEW).log_px, eager.log_px)


@pytest.mark.parametrize("evidence", [annealed_evidence, smc_evidence])
def test_bad_options_are_refused(evidence):
    with pytest.raises(ValueError, match="expected compile True, False or 'auto', got 'on'"):
        evidence(schools, Y, compile="on")


def test_nuts_draws_the_same_from_a_recorded_graph(monkeypatch):
    recorded(monkeypatch)
    short = {"num_samples": 20, "num_warmup": 20, "num_chains": 2, "seed": 1}
    eager = nuts_reference(schools, Y, compile=False, **short)
    reference = nuts_reference(schools, Y, **short)
    assert torch.equal(reference.draws, eager.draws)
    assert reference.num_evaluations == eager.num_evaluations > 2 * 40
    with pytest.raises(ValueError, match="expected compile True, False or 'auto', got None"):
        nuts_reference(schools, Y, compile=None)


def test_a_program_that_changes_while_it_is_scored_is_found_out(monkeypatch):
    """And what the message advises leads to what the program says."""
    recorded(monkeypatch, calls=1)
    monkeypatch.setattr(recording_of, "_CALLS_PER_CHECK", 10)
    calls = []

    def growing(z):
        calls.append(z)
        return (z * (1.0 if len(calls) < 20 else 2.0),)

    def called_often(function):
        for _ in range(1000):
            function(z)

    z = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"depends on what no graph holds.*pass compile=False"):
        called_often(RecordedFunction(growing))
    calls.clear()
    plain = RecordedFunction(growing)
    plain.expect(0, compile=False)
    assert [plain(z)[0].sum().item() for _ in range(25)][-1] == 2 * 6
