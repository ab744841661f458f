"""What an operator does, and which part of a model its module is: by their names, in every engine's words.

The kinds are those of EfficientViT's analysis (arXiv 2305.07027, section 2 and figure 2): products and
convolutions are bound by arithmetic; reshaping, copying, element-wise work and normalisation by memory.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

COMPUTE_KINDS = ("conv", "matmul", "attention")
MEMORY_KINDS = ("reshape", "copy", "elementwise", "normalisation", "softmax", "pooling")
OTHER = "other"
KINDS = (*COMPUTE_KINDS, *MEMORY_KINDS, OTHER)
"""`attention` is the whole of it where an engine computes it at once, its softmax included."""

ROLES = ("stem", "mixer", "ffn", "subsampling", "head", OTHER)
"""Parts of a model; `mixer` is all that mixes tokens: attention with what prepares it, and depthwise
convolutions that stand alone."""

_WORDS = {
    "conv": "conv conv1d conv2d conv3d convolution groupconvolution convinteger convtranspose deconvolution "
    "convtranspose2d groupconvolutionbackpropdata",
    "matmul": "matmul gemm linear addmm mm bmm baddbmm einsum fullyconnected matmulinteger "
    "matmulintegertofloat dynamicquantizematmul matmulactivation matmulnbits",
    "attention": "attention multiheadattention groupqueryattention scaleddotproductattention mha sdpa",
    "reshape": "view reshape viewas flatten unflatten squeeze unsqueeze permute transpose t mt expand slice "
    "stridedslice split splitwithsizes variadicsplit chunk unbind select narrow concat cat concatenation "
    "stack pad constantpadnd roll gather gathernd gatherelements scatter scatterelements scatternd "
    "depthtospace spacetodepth tile repeat repeatinterleave index indexselect expandas broadcast movedim "
    "shuffle pixelshuffle swapaxes trilu take takealongdim sort argsort onehot",
    "copy": "clone copy to tocopy contiguous identity cast convert reorder reorderinput reorderoutput "
    "memcpyfromhost memcpytohost",
    "elementwise": "add sub subtract mul multiply div divide truediv pow power powerstatic sqrt rsqrt square "
    "exp log abs neg reciprocal min max minimum maximum clip clamp clampmin clampmax eltwise relu relu6 "
    "leakyrelu prelu sigmoid tanh erf gelu fastgelu quickgelu biasgelu hardswish hswish hardsigmoid hsigmoid "
    "silu swish softplus mish equal less greater greaterorequal lessorequal not and or sum2 mod floor ceil "
    "round sin cos quantizelinear dequantizelinear dynamicquantizelinear fakequantize subgraph "
    "squareddifference maskedfill where addcmul lerp",
    "normalisation": "batchnorm batchnormalization layernorm layernormalization groupnorm nativelayernorm "
    "groupnormalization instancenormalization skiplayernormalization simplifiedlayernormalization "
    "rmsnorm rms mvn lpnormalization l2norm normalizel2 lrn",
    "softmax": "softmax logsoftmax",
    "pooling": "avgpool avgpool2d averagepool maxpool maxpool2d maxpool2dwithindices adaptiveavgpool2d "
    "adaptivemaxpool2d globalaveragepool globalmaxpool pooling mean sum amax amin reduce reducemean "
    "reducesum reducemax reducemin reducel2 argmax topk interpolate resize "
    "upsamplebilinear2d upsamplenearest2d",
}
_KIND_OF = {word: kind for kind, words in _WORDS.items() for word in words.split()}
_PREFIX = re.compile(r"^(qlinear|fused|nhwc|q(?=gemm|attention))")
VIEWS = frozenset({"view", "reshape", "viewas", "flatten", "unflatten", "squeeze", "unsqueeze", "expand"})
"""What an engine need not move any data for."""

_PART = r"(?:^|\.)(?:{})(?=\.|$)"
_TOP = r"^(?:model\.|backbone\.)*(?:{})(?=\.|$)"
_PATTERNS = [
    (role, re.compile(frame.format(pattern)))
    for frame, role, pattern in (
        (_PART, "stem", r"stem|conv_stem|patch_embed|patch_embedding|embeddings?|pos_embed"),
        (_TOP, "stem", r"conv1|bn1"),
        (_PART, "subsampling", r"subsample|downsample|patch_merging|merge|reduction|mux|stages\.\d+\.0"),
        (_PART, "mixer", r"(?:token_)?mixer|attn\d?|(?:self_)?attention|context_module|dw\d?|norm1|mhsa"),
        (
            _PART,
            "ffn",
            r"ffn\d?|mlp|feed_forward|channel_mixer|local_module|norm2|stages\.\d+\.[1-9]\d*\.branch",
        ),
        (_PART, "head", r"head\w*|classifier|global_pool|fc_norm|demux|fpn|neck|decoder|pool"),
        (_TOP, "head", r"norm|fc"),
    )
]


def word_of(operator: str) -> str:
    """An operator's type as ONNX Runtime, OpenVINO or torch call it, in one spelling: `aten::add_` is `add`.

    Prefixes that say how it is computed are left out: `QLinearConv` is `conv`.
    """
    word = operator.rpartition(":")[2].replace("_", "").lower()
    return _PREFIX.sub("", word)


def kind_of(operator: str) -> str:
    """The kind of an operator's type, of `KINDS`."""
    return _KIND_OF.get(word_of(operator), OTHER)


def kind_of_fused(operators: Sequence[str]) -> str:
    """The kind of several operators that an engine computes at once, from their types."""
    kinds = {kind_of(operator) for operator in operators}
    if {"matmul", "softmax"} <= kinds:
        return "attention"
    return next((kind for kind in KINDS if kind in kinds), OTHER)


def class_of(kind: str) -> str:
    """`compute`, `memory` or `other`: what bounds the speed of a kind, as the paper has it."""
    if kind in COMPUTE_KINDS:
        return "compute"
    return "memory" if kind in MEMORY_KINDS else OTHER


def role_of(module: str) -> str | None:
    """The part of a model that a module's dotted name says, the outermost that it names; None for none."""
    found = [(match.start(), role) for role, pattern in _PATTERNS if (match := pattern.search(module))]
    return min(found)[1] if found else None


def roles_of(modules: Sequence[str]) -> list[str]:
    """The part of each operator, from their modules in the order of computation.

    What a container computes itself, such as a residual sum or the windows of Swin's blocks, belongs to the
    part that ran last inside it; before the first, to that which comes next inside it.
    """
    own = [role_of(module) for module in modules]
    return [role or _around(index, modules, own) for index, role in enumerate(own)]


def _around(index: int, modules: Sequence[str], own: Sequence[str | None]) -> str:
    """The nearest part inside the same container, of those before it, else of those after it."""
    inside = f"{modules[index]}." if modules[index] else ""
    for others in (range(index - 1, -1, -1), range(index + 1, len(modules))):
        for other in others:
            if (role := own[other]) is not None and modules[other].startswith(inside):
                return role
    return OTHER
