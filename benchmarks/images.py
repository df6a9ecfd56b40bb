"""Reading images: one thread against all, as an epoch reads them."""

import tempfile
from pathlib import Path

import torch
from benchmarks.rows import Row, Setting, row
from benchmarks.timing import interleaved, ratio, spread
from PIL import Image
from torch.nn.functional import interpolate

from tauspan.models.encoder import Inputs
from tauspan.tasks.images import Files, Images

SIZE = (375, 500)  # height and width of a common photograph in the data sets


def images(setting: Setting, count: int = 64) -> list[Row]:
    """JPEG photographs to a CLIP's batch: decoded, resized, cropped, normalised."""
    inputs = Inputs("image", size=224)

    def read(threads: int) -> None:
        torch.set_num_threads(threads)
        try:
            inputs.encode(files)
        finally:
            torch.set_num_threads(setting.threads)

    with tempfile.TemporaryDirectory() as folder:
        files = _photographs(Path(folder), count)
        taken = interleaved({"one": lambda: read(1), "all": lambda: read(setting.threads)}, setting.rounds)
        kilobytes = sum(map(len, files.contents())) / count / 1024
    alone = spread([1000 * sample.wall / count for sample in taken["one"]])
    note = f"JPEG of {SIZE[1]} x {SIZE[0]} pixels and {kilobytes:.0f} KB, to 224 x 224"
    return [
        row("images: one image read, one thread", alone, setting, unit="ms", note=note),
        row(f"images: {setting.threads} threads / one", ratio(taken, "all", "one"), setting),
    ]


def _photographs(folder: Path, count: int) -> Images:
    """Smooth noise, which compresses about as a photograph does."""
    draw = torch.Generator().manual_seed(0)
    for place in range(count):
        coarse = torch.rand(1, 3, 24, 32, generator=draw)
        smooth = interpolate(coarse, SIZE, mode="bicubic").clamp(0, 1)[0].permute(1, 2, 0)
        noise = 0.05 * torch.randn(*SIZE, 3, generator=draw)
        pixels = ((smooth + noise).clamp(0, 1) * 255).to(torch.uint8).numpy()
        Image.fromarray(pixels).save(folder / f"{place}.jpg", quality=85)
    return Images(Files(folder, [f"{place}.jpg" for place in range(count)]))
