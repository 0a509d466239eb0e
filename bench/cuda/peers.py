"""What PyTorch does on this GPU with the shapes of bench/cuda: one JSON line a case.

    python3 peers.py [--full]

Decoding: scaled_dot_product_attention over a 16-bit cache (LLaMA3-8B's heads), each backend by
itself, 32/8 heads, caches of several layers in one CUDA graph, so that what a step reads is cold.
Prefill: the same, causal. Products of prompts: bf16 throughout, LLaMA3-8B's shapes, weights of as
many layers as exceed L2. Roofs: copy and read bandwidth, a bf16 matrix product.
"""
import json
import statistics
import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

DEVICE = "cuda"
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def emit(**fields):
    print(json.dumps(fields), flush=True)


def milliseconds(run, repeats=20):
    """Median of event-timed repeats after two to warm up."""
    for _ in range(2):
        run()
    times = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def captured(run):
    """`run` as the replay of a CUDA graph."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def roofs():
    n = 1 << 30
    a = torch.randint(0, 255, (4 * n,), dtype=torch.uint8, device=DEVICE)
    b = torch.empty_like(a)
    ms = milliseconds(lambda: b.copy_(a))
    emit(roof="copy", **{"GB/s": round(8 * n / ms / 1e6)})
    words = a.view(torch.int32)
    ms = milliseconds(lambda: words.sum(dtype=torch.int32))
    emit(roof="read", **{"GB/s": round(4 * n / ms / 1e6)})
    del a, b, words
    x = torch.randn(8192, 8192, dtype=torch.bfloat16, device=DEVICE)
    y = torch.randn(8192, 8192, dtype=torch.bfloat16, device=DEVICE)
    ms = milliseconds(lambda: x @ y)
    emit(roof="bf16 product", **{"TFLOP/s": round(2 * 8192**3 / ms / 1e9)})


def decode(batch, context, n_heads=32, n_kv_heads=8, head_dim=128):
    layer_bytes = 2 * 2 * batch * context * n_kv_heads * head_dim
    n_layers = max(4, min(32, int(300e6 / layer_bytes) + 1))
    shape = (batch, n_kv_heads, context, head_dim)
    keys = [torch.randn(shape, dtype=torch.bfloat16, device=DEVICE) for _ in range(n_layers)]
    values = [torch.randn(shape, dtype=torch.bfloat16, device=DEVICE) for _ in range(n_layers)]
    q = torch.randn(batch, n_heads, 1, head_dim, dtype=torch.bfloat16, device=DEVICE)
    # Folded, the heads of a group become rows that share their keys once: what enable_gqa leaves out.
    folded = q.view(batch, n_kv_heads, n_heads // n_kv_heads, head_dim)
    for name, backend in BACKENDS.items():
        for form, rows, gqa in (("gqa", q, True), ("folded", folded, False)):
            def run():
                with sdpa_kernel([backend]):
                    for k, v in zip(keys, values):
                        torch.nn.functional.scaled_dot_product_attention(
                            rows, k, v, enable_gqa=gqa
                        )
            try:
                us = 1e3 * milliseconds(captured(run)) / n_layers
            except RuntimeError as error:
                emit(op="decode", peer=f"sdpa {name} {form}", batch=batch, context=context,
                     refused=str(error).splitlines()[0][:100])
                continue
            emit(op="decode", peer=f"sdpa {name} {form}", batch=batch, context=context,
                 layers=n_layers, us=round(us, 2), MB=round(layer_bytes / 1e6, 1),
                 **{"GB/s": round(layer_bytes / us / 1e3)})


def prefill(batch, length, n_heads=32, n_kv_heads=8, head_dim=128):
    q = torch.randn(batch, n_heads, length, head_dim, dtype=torch.bfloat16, device=DEVICE)
    k = torch.randn(batch, n_kv_heads, length, head_dim, dtype=torch.bfloat16, device=DEVICE)
    v = torch.randn_like(k)
    flops = 4 * length * length * head_dim * n_heads * batch / 2
    for name in ("flash", "cudnn"):
        def run():
            with sdpa_kernel([BACKENDS[name]]):
                torch.nn.functional.scaled_dot_product_attention(
                    q, k, v, is_causal=True, enable_gqa=True
                )
        try:
            ms = milliseconds(run, 10)
        except RuntimeError as error:
            emit(op="prefill", peer=f"sdpa {name}", length=length,
                 refused=str(error).splitlines()[0][:100])
            continue
        emit(op="prefill", peer=f"sdpa {name}", batch=batch, length=length, head_dim=head_dim,
             ms=round(ms, 3), **{"TFLOP/s": round(flops / ms / 1e9)})


def product(rows, n, k):
    x = torch.randn(rows, k, dtype=torch.bfloat16, device=DEVICE)
    n_weights = max(1, min(16, (1 << 28) // (n * k * 2)))
    weights = [torch.randn(n, k, dtype=torch.bfloat16, device=DEVICE) for _ in range(n_weights)]
    out = torch.empty(rows, n, dtype=torch.bfloat16, device=DEVICE)

    def run():
        for weight in weights:
            torch.mm(x, weight.t(), out=out)

    ms = milliseconds(run) / n_weights
    emit(op="product", peer="torch.mm", rows=rows, n=n, k=k, ms=round(ms, 4),
         **{"TFLOP/s": round(2 * rows * n * k / ms / 1e9)})


def main():
    full = "--full" in sys.argv
    emit(device=torch.cuda.get_device_name(), torch=torch.__version__, cuda=torch.version.cuda,
         cudnn=torch.backends.cudnn.version())
    roofs()
    shapes = [(1, 4096), (1, 32768), (8, 4096), (8, 32768), (64, 4096)]
    if full:
        shapes += [(1, 131072), (64, 1024)]
    for batch, context in shapes:
        decode(batch, context)
        torch.cuda.empty_cache()
    for length in (2048, 4096, 8192, 16384):
        prefill(max(1, 16384 // length), length)
    for rows in (4096, 512, 128, 1024, 2048, 8192) if full else (4096, 512):
        for n, k in ((4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336)):
            product(rows, n, k)


main()
