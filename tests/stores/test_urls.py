"""From a URL to a store."""

from pathlib import Path

import pytest

from shadowcat_stores import MemoryStore, StoreLimits, store_from_url

THIRD_PARTY = """
from shadowcat_stores import MemoryStore

class ThirdPartyStore(MemoryStore):
    @classmethod
    def from_url(cls, url):
        store = cls()
        store.url = url
        return store
"""


def test_memory() -> None:
    store = store_from_url("memory://")
    assert type(store) is MemoryStore
    assert store.limits == StoreLimits()
    assert store.is_open is False


def test_memory_with_limits() -> None:
    store = store_from_url("memory://?max_sessions=5&max_frame_bytes=1024")
    assert store.limits == StoreLimits(sessions=5, frame_bytes=1024)
    assert store_from_url("memory://?max_frames=7&max_streams=9").limits == StoreLimits(frames=7, streams=9)


@pytest.mark.parametrize(
    "url",
    [
        "memory://localhost",
        "memory:///file",
        "memory://#top",
        "memory://?sessions=5",
        "memory://?max_sessions",
        "memory://?max_sessions=0",
        "memory://?max_sessions=-1",
        "memory://?max_sessions=many",
        "memory://?max_sessions=²",
        "memory://?max_sessions=1&max_sessions=2",
    ],
)
def test_anything_else_for_memory_says_what_to_write(url: str) -> None:
    with pytest.raises(ValueError, match=r"write memory://.*max_sessions=N&max_frames=N&max_frame_bytes=N"):
        store_from_url(url)


def test_memory_store_takes_only_its_own_scheme() -> None:
    with pytest.raises(ValueError, match="write memory://"):
        MemoryStore.from_url("redis://")


def test_an_unknown_scheme_names_the_known_and_keeps_the_password() -> None:
    with pytest.raises(ValueError, match=r"no store is installed for 'nosql://'.*memory://") as raised:
        store_from_url("nosql://user:secret@host")
    assert "secret" not in str(raised.value)


def test_a_url_without_a_scheme_names_the_known() -> None:
    with pytest.raises(ValueError, match="memory://"):
        store_from_url("shadowcat.db")


def test_a_third_partys_store_is_found_by_its_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = tmp_path / "third_party-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[shadowcat.stores]\nthird = third_party:ThirdPartyStore\n")
    (tmp_path / "third_party.py").write_text(THIRD_PARTY)
    monkeypatch.syspath_prepend(tmp_path)
    store = store_from_url("third://host/place?option=1")
    assert type(store).__name__ == "ThirdPartyStore"
    assert vars(store)["url"] == "third://host/place?option=1"
