"""The loop: accumulation, precision, hooks, what a step does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mask2former.checkpoint import load_state
from mask2former.config import get_cfg
from mask2former.engine import Hook, Trainer
from mask2former.engine.nonfinite import LossVector, with_total
from mask2former.engine.precision import Precision
from mask2former.engine.trainer import split_batch
from mask2former.engine.training_state import set_determinism
from mask2former.errors import ConfigError, DatasetError
from tests.engine.stub_training import WIDTH, StubModel, run_stub, stub_config


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_state(directory / "model_final.pth")["model"]


@pytest.mark.parametrize("steps", [2, 4])
def test_accumulation_equals_whole_batch(tmp_path: Path, steps: int) -> None:
    run_stub(stub_config(tmp_path / "whole"), noisy=False)
    run_stub(stub_config(tmp_path / "parts", "SOLVER.ACCUMULATION_STEPS", steps), noisy=False)
    expected = weights(tmp_path / "whole")
    for name, tensor in weights(tmp_path / "parts").items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6)
    lines = [(tmp_path / name / "metrics.json").read_text().splitlines() for name in ("whole", "parts")]
    assert len(lines[0]) == len(lines[1]) == 4


def test_accumulation_of_uneven_parts_weighs_images_equally() -> None:
    batch = [{"image": torch.full((1,), float(value))} for value in (1, 2, 6)]

    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, part: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
            return {"loss": self.scale * torch.cat([sample["image"] for sample in part]).mean()}

    model = Mean()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    trainer = Trainer(model, optimizer, batches=[batch, batch], max_iter=1, accumulation_steps=2)
    trainer.train()
    assert trainer.losses is not None
    assert trainer.losses.values.item() == pytest.approx(3.0)
    assert model.scale.item() == pytest.approx(1.0 - 3.0)


def test_split_batch_covers_batch_in_order() -> None:
    batch = [{"id": index} for index in range(7)]
    parts = split_batch(batch, 3)
    assert [sample for part in parts for sample in part] == batch
    assert [len(part) for part in parts] == [2, 2, 3]


CLIPPED = ["SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full_model"]


def mixed(dtype: str) -> list[Any]:
    return ["SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", dtype, *CLIPPED]


def test_bfloat16_trains_and_keeps_weights_in_float32(tmp_path: Path) -> None:
    run_stub(stub_config(tmp_path / "mixed", *mixed("bfloat16")), noisy=False)
    run_stub(stub_config(tmp_path / "full", *CLIPPED), noisy=False)
    expected = weights(tmp_path / "full")
    for name, tensor in weights(tmp_path / "mixed").items():
        assert tensor.dtype == torch.float32
        assert not torch.equal(tensor, expected[name])
        torch.testing.assert_close(tensor, expected[name], rtol=0.1, atol=0.02)


def test_float16_lowers_the_loss_scale_where_gradients_overflow_and_resumes_it(tmp_path: Path) -> None:
    run_stub(stub_config(tmp_path / "unbroken", *mixed("float16")))
    run_stub(stub_config(tmp_path / "resumed", *mixed("float16"), "SOLVER.MAX_ITER", 9))
    run_stub(stub_config(tmp_path / "resumed", *mixed("float16")), resume=True)
    states = [load_state(tmp_path / name / "model_final.pth") for name in ("unbroken", "resumed")]
    assert 0 < states[0]["scaler"]["scale"] < 65536
    assert states[0]["scaler"] == states[1]["scaler"]
    for name, tensor in states[0]["model"].items():
        assert torch.equal(tensor, states[1]["model"][name])
        assert torch.isfinite(tensor).all()


def test_precision_from_config_refuses_unknown_dtype() -> None:
    cfg = get_cfg()
    assert Precision.from_config(cfg, "cpu").describe() == "float32"
    cfg.SOLVER.AMP.DTYPE = "int8"
    with pytest.raises(ConfigError, match=r"AMP\.DTYPE.*int8"):
        Precision.from_config(cfg, "cpu")


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_precision_of_cpu_follows_hardware(monkeypatch: pytest.MonkeyPatch, has_bfloat16: bool) -> None:
    cfg = get_cfg()
    cfg.SOLVER.AMP.ENABLED = True
    for probe in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, probe, lambda: has_bfloat16, raising=False)
    assert Precision.from_config(cfg, "cpu").dtype == (torch.bfloat16 if has_bfloat16 else None)


def test_deterministic_mode_allows_deterministic_kernels_only(tmp_path: Path) -> None:
    run_stub(stub_config(tmp_path / "free"))
    assert not torch.are_deterministic_algorithms_enabled()
    try:
        run_stub(stub_config(tmp_path / "fixed", "DETERMINISTIC", True))
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.deterministic
    finally:
        set_determinism(False)
    expected = weights(tmp_path / "free")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(tmp_path / "fixed").items())


class _Recorder(Hook):
    def __init__(self, fail_at: int | None = None) -> None:
        self.calls: list[str] = []
        self.fail_at = fail_at

    def before_train(self, trainer: Trainer) -> None:
        self.calls.append("before_train")

    def before_step(self, trainer: Trainer) -> None:
        self.calls.append(f"before_{trainer.iteration}")

    def after_step(self, trainer: Trainer) -> None:
        self.calls.append(f"after_{trainer.iteration}")
        if trainer.iteration == self.fail_at:
            raise RuntimeError("hook failed")

    def after_train(self, trainer: Trainer) -> None:
        self.calls.append(f"after_train_{trainer.iteration}")

    def close(self) -> None:
        self.calls.append("close")


def stub_trainer(batches: Any, *hooks: Hook, **options: Any) -> Trainer:
    model = StubModel()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Trainer(model, optimizer, batches=batches, hooks=hooks, **options)


def batch(size: int = 2) -> list[dict[str, Any]]:
    return [{"image": torch.ones(WIDTH), "target": torch.zeros(2), "file_name": f"{i}.jpg"} for i in range(size)]


def test_trainer_calls_hooks_in_order() -> None:
    hook = _Recorder()
    stub_trainer([batch()] * 3, hook, max_iter=2).train()
    assert hook.calls == [
        "before_train",
        "before_0",
        "after_0",
        "before_1",
        "after_1",
        "after_train_1",
        "close",
    ]


def test_trainer_closes_hooks_when_one_fails() -> None:
    first, second = _Recorder(), _Recorder(fail_at=0)
    with pytest.raises(RuntimeError, match="hook failed"):
        stub_trainer([batch()] * 3, first, second, max_iter=2).train()
    assert first.calls[-1] == second.calls[-1] == "close"
    assert not any(call.startswith("after_train") for call in first.calls)


def test_trainer_says_when_data_end() -> None:
    with pytest.raises(DatasetError, match="ended at iteration 2 of 5"):
        stub_trainer([batch()] * 2, max_iter=5).train()


def test_trainer_refuses_batch_smaller_than_its_parts() -> None:
    with pytest.raises(ConfigError, match=r"ACCUMULATION_STEPS 3"):
        stub_trainer([batch(2)], max_iter=1, accumulation_steps=3).train()


def test_model_without_losses_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one loss"):
        LossVector.from_dict({})


def test_with_total_puts_final_layer_first() -> None:
    named = with_total(["loss_ce_0", "loss_ce", "loss_dice_0", "loss_dice"], [1.0, 2.0, 3.0, 4.0])
    assert list(named.items()) == [
        ("loss_ce", 2.0),
        ("loss_dice", 4.0),
        ("total_loss", 10.0),
        ("loss_ce_0", 1.0),
        ("loss_dice_0", 3.0),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["SOLVER.IMS_PER_BATCH", 0], "IMS_PER_BATCH"),
        (["SOLVER.ACCUMULATION_STEPS", 0], "ACCUMULATION_STEPS"),
        (["SOLVER.ACCUMULATION_STEPS", 5], "ACCUMULATION_STEPS must lie between 1 and the 4 images"),
        (["SOLVER.NONFINITE", "ignore"], "NONFINITE must be stop or skip"),
    ],
)
def test_run_refuses_impossible_settings(tmp_path: Path, options: list[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_stub(stub_config(tmp_path, *options))
