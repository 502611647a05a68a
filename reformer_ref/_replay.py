"""What a forward pass must remember so that running it again in the backward pass computes the same
numbers.
"""

from contextlib import ExitStack, contextmanager, suppress

import torch

from reformer_ref._arguments import require_bool, shown


class Replay:
    """Random-number and autocast state at the moment of construction, to be put back while
    something is recomputed.

    ``inputs`` are the tensors (or devices) of the computation; None is skipped. What is recorded:
    the state of the default CPU generator, that of the default generator of each CUDA device among
    the inputs (both only if ``rng``), the autocast state (enabled, dtype) of the CPU and of each
    device type among the inputs, and, if ``module`` is given, which of its submodules are in
    training mode. The object never changes afterwards and any thread may use it; the state it puts
    back is itself global (generators, ``module.training``) or per thread (autocast). Explicit
    ``torch.Generator`` objects are not replayed.

        replay = Replay(x)              # forward, before anything random happens
        with replay.uncached_autocast():
            y = f(x)
        with replay.context():          # backward
            y_again = f(x)              # same dropout mask, same dtypes; the generators outside do
            not notice
    """

    def __init__(self, *inputs, module=None, rng=True):
        require_bool("rng", rng)
        if module is not None and not isinstance(module, torch.nn.Module):
            raise TypeError(f"module must be an nn.Module or None, got {type(module).__name__}")
        devices = dict.fromkeys(_device(i) for i in inputs if i is not None)
        self._cpu_state = torch.get_rng_state() if rng else None
        # a CUDA tensor without CUDA is a fake one (shape propagation): there is no generator to
        # remember
        cuda = [d for d in devices if d.type == "cuda" and rng and torch.cuda.is_available()]
        self._cuda_states = {d: torch.cuda.get_rng_state(d) for d in cuda}
        types = dict.fromkeys(["cpu", *(d.type for d in devices)])
        self._autocast = [
            (t, torch.is_autocast_enabled(t), torch.get_autocast_dtype(t))
            for t in types
            if torch.amp.is_autocast_available(t)
        ]
        self._training = [(m, m.training) for m in module.modules()] if module is not None else []

    @contextmanager
    def context(self):
        """Enter the recorded state; the state outside is back on leaving, also after an exception."""
        with ExitStack() as stack:
            if self._cpu_state is not None:
                stack.enter_context(
                    torch.random.fork_rng(list(self._cuda_states), device_type="cuda")
                )
                torch.set_rng_state(self._cpu_state)
                for device, state in self._cuda_states.items():
                    torch.cuda.set_rng_state(state, device)
            for module, training in self._training:
                if module.training != training:
                    stack.callback(setattr, module, "training", module.training)
                    module.training = training
            stack.enter_context(self.uncached_autocast())
            yield

    @contextmanager
    def uncached_autocast(self):
        """The recorded autocast state with its cache of cast weights off.

        In forward: older releases of PyTorch keep a weight that was cast without gradient, so that
        a later use of the same weight under the same autocast context silently gets none. In
        backward: a cached cast would tie one recomputed graph to the next, after the first has been
        freed.
        """
        with ExitStack() as stack:
            for device_type, enabled, dtype in self._autocast:
                if enabled or torch.is_autocast_enabled(device_type):
                    stack.enter_context(
                        torch.autocast(device_type, dtype, enabled, cache_enabled=False)
                    )
            yield


def _device(value):
    if isinstance(value, torch.Tensor):
        return value.device
    with suppress(RuntimeError):
        if isinstance(value, (torch.device, str)):
            return torch.device(value)
    raise TypeError(
        f"inputs must be tensors, devices or None, got {shown(value)} ({type(value).__name__})"
    )
