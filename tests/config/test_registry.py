from __future__ import annotations

from collections.abc import Iterator

import pytest

from mask2former.config import Registry, build_from_config, get_cfg, keys, register_keys
from mask2former.errors import ConfigError


def build_registry() -> Registry:
    registry = Registry("colour", key="PAINT.COLOUR")
    registry.register(len, name="magenta")
    registry.register(max)
    return registry


@pytest.fixture
def own_keys(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(keys, "_REGISTERED", {})
    return


def test_unknown_name_is_refused_with_key_and_nearest_names() -> None:
    with pytest.raises(ConfigError, match=r"PAINT\.COLOUR: expected one of magenta, max; found 'magneta'.*magenta\?"):
        build_registry().lookup("magneta")
    with pytest.raises(ConfigError, match=r"^OTHER: "):
        build_registry().lookup("x", key="OTHER")


def test_name_is_given_once_and_a_reloaded_definition_replaces_itself() -> None:
    registry = build_registry()
    with pytest.raises(ConfigError, match=r"colour 'max' is builtins\.max"):
        registry.register(min, name="max")
    definitions = [type("Painter", (), {"__module__": "paint", "__qualname__": "Painter"}) for _ in range(2)]
    for definition in definitions:
        registry.register(definition)
    assert registry.lookup("Painter") is definitions[1]
    assert registry.names() == ["magenta", "max", "Painter"]


def test_component_that_refuses_its_values_is_named() -> None:
    class Ring:
        def __init__(self, radius: float) -> None:
            if radius < 0:
                raise ValueError("radius below 0")
            self.radius = radius

        @classmethod
        def from_config(cls, cfg: dict[str, float]) -> dict[str, float]:
            return {"radius": cfg["r"]}

    assert build_from_config(Ring, {"r": 2.0}).radius == 2.0
    assert build_from_config(lambda cfg, factor: cfg["r"] * factor, {"r": 2.0}, 3) == 6.0
    with pytest.raises(ConfigError, match="Ring: radius below 0"):
        build_from_config(Ring, {"r": -1.0})


@pytest.mark.usefixtures("own_keys")
def test_registered_keys_are_in_every_new_configuration() -> None:
    before = get_cfg()
    register_keys({"MODEL": {"RING": {"RADII": [1, 2]}}})
    register_keys({"MODEL": {"RING": {"RADII": [1, 2]}}})  # a module may be imported again
    cfg, other = get_cfg(), get_cfg()
    cfg.merge_from_list(["MODEL.RING.RADII", "[5]"])
    assert (cfg.MODEL.RING.RADII, other.MODEL.RING.RADII) == ([5], [1, 2])
    assert "RING" not in before.MODEL
    assert cfg.MODEL.DEVICE == before.MODEL.DEVICE


@pytest.mark.usefixtures("own_keys")
@pytest.mark.parametrize("keys", [{"SEED": 7}, {"MODEL": {"DEVICE": {"NAME": "x"}}}, {"MODEL": 3}])
def test_key_that_exists_with_another_default_is_refused(keys: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"register_keys: \w+(\.\w+)* exists already"):
        register_keys(keys)
