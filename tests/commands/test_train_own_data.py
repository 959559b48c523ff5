"""Training on users' data from the command line, and with own registrations and an own mapper in Python."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mask2former import Predictor, get_cfg
from mask2former.commands.cli import main, predict_main, train_main
from mask2former.config import CfgNode
from mask2former.data import DatasetMapper, register_coco_instances
from mask2former.data.catalog import DatasetCatalog, MetadataCatalog
from mask2former.data.own_data import convert_own_data
from mask2former.data.presets import MapperPreset
from mask2former.data.transforms import AugmentationList, RandomFlip, ResizeShortestEdge
from mask2former.engine import train
from mask2former.errors import CheckpointError
from mask2former.files.coco import read_instances
from mask2former.files.coco_panoptic import check_segment_ids, read_panoptic
from mask2former.files.maps import read_panoptic_ids
from tests.data_pipeline import own_data_trees as trees
from tests.data_pipeline import tool_trees

REPOSITORY = Path(__file__).parents[2]

CONFIG = REPOSITORY / "configs/shapes/panoptic-segmentation/maskformer2_R18_quickstart.yaml"
TINY = """
    MODEL.DEVICE cpu MODEL.SEM_SEG_HEAD.CONVS_DIM 32 MODEL.SEM_SEG_HEAD.MASK_DIM 32
    MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS 1 MODEL.MASK_FORMER.HIDDEN_DIM 32 MODEL.MASK_FORMER.NHEADS 4
    MODEL.MASK_FORMER.DIM_FEEDFORWARD 32 MODEL.MASK_FORMER.DEC_LAYERS 2 MODEL.MASK_FORMER.NUM_OBJECT_QUERIES 8
    MODEL.MASK_FORMER.TRAIN_NUM_POINTS 64 SOLVER.IMS_PER_BATCH 2 SOLVER.MAX_ITER 2 DATALOADER.NUM_WORKERS 0
    INPUT.IMAGE_SIZE 32 INPUT.MIN_SIZE_TRAIN [32] INPUT.MIN_SIZE_TEST 32 SOLVER.AMP.ENABLED False
    DATALOADER.FILTER_EMPTY_ANNOTATIONS False
""".split()
MAPPERS = {
    "semantic": "mask_former_semantic",
    "instance": "coco_instance_lsj",
    "panoptic": "coco_panoptic_lsj",
}


@pytest.fixture(autouse=True)
def _own_catalogs(monkeypatch: pytest.MonkeyPatch) -> None:
    for catalog in (DatasetCatalog, MetadataCatalog):
        for key in ("_loaders", "_entries"):
            if hasattr(catalog, key):
                monkeypatch.setattr(catalog, key, dict(getattr(catalog, key)))


def arguments(output: Path, task: str, *flags: str, options: tuple[Any, ...] = ()) -> list[str]:
    overrides = [*TINY, "INPUT.DATASET_MAPPER_NAME", MAPPERS[task], "OUTPUT_DIR", str(output)]
    return ["--config-file", str(CONFIG), *flags, *overrides, *map(str, options)]


def last_metrics(output: Path) -> dict[str, Any]:
    return json.loads((output / "metrics.json").read_text().splitlines()[-1])


def saved_config(output: Path) -> CfgNode:
    cfg = get_cfg()
    cfg.merge_from_file(output / "config.yaml")
    return cfg


def write_datasets_folder(root: Path) -> Path:
    """The scenes of COCO panoptic in the columns of the library datasets."""
    config = pytest.importorskip("datasets.config", reason="needs the extra [transformers]")
    config.HF_DATASETS_CACHE = root.with_name("cache")
    convert_own_data(trees.write_coco_panoptic(root.with_name("original")), root, target="datasets")
    return root


def write_yolo_zip(root: Path) -> Path:
    """Roboflow's export in a zip file."""
    return Path(shutil.make_archive(str(root), "zip", tool_trees.yolo_roboflow(root.with_name("original"))))


CASES = {
    "YOLO in a zip file": (write_yolo_zip, "instance", {"segm/AP"}, 2, ["cat", "dog"]),
    "Pascal VOC in colours": (tool_trees.cvat_masks, "semantic", {"sem_seg/mIoU"}, 3, ["background", "cat", "dog"]),
    "datasets, instance": (write_datasets_folder, "instance", {"segm/AP"}, 2, ["box", "disc"]),
    "datasets, panoptic": (
        write_datasets_folder,
        "panoptic",
        {"panoptic_seg/PQ", "segm/AP", "sem_seg/mIoU"},
        3,
        ["box", "disc", "sky"],
    ),
    "png tree": (trees.write_png_tree, "semantic", {"sem_seg/mIoU"}, 3, ["class_3", "class_7", "class_20"]),
    "coco instances": (trees.write_coco_instances, "instance", {"segm/AP", "bbox/AP"}, 2, ["box", "disc"]),
    "coco panoptic": (
        trees.write_coco_panoptic,
        "panoptic",
        {"panoptic_seg/PQ", "segm/AP", "sem_seg/mIoU"},
        3,
        ["box", "disc", "sky"],
    ),
    "semantic from panoptic": (trees.write_coco_panoptic, "semantic", {"sem_seg/mIoU"}, 3, ["box", "disc", "sky"]),
    "labelme": (trees.write_labelme, "instance", {"segm/AP"}, 3, ["box", "disc", "leaf"]),
}


@pytest.mark.parametrize("case", ["png tree", "coco panoptic", "labelme"])
def test_config_of_a_run_on_own_data_is_all_that_tools_need(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write, task, *_ = CASES[case]
    output, pictures = tmp_path / "out", tmp_path / "pictures"
    data = str(write(tmp_path / "my data"))
    assert train_main(arguments(output, task, "--data", data, options=("SOLVER.MAX_ITER", 0))) == 0
    for name in [*saved_config(output).DATASETS.TRAIN, *saved_config(output).DATASETS.TEST]:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    config = ["--config-file", str(output / "config.yaml")]
    for source in ("annotation", "dataloader"):
        options = ["--source", source, "--output-dir", str(pictures / source), "-n", "1"]
        assert main(["visualize-data", *config, *options]) == 0
        assert len(list((pictures / source).iterdir())) == 1
    capsys.readouterr()
    assert main(["benchmark", *config, "--task", "data", "--num-iters", "1", "--warmup", "1"]) == 0
    assert saved_config(output).DATASETS.TRAIN[0] in capsys.readouterr().out


@pytest.mark.parametrize("case", CASES)
def test_data_option_trains_evaluates_and_predicts(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write, task, expected, num_classes, names = CASES[case]
    data, output = write(tmp_path / "my data"), tmp_path / "out"
    assert train_main(arguments(output, task, "--data", str(data))) == 0
    printed = capsys.readouterr().out
    assert f"{num_classes} classes" in printed
    assert "raw id  train id" in printed
    assert all(name in printed for name in names)
    assert printed.index("raw id") < printed.index("training: 2 iterations")
    assert expected <= set(last_metrics(output))
    cfg = saved_config(output)
    assert num_classes == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    assert [name for _, name, _ in cfg.DATASETS.OWN.CLASSES] == names
    assert (cfg.MODEL.MASK_FORMER.IGNORE_REGIONS, cfg.MODEL.MASK_FORMER.LOSS_NORM) == (True, "global")
    # What is left of the run is enough to predict with names: no data, nothing registered.
    for name in [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    image = next(path for folder in (data, output, tmp_path) for path in folder.rglob("*.jpg"))
    inputs = [
        "--input",
        str(image),
        "--output",
        str(tmp_path / "pictures"),
        "--save-masks",
        "--confidence-threshold",
        "0",
    ]
    options = ["--opts", "MODEL.WEIGHTS", str(output / "model_final.pth")]
    assert predict_main(["--config-file", str(output / "config.yaml"), *inputs, *options]) == 0
    predictor = Predictor(output / "config.yaml", output / "model_final.pth")
    known = predictor.metadata.get("stuff_classes") or predictor.metadata.thing_classes
    assert known == names
    if task == "panoptic":
        assert predictor.model.thing_ids == {0, 1}


def test_saved_config_evaluates_and_resumes_without_the_option_in_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trees.write_png_tree(tmp_path / "tree")
    output = tmp_path / "out"
    monkeypatch.chdir(tmp_path)
    assert train_main(arguments(output, "semantic", "--data", "tree")) == 0
    monkeypatch.chdir(output)
    results = [line for line in capsys.readouterr().out.splitlines() if line.startswith("sem_seg:")]
    config = ["--config-file", str(output / "config.yaml")]
    weights = ["MODEL.WEIGHTS", str(output / "model_final.pth")]
    assert main(["train", *config, "--eval-only", *weights]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("sem_seg:")] == results
    assert main(["train", *config, "--resume", "SOLVER.MAX_ITER", "3"]) == 0
    assert last_metrics(output)["iteration"] == 2


def test_evaluation_on_data_alone_leaves_the_schedule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = trees.write_coco_panoptic(tmp_path / "data")
    assert train_main(arguments(tmp_path / "out", "panoptic", "--data", str(data), "--eval-only")) == 0
    printed = capsys.readouterr().out
    assert "panoptic_seg: PQ" in printed
    assert "schedule:" not in printed


@pytest.mark.slow
def test_two_processes_read_the_data_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = trees.write_png_tree(tmp_path / "tree")
    assert train_main(arguments(tmp_path / "out", "semantic", "--data", str(data), "--num-gpus", "2")) == 0
    assert capfd.readouterr().out.count("raw id  train id") == 1
    assert "sem_seg/mIoU" in last_metrics(tmp_path / "out")


@pytest.mark.parametrize(
    ("write", "task", "fitting"),
    [
        (trees.write_png_tree, "panoptic", "configs/ade20k/semantic-segmentation"),
        (trees.write_coco_instances, "panoptic", "configs/coco/instance-segmentation"),
        (trees.write_coco_panoptic, "instance", "configs/coco/panoptic-segmentation"),
        (trees.write_labelme, "semantic", "configs/coco/instance-segmentation"),
    ],
)
def test_config_of_another_task_is_refused_with_those_that_fit(
    write: Any, task: str, fitting: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_main(arguments(tmp_path / "out", task, "--data", str(write(tmp_path / "data")))) == 1
    assert fitting in capsys.readouterr().err
    assert (REPOSITORY / fitting).is_dir()


@pytest.mark.parametrize(
    ("flags", "options", "message"),
    [
        (("--classes", "names.txt"), (), "--classes goes with --data"),
        (("--ignore-label", "0"), (), "--ignore-label goes with --data"),
        (("--data", "no/such/folder"), (), "no such file or folder"),
        (("--data", "{tree}", "--ignore-label", "sky"), (), "--ignore-label sky"),
        (("--data", "{tree}"), ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 9), "the data have 3 classes"),
        (("--data", "{tree}"), ("SOLVER.IMS_PER_BATCH", 0), "SOLVER.IMS_PER_BATCH"),
    ],
)
def test_wrong_options_of_own_data_exit_with_one(
    flags: tuple[str, ...],
    options: tuple[Any, ...],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tree = str(trees.write_png_tree(tmp_path / "tree"))
    flags = tuple(flag.replace("{tree}", tree) for flag in flags)
    assert train_main(arguments(tmp_path / "out", "semantic", *flags, options=options)) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


class FlipOnlyMapper(DatasetMapper):
    """Trains on images of one size, mirrored or not."""

    @classmethod
    def build_augmentations(cls, cfg: CfgNode, preset: MapperPreset, *, ignore_label: int) -> AugmentationList:
        return AugmentationList([ResizeShortestEdge(32, 64), RandomFlip()])


def test_own_registration_and_mapper_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = trees.write_coco_instances(tmp_path / "data", boxes=True)
    for split in ("train2017", "val2017"):
        register_coco_instances(f"mine_{split}", {}, data / "annotations" / f"instances_{split}.json", data / split)
    cfg = get_cfg()
    cfg.merge_from_file(CONFIG)
    cfg.merge_from_list([*TINY, "INPUT.DATASET_MAPPER_NAME", "coco_instance_lsj", "OUTPUT_DIR", str(tmp_path / "out")])
    cfg.merge_from_list(["DATASETS.TRAIN", ["mine_train2017"], "DATASETS.TEST", ["mine_val2017"]])
    cfg.merge_from_list(["MODEL.SEM_SEG_HEAD.NUM_CLASSES", 2])
    results = train(cfg, mapper=FlipOnlyMapper.from_config(cfg))
    assert {"AP", "AP-box", "AP-disc"} <= set(results["segm"])
    printed = capsys.readouterr().out
    assert "Augmentations: AugmentationList([ResizeShortestEdge" in printed
    assert "FixedSizeCrop" not in printed


def assert_coco_holds_predictions(folder: Path, image: Path, *, task: str, names: list[str]) -> None:
    if task == "panoptic":
        found = read_panoptic(folder / "coco_panoptic.json", needs_isthing=True)
        assert [entry.name for entry in found.categories.values() if entry.is_thing] == ["box", "disc"]
        for annotation in found.annotations.values():
            ids = read_panoptic_ids(folder / "coco_panoptic" / annotation["file_name"])
            assert check_segment_ids(ids, annotation["segments_info"]) == ([], [])
    else:
        found = read_instances(folder / f"coco_{'instances' if task == 'instance' else task}.json")
        assert found.num_annotations > 0
    assert [entry.name for entry in found.categories.values()] == names
    assert [entry["file_name"] for entry in found.images.values()] == [image.name]


@pytest.mark.parametrize("case", ["png tree", "coco panoptic", "labelme"])
def test_data_need_no_config(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write, task, _, _, names = CASES[case]
    data, output = write(tmp_path / "my data"), tmp_path / "out"
    options = [*TINY[: TINY.index("SOLVER.IMS_PER_BATCH")], "SOLVER.MAX_ITER", "1", "DATALOADER.NUM_WORKERS", "0"]
    options += [
        "INPUT.IMAGE_SIZE",
        "32",
        "INPUT.MIN_SIZE_TRAIN",
        "[32]",
        "DATALOADER.FILTER_EMPTY_ANNOTATIONS",
        "False",
    ]
    words = ["--data", str(data), "--model", "r18", "--batch", "2", "--output", str(output), *options]
    assert train_main(words) == 0
    printed = capsys.readouterr().out
    told = [f"trains {task} segmentation: recipe r18", "starts from random ones", "schedule: "]
    places = [printed.index(text) for text in [*told, "training: 1 iterations"]]
    assert places == sorted(places)
    # Trained, predicted and written as COCO: no command was given a config.
    image = next(path for folder in (data, tmp_path) for path in folder.rglob("*.jpg"))
    predictions = tmp_path / "predictions"
    words = ["predict", str(image), "--weights", str(output), "--output", str(predictions), "--device", "cpu"]
    words += ["--save-coco", "--confidence-threshold", "0"]
    assert main(words) == 0
    assert [name for _, name, _ in saved_config(output).DATASETS.OWN.CLASSES] == names
    assert_coco_holds_predictions(predictions, image, task=task, names=names)
    assert main(["evaluate", "--weights", str(output), "--output", str(tmp_path / "results"), "--device", "cpu"]) == 0
    written = {path.name for path in (tmp_path / "results").rglob("*.json")}
    assert ("sem_seg_predictions.json" if task == "semantic" else "coco_instances_results.json") in written


def test_three_commands_lead_from_yolo_labels_to_predictions_as_coco(tmp_path: Path) -> None:
    """As README shows it; what makes the model small is no config."""
    data, output, predictions = (
        tool_trees.yolo_ultralytics(tmp_path / "data"),
        tmp_path / "mine",
        tmp_path / "predicted",
    )
    options = [*TINY[: TINY.index("SOLVER.IMS_PER_BATCH")], "SOLVER.MAX_ITER", "1", "DATALOADER.NUM_WORKERS", "0"]
    options += ["INPUT.IMAGE_SIZE", "32", "--model", "r18", "--batch", "2"]
    assert main(["train", "--data", str(data), "--output", str(output), *options]) == 0
    photos, words = str(data / "images"), ["--weights", str(output), "--output", str(predictions)]
    assert main(["predict", photos, *words, "--save-coco", "--confidence-threshold", "0"]) == 0
    assert main(["evaluate", "--weights", str(output), "--output", str(tmp_path / "results")]) == 0
    found = read_instances(predictions / "coco_instances.json", needs_categories=True)
    assert [entry.name for entry in found.categories.values()] == ["cat", "dog"]
    assert {image["file_name"] for image in found.images.values()} == {"train/0.jpg", "train/1.jpg", "val/2.jpg"}
    assert found.num_annotations > 0
    assert all((tmp_path / "data/images" / image["file_name"]).is_file() for image in found.images.values())


def test_recipe_without_network_names_the_way_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(address: str, **_: Any) -> Path:
        raise CheckpointError(f"{address}: no network")

    monkeypatch.setattr("mask2former.checkpoint.addresses.download", refuse)
    data = trees.write_labelme(tmp_path / "data")
    assert train_main(["--data", str(data), "--output", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(word in error for word in ("no network", "--weights FILE", "--model r18", "MODEL.WEIGHTS ''"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message", "code"),
    [
        (["--data", "{data}", "--model", "r19"], "expected one of r18, r50, r101, swin-t", 1),
        (["--data", "{data}", "--model", "r18", "--config-file", str(CONFIG)], "give one of them", 2),
        (["--data", "{data}", "--model", "r18", "--batch", "2", "SOLVER.IMS_PER_BATCH", "2"], "give one of them", 2),
        (["--data", "{data}", "--batch", "0"], "expected auto or a number from 1 on", 2),
        (["--data", "{data}", "--eval-only"], "--eval-only needs --weights", 2),
        (["--config-file", str(CONFIG), "--batch", "2"], "--batch goes with --data", 1),
    ],
)
def test_wrong_choice_of_recipe_or_batch(
    words: list[str], message: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(trees.write_labelme(tmp_path / "data"))
    try:
        found = train_main([word.replace("{data}", data) for word in words])
    except SystemExit as stop:
        found = int(stop.code or 0)
    assert found == code
    assert message in capsys.readouterr().err
