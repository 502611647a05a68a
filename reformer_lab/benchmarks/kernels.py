"""Compile the Triton kernels for several GPUs, without one, and look into the machine code.

``python -m reformer_lab.benchmarks.kernels`` writes the registers, spills, shared memory and instructions of every
kernel as JSON. It needs the extra ``kernels``, whose triton brings NVIDIA's assembler and disassembler along.
"""

import re
import shlex
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import torch
import tyro
from reformer_ref.local_attention.options import LocalOptions
from reformer_ref.lsh_attention.fused import kernel_options
from reformer_ref.lsh_attention.options import LSHOptions
from tqdm.auto import tqdm

from reformer_lab.benchmarks import record

CAPABILITIES = (80, 90)  # A100; H100 and H200
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
HEAD_SIZES = (64, 128)
WORK = ("hash", "paper", "trax", "strict", "local")  # presets of LSH attention between hash and local attention
LENGTH, HEADS, ROUNDS = 16384, 8, 4
SHARED_LIMIT = 100 * 1024  # bytes that a kernel may take, so that several programs fit one multiprocessor


def run(out: Path = Path("records/kernels.json")) -> None:
    """Compile all kernels and write what they need.

    Args:
        out: where the record goes.
    """
    record.require_place("--out", out)
    cases = [(c, t, d, a) for c in CAPABILITIES for t in DTYPES for d in HEAD_SIZES for a in WORK]
    kernels = [entry for case in tqdm(cases, unit="case") for entry in compiled(*case)]
    import triton

    line = shlex.join(["python", "-m", "reformer_lab.benchmarks.kernels", *sys.argv[1:]])
    data = {**record.about(line, torch.get_num_threads()), "length": LENGTH, "heads": HEADS, "rounds": ROUNDS}
    data["versions"]["triton"] = triton.__version__
    record.write(out, {**data, "kernels": kernels})
    print(summary(kernels) + f"\nwritten {out}", flush=True)


def compiled(capability, dtype, d, work, padding=True):
    """What the kernels of one call need: a list of dicts, a kernel each, of the last round."""
    about = {"capability": capability, "dtype": str(dtype).removeprefix("torch."), "d": d, "work": work}
    launches = recorded_launches(dtype, d, work, padding)
    entries = []
    with compiling_for(capability):
        for kernel, args, constants in launches.values():
            binary = kernel.warmup(*args, grid=(1,), **constants)
            name = kernel.fn.__name__.strip("_").removesuffix("_kernel")
            sizes = {"slots": constants["BLOCK"], "warps": constants.get("num_warps", 4)}
            entries.append({**about, "kernel": name, **sizes, **resources(binary)})
    return entries


def recorded_launches(dtype, d, work, padding=True):
    """{name: (kernel, arguments, constants)} of the last launches of all kernels in a call.

    The kernels get tensors that have a shape and no contents, and are not run.
    """
    module = import_module(f"reformer_ref.{'hashing' if work == 'hash' else 'lsh_attention'}.triton")
    kernels = {name: kernel for name, kernel in vars(module).items() if name.endswith("_kernel")}
    launches = {}
    for name, kernel in kernels.items():
        setattr(module, name, Recorder(name, kernel, launches))
    try:
        if work == "hash":
            _hash(module, dtype, d)
        else:
            _attend(module, dtype, d, work, padding)
    finally:
        for name, kernel in kernels.items():
            setattr(module, name, kernel)
    return launches


class Recorder:
    """Stands for a kernel, and keeps the arguments of its last launch."""

    def __init__(self, name, kernel, launches):
        self.name, self.kernel, self.launches = name, kernel, launches

    def __getitem__(self, grid):
        def launch(*args, **constants):
            self.launches[self.name] = (self.kernel, args, constants)

        return launch


def _hash(module, dtype, d):
    """The hash of meta tensors, with as many columns as the kernel takes at a time."""
    factors = (128, 128)
    with torch.device("meta"):
        x = torch.empty(1, HEADS, LENGTH, d, dtype=dtype)
        rotations = torch.empty(1, HEADS, ROUNDS, d, sum(factors) // 2, dtype=dtype)
        buckets = torch.empty(1, HEADS, ROUNDS, LENGTH, dtype=torch.int64)
    module.launch_hash(x, rotations, buckets, factors)


def _attend(module, dtype, d, attention, padding):
    """Forward and backward pass on meta tensors."""
    local = attention == "local"
    options = LocalOptions() if local else LSHOptions.preset(attention, n_hashes=ROUNDS)
    numbers = kernel_options(options, LENGTH, see_self=local)
    with torch.device("meta"):
        q, k, v, out, d_out, d_q, d_k, d_v = (
            torch.empty(1, LENGTH, HEADS, d, dtype=dtype).transpose(1, 2) for _ in range(8)
        )
        lse = torch.empty(HEADS, LENGTH)
        order = torch.empty(HEADS, options.n_hashes, LENGTH, dtype=torch.int32)
        slots = order if options.count_once else None
        buckets = order.to(torch.int16) if options.within_bucket else None
        mask = torch.empty(1, HEADS, LENGTH, dtype=torch.bool) if padding else None
        partial = None if local or dtype == torch.float32 else torch.empty_like(q, dtype=torch.float32)
    tables = order, slots, buckets, mask
    settings = numbers, options.scale_for(d), 0.0 if local else options.norm_eps
    k = k if local else None
    module.launch_forward(q, k, v, out, partial, lse, *tables, *settings)
    gradients = d_q, d_k, d_v
    module.launch_backward(d_out, q, k, v, out, lse, *tables, partial, partial, lse, *gradients, *settings)


@contextmanager
def compiling_for(capability):
    """Inside, triton compiles for a GPU of this compute capability, which need not be there."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    class Device:
        """What triton asks about the GPU."""

        def get_current_device(self):
            return capability  # compiled kernels are kept by this number

        def get_current_stream(self, device):
            return 0

        def get_current_target(self):
            return GPUTarget("cuda", capability, 32)

    before = driver._active
    driver.set_active(Device())
    try:
        yield
    finally:
        driver._active = before


def resources(binary):
    """Registers of a thread, bytes that it spills, shared memory and instructions of a compiled kernel."""
    import triton.backends.nvidia as nvidia

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(binary.asm["cubin"])
        tool = [Path(nvidia.__file__).parent / "bin" / "cuobjdump"]
        usage = subprocess.run([*tool, "--dump-resource-usage", path], capture_output=True, text=True, check=True)
        listing = subprocess.run([*tool, "-sass", path], capture_output=True, text=True, check=True)
    numbers = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage.stdout)
    registers, stack, local = map(int, numbers.groups())
    instructions = len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/ .*;", listing.stdout, re.MULTILINE))
    return {
        "registers": registers, "spilled_bytes": stack + local, "shared_bytes": binary.metadata.shared,
        "instructions": instructions,
    }  # fmt: skip


def summary(kernels):
    """A line for each kernel, as text."""
    return "\n".join(
        f"sm_{k['capability']} {k['dtype']:>8} d={k['d']:<3} {k['work']:<6} {k['kernel']:<16} "
        f"{k['registers']:3} registers, {k['spilled_bytes']:4} bytes spilled, {k['shared_bytes']:6} bytes shared, "
        f"{k['instructions']:5} instructions"
        for k in kernels
    )


if __name__ == "__main__":
    tyro.cli(run)
