"""Layers that `kernels.kernelize` can put in the place of a model's own."""

from torch import Tensor, nn

from .operations import rms_norm


class RMSNorm(nn.Module):
    """For norms with `weight` and `variance_epsilon`, as Llama's in transformers."""

    can_torch_compile = False
    has_backward = False
    weight: Tensor
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        return rms_norm(hidden_states.contiguous(), self.weight, self.variance_epsilon)


__all__ = ["RMSNorm"]
