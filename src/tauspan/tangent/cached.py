"""A decoder's tangents token by token: keys and values are cached together with their tangents."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from tauspan.core.errors import ModelError
from tauspan.core.params import Params
from tauspan.models import eval_mode
from tauspan.models.extras import require_extra
from tauspan.models.intact import Intact
from tauspan.tangent.engine.call import Call
from tauspan.tangent.engine.dual import Dual, Trace
from tauspan.tangent.engine.engines import OnePass
from tauspan.tangent.engine.precision import far, rounding


class CachedTangents:
    """The last states of one text and their tangents in several directions, one token after the other.

    A key of the cache is a dual tensor: f's own key, and beside it J_k tau_t for each direction. A later token reads
    both, so its states and tangents are those of the whole text without computing it again. What is cached depends on the
    directions, and not on coefficients. A sequence-to-sequence model's encoder reads its source once; the decoder caches
    the keys and values that it makes of the encoder's states in the same way.

    Args:
        module: a model of transformers that takes `past_key_values`.
        theta0: the parameters that the directions move.
        taus: the directions.
        check: compare the first token after the prompt with a pass over the whole text.
        source: what a sequence-to-sequence model's encoder reads; empty for a decoder alone.

    Cost:
        For each token 1 + 2 T times an ordinary one in products, T directions; and 1 + T caches.
    """

    def __init__(
        self, module: nn.Module, theta0: Params, taus: Sequence[Params], check: bool, source: Mapping[str, Tensor]
    ) -> None:  # fmt: skip
        self._module, self._taus, self._check = module, taus, check
        self._device = next(iter(theta0.values())).device
        self._source = {name: tensor.to(self._device) for name, tensor in source.items()}
        self._theta0 = {name: theta.detach() for name, theta in theta0.items()}
        self._known = dict(module.named_parameters())
        self._intact, self._engine = Intact(module), OnePass(module, False, (), set())
        self._cache: Any = None
        self._read: Any = None  # what the encoder gave
        self._ids = torch.zeros(1, 0, dtype=torch.long)

    def read(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Go on with further tokens, ids of shape (n,).

        Returns:
            The state of the last one, shape (d,), and its tangents, shape (T, d).

        Raises:
            ModelError: the model takes no cache, or its cache gives other states than the whole text.
        """
        first = self._cache is None
        if first:
            self._cache = self._empty()
        self._ids = torch.cat([self._ids, ids[None].cpu()], 1)
        value, tangents = self._pass(ids[None], self._cache)
        if not first and self._check:
            self._require_same(value, tangents)
            self._check = False
        return value, tangents

    def _empty(self) -> Any:
        """A cache without a token; of a sequence-to-sequence model, the encoder reads the source for it."""
        transformers = require_extra("transformers", "transformers", "decoding")
        config = getattr(self._module, "config", None)
        if not self._source:
            return transformers.DynamicCache(config=config)
        encoder = _Encoder(self._module)
        known = dict(encoder.named_parameters())
        parameters = {name: known[f"model.{name}"] for name in self._theta0}
        call = Call(encoder, (), self._source, parameters, "model.", Intact(encoder))
        value, tangents = self._jvps(call)
        states = Dual(value, list(tangents), Trace(encoder, False, self._engine.told))
        self._read = transformers.modeling_outputs.BaseModelOutput(last_hidden_state=states)
        return transformers.EncoderDecoderCache(*(transformers.DynamicCache(config=config) for _ in range(2)))

    def _pass(self, ids: Tensor, cache: Any) -> tuple[Tensor, Tensor]:
        """The state of the last token of `ids` after what is cached, and its tangents."""
        inputs = {"past_key_values": cache, "use_cache": cache is not None}
        if self._source:
            inputs |= {
                "decoder_input_ids": ids.to(self._device),
                "attention_mask": self._source["attention_mask"],
            }
            inputs |= {"encoder_outputs": self._read} if cache is not None else self._source
        else:
            inputs["input_ids"] = ids.to(self._device)
        parameters = {name: self._known[name] for name in self._theta0}
        value, tangents = self._jvps(Call(self._module, (), inputs, parameters, "", self._intact))
        return value[0, -1].detach(), tangents[:, 0, -1].detach()

    def _jvps(self, call: Call) -> tuple[Tensor, Tensor]:
        with torch.no_grad(), eval_mode(self._module):
            return self._engine.jvps(call, self._theta0, self._taus)

    def _require_same(self, value: Tensor, tangents: Tensor) -> None:
        """Raise unless the whole text, without a cache, gives the same."""
        whole = self._pass(self._ids, None)
        near = rounding(value.dtype)
        if far(value, whole[0], near) or far(tangents, whole[1], near):
            raise ModelError(
                f"{type(self._module).__name__} gives other states with its cache of keys and values than for the "
                "whole text: "
                "it cannot decode token by token. Evaluate whole texts instead."
            )


class _Encoder(nn.Module):
    """The encoder of a sequence-to-sequence model, with the names of the whole."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Tensor) -> Tensor:
        """Its last states."""
        states: Tensor = cast(Any, self.model).get_encoder()(**inputs).last_hidden_state
        return states
