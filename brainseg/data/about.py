"""What is known of a dataset beside its pixels: channels, source, licence, patients, outlines."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from brainseg.storage.values import Checked

CHANNELS = ("pre-contrast", "FLAIR", "post-contrast")
"""The channels of the LGG dataset, in the order of its files."""

FLAIR = 1
"""The channel on which the true masks of the LGG dataset were drawn."""

Text = Annotated[str, Field(max_length=2_000)]


class About(Checked):
    """What a report says of a dataset, each in a sentence or two; empty if not known.

    Attributes:
        name: Its name.
        source: Who made it, and where it is from.
        licence: Its licence.
        eligibility: Who was included and who was not.
        setting: Where patients were recruited: how many centres, of which kind.
        dates: When they were recruited and scanned.
        acquisition: Scanners and sequences.
        reference_standard: How the outlines were made, by whom, and who checked them.
        readers_agreement: How well readers agree on such outlines.
        ethics: Who approved the collection, and what patients consented to.
    """

    name: Text = ""
    source: Text = ""
    licence: Text = ""
    eligibility: Text = ""
    setting: Text = ""
    dates: Text = ""
    acquisition: Text = ""
    reference_standard: Text = ""
    readers_agreement: Text = ""
    ethics: Text = ""


# Only what a public source says: the dataset's own README, the abstract of Buda et al. 2019, and
# the author's page. They name neither the scanners, nor who outlined, nor an ethics committee.
LGG = About(
    name="LGG MRI Segmentation",
    source="Mateusz Buda; TCGA-LGG through TCIA",
    licence="CC BY-NC-SA 4.0",
    eligibility="Patients of the TCGA lower-grade glioma collection with a FLAIR sequence and "
    "genomic cluster data (README of the dataset).",
    setting="The whole dataset has 110 patients of five institutions, imaged before surgery "
    "(Buda et al. 2019, arXiv:1906.03720).",
    reference_standard="The FLAIR abnormality, outlined by hand on the FLAIR sequence (README of "
    "the dataset).",
    readers_agreement="Two expert readers of this kind of tumour agree with a Dice of 0.84, "
    "standard deviation 0.02, as cited by the dataset's author "
    "(mateuszbuda.github.io/2017/12/01/brainseg.html).",
)


def shown_channel(count: int) -> int:
    """Return which of so many channels pictures show: FLAIR of three, else the first."""
    return FLAIR if count == len(CHANNELS) else 0
