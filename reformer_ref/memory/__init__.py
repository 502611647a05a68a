"""How much memory a computation takes: measured, counted or predicted, three figures that are never
confused.

``measure_peak`` runs a function and asks the machine: the CUDA allocator, or on a CPU the resident
memory of the process, with everything in it: kernels' work space, freed memory that the allocator
keeps, code paged in. ``count_peak`` runs it and adds up the live tensors, exactly and the same on
every machine. ``predict_peak`` counts a training step of a whole model on tensors without contents,
so for models and lengths that no machine at hand could run.
"""

from reformer_ref.memory.count import count_peak
from reformer_ref.memory.measure import Peak, measure_peak
from reformer_ref.memory.predict import predict_peak

__all__ = ["Peak", "count_peak", "measure_peak", "predict_peak"]
