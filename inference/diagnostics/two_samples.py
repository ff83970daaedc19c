"""Are two samples of one distribution? Distances and a classifier, as pure functions of draws."""

import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

CLASSIFIERS = ("knn", "logistic", "mlp")


class Accuracy(NamedTuple):
    """A classifier's accuracy on held-out draws per datum, and its standard error, each `[B]`."""

    mean: Tensor
    se: Tensor


def sliced_wasserstein(
    first: Tensor, second: Tensor, *, num_directions: int = 100, seed: int = 0
) -> Tensor:
    """Sliced 2-Wasserstein distance of two samples, in the units of z: `[S, B, Z] × 2 -> [B]`.

    √(mean over directions of W₂²), W₂ between the draws projected on a direction of length one:
    sorted, they are paired in order. Even for samples of one distribution it is above zero, by
    something of order 1/√S.

    Reference: N. Bonneel, J. Rabin, G. Peyré, H. Pfister, "Sliced and Radon Wasserstein
    Barycenters of Measures", 2015, https://doi.org/10.1007/s10851-014-0506-3.

    Raises:
        ValueError: samples of other shapes than one `[S, B, Z]`.
    """
    _expect_samples(first, second)
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(num_directions, first.shape[2], generator=generator).to(first)
    total = torch.zeros(first.shape[1], dtype=torch.float64, device=first.device)
    for direction in directions / directions.norm(dim=1, keepdim=True):
        one, other = ((draws @ direction).sort(0).values for draws in (first, second))  # [S, B]
        total += (one - other).double().square().mean(0)
    return (total / num_directions).sqrt()


def marginal_wasserstein(first: Tensor, second: Tensor) -> Tensor:
    """1-Wasserstein distance of every entry of two samples: `[S, B, Z] × 2 -> [B, Z]`.

    ∫ |F − G| of the two distribution functions, in the units of the entry: of samples of one size
    the mean distance of draws that are paired in order. Above zero for any two samples.

    Reference: C. Villani, "Optimal Transport: Old and New", 2009,
    https://doi.org/10.1007/978-3-540-71050-9, remark 6.5 and chapter 2.

    Raises:
        ValueError: samples of other shapes than one `[S, B, Z]`.
    """
    _expect_samples(first, second)
    return (first.sort(0).values - second.sort(0).values).abs().double().mean(0)


class Distance(NamedTuple):
    """A distance of two samples, and what it is if both are of one distribution.

    Args:
        between: the distance.
        floor: its expectation for as many draws of the second distribution on both sides, about.
    """

    between: Tensor
    floor: Tensor


def distance_and_floor(
    first: Tensor,
    second: Tensor,
    *,
    distance: Callable[..., Tensor] = sliced_wasserstein,
    num_splits: int = 4,
    seed: int = 0,
    **options: Any,
) -> Distance:
    """A distance of two samples beside its floor: `[S, B, Z] × 2`, to two of what it gives.

    Both are of half of the draws on either side: `between` of one half of the first sample and one
    of the second, a mean over both pairs, and `floor` of two halves of the second, a mean over
    random splits. So their expectations are equal where the distributions are, whatever these are:
    to scale a floor from one number of draws to another by 1/√S is wrong for heavy tails.

    Args:
        first: draws `[S, B, Z]`.
        second: as many draws `[S, B, Z]`, independent and of any order.
        distance: of two samples, `sliced_wasserstein`, `marginal_wasserstein` or another.
        num_splits: of the second sample into halves.
        seed: decides the splits.
        options: of the distance.

    Raises:
        ValueError: samples of other shapes than one `[S, B, Z]`, or of fewer than two draws.
    """
    _expect_samples(first, second)
    half = len(first) // 2
    if half < 1:
        raise ValueError(f"expected two or more draws to halve, got {len(first)}")
    generator = torch.Generator().manual_seed(seed)

    def halves() -> tuple[Tensor, Tensor]:
        order = torch.randperm(len(second), generator=generator).to(second.device)
        return second[order[:half]], second[order[half : 2 * half]]

    def mean_distance(pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
        return torch.stack([distance(*pair, **options) for pair in pairs]).mean(0)

    return Distance(
        mean_distance(zip((first[:half], first[half : 2 * half]), halves(), strict=True)),
        mean_distance(halves() for _ in range(num_splits)),
    )


def classifier_accuracy(
    first: Tensor, second: Tensor, *, classifier: str = "knn", num_folds: int = 5, seed: int = 0
) -> Accuracy:
    """How well a classifier tells the draws of two samples apart: `[S, B, Z] × 2 -> [B]`.

    The classifier two-sample test (C2ST): accuracy on held-out draws by cross-validation, 0.5 if
    the samples are of one distribution, 1 if they never overlap; 0.5 shows no more than that this
    classifier sees no difference. Draws must be independent. The standard error is that of a fair
    coin thrown 2S times, enlarged because F folds train on the same draws: by √(1 + F/(F − 1))
    (C. Nadeau, Y. Bengio, "Inference for the Generalization Error", 2003,
    https://doi.org/10.1023/A:1024068626366), which is on the safe side.

    Reference: D. Lopez-Paz, M. Oquab, "Revisiting Classifier Two-Sample Tests", 2017,
    https://arxiv.org/abs/1610.06545, section 3.

    Args:
        first: draws `[S, B, Z]`.
        second: as many draws `[S, B, Z]`.
        classifier: "knn", nearest neighbours; "logistic", logistic regression on the entries,
            their squares and products, which sees means and covariances; "mlp", a small network.
        num_folds: folds of the cross-validation.
        seed: decides folds and networks.

    Raises:
        ValueError: samples of other shapes than one `[S, B, Z]`, an unknown classifier, or fewer
            draws than folds.
    """
    _expect_samples(first, second)
    if classifier not in CLASSIFIERS:
        raise ValueError(f"expected a classifier of {CLASSIFIERS}, got {classifier!r}")
    num_draws = len(first)
    if not 2 <= num_folds <= num_draws:
        raise ValueError(f"expected num_folds between 2 and S = {num_draws}, got {num_folds}")
    labels = np.repeat([0, 1], num_draws)
    pooled = torch.cat([first, second]).detach().cpu().double().numpy()  # [2S, B, Z]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of networks that are stopped early
        means = [
            _cross_validated(_pipeline(classifier, num_draws, seed), draws, labels, num_folds, seed)
            for draws in pooled.swapaxes(0, 1)
        ]
    mean = torch.tensor(means, dtype=torch.float64, device=first.device)
    coin = 0.5 / math.sqrt(2 * num_draws)
    return Accuracy(mean, torch.full_like(mean, coin * math.sqrt(1 + num_folds / (num_folds - 1))))


def _cross_validated(
    pipeline: Any, draws: np.ndarray, labels: np.ndarray, num_folds: int, seed: int
) -> float:
    """Share of the held-out draws `[2S, Z]` whose sample was told."""
    from sklearn.model_selection import StratifiedKFold, cross_val_predict  # noqa: PLC0415

    folds = StratifiedKFold(num_folds, shuffle=True, random_state=seed)
    return float((cross_val_predict(pipeline, draws, labels, cv=folds) == labels).mean())


def _pipeline(classifier: str, num_draws: int, seed: int) -> Any:
    """The classifier, on standardized entries."""
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415
    from sklearn.neighbors import KNeighborsClassifier  # noqa: PLC0415
    from sklearn.neural_network import MLPClassifier  # noqa: PLC0415
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415
    from sklearn.preprocessing import PolynomialFeatures, StandardScaler  # noqa: PLC0415

    if classifier == "knn":  # an odd number of neighbours, about √S: no ties
        return make_pipeline(
            StandardScaler(), KNeighborsClassifier(int(num_draws**0.5) // 2 * 2 + 1)
        )
    if classifier == "logistic":
        moments = PolynomialFeatures(2, include_bias=False)
        return make_pipeline(StandardScaler(), moments, StandardScaler(), LogisticRegression())
    return make_pipeline(StandardScaler(), MLPClassifier((20,), max_iter=100, random_state=seed))


def _expect_samples(first: Tensor, second: Tensor) -> None:
    if first.ndim != 3 or first.shape != second.shape:
        raise ValueError(
            "expected two samples of one shape (S, B, Z), got "
            f"{tuple(first.shape)} and {tuple(second.shape)}"
        )
