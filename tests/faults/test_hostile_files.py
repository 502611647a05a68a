"""Damaged and hostile checkpoints: nothing in them is executed, nothing is half-loaded, each gives
one clear error.
"""

import hashlib
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
STEP = "step-000000003.json"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    checkpoint.save(folder, ReformerLM(CONFIG), step=3, training={"x": torch.ones(3)}, state={"seconds": 1.0})
    return folder


class Box:
    """A copy of a good checkpoint, and ways to change it, with or without putting the checksums
    right.
    """

    def __init__(self, folder, marker):
        self.folder, self.path, self.marker = folder, folder / STEP, marker

    @property
    def manifest(self):
        return json.loads(self.path.read_text())

    def write(self, manifest, signed=True):
        if signed:
            manifest["sha256"] = checkpoint._digest(manifest)
        self.path.write_text(json.dumps(manifest))

    def change(self, signed=True, **values):
        self.write({**self.manifest, **values}, signed)

    def configure(self, **values):
        self.change(config={**self.manifest["config"], **values})

    def data(self, part="model"):
        return self.folder / checkpoint._data_name(part, self.manifest["files"][part]["sha256"])

    def replace(self, content, part="model"):
        """Other content under a right checksum and a right name: damage that only a reader of
        tensors can see.
        """
        manifest, digest = self.manifest, hashlib.sha256(content).hexdigest()
        manifest["files"][part] = {"bytes": len(content), "sha256": digest}
        self.write(manifest)
        (self.folder / checkpoint._data_name(part, digest)).write_bytes(content)

    def tensors(self, change):
        tensors = safetensors.torch.load(self.data().read_bytes())
        change(tensors)
        self.replace(safetensors.torch.save(tensors))

    def bomb(self):
        """A pickle that would write the marker when it is loaded."""

        class Bomb:
            def __reduce__(_):
                return (Path(self.marker).write_text, ("executed",))

        return pickle.dumps(Bomb())


def first_weight(tensors):
    return next(name for name, t in tensors.items() if t.is_floating_point())


def header(text, data=b""):
    return struct.pack("<Q", len(text)) + text + data


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


def swap(box):
    a, b = box.data("model"), box.data("training")
    a_content = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(a_content)


def link(box, target):
    box.data().unlink()
    box.data_link = box.folder / checkpoint._data_name("model", box.manifest["files"]["model"]["sha256"])
    box.data_link.symlink_to(target)


def entry(**values):
    return lambda box: box.change(
        files={**box.manifest["files"], "model": {**box.manifest["files"]["model"], **values}}
    )


def drop(name):
    return lambda box: box.write({key: value for key, value in box.manifest.items() if key != name})


def becomes(special):
    def change(box):
        path = box.data()
        path.unlink()
        special(path)

    return change


HOSTILE = {
    # --- the manifest
    "manifest: empty": lambda box: box.path.write_bytes(b""),
    "manifest: one byte": lambda box: box.path.write_bytes(b"{"),
    "manifest: cut": lambda box: box.path.write_bytes(box.path.read_bytes()[:-30]),
    "manifest: a bit flipped": lambda box: flip(box.path, 60),
    "manifest: a digit of the step changed": lambda box: box.change(signed=False, step=4),
    "manifest: a learning state changed": lambda box: box.change(signed=False, state={"seconds": 2.0}),
    "manifest: no JSON but a pickle bomb": lambda box: box.path.write_bytes(box.bomb()),
    "manifest: a list": lambda box: box.path.write_text("[1, 2]"),
    "manifest: null": lambda box: box.path.write_text("null"),
    "manifest: nested a hundred thousand deep": lambda box: box.path.write_text("[" * 100_000),
    "manifest: objects nested deep": lambda box: box.path.write_text('{"format":' * 50_000),
    "manifest: NaN": lambda box: box.path.write_text('{"format": NaN}'),
    "manifest: a number of a million digits": lambda box: box.path.write_text('{"format": ' + "9" * 10**6 + "}"),
    "manifest: not UTF-8": lambda box: box.path.write_bytes(b'{"format": "\xff\xfe"}'),
    "manifest: seventeen million blanks": lambda box: box.path.write_bytes(b" " * (17 << 20)),
    "manifest: another format": lambda box: box.change(format=99),
    "manifest: the format as text": lambda box: box.change(format="2"),
    "manifest: without a checksum": lambda box: box.write(
        {k: v for k, v in box.manifest.items() if k != "sha256"}, signed=False
    ),
    "manifest: of another step": lambda box: box.change(step=4),
    "manifest: step true": lambda box: box.change(step=True),
    "manifest: without files": drop("files"),
    "manifest: without config": drop("config"),
    "manifest: without state": drop("state"),
    "manifest: files of unknown kinds": lambda box: box.change(files={**box.manifest["files"], "code": {}}),
    "manifest: no model among the files": lambda box: box.change(files={}),
    "manifest: a symbolic link": lambda box: (box.path.rename(box.folder / "x"), box.path.symlink_to(box.folder / "x")),
    "manifest: a directory": lambda box: (box.path.unlink(), box.path.mkdir()),
    "manifest: a pipe": lambda box: (box.path.unlink(), os.mkfifo(box.path)),
    # --- paths
    "path: a checksum that leads out of the folder": entry(sha256="../../../../etc/passwd"),
    "path: a checksum with a zero byte": entry(sha256="0" * 63 + "\0"),
    "path: a checksum in capital letters": entry(sha256="A" * 64),
    "path: a checksum that is a number": entry(sha256=7),
    "path: a checksum of no file": entry(sha256="0" * 64),
    "path: a link to a file elsewhere": lambda box: link(box, "/etc/passwd"),
    "path: a link to an endless device": lambda box: link(box, "/dev/zero"),
    "path: a link to itself": lambda box: link(box, "itself"),
    # --- the data file
    "data: missing": lambda box: box.data().unlink(),
    "data: empty": lambda box: box.data().write_bytes(b""),
    "data: cut": lambda box: box.data().write_bytes(box.data().read_bytes()[:-9]),
    "data: a byte too many": lambda box: box.data().write_bytes(box.data().read_bytes() + b"x"),
    "data: a bit of a weight flipped": lambda box: flip(box.data(), -1),
    "data: a bit of the header flipped": lambda box: flip(box.data(), 30),
    "data: files swapped": swap,
    "data: a directory": becomes(Path.mkdir),
    "data: a pipe": becomes(os.mkfifo),
    "data: its size as text": entry(bytes="12"),
    "data: its size negative": entry(bytes=-1),
    # --- right checksums, wrong contents
    "content: a pickle bomb": lambda box: box.replace(box.bomb()),
    "content: torch.save of a bomb": lambda box: box.replace(torch_saved(box)),
    "content: no bytes": lambda box: box.replace(b""),
    "content: a header of 2^63 bytes": lambda box: box.replace(struct.pack("<Q", 1 << 63) + b"{}"),
    "content: a header longer than the file": lambda box: box.replace(struct.pack("<Q", 1000) + b"{}"),
    "content: a header of 17 million bytes": lambda box: box.replace(header(b" " * (17 << 20))),
    "content: a header that is no JSON": lambda box: box.replace(header(b"{{{{")),
    "content: offsets outside the file": lambda box: box.replace(
        header(b'{"x":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}', b"1234")
    ),
    "content: overlapping tensors": lambda box: box.replace(
        header(
            b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"y":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            b"1234",
        )
    ),
    "content: a shape that overflows": lambda box: box.replace(
        header(b'{"x":{"dtype":"F32","shape":[9223372036854775807,4],"data_offsets":[0,4]}}', b"1234")
    ),
    "content: no tensors at all": lambda box: box.replace(safetensors.torch.save({})),
    "content: a weight missing": lambda box: box.tensors(lambda t: t.pop(first_weight(t))),
    "content: a weight too many": lambda box: box.tensors(lambda t: t.update(extra=torch.ones(2))),
    "content: a weight of another shape": lambda box: box.tensors(lambda t: t.update({first_weight(t): torch.ones(3)})),
    "content: a weight of integers": lambda box: box.tensors(
        lambda t: t.update({first_weight(t): t[first_weight(t)].to(torch.int32)})
    ),
    "content: a weight in half precision": lambda box: box.tensors(
        lambda t: t.update({first_weight(t): t[first_weight(t)].half()})
    ),
    "content: a weight that is no number": lambda box: box.tensors(
        lambda t: t[first_weight(t)].view(-1)[:1].fill_(float("nan"))
    ),
    "content: an infinite weight": lambda box: box.tensors(
        lambda t: t[first_weight(t)].view(-1)[:1].fill_(float("inf"))
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
    "config: 10^9 rounds": lambda box: box.configure(lsh={**box.manifest["config"]["lsh"], "n_hashes": 10**9}),
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
    assert len(HOSTILE) >= 40


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_checkpoints_are_refused(what, good, tmp_path):
    folder, marker = tmp_path / "box", tmp_path / "marker"
    shutil.copytree(good, folder)
    HOSTILE[what](Box(folder, marker))
    begun = time.perf_counter()
    with pytest.raises(checkpoint.CheckpointError) as error:
        checkpoint.load(folder)
    message = str(error.value)
    assert len(message) < 1500
    assert str(folder) in message  # which file it is
    assert time.perf_counter() - begun < 5.0  # no pipe was waited for, no gigabytes were read
    assert not marker.exists()


@pytest.mark.parametrize("what", ["manifest: nested a hundred thousand deep", "content: a pickle bomb", "data: a pipe"])
def test_the_command_says_it_in_one_line(what, good, tmp_path, capfd):
    folder = tmp_path / "box"
    shutil.copytree(good, folder)
    HOSTILE[what](Box(folder, tmp_path / "marker"))
    assert cli.main(["generate", "--checkpoint", str(folder), "--tokens", "1"]) == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert not (tmp_path / "marker").exists()


def test_a_good_one_is_not_refused(good):
    model, found = checkpoint.load(good)
    assert found.step == 3
    assert model.config == CONFIG
