"""What is known of a dataset beside its pixels: channels, source, licence."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

CHANNELS = ("pre-contrast", "FLAIR", "post-contrast")
"""The channels of the LGG dataset, in the order of its files."""


class About(BaseModel):
    """What a report says of a dataset.

    Attributes:
        name: Its name.
        source: Who made it, and where it is from.
        licence: Its licence, in a sentence.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = ""
    source: str = ""
    licence: str = ""


LGG = About(
    name="LGG MRI Segmentation",
    source="Mateusz Buda; TCGA-LGG through TCIA",
    licence="CC BY-NC-SA 4.0",
)
