"""Encoders from timm and open_clip directories (`hf-hub:` and `local-dir:` ids); both need torchvision."""

import math
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tauspan import store
from tauspan.errors import ModelError
from tauspan.models.encoder import Batch, Encoder, Inputs
from tauspan.models.sources import require_extra, require_weights

_OPEN_CLIP_CONFIG = "open_clip_config.json"


def load(directory: Path, source: str) -> Encoder:
    """The encoder of a timm or open_clip directory; which of the two is read off its configuration file."""
    require_weights(directory)
    if (directory / _OPEN_CLIP_CONFIG).is_file():
        return _open_clip(directory, source)
    return _timm(directory, source)


def _timm(directory: Path, source: str) -> Encoder:
    timm = require_extra("timm", "timm", f"loading {source!r}")
    config = store.read_json(directory / "config.json")
    if "architecture" not in config:
        raise ModelError(f"{directory}/config.json has no `architecture`: it is not a directory that timm wrote.")
    model = timm.create_model(config["architecture"], pretrained=False, num_classes=0, **config.get("model_args", {}))
    weights = store.Checkpoint(directory).read()
    wanted = model.state_dict()
    missing = sorted(set(wanted) - set(weights))
    if missing:
        raise ModelError(f"{directory} lacks {len(missing)} weights of {config['architecture']}, first {missing[0]!r}.")
    model.load_state_dict({name: weights[name] for name in wanted})
    data = config.get("pretrained_cfg", {})
    size = data.get("input_size", (3, 224, 224))[-1]
    inputs = Inputs("image", None, size, tuple(data.get("mean", (0.5,) * 3)), tuple(data.get("std", (0.5,) * 3)))
    return Encoder(model.eval(), inputs=inputs, source=source)


def _open_clip(directory: Path, source: str) -> Encoder:
    open_clip = require_extra("open_clip", "open-clip", f"loading {source!r}")
    name = f"local-dir:{directory}"
    model = open_clip.create_model(name, precision="fp32").eval()
    tokenizer = open_clip.get_tokenizer(name)
    data = store.read_json(directory / _OPEN_CLIP_CONFIG).get("preprocess_cfg", {})
    half = (0.5, 0.5, 0.5)
    size = model.visual.image_size
    size = size if isinstance(size, int) else size[0]

    def tokens(prompts: list[str], **_: Any) -> dict[str, Tensor]:
        ids: Tensor = tokenizer(prompts)
        return {"input_ids": ids}

    return Encoder(
        model,
        _open_clip_image,
        Inputs("image", tokens, size, tuple(data.get("mean", half)), tuple(data.get("std", half))),
        source=source,
        label_features=_open_clip_text,
        logit_scale=math.exp(float(model.logit_scale)),
        prefixes=("visual.",),
    )


def _open_clip_image(model: nn.Module, batch: Batch) -> Tensor:
    encode: Any = model.encode_image
    features: Tensor = encode(batch)
    return features


def _open_clip_text(model: nn.Module, batch: Batch) -> Tensor:
    encode: Any = model.encode_text
    features: Tensor = encode(batch["input_ids"])
    return features
