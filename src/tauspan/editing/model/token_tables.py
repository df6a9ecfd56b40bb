"""Vectors that move a language model's token table: its tangent logits stay affine in the coefficients."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tauspan import models
from tauspan.core.params import Params
from tauspan.models import Encoder
from tauspan.models.language import Language
from tauspan.tangent.contributions import Contributions
from tauspan.vector import TaskVector


def moving_table(vector: TaskVector, encoder: Encoder, base: str) -> Params:
    """What a vector moves, whole, by names in memory; nothing of a small one whose space is without the token table.

    Args:
        vector: of the encoder, or of a small space of it.
        encoder: a language model, in a space or in none.
        base: its fingerprint.
    """
    language, space = encoder.language, vector.space
    if space is None:
        return vector.fitted(encoder, base=base).deltas
    if language is None or not {*language.names} & {*space.names}:
        return {}
    return vector.fitted(models.unrestricted(encoder), base=base).deltas


@dataclass(frozen=True, eq=False)
class Tables:
    """The tables of directions beside that of theta0.

    Logits of a language model are W h + b, and their tangent along tau is W dh + dW h + db: that of the states through
    the table as it is, and that of the table at the states as they are. With the states s(a) = [h + sum_t a_t dh_t,
    a_1 h, ..., a_T h], affine in a, and the table [W, dW_1, ..., dW_T], logits are table s(a) + b. A table with b has
    [h, 1] and [dW_t, db_t] in place of h and dW_t. So all logits are never held, and losses, gradients and curvature are
    those of any other states.

    Args:
        language: the language model with that table.
        moving: the directions that move the table, in the order of their blocks.

    Cost:
        States of 1 + M times the width for M directions that move the table.
    """

    language: Language
    moving: tuple[str, ...]

    @staticmethod
    def of(language: Language, directions: Mapping[str, Params]) -> "Tables":
        """Of displacements by name, under names in memory."""
        moves = {name: language.move(deltas) for name, deltas in directions.items()}
        found = {name: move for name, move in moves.items() if move is not None}
        if not found:
            return Tables(language, ())
        own = language.table.weight
        wide = torch.cat([own, *(move.to(own.device) for move in found.values())], 1)
        return Tables(replace(language, table=replace(language.table, weight=wide)), tuple(found))

    def beside(self, part: Contributions) -> Contributions:
        """Contributions to states h as those to the wider states s."""
        if not self.moving:
            return part
        table = self.language.table
        states = part.value.view(len(part), part.objective.inputs * table.length, -1)
        block = states if table.bias is None else torch.cat([states, torch.ones_like(states[:, :, :1])], -1)
        nothing = torch.zeros_like(block)

        def wider(own: Tensor, direction: str | None) -> Tensor:
            blocks = [block if name == direction else nothing for name in self.moving]
            return torch.cat([own.view_as(states), *blocks], -1).flatten(1)

        tangents = [wider(own, name) for name, own in zip(part.names, part.tangents, strict=True)]
        return replace(part, value=wider(part.value, None), tangents=torch.stack(tangents))
