"""A loss that is not finite never reaches the weights, and says where it came from."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from mask2former.checkpoint import load_state
from mask2former.engine import Trainer
from mask2former.engine.nonfinite import MAX_CONSECUTIVE_SKIPS, NonFiniteGuard, describe_images
from mask2former.engine.optimizer import build_gradient_clipping, build_optimizer
from mask2former.errors import NonFiniteError
from tests.engine.stub_training import StubData, StubModel, run_stub, stub_config

BAD_IMAGE = 6 * 4 + 1  # in step 6 of batches of four


def test_nonfinite_loss_stops_naming_terms_and_images_with_checkpoint_intact(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError) as caught:
        run_stub(stub_config(tmp_path), bad_images=[BAD_IMAGE])
    message = str(caught.value)
    assert "iteration 6: " in message
    assert "loss_ce = nan" in message
    assert f"image_{BAD_IMAGE}.jpg" in message
    assert "image_23.jpg" not in message
    state = load_state(tmp_path / "model_0000003.pth")
    assert all(torch.isfinite(tensor).all() for tensor in state["model"].values())
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000003.pth"
    assert not (tmp_path / "model_final.pth").exists()


@pytest.mark.parametrize("parts", [1, 2])
def test_nonfinite_loss_is_skipped_and_training_goes_on(
    tmp_path: Path, parts: int, caplog: pytest.LogCaptureFixture
) -> None:
    options = ["SOLVER.NONFINITE", "skip", "SOLVER.ACCUMULATION_STEPS", parts]
    run_stub(stub_config(tmp_path, *options), bad_images=[BAD_IMAGE], noisy=False)
    warning = next(record.message for record in caplog.records if "the step is skipped (1 so far)" in record.message)
    assert f"image_{BAD_IMAGE}.jpg" in warning
    state = load_state(tmp_path / "model_final.pth")
    assert all(torch.isfinite(tensor).all() for tensor in state["model"].values())
    assert state["optimizer"]["state"][0]["step"].item() == 11  # of 12 iterations
    assert "NaN" not in (tmp_path / "metrics.json").read_text()
    assert "null" not in (tmp_path / "metrics.json").read_text()


def test_skipping_every_step_stops_at_last(tmp_path: Path) -> None:
    cfg = stub_config(tmp_path, "SOLVER.NONFINITE", "skip", "SOLVER.MAX_ITER", 100)
    with pytest.raises(NonFiniteError, match=f"{MAX_CONSECUTIVE_SKIPS} steps in a row"):
        run_stub(cfg, bad_images=range(400))


def _trainer(
    tmp_path: Path, *, policy: str, deferred: bool, bad_images: Sequence[int] = (), model: Any = None
) -> Trainer:
    cfg = stub_config(tmp_path, "SOLVER.BASE_LR", 0.1)
    model = model or StubModel(noisy=False)
    trainer = Trainer(
        model,
        build_optimizer(cfg, model),
        batches=StubData(cfg, 0, bad_images=bad_images),
        max_iter=12,
        clip_gradients=build_gradient_clipping(cfg),
    )
    trainer.guard = NonFiniteGuard(policy, deferred=deferred)
    return trainer


def test_deferred_check_skips_on_the_device_as_the_immediate_one_does(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # The GPU's path; the fused optimisers of the CPU honour the same flag, so that it can be tested here.
    torch.manual_seed(0)
    initial = StubModel().state_dict()
    results = []
    for deferred in (False, True):
        model = StubModel(noisy=False)
        model.load_state_dict(initial)
        trainer = _trainer(tmp_path, policy="skip", deferred=deferred, bad_images=[BAD_IMAGE], model=model)
        with caplog.at_level(logging.WARNING):
            caplog.clear()
            trainer.train()
        assert "iteration 6: loss_ce_0 = nan, loss_ce = nan" in caplog.text
        assert f"image_{BAD_IMAGE}.jpg" in caplog.text
        assert trainer.guard.num_skipped == 1
        results.append(model.state_dict())
    for name, tensor in results[0].items():
        assert torch.equal(tensor, results[1][name]), name


def test_deferred_check_stops_one_step_later_with_weights_untouched(tmp_path: Path) -> None:
    model = StubModel(noisy=False)
    trainer = _trainer(tmp_path, policy="stop", deferred=True, bad_images=[BAD_IMAGE], model=model)
    with pytest.raises(NonFiniteError, match=rf"iteration 6: .*image_{BAD_IMAGE}\.jpg"):
        trainer.train()
    assert trainer.iteration == 7
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())


def test_deferred_check_of_the_last_step_is_not_forgotten(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, policy="stop", deferred=True, bad_images=[11 * 4])
    with pytest.raises(NonFiniteError, match="iteration 11"):
        trainer.train()


class _ExplodingGradient(StubModel):
    """Finite losses whose gradient is not a number."""

    def forward(self, batch: Sequence[dict[str, Any]]) -> Any:
        losses = super().forward(batch)
        return {**losses, "loss_root": (self.query.weight * 0).sum().sqrt()}


@pytest.mark.parametrize("deferred", [False, True])
def test_nonfinite_gradient_of_finite_loss_is_refused(tmp_path: Path, deferred: bool) -> None:
    trainer = _trainer(tmp_path, policy="stop", deferred=deferred, model=_ExplodingGradient(noisy=False))
    with pytest.raises(NonFiniteError, match=r"the norm of the gradient = nan.*image_0\.jpg"):
        trainer.train()
    assert all(torch.isfinite(tensor).all() for tensor in trainer.model.state_dict().values())


class _RaisingModel(StubModel):
    def forward(self, batch: Sequence[dict[str, Any]]) -> Any:
        if batch[0]["file_name"] == "image_8.jpg":
            raise NonFiniteError("the matching costs of layer 3 hold nan")
        return super().forward(batch)


@pytest.mark.parametrize("deferred", [False, True])
def test_nonfinite_found_inside_the_model_gets_image_names(tmp_path: Path, deferred: bool) -> None:
    trainer = _trainer(tmp_path, policy="stop", deferred=deferred, model=_RaisingModel())
    with pytest.raises(NonFiniteError, match=r"iteration 2: the matching costs of layer 3 hold nan.*image_8\.jpg"):
        trainer.train()


def test_nonfinite_found_inside_the_model_can_be_skipped(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, policy="skip", deferred=False, model=_RaisingModel())
    trainer.train()
    assert trainer.guard.num_skipped == 1


def test_describe_images_names_frames_and_ids() -> None:
    batch = [{"file_names": ["a/0.jpg", "a/1.jpg"]}, {"image_id": 5}]
    assert describe_images(batch) == " in the images a/0.jpg, a/1.jpg, image_id 5"
    assert describe_images([]) == ""
