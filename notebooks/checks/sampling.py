"""An exercise whose answer draws: moments within their standard errors, and pathwise gradients."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from evidence.notebooks.checks.comparison import shape_of
from evidence.notebooks.checks.exercise import (
    Case,
    Function,
    MakeCase,
    WrongAnswerError,
    called,
    expect_function,
    first_line,
)

_NUM_DRAWS = 20_000
# So many standard errors off, a moment is wrong: chance does that to a right answer once in 10⁸.
_Z = 6.0


class Moments(NamedTuple):
    """Of each entry that is drawn: mean and standard deviation."""

    mean: Tensor
    std: Tensor


@dataclass(frozen=True)
class Sampler:
    """A function that draws from a normal distribution, as a function of its mean and log σ.

    Args:
        name: of the function in the notebook.
        cases: make the arguments `mu` and `logsigma`, of any shape; the first one `[N, Z]`, of
            which moments are taken.
        mistakes: what to say of an answer whose draws have the moments of a wrong one.
    """

    name: str
    cases: Sequence[MakeCase]
    mistakes: Mapping[str, Callable[..., Moments]] = field(default_factory=dict)

    def __call__(self, answer: Function, *, seed: int = 0) -> None:
        """Check an answer.

        Args:
            answer: the student's function.
            seed: decides the case and the draws.

        Raises:
            WrongAnswerError: it is not right.
        """
        expect_function(self.name, answer)
        for dtype in (torch.float32, torch.float64):
            generator = torch.Generator().manual_seed(seed)
            cases = [make(generator, dtype) for make in self.cases]
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                self._check(answer, cases[0])
                for case in cases[1:]:
                    self._draw(answer, case)
            number = cases[0]["mu"].numel()
        print(f"✓ {self.name}: {_NUM_DRAWS:,} draws of {number} latents have the right mean,")
        print("  standard deviation and shape, and their gradients are right")

    def _draw(self, answer: Function, case: Case) -> Tensor:
        z = called(self.name, answer, case)
        mu = case["mu"]
        if not isinstance(z, Tensor) or z.shape != mu.shape:
            raise WrongAnswerError(
                f"{self.name}: expected {shape_of(mu)}, as mu, got {shape_of(z)}"
            )
        return z

    def _check(self, answer: Function, case: Case) -> None:
        mu, logsigma = case["mu"], case["logsigma"]
        z = self._draw(answer, case)
        if torch.equal(z, self._draw(answer, case)) and not torch.equal(z, mu):
            raise WrongAnswerError(f"{self.name}: every call draws the same: set no seed inside")
        many = {name: value.expand(_NUM_DRAWS, *value.shape) for name, value in case.items()}
        draws = self._draw(answer, many).detach().double()
        self._compare(draws, Moments(mu.double(), logsigma.double().exp()), case)
        self._compare_gradients(answer, case)

    def _compare(self, draws: Tensor, right: Moments, case: Case) -> None:
        """Moments of draws `[S, N, Z]`, and that entries are independent and normal."""
        noise = (draws - draws.mean(0)) / draws.std(0).clamp(min=1e-12)
        if not _agree(draws, right):
            if (draws.std(0) < 1e-6).all() and (draws - case["mu"]).abs().max() > 1e-6:
                raise WrongAnswerError(
                    f"{self.name}: one noise for all data: draw ε of the shape of mu"
                )
            raise WrongAnswerError(f"{self.name}: {self._diagnosis(draws, right, case)}")
        for which, other in {"latents": noise[:, 0, 1], "data": noise[:, 1, 0]}.items():
            if (noise[:, 0, 0] * other).mean().abs() > _Z / _NUM_DRAWS**0.5:
                raise WrongAnswerError(
                    f"{self.name}: {which} share their noise: draw ε of the shape of mu"
                )
        fourth = noise.pow(4).mean()
        if (fourth - 3).abs() > _Z * (24 / noise.numel()) ** 0.5:
            raise WrongAnswerError(
                f"{self.name}: mean and standard deviation are right, but the noise is not normal: "
                "draw it by torch.randn_like(mu)"
            )

    def _diagnosis(self, draws: Tensor, right: Moments, case: Case) -> str:
        doubled = {name: value.double() for name, value in case.items()}
        for message, wrong in self.mistakes.items():
            if _agree(draws, wrong(*doubled.values())):
                return message
        off = (draws.std(0) - right.std).abs().flatten()
        at = int(off.argmax())
        return (
            f"expected mean {right.mean.flatten()[at]:.3f} and standard deviation "
            f"{right.std.flatten()[at]:.3f} of an entry, got {draws.mean(0).flatten()[at]:.3f} and "
            f"{draws.std(0).flatten()[at]:.3f}"
        )

    def _compare_gradients(self, answer: Function, case: Case) -> None:
        mu, logsigma = (value.clone().requires_grad_() for value in case.values())
        lost = "use no detach(), no_grad(), NumPy, and Normal.rsample() in place of sample()"
        try:
            z = answer(mu, logsigma)
        except Exception as error:  # whatever it is, it is the student's
            raise WrongAnswerError(
                f"{self.name}: the draws are right, but cannot be differentiated: {lost}: "
                f"{first_line(error)}"
            ) from None
        if not z.requires_grad:
            raise WrongAnswerError(f"{self.name}: the draw has no gradient: {lost}")
        found = torch.autograd.grad(z.sum(), [mu, logsigma], allow_unused=True)
        rights = [torch.ones_like(mu), (z - mu).detach()]
        for name, got, right in zip(case, found, rights, strict=True):
            if got is None or not torch.allclose(got, right, rtol=1e-3, atol=1e-4):
                raise WrongAnswerError(
                    f"{self.name}: no gradient, or a wrong one, with respect to {name}: {lost}"
                )


def _agree(draws: Tensor, moments: Moments) -> bool:
    """Whether draws `[S, ...]` have these moments, within their standard errors."""
    tiny = 1e-6 * (1 + moments.mean.abs())
    mean_se = moments.std / _NUM_DRAWS**0.5 + tiny
    std_se = moments.std / (2 * _NUM_DRAWS) ** 0.5 + tiny
    z_mean = (draws.mean(0) - moments.mean).abs() / mean_se
    z_std = (draws.std(0) - moments.std).abs() / std_se
    return bool(z_mean.max() < _Z) and bool(z_std.max() < _Z)
