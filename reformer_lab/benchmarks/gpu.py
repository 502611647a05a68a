"""The same cases on a CUDA device: ``python -m reformer_lab.benchmarks.gpu CASE …``, options as of
``reformer-ref bench``.

Times are CUDA events, memory is what PyTorch's allocator counted; beside ours stands what was
predicted without a GPU. Records are called bench_cuda_CASE.json. Without a CUDA device nothing is
run, and the exit code is 2.
"""

import argparse
import shlex
import sys

from reformer_lab.benchmarks.command import add_bench_arguments
from reformer_lab.benchmarks.run import run


def main(argv=None):
    """Run the cases; the exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(prog="python -m reformer_lab.benchmarks.gpu")
    add_bench_arguments(parser)
    args = parser.parse_args(argv)
    args.command = shlex.join(["python", "-m", "reformer_lab.benchmarks.gpu", *argv])
    import torch

    if not torch.cuda.is_available():
        print(
            "reformer_lab.benchmarks.gpu: PyTorch finds no CUDA device here; `reformer-ref bench` measures on the CPU, and "
            "`reformer-ref memory` predicts the memory on a GPU",
            file=sys.stderr,
        )
        return 2
    try:
        return run(args, "cuda", torch.cuda.get_device_name())
    except (ValueError, TypeError) as error:
        print(f"reformer_lab.benchmarks.gpu: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
