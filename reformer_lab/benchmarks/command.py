"""``reformer-ref bench``: measure this package and its peers side by side."""

import argparse
from pathlib import Path

CASES = ("attention", "rounds", "step", "crossover", "gemm", "all", "decoding")


def add_bench_arguments(parser):
    """Options of the command ``bench``."""
    parser.description = (
        "Run this package, the ports that people use and dense attention, each in its own process, in turn; print "
        "medians and ratios, and write every timing, the peak memory, machine and versions as JSON."
    )
    add = parser.add_argument
    add("case", nargs="+", choices=CASES, help=f"what to measure: {', '.join(CASES)}")
    add("--lengths", type=int, nargs="+", metavar="L", help="tokens (for gemm: matrices), instead of the case's own")
    add("--rounds", type=int, nargs="+", metavar="N", help="rounds of hashing, instead of the case's own")
    add("--depths", type=int, nargs="+", metavar="N", help="layers, instead of the case's own (step only)")
    add("--only", nargs="+", metavar="NAME", help='contenders by name, or "ours" (default: all that are installed)')
    add("--repeats", type=int, help="timed runs of each contender, after one that does not count (default: 5)")
    add("--threads", type=int, help="CPU threads of each process (default: all cores)")
    add("--limit", type=float, default=300.0, help="seconds that one run may take")
    add("--quick", action="store_true", help="a look in a minute: short lengths, one repeat, no record without --out")
    add("--out", type=Path, help="folder for bench_CASE.json, or the file itself (default: records)")
    parser.set_defaults(run=run_bench, command="reformer-ref bench")


def run_bench(args):
    """``bench``: the exit code. ValueError where the benchmarks are not at hand, or for arguments
    that do not fit.
    """
    from reformer_lab.benchmarks import decoding, run

    if "decoding" in args.case:
        if args.case != ["decoding"]:
            raise ValueError("decoding is measured in a run of its own: name no other case beside it")
        return decoding.run(args)
    return run.run(args)


def main(argv=None):
    """The command by itself."""
    parser = argparse.ArgumentParser(prog="reformer-ref bench")
    add_bench_arguments(parser)
    return run_bench(parser.parse_args(argv))
