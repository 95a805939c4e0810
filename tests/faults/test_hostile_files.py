"""Hostile files: each is refused by name, or is one bad sample. Nothing is executed, nothing is written outside its folder."""

from __future__ import annotations

import io
import json
import os
import tarfile
import time
from pathlib import Path

import pytest

from data_prep.inputs.picture_names import find_file, names_of
from data_prep.inputs.sample import EntryFailure
from data_prep.inputs.table_files import files_of_folder
from data_prep.verify import run as verify_run
from megaunigame.data.conversation import LONGEST_TEXT, MOST_TURNS, caption_of, question_answers
from megaunigame.data.decode import LARGEST_JSON, decode_sample
from megaunigame.data.shards import table as tables
from megaunigame.data.shards.index import ShardIndex
from megaunigame.data.shards.manifest import parse_manifest
from megaunigame.data.shards.table import LARGEST_SAMPLE, LONGEST_KEY, parse_table, scan_table
from megaunigame.data.shards.tar_headers import LONGEST_HEADER, members_of
from megaunigame.data.shards.unfinished import check_finished
from megaunigame.errors import DataError
from megaunigame.pictures.rules import MAX_PIXELS
from megaunigame.storage.plain_names import is_plain_name, readable
from tests.data.shard_files import sample_fields, write_shards

pytestmark = pytest.mark.timeout(60)
OUTSIDE = (
    "../a.tar",
    "/etc/a.tar",
    "b/a.tar",
    "..",
    ".",
    "",
    "..\\a.tar",
    "a\0.tar",
    "a\n.tar",
    "\ud800.tar",
    "x::file.tar",
    "a" * 300,
)
"""None of them is the name of a file in a folder."""


def index(samples: list, version: object = 1) -> bytes:
    return json.dumps({"version": version, "samples": samples}).encode()


def manifest(**changes: object) -> bytes:
    shard = {"file": "a-000000.tar", "samples": 1, "bytes": 1024, "index_sha256": 64 * "0", **changes}
    return json.dumps({"version": 1, "fields": ["json"], "shards": [shard]}).encode()


def header(name: str = "a.json", size: bytes = b"00000000000\0", kind: bytes = b"0", folder: bytes = b"") -> bytes:
    """One header of a tar with the right sum."""
    block = bytearray(512)
    block[: len(name)] = name.encode()
    block[124:136], block[156:157], block[257:265], block[148:156] = size, kind, b"ustar\x0000", 8 * b" "
    block[345 : 345 + len(folder)] = folder
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def tar_of(path: Path, *blocks: bytes) -> Path:
    path.write_bytes(b"".join(blocks) + bytes(1024))
    return path


def octal(size: int) -> bytes:
    return b"%011o\0" % size


@pytest.mark.fault("a manifest names a file outside its folder (10f)", does="refuses it, naming file and value", lost="nothing")
@pytest.mark.parametrize("name", OUTSIDE)
def test_names_in_a_manifest_stay_in_the_folder(name):
    assert not is_plain_name(name)
    with pytest.raises(DataError, match=r"dataset\.json (lists .*not the name of a \.tar file|is not a manifest)"):
        parse_manifest("dataset.json", manifest(file=name))


def test_plain_names():
    assert all(map(is_plain_name, ("a.tar", "a b.tar", "..a.tar", "日本.tar", "a=1,b@2.tar")))
    assert not any(map(is_plain_name, (None, 3, b"a.tar", ["a"])))
    assert readable("a\x1b[2J\ud800\udcff") == "a\ufffd[2J\ufffd\ufffd"
    assert parse_manifest("x", manifest()).shards[0].file == "a-000000.tar"


@pytest.mark.fault(
    "a manifest with other types, numbers or nesting (10g)", does="refuses it, naming file and value", lost="nothing"
)
@pytest.mark.parametrize(
    "content",
    [
        *(
            manifest(**{name: value})
            for name in ("bytes", "samples")
            for value in ("7", -1, 2**63, 1.5, True, None, [1], 1e999)
        ),
        *(manifest(index_sha256=value) for value in ("0", 64 * "g", 5, None)),
        *(manifest(sha256=value) for value in ("0", 64 * "G", 5)),
        *(manifest(file=value) for value in (3, None, ["a.tar"], "a.zip")),
        b"[" * 100_000,
        b'{"version": 1, "fields": [], "shards": {}}'.replace(b"{}", b"3"),
        b'{"version": 1, "fields": ["\\ud800"], "shards": []}',
        b'{"version": 1, "fields": 3, "shards": []}',
        b"\xff\xfe\x00",
        b"null",
    ],
)
def test_values_in_a_manifest(content):
    with pytest.raises(DataError, match="^here/dataset.json[ :]"):
        parse_manifest("here/dataset.json", content)


@pytest.mark.fault("an index with negative or huge offsets, sizes, nesting (7c, 7d)", does="refuses it by name", lost="nothing")
@pytest.mark.parametrize(
    "content",
    [
        *(
            index([{"key": "a", "fields": {"json": [offset, size]}}])
            for offset, size in ((-5, 3), (0, -1), (2**63, 1), (1, 2**62))
        ),
        *(index([{"key": "a", "fields": {"json": span}}]) for span in ([0], [0, 1, 2], "ab", 3, {"a": 1}, [None, 1])),
        *(index([{"key": key, "fields": {}}]) for key in (5, None, ["a"], "\ud800")),
        *(index([{"key": "a", "fields": {field: [0, 1]}}]) for field in ("\ud800", "a\n", "f" * 300)),
        index([{"key": "a", "fields": {}, "columns": {"score": 10**400}}]),
        index([{"key": "a", "fields": {}, "columns": [3]}]),
        index([3]),
        index([], version=[[]] * 1000),
        b"[" * 100_000,
        b'{"version": 1, "samples": ' + b"9" * 5000 + b"}",
    ],
)
def test_values_in_an_index(content):
    with pytest.raises(DataError, match="^a.idx.json "):
        parse_table("a.idx.json", content)


@pytest.mark.fault(
    "an index with one key of 10 MB, or thousands of fields (7e)", does="refuses it before it takes memory", lost="nothing"
)
def test_memory_of_an_index(monkeypatch):
    one = {"fields": {}}
    with pytest.raises(DataError, match=f"a key of 10,000,000 bytes, more than {LONGEST_KEY:,}"):
        parse_table("a.idx.json", index([{"key": "k" * 10**7, **one}, *({"key": str(k), **one} for k in range(2000))]))
    fields = {f"f{k}": [0, 1] for k in range(5000)}
    with pytest.raises(DataError, match="5,000 different fields, more than 4,096"):
        parse_table("a.idx.json", index([{"key": "a", "fields": fields}]))
    with pytest.raises(DataError, match="5,000 different columns"):
        parse_table("a.idx.json", index([{"key": "a", "fields": {}, "columns": dict.fromkeys(fields, 1)}]))
    monkeypatch.setattr(tables, "LARGEST_ARRAY", 1000)
    with pytest.raises(DataError, match="keys that take 1,010 bytes, more than 1,000: make smaller shards"):
        parse_table("a.idx.json", index([{"key": "k" * 101, **one}, *({"key": str(k), **one} for k in range(9))]))
    with pytest.raises(DataError, match="fields that take 1,600 bytes"):
        parse_table("a.idx.json", index([{"key": str(k), "fields": dict.fromkeys("abcdefghij", [0, 1])} for k in range(10)]))
    assert len(parse_table("a.idx.json", index([{"key": str(k), **one} for k in range(100)]))) == 100
    monkeypatch.setattr(tables, "LARGEST_INDEX", 10)
    with pytest.raises(DataError, match="more than the 10 bytes that are read"):
        parse_table("a.idx.json", index([]))


@pytest.mark.fault("a sample that takes gigabytes of its shard", does="counts it as a bad sample", lost="the sample")
def test_a_sample_too_large_to_be_read_at_once():
    table = parse_table("a.idx.json", index([{"key": "a", "fields": {"json": [0, 5], "png": [LARGEST_SAMPLE, 6]}}]))
    with pytest.raises(DataError, match=r"Sample 'a' takes 1,073,741,830 bytes of its shard"):
        table.spans_of(0)
    assert parse_table("a", index([{"key": "a", "fields": {"json": [7, LARGEST_SAMPLE]}}])).spans_of(0)["json"][0] == 7


def test_keys_that_control_a_terminal_are_shown_as_text():
    table = parse_table("a.idx.json", index([{"key": "a\x1b[2J\udcff", "fields": {}}]))
    assert table.key(0) == "a\ufffd[2J\ufffd"


SIZE = r"has the size .* in a header, which no file has,"
DAMAGED = "has a damaged header"


@pytest.mark.fault(
    "a tar with hostile headers: sizes of base 256, holes, pipes, long names, chains (7a, 7b)",
    does="refuses it, naming file and byte; links and devices are not samples",
    lost="nothing",
)
@pytest.mark.parametrize(
    ("blocks", "words"),
    [
        ([header(size=b"\x80" + (2**87).to_bytes(11, "big"))], SIZE),
        ([header(size=b"\x80" + bytes(3) + (2**62).to_bytes(8, "big"))], SIZE),
        ([header(size=b"\xff" * 12)], SIZE),
        ([header(size=b"-1234567890\0")], SIZE),
        ([header(size=b"00000000009\0")], SIZE),
        ([header(size=octal(2**32))], "was cut short: it has no end at byte 4,294,967,808"),
        ([header(kind=b"S")], "has a file with holes"),
        ([header(kind=b"x", size=octal(19)), b"19 GNU.sparse.a=1 x".ljust(512, b"\0")], "damaged header of extended"),
        ([header(kind=b"x", size=octal(18)), b"18 GNU.sparse.a=1\n".ljust(512, b"\0"), header()], "has a file with holes"),
        (
            [header(kind=b"g", size=octal(12)), b"12 path=a.b\n".ljust(512, b"\0"), header()],
            "has one name or size for all files",
        ),
        ([header(kind=b"x", size=octal(14)), b"14 size=-1024\n".ljust(512, b"\0"), header()], SIZE),
        ([header(kind=b"x", size=octal(12)), b"99999999999 path=a\n".ljust(512, b"\0")], "damaged header of extended"),
        ([header(kind=b"x", size=octal(12)), b"2 2 2 2 2 2 ".ljust(512, b"\0")], "damaged header of extended"),
        ([header(kind=b"x", size=octal(2**33))], f"has a header of 8,589,934,592 bytes, more than {LONGEST_HEADER:,},"),
        ([header(kind=b"L", size=octal(2**33 - 1))], "has a header of 8,589,934,591 bytes"),
        ([header(kind=b"L", size=octal(2**20))], "was cut short inside a header"),
        ([header(), header()[:300] + b"x" + header()[301:]], f"{DAMAGED} at byte 512"),
        ([b"x" * 512], "is not a whole, uncompressed tar file: no header at byte 0"),
        ([header(), header()[:100]], f"({DAMAGED}|was cut short).* at byte 512"),
    ],
)
def test_headers_of_a_tar(tmp_path, blocks, words):
    tar = tar_of(tmp_path / "hostile.tar", *blocks)
    with pytest.raises(DataError, match=rf"^{tar} .*{words}"):
        list(members_of(tar))
    with pytest.raises(DataError, match="hostile.tar"):
        ShardIndex.open(tar)


def test_a_chain_of_headers_is_not_recursive_and_the_first_name_counts(tmp_path):
    long = b"some/where/a.json".ljust(512, b"\0")
    chain = [header(kind=b"L", size=octal(17)), long] + [
        header(kind=b"x", size=octal(10)),
        b"10 path=b\n".ljust(512, b"\0"),
    ] * 5000
    (member,) = members_of(tar_of(tmp_path / "a.tar", *chain, header("c.json", octal(3)), b"{}\n".ljust(512, b"\0")))
    assert (member.name, member.size, member.is_file) == ("some/where/a.json", 3, True)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_headers_are_read_as_tarfile_does(tmp_path, form):
    kinds = (
        tarfile.REGTYPE,
        tarfile.AREGTYPE,
        tarfile.LNKTYPE,
        tarfile.SYMTYPE,
        tarfile.CHRTYPE,
        tarfile.DIRTYPE,
        tarfile.FIFOTYPE,
    )
    with tarfile.open(tmp_path / "a.tar", "w", format=form) as tar:
        for number in range(120):
            member = tarfile.TarInfo(f"{number}.json" if number % 3 else f"{'d' * 60}/{'é' * 25}/{number}.{'j' * 30}")
            member.type, member.linkname, member.mtime = kinds[number % len(kinds)], "x", number / 4
            member.size = number if member.isreg() else 0
            tar.addfile(member, io.BytesIO(bytes(number)))
        if form != tarfile.USTAR_FORMAT:
            tar.addfile(tarfile.TarInfo("n" * 5000 + ".json"))
    with tarfile.open(tmp_path / "a.tar") as tar:
        expected = [(m.name, m.offset_data, m.size, m.isfile(), m.isdir()) for m in tar]
    assert [(m.name, m.offset, m.size, m.is_file, m.is_folder) for m in members_of(tmp_path / "a.tar")] == expected


def test_names_links_and_devices_of_a_tar_touch_nothing(tmp_path):
    """Names are keys only; nothing is extracted."""
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, kind in (
            ("../up.json", b"0"),
            ("/etc/up.json", b"0"),
            ("l.json", b"2"),
            ("h.json", b"1"),
            ("c.json", b"3"),
            ("p.json", b"6"),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
    table = scan_table(tmp_path / "a.tar")
    assert [table.key(i) for i in range(len(table))] == ["../up", "/etc/up"] and os.listdir(tmp_path) == ["a.tar"]
    with pytest.raises(DataError, match="Sample '../up': field 'json' is not JSON"):
        decode_sample(*ShardIndex.open(tmp_path / "a.tar").read(0, 0))


@pytest.mark.fault("a pipe or a device under the name of a shard", does="refuses it at once", lost="nothing")
def test_a_pipe_is_not_a_shard(tmp_path):
    os.mkfifo(tmp_path / "a.tar")
    with pytest.raises(DataError, match=r"a\.tar is not a file"):
        ShardIndex.open(tmp_path)
    (tmp_path / "a.tar").unlink()
    (tmp_path / "a.tar").symlink_to("/dev/zero")
    with pytest.raises(DataError, match=r"a\.tar is not a file"):
        ShardIndex.open(tmp_path)


def test_a_link_to_a_shard_is_a_shard(tmp_path):
    """Data sets on several disks are folders of links."""
    write_shards(tmp_path / "there", [2])
    (tmp_path / "here").symlink_to(tmp_path / "there")
    assert ShardIndex.open(tmp_path / "here").samples == 2


def bad(meta: bytes) -> None:
    with pytest.raises(DataError, match="^Sample '?a'?[: ]"):
        question_answers(decode_sample("a", {"json": meta}))


@pytest.mark.fault(
    "JSON with half of a surrogate pair, 100,000 levels, or too much text (7h, 7i, 7j)",
    does="counts a bad sample",
    lost="the sample",
)
def test_json_of_a_sample():
    def talk(question: object, answer: object = "A") -> bytes:
        return json.dumps({"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}).encode()

    assert question_answers(decode_sample("a", {"json": talk("Q")})) == [("Q", "A")]
    bad(talk("\ud800"))
    bad(talk("Q", "\udfff"))
    bad(talk("x").replace(b"x", b"\xed\xa0\x80"))
    bad(b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}")
    for depth in (70, 900):  # below what json refuses: no later code may recurse into it either
        bad(b'{"conversations": [' + b"[" * depth + b"]" * depth + b"]}")
    bad(b'{"x": ' + b"9" * 5000 + b"}")
    bad(b'"' + b"x" * LARGEST_JSON + b'"')
    bad(talk("x" * (LONGEST_TEXT + 1)))
    bad(json.dumps({"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}] * MOST_TURNS}).encode())
    for odd in (3, None, {"a": 1}, [["x"]], [{"type": "text", "text": 3}], [{"type": "audio"}]):
        bad(talk(odd))
    for meta in ({"caption": 5}, {"caption": "x" * (LONGEST_TEXT + 1)}, {"caption": ["a"]}):
        with pytest.raises(DataError, match="^Sample a: `caption`"):
            caption_of(decode_sample("a", {"json": json.dumps(meta).encode()}))


def test_a_text_of_markers_takes_no_time():
    """It was read once for every marker: hours."""
    began = time.process_time()
    meta = {"conversations": [{"from": "human", "value": "<image>x" * 100_000}, {"from": "gpt", "value": "A"}]}
    fields = {"json": json.dumps(meta).encode(), "png": sample_fields(0)["png"]}
    with pytest.raises(DataError):
        question_answers(decode_sample("a", {"json": fields["json"]}))
    question_answers(decode_sample("a", {**fields, "json": fields["json"].replace(b"<image>x", b"x<image>x")}))
    assert time.process_time() - began < 10


@pytest.mark.fault(
    "a shard changed at the same size and time (7l)",
    does="`megaunigame prepare verify` names it; a run does not see it",
    lost="that sample",
)
def test_a_changed_tar_is_found_by_its_hash(tmp_path, capsys):
    from data_prep.shard_writer import Job, Shard, finish_dataset, write_dataset

    samples = [{"__key__": "a", "json": b'{"caption": "x", "note": "AAAA"}', **{"png": sample_fields(0)["png"]}}]
    job = Job(tmp_path, "s", {}, 1, lambda number: Shard(samples))
    finish_dataset(job, write_dataset(job, 1, False), 0)
    arguments = __import__("argparse").Namespace(folder=tmp_path, workers=1, samples=9, recipe=None, max_pixels=MAX_PIXELS)
    assert verify_run(arguments) == 0
    tar = tmp_path / "s-000000.tar"
    before = tar.stat()
    tar.write_bytes(tar.read_bytes().replace(b"AAAA", b"BBBB"))
    os.utime(tar, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert verify_run(arguments) == 1
    assert "is not the tar that was written: its sha256 differs" in capsys.readouterr().out


@pytest.mark.fault(
    "a folder of shards advises a command that data_prep does not have", does="names data_prep's command only", lost="nothing"
)
@pytest.mark.parametrize(
    "command", ["rm -rf ~", "megaunigame prepare pack; rm -rf ~", "megaunigame prepare pack $(id)", 5, "\x1b[2J", "'"]
)
def test_advice_of_a_hostile_folder(tmp_path, command):
    (tmp_path / "unfinished.json").write_text(json.dumps({"command": command, "shards": 3}))
    with pytest.raises(DataError, match="Type the same `megaunigame prepare` command again"):
        check_finished(tmp_path)
    (tmp_path / "unfinished.json").write_text(json.dumps({"command": "megaunigame prepare pack --source 'a/*.tar'"}))
    with pytest.raises(DataError, match=r"Type megaunigame prepare pack --source 'a/\*\.tar' again"):
        check_finished(tmp_path)


@pytest.mark.fault("an entry names a picture outside the image root", does="lists it in failures.jsonl", lost="the entry")
@pytest.mark.parametrize("name", ["../secret.png", "a/../../secret.png", "%2e%2e/secret.png", "..\\secret.png"])
def test_picture_names_stay_below_the_root(tmp_path, name):
    (tmp_path / "root").mkdir()
    (tmp_path / "secret.png").write_bytes(b"x")
    assert find_file(tmp_path / "root", name) is None
    with pytest.raises(EntryFailure, match="leads out of the image root"):
        names_of({"image": name}, None)


@pytest.mark.parametrize("name", ["../b.arrow", "/b.arrow", "x/b.arrow", 3, None])
def test_saved_tables_name_files_of_their_folder(tmp_path, name):
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    with pytest.raises(DataError, match=r"state\.json: names .*not a name in its folder"):
        files_of_folder(tmp_path, ".arrow", None)
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": [name]}))
    with pytest.raises(DataError, match=r"dataset_dict\.json: names .*not a name in its folder"):
        files_of_folder(tmp_path, ".arrow", None)
