"""Writes an exploration as one HTML page, with its figures and numbers beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure
from tqdm import tqdm

from brainseg.config import NUM_FOLDS
from brainseg.document import (
    Block,
    Bullets,
    Document,
    Paragraph,
    Section,
    Table,
    facts_table,
    format_number,
    to_html,
)
from brainseg.document import Figure as PageFigure
from brainseg.explore import figures
from brainseg.explore.exploration import Exploration
from brainseg.explore.measurements import AIR, Row

_DPI = 110


class FigureSpec(NamedTuple):
    """A figure of the page that is not drawn yet.

    Attributes:
        name: The name of its section and of its file.
        title: The heading of its section.
        alt: A description for readers who cannot see it.
        caption: What to look at and how it was made.
        draw: Draws it.
    """

    name: str
    title: str
    alt: str
    caption: str
    draw: Callable[[], Figure]


def write_page(exploration: Exploration, folder: Path) -> None:
    """Write explore.html, the figures in figures/, and explore.json.

    Args:
        exploration: The results.
        folder: An existing folder.
    """
    specs = list_figures(exploration)
    (folder / "figures").mkdir()
    for spec in tqdm(specs, desc="drawing", unit="figure", disable=None):
        spec.draw().savefig(folder / "figures" / f"{spec.name}.png", dpi=_DPI)
    page = to_html(build_document(exploration, specs), folder)
    (folder / "explore.html").write_text(page, encoding="utf-8")
    (folder / "explore.json").write_text(exploration.to_json(), encoding="utf-8")


def build_document(exploration: Exploration, specs: list[FigureSpec]) -> Document:
    """Build the page from an exploration and the figures of `list_figures`."""
    card = exploration.card
    tables = {
        "splits": _split_blocks(exploration),
        "covariates": _covariate_blocks(exploration),
    }
    sections = [
        Section("numbers", "Key numbers", [facts_table("The dataset", _facts(card))]),
        Section("quality", "Quality", [Bullets(exploration.findings)]),
    ]
    for name, title, alt, caption, _ in specs:
        figure = PageFigure(f"figures/{name}.png", alt, caption)
        sections.append(Section(name, title, [figure, *tables.pop(name, [])]))
    sections += [Section(name, name.capitalize(), blocks) for name, blocks in tables.items()]
    return Document(
        title=f"{card['root']}: {card['patients']} patients, {card['slices']:,} slices",
        facts=f"data fingerprint {card['fingerprint']}",
        labels=["SYNTHETIC DATA: generated phantoms, not patients"] if card["synthetic"] else [],
        sentence=exploration.summary[0],
        points=exploration.summary[1:],
        sections=sections,
        footer="The numbers are in explore.json, the figures in figures/. Pictures of slices "
        "carry the licence of the dataset. Not for clinical use.",
    )


def list_figures(exploration: Exploration) -> list[FigureSpec]:
    """Return the figures in the order of the page."""
    data, found, card = exploration.data, exploration.found, exploration.card
    patients, seed = exploration.patients, exploration.seed
    example = figures.choose_example(data)
    name = data.slices[example].name
    shown = found.channels[found.shown]
    outline = f"The true mask is outlined in blue over {shown}, whose brightest pixels are white."
    specs = [
        FigureSpec(
            "samples",
            "Random slices",
            "Twelve slices chosen at random, eight with tumour outlined, four without",
            f"Chosen with seed {seed}. {outline}",
            lambda: figures.draw_samples(data, seed),
        ),
        FigureSpec(
            "patients",
            "Patients",
            f"Bars of slices per patient, {card['slices_per_patient']['min']:.0f} to "
            f"{card['slices_per_patient']['max']:.0f}, the part with tumour coloured by site",
            "Slices without tumour are grey. The site is the second part of a patient's name.",
            lambda: figures.draw_patients(patients),
        ),
        FigureSpec(
            "areas",
            "Tumour areas",
            f"Histogram of tumour areas with a median of {card['area']['median']:,.0f} pixels, "
            "and each patient's tumour share in ascending order",
            "Left: slices with tumour, on a logarithmic axis. Right: the share of a patient's "
            "pixels that is tumour; the files do not hold the slice thickness.",
            lambda: figures.draw_areas(found, patients),
        ),
        FigureSpec(
            "extremes",
            "Smallest and largest tumours",
            "Six slices with the smallest tumours above six with the largest, one a patient",
            f"Each row has one slice per patient. {outline}",
            lambda: figures.draw_extremes(data),
        ),
        FigureSpec(
            "components",
            "Components",
            f"{card['components']:,} components: how many a mask has, their areas, and how "
            "elongated their boxes are",
            "Pixels that touch at a corner belong to one component.",
            lambda: figures.draw_components(found),
        ),
        FigureSpec(
            "positions",
            "Positions",
            "Heat map of tumour pixels over the mean head, centres of mass, and positions along "
            "the stack of slices",
            f"The grey head is the mean {shown} of all slices, its front at the top.",
            lambda: figures.draw_positions(data, found),
        ),
        FigureSpec(
            "intensities",
            "Intensities of tumour and tissue",
            "Histograms of levels per sequence, of tumour pixels and of the rest of the head",
            f"Slices with tumour only. Levels below {AIR} are air.",
            lambda: figures.draw_intensities(found),
        ),
        FigureSpec(
            "slice_intensities",
            "Intensities of slices",
            "Mean level and spread of every slice per sequence, with and without tumour",
            "A point is a slice, air included. Clusters are scanners and sites, not tumours.",
            lambda: figures.draw_slice_intensities(found),
        ),
        FigureSpec(
            "augmentation",
            "Augmentation",
            "One slice at strengths 0, 1 and 2, each in five epochs of training",
            f"{name} as training sees it. Strength 1 is the protocol. {outline}",
            lambda: figures.draw_augmentation(data, example, seed),
        ),
        FigureSpec(
            "preprocessing",
            "Preprocessing",
            "One slice raw and after median filter and CLAHE at five clip limits, with the "
            f"histograms of its {shown} levels",
            f"{name}. Each clip limit follows a median filter of 3 x 3. Three channels are shown "
            "as red, green and blue.",
            lambda: figures.draw_preprocessing(data, example, found.shown),
        ),
    ]
    if all("error" not in row for row in exploration.splits):
        specs.append(
            FigureSpec(
                "splits",
                "Splits",
                "Share of slices with tumour in train, val and test of ten rotations",
                "Folds hold whole patients, so that the shares differ a little.",
                lambda: figures.draw_splits(exploration.splits),
            )
        )
    if exploration.covariates:
        specs.append(
            FigureSpec(
                "covariates",
                "Covariates",
                "Tumour share against each column of data.csv, groups with their medians",
                "Codes are those of data.csv, with the number of patients in brackets; a line is "
                "a median. The p-values here are not adjusted; the table has both.",
                lambda: figures.draw_covariates(exploration.covariates),
            )
        )
    return specs


def _facts(card: Row) -> dict[str, str]:
    return {
        "patients": f"{card['patients']}",
        "sites": ", ".join(f"{count} {site}" for site, count in card["sites"].items()),
        "slices": f"{card['slices']:,} of {card['side']} x {card['side']} pixels"
        if card["sizes"] == 1
        else f"{card['slices']:,} of {card['sizes']} sizes, at most {card['side']} pixels long",
        "slices with tumour": f"{card['tumour_slices']:,} ({card['tumour_slice_share']:.1%})",
        "slices without": f"{card['tumour_free_slices']:,} ({1 - card['tumour_slice_share']:.1%})",
        "tumour pixels": f"{card['tumour_pixel_share']:.2%}",
        "median tumour area": f"{card['area']['median']:,.0f} pixels",
        "lacking a sequence": f"{sum(n for key, n in card['missing'].items() if key)} patients",
    }


def _split_blocks(exploration: Exploration) -> list[Block]:
    rows: list[dict[str, str]] = []
    errors: list[str] = []
    for rotation in range(NUM_FOLDS):
        parts = [row for row in exploration.splits if row["rotation"] == rotation]
        if "error" in parts[0]:
            errors.append(f"Rotation {rotation} cannot be built: {parts[0]['error']}.")
            continue
        cells = {"rotation": str(rotation)}
        for row in parts:
            cells[f"{row['part']} patients"] = str(row["patients"])
            cells[f"{row['part']} slices"] = f"{row['slices']:,}"
            cells[f"{row['part']} with tumour"] = f"{row['tumour_share']:.1%}"
        shared = sum(row["shared_patients"] for row in parts)
        rows.append(cells | {"patients in two parts": str(shared)})
    caption = "Every rotation, built again and checked; rotation 0 is the protocol's split"
    blocks: list[Block] = [Table(caption, rows)] if rows else []
    return [*blocks, Bullets(errors)] if errors else blocks


def _covariate_blocks(exploration: Exploration) -> list[Block]:
    rows = [
        {
            "column": covariate.name,
            "patients": str(len(covariate.patients)),
            "values": str(covariate.patients["value"].nunique()),
            "test": covariate.test or "too few per group",
            "p": format_number(covariate.p_value),
            "adjusted p": format_number(covariate.adjusted),
        }
        for covariate in exploration.covariates
    ]
    caption = (
        "The share of a patient's pixels that is tumour against each column; p adjusted after "
        "Benjamini and Hochberg"
    )
    return (
        [Table(caption, rows)]
        if rows
        else [Paragraph("No column on patients (site, data.csv) has two values.")]
    )
