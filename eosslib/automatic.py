"""Any PyTorch module as a function of flat parameters, differentiated automatically: what ``flat`` is for written-out layers.

One forward and one backward pass are recorded as a graph and kept; every further derivative at the same parameters is taken
from it. A Hessian product is the gradient of ∇L·v (double backward); directional derivatives of the single losses come from the
same graph, as the derivative of ∇L·v with respect to the weights of the examples; J v is the derivative of zᵀJ v with respect to z.

Batch normalisation couples the examples of a pass: ℓᵢ then depends on the batch it stands in. L_B is evaluated with the
statistics of B itself, and the full loss with those of all n examples, in one pass, as MiniBS's definition asks for. There is no
gradient of a single example then, so σ_u² and the noise models are not defined, and E_B[∇²L_B] is not ∇²L.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from eosslib.errors import ConfigError
from eosslib.losses import Loss

Params = tuple[torch.Tensor, ...]
COUPLING = (nn.modules.batchnorm._BatchNorm,)


class ModuleNetwork:
    """A module as a function of a stack of flat parameter vectors; the networks of a stack are computed one after the other.

    Only parameters that require a gradient count; a parameter that the module uses in several places counts once.

    Attributes:
        shapes: Shapes of the parameters of one network, in the module's order.
        size: P, the number of parameters of one network.
        couples_examples: Whether an example's output depends on the others of its batch.
    """

    one_by_one = True

    def __init__(self, module: nn.Module) -> None:
        """Take hold of the module; its parameters' values are not used, its buffers are, and stay as they are."""
        self.module = module
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.names = list(trained)
        self.shapes = [tuple(p.shape) for p in trained.values()]
        self.sizes = [prod(shape) for shape in self.shapes]
        self.size = sum(self.sizes)
        self.couples_examples = any(_couples(part) for part in module.modules())

    def views(self, theta: torch.Tensor) -> Params:
        """Return the parameters as views into a stack: (R, P) → each (R, *shape)."""
        parts = theta.split(self.sizes, dim=1)
        return tuple(part.unflatten(1, shape) if shape else part[:, 0] for part, shape in zip(parts, self.shapes, strict=True))

    def flatten(self, params: Sequence[torch.Tensor]) -> torch.Tensor:
        """Inverse of ``views``: each (R, *shape) → (R, P), copied."""
        return torch.cat([p.reshape(len(p), -1) for p in params], dim=1)

    def blocks(self, stack: int) -> list[slice]:
        """Return the parts of a stack that are computed together: one network after the other."""
        return [slice(r, r + 1) for r in range(stack)]

    def __call__(self, params: Sequence[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        """Apply the networks to inputs (R, B, *shape) or (1, B, *shape): (R, B, K)."""
        stack = len(params[0])
        x = x.expand(stack, *x.shape[1:])
        return torch.stack([self.one([p[r] for p in params], x[r]) for r in range(stack)])

    def one(self, params: Sequence[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        """Apply one network: (B, *shape) → (B, K)."""
        buffers = {name: buffer.clone() for name, buffer in self.module.named_buffers()}
        result: torch.Tensor = functional_call(self.module, {**dict(zip(self.names, params, strict=True)), **buffers}, (x,))
        return result

    def output_bytes(self, params: Sequence[torch.Tensor], x: torch.Tensor) -> int:
        """Return the bytes that a forward pass keeps for an example of ``x``, for the whole stack."""
        examples = x[0, :2]
        kept = Counted(params)
        with torch.enable_grad(), kept:
            self.one([p[0].detach().requires_grad_() for p in params], examples.clone())
        return -(-kept.nbytes // len(examples)) * len(params[0])

    def linearization(
        self, loss: Loss, params: Sequence[torch.Tensor], x: torch.Tensor, y: torch.Tensor, weights: torch.Tensor | float
    ) -> AutomaticLinearization:
        """Return forward and backward pass of one network of a stack."""
        return AutomaticLinearization(self, loss, params, x, y, weights)

    def gradient(
        self, loss: Loss, params: Sequence[torch.Tensor], x: torch.Tensor, y: torch.Tensor, weights: torch.Tensor | float
    ) -> list[torch.Tensor]:
        """Return the gradient of one network of a stack, per parameter (1, *shape), with nothing kept for further derivatives."""
        weights = weights[0] if isinstance(weights, torch.Tensor) else weights
        with torch.enable_grad():
            leaves = [p[0].detach().requires_grad_() for p in params]
            total = (loss.value(self.one(leaves, x[0]), y[0]) * weights).sum()
        grads = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
        return [grad.unsqueeze(0) for grad in grads]


def _couples(part: nn.Module) -> bool:
    """Whether a layer takes its statistics of the batch: in training mode, and always where it keeps none of its own."""
    return isinstance(part, COUPLING) and (part.training or part.running_mean is None)


class Counted:
    """Counts the bytes of the tensors that a graph keeps while this context is open."""

    def __init__(self, known: Sequence[torch.Tensor]) -> None:
        """Start with nothing; the storages of ``known`` tensors are there anyway and do not count."""
        self._known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self._seen: dict[int, int] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor)

    def _keep(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._known:
            self._seen[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the tensor itself would hold the graph that holds it, for ever

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors kept."""
        return sum(self._seen.values())

    def __enter__(self) -> Counted:
        """Begin to count."""
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """End."""
        self._hooks.__exit__(*error)


class AutomaticLinearization:
    """A forward and a backward pass of one network, recorded for derivatives at the same parameters.

    Attributes:
        losses: ℓᵢ of every example (1, B).
        outputs: f(xᵢ) (1, B, K).
        nbytes: Bytes that the graph keeps.
    """

    def __init__(
        self,
        network: ModuleNetwork,
        loss: Loss,
        params: Sequence[torch.Tensor],
        x: torch.Tensor,
        y: torch.Tensor,
        weights: torch.Tensor | float,
    ) -> None:
        """Run both passes; arguments as for ``flat.Linearization``, with a stack of one network."""
        self._loss, self._y, self._kept = loss, y[0], Counted([*params, x])
        # Where the parameters are part of a graph already, so is everything here: third derivatives are taken through it.
        self._deeper = any(p.requires_grad for p in params)
        size = x.shape[1]
        weights = (
            weights[0]
            if isinstance(weights, torch.Tensor)
            else torch.full((size,), weights, device=x.device, dtype=params[0].dtype)
        )
        self._weights = weights.detach().clone().requires_grad_()
        with torch.enable_grad(), self._kept:
            self._leaves = [p[0] if p.requires_grad else p[0].detach().requires_grad_() for p in params]
            self._outputs = network.one(self._leaves, x[0])
            self._losses = loss.value(self._outputs, self._y)
            self._gradients = self._differentiate((self._losses * self._weights).sum(), self._leaves, graph=True)
        self._jacobian: tuple[torch.Tensor, list[torch.Tensor]] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that the graph keeps."""
        return self._kept.nbytes

    @property
    def losses(self) -> torch.Tensor:
        """ℓᵢ (1, B)."""
        return self._losses.detach().unsqueeze(0)

    @property
    def outputs(self) -> torch.Tensor:
        """f(xᵢ) (1, B, K)."""
        return self._outputs.detach().unsqueeze(0)

    @property
    def right(self) -> torch.Tensor:
        """Whether the largest output is that of the largest target (1, B)."""
        return self._loss.right(self._outputs, self._y).unsqueeze(0)

    def gradient(self) -> list[torch.Tensor]:
        """Return ∇L per parameter, each (1, *shape)."""
        return self._given(self._gradients)

    def squares(self) -> list[torch.Tensor]:
        """Return Σᵢ (wᵢ ∇ℓᵢ)², coordinate by coordinate, per parameter; example by example."""
        total = [torch.zeros_like(leaf) for leaf in self._leaves]
        for value in (self._losses * self._weights).unbind():
            torch._foreach_add_(total, [g.square() for g in self._differentiate(value, self._leaves)])
        return self._given(total)

    def slopes(self, v: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return vᵀ∇ℓᵢ for directions v per parameter: (1, B)."""
        return self._differentiate(self._gradients, [self._weights], v)[0].unsqueeze(0)

    def product(self, v: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return (∇²L) v per parameter."""
        return self._given(self._differentiate(self._gradients, self._leaves, v, graph=self._deeper))

    def product_and_slopes(self, v: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Return what ``product`` and ``slopes`` return, for little more than the product."""
        *parts, slopes = self._given(self._differentiate(self._gradients, [*self._leaves, self._weights], v, graph=self._deeper))
        return parts, slopes

    def gauss_newton(self, v: Sequence[torch.Tensor], middle: bool = True) -> list[torch.Tensor]:
        """Return Σᵢ wᵢ JᵢᵀAᵢJᵢ v per parameter; without ``middle`` A is left out."""
        if self._jacobian is None:
            with torch.enable_grad():
                z = torch.zeros_like(self._outputs, requires_grad=True)
                self._jacobian = z, self._differentiate(self._outputs, self._leaves, [z.unsqueeze(0)], graph=True)
        z, transposed = self._jacobian
        tangent = self._differentiate(transposed, [z], v)[0]
        g = self._loss.curvature(self._outputs.detach(), self._y, tangent) if middle else tangent
        return self._given(
            self._differentiate(self._outputs, self._leaves, [(g * self._weights.detach().unsqueeze(1)).unsqueeze(0)])
        )

    def _differentiate(
        self,
        values: torch.Tensor | list[torch.Tensor],
        by: list[torch.Tensor],
        v: Sequence[torch.Tensor] | None = None,
        graph: bool = False,
    ) -> list[torch.Tensor]:
        """Return the derivative of Σ v·values; what the values do not depend on has the derivative zero."""
        values = [values] if isinstance(values, torch.Tensor) else values
        vectors = [torch.ones_like(value) for value in values] if v is None else [part[0] for part in v]
        pairs = [(value, vector) for value, vector in zip(values, vectors, strict=True) if value.requires_grad]
        found: Sequence[torch.Tensor | None] = [None] * len(by)
        if pairs:
            outputs, given = map(list, zip(*pairs, strict=True))
            found = torch.autograd.grad(outputs, by, given, retain_graph=True, create_graph=graph, allow_unused=True)
        return [torch.zeros_like(b) if part is None else part for part, b in zip(found, by, strict=True)]

    def _given(self, parts: list[torch.Tensor]) -> list[torch.Tensor]:
        return [(part if self._deeper else part.detach()).unsqueeze(0) for part in parts]


def check_memory(needed: int, memory: int) -> None:
    """Refuse a pass over all examples at once, which batch normalisation needs, where it does not fit.

    Raises:
        ConfigError: It does not fit the budget.
    """
    if needed > memory:
        sizes = f"{needed / 2**30:.1f} GiB of {memory / 2**30:.1f}"
        raise ConfigError(
            f"batch normalisation needs all training examples in one pass, {sizes}: allow more memory, take fewer examples,"
            " a narrower network, or one without batch normalisation"
        )
