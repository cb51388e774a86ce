"""A frozen model's matrix products in 8-bit floating point, where the hardware multiplies it at twice the rate of 16 bits.

Weights and inputs are e4m3 (Micikevicius et al. 2022) with one scale for every row: an output feature of a weight, a token of an
input. Sums are made in higher precision and come back in the input's type. What is lost is looked at before anyone uses it:
see `harness.teacher_backends`.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

FP8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FP8).max
# Scales below this are those of rows of zeros.
SMALLEST = 1e-12
# The product wants multiples of 16 on both sides of a weight.
ALIGNED = 16
# The first compute capability whose tensor cores multiply e4m3: Ada; then Hopper and Blackwell.
FIRST_CAPABILITY = (8, 9)


def obstacle(device: torch.device) -> str:
    """Why products in fp8 would not be fast here; empty where they are."""
    if device.type != "cuda":
        return "there is no GPU here"
    if torch.cuda.get_device_capability(device) < FIRST_CAPABILITY:
        return f"{torch.cuda.get_device_name(device)} does not multiply 8-bit floating point"
    return ""


def rowwise(x_MK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(M, K) in e4m3 and the scales (M, 1) that give its rows back."""
    scale_M1 = x_MK.abs().amax(dim=1, keepdim=True).float().div_(LARGEST).clamp_(min=SMALLEST)
    return (x_MK / scale_M1).clamp_(-LARGEST, LARGEST).to(FP8), scale_M1


def compiles(device: torch.device) -> bool:
    """Whether a walk with these products is compiled: on a CPU, which gains nothing from them, it is only checked."""
    return device.type == "cuda"


class Rounded:
    """The last input that a module's linear layers were given, in e4m3: queries, keys and values share theirs."""

    def __init__(self) -> None:
        self._x: torch.Tensor | None = None
        self._rows: tuple[torch.Tensor, torch.Tensor] | None = None

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self._rows is None or self._x is not x:
            self._x, self._rows = x, rowwise(x.flatten(0, -2))
        return self._rows

    def forget(self, *_: object) -> None:
        self._x = self._rows = None


class Fp8Linear(nn.Module):
    """A linear layer whose weight is kept, and whose product is made, in e4m3; forward only.

    Layers that share `rounded` round an input once that they are given one after the other.
    """

    def __init__(self, linear: nn.Linear, rounded: Rounded | None = None) -> None:
        super().__init__()
        self._rounded = rounded
        weight_NK, scale_N1 = rowwise(linear.weight.detach())
        self.weight = nn.Parameter(weight_NK, requires_grad=False)
        self.scale_1N: torch.Tensor
        self.register_buffer("scale_1N", scale_N1.T.contiguous())
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, K) → (…, N) in the type of `x`."""
        rows_MK, scale_M1 = rowwise(x.flatten(0, -2)) if self._rounded is None else self._rounded(x)
        by_row = functional.ScalingType.RowWise
        product_MN = functional.scaled_mm(
            rows_MK, self.weight.T, scale_M1, by_row, self.scale_1N, by_row, output_dtype=x.dtype
        )  # fmt: skip
        if self.bias is not None:
            product_MN += self.bias
        return product_MN.unflatten(0, x.shape[:-1])


def convert(module: nn.Module) -> int:
    """Replace every linear layer inside `module` whose sizes fit; returns how many."""
    count, rounded = 0, Rounded()
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Linear):
            if child.in_features % ALIGNED == 0 == child.out_features % ALIGNED:
                setattr(module, name, Fp8Linear(child, rounded))
                count += 1
        else:
            count += convert(child)
    if any(isinstance(child, Fp8Linear) for child in module.children()):
        module.register_forward_hook(rounded.forget)
    return count
