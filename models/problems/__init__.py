"""Problems whose evidence is known, to try estimators on: Pyro models as their users write them.

problem = PROBLEMS["eight-schools"]
evidence = annealed_evidence(problem.model, problem.arguments)
error = evidence.mean * evidence.num_data - problem.log_evidence
"""

from evidence.models.problems import densities, fields, hierarchies, regressions
from evidence.models.problems.problem import Problem

PROBLEMS: dict[str, Problem] = {
    problem.name: problem
    for module in (regressions, hierarchies, fields, densities)
    for problem in module.PROBLEMS
}

__all__ = ["PROBLEMS", "Problem"]
