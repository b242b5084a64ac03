"""Dataset cards: authors, download address, licence, citation and size of each of the three data sets.

No download was tried when the cards were written, as no data server could be reached; each card lists what is
unverified. No checksum of an archive is published, so there is none here; RID's release contains one of each file
(``Checksums.sha256``), which ``fetch`` compares.
"""

from dataclasses import dataclass

from roofscale.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class DatasetCard:
    """What a user needs to know to get, use and cite a data set."""

    name: str  # of DATASETS
    title: str
    authors: str
    year: int
    landing: str  # the page to start from: terms, description, download
    direct: str  # address of the download; empty: none, it takes an account or a click
    by_hand: str  # how a user gets it if ``direct`` is empty or fails
    licence: str
    citation: str
    size: str
    unverified: tuple[str, ...]

    @property
    def short(self) -> str:
        """Title, first author and year, such as 'RID (Krapf et al. 2022)'."""
        return f"{self.title} ({self.authors.partition(',')[0]} et al. {self.year})"

    def where(self, root: str) -> str:
        """Return how to get the data set into a data root, with its licence."""
        command = f"`roofscale data fetch {self.name} {root}` downloads it"
        how = command if self.direct else self.by_hand.replace("FOLDER", root)
        return f"{self.short}, {self.landing}; {how}. Licence: {self.licence}."


CATALOGUE: dict[str, DatasetCard] = {
    "rid": DatasetCard(
        name="rid",
        title="RID, Roof Information Dataset",
        authors="Krapf, Bogenrieder, Netzler, Balke, Lienkamp",
        year=2022,
        landing="https://doi.org/10.14459/2022mp1655470",
        direct="https://dataserv.ub.tum.de/s/m1655470/download",
        by_hand="that page (https://mediatum.ub.tum.de/1655470) leads to the download and gives an rsync address",
        licence="CC BY-NC (from the release's README_data.md); imagery Google, for non-commercial use",
        citation=(
            "Krapf, S.; Bogenrieder, L.; Netzler, F.; Balke, G.; Lienkamp, M. RID-Roof Information Dataset for "
            "Computer Vision-Based Photovoltaic Potential Assessment. Remote Sens. 2022, 14(10), 2299. "
            "https://doi.org/10.3390/rs14102299"
        ),
        size="1880 images, 0.79 MB each, so over 1.5 GB",
        unverified=(
            "the direct address: taken from public code that quotes the DOI's page; it seems to pack the whole "
            "share into one archive as it sends it, so its size is not known beforehand and a download that breaks off "
            "may begin anew",
            "the licence's version (4.0 is reported)",
        ),
    ),
    "roofline": DatasetCard(
        name="roofline",
        title="Roofline-Extraction",
        authors="Alidoost, Arefi, Tombari",
        year=2019,
        landing="https://github.com/loosgagnet/Roofline-Extraction",
        direct=(
            "https://drive.usercontent.google.com/download?id=1eg4d6quqKbrtj1hKkuhzV4F4EChZnqKt&export=download&confirm=t"
        ),
        by_hand="the repository's README links the file on Google Drive",
        licence="none stated in its repository, so ask the authors before you pass it on",
        citation=(
            "Alidoost, F.; Arefi, H.; Tombari, F. 2D Image-To-3D Model: Knowledge-Based 3D Building Reconstruction "
            "(3DBR) Using Single Aerial Images and Convolutional Neural Networks (CNNs). Remote Sens. 2019, "
            "11(19), 2219. https://doi.org/10.3390/rs11192219"
        ),
        size="1670 images of 224 px, about 455 MB to download",
        unverified=(
            "the direct address: the file's id is the README's, the form is the one by which Google Drive serves large "
            "files without its question about viruses",
            "whether the file is the imdb.mat itself or an archive of it",
        ),
    ),
    "airs": DatasetCard(
        name="airs",
        title="AIRS, Aerial Imagery for Roof Segmentation",
        authors="Chen, Wang, Wu, Wu, Guo, Waslander",
        year=2019,
        landing="https://www.airs-dataset.com",
        direct="",
        by_hand=(  # ``where`` replaces FOLDER by the data root
            "its page, or with an account https://www.kaggle.com/datasets/atilol/aerialimageryforroofsegmentation; "
            "then unpack it into FOLDER/airs, or name an address: `roofscale data fetch airs FOLDER --url ...`"
        ),
        licence="reported as CC BY 4.0, unverified; imagery LINZ, to be attributed",
        citation=(
            "Chen, Q.; Wang, L.; Wu, Y.; Wu, G.; Guo, Z.; Waslander, S.L. Aerial imagery for roof segmentation: A "
            "large-scale dataset towards automatic mapping of buildings. ISPRS J. Photogramm. Remote Sens. 2019, 147, "
            "42-55. https://arxiv.org/abs/1807.09532"
        ),
        size="1046 tiles of 10000 px, about 19 GB to download",
        unverified=(
            "the licence, whether its page is still there, and the size (that of the copy on Kaggle, as reported)",
        ),
    ),
}


def dataset_card(name: str) -> DatasetCard:
    """Return the card of a data set.

    Raises:
        ConfigError: there is no data set of this name.
    """
    if name not in CATALOGUE:
        raise ConfigError(f"data set {name!r}: expected {', '.join(CATALOGUE)}.{did_you_mean(name, CATALOGUE)}")
    return CATALOGUE[name]
