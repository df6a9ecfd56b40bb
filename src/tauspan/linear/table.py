"""Which rule belongs to which operation, and how an operation is recognised under its several names."""

import inspect
from functools import lru_cache
from typing import Any

from tauspan.linear import norms, rules
from tauspan.linear.attention import scaled_dot_product_attention
from tauspan.linear.rules import DERIVATIVES, KERNELS, Rule


@lru_cache(maxsize=256)
def _signature(rule: Rule) -> tuple[tuple[str, Any], ...] | None:
    """Names and defaults of the arguments that a rule spells out; None if it takes whatever comes."""
    known = list(inspect.signature(rule).parameters.values())[1:]
    if any(one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD, one.KEYWORD_ONLY) for one in known):
        return None
    return tuple((one.name, one.default) for one in known)


def bound(
    rule: Rule, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments in the rule's own order, where it spells them out."""
    known = _signature(rule)
    if known is None or not kwargs:
        return args, kwargs
    named = dict(kwargs)
    if "input" in named:
        named[known[0][0]] = named.pop("input")
    rest = [named.pop(name, default) for name, default in known[len(args) :]]
    if named:
        raise NotImplementedError(f"a tangent rule for the options {', '.join(named)}")
    return (*args, *rest), {}


def name_of(func: Any) -> str:
    """One name for a function, its method and its operator: add for torch.add, Tensor.add and `+`."""
    name: str = getattr(func, "__name__", str(func))
    if name == "__get__":
        return f"get {func.__self__.__name__}"
    return _OPERATORS.get(name, name)


_OPERATORS = {
    "__add__": "add", "__radd__": "add", "__iadd__": "add_", "__sub__": "sub", "__rsub__": "rsub",
    "__isub__": "sub_",
    "__mul__": "mul", "__rmul__": "mul", "__imul__": "mul_", "__truediv__": "div", "__div__": "div",
    "__itruediv__": "div_",
    "__rdiv__": "rdiv", "__rtruediv__": "rdiv", "__matmul__": "matmul", "__rmatmul__": "matmul",
    "__neg__": "neg",
    "__pow__": "pow", "__getitem__": "getitem", "__abs__": "abs", "subtract": "sub", "multiply": "mul",
    "divide": "div",
    "true_divide": "div", "negative": "neg", "absolute": "abs", "concat": "cat", "concatenate": "cat",
}  # fmt: skip

VIEWS = frozenset({
    "view", "view_as", "reshape", "reshape_as", "transpose", "swapaxes", "swapdims", "permute", "movedim",
    "moveaxis", "t",
    "get T", "get mT", "unsqueeze", "squeeze", "flatten", "unflatten", "expand", "expand_as", "broadcast_to",
    "narrow", "select",
    "getitem", "split", "split_with_sizes", "tensor_split", "chunk", "unbind", "diagonal", "unfold", "ravel",
    "to",
    "contiguous", "float", "double", "type_as", "dropout",
})  # fmt: skip
_RESHAPED = ("view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "ravel")
_SAME = (
    "contiguous",
    "clone",
    "to",
    "float",
    "double",
    "half",
    "bfloat16",
    "type_as",
    "type",
    "alpha_dropout",
)
_ALONG = (VIEWS - {*_RESHAPED, *_SAME, "dropout"}) | {
    "neg", "sum", "mean", "cumsum", "flip", "roll", "repeat", "repeat_interleave", "tile", "index_select",
    "gather",
    "take_along_dim", "masked_select", "tril", "triu", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "_adaptive_avg_pool2d", "interpolate", "pixel_shuffle", "rot90", "sum_to_size", "trace", "nansum",
    "deg2rad",
    "upsample_bicubic2d", "upsample_bilinear2d", "upsample_nearest2d", "_upsample_bicubic2d_aa",
    "_upsample_bilinear2d_aa",
}  # fmt: skip

RULES: dict[str, Rule] = {
    **dict.fromkeys(_ALONG, rules.along),
    **dict.fromkeys(_RESHAPED, rules.viewed),
    **dict.fromkeys(_SAME, rules.same),
    **{name: rules.elementwise(name) for name in DERIVATIVES},
    **{name: rules.kernel(name) for name in KERNELS},
    **{f"conv{kind}{n}d": rules.convolution for kind in ("", "_transpose") for n in (1, 2, 3)},
    "cat": rules.concatenated,
    "stack": rules.concatenated,
    "pad": rules.padded,
    "masked_fill": rules.masked_fill,
    "where": rules.where,
    "dropout": rules.dropout,
    "feature_dropout": rules.dropout,
    "add": rules.added,
    "sub": rules.subtracted,
    "rsub": rules.subtracted_from,
    "mul": rules.product,
    "matmul": rules.product,
    "mm": rules.product,
    "bmm": rules.product,
    "mv": rules.product,
    "dot": rules.product,
    "div": rules.divided,
    "rdiv": rules.divided_by,
    "pow": rules.power,
    "einsum": rules.einsum,
    "addmm": rules.with_addend,
    "baddbmm": rules.with_addend,
    "linear": rules.linear,
    "embedding": rules.embedding,
    "gelu": rules.gelu,
    "softmax": rules.softmax,
    "log_softmax": rules.log_softmax,
    "layer_norm": norms.layer_norm,
    "rms_norm": norms.rms_norm,
    "group_norm": norms.group_norm,
    "batch_norm": norms.batch_norm,
    "scaled_dot_product_attention": scaled_dot_product_attention,
}

# Small operations for which torch's forward mode is as good as a rule of our own.
BY_FORWARD_MODE = frozenset({
    "clamp", "clamp_min", "clamp_max", "clip", "minimum", "maximum", "norm", "vector_norm",
    "linalg_vector_norm", "logsumexp",
    "var", "std", "amax", "amin", "prod", "cumprod", "addcmul", "addcdiv", "lerp", "elu", "leaky_relu",
    "softplus", "selu",
    "celu", "hardtanh", "relu6", "log1p", "expm1", "tan", "atan", "asin", "acos", "sinh", "cosh", "erfc",
    "exp2", "log2",
    "log10", "logsigmoid", "log_sigmoid", "softmin", "sinc", "logaddexp", "atan2", "hypot", "threshold",
    "prelu", "outer",
    "float_power", "__rpow__", "max_pool2d", "adaptive_max_pool2d", "cosine_similarity", "index_add",
    "scatter", "scatter_add",
    "bilinear", "cross", "inner", "addmv", "addbmm", "addr", "instance_norm", "cdist", "frac", "nan_to_num",
})  # fmt: skip

# What does not depend on the values, or only in steps: the answer is that of the primal.
WITHOUT_TANGENT = frozenset({
    *(f"get {name}" for name in (
        "shape", "dtype", "device", "ndim", "layout", "requires_grad", "is_leaf", "grad_fn", "grad",
        "is_cuda", "is_cpu",
        "is_meta", "is_nested", "is_quantized", "is_sparse", "is_mps", "is_xpu", "itemsize", "nbytes",
        "names", "data",
        "is_mkldnn", "is_sparse_csr", "_version", "output_nr", "retains_grad",
    )),
    "size", "dim", "ndimension", "numel", "nelement", "stride", "storage_offset", "element_size",
    "is_contiguous",
    "is_floating_point", "is_complex", "is_signed", "get_device", "__len__", "__hash__", "__repr__",
    "__str__", "__format__",
    "detach", "has_names", "is_inference", "is_same_size", "is_nonzero", "__bool__", "__contains__",
    "eq", "ne", "lt", "le", "gt", "ge", "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "isnan",
    "isinf",
    "isfinite", "isclose", "allclose", "equal", "argmax", "argmin", "argsort", "count_nonzero", "nonzero",
    "searchsorted",
    "bucketize", "any", "all", "logical_not", "logical_and", "logical_or", "sign", "sgn", "signbit", "floor",
    "ceil", "round",
    "trunc", "bool", "int", "long", "short", "char", "byte", "one_hot",
    "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "new_zeros", "new_ones",
    "new_empty",
    "new_full", "new_tensor", "result_type", "promote_types", "can_cast", "__index__",
})  # fmt: skip

# Reading a number off a tensor drops its derivative.
READS = frozenset({"item", "tolist", "numpy", "__float__", "__int__", "__array__", "__complex__"})
