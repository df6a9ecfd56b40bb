"""Which rule belongs to which operation, and how an operation is recognised under its several names."""

import inspect
from functools import lru_cache
from typing import Any

from torch import Tensor

from tauspan.tangent.engine import decompositions, elementwise, norms, products, rules
from tauspan.tangent.engine.attention import scaled_dot_product_attention
from tauspan.tangent.engine.rules import Rule


@lru_cache(maxsize=256)
def _signature(rule: Rule) -> tuple[tuple[inspect.Parameter, ...], frozenset[str], bool, bool]:
    """The positional parameters of a rule, its keyword-only names, and whether it takes *args or **kwargs."""
    known = list(inspect.signature(rule).parameters.values())[1:]
    return (
        tuple(p for p in known if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)),
        frozenset(p.name for p in known if p.kind is p.KEYWORD_ONLY),
        any(p.kind is p.VAR_POSITIONAL for p in known),
        any(p.kind is p.VAR_KEYWORD for p in known),
    )


# torch's own names for the first two arguments, where a rule has other names for them.
_TORCH_NAMES = ("input", "other")


def bound(
    rule: Rule, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """The arguments in the rule's own order; None if the rule does not know one, or misses one."""
    parameters, options, more_positional, more_names = _signature(rule)
    positional, named = list(args), dict(kwargs)
    if len(positional) > len(parameters) and not more_positional:
        return None
    for index, parameter in list(enumerate(parameters))[len(positional) :]:
        name = parameter.name if parameter.name in named or index > 1 else _TORCH_NAMES[index]
        if name in named and parameter.kind is not parameter.POSITIONAL_ONLY:
            positional.append(named.pop(name))
        elif parameter.default is not parameter.empty:
            positional.append(parameter.default)
        else:
            return None
    if not more_names and not named.keys() <= options:
        return None
    return tuple(positional), named


def asks(name: str) -> bool:
    """Whether this reads a property without a tangent: any property without a rule."""
    return name.startswith("get ") and name not in RULES


def moves(value: Any) -> bool:
    """Whether an output can have a tangent: only floating-point and complex tensors can."""
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def name_of(func: Any) -> str:
    """One name for a function, its method and its operator: add for torch.add, Tensor.add and `+`."""
    name: str = getattr(func, "__name__", str(func))
    if name == "__get__":
        return f"get {func.__self__.__name__}"
    return _OPERATORS.get(name, name)


_OPERATORS = {
    # torch.special has second names of these
    "special_expit": "sigmoid", "special_erf": "erf", "special_softmax": "softmax", "special_log_softmax": "log_softmax",
    "special_logsumexp": "logsumexp", "special_expm1": "expm1", "special_log1p": "log1p",
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
    "view", "view_as", "reshape", "reshape_as", "transpose", "swapaxes", "swapdims", "permute", "movedim", "moveaxis",
    "t", "get T", "get mT", "get H", "get mH", "adjoint", "unsqueeze", "squeeze", "flatten", "unflatten", "expand",
    "expand_as", "broadcast_to", "narrow", "select", "getitem", "split", "split_with_sizes", "tensor_split", "chunk",
    "unbind", "diagonal", "unfold", "ravel", "to", "contiguous", "float", "double", "type_as", "dropout",
})  # fmt: skip
_RESHAPED = ("view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "ravel")
_SAME = ("contiguous", "clone", "to", "float", "double", "half", "bfloat16", "type_as", "type", "cpu", "cuda")
_ALONG = (VIEWS - {*_RESHAPED, *_SAME, "dropout"}) | {
    "neg", "sum", "mean", "cumsum", "flip", "roll", "repeat", "repeat_interleave", "tile", "index_select", "gather",
    "take_along_dim", "masked_select", "tril", "triu", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d",
    "adaptive_avg_pool2d", "interpolate", "pixel_shuffle", "rot90", "sum_to_size", "trace", "deg2rad", "fold",
    "view_as_real", "get real", "get imag", "real", "imag", "conj", "conj_physical", "resolve_conj", "resolve_neg",
    "diag", "diag_embed",
    *(f"fft_{kind}{n}" for kind in ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft") for n in ("", "2", "n")),
    "fft_fftshift", "fft_ifftshift",
}  # fmt: skip

RULES: dict[str, Rule] = {
    **dict.fromkeys(_ALONG, rules.along),
    **dict.fromkeys(_RESHAPED, rules.viewed),
    **dict.fromkeys(_SAME, rules.same),
    **{name: elementwise.derived(name) for name in elementwise.DERIVATIVES},
    **{name: elementwise.kernel(name) for name in elementwise.KERNELS},
    **{f"conv{kind}{n}d": products.convolution for kind in ("", "_transpose") for n in (1, 2, 3)},
    "view_as_complex": rules.as_complex,
    "cat": rules.concatenated,
    "stack": rules.concatenated,
    "hstack": rules.concatenated,
    "vstack": rules.concatenated,
    "pad": rules.padded,
    "masked_fill": rules.masked_fill,
    "where": rules.where,
    "dropout": rules.dropout,
    "feature_dropout": rules.dropout,
    "alpha_dropout": rules.dropout,
    "add": products.added,
    "sub": products.subtracted,
    "rsub": products.subtracted_from,
    "mul": products.product,
    "matmul": products.product,
    "mm": products.product,
    "bmm": products.product,
    "mv": products.product,
    "dot": products.product,
    "vdot": products.product,
    "kron": products.product,
    "cross": products.product,
    "linalg_cross": products.product,
    "linalg_vecdot": products.product,
    "div": products.divided,
    "rdiv": products.divided_by,
    "pow": products.power,
    "einsum": products.einsum,
    "addmm": products.with_addend,
    "baddbmm": products.with_addend,
    "linear": products.linear,
    "_grouped_mm": products.grouped,
    "embedding": products.embedding,
    "embedding_bag": products.embedding_bag,
    "cdist": products.distances,
    "gelu": elementwise.gelu,
    "softmax": elementwise.softmax,
    "log_softmax": elementwise.log_softmax,
    "layer_norm": norms.layer_norm,
    "rms_norm": norms.rms_norm,
    "group_norm": norms.group_norm,
    "batch_norm": norms.batch_norm,
    "scaled_dot_product_attention": scaled_dot_product_attention,
    "inverse": decompositions.inverse,
    "linalg_inv": decompositions.inverse,
    "cholesky_inverse": decompositions.inverse_of_factor,
    "linalg_solve": decompositions.solution,
    "logdet": decompositions.log_determinant,
    "slogdet": decompositions.sign_and_log_determinant,
    "linalg_slogdet": decompositions.sign_and_log_determinant,
    "linalg_eigh": decompositions.eigenpairs,
    "linalg_eigvalsh": decompositions.eigenvalues,
}

# Small operations for which torch's forward mode is as good as a rule of our own.
BY_FORWARD_MODE = frozenset({
    "clamp", "clamp_min", "clamp_max", "clip", "minimum", "maximum", "linalg_vector_norm", "logsumexp", "max",
    "min", "topk", "sort", "var", "std", "amax", "amin", "prod", "cumprod", "addcmul", "addcdiv", "lerp", "elu",
    "leaky_relu", "softplus", "hardtanh", "log1p", "expm1", "tan", "atan", "asin", "acos", "sinh", "cosh", "erfc",
    "exp2", "log2", "log10", "log_sigmoid", "sinc", "logaddexp", "atan2", "hypot", "threshold", "prelu", "outer",
    "float_power", "max_pool1d", "max_pool2d", "max_pool2d_with_indices", "adaptive_max_pool2d",
    "cosine_similarity", "index_add", "scatter", "scatter_add", "bilinear", "inner", "addmv", "addbmm",
    "addr", "instance_norm", "complex", "frac", "remainder", "fmod", "nan_to_num", "nansum", "glu",
    "broadcast_tensors", "meshgrid", "tensordot", "index_put", "selu", "celu", "relu6",
    # complex numbers and spectra
    "polar", "angle", "sgn", "stft", "istft",
    # scans and scattered reductions
    "logcumsumexp", "cummax", "cummin", "diff", "scatter_reduce", "diagonal_scatter",
    # matrices
    "det", "linalg_det", "linalg_cholesky", "cholesky_solve", "linalg_solve_triangular", "linalg_qr",
    "svd", "linalg_svd", "linalg_svdvals", "linalg_eig", "linalg_eigvals", "linalg_pinv", "pinverse", "linalg_lstsq",
    "matrix_exp", "linalg_matrix_exp", "matrix_power", "linalg_matrix_power", "linalg_lu", "linalg_lu_factor",
    "linalg_lu_solve", "linalg_householder_product", "linalg_multi_dot", "linalg_matrix_norm", "linalg_norm",
})  # fmt: skip

# Operations that do not depend on the values, or only in steps: their result is that of the primal.
WITHOUT_TANGENT = frozenset({
    "size", "dim", "ndimension", "numel", "nelement", "stride", "storage_offset", "element_size", "is_contiguous",
    "is_floating_point", "is_complex", "is_signed", "get_device", "__len__", "__hash__", "__repr__", "__format__",
    "detach", "is_inference", "is_same_size", "is_nonzero", "__bool__", "__contains__", "register_hook",
    "eq", "ne", "lt", "le", "gt", "ge", "greater", "greater_equal", "less", "less_equal", "not_equal", "isnan", "isinf",
    "isfinite", "isclose", "allclose", "equal", "argmax", "argmin", "argsort", "count_nonzero", "nonzero",
    "searchsorted", "bucketize", "any", "all", "logical_not", "logical_and", "logical_or", "logical_xor", "sign",
    "signbit", "floor", "ceil", "round", "trunc", "floor_divide", "bool", "int", "long", "short", "char", "byte",
    "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "new_zeros", "new_ones",
    "new_empty", "new_full", "new_tensor", "result_type",
})  # fmt: skip

# A number read off a tensor is a constant, as for ordinary autograd.
READS = frozenset(
    {"item", "tolist", "numpy", "__float__", "__int__", "__index__", "__array__", "__complex__"}
)

# What writes into a tensor by assignment; in-place operations, whose names end in `_`, are told by their names.
WRITES = frozenset({"__setitem__", "__set__"})

# Derivatives that a module takes in its own forward.
DERIVES = frozenset({"grad", "backward", "jacobian", "hessian", "vjp", "jvp"})
