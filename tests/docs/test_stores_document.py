"""What docs/stores.md shows: its store passes the contract, its URLs and its entry point name stores."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from shadowcat_stores import MemoryStore, SQLiteStore, StoreUnavailable, StoreUnusable, store_from_url
from shadowcat_stores.redis import RedisStore
from tests.docs._markdown import ROOT, blocks

MODULES = {block.names[0]: block for block in blocks("python", "module")}


def shown(name: str) -> ModuleType:
    """Return the module that the document shows under the name, as other modules can import it."""
    if name not in sys.modules:
        module = ModuleType(name)
        sys.modules[name] = module
        exec(compile(MODULES[name].text, str(MODULES[name]), "exec", dont_inherit=True), vars(module))  # noqa: S102
    return sys.modules[name]


TableStore: Any = shown("table_store").TableStore
TestTableStore: Any = shown("test_table_store").TestTableStore
TestTableStoreAsAMachine: Any = shown("test_table_store").TestTableStoreAsAMachine


def test_the_store_is_still_a_short_one() -> None:
    assert len([line for line in MODULES["table_store"].text.splitlines() if line.strip()]) <= 60


async def test_the_store_can_be_opened_once_what_was_in_the_way_is_mended(tmp_path: Path) -> None:
    store = TableStore(tmp_path / "missing" / "sessions.db")
    with pytest.raises(StoreUnusable, match="no directory"):
        await store.open()
    assert store.is_open is False
    store.path.parent.mkdir()
    store.path.write_bytes(b"no database" * 100)
    with pytest.raises(StoreUnavailable, match="file is not a database"):
        await store.open()
    assert store.is_open is False
    store.path.unlink()
    async with store:
        assert await store.count_sessions() == 0


def test_every_url_names_its_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classes = {"memory": MemoryStore, "sqlite": SQLiteStore}
    (block,) = blocks("", "urls")
    for line in block.text.splitlines():
        url = line.split()[0]
        assert type(store_from_url(url)) is classes.get(url.partition(":")[0], RedisStore), url


OPTIONS = {
    "memory://": ("max_sessions=9", "max_frames=9", "max_frame_bytes=9", "max_streams=9"),
    "sqlite:///file.db": ("max_sessions=9", "max_frames=9", "busy_timeout=5", "synchronous=full"),
    "redis://host": ("max_sessions=9", "max_streams=9", "timeout=1", "prefix=mine:", "client_name=me"),
    "rediss+sentinel://host/name": ("ssl_certfile=f", "sentinel_username=u", "sentinel_password=p"),
}


@pytest.mark.parametrize("url", OPTIONS)
def test_every_option_exists(url: str) -> None:
    document = (ROOT / "docs" / "stores.md").read_text("utf-8")
    for option in OPTIONS[url]:
        assert f"`{option.partition('=')[0]}`" in document
        assert store_from_url(f"{url}?{option}").is_open is False


def test_its_entry_point_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = blocks("toml", "entry-points")
    group = tomllib.loads(block.text)["project"]["entry-points"]
    lines = [f"[{name}]\n" + "\n".join(f"{k} = {v}" for k, v in each.items()) for name, each in group.items()]
    metadata = tmp_path / "table_store-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: table-store\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    assert type(shown("use_it").store) is TableStore


def test_a_missing_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [each for each in sys.modules if each.startswith("shadowcat_stores.") and "redis" in each]
    for name in names:
        # What is imported anew in this test is not to stay where others look for it.
        parent, _, child = name.rpartition(".")
        monkeypatch.setattr(sys.modules[parent], child, sys.modules[name], raising=False)
    for name in names:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "hiredis", None)
    with pytest.raises(ValueError, match=r"redis:// cannot be loaded.*pip install 'shadowcat-mcp\[redis\]'"):
        store_from_url("redis://host")
    assert "pip install 'shadowcat-mcp[redis]'" in (ROOT / "docs" / "stores.md").read_text("utf-8")
