"""Log evidence with its two error bars."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from evidence.inference.compilation.functions import Compile
from evidence.inference.estimation import reliability
from evidence.inference.estimation.defensive import Defended, defensive_log_weights
from evidence.inference.estimation.modes import Draws, caveat_of_modes
from evidence.inference.estimation.standard_error import standard_error
from evidence.inference.programs import estimators
from evidence.inference.programs.compiled_terms import CompiledTerms
from evidence.inference.programs.data import Batch, as_rows, in_memory, takes
from evidence.inference.programs.draws import DEFAULT_CHUNK_SIZE
from evidence.inference.programs.precision import in_double
from evidence.inference.programs.traces import Program
from evidence.inference.programs.weights import unchecked_log_weights
from evidence.inference.soundness.pairs import expect_sound_pair

_DATA_PER_REDUCTION = 128

Estimator = Literal["elbo", "iw", "psis", "ais", "smc", "bridge", "nested", "exact"]
Unit = Literal["datum", "data set"]


@dataclass(frozen=True)
class Evidence:
    """An estimate of log p(x) for every datum. Nats per datum, larger is better.

    The two error bars answer different questions and are kept apart: `mc_se` is what more particles
    would shrink, `data_se` what a larger test set would. `not_reliable` says why the number is not
    to be relied on, where the weights themselves show it; printed, it then has no error bar.

    Args:
        estimator: "elbo", "iw", "psis", "ais", "smc", "bridge", "nested" or "exact".
        num_particles: S, particles per datum; the most that any datum got, if they differ.
        log_px: the estimates `[B]`.
        log_px_variance: their Monte Carlo variances `[B]`.
        ess: effective sample sizes of the weights `[B]`, between 1 and S.
        k_hat: Pareto tail shapes of the weights `[B]`; see `estimators.k_hat`.
        particles: the number of particles of each datum `[B]`; None where all got S.
        bias: estimated biases of the estimates `[B]`, negative for a lower bound; None where there
            is none to speak of.
        dtype: what the weights were computed in; None where it is not known.
        caveat: a reason of another kind for not relying on the number, with what would help.
        data_set_size: N, where there is one estimate for all data, `[1]`; else None.
        num_evaluations: what the record cost, in evaluations of the log joint, with or without its
            gradient, of one datum or of all that share latents; pilot runs count. None where it is
            not known.
        defensive: the share of the draws that defend the guide; see `defensive_log_weights`.
    """

    estimator: Estimator
    num_particles: int
    log_px: Tensor
    log_px_variance: Tensor
    ess: Tensor
    k_hat: Tensor
    particles: Tensor | None = None
    bias: Tensor | None = None
    dtype: torch.dtype | None = None
    caveat: str | None = None
    data_set_size: int | None = None
    num_evaluations: int | None = None
    defensive: float = 0.0

    @property
    def num_data(self) -> int:
        """B, the number of data."""
        return len(self.log_px)

    @property
    def mean(self) -> float:
        """Mean over the data, nats per datum."""
        return self.log_px.double().mean().item()

    @property
    def mc_se(self) -> float:
        """Standard error of `mean` from the finite number of particles, the data held fixed.

        It does not show the bias of a lower bound, `mean_bias`, nor can it be trusted where the
        record is `not_reliable`.
        """
        return math.sqrt(self.log_px_variance.double().sum().item()) / self.num_data

    @property
    def data_se(self) -> float:
        """Standard error of `mean` from the finite test set, the particles' share taken out.

        NaN for a single datum.
        """
        return standard_error(self.log_px, self.log_px_variance)

    @property
    def mean_bias(self) -> float:
        """Estimated bias of `mean`, nats per datum; 0 where there is none to speak of."""
        return 0.0 if self.bias is None else self.bias.double().mean().item()

    @property
    def k_hat_threshold(self) -> float:
        """The largest trustworthy k̂ for this number of particles."""
        return reliability.k_hat_threshold(self, self.num_particles)

    @property
    def share_bad(self) -> float:
        """Share of the data with a k̂ whose k̂ is above the threshold (NaN if none has one)."""
        is_bad = (self.k_hat > self.k_hat_thresholds()).double()
        return is_bad[~self.k_hat.isnan()].mean().item()

    def k_hat_thresholds(self) -> Tensor | float:
        """The threshold of every datum `[B]`, or the one for all."""
        if self.particles is None:
            return self.k_hat_threshold
        thresholds = [reliability.k_hat_threshold(self, int(count)) for count in self.particles]
        return torch.tensor(thresholds).to(self.k_hat)

    @property
    def unsupported(self) -> Tensor:
        """Whether a datum's own weights speak against its estimate `[B]`; see `reliability`."""
        return reliability.unsupported(self)

    @property
    def not_reliable(self) -> str | None:
        """Why `mean` is not to be relied on, and what would help; None if nothing shows that."""
        return reliability.reason(self)

    def _counts(self) -> str:
        if self.particles is None:
            return f"S = {self.num_particles}"
        counts = self.particles.double()
        return f"S = {counts.min():.0f} to {counts.max():.0f}, {counts.mean():.0f} on average"

    def _bars(self) -> str:
        """The error bars that mean something, and how far a bound is off."""
        data = f"{self.num_data} data" if self.num_data > 1 else "1 datum"
        if self.data_set_size is not None:
            data = f"a data set of {self.data_set_size}"
        if self.not_reliable is not None:
            return f" ({data})"
        has_weights = self.num_particles > 0 and math.isfinite(self.mc_se)
        text = f", ± {self.mc_se:.3f} (Monte Carlo)" if has_weights else ""
        if -self.mean_bias > max(self.mc_se, 5e-4):
            text += f", a bound about {-self.mean_bias:.3f} too low"
        has_spread = not math.isnan(self.data_se)
        return f"{text}, ± {self.data_se:.3f} ({data})" if has_spread else f"{text} ({data})"

    def __str__(self) -> str:
        counts = f" ({self._counts()})" if self.num_particles else ""
        unit = "nats" if self.unit == "data set" else "nats per datum"
        why, diagnostics = self.not_reliable, reliability.diagnostics(self)
        return (
            f"{self.estimator}{counts}: {'' if why is None else 'NOT RELIABLE, '}{self.mean:.3f} "
            f"{unit}{self._bars()}{f'; {diagnostics}' if diagnostics else ''}"
            f"{'' if why is None else f': {why}'}"
        )

    @classmethod
    def exact(cls, log_px: Tensor) -> "Evidence":
        """The record of a log p(x) `[B]` that is known in closed form."""
        zero = torch.zeros_like(log_px)
        return cls("exact", 0, log_px, zero, zero + math.nan, zero + math.nan)

    @classmethod
    def concatenate(cls, parts: Sequence["Evidence"]) -> "Evidence":
        """One record of several over different data, made by the same estimator."""
        fields = ["log_px", "log_px_variance", "ess", "k_hat"]
        if all(part.bias is not None for part in parts):
            fields.append("bias")
        joined = {field: torch.cat([getattr(part, field) for part in parts]) for field in fields}
        if any(part.particles is not None for part in parts):
            joined["particles"] = torch.cat([part.particles_per_datum for part in parts])
        caveat = next((part.caveat for part in parts if part.caveat), None)
        costs = [part.num_evaluations for part in parts]
        return dataclasses.replace(
            parts[0],
            num_evaluations=None if None in costs else sum(filter(None, costs)),
            num_particles=max(part.num_particles for part in parts),
            caveat=caveat,
            **joined,
        )

    def of(self, on_edge: Tensor, data_set_size: int | None) -> "Evidence":
        """This record, knowing what it is of.

        Log p(x) of a large data set is a number of few digits after the point: in float32, of 0.03
        nats from −260,000 on. That is no noise of the weights, which all are rounded alike, and a
        part of the error bar.

        Args:
            on_edge: share of the posterior on the edge of supports; see `reliability.edge_caveat`.
            data_set_size: N, if there is one estimate for all data.
        """
        variance = self.log_px_variance
        if data_set_size is not None and self.dtype is not None:
            step = torch.finfo(self.dtype).eps * self.log_px.double()
            variance = variance + torch.where(step.isfinite(), step.square() / 12, 0.0)
        record = dataclasses.replace(self, log_px_variance=variance, data_set_size=data_set_size)
        se = record.mc_se if math.isfinite(record.mc_se) else 0.0
        caveat = self.caveat or reliability.edge_caveat(on_edge, se, self.dtype)
        return dataclasses.replace(record, caveat=caveat)

    @property
    def unit(self) -> Unit:
        """Of what each estimate is: "datum", or "data set" where the data share latents."""
        return "datum" if self.data_set_size is None else "data set"

    @property
    def particles_per_datum(self) -> Tensor:
        """The number of particles of each datum `[B]`."""
        if self.particles is not None:
            return self.particles
        return torch.full_like(self.log_px, self.num_particles, dtype=torch.int64)


def check_log_weights(log_w: Tensor) -> None:
    """Check that no log-weight `[S, B]` is NaN or +inf.

    Raises:
        ValueError: one is.
    """
    if not (log_w < math.inf).all():
        raise ValueError(
            "log-weights are NaN or +inf: the model or the guide is not a density here, or "
            f"{log_w.dtype} is too short for it: {in_double(log_w.dtype)}"
        )


def from_log_weights(log_w: Tensor) -> dict[str, Evidence]:
    """The records "elbo", "iw" and "psis" of the same log-weights `[S, B]`.

    "psis" is the log of the mean of Pareto-smoothed weights: of heavier tails than "iw" bears it is
    the steadier one, no bound, and right up to k̂ = 0.7, from where neither is.

    Reference: A. Vehtari, D. Simpson, A. Gelman, Y. Yao, J. Gabry, "Pareto Smoothed Importance
    Sampling", 2024, https://jmlr.org/papers/v25/19-556.html.

    Raises:
        ValueError: a log-weight is NaN or +inf.
    """
    check_log_weights(log_w)
    dtype = log_w.dtype
    smoothed, k_hat = (part.to(log_w.device) for part in estimators.pareto_smoothed(log_w))
    log_w = log_w.double()
    ess, num_particles = estimators.ess(log_w), len(log_w)
    unknown = torch.full_like(ess, math.nan)  # one particle tells nothing of its own spread
    is_one = num_particles == 1
    spread = unknown if is_one else log_w.var(0) / num_particles
    variance, of_smoothed = (
        unknown if is_one else estimators.log_mean_variance(w) for w in (log_w, smoothed)
    )
    bias = None if is_one else estimators.log_mean_bias(log_w)
    elbo, iwae, psis = estimators.elbo(log_w), estimators.iwae(log_w), estimators.iwae(smoothed)
    smoothed_ess = estimators.ess(smoothed)
    known: dict[str, Any] = {"dtype": dtype, "num_evaluations": log_w.numel()}
    return {
        "elbo": Evidence("elbo", num_particles, elbo, spread, ess, k_hat, **known),
        "iw": Evidence("iw", num_particles, iwae, variance, ess, k_hat, bias=bias, **known),
        "psis": Evidence("psis", num_particles, psis, of_smoothed, smoothed_ess, k_hat, **known),
    }


def estimate_evidence(
    model: Program,
    guide: Program,
    x: Batch | Dataset | DataLoader,
    num_particles: int = 5000,
    *,
    defensive: float = 0.0,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    search_modes: bool = True,
    compile: Compile = "auto",
    progress: Callable[[int], None] | None = None,
) -> dict[str, Evidence]:
    """The ELBO and the importance-weighted evidence of `x`, plain and smoothed, of one sample.

    Weights are reduced some data at a time, so that memory grows neither with the number of data
    nor, beyond one row of weights per datum at work, with the number of particles.

    Args:
        model: called with a batch; scores it.
        guide: called with a batch; samples every latent of the model.
        x: data `[B, *data_shape]`; or several tensors, as a tuple for `model(*x)` or as a mapping
            for `model(**x)`; or a dataset or loader of `torch.utils.data`, read some data at a time
            where they have latents of their own, in the dataset's order.
        num_particles: S, draws per datum, or for all data where these share latents.
        defensive: the share α of draws that come from the guide stretched and from the prior; see
            `defensive_log_weights`.
        chunk_size: see `log_weights`.
        search_modes: where data share latents, look for modes that the guide has missed; see
            `modes`. Data with latents of their own are not looked at so: it would cost too much.
        compile: see `log_weights`.
        progress: called with the number of data done since the last call.

    Returns:
        The records "elbo", "iw" and "psis". That of the ELBO is of the guide's draws alone, and its
        k̂ and ESS say how good the guide is, defended or not. Weights of a defended guide are not
        smoothed.

    Raises:
        ValueError: as `log_weights`.
    """
    rows = as_rows(x)
    model, guide = takes(model, rows), takes(guide, rows)
    sound = expect_sound_pair(model, guide, rows)
    whole = in_memory(rows) if sound.is_joint else None
    chunks: Iterable[Batch] = rows.split(_DATA_PER_REDUCTION) if whole is None else [whole]
    compiled = CompiledTerms(compile, num_particles * len(rows))
    parts: list[dict[str, Evidence]] = []
    draws = None
    for chunk in chunks:
        if defensive:
            found = defensive_log_weights(
                model, guide, chunk, num_particles, share=defensive, chunk_size=chunk_size
            )
            draws = Draws(found.log_ratio, found.log_w)
            parts.append(_defended(found, defensive))
        else:
            log_w = unchecked_log_weights(
                model, guide, chunk, num_particles, chunk_size=chunk_size, compiled=compiled
            )
            parts.append(from_log_weights(log_w))
        if progress is not None:
            progress(len(chunk))
    records = {name: Evidence.concatenate([part[name] for part in parts]) for name in parts[0]}
    size = None if whole is None else len(whole)
    records = {name: record.of(sound.on_edge, size) for name, record in records.items()}
    if whole is not None and search_modes:
        caveat = caveat_of_modes(records["iw"], model, guide, whole, draws=draws)
        records["iw"] = dataclasses.replace(records["iw"], caveat=caveat)
    return records


def _defended(found: Defended, share: float) -> dict[str, Evidence]:
    """The records of weights under a mixture; "elbo" is the guide's, and so are its k̂ and ESS.

    Components have fixed numbers of draws, and how far their means are apart is no Monte Carlo
    error: without it a guide that needs no defence would pay for one, in a larger error bar. "psis"
    is "iw" by another name: these weights have a bound, and their largest come from several
    components, of which a single Pareto tail makes other numbers, by more than the error bar.
    """
    one = from_log_weights(found.log_w)["iw"]
    within = estimators.share_within(found.log_w.double(), found.counts)
    mixed = dataclasses.replace(
        one,
        log_px_variance=one.log_px_variance * within,
        bias=None if one.bias is None else one.bias * within,
        caveat=found.caveat,
        defensive=share,
    )
    elbo = from_log_weights(found.of_guide)["elbo"]
    return {"elbo": elbo, "iw": mixed, "psis": dataclasses.replace(mixed, estimator="psis")}


def importance_weighted_evidence(
    model: Program,
    guide: Program,
    x: Batch | Dataset | DataLoader,
    num_particles: int = 5000,
    *,
    defensive: float = 0.0,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    search_modes: bool = True,
    compile: Compile = "auto",
) -> Evidence:
    """Importance-weighted estimate of log p(x) per datum, a lower bound in expectation.

    Reference: Y. Burda, R. Grosse, R. Salakhutdinov, "Importance Weighted Autoencoders", 2016,
    https://arxiv.org/abs/1509.00519, eq. 8.

    Args:
        model: called with a batch; scores it.
        guide: called with a batch; samples every latent of the model.
        x: data `[B, *data_shape]`; or several tensors, as a tuple for `model(*x)` or as a mapping
            for `model(**x)`; or a dataset or loader of `torch.utils.data`, read some data at a time
            where they have latents of their own, in the dataset's order.
        num_particles: S, draws per datum, or for all data where these share latents.
        defensive: the share α of draws that come from the guide stretched and from the prior, such
            as 0.2, where the guide may be too narrow; see `defensive_log_weights`.
        chunk_size: see `log_weights`.
        search_modes: see `estimate_evidence`.
        compile: see `log_weights`.

    Returns:
        The record, in nats per datum, or of the data set where data share latents.

    Raises:
        ValueError: as `log_weights`.
    """
    records = estimate_evidence(
        model,
        guide,
        x,
        num_particles,
        defensive=defensive,
        chunk_size=chunk_size,
        search_modes=search_modes,
        compile=compile,
    )
    return records["iw"]
