"""What a forward pass must remember, so that running it again in backward gives the same numbers."""

from contextlib import ExitStack, contextmanager

import torch


class Replay:
    """Random-number and autocast state at the moment of construction, to be put back later.

        replay = Replay(x)                  # forward, before anything random happens
        with replay.uncached_autocast():
            y = f(x)
        with replay.restored():             # backward
            y_again = f(x)                  # same dropout mask, same dtypes

    Recorded are the state of the default CPU generator and of the default generators of the CUDA
    devices among the tensors (both only if ``rng``), the autocast state of the CPU and of each
    device type among the tensors, and which submodules of ``module`` are in training mode. Explicit
    ``torch.Generator`` objects are not replayed. Any thread may use the object; the state that it
    puts back is global (generators, ``module.training``) or per thread (autocast).
    """

    def __init__(self, *tensors, module=None, rng=True):
        self._cpu_state = torch.get_rng_state() if rng else None
        self._cuda_states = {}
        self._autocast = []
        self._training = []
        kinds = {"cpu"}
        for tensor in tensors:
            if tensor is None:
                continue
            kinds.add(tensor.device.type)
            # a CUDA tensor where there is no CUDA is a fake one: it has no generator
            if tensor.is_cuda and rng and torch.cuda.is_available():
                self._cuda_states[tensor.device] = torch.cuda.get_rng_state(tensor.device)
        for kind in sorted(kinds):
            if torch.amp.is_autocast_available(kind):
                state = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
                self._autocast.append((kind, *state))
        if module is not None:
            self._training = [(m, m.training) for m in module.modules()]

    @contextmanager
    def restored(self):
        """Enter the recorded state; the state outside is back on leaving, also after an error."""
        with ExitStack() as stack:
            if self._cpu_state is not None:
                devices = list(self._cuda_states)
                stack.enter_context(torch.random.fork_rng(devices, device_type="cuda"))
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
        a later use of it under the same autocast context silently gets none. In backward: a cached
        cast would tie one recomputed graph to the next, after the first has been freed.
        """
        with ExitStack() as stack:
            for kind, enabled, dtype in self._autocast:
                if enabled or torch.is_autocast_enabled(kind):
                    context = torch.autocast(kind, dtype, enabled, cache_enabled=False)
                    stack.enter_context(context)
            yield
