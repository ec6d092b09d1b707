"""Optimisers: which parameters decay, AdamW by torch's fused kernel, Muon by hand, the classics by name.

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) replaces a matrix's momentum by the nearest matrix with all its
singular values near 1, so that no direction of the weights is starved. It is for hidden matrices; embeddings, the head, norms
and biases go by AdamW.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn

from tinyseek.train.options import TrainSettings

# Coefficients of the quintic that Newton-Schulz iterates. They trade exactness for speed: after five rounds singular values
# lie in about [0.7, 1.2], which trains as well as exactly 1 (Jordan's post, section "Choosing coefficients").
_QUINTIC = (3.4445, -4.7750, 2.0315)
_ROUNDS = 5


def orthogonalize(matrices: Tensor, rounds: int = _ROUNDS) -> Tensor:
    """The nearest semi-orthogonal matrix, roughly: `U V^T` of the singular value decomposition `U S V^T`, by Newton-Schulz.

    Args:
        matrices: [..., out, in], each of the last two dimensions worked on alone.
    """
    a, b, c = _QUINTIC
    x: Tensor = matrices
    tall = x.size(-2) > x.size(-1)
    if tall:  # the Gram matrix is then the smaller one
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(rounds):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x.mT if tall else x
    return result


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised.

    The update is scaled by `0.2 * sqrt(max(out, in))`, which gives it the root mean square of AdamW's updates, so that one
    learning rate and weight decay serve both (Liu et al., "Muon is scalable for LLM training", arXiv 2502.16982, section 2.2).
    A parameter with more than two dimensions (stacked experts [E, out, in]) is a batch of matrices.
    """

    def __init__(self, params: Iterable[Any], lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[nn.Parameter]] = defaultdict(
                list
            )  # one batched product a shape, not one a layer
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.shape].append(parameter)
            for shape, parameters in alike.items():
                updates = []
                for parameter in parameters:
                    state = self.state[parameter]
                    if not state:
                        state["momentum"] = torch.zeros_like(parameter)
                    gradient, velocity = parameter.grad, state["momentum"]
                    assert gradient is not None
                    velocity.lerp_(gradient, 1 - group["momentum"])
                    updates.append(gradient.lerp(velocity, group["momentum"]))  # Nesterov's look ahead
                # bfloat16 is enough for the iteration, and fast where there are tensor cores; on a CPU it may be slower.
                work = torch.bfloat16 if parameters[0].is_cuda else torch.float32
                directions = orthogonalize(torch.stack(updates).to(work)).to(parameters[0].dtype)
                scale = 0.2 * math.sqrt(max(shape[-2], shape[-1]))
                for parameter, direction in zip(parameters, directions.unbind(), strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(direction, alpha=-group["lr"] * scale)
        return None if closure is None else closure()


def parameter_groups(model: nn.Module) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """Every trained parameter in exactly one of three groups.

    Returns:
        `hidden`: matrices inside the network; `head`: the output matrix, where it is not the embedding itself; `rest`:
        embeddings, norms and biases, which never decay (a norm's gain pulled to zero, or a rare token's row, only loses
        what was learned).
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    head = getattr(model, "lm_head", None)
    output = id(head.weight) if isinstance(head, nn.Linear) else None
    groups: dict[str, list[tuple[str, nn.Parameter]]] = {"hidden": [], "head": [], "rest": []}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim < 2 or id(parameter) in embeddings:
            groups["rest"].append((name, parameter))
        else:
            groups["head" if id(parameter) == output else "hidden"].append((name, parameter))
    placed = [id(parameter) for group in groups.values() for _, parameter in group]
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert len(placed) == len(set(placed)), "a parameter is in two groups"
    assert set(placed) == trained, "a parameter is in no group"
    return groups


class Optimizer:
    """One or two torch optimisers behind one face, with a state that names its parameters."""

    def __init__(self, parts: list[torch.optim.Optimizer], names: dict[int, str]) -> None:
        self.parts = parts
        self._names = names  # id of a parameter -> its name

    def step(self) -> None:
        """One update."""
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def set_lr(self, lr: float) -> None:
        """The learning rate of the next step."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = lr

    def state_dict(self) -> dict[str, Tensor]:
        """What the optimiser remembers, as `{quantity}/{parameter name}` -> tensor; fit for safetensors."""
        return {
            f"{quantity}/{self._names[id(parameter)]}": value
            for part in self.parts
            for parameter, state in part.state.items()
            for quantity, value in state.items()
            if isinstance(value, Tensor)
        }

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `state_dict` gave."""
        by_name: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for key, value in tensors.items():
            quantity, _, name = key.partition("/")
            by_name[name][quantity] = (
                value.clone()
            )  # its own memory: the file's mapping may not be aligned as torch's is
        for part in self.parts:
            packed = part.state_dict()
            order = [self._names[id(parameter)] for group in part.param_groups for parameter in group["params"]]
            packed["state"] = {index: by_name[name] for index, name in enumerate(order) if name in by_name}
            part.load_state_dict(packed)


def make_optimizer(model: nn.Module, settings: TrainSettings) -> Optimizer:
    """The optimiser that the settings name, over a model's parameters."""
    groups = parameter_groups(model)
    names = {id(parameter): name for group in groups.values() for name, parameter in group}
    hidden, head, rest = ([parameter for _, parameter in groups[key]] for key in ("hidden", "head", "rest"))
    lr, decay, momentum = settings.lr, settings.weight_decay, settings.momentum

    def with_decay(*matrices: nn.Parameter) -> list[dict[str, Any]]:
        both: list[dict[str, Any]] = [
            {"params": list(matrices), "weight_decay": decay},
            {"params": rest, "weight_decay": 0.0},
        ]
        return [group for group in both if group["params"]]

    def adamw(parameters: list[dict[str, Any]]) -> torch.optim.Optimizer:
        fused = all(p.device.type in ("cpu", "cuda", "mps") for group in parameters for p in group["params"])
        return torch.optim.AdamW(parameters, lr=lr, betas=settings.betas, eps=settings.eps, fused=fused)

    everything = with_decay(*hidden, *head)
    match settings.optimizer:
        case "adamw":
            parts = [adamw(everything)]
        case "muon":
            muon = Muon([{"params": hidden}], lr=lr, momentum=momentum, weight_decay=decay) if hidden else None
            others = with_decay(*head)
            parts = [*([muon] if muon else []), *([adamw(others)] if others else [])]
        case "adam":  # weight decay here is L2: added to the gradient, as in the paper that AdamW corrects
            parts = [torch.optim.Adam(everything, lr=lr, betas=settings.betas, eps=settings.eps)]
        case "sgd":
            parts = [torch.optim.SGD(everything, lr=lr)]
        case "momentum":
            parts = [torch.optim.SGD(everything, lr=lr, momentum=momentum)]
        case "adagrad":
            parts = [torch.optim.Adagrad(everything, lr=lr, eps=settings.eps)]
        case "rmsprop":
            parts = [torch.optim.RMSprop(everything, lr=lr, eps=settings.eps, momentum=momentum)]
    return Optimizer(parts, names)
