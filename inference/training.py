"""Training a model/guide pair by stochastic variational inference."""

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO, SVI, Trace_ELBO
from pyro.poutine import Trace
from torch import Tensor, nn
from tqdm import tqdm

from inference.checks import check_data
from inference.first_steps import NUM_WATCHED, GradientWatch
from inference.history import EpochRecord, History
from inference.objectives.base import AbstractObjective
from inference.optimizer import JointOptim
from inference.parameters import own_parameter_store, tensors_of, trainable_parameters
from inference.precision import fast_matmul
from inference.random_state import isolated_rng, rng_state, set_rng_state
from inference.support import CheckSupport, check_all_data, takes_subsamples
from inference.tempering import TemperLatents, TemperLikelihood
from inference.traces import Program, Traces, checked_traces, random_sites
from inference.validation import InvalidArgumentError, advice_on_scale, in_one_line, validated
from inference.weights import log_prob_terms

# What a crash may cost at the most, whatever a step takes.
_SECONDS_UNSAVED = 10.0
# After the first epoch, every so many steps what a transform makes is checked; it takes 3% of one.
_STEPS_PER_CHECK = 10


class NonFiniteLossError(ValueError):
    """Training was stopped before an update by a loss or gradient that is NaN or infinite."""


class ScalarWriter(Protocol):
    """What `fit` needs of a TensorBoard `SummaryWriter`."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any:
        """Log one value."""


@dataclass(frozen=True)
class Snapshot:
    """All that a run needs to go on bit for bit: tensors, and a JSON-able description."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]


@dataclass(frozen=True)
class _Options:
    num_epochs: int
    batch_size: int
    lr: float
    lr_decay: float
    kl_warmup_epochs: float
    likelihood_warmup_epochs: float
    clip_norm: float | None
    seed: int
    snapshot_every: int

    def __post_init__(self) -> None:
        for name in ("num_epochs", "batch_size", "snapshot_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} of at least 1, got {getattr(self, name)}")
        for name in ("lr", "lr_decay"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"expected a finite {name} > 0, got {getattr(self, name)}")
        for name in ("kl_warmup_epochs", "likelihood_warmup_epochs"):
            if getattr(self, name) < 0:
                raise ValueError(f"expected {name} >= 0, got {getattr(self, name)}")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"expected clip_norm > 0 or None, got {self.clip_norm}")


@dataclass
class _Position:
    """Where a run is: epochs done, steps done in this epoch, and what they added up to."""

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)


def fit(
    model: Program,
    guide: Program,
    x_train: Tensor,
    *,
    num_epochs: int = 20,
    batch_size: int = 128,
    lr: float = 1e-3,
    lr_decay: float = 1.0,
    elbo: ELBO | None = None,
    x_test: Tensor | None = None,
    transform: Callable[[Tensor], Tensor] | None = None,
    kl_warmup_epochs: float = 0.0,
    likelihood_warmup_epochs: float = 0.0,
    clip_norm: float | None = None,
    seed: int = 0,
    warm_start: bool = False,
    progress: bool = True,
    writer: ScalarWriter | None = None,
    resume_from: Snapshot | None = None,
    on_snapshot: Callable[[Snapshot], None] | None = None,
    snapshot_every: int = 500,
) -> History:
    """Fit model and guide to `x_train` with `pyro.infer.SVI` and one fused Adam.

    Any pair of Pyro callables will do. Parameters that do not require gradients stay as they are:
    `model.requires_grad_(False)` fits a guide to a fixed model. Parameters stay in their modules;
    those of plain functions are in Pyro's store afterwards. The random state outside is untouched.

    Args:
        model: called with a batch; scores it.
        guide: called with a batch; samples every latent of the model.
        x_train: data `[N, *data_shape]`, on the device to train on.
        num_epochs: passes over the data.
        batch_size: data per step; the last batch of an epoch may be smaller.
        lr: Adam's learning rate.
        lr_decay: factor on the learning rate after each epoch.
        elbo: any Pyro `ELBO`; `Trace_ELBO()` by default. `TraceMeanField_ELBO()` takes the KL
            divergence in closed form where there is one.
        x_test: data to report the ELBO and its terms on after each epoch; not transformed.
        transform: applied to each minibatch as it is drawn, e.g. `torch.bernoulli` for dynamic
            binarization.
        kl_warmup_epochs: epochs over which the weight of the KL term rises from 0 to 1: against a
            posterior that collapses to the prior.
        likelihood_warmup_epochs: epochs over which the weight of the log-likelihood rises from 0
            to 1: against a posterior that misses modes.
        clip_norm: largest joint gradient norm.
        seed: decides every random choice of training.
        warm_start: go on from parameters that an earlier fit of plain functions left in Pyro's
            store, instead of refusing to overwrite them. (Modules always go on from their own.)
        progress: show a progress bar with the loss in nats per datum.
        writer: a TensorBoard `SummaryWriter` to log each epoch to.
        resume_from: a snapshot to go on from.
        on_snapshot: called with a snapshot every `snapshot_every` steps, after ten seconds
            without one, and at the end.
        snapshot_every: steps between snapshots.

    Returns:
        The history, one record per epoch, in nats per datum.

    Raises:
        NonFiniteLossError: a loss or gradient is NaN or infinite; the parameters are those of the
            last good step.
        ValueError: bad data or options, data outside the likelihood's support, parameter names
            that an earlier fit took, or a snapshot of another run.
    """
    options = _Options(
        num_epochs,
        batch_size,
        lr,
        lr_decay,
        kl_warmup_epochs,
        likelihood_warmup_epochs,
        clip_norm,
        seed,
        snapshot_every,
    )
    check_data(x_train, "x_train")
    x_train = x_train.detach()  # data simulated from a model remember its parameters
    if x_test is not None:
        check_data(x_test, "x_test")
    with (
        isolated_rng(seed, x_train.device),
        pyro.validation_enabled(False),
        fast_matmul(x_train.device),
        own_parameter_store(warm_start=warm_start) as refuse_taken_names,
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings(
            "ignore", "Encountered NaN"
        )  # we stop, where Pyro warns and goes on
        batch = x_train[:batch_size]
        traces = _first_run(model, guide, batch if transform is None else transform(batch))
        if transform is None:
            check_all_data(model, guide, x_train, batch=batch, model_trace=traces.model)
        refuse_taken_names()
        elbo = elbo or Trace_ELBO()
        run = _Run(model, guide, x_train, options, elbo, x_test, transform, writer, traces)
        if resume_from is not None:
            run.restore(resume_from)
        return run.train(progress, on_snapshot)


def _first_run(model: Program, guide: Program, x: Tensor) -> Traces:
    """Run the pair once: it creates lazy parameters and shows what is wrong with it."""
    traces = checked_traces(model, guide, x, may_enumerate=True)
    with validated(x):
        for trace in traces:
            trace.compute_log_prob()
    return traces


class _Run:
    """One training run, from its first step or from a snapshot."""

    def __init__(
        self,
        model: Program,
        guide: Program,
        x_train: Tensor,
        options: _Options,
        elbo: ELBO,
        x_test: Tensor | None,
        transform: Callable[[Tensor], Tensor] | None,
        writer: ScalarWriter | None,
        first: Traces,
    ) -> None:
        batch = x_train[: options.batch_size]
        self.model, self.guide, self.elbo = model, guide, elbo
        self.x_train, self.x_test, self.transform = x_train, x_test, transform
        self.options, self.writer = options, writer
        self.position = _Position()
        self.parameters = trainable_parameters(model, guide)
        self.optim = JointOptim(self.parameters, lr=options.lr, clip_norm=options.clip_norm)
        self.svi = SVI(
            model, guide, self.optim, loss=elbo.loss, loss_and_grads=self._loss_and_grads
        )
        self.plate_total = _plate_total(first.model, len(batch))
        self.takes_subsamples = takes_subsamples(first.model, batch)
        self.gradients = GradientWatch(_to_be_trained(self.parameters, elbo, first.guide))
        self.steps_per_epoch = math.ceil(len(x_train) / options.batch_size)
        self.last_snapshot = time.monotonic()
        if x_test is not None:
            self._test_terms(x_test)  # what is wrong with them shows before an epoch is trained

    def train(self, progress: bool, on_snapshot: Callable[[Snapshot], None] | None) -> History:
        """Take every step that is left."""
        total = self.options.num_epochs * self.steps_per_epoch
        with tqdm(total=total, initial=self.steps_done, disable=not progress, unit="step") as bar:
            while self.position.epoch < self.options.num_epochs:
                for loss in self._epoch():
                    bar.set_description(f"epoch {self.position.epoch + 1}", refresh=False)
                    bar.set_postfix_str(f"loss {loss:.2f} nats per datum", refresh=False)
                    bar.update()
                    if on_snapshot and self._snapshot_is_due():
                        on_snapshot(self.snapshot())
                        self.last_snapshot = time.monotonic()
                self._end_epoch()
        self.gradients.warn()
        if on_snapshot:
            on_snapshot(self.snapshot())
        return History.from_rows(self.position.history)

    def _snapshot_is_due(self) -> bool:
        waited = time.monotonic() - self.last_snapshot
        return self.steps_done % self.options.snapshot_every == 0 or waited > _SECONDS_UNSAVED

    @property
    def steps_done(self) -> int:
        """Training steps since the start of the run."""
        return self.position.epoch * self.steps_per_epoch + self.position.step

    def _epoch(self) -> Iterator[float]:
        """Take the steps that are left of this epoch; yields each loss, in nats per datum."""
        at, options = self.position, self.options
        self.optim.set_lr(options.lr * options.lr_decay**at.epoch)
        # The order depends on seed and epoch alone: a resumed run needs no sampler state.
        generator = torch.Generator().manual_seed(options.seed * 1_000_003 + at.epoch)
        order = torch.randperm(len(self.x_train), generator=generator).to(self.x_train.device)
        if options.batch_size >= len(self.x_train):  # a guide may have a parameter per datum
            order = order.sort().values
        for rows in order.split(options.batch_size)[at.step :]:
            started = time.perf_counter()
            x = self.x_train[rows]
            loss = self._step(x if self.transform is None else self.transform(x))
            at.seconds += time.perf_counter() - started
            at.loss_sum += loss * len(rows)
            at.step += 1
            yield loss

    def _step(self, x: Tensor) -> float:
        try:
            with self._tempered(), self._guarded(x):
                return self.svi.step(x)
        except (FloatingPointError, InvalidArgumentError) as error:
            raise NonFiniteLossError(self._stopped(str(error), x)) from None

    @contextmanager
    def _guarded(self, x: Tensor) -> Iterator[None]:
        """Pyro's guards, which take time, for the first steps; data that no check has seen."""
        with (
            validated(x) if self.steps_done < NUM_WATCHED else in_one_line(x),
            CheckSupport() if self._has_unseen_data() else nullcontext(),
        ):
            yield

    def _has_unseen_data(self) -> bool:
        """Whether to check this batch: what a transform makes, for an epoch, then now and then."""
        is_due = self.position.epoch == 0 or self.steps_done % _STEPS_PER_CHECK == 0
        return self.takes_subsamples or (self.transform is not None and is_due)

    def _loss_and_grads(self, model: Program, guide: Program, x: Tensor) -> float:
        """What SVI calls for a step: loss and gradients per datum; stops before a ruinous update.

        Parameters are hidden from SVI, which would look for them in Pyro's store by name, where
        two modules can meet; `JointOptim` knows them all.
        """
        num_data = self.plate_total or len(x)
        with poutine.block(hide_types=["param"]):
            if not hasattr(self.elbo, "differentiable_loss"):
                loss = self.elbo.loss_and_grads(model, guide, x) / num_data
                for parameter in self.parameters.values():
                    if parameter.grad is not None:
                        parameter.grad /= num_data
            else:
                surrogate = self.elbo.differentiable_loss(model, guide, x) / num_data
                loss = surrogate.item()
                if math.isfinite(loss):
                    surrogate.backward()
        if not math.isfinite(loss):
            self.optim.zero_grad()
            raise NonFiniteLossError(self._stopped(f"the loss is {loss}", x))
        if self.steps_done < NUM_WATCHED:
            self.gradients.observe(self.parameters, x)
        return loss

    @contextmanager
    def _tempered(self) -> Iterator[None]:
        """The warm-ups that are under way."""
        kl, likelihood = self._kl_weight(), self._weight(self.options.likelihood_warmup_epochs)
        with (
            TemperLatents(kl) if kl < 1 else nullcontext(),
            TemperLikelihood(likelihood) if likelihood < 1 else nullcontext(),
        ):
            yield

    def _kl_weight(self) -> float:
        return self._weight(self.options.kl_warmup_epochs)

    def _weight(self, warmup_epochs: float) -> float:
        """Rises from 0 to 1 within so many epochs."""
        if warmup_epochs == 0:
            return 1.0
        return min(1.0, (self.steps_done + 1) / (warmup_epochs * self.steps_per_epoch))

    def _end_epoch(self) -> None:
        at = self.position
        test_loss = reconstruction = kl = None
        if self.x_test is not None:
            reconstruction, kl = self._test_terms(self.x_test)
            test_loss = kl - reconstruction
        record = EpochRecord(
            epoch=at.epoch + 1,
            train_loss=at.loss_sum / len(self.x_train),
            beta=self._kl_weight(),
            test_loss=test_loss,
            reconstruction=reconstruction,
            kl=kl,
            seconds=at.seconds,
            num_steps=self.steps_per_epoch,
        )
        if self.writer is not None:
            _log(self.writer, record)
        self.position = _Position(at.epoch + 1, history=[*at.history, asdict(record)])

    def _test_terms(self, x: Tensor) -> tuple[float, float]:
        """Reconstruction and KL on the test data; draws nothing from the training's randomness."""
        with isolated_rng(self.options.seed, x.device):
            terms = log_prob_terms(self.model, self.guide, x)
        reconstruction = terms.log_p_x.double().mean().item()
        return reconstruction, (terms.log_q_z - terms.log_p_z).double().mean().item()

    def snapshot(self) -> Snapshot:
        """The run as it is now."""
        tensors = tensors_of(self.model, self.guide)
        tensors |= {f"optimizer.{n}": t for n, t in self.optim.get_state().items()}
        tensors |= {f"rng.{n}": t for n, t in rng_state(self.x_train.device).items()}
        meta = {"identity": self._identity(), "position": asdict(self.position)}
        return Snapshot({n: t.detach().clone() for n, t in tensors.items()}, meta)

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot.

        Raises:
            ValueError: the snapshot is of another run.
        """
        theirs, ours = snapshot.meta["identity"], self._identity()
        if snapshot.meta["position"]["epoch"] > self.options.num_epochs:
            raise ValueError(
                f"the snapshot has {snapshot.meta['position']['epoch']} epochs behind it, more "
                f"than num_epochs = {self.options.num_epochs}"
            )
        if theirs != ours:
            differing = sorted(k for k in ours | theirs if ours.get(k) != theirs.get(k))
            what = ", ".join(f"{k} {ours.get(k)} (was {theirs.get(k)})" for k in differing)
            raise ValueError(f"the snapshot is of another run: {what}")
        state = tensors_of(self.model, self.guide)
        missing = sorted(state.keys() - snapshot.tensors.keys())
        if missing:
            raise ValueError(f"the snapshot is of another model or guide: it lacks {missing[0]}")
        with torch.no_grad():
            for name, tensor in state.items():
                tensor.copy_(_same_shape(name, snapshot.tensors[name], tensor))
        moments = _within("optimizer.", snapshot.tensors)
        if {name.rsplit("/", 1)[0] for name in moments} != set(self.parameters):
            raise ValueError("the snapshot is of a run that trained other parameters")
        self.optim.set_state(moments)
        self.position = _Position(**snapshot.meta["position"])
        set_rng_state(_within("rng.", snapshot.tensors), self.x_train.device)

    def _identity(self) -> dict[str, Any]:
        """What must agree for a run to be gone on with; more epochs are no other run."""
        varying = ("num_epochs", "snapshot_every")
        options = {k: v for k, v in asdict(self.options).items() if k not in varying}
        return {**options, "elbo": _describe(self.elbo), "num_data": len(self.x_train)}

    def _stopped(self, what: str, x: Tensor) -> str:
        at = self.position
        return (
            f"{what} at epoch {at.epoch + 1}, step {at.step + 1} of {self.steps_per_epoch}; "
            f"stopped before the update. {self._likely_cause(x)}"
        )

    def _likely_cause(self, x: Tensor) -> str:
        if not torch.isfinite(x).all():
            return "Likely cause: the transform makes NaN or infinite data"
        site = self._non_finite_site(x)
        if self.steps_done == 0:
            where = f"the log-probability of site {site!r} overflows" if site else "the start"
            mend = advice_on_scale(x) or "start from smaller weights, or look at the data"
            return f"Likely cause, as nothing was updated yet: {where}: {mend}"
        lower = f"lower the learning rate (lr = {self.options.lr:g})"
        lower += " or set clip_norm" if self.options.clip_norm is None else ""
        lower += f"; {advice}" if (advice := advice_on_scale(x)) else ""
        for name, parameter in self.parameters.items():
            if not torch.isfinite(parameter).all():
                return f"Likely cause: parameter {name} overflowed in an earlier update: {lower}"
        if site is not None:
            return f"Likely cause: the log-probability of site {site!r} overflowed: {lower}"
        return f"Likely cause: the optimizer diverged: {lower}"

    @torch.no_grad()
    def _non_finite_site(self, x: Tensor) -> str | None:
        """The first site without a finite log-probability, guide before model."""
        guide_trace = poutine.trace(self.guide).get_trace(x)
        model_trace = poutine.trace(poutine.replay(self.model, trace=guide_trace)).get_trace(x)
        for trace in (guide_trace, model_trace):
            for name, site in trace.nodes.items():
                if (
                    site["type"] == "sample"
                    and not torch.isfinite(site["fn"].log_prob(site["value"])).all()
                ):
                    return name
        return None


def restore_tensors(
    snapshot: Snapshot, *, model: nn.Module | None = None, guide: nn.Module | None = None
) -> None:
    """Load the weights of a snapshot into modules of the same shapes, for evaluation.

    Raises:
        ValueError: the snapshot is of another model or guide.
    """
    for role, module in (("model", model), ("guide", guide)):
        if module is None:
            continue
        state = module.state_dict()
        tensors = _within(f"{role}.", snapshot.tensors)
        if state.keys() != tensors.keys():
            odd = sorted(state.keys() ^ tensors.keys())[0]
            raise ValueError(f"the snapshot is of another {role}: {odd} is on one side only")
        module.load_state_dict({n: _same_shape(n, tensors[n], t) for n, t in state.items()})


def _same_shape(name: str, ours: Tensor, theirs: Tensor) -> Tensor:
    if ours.shape != theirs.shape:
        raise ValueError(
            f"the snapshot is of another model or guide: expected {name} of shape "
            f"{tuple(theirs.shape)}, got {tuple(ours.shape)}"
        )
    return ours


def _within(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _describe(elbo: ELBO) -> str:
    """An objective and its options, as far as it tells them: Pyro's own do not."""
    if isinstance(elbo, AbstractObjective):
        return repr(elbo)
    return f"{type(elbo).__name__}(num_particles={getattr(elbo, 'num_particles', 1)})"


def _plate_total(model_trace: Trace, size: int) -> int | None:
    """N of the plate over the data, if a batch is a subsample of it: the loss stands for all N."""
    observed = [site for site in random_sites(model_trace).values() if site["is_observed"]]
    frames = [frame for site in observed for frame in site["cond_indep_stack"]]
    subsampled = (f.full_size for f in frames if f.size == size and f.full_size not in (None, size))
    return next(subsampled, None)


def _to_be_trained(names: Iterable[str], elbo: ELBO, guide_trace: Trace) -> list[str]:
    """The parameters that the objective trains: some leave the model's alone."""
    if getattr(elbo, "trains_model", True):
        return list(names)
    of_functions = {f"param.{n}" for n, s in guide_trace.nodes.items() if s["type"] == "param"}
    return [name for name in names if name.startswith("guide.") or name in of_functions]


def _log(writer: ScalarWriter, record: EpochRecord) -> None:
    for name, value in asdict(record).items():
        if name != "epoch" and value is not None:
            writer.add_scalar(name, value, record.epoch)
