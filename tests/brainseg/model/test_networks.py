from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import BatchNorm2d
from torch.nn.functional import binary_cross_entropy_with_logits

from brainseg.config import Experiment, ModelConfig
from brainseg.errors import ConfigError, DataError
from brainseg.model.networks import (
    SMP,
    build_model,
    build_network,
    calibrate_encoder,
    check_network,
    infer_logits,
    normalise,
    set_training,
)

CPU = torch.device("cpu")
# Drop-connect and dropout make EfficientNet the encoder that is hardest to freeze.
EFFICIENT = ModelConfig(encoder="efficientnet-b0", encoder_weights="none")


def _step(model: torch.nn.Module) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    images = torch.randn((2, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    loss = binary_cross_entropy_with_logits(model(images), torch.ones((2, 1, 32, 32)))
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def _encoder_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items() if k.startswith("encoder.")}


def _same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(left[key], right[key]) for key in left)


def test_a_frozen_encoder_keeps_weights_and_batchnorm_statistics() -> None:
    model = build_model(EFFICIENT, seed=1)
    before, decoder = _encoder_of(model), model.segmentation_head[0].weight.clone()  # type: ignore[index,union-attr,operator]
    set_training(model, freeze_encoder=True)
    _step(model)
    assert _same(before, _encoder_of(model))
    assert not torch.equal(decoder, model.segmentation_head[0].weight)  # type: ignore[index,union-attr,arg-type]


def test_calibration_sets_the_statistics_of_the_slices_and_nothing_else() -> None:
    model = build_model(EFFICIENT, seed=1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images = torch.randint(0, 90, (8, 32, 32, 3), dtype=torch.uint8)
    calibrate_encoder(model, [images[:4], images[4:]], CPU)
    after = model.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed
    assert all(key.startswith("encoder.") for key in changed)
    assert all("running" in key or "tracked" in key for key in changed)
    stem = model.encoder._conv_stem(normalise(images, CPU))  # type: ignore[union-attr,operator]
    expected = stem.mean((0, 2, 3))
    torch.testing.assert_close(after["encoder._bn0.running_mean"], expected, rtol=1e-3, atol=1e-4)


class _Prepares(torch.nn.Module):
    """A user's network, whose encoder does not take slices as they are."""

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, slices: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.encoder(slices[:, :2])
        return found


def test_calibration_takes_a_users_network_as_it_is() -> None:
    images = [torch.randint(0, 90, (8, 32, 32, 3), dtype=torch.uint8)]
    norm = torch.nn.BatchNorm2d(2)
    calibrate_encoder(_Prepares(torch.nn.Sequential(norm)), images, CPU)
    expected = normalise(images[0], CPU)[:, :2].mean((0, 2, 3))
    torch.testing.assert_close(norm.running_mean, expected)
    without = _Prepares(torch.nn.Conv2d(2, 1, 1))
    calibrate_encoder(without, images, CPU)
    assert without.training  # nothing to calibrate: nothing is touched
    calibrate_encoder(torch.nn.Conv2d(3, 1, 1), images, CPU)


def test_a_network_with_three_dimensional_layers_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n\ndef build(channels):\n"
        "    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.Conv3d(1, 1, 3))\n"
    )
    monkeypatch.chdir(tmp_path)
    config = ModelConfig(architecture="./mine.py:build", encoder="none", encoder_weights="none")
    weights = build_network(config, 3).state_dict()
    assert [tuple(w.shape[2:]) for w in weights.values()] == [(3, 3), (), (3, 3, 3), ()]
    assert weights["0.weight"].is_contiguous(memory_format=torch.channels_last)


def _momenta(config: ModelConfig) -> set[float]:
    norms = (m for m in build_model(config, seed=1).modules() if isinstance(m, BatchNorm2d))
    return {round(float(norm.momentum or 0), 6) for norm in norms}


def test_the_momentum_of_batchnorm_is_the_layers_own_unless_set() -> None:
    assert _momenta(EFFICIENT) == {0.01, 0.1}  # encoder, decoder
    assert _momenta(EFFICIENT.model_copy(update={"batchnorm_momentum": 0.2})) == {0.2}


def test_an_unfrozen_encoder_changes_both() -> None:
    model = build_model(EFFICIENT, seed=1)
    set_training(model, freeze_encoder=True)
    before = _encoder_of(model)
    set_training(model, freeze_encoder=False)
    _step(model)
    after = _encoder_of(model)
    assert not torch.equal(before["encoder._conv_stem.weight"], after["encoder._conv_stem.weight"])
    assert not torch.equal(before["encoder._bn0.running_mean"], after["encoder._bn0.running_mean"])


@pytest.mark.parametrize("frozen", [True, False])
def test_validation_is_deterministic(frozen: bool) -> None:
    model = build_model(EFFICIENT, seed=1)
    set_training(model, freeze_encoder=frozen)
    model.eval()
    assert not any(module.training for module in model.modules())
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    assert torch.equal(infer_logits(model, images, CPU), infer_logits(model, images, CPU))


def test_a_frozen_encoder_drops_nothing_in_training_either() -> None:
    model = build_model(EFFICIENT, seed=1)
    set_training(model, freeze_encoder=True)
    encoder: torch.nn.Module = model.encoder  # type: ignore[assignment]
    assert not any(module.training for module in encoder.modules())
    assert model.decoder.training  # type: ignore[union-attr]


def test_the_seed_determines_the_weights() -> None:
    one, same, other = (
        build_model(ModelConfig(encoder="mobilenet_v2", encoder_weights="none"), seed)
        for seed in (1, 1, 2)
    )
    assert _same(_encoder_of(one), _encoder_of(same))
    assert not _same(_encoder_of(one), _encoder_of(other))


def test_a_weight_file_is_loaded_into_the_encoder(tmp_path: Path) -> None:
    encoder: torch.nn.Module = build_network(ModelConfig(encoder="mobilenet_v2")).encoder  # type: ignore[assignment]
    source = {key: value.contiguous() for key, value in encoder.state_dict().items()}
    save_file(source, tmp_path / "w.safetensors")
    config = ModelConfig(encoder="mobilenet_v2", encoder_weights=str(tmp_path / "w.safetensors"))
    loaded = build_model(config, seed=3).encoder.state_dict()  # type: ignore[union-attr,operator]
    assert _same(source, loaded)


def test_an_unknown_encoder_lists_the_known() -> None:
    with pytest.raises(ConfigError, match=r"resnet5, which is unknown.*resnet50"):
        build_model(ModelConfig(encoder="resnet5", encoder_weights="none"), 0)


def test_images_are_normalised_by_imagenets_statistics() -> None:
    images = torch.randint(0, 256, (2, 4, 5, 3), dtype=torch.uint8)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    expected = (images / 255 - torch.tensor(mean)) / torch.tensor(std)
    torch.testing.assert_close(normalise(images, CPU), expected.permute(0, 3, 1, 2))
    assert normalise(images, CPU).is_contiguous(memory_format=torch.channels_last)


SMALL = {"model.encoder": "tu-tf_efficientnet_lite0", "model.encoder_weights": "none"}


def _experiment(architecture: str, **changes: object) -> Experiment:
    return Experiment().replaced(
        {**SMALL, "data.size": 128, "model.architecture": architecture, **changes}
    )


@pytest.mark.parametrize("architecture", SMP)
def test_every_architecture_takes_any_channels_and_freezes_bit_by_bit(architecture: str) -> None:
    experiment = _experiment(architecture)
    check_network(experiment, build_model(experiment.model, 1))
    model = build_model(experiment.model, 1, 5)
    before = _encoder_of(model)
    set_training(model, freeze_encoder=True)
    images = torch.randn((2, 5, 128, 128), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(images).square().mean().backward()
    optimizer.step()
    assert _same(before, _encoder_of(model))


@pytest.mark.parametrize("architecture", ["attentionunet", "basicunetplusplus", "swinunetr"])
def test_networks_of_monai_have_no_encoder(architecture: str) -> None:
    pytest.importorskip("monai")
    with pytest.raises(ConfigError, match="has no encoder"):
        build_network(_experiment(architecture).model)
    without = {"model.encoder": "none", "stages.0.epochs": 0}
    experiment = _experiment(architecture, **without)
    check_network(experiment, build_model(experiment.model, 1))
    assert experiment.network == architecture
    with pytest.raises(ConfigError, match=r"stages\.0\.freeze_encoder is true"):
        _experiment(architecture, **{"model.encoder": "none"})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model.architecture": "unett"}, "did you mean unet?"),
        ({"model.architecture": "dpt", "model.encoder": "resnet18"}, "does not work with"),
        ({"model.architecture": "unetplusplus", "model.encoder": "mit_b0"}, "does not work with"),
        ({"model.architecture": "fpn", "model.decoder_attention": "scse"}, "does not have"),
        ({"model.encoder": "tu-tf_efficientnet_lit0"}, "near: tu-tf_efficientnet_lite0"),
        ({"model.architecture": "pan", "data.size": 64}, "cannot take slices of data.size 64"),
        ({"model.architecture": "./nowhere.py:build"}, "nowhere.py is not a file"),
    ],
)
def test_what_cannot_work_is_refused_by_name(changes: dict[str, object], said: str) -> None:
    experiment = _experiment("unet", **changes)
    with pytest.raises((ConfigError, DataError)) as error:
        check_network(experiment, build_model(experiment.model, 0))
    assert said in str(error.value)


def test_the_first_convolution_is_widened_from_the_pretrained_one(tmp_path: Path) -> None:
    plain = build_model(_experiment("unet").model, 1)
    save_file(_copy(plain.encoder), tmp_path / "weights.safetensors")  # type: ignore[arg-type]
    config = _experiment(
        "unet", **{"model.encoder_weights": str(tmp_path / "weights.safetensors")}
    ).model
    wide = build_model(config, 2, 6)
    slices = torch.randn((1, 3, 64, 64))
    plain.eval()
    wide.eval()
    found = wide.encoder(slices.repeat(1, 2, 1, 1))[-1]  # type: ignore[operator]
    torch.testing.assert_close(found, plain.encoder(slices)[-1], rtol=1e-4, atol=1e-5)  # type: ignore[operator]


def _copy(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.contiguous() for key, value in module.state_dict().items()}
