"""What nbgrader runs on a submission here: read it whatever its state, keep to the honesty policy, survive every cell.

``material/nbgrader_config.py`` puts these classes in the places of nbgrader's own (extra ``grading``).
"""

import ast
import time
from pathlib import Path

import nbformat
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbconvert.exporters import NotebookExporter
from nbformat.v4 import new_code_cell, new_output
from nbgrader import utils
from nbgrader.preprocessors import Execute, NbGraderPreprocessor
from traitlets import Bool, Float, Integer, List

from reformer_lab.classroom.policy import PROTECTED
from reformer_lab.classroom.submissions import read, rebuild

SET_UP_SECONDS = 180  # locked cells that are no tests may take longer: they import, and draw pictures
OURS = {"nbgrader": {"locked": True}}
BEGIN = """\
import warnings
warnings.simplefilter("ignore")
import torch, reformer_lab.classroom.checks, reformer_lab.classroom.grading
try:
    import resource
    resource.setrlimit(resource.RLIMIT_DATA, ({memory}, {memory}))
    resource.setrlimit(resource.RLIMIT_FSIZE, ({file}, {file}))
except ImportError:
    pass
del warnings, reformer_lab, torch
"""


class TolerantExporter(NotebookExporter):
    """Reads notebooks that nbformat cannot, or that are broken; what is left of them has the usual form."""

    def from_file(self, file_stream, resources=None, **kw):
        if not self.parent._sanitizing:  # the second time it is a notebook of our own making
            return super().from_file(file_stream, resources=resources, **kw)
        return self.from_notebook_node(read(Path(file_stream.name)), resources=resources, **kw)


class HonestyPolicy(NbGraderPreprocessor):
    """The release notebook with the student's answers and further cells in it; cells that break a rule do not run."""

    def preprocess(self, nb, resources):
        coursedir = self.parent.parent.coursedir
        names = resources["nbgrader"]
        folder = coursedir.format_path(coursedir.release_directory, ".", names["assignment"])
        release = nbformat.read(Path(coursedir.root, folder, names["notebook"] + ".ipynb"), as_version=4)
        return rebuild(nb, release), resources


class SturdyExecute(Execute):
    """Runs a notebook's cells; one that does not end, or ends the kernel, costs its own marks and no others."""

    timeout = Integer(20, allow_none=True, help=Execute.timeout.help).tag(config=True)
    interrupt_on_timeout = Bool(False, help="Code may swallow an interrupt; here the kernel is replaced.")
    iopub_timeout = Integer(30, help=Execute.iopub_timeout.help).tag(config=True)
    shutdown_kernel = "immediate"
    extra_arguments = List(
        ["--HistoryManager.enabled=False", "--IPKernelApp.ignore_cwd=True", "--IPKernelApp.log_level=40"]
    ).tag(config=True)
    memory_bytes = Integer(6 * 2**30, help="Data memory of a kernel.").tag(config=True)
    file_bytes = Integer(50 * 2**20, help="Largest file that a kernel may write.").tag(config=True)
    output_characters = Integer(100_000, help="Characters of one cell's output that are kept.").tag(config=True)
    most_restarts = Integer(6, help="New kernels for one notebook; after that its tests fail.").tag(config=True)
    notebook_seconds = Float(600.0, help="Time for one notebook; after that its tests fail.").tag(config=True)

    def preprocess(self, nb, resources=None, km=None):
        self._stopped = set()
        self._stuck = set()
        self._begun = None
        self._needed, self._answers = _needed(nb.cells)
        self._started = time.monotonic()
        return super().preprocess(nb, resources, km)

    def _get_timeout(self, cell):
        ours = cell is not None and not utils.is_grade(cell) and utils.is_locked(cell)
        return SET_UP_SECONDS if ours and not _read_by(cell) & self._answers else super()._get_timeout(cell)

    def preprocess_cell(self, cell, resources, index):
        if cell.cell_type != "code" or index not in self._needed:
            return cell, resources
        graded = utils.is_grade(cell)
        if self._begun is not self.km:
            self._begin()
        stuck = self._stuck & _read_by(cell) if graded else ()
        if stuck:
            return _failed(cell, "CellTimeoutError", f"{min(stuck)} did not end in the test before this one"), resources
        if time.monotonic() - self._started > self.notebook_seconds or len(self._stopped) > self.most_restarts:
            return (_failed(cell, "CellTimeoutError", "no time is left for this cell") if graded else cell), resources
        self._printed = 0
        try:
            return super().preprocess_cell(cell, resources, index)
        except CellTimeoutError:
            self._stuck |= _read_by(cell) if graded else set()
            _failed(cell, "CellTimeoutError", f"this cell did not end within {self._get_timeout(cell)} seconds")
        except DeadKernelError:
            _failed(cell, "DeadKernelError", "this cell ended Python itself")
        self._stopped.add(index)
        self._start_again(index)
        return cell, resources

    def _begin(self):
        """Limits, and imports that no student's cell shall pay for, in a new kernel."""
        self._silently(BEGIN.format(memory=self.memory_bytes, file=self.file_bytes), OURS)
        self._begun = self.km

    def _start_again(self, index):
        """A new kernel with everything in it that ran before cell ``index``, apart from tests and what stopped one."""
        self._cleanup_kernel()
        self.create_kernel_manager()
        self.start_new_kernel()
        self.start_new_kernel_client()
        self._begin()
        for place, cell in enumerate(self.nb.cells[:index]):
            if cell.cell_type == "code" and not utils.is_grade(cell) and place not in self._stopped:
                try:
                    self._silently(cell.source, cell.metadata)
                except (CellTimeoutError, DeadKernelError):
                    self._stopped.add(place)
                    return self._start_again(index)
        return None

    def _silently(self, source, metadata):
        """Run code in the kernel; what it shows is thrown away."""
        first, self._printed = self.nb.cells[0], 0
        self.execute_cell(new_code_cell(source, metadata=metadata), 0)
        self.nb.cells[0] = first

    def process_message(self, msg, cell, cell_index):
        if msg["msg_type"] == "stream":
            msg["content"]["name"] = "stdout"  # nbgrader takes marks away for a mere warning on stderr
            self._printed += len(msg["content"]["text"])
            if self._printed > self.output_characters:
                return None
        return super().process_message(msg, cell, cell_index)


def _needed(cells):
    """The places of the code cells that tests need, and the names that answer cells bind.

    Cells that only show something, often a picture of what the answers give, are left out: nothing depends on them.
    """
    code = {place: cell for place, cell in enumerate(cells) if cell.cell_type == "code"}
    display_cells = {place for place, cell in code.items() if utils.is_locked(cell) and not utils.is_grade(cell)}
    needed = set(code) - display_cells
    answers = set()
    for cell in code.values():
        if utils.is_solution(cell):
            answers |= _names(cell)[1]
    while True:
        read = set().union(*(_names(code[place])[0] for place in needed))
        more = {place for place in display_cells - needed if _names(code[place])[1] & read}
        if not more:
            return needed, answers
        needed |= more


def _names(cell):
    """The names that a cell reads and those that it binds; none of a cell that Python cannot read."""
    try:
        nodes = list(ast.walk(ast.parse(cell.source)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set(), set()
    names = [node for node in nodes if isinstance(node, ast.Name)]
    bound = {node.id for node in names if not isinstance(node.ctx, ast.Load)}
    bound |= {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    for node in nodes:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            bound |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
    return {node.id for node in names if isinstance(node.ctx, ast.Load)}, bound


def _read_by(cell):
    """What a test cell tests: the names that it reads and the assignment does not own."""
    return _names(cell)[0] - PROTECTED


def _failed(cell, name, text):
    cell.outputs = [
        *cell.get("outputs", []),
        new_output("error", ename=name, evalue=text, traceback=[f"{name}: {text}"]),
    ]
    return cell


def configure(c):
    """nbgrader's configuration ``c`` for these assignments: the classes of this module in their places."""
    from nbgrader.converters import Autograde

    c.Autograde.exporter_class = TolerantExporter
    c.Autograde.sanitize_preprocessors = [HonestyPolicy, *Autograde.sanitize_preprocessors.make_dynamic_default()]
    preprocessors = Autograde.autograde_preprocessors.make_dynamic_default()
    c.Autograde.autograde_preprocessors = [SturdyExecute if kind is Execute else kind for kind in preprocessors]
    c.ClearSolutions.code_stub = {"python": "raise NotImplementedError()"}
