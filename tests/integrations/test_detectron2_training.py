"""Loaders, trainer, evaluators, predictor and checkpointer of detectron2 with our models, mappers and data sets."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("detectron2", reason="detectron2 is not installed (it is installed from its repository)")

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.engine import DefaultPredictor, DefaultTrainer, default_argument_parser
from detectron2.evaluation import COCOEvaluator, COCOPanopticEvaluator, SemSegEvaluator, inference_on_dataset
from detectron2.modeling import DatasetMapperTTA, build_model
from detectron2.structures import BitMasks, Instances
from detectron2.utils.visualizer import Visualizer

from mask2former import evaluation
from mask2former.data import DatasetMapper as OurMapper
from mask2former.data import register_builtin_datasets
from mask2former.errors import ConfigError, InputError
from mask2former.integrations import detectron2 as integration
from mask2former.integrations.detectron2 import instances_from_detectron2, training
from tests.integrations.tiny_detectron2 import SHAPES_CONFIG, TINY, randomise, tiny_shapes_cfg

TRAIN_SCRIPT = Path(__file__).parents[2] / "tools/train_net_detectron2.py"
PRESETS = {
    "panoptic": ("shapes_panoptic_train", "mask_former_panoptic"),
    "instance": ("shapes_instance_train", "mask_former_instance"),
    "semantic": ("shapes_sem_seg_train", "mask_former_semantic"),
}


@pytest.fixture(scope="module")
def drawn(draw_shapes: Callable[..., Path]) -> Path:
    return draw_shapes()


@pytest.fixture(autouse=True)
def _shapes(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(drawn))
    register_builtin_datasets()


def cfg_of(kind: str, *overrides: Any) -> CfgNode:
    name, mapper = PRESETS[kind]
    return tiny_shapes_cfg("DATASETS.TRAIN", (name,), "INPUT.DATASET_MAPPER_NAME", mapper, *overrides)


@pytest.mark.parametrize("kind", PRESETS)
def test_mapper_gives_detectron2s_loader_what_ours_gives_us(kind: str) -> None:
    cfg = cfg_of(kind)
    mapper = integration.DatasetMapper(cfg)
    record = DatasetCatalog.get(cfg.DATASETS.TRAIN[0])[0]
    np.random.seed(5)
    found = mapper(record)
    np.random.seed(5)
    expected = OurMapper.from_config(cfg)(record, np.random.default_rng(np.random.randint(2**31, size=4)))
    assert torch.equal(found["image"], expected["image"])
    assert torch.equal(found["instances"].gt_classes, expected["instances"].gt_classes)
    assert torch.equal(found["instances"].gt_masks.tensor, expected["instances"].gt_masks)
    for mask, label in zip(expected["instances"].gt_masks, expected["instances"].gt_classes.tolist()):
        assert kind != "semantic" or found["sem_seg"][mask].eq(label).all()


@pytest.mark.parametrize("kind", PRESETS)
def test_loader_of_detectron2_feeds_training(kind: str) -> None:
    cfg = cfg_of(kind)
    batch = next(iter(build_detection_train_loader(cfg, mapper=integration.DatasetMapper(cfg))))
    assert [type(sample["instances"]) for sample in batch] == [Instances] * 2
    assert type(batch[0]["instances"].gt_masks) is BitMasks
    losses = build_model(cfg).train()(batch)
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize("mask_format", ["bitmask", "polygon"])
def test_mapper_of_detectron2_feeds_training(mask_format: str) -> None:
    # Masks of shapes are run-length codes, which that project's polygons cannot be made of.
    def records() -> list[dict[str, Any]]:
        found = DatasetCatalog.get("shapes_instance_train")
        for record in found if mask_format == "polygon" else ():
            for annotation in record["annotations"]:
                x, y, width, height = annotation["bbox"]
                annotation["segmentation"] = [[x, y, x + width, y, x + width, y + height]]
        return found

    cfg = cfg_of("instance", "INPUT.MASK_FORMAT", mask_format, "MODEL.MASK_ON", True)
    mapper = DatasetMapper(cfg, is_train=True, augmentations=[])
    model = build_model(cfg).train()
    first, second = records()[:2]
    for batch in ([first, second], [first, {**second, "annotations": []}]):
        losses = model([mapper(record) for record in batch])
        assert all(loss.isfinite() for loss in losses.values())


def test_instances_without_masks_are_refused() -> None:
    cfg = cfg_of("instance", "MODEL.MASK_ON", False)
    sample = DatasetMapper(cfg, is_train=True, augmentations=[])(DatasetCatalog.get("shapes_instance_train")[0])
    with pytest.raises(InputError, match=r"train/.*lack gt_masks.*MODEL\.MASK_ON"):
        build_model(cfg).train()([sample, sample])


def run_script(*flags: Any, output: Path, options: tuple[Any, ...] = ()) -> Any:
    """What a run in this process returns."""
    tiny = [option.strip("'") for option in TINY]
    given = ["--config-file", SHAPES_CONFIG, *flags, *tiny, "OUTPUT_DIR", output, *options]
    return training.main(default_argument_parser().parse_args([*map(str, given)]))


def test_train_script_trains_resumes_and_evaluates(tmp_path: Path) -> None:
    run_script(output=tmp_path, options=("SOLVER.CHECKPOINT_PERIOD", 1))
    first = torch.load(tmp_path / "model_final.pth", weights_only=False)
    run_script("--resume", output=tmp_path, options=("SOLVER.MAX_ITER", 3))
    second = torch.load(tmp_path / "model_final.pth", weights_only=False)
    assert [first["iteration"], second["iteration"]] == [1, 2]
    assert any(not torch.equal(value, second["model"][name]) for name, value in first["model"].items())
    options = ("MODEL.WEIGHTS", tmp_path / "model_final.pth", "TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", (32, 48))
    evaluated = run_script("--eval-only", output=tmp_path / "evaluated", options=options)
    tasks = {"panoptic_seg", "segm", "bbox", "sem_seg"}
    assert evaluated.keys() == tasks | {f"{task}_TTA" for task in tasks}
    last = json.loads((tmp_path / "metrics.json").read_text().splitlines()[-1])
    assert evaluated["sem_seg"]["mIoU"] == pytest.approx(last["sem_seg/mIoU"])


def test_train_script_reports_wrong_input_in_a_line(tmp_path: Path) -> None:
    command = [sys.executable, TRAIN_SCRIPT, "--config-file", SHAPES_CONFIG, "MODEL.SEM_SEG_HEAD.NAME", "Nonsense"]
    ended = subprocess.run([*command, "OUTPUT_DIR", tmp_path], capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("error: MODEL.SEM_SEG_HEAD.NAME: expected one of")
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_gradients_are_clipped_as_large_as_they_are(scale: float) -> None:
    cfg = tiny_shapes_cfg("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.5, "SOLVER.OPTIMIZER", "SGD", "SOLVER.BASE_LR", 1.0)
    model = nn.Linear(1, 1, bias=False)
    before = model.weight.item()
    optimizer = integration.build_optimizer(cfg, model)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    scaler.scale(model(torch.tensor([[7.0]])).sum()).backward()
    scaler.step(optimizer)
    assert model.weight.item() - before == pytest.approx(-0.5 * (1 + cfg.SOLVER.WEIGHT_DECAY * before), rel=0.1)


def test_default_trainer_trains_our_model(tmp_path: Path) -> None:
    class Trainer(DefaultTrainer):
        @classmethod
        def build_train_loader(cls, cfg: CfgNode) -> Any:
            return build_detection_train_loader(cfg, mapper=integration.DatasetMapper(cfg))

    clipping = ("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm")  # it knows no norm over the whole model
    trainer = Trainer(cfg_of("panoptic", "OUTPUT_DIR", str(tmp_path), "DATASETS.TEST", (), *clipping))
    trainer.resume_or_load(resume=False)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    assert any(not torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    assert (tmp_path / "model_final.pth").is_file()


def test_evaluators_of_detectron2_find_what_ours_find(tmp_path: Path) -> None:
    pytest.importorskip("panopticapi")
    cfg = tiny_shapes_cfg("MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD", 0.0)
    name = "shapes_panoptic_val"
    loader = build_detection_test_loader(cfg, name, mapper=integration.DatasetMapper(cfg, is_train=False))
    model = Painter(MetadataCatalog.get(name).as_dict())
    for theirs, ours, task in (
        (COCOPanopticEvaluator(name, str(tmp_path)), evaluation.COCOPanopticEvaluator(name), "panoptic_seg"),
        (COCOEvaluator(name, ("segm",), output_dir=str(tmp_path)), evaluation.COCOEvaluator(name), "segm"),
        (SemSegEvaluator(name), evaluation.SemSegEvaluator(name), "sem_seg"),
    ):
        found = inference_on_dataset(model, loader, theirs)[task]
        expected = evaluation.inference_on_dataset(model, loader, ours)[task]
        assert 1 < next(iter(expected.values())) < 100
        for metric in found.keys() & expected.keys():
            assert found[metric] == pytest.approx(expected[metric], abs=1e-3, nan_ok=True), metric


class Painter(nn.Module):
    """Predicts what our mapper reads of an image, but for its right half."""

    def __init__(self, metadata: dict[str, Any]) -> None:
        super().__init__()
        cfg = tiny_shapes_cfg()
        self.mapper = OurMapper.from_config(cfg)
        self.mapper.augmentations.augmentations.clear()
        self.records = {record["file_name"]: record for record in DatasetCatalog.get("shapes_panoptic_val")}
        self.things = set(metadata["thing_dataset_id_to_contiguous_id"].values())
        self.num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES

    def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [self.paint(sample["file_name"]) for sample in batch]

    def paint(self, file_name: str) -> dict[str, Any]:
        truth = self.mapper(self.records[file_name])["instances"]
        masks, classes = truth.gt_masks.clone(), truth.gt_classes
        masks[..., masks.shape[-1] // 2 :] = False
        ids = (masks * torch.arange(1, len(masks) + 1, dtype=torch.int32).view(-1, 1, 1)).amax(0).int()
        segments = [
            {"id": index + 1, "category_id": label, "isthing": label in self.things}
            for index, label in enumerate(classes.tolist())
            if masks[index].any()
        ]
        sem_seg = torch.stack([masks[classes == label].any(0) for label in range(self.num_classes)]).float()
        things = torch.tensor([label in self.things for label in classes.tolist()]) & masks.any(-1).any(-1)
        found = Instances(masks.shape[-2:], pred_masks=masks[things], pred_classes=classes[things])
        found.scores, found.pred_boxes = torch.ones(len(found)), BitMasks(masks[things]).get_bounding_boxes()
        return {"panoptic_seg": (ids, segments), "sem_seg": sem_seg, "instances": found}


def test_predictor_and_visualizer_of_detectron2_work(tmp_path: Path) -> None:
    tasks = [f"MODEL.MASK_FORMER.TEST.{task}_ON" for task in ("SEMANTIC", "INSTANCE", "PANOPTIC")]
    thresholds = [f"MODEL.MASK_FORMER.TEST.{name}_THRESHOLD" for name in ("OBJECT_MASK", "OVERLAP")]
    cfg = tiny_shapes_cfg(*(part for task in tasks for part in (task, True)), thresholds[0], 0.0, thresholds[1], 0.0)
    model = randomise(build_model(cfg))
    DetectionCheckpointer(model, str(tmp_path)).save("weights")
    cfg.MODEL.WEIGHTS = str(tmp_path / "weights.pth")
    picture = np.random.default_rng(0).integers(256, size=(61, 93, 3), dtype=np.uint8)
    results = DefaultPredictor(cfg)(picture)
    ids, segments = results["panoptic_seg"]
    assert ids.shape == results["sem_seg"].shape[1:] == results["instances"].image_size == (61, 93)
    metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
    for draw in (
        lambda visualizer: visualizer.draw_panoptic_seg(ids, segments),
        lambda visualizer: visualizer.draw_instance_predictions(results["instances"]),
        lambda visualizer: visualizer.draw_sem_seg(results["sem_seg"].argmax(0)),
    ):
        assert (draw(Visualizer(picture, metadata)).get_image() != picture).any()


def test_checkpointer_of_detectron2_reads_weights_of_a_backbone(tmp_path: Path) -> None:
    model = build_model(tiny_shapes_cfg())
    wanted = {name: torch.full_like(value, 3) for name, value in model.backbone.state_dict().items()}
    arrays = {name: value.numpy() for name, value in wanted.items()}
    path = tmp_path / "backbone.pkl"
    path.write_bytes(pickle.dumps({"model": arrays, "matching_heuristics": True, "__author__": "somebody"}))
    DetectionCheckpointer(model).load(str(path))
    found = model.backbone.state_dict()
    assert [name for name, value in wanted.items() if not torch.equal(value, found[name])] == []


def test_checkpoints_of_ours_and_of_detectron2_are_the_same(tmp_path: Path) -> None:
    import mask2former
    from mask2former.checkpoint import load_weights

    cfg = tiny_shapes_cfg()
    ours_cfg = mask2former.get_cfg()
    ours_cfg.merge_from_file(SHAPES_CONFIG)
    ours_cfg.merge_from_list([option.strip("'") for option in TINY])
    theirs, ours = randomise(build_model(cfg)), mask2former.build_model(ours_cfg)
    DetectionCheckpointer(theirs, str(tmp_path)).save("theirs")
    report = load_weights(ours, tmp_path / "theirs.pth")
    assert not report.missing and not report.unexpected and not report.mismatched  # noqa: PT018
    torch.save({"model": ours.state_dict()}, tmp_path / "ours.pth")
    again = build_model(cfg)
    DetectionCheckpointer(again).load(str(tmp_path / "ours.pth"))
    torch.testing.assert_close(again.state_dict(), theirs.state_dict(), rtol=0, atol=0)


def test_test_time_augmentation_of_detectron2_works() -> None:
    cfg = tiny_shapes_cfg("TEST.AUG.MIN_SIZES", (32, 48), "MODEL.MASK_FORMER.TEST.SEMANTIC_ON", True)
    model = randomise(build_model(cfg)).eval()
    copies = DatasetMapperTTA(cfg)(
        {"image": torch.randint(256, (3, 61, 93), dtype=torch.uint8), "height": 61, "width": 93}
    )
    assert len(copies) == 4
    maps = [model([copy])[0]["sem_seg"] for copy in copies]
    assert {tuple(sem_seg.shape[1:]) for sem_seg in maps} == {(61, 93)}
    mirrored = [any(type(t).__name__ == "HFlipTransform" for t in copy["transforms"].transforms) for copy in copies]
    assert sum(mirrored) == 2


def test_results_of_our_test_time_augmentation_are_detectron2s_too() -> None:
    from mask2former.inference.test_time_augmentation import with_test_time_augmentation

    cfg = tiny_shapes_cfg("TEST.AUG.MIN_SIZES", (32,), "MODEL.MASK_FORMER.TEST.INSTANCE_ON", True)
    model = with_test_time_augmentation(cfg, randomise(build_model(cfg)).eval())
    (result,) = model([{"image": torch.randint(256, (3, 40, 50), dtype=torch.uint8)}])
    assert instances_from_detectron2(result["instances"]).image_size == (40, 50)


def test_mapper_refuses_augmentations_that_it_cannot_use() -> None:
    with pytest.raises(ConfigError, match=r"INPUT\.DATASET_MAPPER_NAME"):
        integration.DatasetMapper(cfg_of("panoptic", "INPUT.DATASET_MAPPER_NAME", "nonsense"))
