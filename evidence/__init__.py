"""Swap the guide, keep the model, and report the evidence with error bars.

`evidence.models`, `evidence.guides`, `evidence.inference`, `evidence.experiments` and the course's
`evidence.notebooks` are folders of this package where it is installed, and lie beside it in a
checkout.
"""

from pathlib import Path

_here = Path(__file__).resolve().parent
if not (_here / "models").is_dir():
    __path__.append(str(_here.parent))
