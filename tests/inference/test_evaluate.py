"""Evaluations by the real command, as runs of their own."""

from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from PIL import Image

from src import evaluate
from src.errors import ModelError
from src.evaluation.predictions import read_predictions
from src.inference.explain import check_explainable, grad_cam
from src.inference.load_model import TrainedModel, load_trained
from src.inference.model_reference import ModelReference
from src.models.input_spec import unit_range
from tests.images import write_folder
from tests.inference.conftest import MODEL, NAMED, champion, name_by_patient

pytestmark = pytest.mark.slow


def last_evaluation() -> "mlflow.entities.Run":
    client = mlflow.MlflowClient()
    found = client.search_runs(["0"], "tags.role = 'evaluation'")
    return client.get_run(max(found, key=lambda run: run.info.start_time).info.run_id)  # with its inputs


def test_on_the_test_split_of_its_run(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([*NAMED, "--explain", "3"]) == 0
    run, source = last_evaluation(), mlflow.MlflowClient().get_run(str(champion().run_id))
    assert run.info.status == "FINISHED"
    for name in ("auc", "acc", "sensitivity", "specificity"):
        value = run.data.metrics[f"test_{name}"]
        assert value == pytest.approx(source.data.metrics[f"test_{name}"])
        if name != "auc":  # eight images of a class are of four patients
            assert run.data.metrics[f"test_{name}_low"] <= value <= run.data.metrics[f"test_{name}_high"]
        assert 0 <= run.data.metrics[f"test_patient_{name}"] <= 1
    assert "model" not in run.data.tags
    assert run.data.tags["evaluated.run_id"] == source.info.run_id
    assert (run.data.tags["evaluated.version"], run.data.tags["evaluated.split"]) == ("1", "test")
    assert run.inputs is not None
    assert source.outputs is not None
    assert run.inputs.model_inputs[0].model_id == source.outputs.model_outputs[0].model_id
    (folder,) = trained.glob(f"outputs/eval_*_{run.info.run_id[:8]}")
    kept = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    plots = ("roc", "precision_recall", "confusion_matrix", "calibration", "grad_cam")
    assert kept == {"predictions/test.csv", *(f"plots/{name}.png" for name in plots)}
    mine, theirs = (
        read_predictions(path)
        for path in (folder / "predictions/test.csv", Path("outputs/first/predictions/test.csv"))
    )
    assert mine.samples == theirs.samples
    assert np.abs(mine.probabilities - theirs.probabilities).max() < 1e-6
    out = capsys.readouterr().out
    assert "test_auc_low" not in run.data.metrics
    assert "(too few" in out
    assert "optimistic" not in out
    assert "scored by 1 training run and 1 evaluation;" in out
    assert f"run {run.info.run_id}" in champion().tags["evaluated.test"]
    assert Image.open(folder / "plots/grad_cam.png").width > 300
    assert evaluate.main(NAMED) == 0
    assert "scored by 1 training run and 2 evaluations;" in capsys.readouterr().out
    assert evaluate.main([*NAMED, "--split", "val"]) == 0
    assert "the threshold was chosen on the validation split (youden): accuracy" in capsys.readouterr().out


def test_on_all_images_of_another_folder(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(trained / "other", counts={"": 30}, size=32)
    name_by_patient(trained / "other")
    assert evaluate.main([*NAMED, "--data", "other", "--split", "all"]) == 0
    captured = capsys.readouterr()
    assert "the images or the split differ" in captured.err
    metrics = last_evaluation().data.metrics
    assert {"all_auc", "all_auc_low", "all_patient_auc"} <= set(metrics)
    assert "by images" in captured.out


def test_a_checkpoint_and_a_file_store(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(trained / "files"))
    path = "outputs/first/checkpoints/best_model.pth"
    assert evaluate.main(["--checkpoint", path, "--split", "val"]) == 0
    (run,) = mlflow.MlflowClient().search_runs(["0"])
    assert run.data.tags["evaluated.name"] == path
    assert 0 <= run.data.metrics["val_auc"] <= 1
    assert evaluate.main(["--checkpoint", path]) == 0
    # That store does not know of the training, which has scored the split as well.
    assert "scored by 0 training runs and 1 evaluation;" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--split", "best"], "--split best: expected one of train, val, test, all"),
        (["--data", "nowhere"], "nowhere: not found"),
        (["--explain", "x"], "--explain: expected a whole number from 1 to 48, got 'x'"),
        (["--data", "unsorted", "--split", "all"], "the class of 2 of 2 images is unknown"),
        (["--data", "three"], "has the classes a, b, c, but shufflenet_v2_x0_5_A version 1 has neg, pos"),
    ],
)
def test_what_cannot_be_evaluated(
    trained: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    places = ("unsorted", *(f"three/A/{split}/{label}" for split in ("train", "val") for label in "abc"))
    for group, place in enumerate(places):
        (trained / place).mkdir(parents=True, exist_ok=True)
        for number in range(2):
            Image.new("L", (32, 32), 2 * group + number).save(trained / place / f"p{group}_{number}.png")
    before = len(mlflow.MlflowClient().search_runs(["0"]))
    assert evaluate.main([*NAMED, *options]) == 2
    assert said in capsys.readouterr().err
    assert len(mlflow.MlflowClient().search_runs(["0"])) == before


def loaded(folder: Path) -> TrainedModel:
    return load_trained(ModelReference(MODEL, "A"), folder, "cpu")


def test_grad_cam_is_the_formula(trained: Path, folder: Path) -> None:
    assert trained.exists()
    model = loaded(folder)
    layer = check_explainable(model)
    assert (layer.path, layer.height) == ("conv5", 4)
    pixels = torch.randint(
        0, 256, (3, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    classes = np.array([0, 1, 1])
    found = grad_cam(model, layer, pixels, classes)
    # Selvaraju et al.: the ReLU of the map's channels, weighted by the mean gradient of the class's logit.
    maps: list[torch.Tensor] = []
    network = model.network.model
    hook = network.get_submodule(layer.path).register_forward_hook(lambda _m, _i, output: maps.append(output))
    logits = network(model.network.spec.normalize(unit_range(pixels)))
    hook.remove()
    (gradients,) = torch.autograd.grad(logits[[0, 1, 2], [0, 1, 1]].sum(), maps[0])
    expected = (gradients.mean((2, 3), keepdim=True) * maps[0]).sum(1, keepdim=True).relu()
    resized = torch.nn.functional.interpolate(expected, (32, 32), mode="bilinear")
    np.testing.assert_allclose(found, resized[:, 0].detach().numpy(), rtol=1e-4, atol=1e-6)


def test_a_transformer_is_refused(trained: Path, folder: Path) -> None:
    assert trained.exists()
    model = loaded(folder)
    other = replace(model, config=model.config.updated({"model.name": "swin_t"}))
    with pytest.raises(ModelError, match="swin_t is a transformer"):
        check_explainable(other)
