"""Facts about a data set that its images share: class names, colours, ids, paths."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from mask2former.config.registry import LinkedNames
from mask2former.errors import DatasetError

_MISSING = object()


class Metadata:
    """Attributes of a data set; a value that is set cannot be changed, so that all readers agree."""

    name: str

    def __init__(self, name: str = "N/A", **attributes: Any) -> None:
        self.__dict__["name"] = name
        self.set(**attributes)

    def __getattr__(self, key: str) -> Any:
        known = sorted(k for k in self.__dict__ if k != "name")
        raise AttributeError(f"data set {self.__dict__.get('name')!r} has no metadata {key!r}, it has {known}")

    def __setattr__(self, key: str, value: Any) -> None:
        held = self.__dict__.get(key, _MISSING)
        if held is not _MISSING and held != value:
            raise DatasetError(f"metadata {key!r} of data set {self.name!r} is {held!r} and cannot become {value!r}")
        self.__dict__[key] = value

    def set(self, **attributes: Any) -> Metadata:
        """Set several attributes; returns the object itself."""
        for key, value in attributes.items():
            setattr(self, key, value)
        return self

    def get(self, key: str, default: Any = None) -> Any:
        """Return the attribute ``key``, or ``default`` where there is none."""
        return self.__dict__.get(key, default)

    def as_dict(self) -> dict[str, Any]:
        """Return a copy of the attributes, the name included."""
        return dict(self.__dict__)


class _MetadataCatalog:
    """Metadata by data-set name; asking for an unknown name creates an empty one, as detectron2 does."""

    def __init__(self) -> None:
        self._entries: MutableMapping[str, Metadata] = {}

    def link(self, others: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """Look names up in another catalog, too, after this one; return this catalog's entries by name.

        An empty entry that was created by asking for its name gives way to the other catalog's.
        """
        own = self._entries
        for name in [name for name, metadata in own.items() if name in others and set(metadata.as_dict()) == {"name"}]:
            del own[name]
        self._entries = LinkedNames(own, others)
        return own

    def get(self, name: str) -> Metadata:
        if not name:
            raise ValueError("a data set needs a name")
        return self._entries.setdefault(name, Metadata(name))

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def list(self) -> list[str]:
        """Return names of all data sets known so far."""
        return list(self._entries)

    def pop(self, name: str) -> Metadata:
        """Remove a data set and return its metadata."""
        return self._entries.pop(name)

    def remove(self, name: str) -> None:
        """Remove a data set.

        Raises:
            KeyError: it is not known.
        """
        self.pop(name)


MetadataCatalog = _MetadataCatalog()
