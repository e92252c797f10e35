"""Brain tumour segmentation on LGG MRI: data, networks, two-stage training, prediction. No Ray.

    from brainseg import Experiment, Predictor, open_dataset, train_two_stage

    data = open_dataset("data/kaggle_3m")
    result = train_two_stage(Experiment(), data, on_epoch=lambda report: print(report.row))
    result.save("model.safetensors")
    masks = Predictor.load("model.safetensors").masks([data.image(0)])

The packages in the order of the pipeline: `storage`, `data`, `model`, `training`, `inference`;
`explore` and `demo` are pages. Names are imported on first use, so that `brainseg.config` does not
load torch.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"  # pyproject.toml reads it from here

# The code that reads a damaged image reports it. OpenCV reads this when it is imported.
os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")
# Nothing is sent unasked: packages read these when they are imported, which is later. A user who
# sets one of them otherwise has asked. Ray's is in study/tune/__init__.py.
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

if TYPE_CHECKING:
    from brainseg.config import Experiment as Experiment
    from brainseg.config import load_experiment as load_experiment
    from brainseg.data.phantom import generate_phantom as generate_phantom
    from brainseg.data.slice_store import open_dataset as open_dataset
    from brainseg.errors import BrainsegError as BrainsegError
    from brainseg.inference.predictor import Predictor as Predictor
    from brainseg.model.device import Compute as Compute
    from brainseg.training.epoch import EpochReport as EpochReport
    from brainseg.training.trainer import Training as Training
    from brainseg.training.trainer import TrainResult as TrainResult
    from brainseg.training.trainer import train_two_stage as train_two_stage

_MODULES = {
    "BrainsegError": "errors",
    "Compute": "model.device",
    "EpochReport": "training.epoch",
    "Experiment": "config",
    "Predictor": "inference.predictor",
    "TrainResult": "training.trainer",
    "Training": "training.trainer",
    "generate_phantom": "data.phantom",
    "load_experiment": "config",
    "open_dataset": "data.slice_store",
    "train_two_stage": "training.trainer",
}

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module brainseg has no attribute {name}")
    return getattr(importlib.import_module(f"brainseg.{_MODULES[name]}"), name)
