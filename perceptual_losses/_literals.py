"""The words that options take, for type checkers and for completion in editors."""

from typing import Literal

Window = Literal["gaussian", "uniform"]
Padding = Literal["valid", "zeros", "symmetric"]
Reduction = Literal["mean", "none"]
Normalization = Literal["floor", "relu", "simple"]
Backend = Literal["auto", "reference", "numba", "triton"]

Distance = Literal["l1", "l2"]
Backbone = Literal["vgg16", "vgg19", "vgg16_bn", "vgg19_bn", "alexnet", "squeezenet1_1"]
LPIPSBackbone = Literal["vgg16", "alexnet", "squeezenet1_1"]
VGGPreset = Literal["johnson", "dfc-123", "dfc-345", "srgan", "esrgan"]
StylePreset = Literal["johnson", "gatys"]

# The words of other packages, in `compat`.
FusedSSIMPadding = Literal["same", "valid"]
LPIPSNet = Literal["alex", "vgg", "vgg16", "squeeze"]
