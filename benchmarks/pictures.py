"""Draw the pictures of the documentation from the code as it is.

``python -m benchmarks.pictures`` writes ``docs/images/generated.jpg``: two generated images of RID and two of Roofline,
above their masks, as the README shows them.
"""

import argparse
import tempfile
from pathlib import Path

import cv2
import numpy as np

from benchmarks.measure import ROOT
from roofscale.config import RunConfig
from roofscale.data.sample import CHANNELS, Pixels, Sample
from roofscale.data.sources import open_sources
from roofscale.data.synthetic import GenerateSpec, generate

IMAGES = ROOT / "docs" / "images"
SIDE_PX, SHOWN_PX, BORDER_PX = 512, 300, 4
COLOURS = {"roof": (66, 135, 245), "eave": (250, 204, 21), "ridge": (239, 68, 68), "hip": (34, 197, 94)}  # RGB
JPEG_QUALITY = 90


def generated_images(seed: int) -> Pixels:
    """Draw two images of RID and two of Roofline above their masks, uint8 RGB of shape HWC."""
    spec = GenerateSpec(("rid", "roofline"), 2, 1, 0, roofline_samples=20, roofline_px=SIDE_PX, seed=seed)
    config = RunConfig(datasets=spec.datasets, max_samples=2)
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder), spec)
        samples = [split.train.read(n) for split in open_sources(config, Path(folder)).values() for n in (0, 1)]
    rows = ([sample.image_HWC for sample in samples], [_labelled(sample) for sample in samples])
    return cv2.vconcat([cv2.hconcat([_shown(image) for image in row]) for row in rows])


def _labelled(sample: Sample) -> Pixels:
    """Return the image, paler, with the channels of its mask in colour."""
    drawn = (sample.image_HWC // 3 + 150).astype(np.uint8)
    for index, channel in enumerate(CHANNELS):
        drawn[sample.target_HWK[:, :, index] > 0] = COLOURS[channel]
    return drawn


def _shown(image_HWC: Pixels) -> Pixels:
    """Return an image in the size of the picture, with a white border."""
    small = cv2.resize(image_HWC, (SHOWN_PX, SHOWN_PX), interpolation=cv2.INTER_AREA)
    return cv2.copyMakeBorder(small, *(4 * (BORDER_PX,)), cv2.BORDER_CONSTANT, value=(255, 255, 255))


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=IMAGES)
    asked = parser.parse_args()
    file = asked.folder / "generated.jpg"
    drawn = cv2.cvtColor(generated_images(asked.seed), cv2.COLOR_RGB2BGR)
    if not cv2.imwrite(str(file), drawn, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]):
        raise OSError(f"{file}: could not be written")
    print(file)


if __name__ == "__main__":
    main()
