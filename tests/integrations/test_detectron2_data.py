"""Data sets registered in one project and found in the other, and augmentations of detectron2 in our mapper."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("detectron2", reason="detectron2 is not installed (it is installed from its repository)")

from detectron2.data import DatasetCatalog as TheirDatasets
from detectron2.data import MetadataCatalog as TheirMetadata
from detectron2.data import transforms as T

from mask2former.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from mask2former.data.presets import MAPPER_PRESETS
from mask2former.data.transforms import AugmentationList, RandomFlip
from mask2former.errors import ConfigError, DatasetError
from mask2former.integrations.detectron2 import DatasetMapper as IntegratedMapper
from mask2former.integrations.detectron2 import DetectronAugmentation
from tests.integrations.tiny_detectron2 import SHAPES_CONFIG, TINY, tiny_shapes_cfg

ROOT = Path(__file__).parents[2]
IGNORED = 255


@pytest.fixture
def name() -> Iterator[str]:
    """A name that is free before and after."""
    chosen = "somebodys_data"
    yield chosen
    for catalog in (DatasetCatalog, MetadataCatalog, TheirDatasets, TheirMetadata):
        if chosen in catalog:
            catalog.remove(chosen)


def test_data_registered_in_detectron2_are_found_in_ours(name: str) -> None:
    TheirDatasets.register(name, lambda: [{"file_name": "a.png"}])
    TheirMetadata.get(name).set(thing_classes=["cat"], evaluator_type="coco")
    assert name in DatasetCatalog.list()
    assert DatasetCatalog.get(name) == [{"file_name": "a.png"}]
    assert MetadataCatalog.get(name).get("thing_classes") == ["cat"]
    assert MetadataCatalog.get(name).thing_classes == ["cat"]
    with pytest.raises(DatasetError, match="registered already"):
        DatasetCatalog.register(name, list)


def test_data_registered_in_ours_are_found_in_detectron2(name: str) -> None:
    DatasetCatalog.register(name, lambda: [{"file_name": "b.png"}])
    MetadataCatalog.get(name).set(stuff_classes=["sky"])
    assert name in TheirDatasets.list()
    assert TheirDatasets.get(name) == [{"file_name": "b.png"}]
    assert TheirMetadata.get(name).stuff_classes == ["sky"]
    assert TheirMetadata.get(name).get("thing_classes") is None


def test_metadata_asked_for_early_are_one_object(name: str) -> None:
    TheirMetadata.get(name).set(thing_classes=["dog"])
    MetadataCatalog.get(name).set(evaluator_type="coco")
    assert TheirMetadata.get(name).evaluator_type == "coco"


def test_built_in_data_of_both_are_found_in_both() -> None:
    assert "lvis_v1_train" in DatasetCatalog
    assert {"ade20k_panoptic_train", "shapes_panoptic_train"} <= set(TheirDatasets.list())
    assert len(TheirMetadata.get("ade20k_panoptic_train").stuff_classes) == 150
    with pytest.raises(DatasetError, match="no data set is called 'lvis_v9'; did you mean"):
        DatasetCatalog.get("lvis_v9")


REGISTRATION = """
import cv2, numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

def records():
    for name in "ab":
        cv2.imwrite(f"{name}.jpg", np.full((40, 48, 3), 90, np.uint8))
        cv2.imwrite(f"{name}.png", np.repeat(np.uint8([[0], [1]]), 20, 0).repeat(48, 1))
    files = [dict(file_name=f"{name}.jpg", sem_seg_file_name=f"{name}.png") for name in "ab"]
    return [dict(record, height=40, width=48, image_id=record["file_name"]) for record in files]

DatasetCatalog.register("somebodys_stripes", records)
MetadataCatalog.get("somebodys_stripes").set(stuff_classes=["up", "down"], evaluator_type="sem_seg", ignore_label=255)
"""


def test_our_train_script_trains_on_data_registered_in_detectron2(tmp_path: Path) -> None:
    (tmp_path / "somebodys_project.py").write_text(REGISTRATION)
    options = [option.strip("'") for option in TINY] + ["SOLVER.MAX_ITER", "1", "OUTPUT_DIR", "out"]
    options += ["INPUT.DATASET_MAPPER_NAME", "mask_former_semantic", "MODEL.MASK_FORMER.TEST.PANOPTIC_ON", "False"]
    options += ["MODEL.MASK_FORMER.TEST.SEMANTIC_ON", "True", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "2"]
    options += ["DATASETS.TRAIN", "('somebodys_stripes',)", "DATASETS.TEST", "('somebodys_stripes',)"]
    script = [sys.executable, "-W", "ignore", ROOT / "tools/train_net.py", "--import", "somebodys_project"]
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": "", "OMP_NUM_THREADS": "1"}
    command = [*script, "--config-file", SHAPES_CONFIG, *options]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "mIoU" in done.stdout + done.stderr


def test_built_in_data_of_detectron2_are_found_without_importing_it() -> None:
    code = (
        "import sys\n"
        "from mask2former.data import DatasetCatalog, MetadataCatalog\n"
        "assert DatasetCatalog.find('ade20k_panoptic_val') and 'detectron2' not in sys.modules\n"
        "assert MetadataCatalog.get('voc_2007_train').get('dirname') is None\n"
        "assert DatasetCatalog.find('voc_2007_train')\n"
        "assert MetadataCatalog.get('voc_2007_train').year == 2007"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_import_of_a_missing_module_is_one_error(capsys: pytest.CaptureFixture[str]) -> None:
    from mask2former.commands.cli import train_main

    assert train_main(["--import", "no_such_module", "--config-file", str(SHAPES_CONFIG)]) == 1
    assert capsys.readouterr().err.startswith("error: --import no_such_module: ")


AUGMENTATIONS: list[Any] = [
    T.RandomFlip(),
    T.ResizeShortestEdge((40, 50), 100, "choice"),
    T.RandomCrop("relative", (0.5, 0.5)),
    T.RandomCrop_CategoryAreaConstraint("absolute", (30, 40)),
    T.FixedSizeCrop((70, 100)),
    T.RandomRotation([-30, 30]),
    T.RandomContrast(0.5, 1.5),
    T.RandomExtent((0.5, 1.5), (0.2, 0.2)),
    T.RandomApply(T.RandomFlip(prob=1.0), 0.5),
    T.HFlipTransform(93),
    [T.RandomFlip(), T.Resize((33, 44))],
]


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=lambda a: type(a).__name__)
def test_augmentation_moves_image_and_labels_alike(augmentation: Any) -> None:
    labels = np.zeros((61, 93), dtype=np.int64)
    labels[10:50, 20:70] = 70_000  # more than a byte holds
    image = np.repeat((labels[..., None] > 0) * np.uint8(200) + np.uint8(20), 3, axis=-1)
    augmentations = AugmentationList([DetectronAugmentation(augmentation), RandomFlip()])
    for seed in range(3):
        transform = augmentations.sample(np.random.default_rng(seed), (61, 93), labels, image=image)
        moved, moved_labels = transform.apply_image(image), transform.apply_segmentation(labels, fill=IGNORED)
        assert moved.shape[:2] == moved_labels.shape == transform.output_size((61, 93))
        assert set(np.unique(moved_labels)) <= {0, 70_000, IGNORED}
        inside = moved_labels != IGNORED
        bright = moved[..., 0].astype(float) > moved[..., 0][inside].mean()
        core = cv2.erode(inside.astype(np.uint8), np.ones((5, 5))) > 0
        if (moved_labels[core] == 0).any() and (moved_labels[core] != 0).any():
            assert (bright == (moved_labels == 70_000))[core].mean() > 0.9
        again = augmentations.sample(np.random.default_rng(seed), (61, 93), labels, image=image)
        np.testing.assert_array_equal(again.apply_image(image), moved)


def test_augmentation_leaves_the_global_generators() -> None:
    np.random.seed(3)
    expected = np.random.rand()
    np.random.seed(3)
    image = np.zeros((9, 9, 3), dtype=np.uint8)
    DetectronAugmentation(T.RandomContrast(0.5, 1.5)).sample_for(np.random.default_rng(0), image)
    assert np.random.rand() == expected


@pytest.fixture
def record(tmp_path: Path) -> dict[str, Any]:
    """An image whose left quarter is class 1, as label map and as polygon."""
    labels = np.zeros((40, 48), dtype=np.uint8)
    labels[:, :12] = 1
    cv2.imwrite(str(tmp_path / "labels.png"), labels)
    cv2.imwrite(str(tmp_path / "image.png"), np.repeat(labels[..., None] * 200, 3, -1))
    polygon = [[0.0, 0.0, 12.0, 0.0, 12.0, 40.0, 0.0, 40.0]]
    annotation = {"bbox": [0, 0, 12, 40], "bbox_mode": 1, "category_id": 1, "segmentation": polygon, "iscrowd": 0}
    files = {"file_name": str(tmp_path / "image.png"), "sem_seg_file_name": str(tmp_path / "labels.png")}
    return {**files, "height": 40, "width": 48, "annotations": [annotation]}


@pytest.mark.parametrize("preset", ["mask_former_semantic", "mask_former_instance"])
def test_our_mapper_applies_augmentations_of_detectron2(preset: str, record: dict[str, Any]) -> None:
    flip, enlarge = T.RandomFlip(prob=1.0), T.Resize((80, 96))
    augmentations = AugmentationList([DetectronAugmentation(flip), DetectronAugmentation(enlarge)])
    mapper = DatasetMapper(augmentations, image_format="RGB", preset=MAPPER_PRESETS[preset], num_classes=2)
    sample = mapper(record, np.random.default_rng(0))
    mask = sample["instances"].gt_masks[-1]
    assert sample["image"].shape == (3, 80, 96)
    assert mask[:, 73:].all()
    assert not mask[:, :71].any()
    cfg = tiny_shapes_cfg(
        "INPUT.DATASET_MAPPER_NAME", preset, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 2, "DATASETS.TRAIN", ()
    )
    integrated = IntegratedMapper(cfg, augmentations=[flip, enlarge])(record)
    assert integrated["image"].equal(sample["image"])
    assert integrated["instances"].gt_masks.tensor.equal(sample["instances"].gt_masks)


def test_augmentations_that_cannot_be_used_are_refused(record: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"found detectron2\.data\.transforms.*RandomFlip"):
        AugmentationList([T.RandomFlip()])
    with pytest.raises(ConfigError, match="detectron2"):
        DetectronAugmentation("flip")
    crop = DetectronAugmentation(T.RandomCrop_CategoryAreaConstraint("absolute", (30, 40)))
    mapper = DatasetMapper(AugmentationList([crop]), image_format="RGB", preset=MAPPER_PRESETS["mask_former_instance"])
    with pytest.raises(ConfigError, match="looks at semantic labels"):
        mapper(record)
