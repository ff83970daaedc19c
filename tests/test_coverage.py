"""A small bench: over many runs, does ± 2 SE hold the exact evidence as often as it should?"""

from dataclasses import replace
from functools import cache

import pytest
from scipy.stats import binom

from evidence.experiments.setup.trials import BUILT_IN, Scorecard, Trial, trial
from evidence.inference import anneal, smc
from evidence.models.problems import PROBLEMS

FEWEST, MOST = 0.90, 0.99


def trials_of(name, run, problems, num_seeds):
    return [trial(PROBLEMS[p], name, run, seed) for p in problems for seed in range(num_seeds)]


def objections(card):
    """What speaks against a card; nothing, if 90% to 99% lies in the exact interval of 99%."""
    low, high = card.coverage_interval()
    found = [] if card.share_reliable >= 0.8 else [f"{card.share_reliable:.0%} are relied on"]
    found += [f"{card.silent_misses} silent misses"] if card.silent_misses else []
    return found + ([] if low <= MOST and high >= FEWEST else [f"coverage {low:.2f} to {high:.2f}"])


def with_half_the_error(card):
    return Scorecard([replace(one, se=one.claimed / 2) for one in card.trials])


# Runs that cost little. Islands, and chains, are as good as runs: they share the pilot run alone.

NUM_GROUPS, ISLANDS, CHAINS = 40, 32, 50


@cache
def all_islands(name):
    options = {"num_islands": NUM_GROUPS * ISLANDS, "num_chains": 4}
    return smc(PROBLEMS[name].model, PROBLEMS[name].arguments, **options)


def some_islands(problem, seed):
    sampled = all_islands(problem.name)
    rows = slice(seed * ISLANDS, (seed + 1) * ISLANDS)
    return replace(sampled, log_px=sampled.log_px[rows]).evidence


@cache
def all_chains(name):
    options = {"num_chains": NUM_GROUPS * CHAINS, "num_temperatures": 100}
    return anneal(PROBLEMS[name].model, PROBLEMS[name].arguments, **options)


def some_chains(problem, seed):
    annealed = all_chains(problem.name)
    rows = slice(seed * CHAINS, (seed + 1) * CHAINS)
    return replace(annealed, log_w=annealed.log_w[rows]).evidence


PINES = ("pines", "pines-adjusted")
QUICK = {"smc": some_islands, "ais": some_chains}


@pytest.mark.parametrize("name", QUICK)
def test_two_standard_errors_hold_the_evidence_as_often_as_they_should(name):
    """The planted twin, the same runs with half of their error bars, does not pass."""
    card = Scorecard(trials_of(name, QUICK[name], ("pines", "separated-modes"), NUM_GROUPS))
    assert objections(card) == []
    assert any("coverage" in one for one in objections(with_half_the_error(card)))


def test_the_check_finds_half_of_the_error_bar():
    """With 80 runs true bars pass all but always, and one in fifty of halved ones at the most."""
    one = Trial("pines", "smc", 0, -310.0, -310.0, 1.0, None, 100, 1.0)

    def passes(covered):
        wide = [replace(one, nats=one.exact + (0 if n < covered else 3)) for n in range(80)]
        return objections(Scorecard(wide)) == []

    passed = [count for count in range(81) if passes(count)]
    assert sum(binom.pmf(passed, 80, 0.9545)) > 0.999
    assert sum(binom.pmf(passed, 80, 0.6827)) < 0.02
    with pytest.raises(ValueError, match="relied on, got none"):
        Scorecard([replace(one, not_reliable="k̂")]).coverage_interval()


SLOW = [
    ("smc", ("pines", "pines-adjusted", "eggbox", "separated-modes")),
    ("auto", PINES),
    ("ais", ("pines", "shells-2")),
]


@pytest.mark.long
@pytest.mark.parametrize(("name", "problems"), SLOW, ids=[name for name, _ in SLOW])
def test_the_bench_in_small(name, problems):
    """Runs with seeds of their own, all else as it is by default."""
    card = Scorecard(trials_of(name, BUILT_IN[name], problems, 80 // len(problems)))
    assert objections(card) == []
    assert any("coverage" in one for one in objections(with_half_the_error(card)))
