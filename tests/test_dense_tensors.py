"""Every tensor argument of the public functions: a nested, sparse or quantised one is a TypeError that names it."""

import warnings

import pytest
import reformer_ref as r
import torch
from reformer_ref.feed_forward.api import feed_forward, layer_norm
from reformer_ref.huggingface.weights import to_huggingface
from reformer_ref.model.checks import small_config

MODEL = r.ReformerLM(small_config("strict", {"n_buckets": 4}, max_length=16))
HUGGINGFACE = small_config("huggingface", pattern=("lsh",))
WEIGHTS = to_huggingface(r.ReformerLM(HUGGINGFACE))
WEIGHT = "reformer.encoder.layer_norm.weight"
SEQ2SEQ = r.ReformerEncoderDecoder(small_config(causal=False), small_config())
OPTIONS = r.LSHOptions(chunk_length=4)


def x(*shape):
    return torch.ones(shape)


def ids(*shape):
    return torch.zeros(shape, dtype=torch.int64)


def real(*shape):
    return torch.ones(shape, dtype=torch.bool)


class Layer(torch.nn.Linear):
    def __init__(self):
        super().__init__(4, 4)

    def forward(self, x, context):
        return super().forward(x) + context


def decoder():
    result = r.Decoder(MODEL)
    result.prefill(ids(2, 3))
    return result


def seeded():
    return torch.Generator().manual_seed(0)


# what is called, with arguments by name; those that are tensors are replaced one by one
CALLS = {
    "hash_vectors": (r.hash_vectors, {"x": x(5, 4), "rotations": x(1, 4, 2), "n_buckets": 4}),
    "lsh_attention": (
        r.lsh_attention,
        {"qk": x(5, 4), "v": x(5, 4), "buckets": ids(1, 5), "options": OPTIONS, "padding_mask": real(5)},
    ),
    "local_attention": (
        r.local_attention,
        {"q": x(5, 4), "k": x(5, 4), "v": x(5, 4), "options": r.LocalOptions(), "padding_mask": real(5)},
    ),
    "shared_qk_attention": (r.shared_qk_attention, {"qk": x(5, 4), "v": x(5, 4), "padding_mask": real(5)}),
    "split_chunks": (r.split_chunks, {"order": ids(8), "chunk_length": 4}),
    "look_adjacent": (r.look_adjacent, {"chunks": x(2, 4, 3), "chunks_before": 1, "chunks_after": 0}),
    "feed_forward": (feed_forward, {"x": x(5, 4), "w1": x(4, 6), "b1": x(6), "w2": x(6, 4), "b2": x(4)}),
    "layer_norm": (layer_norm, {"x": x(5, 4), "scale": x(4), "bias": x(4)}),
    "cross_entropy": (r.cross_entropy, {"hidden": x(5, 4), "weight": x(4, 6), "bias": x(6), "targets": ids(5)}),
    "reversible_stack": (
        lambda x1, x2, context: r.reversible_stack(x1, x2, [[Layer(), Layer()]], context),
        {"x1": x(5, 4), "x2": x(5, 4), "context": x(5, 4)},
    ),
    "axial": (lambda positions: MODEL.backbone.positions(positions), {"positions": ids(5)}),
    "forward": (MODEL, {"tokens": ids(2, 5), "padding_mask": real(2, 5)}),
    "logits": (MODEL.logits, {"hidden": x(2, 24)}),
    "loss": (MODEL.loss, {"tokens": ids(2, 5), "targets": ids(2, 5), "padding_mask": real(2, 5)}),
    "encoder and decoder": (
        SEQ2SEQ.loss,
        {"source": ids(2, 5), "target": ids(2, 5), "source_padding_mask": real(2, 5)},
    ),
    "decode": (SEQ2SEQ.decode, {"target": ids(2, 5), "encoder_output": x(2, 5, 24)}),
    "generate": (lambda prompt: r.generate(MODEL, prompt, 2, generator=seeded()), {"prompt": ids(3)}),
    "prefill": (lambda tokens: r.Decoder(MODEL).prefill(tokens), {"tokens": ids(2, 3)}),
    "step": (lambda tokens: decoder().step(tokens), {"tokens": ids(2)}),
    "sample_token": (r.sample_token, {"logits": x(2, 4), "generator": seeded()}),
    "from_huggingface": (
        lambda weight: r.ReformerLM.from_huggingface({**WEIGHTS, WEIGHT: weight}, HUGGINGFACE),
        {"weight": WEIGHTS[WEIGHT]},
    ),
    "as_numpy": (lambda value: r.as_numpy(lambda: value)(), {"value": x(3)}),
}
FORMS = {
    "nested": lambda x: torch.nested.nested_tensor([x, x]),
    "jagged": lambda x: torch.nested.nested_tensor([x, x], layout=torch.jagged),
    "sparse": lambda x: x.to_sparse(),
    "quantised": lambda x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.quint8),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("call", CALLS)
def test_only_dense_tensors_are_taken(call, form):
    fn, kwargs = CALLS[call]
    fn(**kwargs)
    for name in [name for name, value in kwargs.items() if isinstance(value, torch.Tensor)]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            other = FORMS[form](kwargs[name])
        with pytest.raises((TypeError, ValueError) if call == "from_huggingface" else TypeError) as caught:
            fn(**{**kwargs, name: other})
        message = str(caught.value)
        assert message.split()[0] in name or WEIGHT in message, message
        assert "Internal error" not in message
