"""Tiny float64 models of every kind that tauspan must linearise, each with inputs."""

import functools
import importlib
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from tauspan.core.params import Params
from tauspan.models import Classifier, Encoder, Head
from tauspan.models.pooling import last_token, mean_pooled
from tauspan.models.towers import image_features
from tauspan.models.vision import vision_features
from tauspan.tangent import Linearized

TEXT = {"vocab_size": 64, "max_position_embeddings": 16}
SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
IMAGE = {"image_size": 8, "patch_size": 4}


@dataclass(frozen=True)
class Example:
    """A model in eval mode and the inputs to call it with."""

    model: nn.Module
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self) -> Tensor:
        """The plain module's own output, as one tensor."""
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*nested tensors is in prototype")  # torch's encoder
            output = self.model(*self.args, **self.kwargs)
        return output if isinstance(output, Tensor) else output.logits


def importable(package: str) -> Any:
    """The package, or a skip that says why not (torchvision fails with a RuntimeError of its own here)."""
    try:
        return importlib.import_module(package)
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"{package} does not import: {error}")


def stirred(model: nn.Module, seed: int = 0, scale: float = 0.3) -> nn.Module:
    """The model in float64 eval mode, every parameter moved off its special start (zero bias, unit norm)."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def seeded(make: Callable[[], Example]) -> Callable[[], Example]:
    """The maker with a random start of its own, so that two calls make the same model."""

    @functools.wraps(make)
    def wrapped() -> Example:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return make()

    return wrapped


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tokens(rows: int = 3, length: int = 6, *, types: bool = False) -> dict[str, Tensor]:
    """A padded batch: the first row is whole, each further one shorter by two tokens."""
    ids = torch.randint(1, 40, (rows, length), generator=torch.Generator().manual_seed(2))
    mask = (torch.arange(length) < length - 2 * torch.arange(rows).unsqueeze(1)).long()
    batch = {"input_ids": ids * mask, "attention_mask": mask}
    return batch | ({"token_type_ids": torch.zeros_like(ids)} if types else {})


# -- plain torch ---------------------------------------------------------------------------------------------


@seeded
def mlp() -> Example:
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 3))
    return Example(stirred(net), (normal(5, 4),))


@seeded
def conv() -> Example:
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.GELU(), nn.Conv2d(4, 4, 3, stride=2),
        nn.GroupNorm(2, 4), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.LayerNorm(4), nn.Linear(4, 3),
    )  # fmt: skip
    net = stirred(net)
    net[1].running_mean.copy_(normal(4, seed=3))
    net[1].running_var.copy_(normal(4, seed=4).square() + 0.5)
    return Example(net, (normal(3, 2, 6, 6),))


class TorchTransformer(nn.Module):
    """`nn.TransformerEncoder`, which takes a fused path of its own in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 12, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.pool = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        states = self.encoder(x, src_key_padding_mask=padding)
        return self.pool(states[:, :1], states, states, key_padding_mask=padding, need_weights=False)[0][:, 0]


@seeded
def torch_transformer() -> Example:
    padding = tokens()["attention_mask"] == 0
    return Example(stirred(TorchTransformer()), (normal(3, 6, 8),), {"padding": padding})


class Tied(nn.Module):
    """A language model whose output matrix is its input embedding."""

    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.mix = nn.Linear(6, 6)
        self.out = nn.Linear(6, 11, bias=False)
        if tied:
            self.out.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(torch.tanh(self.mix(self.embed(ids))))


@seeded
def tied() -> Example:
    return Example(stirred(Tied()), (torch.tensor([[1, 2, 3], [4, 1, 10]]),))


# -- transformers --------------------------------------------------------------------------------------------


def bert_model(**sizes: int) -> nn.Module:
    config = transformers.BertConfig(**TEXT, **(SIZES | sizes))
    return transformers.BertModel._from_config(config, attn_implementation="sdpa", add_pooling_layer=False)


@seeded
def bert() -> Example:
    return Example(Encoder(stirred(bert_model()), mean_pooled), (tokens(types=True),))


def gpt2_model(kind: Any = transformers.GPT2Model) -> nn.Module:
    config = transformers.GPT2Config(vocab_size=64, n_positions=16, n_embd=8, n_layer=2, n_head=2)
    return kind._from_config(config, attn_implementation="sdpa")


@seeded
def gpt2() -> Example:
    return Example(Encoder(stirred(gpt2_model()), last_token), (tokens(),))


@seeded
def gpt2_lm() -> Example:
    """Called with keyword tensors, answers with a structure, and ties its output matrix to its embedding."""
    return Example(stirred(gpt2_model(transformers.GPT2LMHeadModel)), (), tokens())


def llama_model() -> nn.Module:
    config = transformers.LlamaConfig(
        **TEXT, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return transformers.LlamaModel._from_config(config, attn_implementation="sdpa")


@seeded
def llama() -> Example:
    """With torch's norm: the model's own goes through float32, see `llama_own_norm`."""
    model = llama_model()
    for name, module in list(model.named_modules()):
        if type(module).__name__ == "LlamaRMSNorm":
            model.set_submodule(name, nn.RMSNorm(8, eps=module.variance_epsilon))
    return Example(Encoder(stirred(model), last_token), (tokens(),))


@seeded
def llama_own_norm() -> Example:
    return Example(Encoder(stirred(llama_model()), last_token), (tokens(),))


def vit_model() -> nn.Module:
    config = transformers.ViTConfig(**IMAGE, **SIZES)
    return transformers.ViTModel._from_config(config, attn_implementation="sdpa")


@seeded
def vit() -> Example:
    return Example(Encoder(stirred(vit_model()), vision_features), (normal(3, 3, 8, 8),))


def clip_model() -> nn.Module:
    text = {**TEXT, **SIZES, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = transformers.CLIPConfig(text_config=text, vision_config={**IMAGE, **SIZES}, projection_dim=5)
    return transformers.CLIPModel._from_config(config, attn_implementation="sdpa")


@seeded
def clip() -> Example:
    prefixes = ("vision_model.", "visual_projection.")
    return Example(Encoder(stirred(clip_model()), image_features, prefixes=prefixes), (normal(3, 3, 8, 8),))


@seeded
def timm_vit() -> Example:
    importable("torchvision")
    timm = importable("timm")
    net = timm.create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=4, embed_dim=8, depth=2, num_heads=2, num_classes=0
    )
    return Example(stirred(net), (normal(3, 3, 8, 8),))


@dataclass(frozen=True)
class Case:
    """A row of the zoo.

    Attributes:
        make: builds the example.
        digits: how far two different float64 routes to one number may differ, relatively; models that go
            through float32 inside (Llama's norm) cannot do better than 1e-6.
    """

    make: Callable[[], Example]
    digits: float = 1e-10


ZOO = {
    maker.__name__: Case(maker)
    for maker in (mlp, conv, torch_transformer, tied, bert, gpt2, gpt2_lm, llama, vit, clip, timm_vit)
} | {"llama_own_norm": Case(llama_own_norm, 1e-5)}


def classifier(example: Example, *, classes: int = 4, normalize: bool = True) -> Classifier:
    """The example's encoder (or plain module, wrapped) under a head with scale, bias and normalisation."""
    encoder = example.model if isinstance(example.model, Encoder) else Encoder(example.model)
    width = example().shape[-1]
    head = Head(normal(classes, width, seed=5), normal(classes, seed=6), scale=3.0, normalize=normalize)
    return Classifier(encoder, head).double().eval()


# -- helpers ------------------------------------------------------------------------------------------------


def direction(lin: Linearized, seed: int = 7) -> dict[str, Tensor]:
    """A random tau of unit length, with something in every tensor."""
    draw = {key: normal(*tau.shape, seed=seed + place) for place, (key, tau) in enumerate(lin.tau.items())}
    length = math.sqrt(sum(float(tensor.square().sum()) for tensor in draw.values()))
    return {key: tensor / length for key, tensor in draw.items()}


def at(lin: Linearized, tau: Params) -> Linearized:
    lin.load_state_dict(dict(tau))
    return lin


def close(first: Tensor, second: Tensor, digits: float = 1e-10) -> bool:
    """Equal up to `digits` of the larger one's largest entry."""
    first, second = first.detach(), second.detach()
    if not second.numel():
        return first.shape == second.shape
    scale = max(float(first.abs().max()), float(second.abs().max()))
    return bool((first - second).abs().max() <= digits * scale)


def all_close(first: Params, second: Params, digits: float = 1e-10) -> bool:
    """Each tensor to `digits` of the largest entry of all, and no name on one side only."""
    filled = {key: tensor for key, tensor in second.items() if tensor.numel()}
    scale = max(float(tensor.abs().max()) for tensor in filled.values())
    gaps = {key: float((first[key] - second[key]).abs().max()) for key in filled}
    return first.keys() == second.keys() and scale > 0 and max(gaps.values()) <= digits * scale
