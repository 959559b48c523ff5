"""Checks and comparison of results, the choice of evaluators, and the command for saved predictions."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mask2former.config import get_cfg
from mask2former.errors import ConfigError, DatasetError, InputError
from mask2former.evaluation import (
    COCOEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluators,
    SemSegEvaluator,
    build_evaluator,
    check_percentages,
    verify_results,
)
from mask2former.evaluation.__main__ import main
from mask2former.evaluation.protocol import metadata_ids, metadata_names, metadata_path
from mask2former.evaluation.results import format_table
from mask2former.files.atomic import write_json
from mask2former.files.json_files import read_json
from mask2former.files.pictures import write_picture
from mask2former.structures import Metadata, MetadataCatalog
from tests.evaluation.reference_data import REFERENCE, ReferenceData


@pytest.mark.parametrize("value", [-0.1, 100.1, float("inf"), -1.0])
def test_check_percentages_refuses_values_out_of_range(value: float) -> None:
    with pytest.raises(InputError, match=r"segm/AP is .*0\.\.100"):
        check_percentages({"segm": {"AP50": 3.0, "AP": value}})


def test_check_percentages_accepts_nan_and_rounding() -> None:
    results = {"segm": {"AP": math.nan, "AP50": 0.0, "AP75": 100 * (1 + 1e-15)}}
    assert check_percentages(results) is results


def cfg_expecting(*entries: Any) -> Any:
    cfg = get_cfg()
    cfg.TEST.EXPECTED_RESULTS = list(entries)
    return cfg


RESULTS = {"panoptic_seg": {"PQ": 52.0, "SQ": math.nan}, "segm": {"AP": 43.0}}


def test_verify_results_accepts_values_within_tolerance() -> None:
    verify_results(cfg_expecting(), RESULTS)
    verify_results(cfg_expecting(["panoptic_seg", "PQ", 51.5, 0.5], ["segm", "AP", 43, 0]), RESULTS)
    with pytest.raises(InputError, match="found 52"):
        verify_results(cfg_expecting(["panoptic_seg", "PQ", 51.5, 0.49], ["segm", "AP", 43, 0]), RESULTS)


@pytest.mark.parametrize(
    ("entry", "error", "message"),
    [
        (["panoptic_seg", "PQ", 51.0, 0.5], InputError, r"panoptic_seg/PQ: expected 51.0 ± 0.5, found 52.0"),
        (["panoptic_seg", "SQ", 51.0, 0.5], InputError, "found nan"),
        (["bbox", "AP", 51.0, 0.5], ConfigError, r"'bbox' was not evaluated, there are \['panoptic_seg', 'segm'\]"),
        (["segm", "PQ", 51.0, 0.5], ConfigError, r"'segm' has no metric 'PQ', there are \['AP'\]"),
        (["segm", "AP"], ConfigError, r"an entry is \[task, metric, value, tolerance\]"),
        (["segm", "AP", "much", 1], ConfigError, "an entry is"),
    ],
)
def test_verify_results_refuses(entry: list[Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        verify_results(cfg_expecting(["segm", "AP", 43, 0], entry), RESULTS)


def test_format_table_aligns_columns() -> None:
    assert format_table(["class", "AP"], [["cat", 7.125], ["elephant", math.nan], ["ox", 100]]).splitlines() == [
        "| class    |   AP |",
        "|----------|------|",
        "| cat      | 7.12 |",
        "| elephant |    - |",
        "| ox       |  100 |",
    ]


def test_written_files_replace_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "a.json"
    write_json({"a": 1}, path)
    with pytest.raises(TypeError):
        write_json({"a": object()}, path)
    assert read_json(path) == {"a": 1}
    write_picture(np.zeros((2, 2), dtype=np.uint8), tmp_path / "sub" / "a.png")
    assert sorted(p.name for p in path.parent.iterdir()) == ["a.json", "a.png"]


def cfg_for(tmp_path: Path, **tasks: bool) -> Any:
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(tmp_path)
    switches = {"PANOPTIC_ON": False, "INSTANCE_ON": False, "SEMANTIC_ON": False, **tasks}
    for name, value in switches.items():
        cfg.MODEL.MASK_FORMER.TEST[name] = value
    return cfg


def kinds(evaluator: Any) -> list[type]:
    return [type(e) for e in (evaluator.evaluators if isinstance(evaluator, DatasetEvaluators) else [evaluator])]


@pytest.mark.parametrize(
    ("tasks", "expected"),
    [
        (["PANOPTIC_ON"], [COCOPanopticEvaluator]),
        (["INSTANCE_ON"], [COCOEvaluator]),
        (["SEMANTIC_ON"], [SemSegEvaluator]),
        (["PANOPTIC_ON", "INSTANCE_ON", "SEMANTIC_ON"], [COCOPanopticEvaluator, COCOEvaluator, SemSegEvaluator]),
    ],
)
def test_build_evaluator_follows_the_switches(
    tmp_path: Path, reference: ReferenceData, tasks: list[str], expected: list[type]
) -> None:
    cfg = cfg_for(tmp_path, **dict.fromkeys(tasks, True))
    evaluator = build_evaluator(cfg, reference.name)
    assert kinds(evaluator) == expected
    evaluator.process(reference.inputs, reference.outputs)
    results = evaluator.evaluate()
    assert results is not None
    assert (tmp_path / "inference").is_dir()


@pytest.mark.parametrize("evaluator_type", ["ade20k_panoptic_seg", "cityscapes_panoptic_seg", "coco", "sem_seg"])
def test_build_evaluator_knows_the_type(
    tmp_path: Path, reference: ReferenceData, dataset_name: str, evaluator_type: str
) -> None:
    fields = {**MetadataCatalog.get(reference.name).as_dict(), "evaluator_type": evaluator_type}
    MetadataCatalog.get(dataset_name).set(**{k: v for k, v in fields.items() if k != "name"})
    expected = {"coco": [COCOEvaluator], "sem_seg": [SemSegEvaluator]}.get(evaluator_type, [COCOPanopticEvaluator])
    assert kinds(build_evaluator(cfg_for(tmp_path, PANOPTIC_ON=True), dataset_name, tmp_path)) == expected


def test_build_evaluator_refuses(tmp_path: Path, reference: ReferenceData, dataset_name: str) -> None:
    with pytest.raises(ConfigError, match=f"evaluator_type of data set {dataset_name!r}: expected one of .*found None"):
        build_evaluator(cfg_for(tmp_path), dataset_name)
    with pytest.raises(ConfigError, match="nothing to evaluate"):
        build_evaluator(cfg_for(tmp_path), reference.name)
    MetadataCatalog.get(dataset_name).set(evaluator_type="coco_panoptic_seg", json_file=None)
    with pytest.raises(ConfigError, match="nothing to evaluate"):
        build_evaluator(cfg_for(tmp_path, INSTANCE_ON=True), dataset_name)


def test_command_prints_metrics(capsys: pytest.CaptureFixture[str]) -> None:
    truth = ["--gt-json", str(REFERENCE / "panoptic.json"), "--gt-folder", str(REFERENCE / "panoptic")]
    prediction = ["--pred-json", str(REFERENCE / "panoptic.json"), "--pred-folder", str(REFERENCE / "panoptic")]
    assert main(["panoptic", *truth, *prediction]) == 0
    assert json.loads(capsys.readouterr().out)["panoptic_seg"]["PQ"] == pytest.approx(100)
    labels = ["--gt-dir", str(REFERENCE / "panoptic_semseg"), "--predictions", str(REFERENCE / "panoptic_semseg")]
    assert main(["sem-seg", *labels, "--class-names", *"abcdefghi"]) == 1
    assert "labels must lie in 0..8, found 1..255" in capsys.readouterr().err


def test_command_names_a_wrong_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["coco", "--gt-json", str(REFERENCE / "instances.json"), "--results-json", str(tmp_path / "none.json")]
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert "none.json: file not found" in captured.err
    assert main(["--verbose", *arguments]) == 1
    assert "Traceback" in capsys.readouterr().err
    with pytest.raises(SystemExit) as usage:
        main(["coco"])
    assert usage.value.code == 2


@pytest.mark.parametrize(
    ("read", "value", "expected"),
    [
        (metadata_path, 3, "expected a path, found 3"),
        (metadata_names, "cat", "expected a list of names, found 'cat'"),
        (metadata_names, [1, 2], r"expected a list of names, found \[1, 2\]"),
        (metadata_ids, [1], r"expected a mapping of ids, found \[1\]"),
    ],
)
def test_metadata_of_another_kind_is_named(read: Callable[..., object], value: object, expected: str) -> None:
    metadata = Metadata("toys", field=value)
    with pytest.raises(DatasetError, match=f"Evaluator: metadata 'field' of data set 'toys': {expected}"):
        read(metadata, "field", "Evaluator")
