"""tools/train_hf.py: training, evaluation, the best model, going on; what plain transformers makes of the folder."""

from __future__ import annotations

import importlib.util
import json
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.integrations import tiny_transformers as tiny

# Without the library, the folder datasets/ is what the name stands for.
pytest.importorskip("datasets.config", reason="needs the extra [transformers]")
library = importlib.import_module("datasets")
pytest.importorskip("accelerate", reason="needs the extra [transformers]")

from mask2former.config import get_cfg  # noqa: E402
from mask2former.data.own_data import convert_own_data  # noqa: E402
from mask2former.errors import ConfigError  # noqa: E402
from mask2former.evaluation.average_precision import PrecisionTally  # noqa: E402
from mask2former.evaluation.coco_matching import match_image  # noqa: E402
from mask2former.files.atomic import save_atomic  # noqa: E402
from mask2former.integrations.transformers import fine_tuning, fine_tuning_data  # noqa: E402
from mask2former.integrations.transformers.fine_tuning_data import _encode, summarize  # noqa: E402
from mask2former.integrations.transformers.published_results import infer_instances  # noqa: E402
from mask2former.modeling import build_model  # noqa: E402
from tests.data_pipeline import own_data_trees as trees  # noqa: E402

transformers = tiny.transformers
integration = tiny.integration
SIZE = 64
CONFIG = Path(__file__).parents[2] / "configs/shapes/instance-segmentation/maskformer2_R18_quickstart.yaml"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    library.config.HF_DATASETS_CACHE = folder / "cache"
    convert_own_data(trees.write_coco_instances(folder / "original", num=3), folder / "hub", target="datasets")
    return folder / "hub"


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.saved(tmp_path_factory.mktemp("start") / "model")


def arguments(start: Path | None, data: Path, output: Path, *more: str) -> list[str]:
    begin = [] if start is None else ["--model_name_or_path", str(start)]
    sizes = ["--image_height", str(SIZE), "--image_width", str(SIZE), "--per_device_train_batch_size", "2"]
    common = ["--dataset_name", str(data), "--output_dir", str(output), "--do_reduce_labels", "--use_cpu"]
    return [*begin, *common, *sizes, "--disable_tqdm", "True", *more]


def test_trains_evaluates_and_keeps_the_best(start: Path, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    code = fine_tuning.main(arguments(start, data, output, "--do_train", "--do_eval", "--num_train_epochs", "2"))
    assert code == 0
    state = json.loads((output / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"].startswith(str(output))
    evaluations = [entry for entry in state["log_history"] if "eval_map" in entry]
    assert [entry["epoch"] for entry in evaluations] == [1.0, 2.0]
    assert {"eval_map_50", "eval_map_box", "eval_map_disc", "eval_loss"} <= set(evaluations[0])
    results = json.loads((output / "test_results.json").read_text())
    assert 0 <= results["test_map"] == max(entry["eval_map"] for entry in evaluations)
    config = json.loads((output / "config.json").read_text())
    assert config["label2id"] == {"box": 0, "disc": 1}
    before, after = (
        transformers.Mask2FormerForUniversalSegmentation.from_pretrained(f, ignore_mismatched_sizes=True, num_labels=2)
        for f in (start, output)
    )
    assert any(not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters()))


@pytest.mark.skipif(importlib.util.find_spec("open_clip") is None, reason="needs the extra [text]")
def test_oneformer_trains_with_texts_and_is_evaluated_by_instances(data: Path, tmp_path: Path) -> None:
    tiny.tiny_oneformer().save_pretrained(tmp_path / "start")
    options = ["--do_train", "--do_eval", "--max_steps", "2", "--eval_strategy", "no"]
    assert fine_tuning.main(arguments(tmp_path / "start", data, tmp_path / "output", *options)) == 0
    assert "test_map" in json.loads((tmp_path / "output" / "test_results.json").read_text())
    config = json.loads((tmp_path / "output" / "config.json").read_text())
    assert config["is_training"] is True
    processor = integration.OneFormerProcessor.from_pretrained(tmp_path / "output")
    assert processor.image_processor.metadata["class_names"] == ["box", "disc"]
    theirs = transformers.OneFormerForUniversalSegmentation.from_pretrained(tmp_path / "output", is_training=False)
    before = transformers.OneFormerForUniversalSegmentation.from_pretrained(tmp_path / "start")
    weights = [model.model.transformer_module.queries_embedder.weight for model in (before, theirs)]
    assert not torch.equal(*weights)


def test_plain_transformers_gives_the_same_logits_and_map(start: Path, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    options = ["--do_train", "--max_steps", "3", "--learning_rate", "1e-3", "--do_eval", "--eval_strategy", "no"]
    assert fine_tuning.main(arguments(start, data, output, *options)) == 0
    theirs = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(output).eval()
    ours = integration.Mask2FormerForUniversalSegmentation.from_pretrained(output).eval()
    processor = integration.Mask2FormerImageProcessor.from_pretrained(output)
    split = library.load_dataset(str(data))["validation"]
    images = fine_tuning_data.FineTuningImages(split, processor, reduce_labels=True, num_classes=2, with_truth=True)
    results = []
    for model in (ours, theirs):
        tally = PrecisionTally()
        for sample in images:
            with torch.no_grad():
                outputs = model(sample["pixel_values"][None], pixel_mask=sample["pixel_mask"][None])
            (found,) = infer_instances(outputs, target_sizes=[sample["size"]], pixel_mask=sample["pixel_mask"][None])
            tally.add_image(sample["index"], match_image(sample["truth"], _encode(found), iou_type="segm"))
        results.append((outputs, summarize(tally.average_precision([0, 1]), {0: "box", 1: "disc"})))
    (own, own_metrics), (their, their_metrics) = results
    torch.testing.assert_close(own.class_queries_logits, their.class_queries_logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(own.masks_queries_logits, their.masks_queries_logits, rtol=1e-4, atol=1e-4)
    recorded = json.loads((output / "test_results.json").read_text())
    assert own_metrics == their_metrics == {key: recorded[f"test_{key}"] for key in own_metrics}


def test_resuming_equals_training_on(start: Path, data: Path, tmp_path: Path) -> None:
    options = (
        "--do_train",
        "--max_steps",
        "4",
        "--save_strategy",
        "steps",
        "--save_steps",
        "2",
        "--learning_rate",
        "1e-3",
    )
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert fine_tuning.main(arguments(start, data, whole, *options)) == 0
    (halves).mkdir()
    (whole / "checkpoint-2").rename(halves / "checkpoint-2")
    assert fine_tuning.main(arguments(start, data, halves, *options)) == 0
    expected, found = (integration.Mask2FormerForUniversalSegmentation.from_pretrained(f) for f in (whole, halves))
    for (name, tensor), other in zip(expected.state_dict().items(), found.state_dict().values(), strict=True):
        assert torch.equal(tensor, other), name


def test_starts_from_a_checkpoint_of_ours_or_a_config(data: Path, tmp_path: Path) -> None:
    cfg = tiny_resnet(tmp_path / "tiny.yaml")
    model = build_model(cfg)
    save_atomic({"model": model.state_dict()}, tmp_path / "model.pth")
    config = ["--config_file", str(tmp_path / "tiny.yaml"), "--do_train", "--max_steps", "1", "--learning_rate", "0"]
    for name, start in (("fine", tmp_path / "model.pth"), ("scratch", None)):
        assert fine_tuning.main(arguments(start, data, tmp_path / name, *config)) == 0
    fine = integration.Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path / "fine")
    for name, tensor in model.backbone.named_parameters():
        assert torch.equal(fine.model.backbone.get_parameter(name), tensor), name
    assert fine.config.train_batch_norms  # as the config has it
    assert fine.config.id2label == {0: "box", 1: "disc"}
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in fine.modules())


def test_batch_norms_that_learn_are_theirs_too(data: Path, tmp_path: Path) -> None:
    tiny_resnet(tmp_path / "tiny.yaml")
    options = ["--config_file", str(tmp_path / "tiny.yaml"), "--do_train", "--max_steps", "2"]
    assert fine_tuning.main(arguments(None, data, tmp_path / "out", *options)) == 0
    theirs = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path / "out").eval()
    ours = integration.Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path / "out").eval()
    images = tiny.images()
    with torch.no_grad():
        expected, found = theirs(images), ours(images)
    torch.testing.assert_close(found.class_queries_logits, expected.class_queries_logits, rtol=1e-4, atol=1e-4)
    running = [buffer for name, buffer in ours.named_buffers() if name.endswith("running_mean")]
    assert running
    assert all(buffer.any() for buffer in running)


def test_starts_from_a_config_of_transformers(data: Path, tmp_path: Path) -> None:
    tiny.tiny_config().save_pretrained(tmp_path / "config")
    options = ["--config_name", str(tmp_path / "config"), "--do_train", "--max_steps", "1"]
    assert fine_tuning.main(arguments(None, data, tmp_path / "out", *options)) == 0
    assert (tmp_path / "out" / "model.safetensors").is_file()


def tiny_resnet(path: Path) -> Any:
    cfg = get_cfg()
    options = {"CONVS_DIM": 32, "MASK_DIM": 32, "TRANSFORMER_ENC_LAYERS": 1, "NUM_CLASSES": 5}
    head = "\n".join(f"    {key}: {value}" for key, value in options.items())
    decoder = {"HIDDEN_DIM": 32, "NHEADS": 8, "DIM_FEEDFORWARD": 32, "DEC_LAYERS": 2, "NUM_OBJECT_QUERIES": 8}
    former = "\n".join(f"    {key}: {value}" for key, value in {**decoder, "TRAIN_NUM_POINTS": 32}.items())
    path.write_text(f"_BASE_: {CONFIG}\nMODEL:\n  SEM_SEG_HEAD:\n{head}\n  MASK_FORMER:\n{former}\n")
    cfg.merge_from_file(path)
    return cfg


def test_without_validation_split_rows_are_held_out(start: Path, data: Path, tmp_path: Path, capsys: Any) -> None:
    library.DatasetDict({"train": library.load_dataset(str(data))["train"]}).save_to_disk(tmp_path / "train_only")
    assert fine_tuning.main(arguments(start, tmp_path / "train_only", tmp_path / "out", "--do_eval")) == 0
    assert "1 rows are held out" in capsys.readouterr().out


def test_images_of_any_size_become_one(start: Path, data: Path) -> None:
    processor = integration.Mask2FormerImageProcessor(size={"height": 48, "width": 80})
    split = library.load_dataset(str(data))["train"]
    samples = list(fine_tuning_data.FineTuningImages(split, processor, reduce_labels=True, num_classes=2))
    batch = fine_tuning_data.collate(samples)
    assert batch["pixel_values"].shape == (3, 3, 64, 96)  # a multiple of 32
    assert batch["pixel_mask"].sum().item() == 3 * 48 * 80
    assert [labels.tolist() for labels in batch["class_labels"]] == [[0, 1, 1], [], [0, 1, 1]]
    assert [tuple(masks.shape) for masks in batch["mask_labels"]] == [(3, 64, 96), (0, 64, 96), (3, 64, 96)]
    ids, segments = trees.scene(0)
    box = torch.from_numpy(ids == segments[1]["id"]).float()
    expected = torch.nn.functional.interpolate(box[None, None], (48, 80), mode="nearest-exact")[0, 0]
    assert (batch["mask_labels"][0][0, :48, :80] - expected).abs().mean() < 0.02


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--model_name_or_path": "/nowhere/model"}, "/nowhere/model: expected a folder with config.json"),
        ({"--dataset_name": "/nowhere/data"}, "/nowhere/data: no such folder"),
        ({"--dataset_name": None}, "--dataset_name: missing"),
        ({"--do_reduce_labels": None}, "class 0"),
        ({"--model_name_or_path": None}, "no model to start from"),
        ({"--config_name": "x"}, "--config_name: a model from scratch"),
        ({"--trust_remote_code": "True"}, "--trust_remote_code"),
        ({"--image_height": "8"}, "at least 32"),
        ({"--resume_from_checkpoint": "/nowhere"}, "--resume_from_checkpoint /nowhere"),
        ({"--unknown_option": "1"}, "--unknown_option"),
    ],
)
def test_what_is_wrong_is_one_line(
    changes: dict[str, str | None], message: str, start: Path, data: Path, tmp_path: Path, capsys: Any
) -> None:
    given = arguments(start, data, tmp_path / "out", "--do_train", "--max_steps", "1")
    for option, value in changes.items():
        if option in given:
            place = given.index(option)
            del given[place : place + (1 if option == "--do_reduce_labels" else 2)]
        given += [] if value is None else [option, value]
    if message == "class 0":  # id 0 is background: learnt as a class it must be asked for, and it is
        assert fine_tuning.main(given) == 0
        return
    assert fine_tuning.main(given) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error


def test_other_classes_in_the_same_folder_are_refused_before_training(
    start: Path, data: Path, tmp_path: Path, capsys: Any
) -> None:
    options = ["--do_train", "--max_steps", "1"]
    assert fine_tuning.main(arguments(start, data, tmp_path, *options)) == 0
    written = (tmp_path / "model.safetensors").read_bytes()
    again = [option for option in arguments(start, data, tmp_path, *options) if option != "--do_reduce_labels"]
    capsys.readouterr()
    assert fine_tuning.main(again) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "id2label: found background, box, disc, was box, disc" in error
    assert "another --output_dir, or --resume_from_checkpoint false" in error
    assert (tmp_path / "model.safetensors").read_bytes() == written
    wider = tiny.saved(tmp_path / "wider", num_queries=8)
    assert fine_tuning.main(arguments(wider, data, tmp_path, *options)) == 1
    assert "num_queries: found 8, was 6" in capsys.readouterr().err
    assert fine_tuning.main([*again, "--resume_from_checkpoint", "false"]) == 0


@pytest.mark.parametrize("offline", [True, False])
def test_push_to_hub_without_network_is_one_line_before_training(
    start: Path, data: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    from huggingface_hub import constants

    with socket.socket() as listener:  # a port at which nobody answers
        listener.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    options = ["--do_train", "--max_steps", "1", "--push_to_hub", "--hub_model_id", "me/mine", "--hub_token", "hf_x"]
    assert fine_tuning.main(arguments(start, data, tmp_path / "out", *options)) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: --push_to_hub: ")
    assert error.endswith("; nothing was trained yet")
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_folder_of_another_format_names_the_converter(start: Path, tmp_path: Path, capsys: Any) -> None:
    folder = trees.write_coco_instances(tmp_path / "coco")
    assert fine_tuning.main(arguments(start, folder, tmp_path / "out", "--do_train")) == 1
    assert "tools/convert_dataset.py" in capsys.readouterr().err


def test_class_outside_the_table_is_named(start: Path, data: Path, tmp_path: Path, capsys: Any) -> None:
    rows = library.load_dataset(str(data))["train"].to_list()
    for row in rows:
        row["semantic_class_to_id"] = {"background": 0, "box": 1}
    features = library.load_dataset(str(data))["train"].features.copy()
    features["semantic_class_to_id"] = {name: library.Value("int64") for name in ("background", "box")}
    library.Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "wrong")
    assert fine_tuning.main(arguments(start, tmp_path / "wrong", tmp_path / "out", "--do_train")) == 1
    assert "expected 0..1, as semantic_class_to_id has them, found 2" in capsys.readouterr().err


def test_annotation_numbers_instances_of_learnt_classes(data: Path) -> None:
    images = fine_tuning_data.FineTuningImages([], None, reduce_labels=True, num_classes=3)
    class_ids = np.array([[0, 2, 2], [3, 3, 0]], np.uint8)
    instance_ids = np.array([[0, 300, 7], [5, 5, 9]], np.uint16)
    numbers, classes = images._number(class_ids, instance_ids, 0)
    assert numbers.tolist() == [[0, 2, 1], [3, 3, 0]]
    assert classes == [1, 1, 2]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--do_train", "--do_eval"], ("epoch", "epoch", True)),
        (["--do_train", "--do_eval", "--eval_strategy", "steps", "--eval_steps", "5"], ("steps", "steps", True)),
        (["--do_train", "--do_eval", "--eval_strategy", "no"], ("no", "epoch", False)),
        (["--do_train", "--do_eval", "--evaluation_strategy=no"], ("no", "epoch", False)),
        (["--do_train", "--do_eval", "--evaluation_strategy", "steps"], ("steps", "steps", True)),
        (["--do_train", "--do_eval", "False"], ("no", "epoch", False)),
        (["--do_train"], ("no", "epoch", False)),
    ],
)
def test_saving_follows_evaluating(options: list[str], expected: tuple[str, str, bool], tmp_path: Path) -> None:
    given = [*options, "--dataset_name", "x", "--output_dir", str(tmp_path), "--use_cpu"]
    _, training = fine_tuning.parse_arguments(given)
    found = (training.eval_strategy.value, training.save_strategy.value, training.load_best_model_at_end)
    assert found == expected


@pytest.mark.parametrize("name", ["eval_strategy", "evaluation_strategy"])
def test_json_of_arguments_is_as_good_as_a_command_line(name: str, tmp_path: Path) -> None:
    content = {"do_train": True, "do_eval": True, "dataset_name": "x", "output_dir": str(tmp_path), "use_cpu": True}
    path = tmp_path / "arguments.json"
    path.write_text(json.dumps({**content, name: "steps"}), encoding="utf-8")
    _, training = fine_tuning.parse_arguments([str(path)])
    assert (training.eval_strategy, training.save_strategy) == ("steps", "steps")
    assert training.metric_for_best_model == "map"
    path.write_text(json.dumps([1]), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"arguments\.json: expected an object of arguments, found list"):
        fine_tuning.parse_arguments([str(path)])


def test_labels_are_those_that_their_example_reads(data: Path) -> None:
    split = library.load_dataset(str(data))["train"]
    theirs = transformers.Mask2FormerImageProcessor(
        size={"height": 32, "width": 64}, do_reduce_labels=True, ignore_index=255
    )
    ours = integration.Mask2FormerImageProcessor(size={"height": 32, "width": 64})
    images = fine_tuning_data.FineTuningImages(split, ours, reduce_labels=True, num_classes=2)
    for row, sample in zip(split, images, strict=True):
        annotation = np.array(row["annotation"])
        class_of = {int(pair[1]): int(pair[0]) for pair in np.unique(annotation.reshape(-1, 3), axis=0)}
        expected = theirs(
            [np.array(row["image"])], segmentation_maps=[annotation[..., 1]], instance_id_to_semantic_id=class_of
        )
        masks = {(int(c), m.numpy().tobytes()) for c, m in zip(expected["class_labels"][0], expected["mask_labels"][0])}
        found = zip(sample["class_labels"], sample["mask_labels"])
        assert {(int(label), mask.numpy().tobytes()) for label, mask in found} == masks


def test_options_of_all_commands_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "extras_of_fine_tuning.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    shared = ["--import", "extras_of_fine_tuning", "--device", "cpu", f"--output={tmp_path / 'run'}"]
    _, training = fine_tuning.parse_arguments([*shared, "--dataset_name", "d", "--do_train"])
    assert (training.use_cpu, training.output_dir) == (True, str(tmp_path / "run"))
    assert "extras_of_fine_tuning" in sys.modules
    with pytest.raises(ConfigError, match="--device: expected cpu or cuda"):
        fine_tuning.parse_arguments(["--device", "tpu"])
