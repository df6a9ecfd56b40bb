"""An encoder without the parts that its features do not pass through: CLIP's text tower, T5's decoder."""

import copy

from torch import nn

from tauspan.core import params
from tauspan.core.arguments import checked
from tauspan.models.encoder import Encoder, Whole
from tauspan.models.home import fingerprint_of
from tauspan.models.select import state_of


@checked
def trimmed(encoder: Encoder) -> Encoder:
    """The encoder without what lies off the path to its features; names and values of the rest are shared with it.

    CLIP's text tower is needed for heads alone: build them first (`tauspan.tasks.build_head` keeps them in
    `encoder.heads`, which the trimmed encoder takes along), trim, and let go of the whole encoder. Task vectors
    are interchangeable: while its weights are those that were trimmed, the encoder has the fingerprint of the whole
    one. After an edit it has one of its own, so apply vectors to the whole encoder where the result is to be a base
    or is to be saved.

    Args:
        encoder: any encoder; one whose features need all of it comes back as it is.

    Cost:
        Two fingerprints, no copy. Of CLIP ViT-B/32 and B/16 it frees 254 MB in float32 once the whole encoder is let
        go, of L/14 495 MB; ordinary fine-tuning holds a second copy, so twice that.

    Example:
        >>> backbone = nn.ModuleDict({"image": nn.Linear(2, 2), "text": nn.Linear(2, 2)})
        >>> encoder = Encoder(backbone, lambda towers, x: towers["image"](x), prefixes=("image.",))
        >>> small = trimmed(encoder)
        >>> sorted(name for name, _ in small.backbone.named_parameters())
        ['image.bias', 'image.weight']
        >>> fingerprint_of(small) == fingerprint_of(encoder)
        True
    """
    if not encoder.prefixes or encoder.whole is not None:
        return encoder
    backbone: nn.Module = copy.copy(encoder.backbone)
    kept = {prefix.partition(".")[0] for prefix in encoder.prefixes}
    for kind in ("_modules", "_parameters"):  # the copy's own, with the same modules and tensors in them
        held = getattr(encoder.backbone, kind)
        object.__setattr__(backbone, kind, {name: entry for name, entry in held.items() if name in kept})
    made = Encoder(
        backbone, encoder.features, encoder.inputs, source=encoder.source, label_features=encoder.label_features,
        logit_scale=encoder.logit_scale, prefixes=encoder.prefixes, pooling=encoder.pooling,
    )  # fmt: skip
    made.heads, made.home = dict(encoder.heads), encoder.home
    made.frozen, made.origin = dict(encoder.frozen), encoder.origin
    made.whole = Whole(fingerprint_of(encoder), params.fingerprint(state_of(made)))
    return made
