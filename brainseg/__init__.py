"""Brain tumour segmentation on LGG MRI: data, model, two-stage training, prediction. No Ray here.

    from brainseg import Experiment, Predictor, open_dataset, train_two_stage

    data = open_dataset("data/kaggle_3m")
    result = train_two_stage(Experiment(), data, on_epoch=lambda report: print(report.row))
    result.save("model.safetensors")
    masks = Predictor.load("model.safetensors").masks([data.image(0)])

Names are imported when first used: a report needs `brainseg.config`, but not torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from brainseg.config import Experiment, load_experiment
    from brainseg.data.phantom import generate_phantom
    from brainseg.data.slice_store import open_dataset
    from brainseg.errors import BrainsegError
    from brainseg.inference.predictor import Predictor
    from brainseg.model.device import Compute
    from brainseg.training.epoch import EpochReport
    from brainseg.training.trainer import TrainResult, train_two_stage

_HOME = {
    "BrainsegError": "errors",
    "Compute": "model.device",
    "EpochReport": "training.epoch",
    "Experiment": "config",
    "Predictor": "inference.predictor",
    "TrainResult": "training.trainer",
    "generate_phantom": "data.phantom",
    "load_experiment": "config",
    "open_dataset": "data.slice_store",
    "train_two_stage": "training.trainer",
}

__all__ = [
    "BrainsegError",
    "Compute",
    "EpochReport",
    "Experiment",
    "Predictor",
    "TrainResult",
    "generate_phantom",
    "load_experiment",
    "open_dataset",
    "train_two_stage",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module brainseg has no attribute {name}")
    return getattr(importlib.import_module(f"brainseg.{_HOME[name]}"), name)
