"""Recorded graphs by Torch's interpreter: the bits of the program, nothing left out."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from evidence.inference.compilation import interpreter
from evidence.inference.compilation.interpreter import interpreted
from evidence.inference.compilation.recording import same_bits, traced

WEIGHT = torch.nn.Parameter(torch.tensor([0.5, -1.5]))


def scored(z):
    """With a gradient, a constant and a parameter in it."""
    z = z.requires_grad_()
    with torch.enable_grad():
        total = (torch.sin(z @ WEIGHT) * torch.linspace(0.0, 1.0, len(z))).logsumexp(0)
        return total.detach(), *torch.autograd.grad(total, [z])


def drawn(z):
    noise = torch.randn_like(z)
    return noise * torch.rand(2) + z, torch.empty(3).exponential_()


def in_place(z):
    z = z.clone()
    z[0] += 1.0
    z.mul_(z.roll(1, 0))
    return z, z


def made(function, *inputs):
    return interpreted(traced(function, inputs), inputs)


def by_interpreter(steps):
    (run,) = [c.cell_contents for c in steps.__closure__ if callable(c.cell_contents)]
    return isinstance(run, torch._C.ScriptFunction)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("function", [drawn, in_place])
def test_the_bits_are_those_of_the_program(function, dtype):
    steps = made(function, torch.randn(4, 2, dtype=dtype))
    assert by_interpreter(steps)
    for seed in range(5):
        z = torch.randn(4, 2, dtype=dtype)
        torch.manual_seed(seed)
        ours = steps(z)
        torch.manual_seed(seed)
        assert all(map(same_bits, ours, function(z)))


def test_parameters_that_change_are_seen_and_results_have_no_gradients():
    steps = made(scored, torch.randn(5, 2))
    assert by_interpreter(steps)
    z = torch.randn(5, 2)
    before = steps(z)
    assert not any(result.requires_grad for result in before)
    for changed in (
        lambda: WEIGHT.detach().add_(0.25),
        lambda: setattr(WEIGHT, "data", WEIGHT + 1),
    ):
        changed()
        assert all(map(same_bits, steps(z), scored(z.clone())))
        assert not torch.equal(steps(z)[0], before[0])


@pytest.mark.parametrize("is_planted", [False, True])
def test_checks_are_not_left_out(is_planted, monkeypatch):
    """Planted: Torch's interpreter drops what returns nothing, and the wrong factor goes on."""
    if is_planted:
        monkeypatch.setattr(interpreter, "_returns_nothing", lambda node: False)
    steps = made(lambda z: (torch.linalg.cholesky(z),), torch.eye(2))
    assert by_interpreter(steps) is is_planted
    assert torch.equal(steps(4 * torch.eye(2))[0], 2 * torch.eye(2))
    if is_planted:
        steps(-torch.eye(2))
    else:
        with pytest.raises(RuntimeError, match="positive-definite"):
            steps(-torch.eye(2))


def test_without_an_interpreter_python_takes_the_steps(monkeypatch):
    def none(*args):
        raise AttributeError("there is none")

    monkeypatch.setattr(interpreter, "_function", none)
    steps = made(scored, torch.randn(5, 2))
    assert not by_interpreter(steps)
    z = torch.randn(5, 2)
    assert all(map(same_bits, steps(z), scored(z.clone())))


def test_results_that_are_no_tensors_are_left_to_python():
    graph = make_fx(lambda z: (z + 1, None))(torch.ones(2))
    steps = interpreted(graph, [torch.ones(2)])
    assert not by_interpreter(steps)
    assert steps(torch.ones(2))[1] is None


def test_graphs_are_freed():
    """Torch keeps what `torch.jit.trace` makes for good, with the tensors that it was made of."""
    steps = made(lambda z: (z + torch.zeros(2),), torch.ones(2))
    before = len(torch.jit._state._python_cu.get_functions())
    made(lambda z: (z * 2,), torch.ones(2))
    assert by_interpreter(steps)
    assert len(torch.jit._state._python_cu.get_functions()) == before
