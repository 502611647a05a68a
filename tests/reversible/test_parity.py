"""The PyTorch version passes the same checks as the spec, reversible or not."""

from functools import partial

import pytest
from reformer_ref.reversible import checks, reversible_stack, reversible_stack_inverse
from reformer_ref.reversible.adapters import buckets_on_arrays, dropout_on_arrays, stack_on_arrays, vjp_on_arrays


@pytest.mark.parametrize("reversible", [True, False])
def test_checks_accept_pytorch(reversible):
    checks.check_reversible_stack(stack_on_arrays(partial(reversible_stack, reversible=reversible)))
    checks.check_reversible_inverse(stack_on_arrays(reversible_stack_inverse))
    checks.check_reversible_vjp(vjp_on_arrays(reversible))
    checks.check_dropout_replay(dropout_on_arrays(reversible=reversible))
    checks.check_bucket_replay(buckets_on_arrays(reversible=reversible))
