"""Models by the names of the paper: hub ids pinned to a commit that holds safetensors, sizes, and how a batch is cut."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """A pre-trained model of the paper.

    Args:
        source: what `tauspan.load` takes; the commit is pinned, and for the base models it is the safetensors conversion,
            since their main branch holds a pickle.
        download_gb: the weights' size, text tower included.
        parameters: of the image encoder, which trains.
        batch_size, accumulation: 128 rows per step, in one forward pass or two.
    """

    source: str
    download_gb: float
    parameters: int
    batch_size: int = 128
    accumulation: int = 1


PRESETS = {
    "ViT-B-32": Preset(
        "openai/clip-vit-base-patch32@d15b5f29721ca72dac15f8526b284be910de18be", 0.61, 87_849_216
    ),
    "ViT-B-16": Preset(
        "openai/clip-vit-base-patch16@51a6c117565eb6399c5120cfd137b7858c27b738", 0.60, 86_192_640
    ),
    "ViT-L-14": Preset(
        "openai/clip-vit-large-patch14@32bd64288804d66eefd0ccbe215aa642df71cc41", 1.71, 303_966_208, 64, 2
    ),
    "ViT-B-16-IN21k": Preset(
        "google/vit-base-patch16-224-in21k@b4569560a39a0f1af58e3ddaf17facf20ab919b0", 0.35, 85_798_656
    ),
}
