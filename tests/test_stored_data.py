"""Data that are read when they are used: datasets and loaders of torch."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from evidence.inference import (
    BetaELBO,
    adaptive_evidence,
    annealed_evidence,
    fit,
    importance_weighted_evidence,
    log_weights,
)
from evidence.inference.training.minibatches import ScaleData
from tests.test_training import X, pair, weights_of

OPTIONS = {"num_epochs": 3, "batch_size": 16, "lr": 0.01, "progress": False}


class Counting(Dataset):
    """Rows, with flipped pixels if noisy, and how often and how many at once they were read."""

    def __init__(self, rows, noise=0.0):
        self.rows, self.noise, self.reads, self.most = rows, noise, 0, 0

    def __len__(self):
        return len(self.rows)

    def __getitems__(self, numbers):
        self.reads, self.most = self.reads + len(numbers), max(self.most, len(numbers))
        rows = [self.rows[i] for i in numbers]
        return (
            [(r - torch.rand(12).lt(self.noise).float()).abs() for r in rows]
            if self.noise
            else rows
        )


class Items(Dataset):
    """A list of items."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, number):
        return self.items[number]


class Endless(IterableDataset):
    def __iter__(self):
        yield X[0]


class OwnOrder(Sampler):
    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __iter__(self):
        return iter(reversed(range(self.size)))


def trained(data, **options):
    model, guide = pair()
    history = fit(model, guide, data, **OPTIONS | options)
    return weights_of(model, guide), history.train_loss


@pytest.mark.parametrize("batch_size", [16, 40])
def test_a_dataset_is_trained_on_as_its_tensors_are_a_batch_at_a_time(batch_size):
    stored = Counting(X[:40])
    weights, losses = trained(stored, batch_size=batch_size)
    expected, expected_losses = trained(X[:40], batch_size=batch_size)
    assert torch.equal(weights, expected)
    assert losses == expected_losses
    assert stored.most == batch_size
    assert stored.reads <= 3 * 40 + 4 * batch_size  # the pair is looked at first


def test_other_data_are_read_likewise():
    more = {"x_test": X[40:50], "held_out": X[50:]}
    stored = {name: TensorDataset(x) for name, x in more.items()}
    weights, losses = trained(TensorDataset(X[:40]), **stored)
    expected, expected_losses = trained(X[:40], **more)
    assert torch.equal(weights, expected)
    assert losses == expected_losses


def line(x, y):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)


COLUMNS = {"x": torch.linspace(-1, 1, 30), "y": torch.linspace(-2, 3, 30)}


@pytest.mark.parametrize("form", ["tuple", "mapping", "numbers"])
def test_items_are_tuples_or_mappings(form):
    rows = list(zip(*COLUMNS.values(), strict=True))
    items = {
        "tuple": rows,
        "mapping": [dict(zip(COLUMNS, row, strict=True)) for row in rows],
        "numbers": [tuple(map(float, row)) for row in rows],
    }[form]

    def slope(data):
        pyro.clear_param_store()
        guide = AutoNormal(line)
        options = {"num_epochs": 2, "batch_size": 7, "lr": 0.05, "progress": False}
        return fit(line, guide, data, **options).train_loss, guide.median()["slope"]

    losses, value = slope(Items(items))
    expected, expected_value = slope(COLUMNS if form == "mapping" else tuple(COLUMNS.values()))
    assert losses == expected
    assert torch.equal(value, expected_value)


class StopError(Exception):
    pass


def loader(kind, *, noise=0.1):
    generator = torch.Generator() if kind == "generator" else None
    stored = Counting(X[:40], noise)
    sampler = SubsetRandomSampler(range(35)) if kind == "subset" else None
    shuffle = None if kind == "subset" else kind != "in order"
    return DataLoader(stored, 16, shuffle=shuffle, sampler=sampler, generator=generator)


@pytest.mark.parametrize("stop_at", [2, 3, 5])
@pytest.mark.parametrize("kind", ["shuffled", "generator", "subset", "in order", "dataset"])
def test_training_on_what_is_read_is_resumed_bit_identically(kind, stop_at):
    """Noise of the dataset, drawn as a row is read, included."""
    snapshots = []

    def interrupt(snapshot):
        snapshots.append(snapshot)
        if len(snapshots) == stop_at:
            raise StopError

    def run(**more):
        data = Counting(X[:40], 0.1) if kind == "dataset" else loader(kind)
        return trained(data, **{"batch_size": 16 if kind == "dataset" else None, **more})

    weights, losses = run()
    with pytest.raises(StopError):
        run(snapshot_every=1, on_snapshot=interrupt)
    torch.rand(7)  # the state outside does not matter
    resumed, history = run(resume_from=snapshots[-1])
    assert torch.equal(resumed, weights)
    assert history == losses
    assert not torch.equal(run(seed=1)[0], weights)


def mean(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def sd_by_loader(**options):
    pyro.clear_param_store()
    x = torch.randn(60, generator=torch.Generator().manual_seed(0)).double() + 1
    guide = AutoNormal(mean, init_scale=0.3)
    rows = DataLoader(TensorDataset(x), 15, shuffle=True)
    fit(mean, guide, rows, progress=False, **options)
    return (guide.quantiles([0.8413])["loc"][0] - guide.median()["loc"]).item()


def test_minibatches_of_a_loader_stand_for_all_data(monkeypatch):
    """The exact posterior of 60 data has a standard deviation of 1/√61; of 15, the twin, 1/4."""
    options = {"num_epochs": 40, "lr": 0.1, "lr_decay": 0.9}
    options["objective"] = BetaELBO(1.0, num_particles=8)
    assert sd_by_loader(**options) == pytest.approx(61**-0.5, rel=0.1)
    monkeypatch.setattr(ScaleData, "_pyro_sample", lambda *_: None)
    assert sd_by_loader(**options) > 1.5 * 61**-0.5


def test_workers_load_what_the_process_itself_does():
    expected, _ = trained(DataLoader(TensorDataset(X[:40]), 16, shuffle=True), batch_size=None)
    workers = DataLoader(TensorDataset(X[:40]), 16, shuffle=True, num_workers=1)
    weights, _ = trained(workers, batch_size=None, num_epochs=3)
    assert torch.equal(weights, expected)


def test_weights_are_those_of_the_tensors_in_the_order_of_the_dataset():
    model, guide = pair()
    stored = Counting(X)

    def weights(data):
        torch.manual_seed(0)
        return log_weights(model, guide, data, 5, chunk_size=20)

    expected = weights(X)
    assert torch.equal(weights(stored), expected)
    assert stored.most <= 64  # what is looked at first, to see whether the pair is sound
    assert torch.equal(weights(DataLoader(Counting(X), 7, shuffle=True)), expected)


@pytest.mark.parametrize("estimate", [importance_weighted_evidence, adaptive_evidence])
def test_evidence_of_what_is_read_is_that_of_the_tensors(estimate):
    model, guide = pair()
    options = {"target_se": 0.5} if estimate is adaptive_evidence else {"num_particles": 50}

    def evidence(data):
        torch.manual_seed(0)
        return estimate(model, guide, data, **options).log_px

    stored = Counting(X.repeat(5, 1))
    assert torch.equal(evidence(stored), evidence(X.repeat(5, 1)))
    assert stored.most <= (128 if estimate is importance_weighted_evidence else 300)


def test_what_needs_all_data_at_once_reads_them_all():
    x = torch.randn(20).double()
    guide = AutoNormal(mean)
    fit(mean, guide, TensorDataset(x), num_epochs=2, progress=False)

    def evidence(data):
        torch.manual_seed(0)
        annealed = annealed_evidence(mean, data, num_chains=4, num_temperatures=5)
        return annealed.mean, importance_weighted_evidence(mean, guide, data, 50).mean

    assert evidence(TensorDataset(x)) == evidence(x)


BAD_ITEMS = {
    "text": ([(X[0], "a"), (X[1], "b")], "tensors, or tuples or mappings of them, got str"),
    "nothing": ([None, None], "got NoneType"),
    "shapes": ([X[0], X[1][:-1]], r"the same shape, got \(.*\) and \("),
    "lengths": ([(X[0], X[0]), (X[1],)], "the same length, got 2 and 1"),
    "names": ([{"x": X[0]}, {"y": X[1]}], "the same names"),
    "infinite": ([X[0], X[1] / 0], "x_train has NaN or infinite values"),
    "empty": ([], "at least one datum, got Items of length 0"),
}


@pytest.mark.parametrize("kind", BAD_ITEMS)
def test_bad_items_are_refused_in_one_line(kind):
    items, message = BAD_ITEMS[kind]
    with pytest.raises(ValueError, match=message) as error:
        trained(Items(items))
    assert "\n" not in str(error.value)


ROWS = TensorDataset(X[:40])
BAD_DATA = {
    "endless": (Endless(), "map-style dataset, with __getitem__ and __len__, got Endless"),
    "loader of endless": (DataLoader(Endless(), 4), "map-style dataset"),
    "batches": (
        DataLoader(ROWS, batch_sampler=[[0, 1], [2]]),
        "with a batch_size, got one whose batches have sizes of their own",
    ),
    "no batches": (DataLoader(ROWS, batch_size=None), "with a batch_size"),
    "never loaded": (DataLoader(ROWS, 16, drop_last=True), "every datum to be loaded"),
    "text": (DataLoader(ROWS, 4, collate_fn=lambda _: ["a"]), "yields tensors"),
}


@pytest.mark.parametrize("kind", BAD_DATA)
def test_bad_data_are_refused_in_one_line(kind):
    data, message = BAD_DATA[kind]
    with pytest.raises(ValueError, match=message) as error:
        trained(data, batch_size=None)
    assert "\n" not in str(error.value)


def test_batches_of_known_sizes_are_taken():
    sampler = BatchSampler(SequentialSampler(ROWS), 16, drop_last=False)
    with pytest.raises(ValueError, match="batch_size"):
        trained(DataLoader(ROWS, batch_sampler=sampler), batch_size=None)
    several = DataLoader(ROWS, 16, sampler=RandomSampler(ROWS, num_samples=32))
    assert len(trained(several, batch_size=None)[1]) == 3


def test_a_loader_has_its_own_batch_size():
    with pytest.raises(ValueError, match="no batch_size beside a DataLoader, whose own is 8"):
        trained(DataLoader(ROWS, 8))


def test_what_draws_some_data_more_often_has_no_posterior_of_the_data():
    x = torch.randn(20).double()
    weighted = DataLoader(
        TensorDataset(x), 5, sampler=WeightedRandomSampler([1.0] * 10 + [2.0] * 10, 20)
    )
    with pytest.raises(ValueError, match="loads all data alike"):
        fit(mean, AutoNormal(mean), weighted, num_epochs=1, progress=False)


@pytest.mark.parametrize("kind", ["sampler", "persistent"])
def test_what_cannot_be_taken_up_is_refused(kind):
    more = {"sampler": OwnOrder(40)}
    if kind == "persistent":
        more = {"num_workers": 1, "persistent_workers": True}
    snapshots = []
    data = DataLoader(ROWS, 16, **more)
    trained(data, batch_size=None, on_snapshot=snapshots.append, num_epochs=1)
    with pytest.raises(ValueError, match="taken up bit by bit"):
        trained(data, batch_size=None, resume_from=snapshots[-1])


def test_data_outside_the_support_are_found_as_they_are_read():
    def coins(x):
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(p), obs=x)

    x = torch.ones(40)
    x[-1] = 0.5
    with pytest.raises(ValueError, match="data outside the support of site 'x'"):
        fit(coins, AutoNormal(coins), TensorDataset(x), num_epochs=1, batch_size=8, progress=False)
