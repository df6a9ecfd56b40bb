"""Every tangent rule on its own, against torch's forward mode and against autograd's backward."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.rules import Case, case, normal
from helpers.rules_of_matrices import BY_ROWS as OF_MATRICES_BY_ROWS
from helpers.rules_of_matrices import CASES as OF_MATRICES
from helpers.zoo import close
from tauspan.models.at import At
from tauspan.tangent.engine import attention, elementwise, table
from tauspan.tangent.engine.dual import Dual, NoRuleError, Trace, custom_function
from tauspan.tangent.engine.reference import forward_mode

MASK = torch.tensor([[True, False, True, True], [False, True, True, False], [True, True, True, True]])
PLACES = torch.tensor([[2, 0], [1, 2], [0, 2]])
sdpa = F.scaled_dot_product_attention


M, V, W = (3, 4), (4,), (4, 3)  # a matrix, a vector, the matrix the other way
POS = normal(3, 4).abs() + 0.5
UNIT = normal(3, 4).tanh() * 0.9
IMAGE = (2, 4, 6, 6)
Q, K = (2, 2, 3, 4), (2, 2, 5, 4)

CASES = [
    # views and moves
    case("view", lambda x: x.view(2, 6), M, strided=False),
    case("view_as", lambda x: x.view_as(torch.empty(2, 6)), M, strided=False),
    case("reshape", lambda x: x.reshape(2, 6), M),
    case("reshape", lambda x: torch.reshape(input=x, shape=(6, 2)), M),
    case("reshape_as", lambda x: x.reshape_as(torch.empty(2, 6)), M),
    case("flatten", lambda x: x.flatten(1), (2, 3, 4)),
    case("unflatten", lambda x: x.unflatten(1, (2, 2)), M),
    case("ravel", lambda x: x.ravel(), M),
    case("transpose", lambda x: x.transpose(0, 1), M),
    case("swapaxes", lambda x: x.swapaxes(0, 1), M),
    case("swapdims", lambda x: x.swapdims(0, 1), M),
    case("permute", lambda x: x.permute(2, 0, 1), (2, 3, 4)),
    case("movedim", lambda x: x.movedim(0, 2), (2, 3, 4)),
    case("moveaxis", lambda x: x.moveaxis(0, 2), (2, 3, 4)),
    case("t", lambda x: x.t(), M),
    case("get T", lambda x: x.T, M),
    case("get mT", lambda x: x.mT, M),
    case("get H", lambda x: x.H, M),
    case("get mH", lambda x: x.mH, M),
    case("adjoint", lambda x: x.adjoint(), M),
    case("unsqueeze", lambda x: x.unsqueeze(1), M),
    case("squeeze", lambda x: x.squeeze(1), (3, 1, 4)),
    case("expand", lambda x: x.expand(3, -1, -1), (1, 2, 4)),
    case("expand_as", lambda x: x.expand_as(torch.empty(3, 2, 4)), (1, 2, 4)),
    case("broadcast_to", lambda x: x.broadcast_to((3, 4)), V),
    case("narrow", lambda x: x.narrow(1, 1, 2), M),
    case("select", lambda x: x.select(1, 2), M),
    case("getitem", lambda x: x[1:, None, ::2], M),
    case("getitem", lambda x: x[..., -1], M),
    case("getitem", lambda x: x[torch.tensor([2, 0, 2]), torch.tensor([1, 1, 3])], M),
    case("getitem", lambda x: x[MASK], M),
    case("split", lambda x: x.split(3, dim=1), M),
    case("split", lambda x: torch.split(x, [1, 3], dim=1), M),
    case("split_with_sizes", lambda x: x.split_with_sizes([1, 3], 1), M),
    case("tensor_split", lambda x: x.tensor_split(3, 1), M),
    case("chunk", lambda x: x.chunk(2, dim=-1), M),
    case("unbind", lambda x: x.unbind(1), M),
    case("unbind", lambda x: list(x), M),
    case("diagonal", lambda x: x.diagonal(), M),
    case("unfold", lambda x: x.unfold(1, 2, 1), M),
    case("unfold", lambda x: F.unfold(x, 3, padding=1), IMAGE),
    case("fold", lambda x: F.fold(x, (4, 4), 2, stride=2), (1, 8, 4)),
    case("to", lambda x: x.to(torch.float32), M),
    case("float", lambda x: x.float(), M),
    case("double", lambda x: x.double(), M),
    case("half", lambda x: x.half().double(), M, digits=1e-2),
    case("bfloat16", lambda x: x.bfloat16().double(), M, digits=1e-2),
    case("type_as", lambda x: x.type_as(torch.empty(1)), M),
    case("type", lambda x: x.type(torch.float32), M),
    case("cpu", lambda x: x.cpu(), M),
    case("clone", lambda x: x.clone(), M),
    case("contiguous", lambda x: x.mT.contiguous(), M),
    case("dropout", lambda x: F.dropout(x, 0.5, False), M),
    case("feature_dropout", lambda x: F.dropout2d(x, 0.5, False), IMAGE),
    case("alpha_dropout", lambda x: F.alpha_dropout(x, 0.5, False), M),
    # linear in one argument
    case("neg", lambda x: -x, M),
    case("neg", lambda x: torch.negative(x), M),
    case("sum", lambda x: x.sum(1, keepdim=True), M),
    case("sum", lambda x: torch.sum(input=x, dim=0), M),
    case("mean", lambda x: x.mean((0, 1)), M),
    case("cumsum", lambda x: x.cumsum(1), M),
    case("flip", lambda x: x.flip(1), M),
    case("roll", lambda x: x.roll(1, 0), M),
    case("repeat", lambda x: x.repeat(2, 1), M),
    case("repeat_interleave", lambda x: x.repeat_interleave(2, 0), M),
    case("tile", lambda x: x.tile(2), M),
    case("index_select", lambda x: x.index_select(1, torch.tensor([3, 0])), M),
    case("gather", lambda x: x.gather(1, PLACES), M),
    case("gather", lambda x: torch.gather(x, dim=1, index=PLACES), M),
    case("take_along_dim", lambda x: x.take_along_dim(PLACES, 1), M),
    case("masked_select", lambda x: x.masked_select(MASK), M),
    case("tril", lambda x: x.tril(), M),
    case("triu", lambda x: x.triu(1), M),
    case("trace", lambda x: x.trace(), M),
    case("rot90", lambda x: x.rot90(), M),
    case("sum_to_size", lambda x: x.sum_to_size(1, 4), M),
    case("deg2rad", lambda x: x.deg2rad(), M),
    case("avg_pool1d", lambda x: F.avg_pool1d(x, 2), (2, 4, 6)),
    case("avg_pool2d", lambda x: F.avg_pool2d(x, 2), IMAGE),
    case("adaptive_avg_pool1d", lambda x: F.adaptive_avg_pool1d(x, 4), (2, 4, 6)),
    case("adaptive_avg_pool2d", lambda x: F.adaptive_avg_pool2d(x, (1, 2)), IMAGE),
    case("interpolate", lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), IMAGE),
    case("interpolate", lambda x: F.interpolate(x, size=(4, 9), mode="bicubic", antialias=True), IMAGE),
    case("interpolate", lambda x: F.interpolate(x, size=4), IMAGE),
    case("pixel_shuffle", lambda x: F.pixel_shuffle(x, 2), IMAGE),
    case("view_as_complex", lambda x: torch.view_as_complex(x).real, (3, 2), strided=False),
    case("view_as_real", lambda x: torch.view_as_real(torch.complex(normal(3), normal(3)) * x), (3,)),
    case("get real", lambda x: (torch.complex(normal(3), normal(3)) * x).real, (3,)),
    case("get imag", lambda x: (torch.complex(normal(3), normal(3)) * x).imag, (3,)),
    case("pad", lambda x: F.pad(x, (1, 2), value=3.0), M),
    case("pad", lambda x: F.pad(x, (1, 2), mode="reflect"), (2, 3, 4)),
    case("cat", lambda x, y: torch.cat([x, y], 1), M, M),
    case("cat", lambda x: torch.cat(tensors=(normal(2, 4), x, normal(1, 4)), dim=0), M),
    case("cat", lambda x: torch.cat([x.float(), normal(1, 4)]), M, digits=1e-6),
    case("stack", lambda x, y: torch.stack([x, y], dim=1), M, M),
    case("stack", lambda x: torch.stack([normal(*M), x]), M),
    case("stack", lambda x: torch.stack(x.max(1)[:1]), M),
    case("hstack", lambda x, y: torch.hstack([x, y]), M, M),
    case("vstack", lambda x: torch.vstack([x, normal(*M)]), M),
    case("masked_fill", lambda x: x.masked_fill(MASK, -1e9), M),
    case("masked_fill", lambda x: x.masked_fill(mask=MASK, value=torch.tensor(2.0)), M),
    case("masked_fill", lambda x, y: x.masked_fill(MASK, y), M, ()),
    case("masked_fill", lambda y: normal(*M).masked_fill(MASK, y), ()),
    case("where", lambda x, y: torch.where(MASK, x, y), M, V),
    case("where", lambda x: torch.where(MASK, 2.0, x), M),
    case("where", lambda x: x.where(MASK, torch.tensor(0.0)), M),
    case("where", lambda x: normal(*M).where(MASK, x), M),
    case("where", lambda x: torch.where(MASK, input=x, other=torch.tensor(1.0)), M),
    # sums and products, with broadcasting, numbers, other dtypes and every spelling
    case("add", lambda x, y: x + y, M, V),
    case("add", lambda x: 2 + x, M),
    case("add", lambda x, y: torch.add(x, y, alpha=-0.5), V, M),
    case("add", lambda x, y: torch.add(input=x, other=y, alpha=2), M, M),
    case("add", lambda x: x.add(normal(2, 3, 4)), M),
    case("add", lambda x: torch.arange(4) + x, M),
    case("add", lambda x: x.float() + normal(*M), M, digits=1e-6),
    case("sub", lambda x, y: x - y, M, V),
    case("sub", lambda x, y: torch.sub(x, y, alpha=3), M, V),
    case("sub", lambda x: normal(*M) - x, V),
    case("sub", lambda x: x.subtract(1), M),
    case("rsub", lambda x: 2 - x, M),
    case("rsub", lambda x, y: torch.rsub(x, y), M, V),
    case("mul", lambda x, y: x * y, M, V),
    case("mul", lambda x: 3 * x, M),
    case("mul", lambda x, y: torch.multiply(x, other=y), M, V),
    case("mul", lambda x: x.mul(MASK), M),
    case("div", lambda x, y: x / y, M, POS),
    case("div", lambda x: x.div(3), M),
    case("div", lambda x, y: torch.true_divide(x, y), V, POS),
    case("rdiv", lambda x: 2 / x, POS),
    case("matmul", lambda x, y: x @ y, M, W),
    case("matmul", lambda x, y: torch.matmul(x, y), (2, 3, 4), V),
    case("matmul", lambda x: normal(5, 3).__matmul__(x), M),
    case("matmul", lambda x: x.__rmatmul__(normal(5, 3)), M),
    case("mm", lambda x, y: torch.mm(x, y), M, W),
    case("bmm", lambda x, y: x.bmm(y), (2, 3, 4), (2, 4, 3)),
    case("mv", lambda x, y: x.mv(y), M, V),
    case("dot", lambda x, y: x.dot(y), V, V),
    case("pow", lambda x: x**2, M),
    case("pow", lambda x: torch.pow(x, exponent=2.5), POS),
    case("pow", lambda x, y: x**y, POS, M),
    case("pow", lambda x: 2**x, M),
    case("pow", lambda x: x**0, torch.tensor([0.0, 1.0], dtype=torch.float64)),
    case("pow", lambda x: x**1, torch.tensor([0.0, 1.0], dtype=torch.float64)),
    case("einsum", lambda x, y: torch.einsum("ij,jk->ki", x, y), M, W),
    case("einsum", lambda x, y: torch.einsum("ij,jk,ik->i", [x, y, normal(3, 3)]), M, W),
    case("einsum", lambda x: torch.einsum("ij,ij->j", x, x), M),
    case("einsum", lambda x, y: torch.einsum(x, [0, 1], y, [1, 2], [2, 0]), M, W),
    case("addmm", lambda c, x, y: torch.addmm(c, x, y, beta=0.5, alpha=2), (3,), M, W),
    case("addmm", lambda x: torch.addmm(input=normal(3, 3), mat1=x, mat2=normal(*W)), M),
    case("addmm", lambda c: torch.addmm(c, normal(*M), normal(*W)), (3,)),
    case("baddbmm", lambda c, x, y: torch.baddbmm(c, x, y), (3, 3), (2, 3, 4), (2, 4, 3)),
    case("linear", lambda x, w, b: F.linear(x, w, b), (2, 3, 4), (5, 4), (5,)),
    case("linear", lambda x, w: F.linear(x, w), V, (5, 4)),
    case("linear", lambda x, w: F.linear(x.transpose(0, 1), w), (2, 3, 4), (5, 4)),
    case("linear", lambda w: F.linear(input=normal(2, 4), weight=w, bias=normal(5)), (5, 4)),
    case("linear", lambda b: F.linear(normal(2, 3, 4), normal(5, 4), b), (5,)),
    case("linear", lambda x, b: F.linear(x, normal(5, 4), bias=b), M, (5,)),
    case("conv1d", lambda x, w, b: F.conv1d(x, w, b), (2, 4, 6), (3, 4, 3), (3,)),
    case("conv2d", lambda x, w, b: F.conv2d(x, w, b, 2, 1, groups=2), IMAGE, (6, 2, 3, 3), (6,)),
    case("conv2d", lambda x, w: F.conv2d(input=x, weight=w, padding="same"), IMAGE, (3, 4, 3, 3)),
    case("conv2d", lambda x, b: F.conv2d(x, normal(3, 4, 2, 2), bias=b), IMAGE, (3,)),
    case("conv2d", lambda x, w, b: F.conv2d(x, w, b, dilation=2), (4, 6, 6), (3, 4, 2, 2), (3,)),
    case("conv2d", lambda b: F.conv2d(normal(*IMAGE), normal(3, 4, 2, 2), b), (3,)),
    case("conv3d", lambda x, w: F.conv3d(x, w), (1, 2, 3, 3, 3), (2, 2, 2, 2, 2)),
    case("conv_transpose1d", lambda x, w: F.conv_transpose1d(x, w), (2, 4, 6), (4, 3, 2)),
    case(
        "conv_transpose2d", lambda x, w, b: F.conv_transpose2d(x, w, b, stride=2), IMAGE, (4, 3, 2, 2), (3,)
    ),
    case("conv_transpose3d", lambda x, w: F.conv_transpose3d(x, w), (1, 2, 2, 2, 2), (2, 2, 2, 2, 2)),
    case("embedding", lambda w: F.embedding(PLACES, w), M),
    case("embedding", lambda w: F.embedding(input=PLACES, weight=w, sparse=False), M),
    # functions
    *(case(name, getattr(torch, name), POS) for name in elementwise.DERIVATIVES),
    case("abs", lambda x: abs(x), M),
    case("abs", lambda x: torch.complex(x, x + 1).abs(), M),
    *(case(name, getattr(F, name), M) for name in ("relu", "silu", "mish", "hardswish", "hardsigmoid")),
    case("tanh", lambda x: x.tanh(), M),
    case("sigmoid", torch.sigmoid, M),
    case("sigmoid", lambda x: torch.sigmoid(torch.complex(x, x)).real, M),
    case("gelu", F.gelu, M),
    case("gelu", lambda x: F.gelu(x, approximate="tanh"), M),
    case("softmax", lambda x: F.softmax(x, dim=-1), M),
    case("softmax", lambda x: x.softmax(0), M),
    case("softmax", lambda x: torch.softmax(input=x, dim=1, dtype=torch.float32), M),
    case("softmax", lambda x: F.softmax(x, 1, dtype=torch.float64), M),
    case("log_softmax", lambda x: x.log_softmax(-1), M),
    case("log_softmax", lambda x: F.log_softmax(x, dim=0), M),
    # norms
    case("layer_norm", lambda x, w, b: F.layer_norm(x, (4,), w, b), M, V, V),
    case("layer_norm", lambda x: F.layer_norm(x, normalized_shape=[3, 4], eps=1e-3), (2, 3, 4)),
    case("layer_norm", lambda w: F.layer_norm(normal(*M), (4,), weight=w), V),
    case("layer_norm", lambda b: F.layer_norm(normal(*M), (4,), bias=b), V),
    case("rms_norm", lambda x, w: F.rms_norm(x, (4,), w, 1e-6), M, V),
    case("rms_norm", lambda x: F.rms_norm(x, (3, 4)), (2, 3, 4)),
    case("rms_norm", lambda w: F.rms_norm(normal(*M), (4,), w), V),
    case("group_norm", lambda x, w, b: F.group_norm(x, 2, w, b), IMAGE, V, V),
    case("group_norm", lambda x: F.group_norm(x, num_groups=1), (2, 4)),
    case("group_norm", lambda x: F.group_norm(x.transpose(1, 2), 2), (2, 3, 4)),
    case(
        "batch_norm",
        lambda x, w, b: F.batch_norm(x, normal(4), normal(4).square() + 1, w, b),
        IMAGE, V, V,
    ),
    case("batch_norm", lambda x: F.batch_norm(x, running_mean=normal(4), running_var=torch.ones(4).double()), M),
    # attention
    case("scaled_dot_product_attention", sdpa, Q, K, K),
    case("scaled_dot_product_attention", lambda q: sdpa(q, normal(*K), normal(*K)), Q),
    case("scaled_dot_product_attention", lambda k: sdpa(normal(*Q), key=k, value=normal(*K)), K),
    case("scaled_dot_product_attention", lambda v: sdpa(normal(*Q), normal(*K), v), (2, 2, 5, 3)),
    case("scaled_dot_product_attention", lambda q, k, v: sdpa(q, k, v, is_causal=True, scale=0.3), Q, Q, Q),
    case("scaled_dot_product_attention", lambda q, k, v: sdpa(q, k, v, is_causal=True), Q, K, K),
    case("scaled_dot_product_attention", lambda q, k, v: sdpa(q, k, v, MASK[:, :1].expand(3, 5)), Q, K, K),
    case(
        "scaled_dot_product_attention",  # the second row of the first example attends to nothing
        lambda q, k, v: sdpa(q, k, v, attn_mask=torch.tensor([[1], [0], [1]]).bool().expand(2, 1, 3, 5)),
        Q, K, K,
    ),
    case("scaled_dot_product_attention", lambda q, k, v: sdpa(q, k, v, normal(2, 1, 1, 5)), Q, K, K),
    case("scaled_dot_product_attention", lambda q, k, v: sdpa(q, k, v, normal(2, 3, 5)), Q, K, K),
    case("scaled_dot_product_attention", sdpa, Q, K, K, (1, 2, 3, 5)),
    case("scaled_dot_product_attention", lambda b: sdpa(normal(*Q), normal(*K), normal(*K), b), (3, 5)),
    case(
        "scaled_dot_product_attention",
        lambda q, k, v: sdpa(q, k, v, enable_gqa=True), (3, 4, 3, 4), (3, 2, 5, 4), (3, 2, 5, 4),
    ),
    case("scaled_dot_product_attention", sdpa, (3, 4), (5, 4), (5, 4)),
    case("scaled_dot_product_attention", sdpa, (2, 3, 4), (2, 5, 4), (2, 5, 4)),
    case("scaled_dot_product_attention", sdpa, (1, 2, 3, 4), K, K),
    case("scaled_dot_product_attention", sdpa, Q, (1, 1, 5, 4), K),
    # by torch's forward mode
    case("clamp", lambda x: x.clamp(-0.5, 0.5), M),
    case("clamp_min", lambda x: x.clamp_min(0.1), M),
    case("clamp_max", lambda x: x.clamp_max(0.1), M),
    case("clip", lambda x: torch.clip(x, max=0.2), M),
    case("minimum", torch.minimum, M, M),
    case("maximum", torch.maximum, M, M),
    case("max", lambda x: x.max(), M),
    case("max", lambda x: x.max(1).values, M),
    case("min", lambda x: torch.min(x, dim=0), M),
    case("topk", lambda x: x.topk(2, dim=1), M),
    case("sort", lambda x: x.sort(descending=True), M),
    case("linalg_vector_norm", lambda x: x.norm(dim=-1, keepdim=True), M),
    case("linalg_vector_norm", lambda x: torch.linalg.vector_norm(x, ord=3), M),
    case("linalg_vector_norm", lambda x: F.normalize(x, dim=-1), M),
    *(
        case(name, lambda x, name=name: getattr(x, name)(1), M)
        for name in ("logsumexp", "var", "std", "amax", "amin", "prod", "cumprod", "nansum")
    ),
    *(
        case(name, getattr(torch, name), UNIT)
        for name in ("log1p", "expm1", "tan", "atan", "asin", "acos", "sinh", "cosh", "erfc", "exp2", "sinc",
                     "frac", "nan_to_num", "selu", "celu")
    ),
    *(case(name, getattr(torch, name), POS) for name in ("log2", "log10")),
    *(case(name, getattr(torch, name), POS, POS + 0.1) for name in ("logaddexp", "atan2", "hypot")),
    *(case(name, getattr(torch, name), M, 7 * POS) for name in ("remainder", "fmod")),
    case("addcmul", lambda x, y, z: torch.addcmul(x, y, z, value=0.5), M, M, V),
    case("addcdiv", lambda x, y, z: torch.addcdiv(x, y, z), M, M, POS),
    case("lerp", lambda x, y: torch.lerp(x, y, 0.3), M, M),
    *(case(name, getattr(F, name), M) for name in ("elu", "leaky_relu", "softplus", "hardtanh", "glu", "relu6")),
    case("log_sigmoid", F.logsigmoid, M),
    case("threshold", lambda x: F.threshold(x, 0.1, 2.0), M),
    case("prelu", F.prelu, M, (1,)),
    case("outer", torch.outer, V, V),
    case("inner", torch.inner, M, M),
    case("float_power", lambda x: x.float_power(3), M),
    case("max_pool1d", lambda x: F.max_pool1d(x, 2), (2, 4, 6)),
    case("max_pool2d", lambda x: F.max_pool2d(x, 2), IMAGE),
    case("max_pool2d_with_indices", lambda x: F.max_pool2d(x, 2, return_indices=True), IMAGE),
    case("adaptive_max_pool2d", lambda x: F.adaptive_max_pool2d(x, 2), IMAGE),
    case("cosine_similarity", F.cosine_similarity, M, M),
    case("index_add", lambda x, y: x.index_add(0, torch.tensor([2, 0]), y), M, (2, 4)),
    case("scatter", lambda x, y: x.scatter(1, PLACES, y), M, (3, 2)),
    case("scatter_add", lambda x, y: x.scatter_add(1, PLACES, y), M, (3, 2)),
    case("index_put", lambda x, y: x.index_put((torch.tensor([2, 0]),), y), M, (2, 4)),
    case("bilinear", F.bilinear, (2, 3), (2, 4), (5, 3, 4), (5,)),
    case("addmv", torch.addmv, (3,), M, V),
    case("addbmm", torch.addbmm, (3, 3), (2, 3, 4), (2, 4, 3)),
    case("addr", torch.addr, M, (3,), V),
    case("instance_norm", lambda x, w, b: F.instance_norm(x, weight=w, bias=b), IMAGE, V, V),
    case("complex", lambda x, y: torch.complex(x, y).imag, M, M),
    case("broadcast_tensors", lambda x, y: torch.broadcast_tensors(x, y), M, V),
    case("meshgrid", lambda x, y: torch.meshgrid(x, y, indexing="ij"), (3,), V),
    case("tensordot", lambda x, y: torch.tensordot(x, y, 1), M, W),
    *OF_MATRICES,
]  # fmt: skip


def flat(out: Any) -> list[Any]:
    """All outputs; integers and everything else that cannot move are left out."""
    parts = out if isinstance(out, tuple | list) else (out,)
    return [part for part in parts if part.is_floating_point() or part.is_complex()]


def laid_out(tensor: Tensor, strided: bool) -> Tensor:
    """The same numbers, every second place of a larger memory if strided."""
    return torch.stack([tensor, tensor], dim=-1)[..., 0] if strided else tensor.contiguous()


def check(
    call: Callable[..., Any], inputs: tuple[Tensor, ...], layout: str = "plain", digits: float = 1e-12
) -> Trace:
    """Values, tangents in two directions, and their adjoint; the trace says which rules were used."""
    leaves = [laid_out(x, layout == "strided").requires_grad_() for x in inputs]
    deltas = [
        [
            laid_out(normal(*x.shape, seed=s + place).to(x.dtype), layout != "plain")
            for place, x in enumerate(inputs)
        ]
        for s in (50, 70)
    ]
    trace = Trace(nn.Identity(), strict=True, tape=[])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = flat(
            call(*(Dual(x, pair, trace) for x, pair in zip(leaves, zip(*deltas, strict=True), strict=True)))
        )
    for place, delta in enumerate(deltas):
        with forward_mode():
            value, tangent = torch.func.jvp(call, tuple(x.detach() for x in leaves), tuple(delta))
        for one, v, t in zip(found, flat(value), flat(tangent), strict=True):
            assert isinstance(one, Dual)
            assert one.primal.dtype == one.tangents[place].dtype == v.dtype
            same = digits if v.dtype in (torch.float64, torch.complex128) else 1e-6
            assert close(one.primal, v, same)
            assert close(one.tangents[place], t, same)
    real = [one for one in found if not one.primal.is_complex()]
    weights = [normal(*one.shape, seed=90).to(one.primal.dtype) for one in real]
    ahead = sum((w.double() * one.tangents[0].double()).sum() for w, one in zip(weights, real, strict=True))
    pulled = torch.autograd.grad([one.primal for one in real], leaves, weights)
    back = sum((g.double() * d).sum() for g, d in zip(pulled, deltas[0], strict=True))
    size = sum(w.norm() * one.tangents[0].norm() for w, one in zip(weights, real, strict=True))
    wide = all(one.primal.dtype == torch.float64 for one in real)
    assert abs(ahead - back) <= (max(digits, 1e-11) if wide else 1e-2) * size
    return trace


GROUPS = torch.tensor([1, 3, 6], dtype=torch.int32)  # where groups of rows end
# torch has no forward mode of these, or a wrong one, so that J itself, row by row, is the measure.
BY_ROWS = [
    *OF_MATRICES_BY_ROWS,
    case("embedding_bag", lambda w: F.embedding_bag(PLACES, w, mode="sum"), M),
    case(
        "embedding_bag",
        lambda w: F.embedding_bag(PLACES.flatten(), w, torch.tensor([0, 1, 4]), mode="mean"),
        M,
    ),
    case(
        "embedding_bag", lambda w, p: F.embedding_bag(PLACES, w, mode="sum", per_sample_weights=p), M, (3, 2)
    ),
    case("cdist", torch.cdist, M, (5, 4)),
    case("cdist", lambda x: torch.cdist(x, normal(5, 4), p=2.0), M),
    case("_grouped_mm", lambda x, w: F.grouped_mm(x, w, offs=GROUPS), (6, 8), (3, 8, 4), digits=1e-5),
    case(
        "_grouped_mm", lambda x: F.grouped_mm(x, normal(3, 4, 8).float().mT, offs=GROUPS), (6, 8), digits=1e-5
    ),
    case("_grouped_mm", lambda x, w: F.grouped_mm(x.mT, w, offs=GROUPS), (6, 8), (6, 4), digits=1e-5),
    case("_grouped_mm", lambda x, w: torch._grouped_mm(x, w, offs=GROUPS), (6, 8), (3, 8, 4), digits=1e-5),
]


def ids(cases: list[Case]) -> Iterator[str]:
    """The row, numbered if it has several cases."""
    seen: dict[str, int] = {}
    for one in cases:
        seen[one.row] = seen.get(one.row, 0) + 1
        yield f"{one.row}-{seen[one.row]}"


@pytest.mark.parametrize("one", CASES, ids=ids(CASES))
def test_a_rule_equals_forward_mode_and_its_adjoint_is_the_backward(one: Case) -> None:
    for layout in ("plain", "strided", "tangents strided") if one.strided else ("plain", "tangents strided"):
        trace = check(one.call, one.inputs, layout, one.digits)
        if one.call(*one.inputs) is not one.inputs[0]:  # the tensor itself is no operation
            assert one.row in {entry.name for entry in trace.tape}


@pytest.mark.parametrize("one", BY_ROWS, ids=ids(BY_ROWS))
def test_a_rule_without_a_forward_mode_equals_the_rows_of_j(one: Case) -> None:
    wide = torch.float32 if "grouped" in one.row else torch.float64
    inputs = tuple(x.to(wide) for x in one.inputs)
    deltas = [normal(*x.shape, seed=50 + place).to(wide) for place, x in enumerate(inputs)]
    trace = Trace(nn.Identity(), strict=True, tape=[])
    leaves = [x.clone().requires_grad_() for x in inputs]
    found = one.call(*(Dual(x, (delta,), trace) for x, delta in zip(leaves, deltas, strict=True)))
    assert isinstance(found, Dual)
    rows = torch.autograd.functional.jacobian(one.call, inputs)
    wanted = sum(torch.tensordot(j, delta, delta.ndim) for j, delta in zip(rows, deltas, strict=True))
    assert close(found.primal, one.call(*inputs), one.digits)
    assert close(found.tangents[0], wanted, one.digits)
    weights = normal(*found.shape, seed=90).to(wide)
    pulled = torch.autograd.grad(found.primal, leaves, weights)
    for gradient, j in zip(pulled, rows, strict=True):
        assert close(gradient, torch.tensordot(weights, j, weights.ndim), one.digits)
    assert one.row in {entry.name for entry in trace.tape}


def test_every_row_of_the_tables_is_reached_by_a_case() -> None:
    rows = {*table.RULES, *table.BY_FORWARD_MODE} - {"cuda"}  # needs the device
    assert {one.row for one in (*CASES, *BY_ROWS)} == rows
    assert not table.RULES.keys() & table.BY_FORWARD_MODE
    assert table.RULES.keys() >= table.VIEWS


@pytest.mark.parametrize("block", [1, 13, 40])
@pytest.mark.parametrize("fewest", [1, 64])
def test_attention_in_blocks_equals_attention_at_once(
    monkeypatch: pytest.MonkeyPatch, block: int, fewest: int
) -> None:
    """13: blocks of one example, or of one query; 40: a last block that is shorter."""
    monkeypatch.setitem(attention._BLOCK, "cpu", block)
    monkeypatch.setattr(attention, "_FEWEST", fewest)
    shapes = ((3, 2, 2, 4), (3, 2, 5, 4), (3, 2, 5, 4))
    q, k, v = (normal(*shape, seed=place) for place, shape in enumerate(shapes))
    for mask in (None, normal(3, 1, 2, 5), normal(1, 2, 2, 5), normal(2, 5)):
        check(lambda q, k, v, mask=mask: sdpa(q, k, v, mask), (q, k, v))
    check(sdpa, (q[:1], k, v))
    check(lambda b: sdpa(q, k, v, b), (normal(3, 2, 2, 5, seed=7),))
    check(sdpa, (q[0, 0], k[0, 0], v[0, 0]))
    wide = normal(3, 2, 5, 4, seed=8)
    for causal in ((wide, k, v), (wide[0, 0], k[0, 0], v[0, 0])):
        check(lambda q, k, v: sdpa(q, k, v, is_causal=True), causal)
    check(lambda q, k, v: sdpa(q, k, v, torch.ones(5, 5, dtype=torch.bool).tril()), (wide, k, v))


def test_memory_of_attention_grows_with_length_and_not_with_its_square() -> None:
    """The largest tensor of a tangent, causal, of one row: scores of a block, never of all queries."""
    largest = {}
    for length in (1024, 2048, 4096):
        q, k, v = (normal(1, 2, length, 4, seed=place).float() for place in range(3))
        with Sizes() as sizes:
            _, push = attention.scaled_dot_product_attention(sdpa, q, k, v, is_causal=True)
            push(q, k, v)
        largest[length] = max(sizes.seen)
    assert largest[4096] <= 1.01 * max(largest[2048], 2**20)


class Sizes(TorchDispatchMode):
    """The entries of every tensor that an operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        own = found.untyped_storage().nbytes() // found.element_size() if isinstance(found, Tensor) else 0
        self.seen.append(own)
        return found


@pytest.mark.parametrize("name", ["relu", "silu", "mish", "hardswish", "hardsigmoid", "elu", "leaky_relu"])
def test_an_inplace_option_is_obeyed(name: str) -> None:
    def call(x: Tensor) -> Tensor:
        y = x * 1
        getattr(F, name)(y, inplace=True)
        return y + 0

    check(call, (normal(*M),))


@pytest.mark.parametrize(
    "write",
    [
        lambda y: y.add_(1), lambda y: y.mul_(y + 1), lambda y: y.sub_(normal(4)), lambda y: y.div_(2),
        lambda y: y.tanh_(),
        lambda y: y.clamp_(min=0), lambda y: y.masked_fill_(MASK, 0.0), lambda y: torch.relu_(y),
        lambda y: y.__iadd__(normal(*M)), lambda y: y.__imul__(3), lambda y: F.dropout(y, 0.5, False, True),
        lambda y: y.index_add_(0, torch.tensor([0, 0]), normal(2, 4)), lambda y: y.softmax(0).exp_(),
        lambda y: y.type(torch.float64).add_(1), lambda y: y.double().mul_(2), lambda y: F.dropout(y, 0.5, False).add_(1),
    ],
)  # fmt: skip
def test_writing_into_a_tensor_of_ones_own_is_an_operation_like_any_other(
    write: Callable[[Tensor], Any],
) -> None:
    def call(x: Tensor) -> Tensor:
        y = x * 2
        z = write(y)
        return y + 3 * z

    check(call, (normal(*M),))


def alone(call: Callable[..., Any], *inputs: Tensor) -> Any:
    """The call on one-tangent duals."""
    trace = Trace(nn.Identity())
    return call(*(Dual(x.clone().requires_grad_(), (torch.ones_like(x),), trace) for x in inputs))


@pytest.mark.parametrize(
    "write",
    [
        lambda x: x.view(4, 3).add_(1), lambda x: x[0].mul_(2), lambda x: (x.detach(), x.add_(1)),
        lambda x: (F.dropout2d(x[None, None], 0.5, False), x.add_(1)),
        lambda x: x.__setitem__(0, 1.0),
        lambda x: torch.zeros(3, 4).double().add_(x), lambda x: torch.zeros(3, 4).__setitem__(0, x[0]),
        lambda x: torch.add(x, x, out=torch.empty(3, 4).double()), lambda x: x.zero_(), lambda x: x.copy_(x + 1),
        lambda x: x.t_(), lambda x: setattr(x, "data", x.detach()),
    ],
)  # fmt: skip
def test_writing_where_others_may_see_it_is_refused(write: Callable[[Tensor], Any]) -> None:
    with pytest.raises(NoRuleError):
        alone(write, normal(*M))


class Own(torch.autograd.Function):
    """Sign with a gradient of its own: a straight-through estimator."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class Reversal(Own):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x


class Tripled(Own):
    """Its backward is not its forward's, and cannot be derived a second time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 3 * gradient


@pytest.mark.parametrize("own", [Own, Reversal])
def test_a_function_with_a_backward_of_its_own_moves_as_that_backward_says(own: type[Own]) -> None:
    x = normal(*M)
    trace = Trace(nn.Identity())
    with At(nn.Identity(), {}, custom_function), pytest.warns(RuntimeWarning, match="derived once more"):
        out = own.apply(Dual(x.clone().requires_grad_(), (2 * x,), trace))
    assert torch.equal(out.primal, own.forward(None, x))
    assert torch.equal(out.tangents[0], 2 * x)


def test_a_function_that_cannot_be_derived_twice_has_no_tangent_here() -> None:
    x = normal(*M)
    with (
        At(nn.Identity(), {}, custom_function),
        pytest.raises(NotImplementedError, match="cannot be derived"),
    ):
        Tripled.apply(Dual(x.clone().requires_grad_(), (x,), Trace(nn.Identity())))


class Softmax(torch.autograd.Function):
    """A softmax whose backward is recorded, as those of attention layers with masks of their own are."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x.softmax(-1))
        return x.softmax(-1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return y * (gradient - (y * gradient).sum(-1, keepdim=True))


@pytest.mark.parametrize("rows", [1, 30, 3000])
def test_rounding_is_not_taken_for_a_backward_that_cannot_be_derived(rows: int) -> None:
    for seed in range(10):
        x, v = normal(rows, 9, seed=seed), normal(rows, 9, seed=seed + 50)
        with At(nn.Identity(), {}, custom_function), pytest.warns(RuntimeWarning, match="derived once more"):
            out: Any = Softmax.apply(Dual(x.clone().requires_grad_(), (v,), Trace(nn.Identity())))
        truth = torch.func.jvp(lambda x: x.softmax(-1), (x,), (v,))[1]
        assert torch.allclose(out.tangents[0], truth, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("op", [torch.tanh, torch.sign, Own.apply])
def test_what_runs_under_no_grad_is_a_constant(op: Callable[[Tensor], Any]) -> None:
    with At(nn.Identity(), {}, custom_function):
        assert not isinstance(alone(torch.no_grad()(op), normal(*M)), Dual)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda x: torch.batch_norm(x, torch.ones(4), torch.ones(4), x[0], x[0], False, 0.1, 1e-5, False),
            "other",
        ),
        (lambda x: torch.embedding(x, PLACES), "another order"),
        (lambda x: F.embedding(PLACES, x, max_norm=1.0), "max_norm"),
        (lambda x: F.batch_norm(x, None, None, training=True), "over the batch"),
        (lambda x: x.view(torch.int64), "dtype"),
        (lambda x: F.dropout(x, 0.5), "active"),
        (lambda x: sdpa(x, x, x, dropout_p=0.5), "dropout"),
    ],
)
def test_what_a_rule_does_not_cover_is_refused(call: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(NotImplementedError, match=message):
        alone(call, normal(*M))


CALLS: dict[str, Callable[[Tensor], Any]] = {
    "__contains__": lambda x: 1.0 in x, "__bool__": lambda x: bool(x[0, 0]), "is_nonzero": lambda x: x[0, 0].is_nonzero(),
    "__len__": len, "__hash__": hash, "__repr__": repr, "__format__": lambda x: f"{x}",
    "bucketize": lambda x: torch.bucketize(x, torch.zeros(2)),
    "searchsorted": lambda x: torch.searchsorted(torch.zeros(2).double(), x.reshape(-1)),
    "element_size": lambda x: x.element_size(), "register_hook": lambda x: x.register_hook(lambda g: g),
    "full_like": lambda x: torch.full_like(x, 2.0), "new_full": lambda x: x.new_full((2,), 1.0),
    "new_tensor": lambda x: x.new_tensor([1.0]), "floor_divide": lambda x: x // 0.3,
} | {
    name: lambda x, name=name: getattr(torch, name)(x, x + 1)
    for name in (
        "eq", "ne", "lt", "le", "gt", "ge", "greater", "greater_equal", "less", "less_equal", "not_equal", "isclose",
        "allclose", "equal", "logical_and", "logical_or", "logical_xor", "is_same_size", "result_type",
    )
} | {name: lambda x, name=name: getattr(x, name)((2, 3)) for name in ("new_zeros", "new_ones", "new_empty")}  # fmt: skip


@pytest.mark.parametrize("name", sorted(table.WITHOUT_TANGENT))
def test_what_does_not_move_is_plain(name: str) -> None:
    default = getattr(torch, name) if not hasattr(Tensor, name) else lambda x: getattr(x, name)()
    out = alone(CALLS.get(name, default), normal(*M))
    assert not isinstance(out, Dual)


@pytest.mark.parametrize(
    "name", ["shape", "dtype", "device", "requires_grad", "grad_fn", "data", "is_cuda", "_version"]
)
def test_properties_are_those_of_the_value(name: str) -> None:
    found: list[Any] = []
    alone(lambda x: found.extend((getattr(x, name), getattr(x.primal, name))), normal(*M))
    first, second = found
    assert type(first) is type(second)
    assert torch.equal(first, second) if isinstance(first, Tensor) else first == second


@pytest.mark.parametrize("name", sorted(table.READS - {"__index__"}))
def test_a_number_read_off_a_tensor_is_a_constant_as_for_autograd(name: str) -> None:
    x = normal(*M)
    assert alone(lambda x: getattr(x[0, 0], name)(), x) == getattr(x[0, 0], name)()


def test_under_no_grad_everything_is_a_constant_as_for_autograd() -> None:
    def call(x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = (x * 2).abs().amax()
        return x * scale

    x = normal(*M)
    out = alone(call, x)
    assert torch.equal(out.tangents[0], torch.ones_like(x) * (2 * x).abs().amax())


def test_integer_outputs_are_plain_and_named_tuples_stay_named() -> None:
    x = normal(*M)
    for call in (lambda x: x.max(1), lambda x: x.topk(2), lambda x: x.sort(1), lambda x: x.min(dim=0)):
        out = alone(call, x)
        assert isinstance(out.values, Dual)
        assert not isinstance(out.indices, Dual)
        assert torch.equal(out.indices, call(x).indices)
    values, places = alone(lambda x: F.max_pool2d(x[None], 2, return_indices=True), x)
    assert isinstance(values, Dual)
    assert not isinstance(places, Dual)
    assert not isinstance(alone(lambda x: x.to(torch.long), x), Dual)
    assert alone(lambda x: x.type(), x) == "torch.DoubleTensor"


def test_the_row_of_a_padding_index_moves_but_learns_nothing() -> None:
    """As in ordinary fine-tuning, and as forward mode has it."""
    weight, delta = normal(4, 3).requires_grad_(), normal(4, 3, seed=2)
    out = F.embedding(PLACES, Dual(weight, (delta,), Trace(nn.Identity())), padding_idx=0)
    assert torch.equal(out.tangents[0], delta[PLACES])
    (gradient,) = torch.autograd.grad(out.primal.sum(), weight)
    assert gradient[0].count_nonzero() == 0
    assert gradient[2].count_nonzero() == 3
