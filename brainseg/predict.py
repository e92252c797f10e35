"""The predict command: masks, outlines and tables for files of slices and volumes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from brainseg.cli import (
    FINISHED,
    SOME_FAILED,
    add_allow_code,
    build_parser,
    local_path,
    result_folder,
    run_command,
    say,
)
from brainseg.storage.files import check_new, new_folder


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_command(lambda: _predict_files(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = build_parser(
        "brainseg.predict", "Outline tumours in slices, patients' folders and volumes.", _EPILOG
    )
    parser.add_argument(
        "model", type=local_path, metavar="MODEL", help="a model file, .safetensors"
    )
    parser.add_argument(
        "inputs",
        type=local_path,
        nargs="+",
        metavar="INPUT",
        help="a slice (TIFF, PNG, JPEG), a NIfTI volume, or a folder of them",
    )
    parser.add_argument(
        "--out",
        type=result_folder,
        required=True,
        metavar="DIR",
        help="a new folder for the results",
    )
    parser.add_argument(
        "--threshold",
        type=_probability,
        metavar="P",
        help="the lowest probability of a tumour pixel (default: the model file's)",
    )
    parser.add_argument(
        "--tta",
        action=argparse.BooleanOptionalAction,
        help="average over the slice and its three flips, which takes four times as long "
        "(default: as the model's experiment)",
    )
    add_allow_code(parser)
    parser.add_argument(
        "--device", metavar="DEVICE", help="such as cpu or cuda (default: a GPU if there is one)"
    )
    return parser


def _probability(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number between 0 and 1")
    return value


def _predict_files(args: argparse.Namespace) -> int:
    # Imported here: torch takes seconds, and --help does not need it.
    from tqdm import tqdm

    from brainseg.inference.predictor import Predictor
    from brainseg.inference.readers import (
        count_slices,
        describe_skipped,
        find_scans,
        read_batches,
    )
    from brainseg.inference.writers import PredictionWriter, summary_lines
    from brainseg.model.device import Compute

    check_new(args.out)
    predictor = Predictor.load(args.model, Compute(args.device), allow_code=args.allow_code)
    scans, problems = find_scans(args.inputs)
    skipped = describe_skipped(args.inputs)  # before there are results, which may lie among them
    size = predictor.experiment.optimizer.batch_size
    with new_folder(args.out) as folder:
        writer = PredictionWriter(folder)
        total = sum(count_slices(scan) for scan in scans)
        with tqdm(total=total, desc="predicting", unit="slice", disable=None) as bar:
            header = predictor.header
            for batch in read_batches(
                scans,
                size,
                problems,
                header.channels,
                rescales=header.rescales,
                together=predictor.experiment.needs_volume,
            ):
                images = [image for _, slices in batch for image in slices.images]
                volumes = [str(scan.volume) for scan, slices in batch for _ in slices.images]
                found = iter(
                    predictor.predict(
                        images, threshold=args.threshold, tta=args.tta, patients=volumes
                    )
                )
                for scan, slices in batch:
                    predictions = [next(found) for _ in slices.images]
                    writer.add(scan, slices, predictions)
                    bar.update(len(predictions))
        summary = writer.finish()
    say(*summary_lines(writer.rows, summary), f"in {args.out}")
    if predictor.experiment.is_leaky:
        say("LEAKY: the model was trained on slices of the patients that it was tested on.")
    if predictor.header.synthetic:
        say("SYNTHETIC: the model was trained on generated phantoms, not on patients.")
    say("Not for clinical use.")
    say(*skipped, file=sys.stderr)
    for problem in problems:
        say(f"not predicted: {problem}", file=sys.stderr)
    return SOME_FAILED if problems else FINISHED


_EPILOG = """\
examples:
  python -m brainseg.predict model.safetensors slice.tif --out predicted
  python -m brainseg.predict model.safetensors data/kaggle_3m/TCGA_CS_4942_19970222 --out predicted
  python -m brainseg.predict model.safetensors volume.nii.gz --out predicted --tta

Images have the channels that the model was trained with, such as pre-contrast, FLAIR and
post-contrast; volumes have them on the fourth axis. Filters and size are those of the model file.
A file NAME_mask beside NAME is its true mask; scores are computed against it. DIR receives masks
in the size and format of the inputs, outlines as PNG, each patient's masks as one stack,
predictions.csv and patients.csv.

exit codes:
  0  all files are predicted
  1  the model file is missing or cannot be used, or DIR cannot be written
  2  a flag or value is wrong, or DIR exists already
  3  some files cannot be used, each is named; the others are predicted
"""

if __name__ == "__main__":
    sys.exit(main())
