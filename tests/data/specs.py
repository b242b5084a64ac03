"""The spec of the data sets that the tests of this folder share."""

from roofscale.data.synthetic import GenerateSpec

SMALL = GenerateSpec(
    datasets=("rid", "roofline", "airs"),
    train=9,
    val=3,
    test=2,
    image_px=96,
    roofline_px=64,
    roofline_samples=20,
    airs_tiles=(2, 1, 1),
    airs_tile_px=272,
)
