"""Real samples of an imdb.mat that are appended to the generated ones, so that one file has both."""

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roofscale.data import roofline
from roofscale.data.synthetic.spec import GenerateSpec
from roofscale.errors import ConfigError


@dataclass(frozen=True)
class RealSamples:
    """An imdb.mat of real samples that is joined to generated Roofline samples."""

    file: Path
    samples: int
    sha256: str  # of the file: the same content is the same data set, in any folder

    @classmethod
    def of(cls, file: Path, spec: GenerateSpec) -> "RealSamples":
        """Check an imdb.mat by reading every sample of it, as training does.

        Raises:
            ConfigError: the spec has no Roofline, the file does not exist, or its images are of another size.
            FileError: the file is not an imdb.mat, or has invalid values.
        """
        if "roofline" not in spec.datasets:
            raise ConfigError(
                f"--join {file}: joins an imdb.mat to generated Roofline samples; expected roofline among the data "
                f"sets ({', '.join(spec.datasets)}). Name it, or leave --join out."
            )
        if not file.is_file():
            raise ConfigError(f"--join {file}: there is no such file; expected an imdb.mat with real samples.")
        source = roofline.open_file(file)
        for index in range(len(source)):
            height, width = source.read(index).image_HWC.shape[:2]
            if (height, width) != (spec.roofline_px, spec.roofline_px):
                raise ConfigError(
                    f"--join {file}: its images are {width}x{height} px, the generated ones "
                    f"{spec.roofline_px}x{spec.roofline_px}; one file holds one size. Generate that size."
                )
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return cls(file, len(source), digest)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for the note; without the path, which holds for this machine only."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key != "file"}

    def copy_into(self, imdb: Any, start: int) -> None:
        """Copy the samples unchanged into an open HDF5 group from row ``start`` on; depths too if there are any."""
        import h5py

        with h5py.File(self.file, "r") as handle:
            for name in ("images", "elements", "depths"):
                if name in handle["imdb"]:
                    for row in range(self.samples):
                        imdb[name][start + row] = handle["imdb"][name][row]
