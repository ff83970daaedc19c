"""Exercises of notebook 3: a planar layer, its constraint, and the bound of a flow."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from evidence.notebooks.checks.cases import batches, size
from evidence.notebooks.checks.exercise import Case, Exercise, Function


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)


def _u_and_w(generator: torch.Generator, dtype: torch.dtype, batch: tuple[int, ...]) -> Case:
    shape = (*batch, size(generator, 3, 5))
    u, w = (2 * torch.randn(shape, generator=generator, dtype=dtype) for _ in range(2))
    return {"u": u, "w": w}


def _moved(u: Tensor, w: Tensor, amount: Tensor) -> Tensor:
    """Û = u + amount · w / ‖w‖²."""
    return u + amount * w / _dot(w, w)


def _corrected(u: Tensor, w: Tensor) -> Tensor:
    return _moved(u, w, F.softplus(_dot(w, u)) - 1 - _dot(w, u))


corrected = Exercise(
    "corrected",
    right=_corrected,
    cases=batches(_u_and_w),
    mistakes={
        "u is not corrected: a layer with wᵀu < −1 folds the plane": lambda u, w: u.clone(),
        "the correction is divided by ‖w‖, not by its square: wᵀû is not softplus(wᵀu) − 1 then": (
            lambda u, w: u + (_corrected(u, w) - u) * _dot(w, w).sqrt()
        ),
        "the correction is not divided by ‖w‖²": lambda u, w: (
            u + (_corrected(u, w) - u) * _dot(w, w)
        ),
        "the correction goes along u; it goes along w": (
            lambda u, w: u + (F.softplus(_dot(w, u)) - 1 - _dot(w, u)) * u / _dot(w, w)
        ),
        "wᵀu is not taken off: û keeps the part of u along w": (
            lambda u, w: _moved(u, w, F.softplus(_dot(w, u)) - 1)
        ),
        "the −1 is missing: wᵀû > −1 is all that is needed, and this makes it positive": (
            lambda u, w: _moved(u, w, F.softplus(_dot(w, u)) - _dot(w, u))
        ),
        "+1 for −1: wᵀû = softplus(wᵀu) − 1 lies above −1": (
            lambda u, w: _moved(u, w, F.softplus(_dot(w, u)) + 1 - _dot(w, u))
        ),
        "exp in place of softplus = log(1 + exp)": (
            lambda u, w: _moved(u, w, _dot(w, u).exp() - 1 - _dot(w, u))
        ),
        "softplus of each entry: it is of the number wᵀu": (
            lambda u, w: _moved(u, w, F.softplus(w * u) - 1 - w * u)
        ),
        "the roles of u and w are swapped: û is u, moved along w": lambda u, w: _corrected(w, u),
        "the correction is divided by ‖u‖²: by that of w, along which it goes": (
            lambda u, w: u + (_corrected(u, w) - u) * _dot(w, w) / _dot(u, u)
        ),
        "the correction has the wrong sign": lambda u, w: 2 * u - _corrected(u, w),
        "this is the correction alone: û is u with it added": lambda u, w: _corrected(u, w) - u,
        "wᵀu is added, it is taken off: û keeps nothing of u along w": (
            lambda u, w: _moved(u, w, F.softplus(_dot(w, u)) - 1 + _dot(w, u))
        ),
        "the −1 stands inside of softplus: it is softplus(wᵀu) − 1": (
            lambda u, w: _moved(u, w, F.softplus(_dot(w, u) - 1) - _dot(w, u))
        ),
        "tanh in place of softplus = log(1 + exp)": (
            lambda u, w: _moved(u, w, torch.tanh(_dot(w, u)) - 1 - _dot(w, u))
        ),
        "the 1 in log(1 + exp) is missing: log exp(wᵀu) is wᵀu": (
            lambda u, w: _moved(u, w, -torch.ones_like(_dot(w, u)))
        ),
        "wᵀu is cut off at −1: the layer is on the edge then, and has no gradient": (
            lambda u, w: _moved(u, w, _dot(w, u).clamp(min=-1) - _dot(w, u))
        ),
        "u is corrected only where wᵀu < −1: the formula holds everywhere, so that û is smooth": (
            lambda u, w: torch.where(_dot(w, u) < -1, _corrected(u, w), u)
        ),
        "wᵀu is summed over the batch too: over the last dimension alone, with keepdim=True": (
            lambda u, w: u + (F.softplus((w * u).sum()) - 1 - (w * u).sum()) * w / (w * w).sum()
        ),
        "‖w‖² is summed over the batch too: over the last dimension alone, with keepdim=True": (
            lambda u, w: u + (_corrected(u, w) - u) * _dot(w, w) / (w * w).sum()
        ),
        "wᵀu is summed over the data: over the last dimension, with keepdim=True": (
            lambda u, w: u + (F.softplus((w * u).sum(0)) - 1 - (w * u).sum(0)) * w / (w * w).sum(0)
        ),
        "relu in place of softplus: the layer is not invertible where wᵀu < 0": (
            lambda u, w: _moved(u, w, F.relu(_dot(w, u)) - 1 - _dot(w, u))
        ),
    },
)


def _layer(generator: torch.Generator, dtype: torch.dtype, batch: tuple[int, ...]) -> Case:
    shape = (*batch, size(generator, 3, 5))
    z, u, w = (torch.randn(shape, generator=generator, dtype=dtype) for _ in range(3))
    b = torch.randn(*batch, 1, generator=generator, dtype=dtype)
    return {"z": z, "b": b, "u_hat": _corrected(u, w), "w": w}


def _bend(z: Tensor, b: Tensor, w: Tensor) -> Tensor:
    return torch.tanh(_dot(w, z) + b)


def _f(z: Tensor, b: Tensor, u: Tensor, w: Tensor) -> Tensor:
    return z + u * _bend(z, b, w)


def _log_det(z: Tensor, b: Tensor, u: Tensor, w: Tensor) -> Tensor:
    psi = (1 - _bend(z, b, w) ** 2) * w
    return (1 + _dot(u, psi).squeeze(-1)).abs().log()


def _with(f: Function = _f, log_det: Function = _log_det) -> Function:
    return lambda z, b, u, w: (f(z, b, u, w), log_det(z, b, u, w))


planar = Exercise(
    "planar",
    right=_with(),
    cases=batches(_layer),
    mistakes={
        "the determinant is not in logs": _with(log_det=lambda *a: _log_det(*a).exp()),
        "this is −log|det|, that of the inverse": _with(log_det=lambda *a: -_log_det(*a)),
        "the log-determinant is that of f(z), evaluated at y: ψ is taken at z": _with(
            log_det=lambda z, b, u, w: _log_det(_f(z, b, u, w), b, u, w)
        ),
        "ψ has lost the derivative of tanh, 1 − tanh²": _with(
            log_det=lambda z, b, u, w: (1 + _dot(u, w).squeeze(-1)).abs().log()
        ),
        "the derivative of tanh is 1 − tanh², not 1 − tanh": _with(
            log_det=lambda z, b, u, w: (
                (1 + _dot(u, (1 - _bend(z, b, w)) * w).squeeze(-1)).abs().log()
            )
        ),
        "the determinant is 1 + ûᵀψ: the 1 is missing": _with(
            log_det=lambda z, b, u, w: (
                _dot(u, (1 - _bend(z, b, w) ** 2) * w).squeeze(-1).abs().log()
            )
        ),
        "ûᵀψ is a dot product, a number per point: this has kept one per latent": _with(
            log_det=lambda z, b, u, w: (1 + u * (1 - _bend(z, b, w) ** 2) * w).abs().log()
        ),
        "the log-determinants of the latents are added up: there is one determinant of the whole "
        "layer, 1 + ûᵀψ": _with(
            log_det=lambda z, b, u, w: (1 + u * (1 - _bend(z, b, w) ** 2) * w).abs().log().sum(-1)
        ),
        "the log-determinant keeps a dimension of size 1: expected one number per point": _with(
            log_det=lambda *a: _log_det(*a).unsqueeze(-1)
        ),
        "this sums the log-determinants over the batch: expected one number per point": _with(
            log_det=lambda *a: _log_det(*a).sum()
        ),
        "f has lost the z it begins with: f(z) = z + û tanh(wᵀz + b)": _with(
            lambda z, b, u, w: u * _bend(z, b, w)
        ),
        "f has lost tanh: an affine layer bends nothing": _with(
            lambda z, b, u, w: z + u * (_dot(w, z) + b)
        ),
        "the bias b is missing in f": _with(lambda z, b, u, w: z + u * _bend(z, 0 * b, w)),
        "w·z is kept entry by entry; wᵀz is a dot product": _with(
            lambda z, b, u, w: z + u * torch.tanh(w * z + b)
        ),
        "the roles of û and w are swapped in f": _with(lambda z, b, u, w: z + w * _bend(z, b, u)),
        "the roles of û and w are swapped, in f and in ψ": (lambda z, b, u, w: _with()(z, b, w, u)),
        "û tanh(…) is taken off z: it is added": _with(lambda z, b, u, w: z - u * _bend(z, b, w)),
        "z is multiplied by û tanh(…): it is added": (
            _with(lambda z, b, u, w: z * u * _bend(z, b, w))
        ),
        "sigmoid in place of tanh": _with(lambda z, b, u, w: z + u * torch.sigmoid(_dot(w, z) + b)),
        "the bias b is missing, in f and in ψ": lambda z, b, u, w: _with()(z, 0 * b, u, w),
        "the bias b is taken off: wᵀz + b": lambda z, b, u, w: _with()(z, -b, u, w),
        "the bias b is missing in ψ": _with(log_det=lambda z, b, u, w: _log_det(z, 0 * b, u, w)),
        "the determinant is 1 + ûᵀψ, with a plus": _with(
            log_det=lambda z, b, u, w: _log_det(z, b, -u, w)
        ),
        "ψ has tanh in place of its derivative, 1 − tanh²": _with(
            log_det=lambda z, b, u, w: (1 + _dot(u, _bend(z, b, w) * w).squeeze(-1)).abs().log()
        ),
        "ψ has lost w: the derivative of tanh(wᵀz + b) by z is (1 − tanh²) w": _with(
            log_det=lambda z, b, u, w: (
                (1 + _dot(u, 1 - _bend(z, b, w) ** 2).squeeze(-1)).abs().log()
            )
        ),
        "ψ is taken at tanh(z): it is (1 − tanh²(wᵀz + b)) w": _with(
            log_det=lambda z, b, u, w: (
                (1 + _dot(u, (1 - z.tanh() ** 2) * w).squeeze(-1)).abs().log()
            )
        ),
        "the log-determinant is 0: the layer changes volumes": _with(
            log_det=lambda *a: torch.zeros_like(_log_det(*a))
        ),
        "this is the mean of the log-determinants: expected one number per point": _with(
            log_det=lambda *a: _log_det(*a).mean()
        ),
        "expected f(z) and the log-determinant, in this order": (lambda *a: (_log_det(*a), _f(*a))),
        "expected two results, f(z) and the log-determinant; this is f(z) alone": _f,
        "expected two results, f(z) and the log-determinant; this is the log-determinant alone": (
            _log_det
        ),
    },
)


def _flow(generator: torch.Generator, dtype: torch.dtype, batch: tuple[int, ...]) -> Case:
    shape = (*batch, size(generator, 3, 5))
    mu, z0 = (torch.randn(shape, generator=generator, dtype=dtype) for _ in range(2))
    logsigma = torch.randn(shape, generator=generator, dtype=dtype) / 2
    layers = []
    for _ in range(size(generator, 2, 4)):
        u, w = (torch.randn(shape, generator=generator, dtype=dtype) for _ in range(2))
        b = torch.randn(*batch, 1, generator=generator, dtype=dtype)
        layers.append((b, _corrected(u, w), w))
    return {
        "z0": mu + logsigma.exp() * z0,
        "mu": mu,
        "logsigma": logsigma,
        "layers": layers,
        "log_likelihood": _example_likelihood,
    }


def _example_likelihood(z: Tensor) -> Tensor:
    """A log p(x | z) that depends on every latent in its own way: `[N]`."""
    weights = torch.arange(1, z.shape[-1] + 1, dtype=z.dtype)
    return -(z - weights / 2).square().mul(weights).sum(-1) / 2


def _log_normal(z: Tensor, mu: Tensor | float = 0.0, logsigma: Tensor | float = 0.0) -> Tensor:
    logsigma = torch.as_tensor(logsigma, dtype=z.dtype)
    standard = (z - mu) / logsigma.exp()
    return -(standard**2 / 2 + logsigma + math.log(2 * math.pi) / 2).sum(-1)


def _through(z: Tensor, layers: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """z_K, and the sum of the log-determinants."""
    total = torch.zeros(z.shape[:-1], dtype=z.dtype)
    for b, u_hat, w in layers:
        total = total + _log_det(z, b, u_hat, w)
        z = _f(z, b, u_hat, w)
    return z, total


def _bound(
    *, likelihood_at: int = -1, prior_at: int = -1, q_at: int = 0, sign: float = 1.0
) -> Function:
    """The bound with the likelihood, prior and q₀ at z₀ (0) or z_K (−1), ± log-determinants."""

    def bound(
        z0: Tensor, mu: Tensor, logsigma: Tensor, layers: list, log_likelihood: Function
    ) -> Tensor:
        z_k, log_det = _through(z0, layers)
        at = {0: z0, -1: z_k}
        log_q0 = _log_normal(at[q_at], mu, logsigma)
        log_p = log_likelihood(at[likelihood_at]) + _log_normal(at[prior_at])
        return log_p - log_q0 + sign * log_det

    return bound


def _closed_form(z0: Tensor, mu: Tensor, logsigma: Tensor, layers: list, log_p: Function) -> Tensor:
    z_k, log_det = _through(z0, layers)
    kl = ((2 * logsigma).exp() + mu**2 - 1 - 2 * logsigma).sum(-1) / 2
    return log_p(z_k) - kl + log_det


bound = Exercise(
    "bound",
    right=_bound(),
    cases=batches(_flow),
    mistakes={
        "the prior is scored at z₀, it belongs at z_K, the latent that the model gets": _bound(
            prior_at=0
        ),
        "the likelihood is scored at z₀, it belongs at z_K": _bound(likelihood_at=0),
        "prior and likelihood are scored at z₀: they belong at z_K": _bound(
            prior_at=0, likelihood_at=0
        ),
        "q₀ is scored at z_K; it is the density of z₀": _bound(q_at=-1),
        "the log-determinants have the wrong sign: −log q(z_K) = −log q₀(z₀) + Σ log|det|": _bound(
            sign=-1.0
        ),
        "the log-determinants are missing": _bound(sign=0.0),
        "this takes the closed-form KL of q₀ for the flow's, which scores the prior at z₀": (
            _closed_form
        ),
        "log q₀(z₀) is added: the bound subtracts it": (
            lambda z0, mu, s, layers, log_p: (
                _bound()(z0, mu, s, layers, log_p) + 2 * _log_normal(z0, mu, s)
            )
        ),
        "log q₀(z₀) is missing": (
            lambda z0, mu, s, layers, log_p: (
                _bound()(z0, mu, s, layers, log_p) + _log_normal(z0, mu, s)
            )
        ),
        "the prior is missing": (
            lambda z0, mu, s, layers, log_p: (
                _bound()(z0, mu, s, layers, log_p) - _log_normal(_through(z0, layers)[0])
            )
        ),
        "the layers are taken in reverse order": (
            lambda z0, mu, s, layers, log_p: _bound()(z0, mu, s, layers[::-1], log_p)
        ),
        "the prior is summed over the batch too: expected one number per datum": (
            lambda z0, mu, s, layers, log_p: (
                _bound()(z0, mu, s, layers, log_p)
                - _log_normal(_through(z0, layers)[0])
                + _log_normal(_through(z0, layers)[0]).sum()
            )
        ),
        "the likelihood is missing": (
            lambda z0, mu, s, layers, log_p: (
                _bound()(z0, mu, s, layers, log_p) - log_p(_through(z0, layers)[0])
            )
        ),
        "the prior is N(mu, σ²): it is N(0, I), whatever the encoder says": (
            lambda z0, mu, s, layers, log_p: (
                _bound()(z0, mu, s, layers, log_p)
                - _log_normal(_through(z0, layers)[0])
                + _log_normal(_through(z0, layers)[0], mu, s)
            )
        ),
        "q₀ is taken for N(0, I): it is N(mu, exp(logsigma)²)": (
            lambda z0, mu, s, layers, log_p: (
                _bound()(z0, mu, s, layers, log_p) + _log_normal(z0, mu, s) - _log_normal(z0)
            )
        ),
        "logsigma is log σ, not log σ²": (
            lambda z0, mu, s, layers, log_p: _bound()(z0, mu, s / 2, layers, log_p)
        ),
        "logsigma is taken for σ: σ is exp(logsigma)": (
            lambda z0, mu, s, layers, log_p: _bound()(z0, mu, s.abs().log(), layers, log_p)
        ),
        "the log-determinant is that of the last layer alone: they add up": (
            lambda z0, mu, s, layers, log_p: (
                _bound(sign=0.0)(z0, mu, s, layers, log_p)
                + _through(_through(z0, layers[:-1])[0], layers[-1:])[1]
            )
        ),
        "the log-determinants are all taken at z₀: each is taken where its layer begins": (
            lambda z0, mu, s, layers, log_p: (
                _bound(sign=0.0)(z0, mu, s, layers, log_p)
                + sum(_through(z0, [layer])[1] for layer in layers)
            )
        ),
        "only the first layer is used": (
            lambda z0, mu, s, layers, log_p: _bound()(z0, mu, s, layers[:1], log_p)
        ),
        "the first layer is left out": (
            lambda z0, mu, s, layers, log_p: _bound()(z0, mu, s, layers[1:], log_p)
        ),
        "the last layer is left out": (
            lambda z0, mu, s, layers, log_p: _bound()(z0, mu, s, layers[:-1], log_p)
        ),
        "the log-determinants are averaged over the batch: each datum has its own": (
            lambda z0, mu, s, layers, log_p: (
                _bound(sign=0.0)(z0, mu, s, layers, log_p) + _through(z0, layers)[1].mean()
            )
        ),
        "this is the negative: a loss, not the bound": (lambda *a: -_bound()(*a)),
        "this is the mean over the batch: expected one number per datum": (
            lambda *a: _bound()(*a).mean()
        ),
        "this sums over the batch: expected one number per datum": lambda *a: _bound()(*a).sum(),
    },
)
