"""Ordinary Bayesian models by a guide trained until converged, against what their evidence is."""

import numpy as np
import pytest
import torch

from evidence import guides
from evidence.experiments.own.program import default_dtype
from evidence.inference import ForwardKLOnDraws, fit, importance_weighted_evidence, smc
from evidence.models.problems import PROBLEMS

# Where tails are heavier than a Gaussian's, whose k̂ says so, a flow.
GUIDES = {
    "regression": "FullRank",
    "noisy-regression": "FullRank",
    "gaussian-process": "FullRank",
    "pines": "FullRank",
    "principal-components": "FullRank",
    "pumps": "RealNVP",
    "baseball": "RealNVP",
}
# By forward KL on draws of SMC: one Gaussian over two shells, or over all of a funnel.
COVERED = ("shells-2", "eight-schools")


def evidence_of(name):
    # The guide is so near that float32 would be the error.
    dtype = torch.float32 if name == "principal-components" else torch.float64
    model, data = PROBLEMS[name].model, tuple(part.to(dtype) for part in PROBLEMS[name].data)
    with default_dtype(dtype):
        objective = ForwardKLOnDraws(smc(model, data)) if name in COVERED else None
        guide = getattr(guides, GUIDES.get(name, "FullRank")).for_model(model, data, seed=0)
        fit(model, guide, data, objective=objective, progress=False)
        torch.manual_seed(0)
        return importance_weighted_evidence(model, guide, data, 20_000)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:the pair does not broadcast")
@pytest.mark.parametrize("name", [*GUIDES, *COVERED])
def test_a_trained_guide_knows_the_evidence(name):
    """|z| < 4 with SE ≤ 0.1, reliable; half a nat of error, the twin, is found."""
    known, evidence = PROBLEMS[name], evidence_of(name)
    exact, se = float(np.sum(known.exact())), evidence.mc_se * evidence.num_data
    error = evidence.mean * evidence.num_data - exact
    assert evidence.not_reliable is None
    assert se <= 0.1
    assert abs(error) < 4 * se
    assert abs(error + 0.5) > 4 * se
