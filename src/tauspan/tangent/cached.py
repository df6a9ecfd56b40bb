"""A decoder's tangents token by token: keys and values are cached together with their tangents."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tauspan.core.errors import ModelError
from tauspan.core.params import Params
from tauspan.models import eval_mode
from tauspan.models.extras import require_extra
from tauspan.models.intact import Intact
from tauspan.tangent.engine.call import Call
from tauspan.tangent.engine.engines import OnePass
from tauspan.tangent.engine.precision import far, rounding


class CachedTangents:
    """The last states of one text and their tangents in several directions, one token after the other.

    A key of the cache is a dual tensor: f's own key, and beside it J_k tau_t for each direction. A later token reads
    both, so its states and tangents are those of the whole text without computing it again. What is cached depends on the
    directions, and not on coefficients.

    Args:
        module: a decoder of transformers, which takes `past_key_values`.
        theta0: the parameters that the directions move.
        taus: the directions.
        check: compare the first token after the prompt with a pass over the whole text.

    Cost:
        For each token 1 + 2 T times an ordinary one in products, T directions; and 1 + T caches.
    """

    def __init__(self, module: nn.Module, theta0: Params, taus: Sequence[Params], check: bool) -> None:
        self._module, self._taus, self._check = module, taus, check
        self._theta0 = {name: theta.detach() for name, theta in theta0.items()}
        self._known = dict(module.named_parameters())
        self._intact, self._engine = Intact(module), OnePass(module, False, (), set())
        self._cache: Any = None
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
            cache = require_extra("transformers", "transformers", "decoding").DynamicCache
            self._cache = cache(config=getattr(self._module, "config", None))
        self._ids = torch.cat([self._ids, ids[None].cpu()], 1)
        value, tangents = self._pass(ids[None], self._cache)
        if not first and self._check:
            self._require_same(value, tangents)
            self._check = False
        return value, tangents

    def _pass(self, ids: Tensor, cache: Any) -> tuple[Tensor, Tensor]:
        """The state of the last token of `ids` after what is cached, and its tangents."""
        inputs = {
            "input_ids": ids.to(next(iter(self._theta0.values())).device),
            "past_key_values": cache,
            "use_cache": cache is not None,
        }
        parameters = {name: self._known[name] for name in self._theta0}
        call = Call(self._module, (), inputs, parameters, "", self._intact)
        with torch.no_grad(), eval_mode(self._module):
            value, tangents = self._engine.jvps(call, self._theta0, self._taus)
        return value[0, -1].detach(), tangents[:, 0, -1].detach()

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
