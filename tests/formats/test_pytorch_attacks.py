"""PyTorch files made to harm, damaged, or of a kind that is not read: each is refused by name and nothing is executed."""

from __future__ import annotations

import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantcli.core.errors import FormatError, QuantcliError, UnsafePickleError, UnsupportedError
from quantcli.formats.checkpoint.pytorch import MAGIC_NUMBER, open_pytorch

FIXTURES = Path(__file__).parent / "fixtures"

STORAGE = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x08tQ"
"""A reference to storage "0" of eight floats."""


def text(value: str) -> bytes:
    encoded = value.encode("utf-8", "surrogatepass")
    return b"X" + len(encoded).to_bytes(4, "little") + encoded


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(b"\x8a\x09" + value.to_bytes(9, "little", signed=True) for value in values) + b"t"


def tensor(
    offset: bytes = b"K\0", shape: bytes = numbers(2, 4), strides: bytes = numbers(4, 1), storage: bytes = STORAGE
) -> bytes:
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + offset + shape + strides + b"\x89NtR"


def state_dict(value: bytes, name: bytes = text("w")) -> bytes:
    return b"\x80\x02}" + name + value + b"s."


def archive(
    path: Path, pickled: bytes, entries: dict[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED
) -> Path:
    contents = {"x/data.pkl": pickled, "x/byteorder": b"little", "x/data/0": bytes(32)} | (entries or {})
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in contents.items():
            file.writestr(name, content)
    return path


def legacy(path: Path, pickled: bytes, keys: Any = ("0",), storages: bytes = struct.pack("<q", 8) + bytes(32)) -> Path:
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    head = b"".join(pickle.dumps(value, 2) for value in (MAGIC_NUMBER, 1001, system))
    path.write_bytes(head + pickled + pickle.dumps(list(keys), 2) + storages)
    return path


LAYOUTS = pytest.mark.parametrize("layout", [archive, legacy])
Layout = Callable[[Path, bytes], Path]


@LAYOUTS
def test_the_same_files_unharmed_are_read(tmp_path: Path, layout: Layout) -> None:
    tensors = open_pytorch(layout(tmp_path / "x.pt", state_dict(tensor())))
    assert tensors["w"].shape == (2, 4)
    assert not tensors["w"].load().any()


# --- globals --------------------------------------------------------------------------------------------------------------

GLOBALS = {
    "os.system": (b"cos\nsystem\n(X\x04\0\0\0true" + b"tR", "os.system"),
    "posix.system": (b"cposix\nsystem\n(X\x04\0\0\0true" + b"tR", "posix.system"),
    "builtins.eval": (b"c__builtin__\neval\n(" + text("1/0") + b"tR", "__builtin__.eval"),
    "eval as Python 2 called it": (b"\x80\x02c__builtin__\neval\n(" + text("1/0") + b"tR", "builtins.eval"),
    "a module of Python 2": (b"\x80\x02ccommands\nPopen\n", "subprocess.Popen"),
    "a function of Python 2": (b"\x80\x02(i__builtin__\nreduce\n", "functools.reduce"),
    "getattr": (b"cbuiltins\ngetattr\n", "builtins.getattr"),
    "only named": (b"csubprocess\nPopen\n", "subprocess.Popen"),
    "dotted name": (text("torch") + text("float32.__class__.mro") + b"\x93", "torch.float32.__class__.mro"),
    "on the stack": (b"\x8c\x02os\x8c\x06system\x93", "os.system"),
    "from the memo": (text("os") + b"q\x01" + text("system") + b"q\x02h\x01h\x02\x93", "os.system"),
    "in a BUILD": (b"}cos\nsystem\nb", "os.system"),
    "in an INST": (b"(X\x04\0\0\0trueios\nsystem\n", "os.system"),
    "in an INST of a known name": (b"(icollections\nOrderedDict\n", "collections.OrderedDict"),
    "torch's own loader": (b"ctorch.storage\n_load_from_bytes\n", "torch.storage._load_from_bytes"),
    "torch.load": (b"ctorch\nload\n", "torch.load"),
    "numpy": (b"cnumpy.core.multiarray\n_reconstruct\n", "numpy.core.multiarray._reconstruct"),
    "a class of the user": (b"cmy.module\nArguments\n", "my.module.Arguments"),
    "a long name": (b"ca\n" + b"b" * 5000 + b"\n", "a.bbbb"),
}  # fmt: skip


@LAYOUTS
@pytest.mark.parametrize(("pickled", "name"), GLOBALS.values(), ids=GLOBALS.keys())
def test_a_global_no_state_dict_needs_is_refused_by_name(tmp_path: Path, layout: Layout, pickled: bytes, name: str) -> None:
    path = layout(tmp_path / "x.pt", b"\x80\x04" + pickled + b".")
    with pytest.raises(UnsafePickleError) as caught:
        open_pytorch(path)
    assert f"asks for '{name}" in caught.value.message
    assert caught.value.offset is not None
    assert caught.value.hint is not None
    assert len(caught.value.message) < 300 + len(str(path))


@LAYOUTS
def test_nothing_is_executed(tmp_path: Path, layout: Layout) -> None:
    class Mine:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "touched",))

    path = layout(tmp_path / "x.pt", pickle.dumps({"w": Mine()}, 2))
    with pytest.raises(UnsafePickleError, match=r"pathlib|getattr"):
        open_pytorch(path)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("position", range(3))
def test_the_small_pickles_of_the_old_layout_may_name_nothing(tmp_path: Path, position: int) -> None:
    parts = [pickle.dumps(value, 2) for value in (MAGIC_NUMBER, 1001, {"little_endian": True})]
    parts[position] = b"\x80\x02cos\nsystem\n."
    (tmp_path / "x.pt").write_bytes(b"".join(parts))
    with pytest.raises(UnsafePickleError, match=r"os\.system"):
        open_pytorch(tmp_path / "x.pt")


# --- pickles that are wrong -----------------------------------------------------------------------------------------------

DAMAGED = {
    "empty": (b"", "damaged pickle: pickle exhausted before seeing STOP"),
    "without an end": (b"\x80\x02}", "damaged pickle: pickle exhausted before seeing STOP"),
    "an empty stack": (b"\x80\x02.", "it takes more from the stack than there is"),
    "no such operation": (b"\x80\x02\xff.", r"opcode b'\\xff' unknown"),
    "a mark that is missing": (b"\x80\x02t.", "without a mark"),
    "a memo that is missing": (b"\x80\x02h\x07.", "damaged pickle: 7"),
    "too few for a tuple": (b"\x80\x02N\x86.", "takes more from the stack"),
    "an object of a class": (b"\x80\x02ctorch\nTensor\n)\x81.", "operation NEWOBJ, which no state dict needs"),
    "an extension": (b"\x80\x02\x82\x01.", "operation EXT1, which no state dict needs"),
    "a set": (b"\x80\x04\x8f.", "operation EMPTY_SET, which no state dict needs"),
    "a text as persistent id": (b"Pstorage\n.", "operation PERSID, which no state dict needs"),
    "a call of a dtype": (b"\x80\x02ctorch\nfloat32\n)R.", "it calls a BlockType"),
    "a call of a class": (b"\x80\x02ctorch\nFloatStorage\n)R.", "it calls a _StorageClass"),
    "a call of a text": (b"\x80\x02" + text("os.system") + b")R.", "it calls a str"),
    "arguments that are no tuple": (b"\x80\x02ctorch\nSize\n]R.", "it calls a Constructor"),
    "attributes of a tensor": (b"\x80\x02" + tensor() + b"}b.", "it sets attributes of a _View"),
    "attributes of a list": (b"\x80\x02]}b.", "it sets attributes of a list"),
    "items of a list": (b"\x80\x02]NNs.", "it sets items of a list"),
    "items of a global": (b"\x80\x02ctorch\nTensor\nNNs.", "it sets items of a _Inert"),
    "appending to a dict": (b"\x80\x02}Na.", "it appends to a dict"),
    "an odd number of items": (b"\x80\x02}(NNNu.", "damaged pickle"),
    "a key that is a tuple": (b"\x80\x02})Ns.", "a key of type tuple"),
    "a key nested deeply": (b"\x80\x02})" + b"\x85" * 500_000 + b"Ns.", "a key of type tuple"),
    "a key that is a list": (b"\x80\x02}]Ns.", "a key of type list"),
    "a key of 32000 bits": (
        b"\x80\x02}\x8b" + (4000).to_bytes(4, "little") + b"\x7f" * 4000 + b"Ns.", "a key of type int",
    ),
    "bytes beyond the end": (b"\x80\x04B\xff\xff\xff\xff.", "expected 4294967295 bytes"),
    "bytes beyond all memory": (b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.", "expected 9223372036854775807 bytes"),
    "a text beyond the end": (b"\x80\x02X\xff\xff\xff\x7f.", "expected 2147483647 bytes"),
    "a decimal of a million digits": (b"I" + b"9" * 1_000_000 + b"\n.", "damaged pickle: Exceeds the limit"),
    "half a global": (b"\x80\x02ctorch\n", "damaged pickle"),
}  # fmt: skip


@LAYOUTS
@pytest.mark.parametrize(("pickled", "message"), DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_pickle_is_refused_with_its_reason(tmp_path: Path, layout: Layout, pickled: bytes, message: str) -> None:
    path = tmp_path / "x.pt"
    # In the old layout what follows would be taken for the rest of the pickle.
    layout(path, pickled) if layout is archive else legacy(path, pickled, keys=(), storages=b"")
    if layout is legacy and ("exhausted" in message or "half" in message):
        message = "x.pt: "
    with pytest.raises(FormatError, match=message) as caught:
        open_pytorch(path)
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 400 + len(str(path))


TENSORS = {
    "a dict as storage": (tensor(storage=b"}"), "a tensor without a storage"),
    "a text as storage": (tensor(storage=text("0")), "a tensor without a storage"),
    "a negative offset": (tensor(offset=b"J\xff\xff\xff\xff"), "offset, shape or strides are no sizes"),
    "an offset as text": (tensor(offset=text("0")), "offset, shape or strides are no sizes"),
    "an offset beyond": (tensor(offset=b"K\x01"), "reaches element 8 of a storage of 8"),
    "a negative size": (tensor(shape=numbers(-2, 4)), "offset, shape or strides are no sizes"),
    "a true as size": (tensor(shape=b"\x88K\x04\x86"), "offset, shape or strides are no sizes"),
    "a size beyond 63 bits": (tensor(shape=numbers(1 << 63, 0)), "offset, shape or strides are no sizes"),
    "a list as shape": (tensor(shape=b"]"), "offset, shape or strides are no sizes"),
    "a negative stride": (tensor(strides=numbers(-4, 1)), "offset, shape or strides are no sizes"),
    "a stride too many": (tensor(strides=numbers(4, 1, 1)), "a tensor of 2 dimensions with 3 strides"),
    "65 dimensions": (tensor(shape=numbers(*[1] * 65), strides=numbers(*[1] * 65)), "a tensor of 65 dimensions"),
    "a shape beyond": (tensor(shape=numbers(3, 4)), "reaches element 11 of a storage of 8"),
    "strides beyond": (tensor(strides=numbers(1, 4)), "reaches element 13 of a storage of 8"),
    "strides that overflow": (tensor(strides=numbers((1 << 63) - 1, 1)), r"reaches element \d+ of a storage of 8"),
    "too few arguments": (b"ctorch._utils\n_rebuild_tensor_v2\n)R", "missing 4 required positional arguments"),
    "a parameter of nothing": (b"ctorch._utils\n_rebuild_parameter\n(N\x88NtR", "a parameter that is no tensor"),
    "a dtype that is none": (
        tensor().replace(b"_tensor_v2", b"_tensor_v3").replace(b"NtR", b"NNtR"), "without a storage or an element type",
    ),
    "a type of a type": (
        b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._tensor\n_rebuild_from_type_v2\nctorch\nTensor\n)NtR",
        "rebuilt by something else",
    ),
    "a reference to a module": (b"(" + text("module") + b"NNNNtQ", "a reference that is not to a storage"),
    "a reference by text": (text("storage") + b"Q", "a reference that is not to a storage"),
    "a storage of no class": (STORAGE.replace(b"FloatStorage", b"Tensor"), "without a class, key or size"),
    "a storage of a negative size": (STORAGE.replace(b"K\x08", b"J\xff\xff\xff\xff"), "without a class, key or size"),
    "a torch.Size of texts": (b"ctorch\nSize\n(" + text("2") + b"\x85tR", "a torch.Size that is no tuple of sizes"),
}  # fmt: skip


@LAYOUTS
@pytest.mark.parametrize(("value", "message"), TENSORS.values(), ids=TENSORS.keys())
def test_a_tensor_that_makes_no_sense_is_refused(tmp_path: Path, layout: Layout, value: bytes, message: str) -> None:
    path = layout(tmp_path / "x.pt", state_dict(value))
    with pytest.raises(FormatError, match=message):
        open_pytorch(path)


@pytest.mark.parametrize("name", ["a\nb", "\ud800", "\x1b[31m"])
def test_a_name_that_cannot_be_printed_is_refused(tmp_path: Path, name: str) -> None:
    path = archive(tmp_path / "x.pt", state_dict(tensor(), text(name)))
    with pytest.raises(FormatError, match="name is not printable text") as caught:
        open_pytorch(path)
    caught.value.message.encode()


def test_a_name_that_is_a_number_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.pt", state_dict(tensor(), b"K\x07"))
    with pytest.raises(FormatError, match="name is not printable text: '7'"):
        open_pytorch(path)


def test_a_dictionary_in_itself_ends(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.pt", b"\x80\x02}q\x01" + text("model") + b"h\x01s.")
    with pytest.raises(QuantcliError, match="no tensors in it"):
        open_pytorch(path)


def test_the_same_list_made_a_dictionary_over_and_over_ends(tmp_path: Path) -> None:
    pairs = b"](" + b"NN\x86" * 100_000 + b"eq\x01"
    again = b"ccollections\nOrderedDict\nh\x01\x85R0" * 1_000
    path = archive(tmp_path / "x.pt", b"\x80\x02" + pairs + again + b".")
    with pytest.raises(FormatError, match="more than 1000000 items"):
        open_pytorch(path)


def test_python_2_ordered_dicts_are_read(tmp_path: Path) -> None:
    pairs = b"](](" + text("w") + tensor() + b"ee"
    path = archive(tmp_path / "x.pt", b"\x80\x02ccollections\nOrderedDict\n" + pairs + b"\x85R.")
    assert list(open_pytorch(path)) == ["w"]


# --- archives that are wrong ----------------------------------------------------------------------------------------------

SOUND = state_dict(tensor())


def test_a_storage_that_is_missing(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.pt", SOUND.replace(b"X\x01\0\0\x000", b"X\x01\0\0\x007"))
    with pytest.raises(FormatError, match="1 storages are missing from the archive, the first 'x/data/7'"):
        open_pytorch(path)


def test_a_key_does_not_lead_elsewhere_in_the_archive(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.pt", SOUND.replace(b"X\x01\0\0\x000", text("../data.pkl")))
    with pytest.raises(FormatError, match=r"the first 'x/data/\.\./data\.pkl'"):
        open_pytorch(path)


def test_a_storage_that_is_too_short(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.pt", SOUND, {"x/data/0": bytes(31)})
    with pytest.raises(FormatError, match="tensor 'w': a storage of 31 bytes, expected 32"):
        open_pytorch(path)


def test_big_endian_is_refused_by_name(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.pt", SOUND, {"x/byteorder": b"big"})
    with pytest.raises(UnsupportedError, match="stored in big-endian byte order"):
        open_pytorch(path)


def test_an_archive_without_a_byte_order_is_little_endian(tmp_path: Path) -> None:
    """As PyTorch 1.6 to 1.13 wrote them; and with the headers that files beyond 4 GB have."""
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as file:
        for name, content in (("archive/data.pkl", SOUND), ("archive/data/0", struct.pack("<8f", *range(8)))):
            with file.open(name, "w", force_zip64=True) as entry:
                entry.write(content)
    assert open_pytorch(tmp_path / "x.pt")["w"].load().tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_an_unknown_byte_order_is_an_error(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.pt", SOUND, {"x/byteorder": b"middle"})
    with pytest.raises(FormatError, match="byte order b'middle', expected 'little'"):
        open_pytorch(path)


def test_big_endian_in_the_old_layout_is_refused_by_name(tmp_path: Path) -> None:
    path = legacy(tmp_path / "x.pt", SOUND)
    path.write_bytes(path.read_bytes().replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89"))
    with pytest.raises(UnsupportedError, match="stored in big-endian byte order"):
        open_pytorch(path)


def test_compressed_entries_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.pt", SOUND, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(UnsupportedError, match=r"entry 'x/\w+(\.pkl)?' is compressed"):
        open_pytorch(path)


def test_torchscript_is_refused_by_name(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.pt", SOUND, {"x/constants.pkl": b"\x80\x02)."})
    with pytest.raises(UnsupportedError, match="a TorchScript program"):
        open_pytorch(path)


@pytest.mark.parametrize(("names", "count"), [(["x/a.npy"], 0), (["x/data.pkl", "y/data.pkl"], 2)])
def test_another_zip_archive_is_refused(tmp_path: Path, names: list[str], count: int) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as file:
        for name in names:
            file.writestr(name, SOUND)
    with pytest.raises(FormatError, match=f"a zip archive with {count} entries data.pkl"):
        open_pytorch(tmp_path / "x.pt")


def test_two_entries_of_one_name_are_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(tmp_path / "x.pt", "w") as file:
        file.writestr("x/data.pkl", SOUND)
        file.writestr("x/data.pkl", SOUND)
    with pytest.raises(FormatError, match="two entries of the same name"):
        open_pytorch(tmp_path / "x.pt")


def test_a_pickle_that_torch_did_not_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(pickle.dumps({"w": [1, 2]}))
    with pytest.raises(FormatError, match="its magic number is missing"):
        open_pytorch(tmp_path / "x.pt")


@pytest.mark.parametrize("fixture", ["module", "module_legacy", "views_legacy"])
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, fixture: str) -> None:
    content = (FIXTURES / f"{fixture}.pt").read_bytes()
    path = tmp_path / "x.pt"
    for length in range(0, len(content), 13):
        path.write_bytes(content[:length])
        with pytest.raises(QuantcliError):
            open_pytorch(path)


@pytest.mark.parametrize("fixture", ["module", "training_legacy"])
def test_a_flipped_byte_gives_tensors_or_an_error_of_ours(tmp_path: Path, fixture: str) -> None:
    content = (FIXTURES / f"{fixture}.pt").read_bytes()
    path = tmp_path / "x.pt"
    for position in range(0, len(content), 3):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :])
        try:
            for found in open_pytorch(path).values():
                assert found.nbytes < 1 << 20
        except QuantcliError as error:
            assert "\n" not in error.message


LEGACY = {
    "another key": ({"keys": ("1",)}, "the list of storages is not that of the pickle"),
    "no keys": ({"keys": ()}, "the list of storages is not that of the pickle"),
    "a key twice": ({"keys": ("0", "0")}, "the list of storages is not that of the pickle"),
    "a key that is no text": ({"keys": (0,)}, "the list of storages is not that of the pickle"),
    "another count": ({"storages": struct.pack("<q", 9) + bytes(36)}, "storage '0' has 9 elements, expected 8"),
    "a negative count": ({"storages": struct.pack("<q", -1)}, "storage '0' has 18446744073709551615 elements"),
    "no storages": ({"storages": b""}, "expected 8 bytes, found 0"),
    "half a storage": ({"storages": struct.pack("<q", 8) + bytes(31)}, r"the file is cut short: \d+ bytes, expected \d+"),
}


@pytest.mark.parametrize(("changes", "message"), LEGACY.values(), ids=LEGACY.keys())
def test_storages_of_the_old_layout_that_disagree(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = legacy(tmp_path / "x.pt", SOUND, **changes)
    with pytest.raises(FormatError, match=message):
        open_pytorch(path)


def part(start: int, size: int) -> bytes:
    return STORAGE.removesuffix(b"tQ") + text("part") + b"K" + bytes([start]) + b"K" + bytes([size]) + b"\x87tQ"


def test_a_part_of_a_storage_begins_where_it_says(tmp_path: Path) -> None:
    pickled = state_dict(tensor(shape=numbers(3), strides=numbers(1), storage=part(4, 3)))
    path = legacy(tmp_path / "x.pt", pickled, storages=struct.pack("<q8f", 8, *range(8)))
    assert open_pytorch(path)["w"].load().tolist() == [4, 5, 6]


def test_a_part_beyond_its_storage_is_refused(tmp_path: Path) -> None:
    pickled = state_dict(tensor(shape=numbers(3), strides=numbers(1), storage=part(6, 3)))
    with pytest.raises(FormatError, match="a part that reaches element 9 of a storage of 8"):
        open_pytorch(legacy(tmp_path / "x.pt", pickled))
