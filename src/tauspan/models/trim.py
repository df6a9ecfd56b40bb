"""An encoder without the parts that its features do not use: CLIP's text tower, T5's decoder."""

import copy

from torch import nn

from tauspan.core import params
from tauspan.core.arguments import checked
from tauspan.models.encoder import Encoder, Whole
from tauspan.models.home import fingerprint_of, own_state


@checked
def trimmed(encoder: Encoder) -> Encoder:
    """The encoder without the parts that its features do not use; the rest keeps its names and shares its tensors.

    CLIP's text tower is needed only to build heads. Build them first (`tauspan.tasks.build_head` keeps them in
    `encoder.heads`, which the trimmed encoder copies), then trim, then delete the whole encoder.

    Task vectors fit both encoders: while its weights are unchanged, the trimmed encoder has the fingerprint of the whole
    encoder. After an edit it has a fingerprint of its own, so apply vectors to the whole encoder if the result is to be
    saved or to be the base of other vectors.

    Args:
        encoder: any encoder; if its features need all of its parts, it is returned unchanged.

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
    for kind in ("_modules", "_parameters"):  # new dicts that hold the same modules and tensors
        held = getattr(encoder.backbone, kind)
        object.__setattr__(backbone, kind, {name: entry for name, entry in held.items() if name in kept})
    made = Encoder(
        backbone, encoder.features, encoder.inputs, source=encoder.source, label_features=encoder.label_features,
        logit_scale=encoder.logit_scale, prefixes=encoder.prefixes, pooling=encoder.pooling,
    )  # fmt: skip
    made.heads, made.home = dict(encoder.heads), encoder.home
    made.frozen, made.origin, made.added = dict(encoder.frozen), encoder.origin, encoder.added
    made.whole = Whole(fingerprint_of(encoder), params.fingerprint(own_state(made)))
    return made
