"""An exploration as one self-contained HTML page: sentences, tables, figures with alt texts."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from brainseg.config import NUM_FOLDS, DataConfig
from brainseg.data.patients import describe_patients
from brainseg.data.slice_store import SliceStore
from brainseg.data.split import PARTS
from brainseg.explore import figures as charts
from brainseg.explore import figures as sheets
from brainseg.explore.measurements import AIR, Covariate, Survey, compare, read_table, survey
from brainseg.explore.quality import (
    check_quality,
    describe_dataset,
    summarise_in_words,
    verify_splits,
)

SYNTHETIC = "SYNTHETIC DATA: generated phantoms. No number here says anything about patients."


class Exhibit(NamedTuple):
    """A figure: its file's name, a heading, what is to be seen in words, how it was made."""

    name: str
    heading: str
    alt: str
    note: str
    draw: Callable[[], Figure]


def list_exhibits(exploration: Exploration) -> list[Exhibit]:
    """Return the figures in the order of the page; nothing is drawn yet."""
    data, found, card = exploration.data, exploration.found, exploration.card
    patients, seed = exploration.patients, exploration.seed
    example = sheets.choose_example(data)
    name = data.slices[example].name
    outline = (
        "The true mask is outlined in blue over FLAIR, shown with its brightest pixels white."
    )
    return [
        Exhibit(
            "samples",
            "Random slices",
            "Twelve slices chosen at random, eight with tumour outlined, four without",
            f"Chosen with seed {seed}. {outline}",
            lambda: sheets.draw_samples(data, seed),
        ),
        Exhibit(
            "patients",
            "Patients",
            f"Bars of slices per patient, {card['slices_per_patient']['min']:.0f} to "
            f"{card['slices_per_patient']['max']:.0f}, the part with tumour coloured by site",
            "Grey are slices without tumour. The site is the second part of a patient's name.",
            lambda: charts.draw_patients(patients),
        ),
        Exhibit(
            "areas",
            "Tumour areas",
            f"Histogram of tumour areas with a median of {card['area']['median']:,.0f} pixels, "
            "and each patient's tumour share in ascending order",
            "Left: slices with tumour, logarithmic. Right: the share of all of a patient's "
            "pixels, since the files do not say how thick slices are.",
            lambda: charts.draw_areas(found, patients, data.size**2),
        ),
        Exhibit(
            "extremes",
            "Smallest and largest tumours",
            "Six slices with the smallest tumours above six with the largest, one a patient",
            f"One slice a patient in each row. {outline}",
            lambda: sheets.draw_extremes(data),
        ),
        Exhibit(
            "components",
            "Components",
            f"{card['components']:,} components: how many a mask has, their areas, and how "
            "elongated their boxes are",
            "Pixels that touch at corners belong to one component.",
            lambda: charts.draw_components(found),
        ),
        Exhibit(
            "positions",
            "Positions",
            "Heat map of tumour pixels over the mean head, centres of mass, and places along "
            "the stack of slices",
            "The grey head is the mean FLAIR of all slices; the front is above.",
            lambda: charts.draw_positions(data, found),
        ),
        Exhibit(
            "intensities",
            "Intensities of tumour and tissue",
            "Histograms of levels per sequence, of tumour pixels and of the rest of the head",
            f"Slices with tumour only; levels below {AIR} are air.",
            lambda: charts.draw_intensities(found),
        ),
        Exhibit(
            "slice_intensities",
            "Intensities of slices",
            "Mean level and spread of every slice per sequence, with and without tumour",
            "A point is a slice, air included. Clusters are scanners and sites, not tumours.",
            lambda: charts.draw_slice_intensities(found),
        ),
        Exhibit(
            "augmentation",
            "What augmentation does",
            "One slice at strengths 0, 1 and 2, each in five epochs of training",
            f"{name}, as training sees it; strength 1 is the protocol. {outline}",
            lambda: sheets.draw_augmentation(data, example, seed),
        ),
        Exhibit(
            "preprocessing",
            "What preprocessing does",
            "One slice raw and after median filter and CLAHE at five clip limits, with the "
            "histograms of its FLAIR levels",
            f"{name}. Each clip limit after a median filter of 3 x 3; all three sequences are "
            "shown as red, green and blue.",
            lambda: sheets.draw_preprocessing(data, example),
        ),
    ]


def list_late_exhibits(exploration: Exploration) -> list[Exhibit]:
    """Return the figures that stand beside tables: of the splits, and of data.csv."""
    exhibits = []
    if all("error" not in row for row in exploration.splits):
        exhibits.append(
            Exhibit(
                "splits",
                "Splits",
                "Share of slices with tumour in train, val and test of ten rotations",
                "Folds are dealt by patient, so shares differ a little.",
                lambda: charts.draw_splits(exploration.splits),
            )
        )
    if exploration.covariates:
        exhibits.append(
            Exhibit(
                "covariates",
                "Covariates and tumour size",
                "Tumour share against each column of data.csv, groups with their medians",
                "Codes as data.csv has them, number of patients in brackets; a line is a median. "
                "p-values are not adjusted here, the table has both.",
                lambda: charts.draw_covariates(exploration.covariates, exploration.sizes),
            )
        )
    return exhibits


def compose_page(exploration: Exploration, figures: Mapping[str, bytes]) -> str:
    """Return the page.

    Args:
        exploration: The measures.
        figures: Name of an exhibit -> the bytes of its PNG.
    """
    card = exploration.card
    early, late = list_exhibits(exploration), list_late_exhibits(exploration)
    anchors = [(e.name, e.heading) for e in (*early, *late)]
    blocks = [
        f"<h1>{escape(card['root'])}: {card['patients']} patients, {card['slices']:,} slices</h1>",
        f'<p class="warning">{SYNTHETIC}</p>' if card["synthetic"] else "",
        _tiles(card),
        '<h2 id="summary">In words</h2>' + _list(exploration.summary),
        "<nav>" + " · ".join(f'<a href="#{n}">{escape(h)}</a>' for n, h in anchors) + "</nav>",
        '<h2 id="quality">Quality</h2>' + _list(exploration.findings),
        *(_figure(exhibit, figures[exhibit.name]) for exhibit in early),
        *(_figure(exhibit, figures[exhibit.name]) for exhibit in late if exhibit.name == "splits"),
        _split_table(exploration.splits),
        *(_figure(e, figures[e.name]) for e in late if e.name == "covariates"),
        _covariate_table(exploration),
        f"<footer>Data fingerprint <code>{card['fingerprint']}</code>. Numbers in "
        "<code>explore.json</code>, figures in <code>figures/</code>. Pictures of slices carry "
        "the licence of the dataset. Not for clinical use.</footer>",
    ]
    title = escape(f"{card['root']}: exploration")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><main>{chr(10).join(filter(None, blocks))}</main>"
        "</body></html>\n"
    )


def _list(sentences: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f"<ul>{items}</ul>"


def _tiles(card: Mapping[str, Any]) -> str:
    sites = ", ".join(f"{count} {site}" for site, count in card["sites"].items())
    missing = sum(count for name, count in card["missing"].items() if name)
    tiles = {
        "patients": f"{card['patients']}",
        "slices": f"{card['slices']:,}",
        "with tumour": f"{card['tumour_slices']:,} ({card['tumour_slice_share']:.1%})",
        "without": f"{card['tumour_free_slices']:,} ({1 - card['tumour_slice_share']:.1%})",
        "tumour pixels": f"{card['tumour_pixel_share']:.2%}",
        "median tumour": f"{card['area']['median']:,.0f} px",
        "size": f"{card['side']} x {card['side']} px",
        "lacking a sequence": f"{missing} patients",
        "sites": sites,
    }
    cells = "".join(f"<div><dt>{k}</dt><dd>{escape(v)}</dd></div>" for k, v in tiles.items())
    return f'<dl class="tiles">{cells}</dl>'


def _figure(exhibit: Exhibit, picture: bytes) -> str:
    source = base64.b64encode(picture).decode()
    return (
        f'<h2 id="{exhibit.name}">{escape(exhibit.heading)}</h2><figure>'
        f'<img alt="{escape(exhibit.alt)}" src="data:image/png;base64,{source}">'
        f"<figcaption>{escape(exhibit.note)}</figcaption></figure>"
    )


def _split_table(splits: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for rotation in range(NUM_FOLDS):
        rows = [row for row in splits if row["rotation"] == rotation]
        if "error" in rows[0]:
            cells = f'<td colspan="{3 * len(PARTS) + 1}">{escape(rows[0]["error"])}</td>'
        else:
            cells = "".join(
                f"<td>{row['patients']}</td><td>{row['slices']:,}</td>"
                f"<td>{row['tumour_share']:.1%}</td>"
                for row in rows
            )
            cells += f"<td>{sum(row['shared_patients'] for row in rows)}</td>"
        lines.append(f"<tr><th>{rotation}</th>{cells}</tr>")
    heads = "".join(f'<th colspan="3">{part}</th>' for part in PARTS)
    columns = "<th>patients</th><th>slices</th><th>tumour</th>" * len(PARTS)
    return (
        '<div class="scroll"><table><caption>Every rotation, built anew and checked; rotation 0 '
        f"is the protocol's split</caption><tr><th></th>{heads}<th>patients</th></tr>"
        f"<tr><th>rotation</th>{columns}<th>in two parts</th></tr>{''.join(lines)}</table></div>"
    )


def _covariate_table(exploration: Exploration) -> str:
    if not exploration.covariates:
        return "<p>There is no data.csv beside the slices: no covariates.</p>"
    lines = "".join(
        f"<tr><th>{escape(c.name)}</th><td>{len(c.values)}</td><td>{len(set(c.values.values()))}"
        f"</td><td>{c.test or 'too few per group'}</td>"
        + (
            f"<td>{c.p_value:.3f}</td><td>{c.adjusted:.3f}</td>"
            if c.test
            else "<td></td><td></td>"
        )
        + "</tr>"
        for c in exploration.covariates
    )
    return (
        '<div class="scroll"><table><caption>Tumour share of a patient\'s pixels against each '
        "column; adjusted after Benjamini and Hochberg</caption><tr><th>column</th>"
        "<th>patients</th><th>values</th><th>test</th><th>p</th><th>adjusted p</th></tr>"
        f"{lines}</table></div>"
    )


_STYLE = """
body { margin: 0; background: #fff; color: #1a1a1a; font: 16px/1.5 system-ui, sans-serif }
main { max-width: 62rem; margin: 0 auto; padding: 1rem }
h1 { font-size: 1.6rem; line-height: 1.2 } h2 { font-size: 1.2rem; margin-top: 2.5rem }
figure { margin: 0 } img { max-width: 100%; height: auto } figcaption, footer { color: #555 }
nav { font-size: .9rem; margin: 1rem 0 } a { color: #00559a }
.warning { background: #b00000; color: #fff; padding: .5rem .8rem; font-weight: bold }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .5rem }
.tiles div { background: #f2f4f6; padding: .5rem .7rem; border-radius: .4rem }
dt { font-size: .8rem; color: #555 } dd { margin: 0; font-weight: 600 }
ul { padding-left: 1.2rem } li { margin: .25rem 0 }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-size: .85rem }
caption { text-align: left; color: #555; padding: .3rem 0 }
th, td { padding: .15rem .6rem; text-align: right; border-bottom: 1px solid #ddd }
th:first-child { text-align: left } code { font-size: .8em; overflow-wrap: anywhere }
@media print { nav { display: none } h2 { break-after: avoid } figure { break-inside: avoid } }
"""


# --- exploration ---

Row = dict[str, Any]

_SPLIT_SEED = DataConfig().split_seed


@dataclass(frozen=True)
class Exploration:
    """Everything that is known of a dataset, from which page and JSON are written."""

    data: SliceStore
    found: Survey
    patients: list[Row]
    covariates: tuple[Covariate, ...]
    card: Row
    findings: list[str]
    splits: list[Row]
    summary: list[str]
    seed: int

    @property
    def sizes(self) -> dict[str, float]:
        """Patient -> share of its pixels that is tumour."""
        pixels = self.data.size**2
        return {r["patient"]: r["tumour_pixels"] / (r["slices"] * pixels) for r in self.patients}

    def to_json(self) -> str:
        """Return all numbers as JSON text."""
        table = [
            {key: getattr(covariate, key) for key in ("name", "test", "p_value", "adjusted")}
            for covariate in self.covariates
        ]
        tree: Row = {
            "summary": self.summary,
            "dataset": self.card,
            "findings": self.findings,
            "patients": [
                row | {"tumour_share": self.sizes[row["patient"]]} for row in self.patients
            ],
            "splits": self.splits,
            "covariates": table,
            "components": [part._asdict() for part in self.found.components],
            "slices": [
                asdict(item) | {"mean": mean, "spread": spread, "missing": missing}
                for item, mean, spread, missing in zip(
                    self.data.slices,
                    self.found.means.round(3).tolist(),
                    self.found.spreads.round(3).tolist(),
                    self.found.missing,
                    strict=True,
                )
            ],
            "seed": self.seed,
        }
        return json.dumps(_without_nan(tree), indent=1, allow_nan=False) + "\n"


def explore(data: SliceStore, seed: int) -> Exploration:
    """Measure a dataset.

    Args:
        data: The dataset.
        seed: Of the random samples.
    """
    found = survey(data)
    patients = describe_patients(data)
    table = read_table(data.root / "data.csv")
    pixels = data.size**2
    sizes = {r["patient"]: r["tumour_pixels"] / (r["slices"] * pixels) for r in patients}
    sites = {row["patient"]: {"site": row["site"]} for row in patients}
    merged = {patient: sites.get(patient, {"site": ""}) | row for patient, row in table.items()}
    covariates = compare(merged or sites, sizes)
    card = describe_dataset(data, found, patients)
    splits = verify_splits(data, _SPLIT_SEED)
    return Exploration(
        data=data,
        found=found,
        patients=patients,
        covariates=covariates,
        card=card,
        findings=check_quality(data, found, patients, table),
        splits=splits,
        summary=summarise_in_words(card, found, splits, covariates),
        seed=seed,
    )


def _without_nan(tree: Any) -> Any:
    """JSON has no NaN: a test that could not be made has no p-value."""
    if isinstance(tree, dict):
        return {key: _without_nan(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_without_nan(value) for value in tree]
    return None if isinstance(tree, float) and math.isnan(tree) else tree
