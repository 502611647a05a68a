"""Damaged and hostile checkpoints: nothing in them is executed, nothing is half-loaded, each gives one clear error."""

import json
import os
import pickle
import shutil
import struct
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from reformer_lab import cli
from reformer_lab.training import checkpoint
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.model.config import ReformerConfig
from reformer_ref.model.pytorch import ReformerLM

CONFIG = ReformerConfig(
    vocab_size=256, d_model=16, n_heads=2, n_layers=2, d_ff=32, max_length=64,
    lsh=LSHOptions.preset("strict", chunk_length=8),
)  # fmt: skip
NAME = "step-000000003.safetensors"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    checkpoint.save(folder, ReformerLM(CONFIG), step=3, training={"x": torch.ones(3)}, state={"seconds": 1.0})
    return folder


class Box:
    """A copy of a good checkpoint, and ways to change it, with or without putting the checksum right."""

    def __init__(self, folder, marker):
        self.folder, self.path, self.marker = folder, folder / NAME, marker
        self.content = self.path.read_bytes()
        self.metadata = json.loads(self.content[8 : self.data_start])["__metadata__"]
        self.manifest = json.loads(self.metadata["manifest"])

    @property
    def data_start(self):
        return 8 + int.from_bytes(self.content[:8], "little")

    def write(self, tensors=None, **metadata):
        """Write tensors and metadata with a right checksum: damage that only a reader of the contents can see."""
        tensors = safetensors.torch.load(self.content) if tensors is None else tensors
        metadata = {**self.metadata, **metadata}
        metadata["sha256"] = checkpoint._checksum(metadata["manifest"], tensors)
        self.path.write_bytes(safetensors.torch.save(tensors, metadata))

    def change(self, **values):
        self.write(manifest=json.dumps({**self.manifest, **values}))

    def configure(self, **values):
        self.change(config={"config": {**self.manifest["config"]["config"], **values}})

    def edit(self, old, new):
        """Change bytes and leave the checksum as it is."""
        assert self.content.count(old) == 1
        self.path.write_bytes(self.content.replace(old, new))

    def tensors(self, change):
        tensors = safetensors.torch.load(self.content)
        change(tensors)
        self.write(tensors)

    def bomb(self):
        """A pickle that would write the marker when it is loaded."""

        class Bomb:
            def __reduce__(_):
                return (Path(self.marker).write_text, ("executed",))

        return pickle.dumps(Bomb())


def first_weight(tensors):
    return next(name for name, t in tensors.items() if name.startswith("model/") and t.is_floating_point())


def file(text, data=b""):
    """A safetensors file with this text as its header."""
    return struct.pack("<Q", len(text)) + text + data


def described(tensors, data=b""):
    """A file with a right manifest, whose header describes tensors as no writer would; a checksum they cannot have."""

    def change(box):
        header = json.dumps({"__metadata__": box.metadata, **tensors}, separators=(",", ":")).encode()
        box.path.write_bytes(file(header, data))

    return change


def f32(shape, *offsets):
    return {"dtype": "F32", "shape": shape, "data_offsets": offsets}


def flip(box, at):
    content = bytearray(box.content)
    content[at] ^= 4
    box.path.write_bytes(content)


def drop(name):
    return lambda box: box.write(manifest=json.dumps({k: v for k, v in box.manifest.items() if k != name}))


def becomes(special):
    def change(box):
        box.path.unlink()
        special(box.path)

    return change


def content(function):
    """The file replaced by the bytes that a function of the box returns."""
    return lambda box: box.path.write_bytes(function(box))


HOSTILE = {
    # --- the file
    "file: empty": content(lambda box: b""),
    "file: one byte": content(lambda box: b"{"),
    "file: cut in the header": content(lambda box: box.content[:30]),
    "file: cut": content(lambda box: box.content[:-9]),
    "file: a byte too many": content(lambda box: box.content + b"x"),
    "file: a bit of a weight flipped": lambda box: flip(box, -1),
    "file: a bit of the header flipped": lambda box: flip(box, 30),
    "file: a bit of an offset flipped": lambda box: flip(box, box.content.index(b"data_offsets") + 15),
    "file: a bit of the length of the header flipped": lambda box: flip(box, 0),
    "file: a pickle bomb": content(Box.bomb),
    "file: torch.save of a bomb": content(lambda box: torch_saved(box)),
    "file: JSON": content(lambda box: b'{"format": 2, "files": {}}'),
    "file: a safetensors file of somebody else": content(lambda box: safetensors.torch.save({"x": torch.ones(2)})),
    "file: a header of 2^63 bytes": content(lambda box: struct.pack("<Q", 1 << 63) + b"{}"),
    "file: a header longer than the file": content(lambda box: struct.pack("<Q", 1000) + b"{}"),
    "file: a header of 17 million bytes": content(lambda box: file(b" " * (17 << 20))),
    "file: another step's name": lambda box: box.path.rename(box.folder / "step-000000004.safetensors"),
    "file: a symbolic link": lambda box: (box.path.rename(box.folder / "x"), box.path.symlink_to(box.folder / "x")),
    "file: a link to a file elsewhere": becomes(lambda path: path.symlink_to("/etc/passwd")),
    "file: a link to an endless device": becomes(lambda path: path.symlink_to("/dev/zero")),
    "file: a link to itself": becomes(lambda path: path.symlink_to(path.name)),
    "file: a directory": becomes(Path.mkdir),
    "file: a pipe": becomes(os.mkfifo),
    # --- the header
    "header: not JSON": content(lambda box: file(b"{{{{")),
    "header: a list": content(lambda box: file(b"[1, 2]")),
    "header: null": content(lambda box: file(b"null")),
    "header: nested a hundred thousand deep": content(lambda box: file(b"[" * 100_000)),
    "header: objects nested deep": content(lambda box: file(b'{"__metadata__":' * 50_000)),
    "header: NaN": content(lambda box: file(b'{"__metadata__": NaN}')),
    "header: a number of a million digits": content(lambda box: file(b'{"x": ' + b"9" * 10**6 + b"}")),
    "header: not UTF-8": content(lambda box: file(b'{"__metadata__": "\xff\xfe"}')),
    "header: metadata that are text": content(lambda box: file(b'{"__metadata__": "format"}')),
    "header: offsets outside the file": described({"x": f32([4], 0, 16)}, b"1234"),
    "header: overlapping tensors": described({"x": f32([1], 0, 4), "y": f32([1], 0, 4)}, b"1234"),
    "header: a shape that overflows": described({"x": f32([9223372036854775807, 4], 0, 4)}, b"1234"),
    "header: a tensor of unknown type": described({"x": {**f32([1], 0, 4), "dtype": "PICKLE"}}, b"1234"),
    # --- the manifest
    "manifest: another format": lambda box: box.write(format="99"),
    "manifest: without a checksum": lambda box: box.edit(b'"sha256"', b'"sha257"'),
    "manifest: a checksum that is text": lambda box: box.edit(box.metadata["sha256"].encode(), b"../../etc/passwd"),
    "manifest: a digit of the step changed": lambda box: box.edit(b'\\"step\\": 3', b'\\"step\\": 4'),
    "manifest: a learning state changed": lambda box: box.edit(b'\\"seconds\\": 1.0', b'\\"seconds\\": 2.0'),
    "manifest: not JSON": lambda box: box.write(manifest="{"),
    "manifest: a list": lambda box: box.write(manifest="[1, 2]"),
    "manifest: NaN": lambda box: box.change(state={"seconds": float("nan")}),
    "manifest: nested a hundred thousand deep": lambda box: box.write(manifest="[" * 100_000),
    "manifest: of another step": lambda box: box.change(step=4),
    "manifest: step true": lambda box: box.change(step=True),
    "manifest: a step of four thousand digits": lambda box: box.change(step=10**4000),
    "manifest: without step": drop("step"),
    "manifest: without config": drop("config"),
    "manifest: without state": drop("state"),
    "manifest: something unknown": lambda box: box.change(code="import os"),
    # --- right checksums, wrong tensors
    "tensors: none at all": lambda box: box.write({}),
    "tensors: one of an unknown group": lambda box: box.tensors(lambda t: t.update({"code/x": torch.ones(2)})),
    "tensors: a weight missing": lambda box: box.tensors(lambda t: t.pop(first_weight(t))),
    "tensors: a weight too many": lambda box: box.tensors(lambda t: t.update({"model/extra": torch.ones(2)})),
    "tensors: a weight of another shape": lambda box: box.tensors(lambda t: t.update({first_weight(t): torch.ones(3)})),
    "tensors: a weight of integers": lambda box: box.tensors(
        lambda t: t.update({first_weight(t): t[first_weight(t)].to(torch.int32)})
    ),
    "tensors: a weight in half precision": lambda box: box.tensors(
        lambda t: t.update({first_weight(t): t[first_weight(t)].half()})
    ),
    "tensors: a weight that is NaN": lambda box: box.tensors(
        lambda t: t[first_weight(t)].view(-1)[:1].fill_(float("nan"))
    ),
    "tensors: an infinite weight": lambda box: box.tensors(
        lambda t: t[first_weight(t)].view(-1)[:1].fill_(float("inf"))
    ),
    "tensors: a name of a million letters": lambda box: box.tensors(
        lambda t: t.update({"model/" + "x" * 10**6: torch.ones(1)})
    ),
    # --- configurations
    "config: an unknown field": lambda box: box.configure(colour="blue"),
    "config: another width": lambda box: box.configure(d_ff=48),
    "config: a vocabulary of 10^15": lambda box: box.configure(vocab_size=10**15),
    "config: 10^9 layers": lambda box: box.configure(n_layers=10**9),
    "config: a width of 10^12": lambda box: box.configure(d_ff=10**12),
    "config: a length of 10^18": lambda box: box.configure(max_length=10**18, axial_shape=None),
    "config: the wrong types": lambda box: box.configure(n_heads="two"),
    "config: options that are no object": lambda box: box.configure(lsh=3),
    "config: 10^9 rounds": lambda box: box.configure(
        lsh={**box.manifest["config"]["config"]["lsh"], "n_hashes": 10**9}
    ),
    "config: another kind of model": lambda box: box.change(model="os.system"),
}


def torch_saved(box):
    import io

    buffer = io.BytesIO()

    class Bomb:
        def __reduce__(_):
            return (Path(box.marker).write_text, ("executed",))

    torch.save({"x": Bomb()}, buffer)
    return buffer.getvalue()


def test_there_are_enough_of_them():
    print(f"{len(HOSTILE)} damaged or hostile checkpoints")
    assert len(HOSTILE) >= 60


@pytest.mark.parametrize("damage", HOSTILE)
def test_hostile_checkpoints_are_refused(damage, good, tmp_path):
    folder, marker = tmp_path / "box", tmp_path / "marker"
    shutil.copytree(good, folder)
    HOSTILE[damage](Box(folder, marker))
    begun = time.perf_counter()
    with pytest.raises(checkpoint.CheckpointError) as error:
        checkpoint.load(folder)
    message = str(error.value)
    assert len(message) < 1500
    assert str(folder) in message  # which file it is
    assert time.perf_counter() - begun < 5.0  # no pipe was waited for, no gigabytes were read
    assert not marker.exists()


@pytest.mark.parametrize("damage", ["manifest: nested a hundred thousand deep", "file: a pickle bomb", "file: a pipe"])
def test_the_command_says_it_in_one_line(damage, good, tmp_path, capfd):
    folder = tmp_path / "box"
    shutil.copytree(good, folder)
    HOSTILE[damage](Box(folder, tmp_path / "marker"))
    assert cli.main(["generate", "--checkpoint", str(folder), "--tokens", "1"]) == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert not (tmp_path / "marker").exists()


def test_a_good_one_is_not_refused(good):
    model, saved = checkpoint.load(good)
    assert saved.step == 3
    assert model.config == CONFIG
