"""Which class of edited model serves a regime."""

from tauspan.core.choices import EditRegime
from tauspan.core.reading import Reading
from tauspan.editing.model.directions import Directions
from tauspan.editing.model.edited import EditedModel
from tauspan.editing.model.ordinary import OrdinaryModel
from tauspan.editing.model.tangent import TangentModel
from tauspan.models import Encoder

MODELS: tuple[type[EditedModel], ...] = (OrdinaryModel, TangentModel)


def model_kind(regime: EditRegime) -> type[EditedModel]:
    """The class that edits in a regime."""
    (kind,) = (kind for kind in MODELS if regime in kind.regimes)
    return kind


def edited_model(
    encoder: Encoder,
    directions: Directions,
    regime: EditRegime,
    reading: Reading = Reading(),
    ahead: bool = False,
) -> EditedModel:
    """The edited model of a regime; see `EditedModel`."""
    return model_kind(regime)(encoder, directions, regime, reading, ahead)
