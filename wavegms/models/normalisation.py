"""Group normalisation as a card is quickest with; its numbers are torch's own."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class GroupNorm(nn.GroupNorm):
    """torch's, but half precision stays half precision.

    Autocast takes its input to float32, and with it the activation that follows: twice the memory
    and a copy each way. The sums within are float32 in either case.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> the same shape and type."""
        if x.dtype not in (torch.bfloat16, torch.float16):
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            scale, shift = self.weight.to(x.dtype), self.bias.to(x.dtype)
            return functional.group_norm(x, self.num_groups, scale, shift, self.eps)


def as_normalised(x: Tensor) -> Tensor:
    """The same in the order in memory in which a card normalises, whatever comes in.

    Else one part of every residual sum would have the other order.
    """
    return x.contiguous() if x.is_cuda else x
