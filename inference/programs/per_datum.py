"""What only makes sense where every datum has latents of its own."""

from evidence.inference.programs.data import Batch, Program
from evidence.inference.programs.evaluation import evaluation_mode
from evidence.inference.programs.traces import layout_of


def expect_per_datum(model: Program, guide: Program, x: Batch, what: str) -> None:
    """Check that no latent is shared by the data.

    Raises:
        ValueError: one is.
    """
    with evaluation_mode(model, guide):
        if layout_of(model, guide, x, require_density=False).is_joint:
            raise ValueError(
                f"{what} is per datum, and here the data share latents, or a site is outside the "
                'plate over the data: put what is of each datum inside `with pyro.plate("data", '
                "len(x)):`"
            )
