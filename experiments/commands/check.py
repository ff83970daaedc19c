"""`evidence check`: faults of a model and a guide, before anything is trained."""

import sys

from evidence.experiments.config import Check, Train
from evidence.experiments.own.program import OwnProgram
from evidence.experiments.setup.assembly import assemble, say_unused
from evidence.inference import check as find_faults


def check(config: Check) -> None:
    """Print every fault and its mend, one line each, and exit with 1; or say that there is none."""
    if config.num_data < 2:
        raise ValueError(
            "expected --num_data of at least 2 (a single datum cannot show whether data leak into "
            f"each other), got {config.num_data}"
        )
    assembly = assemble(
        Train(
            model=config.model,
            guide=config.guide,
            data=config.data,
            binarize=config.binarize,
            data_root=config.data_root,
            seed=config.seed,
        )
    )
    say_unused(assembly)
    x = assembly.x_test
    if not isinstance(assembly.model, OwnProgram) or assembly.dataset.split != "all":
        x = x[: config.num_data]  # of data that share latents, fewer are another data set
    findings = find_faults(assembly.model, assembly.guide, x, seed=config.seed)
    pair = f"{config.model} with {config.guide} on {len(x)} data of {config.data}"
    if not findings:
        print(f"no fault found: {pair}")
        return
    print(f"{len(findings)} found: {pair}")
    for finding in findings:
        print(f"- {finding}")
    sys.exit(1)
