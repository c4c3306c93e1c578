"""Which specialists can share a resident: found from headers in a child process, which may die on a file."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from coe.engine.spec import LoadSpec
from coe.engine.swap import groups as grouping
from coe.engine.swap.fingerprints import fingerprint_file, member_stamp, read_weights
from coe.engine.swap.groups import Contender, Group, find_groups, group
from coe.engine.swap.plan import pairs
from coe.surgery.cut.cut import cut, write_skeleton
from coe.surgery.parent import Parent
from fakes.child_modules import see_modules, write_module
from fakes.random_moe import random_mask, write_random_moe
from fakes.sharing_models import kept_of

pytestmark = pytest.mark.slow  # a process for each reading

# Python runs this when it starts: reading the header of a file of this name ends the process, as ggml_abort does.
DIES_ON = """
import os
from coe.engine.gguf import reader
whole = reader.read_header
def read_header(path):
    if path.name == {name!r}:
        os.abort()
    return whole(path)
reader.read_header = read_header
"""


@pytest.fixture
def parent(tmp_path: Path) -> Parent:
    return Parent.open(write_random_moe(tmp_path / "parent.gguf"))


def of_file(path: Path, name: str = "", **settings: int) -> Contender:
    return Contender(name or path.stem, LoadSpec(path, **settings))  # type: ignore[arg-type]


def cuts(parent: Parent, names: str, *, provenance: bool = True, keep: int = 4) -> list[Contender]:
    """A file for each name, of random experts."""
    found = []
    for seed, name in enumerate(names):
        path = parent.path.with_name(f"{name}.gguf")
        cut(parent, random_mask(parent, keep, seed=seed), path, provenance=provenance)
        found.append(of_file(path))
    return found


def mask_only(parent: Parent, name: str, seed: int, keep: int = 4) -> Contender:
    skeleton = parent.path.with_name(f"skeleton-{keep}.gguf")
    write_skeleton(parent, keep, skeleton)
    return Contender(name, LoadSpec(skeleton), parent.path, kept_of(parent, random_mask(parent, keep, seed=seed)))


def names(found: Group) -> list[str]:
    return [member.name for member in found.members]


async def test_files_and_masks_of_one_parent_are_one_group(parent: Parent) -> None:
    contenders = [*cuts(parent, "ab"), mask_only(parent, "c", 1), mask_only(parent, "d", 2)]
    found = await find_groups(contenders)
    (one,) = found.groups
    assert names(one) == list("abcd")
    assert found.unshared == {}
    assert found.unhashed == ()
    assert [member.stamp for member in one.members] == [member_stamp(c.member) for c in contenders]
    assert [replace(member, stamp="") for member in one.members] == [c.member for c in contenders]
    read = {c.name: read_weights(c.spec.path, c.parent, c.kept) for c in contenders}
    assert list(one.pairs) == pairs(read)
    distances = {(pair.one, pair.other): pair.changed_bytes for pair in one.pairs}
    assert distances["b", "c"] == 0, "the mask of c is that which b was cut by"
    assert distances["a", "b"] == distances["a", "c"] > 0
    assert one.n_weights == 4


async def test_only_specialists_that_are_loaded_alike_are_in_a_group(parent: Parent) -> None:
    a, b = cuts(parent, "ab")
    other = replace(b, spec=replace(b.spec, context_tokens=512, kv_type="q8_0"))
    found = await find_groups([a, other])
    assert found.groups == ()
    assert "beside b" in found.unshared["a"]
    assert "context_tokens, kv_type differ" in found.unshared["a"]
    mapped_otherwise = replace(b, spec=replace(b.spec, mmap=False))
    assert [names(one) for one in (await find_groups([a, mapped_otherwise])).groups] == [["a", "b"]]


async def test_an_unshared_specialist_is_told_why(parent: Parent, smollm2: Path, tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("no model")
    wide = cuts(parent, "w", keep=6)
    contenders = [*wide, *cuts(parent, "ab"), of_file(smollm2, "dense")]
    contenders += [of_file(tmp_path / "text.gguf"), of_file(tmp_path / "gone.gguf")]
    found = await find_groups(contenders)
    assert [names(one) for one in found.groups] == [["a", "b"]]
    assert list(found.unshared) == ["w", "dense", "text", "gone"]
    assert "6 and 4 experts" in found.unshared["w"]
    assert "smollm2" in found.unshared["dense"].lower() or "llama" in found.unshared["dense"]
    assert "not a GGUF" in found.unshared["text"]
    assert "cannot be read" in found.unshared["gone"]
    assert "no other specialist" in (await find_groups([*wide])).unshared["w"]


async def test_an_unshared_mask_is_a_group_of_one(parent: Parent) -> None:
    found = await find_groups([mask_only(parent, "m", 0), *cuts(parent, "w", keep=6)])
    assert [names(one) for one in found.groups] == [["m"]]
    assert found.groups[0].pairs == ()
    assert list(found.unshared) == ["w"]


async def test_two_names_for_one_file_are_a_group_without_distance(parent: Parent) -> None:
    (a,) = cuts(parent, "a")
    (one,) = (await find_groups([a, replace(a, name="again")])).groups
    assert names(one) == ["a", "again"]
    assert [pair.changed_bytes for pair in one.pairs] == [0]
    assert one.n_weights == 1


async def test_files_of_unknown_origin_are_named_until_they_are_hashed(parent: Parent) -> None:
    contenders = [*cuts(parent, "ab", provenance=False), mask_only(parent, "m", 1)]
    found = await find_groups(contenders)
    assert found.unhashed == (contenders[0].spec.path, contenders[1].spec.path, parent.path)
    assert {pair.shared_bytes for pair in found.groups[0].pairs} == {0}
    for path in found.unhashed:
        fingerprint_file(path)
    again = await find_groups(contenders)
    assert again.unhashed == ()
    assert [pair.changed_bytes for pair in again.groups[0].pairs if (pair.one, pair.other) == ("b", "m")] == [0]


def test_what_was_quantised_after_the_cut_is_marked(parent: Parent) -> None:
    a, b = cuts(parent, "ab")
    read = {c.name: read_weights(c.spec.path) for c in (a, b)}
    unknown = replace(read["b"], keys=(replace(read["b"].keys[0], origin="another way"),))
    (one,) = group([a, b], {"a": read["a"], "b": unknown}, {"a": "", "b": ""}).groups
    assert one.quantised_after_cut == (), "what was not compared is not known to differ"
    others = {name: f"{name} in another way" for name in read["b"].keys[0].others}
    quantised = {name: (8, shape) for name, (_, shape) in read["a"].shape.tensors.items()}
    shape = replace(read["a"].shape, tensors=quantised)
    one_way = replace(read["a"], shape=shape)
    other_way = replace(read["b"], shape=shape, keys=(replace(read["b"].keys[0], others=others),))
    (one,) = group([a, b], {"a": one_way, "b": other_way}, {"a": "", "b": ""}).groups
    assert one.quantised_after_cut == (("a", "b"),)
    assert group([a, b], read, {"a": "", "b": ""}).groups[0].quantised_after_cut == ()


async def test_another_quantisation_after_the_cut_is_the_reason_that_is_given(parent: Parent, tmp_path: Path) -> None:
    (a,) = cuts(parent, "a")
    await asyncio.to_thread(cut, parent, random_mask(parent, 4), tmp_path / "q.gguf", quantize="F16")
    found = await find_groups([a, of_file(tmp_path / "q.gguf")])
    assert "quantised after the cut" in found.unshared["a"]
    assert "quantise the parent, then cut" in found.unshared["q"]


async def test_a_file_on_which_the_reader_dies_is_set_aside(
    parent: Parent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(DIES_ON.format(name="b.gguf"))
    see_modules(tmp_path, monkeypatch)
    monkeypatch.setattr(grouping, "_THREADS", 2)
    found = await find_groups(cuts(parent, "abc"))
    assert [names(one) for one in found.groups] == [["a", "c"]]
    assert found.unshared == {"b": "the process that reads headers was ended by signal 6, SIGABRT on b.gguf"}


async def test_a_parent_on_which_it_dies_takes_its_masks_along(
    parent: Parent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contenders = [mask_only(parent, "m", 0), mask_only(parent, "n", 1), *cuts(parent, "ab")]
    (tmp_path / "sitecustomize.py").write_text(DIES_ON.format(name="parent.gguf"))
    see_modules(tmp_path, monkeypatch)
    found = await find_groups(contenders)
    assert [names(one) for one in found.groups] == [["a", "b"]]
    assert set(found.unshared) == {"m", "n"}


async def test_where_nothing_can_be_found_every_contender_is_unshared(
    parent: Parent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grouping, "_PROCESS", write_module(tmp_path, monkeypatch, "sys.exit('there is no library')"))
    found = await find_groups(cuts(parent, "ab"))
    assert found.groups == ()
    assert found.unshared == dict.fromkeys("ab", "failed (exit 1): there is no library")
    assert await find_groups([]) == grouping.Grouping()
