"""One graph between pixels and logits, and MODEL.COMPILE around it."""

from __future__ import annotations

import copy
import pickle
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from mask2former.errors import ConfigError
from mask2former.modeling import MaskFormer, build_model, prepare_for_inference
from mask2former.modeling.execution import CompiledStep, check_compiler, compile_model
from mask2former.modeling.prediction import QueryPrediction
from tests.parity import fixture_config, load_fixture, register_metadata

IMAGES, CLIP = None, 2
REMAINING_CASES = (
    ("resnet", False, IMAGES),
    ("resnet", True, CLIP),
    ("swin", True, IMAGES),
    ("swin", False, CLIP),
)
# Tracing takes its time module by module; what the modules do is the same in few.
SHALLOW = [
    *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.RESNETS.RES5_MULTI_GRID", [1, 1, 1]),
    *("MODEL.SWIN.DEPTHS", [2, 2, 1, 1], "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", 1),
    *("MODEL.MASK_FORMER.DEC_LAYERS", 3, "MODEL.MASK_FORMER.TRAIN_NUM_POINTS", 32),
]


@pytest.fixture(autouse=True)
def _forgetful_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def build_tiny(backbone: str, *overrides: Any) -> Any:
    register_metadata()
    cfg = fixture_config(load_fixture(f"tiny_{backbone}_panoptic"))
    cfg.merge_from_list([*SHALLOW, *overrides])
    return build_model(cfg)


class CountingBackend:
    """Runs graphs as they are, and counts them."""

    def __init__(self) -> None:
        self.num_graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        self.num_graphs += 1
        return graph.forward


def assert_predictions_equal(found: list[QueryPrediction], expected: list[QueryPrediction], **tolerance: float) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected):
        torch.testing.assert_close(ours.class_logits, theirs.class_logits, **tolerance)
        torch.testing.assert_close(ours.mask_logits(), theirs.mask_logits(), **tolerance)


@pytest.mark.parametrize(
    ("backbone", "training", "num_frames"),
    [
        ("resnet", True, IMAGES),
        ("resnet", False, CLIP),
        ("swin", False, IMAGES),
        ("swin", True, CLIP),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in REMAINING_CASES),
    ],
)
def test_pixels_to_logits_are_one_graph(backbone: str, training: bool, num_frames: int | None) -> None:
    model = build_tiny(backbone, "MODEL.SWIN.DROP_PATH_RATE", 0.0).train(training)
    backend, images = CountingBackend(), torch.randn(2, 3, 64, 96)
    compiled = torch.compile(model.predict_pixels, backend=backend, fullgraph=True)
    with torch.set_grad_enabled(training):
        found = compiled(images, num_frames=num_frames)
        assert_predictions_equal(found, model.predict_pixels(images, num_frames=num_frames), rtol=1e-3, atol=1e-4)
    assert backend.num_graphs == 1
    assert all(prediction.mask_features is found[0].mask_features for prediction in found)
    if training:
        sum(p.class_logits.sum() + p.mask_logits().mean() for p in found).backward()
        assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.slow  # traces the model five times
def test_many_sizes_share_few_graphs_and_precisions_have_their_own() -> None:
    model, backend = build_tiny("resnet").eval(), CountingBackend()
    compiled = torch.compile(model.predict_pixels, backend=backend, fullgraph=True)
    with torch.no_grad():
        for size in ((64, 96), (96, 160), (160, 128), (128, 224), (192, 96), (96, 96)):
            images = torch.randn(1, 3, *size)
            assert_predictions_equal(compiled(images), model.predict_pixels(images), rtol=1e-3, atol=1e-4)
        of_sizes = backend.num_graphs
        assert of_sizes <= 4  # of any size, two: torch's convolution of tiny maps on a CPU goes by their size
        with torch.autocast("cpu", dtype=torch.bfloat16):
            (*_, last) = compiled(images)
    assert backend.num_graphs == of_sizes + 1
    assert last.class_logits.dtype == torch.bfloat16


@pytest.fixture
def eager_compile(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """torch.compile that traces and generates no code; the modes it was asked for."""
    modes: list[str | None] = []
    original = torch.compile

    def compile_eagerly(function: Any, *, mode: str | None = None) -> Any:
        modes.append(mode)
        return original(function, backend="eager")

    monkeypatch.setattr(torch, "compile", compile_eagerly)
    return modes


def test_compiled_model_has_the_same_names_results_and_losses(eager_compile: list[str | None]) -> None:
    model, plain = build_tiny("resnet", "MODEL.COMPILE", "reduce-overhead"), build_tiny("resnet")
    assert list(model.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(model.state_dict())
    sample = {"image": torch.randint(256, (3, 61, 93), dtype=torch.uint8), "height": 40, "width": 50}
    for found, expected in zip(model.eval()([sample]), plain.eval()([sample])):
        torch.testing.assert_close(found["sem_seg"], expected["sem_seg"], rtol=1e-3, atol=1e-3)
    assert eager_compile == ["reduce-overhead"]


def test_prepared_model_compiles_and_predicts_the_same(eager_compile: list[str | None]) -> None:
    options = ("MODEL.PRECISION", "bfloat16", "MODEL.COMPILE")
    model, plain = (build_tiny("resnet", *options, mode).eval() for mode in ("default", ""))
    plain.load_state_dict(model.state_dict())
    images = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        found, expected = (prepare_for_inference(each).predict(images)[0] for each in (model, plain))
    assert eager_compile == ["default"]
    assert found.class_logits.dtype == torch.bfloat16
    assert_predictions_equal([found], [expected], rtol=0.05, atol=0.05)


def test_compiled_clips_equal_plain_ones_whatever_their_parts(
    eager_compile: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mask2former.modeling.meta_arch.mask_former._FRAMES_AT_ONCE", 2)
    model, plain = build_tiny("resnet", "MODEL.COMPILE", "default").eval(), build_tiny("resnet").eval()
    plain.load_state_dict(model.state_dict())
    for num_frames in (1, 3):
        clip = {"image": list(torch.randint(256, (num_frames, 3, 64, 64), dtype=torch.uint8))}
        ((found, _), (expected, _)) = model._predict_clip(clip), plain._predict_clip(clip)
        assert_predictions_equal([found], [expected], rtol=1e-3, atol=1e-3)
    assert eager_compile == ["default", "default"]


def test_copies_of_a_compiled_model_are_their_own(eager_compile: list[str | None]) -> None:
    model = build_tiny("resnet", "MODEL.COMPILE", "default").eval()
    duplicate = copy.deepcopy(model)
    step = duplicate.predict_pixels
    assert isinstance(step, CompiledStep)
    assert step.method.__self__ is duplicate  # type: ignore[attr-defined]
    assert list(pickle.loads(pickle.dumps(model)).state_dict()) == list(model.state_dict())
    torch.nn.init.zeros_(model.sem_seg_head.predictor.class_embed.weight)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert not torch.equal(duplicate.predict(images)[-1].class_logits, model.predict(images)[-1].class_logits)


def test_compile_refuses_what_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"MODEL\.COMPILE: expected .*max-autotune; found 'fast'"):
        build_tiny("resnet", "MODEL.COMPILE", "fast")
    with pytest.raises(ConfigError, match=r"MODEL\.COMPILE: Linear names no compiled_steps"):
        compile_model(torch.nn.Linear(1, 1), "default")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setenv("CXX", "nowhere-g++ -O2")
    with pytest.raises(ConfigError, match=r"MODEL\.COMPILE.*C\+\+ compiler.*nowhere-g\+\+"):
        build_tiny("resnet", "MODEL.COMPILE", "default")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"MODEL\.COMPILE.*triton"):
        check_compiler(torch.device("cuda"))


@pytest.mark.slow  # generates and compiles C++
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_generated_kernels_compute_the_same() -> None:
    model, plain = build_tiny("resnet", "MODEL.COMPILE", "default").eval(), build_tiny("resnet").eval()
    plain.load_state_dict(model.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert_predictions_equal(model.predict(images), plain.predict(images), rtol=1e-3, atol=1e-3)


def test_decoders_computed_again_have_the_same_gradients() -> None:
    model, saving = build_tiny("resnet"), build_tiny("resnet", "MODEL.MASK_FORMER.USE_CHECKPOINT", True)
    saving.load_state_dict(model.state_dict())
    images = torch.randn(1, 3, 64, 64)
    for trained in (model.train(), saving.train()):
        trained.predict(images)[-1].mask_logits().square().mean().backward()
    for (name, expected), found in zip(model.named_parameters(), saving.parameters()):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_decoders_without_layers_to_compute_again_are_refused() -> None:
    register_metadata()
    cfg = fixture_config(load_fixture("tiny_maskformer_v1"))
    cfg.MODEL.MASK_FORMER.USE_CHECKPOINT = True
    with pytest.raises(ConfigError, match=r"MASK_FORMER\.USE_CHECKPOINT"):
        build_model(cfg)


def test_model_without_compile_runs_its_own_methods() -> None:
    model = build_tiny("resnet")
    assert isinstance(model, MaskFormer)
    assert not isinstance(model.predict_pixels, CompiledStep)
