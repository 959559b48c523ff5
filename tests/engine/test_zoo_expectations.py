"""Published metrics as expected results."""

from __future__ import annotations

import pytest

from mask2former.config import get_cfg
from mask2former.engine.evaluating import expect_zoo_metrics
from mask2former.errors import CheckpointError, ConfigError, InputError
from mask2former.evaluation import verify_results


def test_expect_zoo_metrics_leaves_a_config_without_name_alone() -> None:
    cfg = get_cfg()
    assert expect_zoo_metrics(cfg, {}) is cfg


def test_expect_zoo_metrics_verifies_within_the_tolerance() -> None:
    cfg = get_cfg()
    cfg.TEST.EXPECTED_ZOO = "coco/panoptic/r50"
    cfg.TEST.EXPECTED_RESULTS = [["segm", "AP50", 60.0, 1.0]]
    cfg.freeze()
    results = {"panoptic_seg": {"PQ": 51.94}, "segm": {"AP": 41.65, "AP50": 60.5}, "sem_seg": {"mIoU": 61.7}}
    expected = expect_zoo_metrics(cfg, results)
    assert expected.TEST.EXPECTED_RESULTS == [
        ["segm", "AP50", 60.0, 1.0],
        ["panoptic_seg", "PQ", 51.9, 0.1],
        ["segm", "AP", 41.7, 0.1],
        ["sem_seg", "mIoU", 61.7, 0.1],
    ]
    assert len(cfg.TEST.EXPECTED_RESULTS) == 1
    verify_results(expected, results)
    results["panoptic_seg"]["PQ"] = 51.7
    with pytest.raises(InputError, match=r"panoptic_seg/PQ: expected 51.9 ± 0.1, found 51.7"):
        verify_results(expected, results)


def test_expect_zoo_metrics_takes_what_was_evaluated(caplog: pytest.LogCaptureFixture) -> None:
    cfg = get_cfg()
    cfg.TEST.EXPECTED_ZOO = "cityscapes/panoptic/r50"
    assert expect_zoo_metrics(cfg, {"sem_seg": {"IoU": 77.5}}).TEST.EXPECTED_RESULTS == [["sem_seg", "IoU", 77.5, 0.1]]
    assert "published PQ, AP were not evaluated" in caplog.text
    with pytest.raises(ConfigError, match="of which nothing was evaluated"):
        expect_zoo_metrics(cfg, {"bbox": {"AP": 1.0}})
    cfg.TEST.EXPECTED_ZOO = "cityscapes/panoptic/r5000"
    with pytest.raises(CheckpointError, match="no such model in the zoo"):
        expect_zoo_metrics(cfg, {})


def test_expect_zoo_metrics_knows_test_time_augmentation() -> None:
    cfg = get_cfg()
    cfg.TEST.EXPECTED_ZOO, results = "ade20k/semantic/r50", {"sem_seg": {"mIoU": 47.0}, "sem_seg_TTA": {"mIoU": 49.0}}
    plain = expect_zoo_metrics(cfg, results).TEST.EXPECTED_RESULTS
    assert [entry[:2] for entry in plain] == [["sem_seg", "mIoU"]]
    cfg.TEST.AUG.ENABLED = True
    augmented = expect_zoo_metrics(cfg, results).TEST.EXPECTED_RESULTS
    assert [entry[:2] for entry in augmented] == [["sem_seg", "mIoU"], ["sem_seg_TTA", "mIoU"]]
    assert augmented[0] == plain[0]
    assert augmented[1][2] > plain[0][2]
