"""Cross-entropy kernels: the operations on logits between the matmuls of the loss, in few passes over memory.

PyTorch has no operation that reads bf16 logits, sums their exponentials in fp32 and writes them back in bf16, and it
copies a bf16 matrix to fp32 before adding it to one. On a CPU a few lines of C do both, compiled with the machine's
compiler at first use (0.1 s, nothing is stored). Their exponentials are 3 times as fast as those of torch.compile,
whose exp is not inlined (training/bench/RESULTS.md). CUDA uses torch.compile; other devices and dtypes use PyTorch's
operations one after the other.
"""

import ctypes
from functools import cache

import torch

from ..common.c_functions import compile_c

PIECES = 64  # parts of the vocabulary, each summed by one thread: bit-identical for any number of threads
POSITIONS = 64  # positions widened to fp32 at once without a kernel: with V = 65,536, 16 MB, which fits in caches

# exp is Cephes' expf: 2^n times a polynomial on half a binade, within 1e-7 of the true value; written out so that the
# compiler vectorises the loops. NaN and infinite logits result in NaN sums. Columns are processed 512 at a time:
# complete rows of 1,024 or 2,048 take up to twice as long.
SOURCE = """
#include <stdint.h>
#include <string.h>
static inline float from_bf16(int16_t x) {
    uint32_t u = (uint32_t)(uint16_t)x << 16; float f; memcpy(&f, &u, 4); return f; }
static inline int16_t to_bf16(float f) { uint32_t u; memcpy(&u, &f, 4); return (u + 0x7fff + ((u >> 16) & 1)) >> 16; }
static inline int16_t ordered(int16_t x) { return x ^ ((x >> 15) & 0x7fff); }  /* like the floats */
static inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    float n = __builtin_rintf(x * 1.44269504f), f = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * f + 1.3981999507e-3f; p = p * f + 8.3334519073e-3f; p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f; p = p * f + 5.0000001201e-1f; p = p * f * f + f + 1.0f;
    int32_t bits = ((int32_t)n + 127) << 23; float power; memcpy(&power, &bits, 4);
    return p * power; }
/* logits (V, n); most and sum (pieces, n): of each piece of V separately */
void largest(const int16_t *restrict logits, int16_t *restrict most, int64_t V, int64_t n, int64_t pieces) {
    #pragma omp parallel for
    for (int64_t p = 0; p < pieces; p++) {
        int16_t *restrict m = most + p * n;
        for (int64_t c = 0; c < n; c++) m[c] = -32641;  /* minus infinity */
        for (int64_t v = p * V / pieces; v < (p + 1) * V / pieces; v++)
            for (int64_t c = 0; c < n; c++) { int16_t x = ordered(logits[v * n + c]); m[c] = x > m[c] ? x : m[c]; }
        for (int64_t c = 0; c < n; c++) m[c] = ordered(m[c]); } }
void exponentials(
    int16_t *restrict logits, const float *restrict most, float *restrict sum, int64_t V, int64_t n, int64_t pieces) {
    #pragma omp parallel for
    for (int64_t p = 0; p < pieces; p++) {
        float *restrict s = sum + p * n;
        for (int64_t c = 0; c < n; c++) s[c] = 0;
        for (int64_t first = 0; first < n; first += 512) {
            int64_t last = first + 512 < n ? first + 512 : n;
            for (int64_t v = p * V / pieces; v < (p + 1) * V / pieces; v++) {
                int16_t *restrict row = logits + v * n;
                for (int64_t c = first; c < last; c++) {
                    float e = exponential(from_bf16(row[c]) - most[c]); s[c] += e; row[c] = to_bf16(e); } } } } }
void add(float *restrict sum, const int16_t *restrict part, int64_t size) {
    #pragma omp parallel for
    for (int64_t i = 0; i < size; i++) sum[i] += from_bf16(part[i]); }
"""


@cache
def load_cpu_kernels() -> ctypes.CDLL | None:
    """Return the C functions, or None if they cannot be compiled or loaded."""
    functions = compile_c(SOURCE)
    if functions is None:
        return None
    address, size = ctypes.c_void_p, ctypes.c_int64
    functions.largest.argtypes = [address, address, size, size, size]
    functions.exponentials.argtypes = [address, address, address, size, size, size]
    functions.add.argtypes = [address, address, size]
    return functions


def has_cpu_kernel(tensor: torch.Tensor) -> bool:
    """Return whether the C functions apply to a tensor: bf16 on a CPU, contiguous."""
    supported = tensor.device.type == "cpu" and tensor.dtype == torch.bfloat16 and tensor.is_contiguous()
    return supported and load_cpu_kernels() is not None


def _step_by_step(logits_Vn: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    wide = logits_Vn.float() if logits_Vn.dtype.itemsize < 4 else logits_Vn
    largest = wide.amax(0)
    exponentials = (wide - largest).exp_()
    logits_Vn.copy_(exponentials)
    return largest, exponentials.sum(0)


_fused = torch.compile(_step_by_step, dynamic=True)


def exp_and_sum_(logits_Vn: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Replace each logit by exp(logit - the largest logit of its position), rounded to the logits' dtype.

    Args:
        logits_Vn: Logits of V tokens at n positions. Fastest if `in_c`, else if the logits of a position are adjacent.

    Returns:
        largest: (n,), the largest logit of each position, in fp32 or more.
        total: (n,), the sum of the position's exponentials before rounding, in fp32 or more.
    """
    if logits_Vn.device.type == "cuda":
        return _fused(logits_Vn)
    if has_cpu_kernel(logits_Vn):
        (V, n), address = logits_Vn.shape, logits_Vn.data_ptr()
        pieces = torch.empty(PIECES, n, dtype=torch.bfloat16)
        load_cpu_kernels().largest(address, pieces.data_ptr(), V, n, PIECES)
        largest, total = pieces.amax(0).float(), torch.empty(PIECES, n)
        load_cpu_kernels().exponentials(address, largest.data_ptr(), total.data_ptr(), V, n, PIECES)
        return largest, total.sum(0)
    parts = [_step_by_step(part) for part in logits_Vn.split(POSITIONS, 1)]
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


def accumulate_(total: torch.Tensor, part: torch.Tensor) -> None:
    """Add `part` to `total`, which has the same shape, is contiguous and in fp32 or more."""
    if has_cpu_kernel(part) and total.dtype == torch.float32:
        load_cpu_kernels().add(total.data_ptr(), part.data_ptr(), part.numel())
    else:
        total += part
