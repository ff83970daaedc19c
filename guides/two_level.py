"""A guide of models in which the data share latents and each has others: amortized where it can."""

from typing import Any, cast

import torch
from torch import Tensor

from evidence.guides.inputs import Inputs
from evidence.guides.model_guide import draw
from evidence.guides.placement import Placement, plates_of
from evidence.guides.posterior import AbstractPosterior
from evidence.guides.standardization import Standardization
from evidence.inference.programs.data import Data

# A family, where its u belongs, and its unit.
Part = tuple[AbstractPosterior, Placement, Standardization]


class TwoLevel(AbstractPosterior):
    """q(shared) Π_n q(local_n | x_n, shared), both of one family, for any batch of the data.

    One λ for what the data share; the λ of each datum's own latents from an encoder of its row and
    of the shared v. Priors that depend on other latents are the units of what they are of.

    Reference: A. Agrawal, J. Domke, "Amortized Variational Inference for Simple Hierarchical
    Models", 2021, https://arxiv.org/abs/2111.03144.

    Args:
        shared: for the latents that the data share.
        local: for those of each datum.
        inputs: what the encoder sees of the data.
    """

    def __init__(self, shared: Part, local: Part, inputs: Inputs) -> None:
        latent_dim = shared[0].latent_dim + local[0].latent_dim
        super().__init__(latent_dim, inputs.dim, site=next(iter(shared[1].sites)))
        self.shared, self._shared_placement, self.shared_unit = shared
        self.local, self._local_placement, self.local_unit = local
        self.inputs = inputs

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Sample every latent of the model, given its arguments: the values by site."""
        self.register()
        data = Data(args, kwargs)
        above, below = self._shared_placement, self._local_placement
        plates = plates_of((above, below), len(data))
        posterior = self.shared.posterior(cast("Tensor", data))  # it looks at none
        v, known = draw("_shared", posterior, above, self.shared_unit, data, plates)
        posterior = self.local.posterior(self._seen(data, v))
        _, values = draw("_local", posterior, below, self.local_unit, data, plates, known)
        return known | values

    def _seen(self, data: Data, v: Tensor) -> Tensor:
        """Rows of the data beside the shared v `[..., Z]`: `[..., B, *outer, D + Z]`."""
        x = self.inputs(data)
        data_dim = self._local_placement.data_dim or -1
        x = x.reshape(len(x), *(1,) * (-1 - data_dim), -1)
        batch = torch.broadcast_shapes(x.shape[:-1], v.shape[:-1])
        return torch.cat([x.expand(*batch, -1), v.expand(*batch, -1)], -1)

    def posterior(self, *args: Any, **kwargs: Any) -> Any:
        """There is none of all latents side by side."""
        raise NotImplementedError("a guide of two levels has no density of all sites side by side")

    def local_parameters(self, *args: Any, **kwargs: Any) -> Any:
        """They depend on what is drawn for the shared latents."""
        raise NotImplementedError("a guide of two levels has no λ of a datum alone")

    def given(self, local_parameters: Tensor) -> Any:
        """See `local_parameters`."""
        raise NotImplementedError("a guide of two levels has no λ of a datum alone")
