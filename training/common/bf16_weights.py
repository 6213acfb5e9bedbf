"""Inference on CPUs with weights in bf16 and all arithmetic in fp32, through a matrix product in C.

    model = read_bf16_weights(AutoModelForCausalLM.from_pretrained(folder))

Decoding is bound by the bytes of the weights. PyTorch multiplies bf16 weights by bf16 activations alone, far below the
speed of memory, and on many CPUs slower than fp32 weights of twice the size (training/bench/RESULTS.md). Here a
product with a few rows widens the weights in registers, and one with many rows widens a block of them for PyTorch's
fp32 product. The model's outputs are those of fp32, except for the order of additions.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import nn
from transformers import PreTrainedModel

from modeling_pleias.modeling_pleias import PleiasLinear

from .c_functions import compile_c

# Up to this many rows the C function is faster than widening blocks; blocks are of 4 MB, which fits in caches.
FEW_ROWS, BLOCK = 32, 2**20

# One row: a loop that the compiler vectorises. Four rows and more: tiles of 2 rows of the weight by 4 of the input, so
# that each weight is widened once for four products.
SOURCE = """
#include <stdint.h>
#include <string.h>
#ifdef __AVX512F__
#define LANES 16
#else
#define LANES 8
#endif
typedef float floats __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
static inline float widen(uint16_t x) { uint32_t u = (uint32_t)x << 16; float f; memcpy(&f, &u, 4); return f; }
static inline floats widen_all(const uint16_t *p) {
    halves h; memcpy(&h, p, sizeof h); return (floats)(__builtin_convertvector(h, words) << 16); }
static inline float dot(const uint16_t *restrict w, const float *restrict x, int64_t K) {
    float sum = 0;
    for (int64_t k = 0; k < K; k++) sum += widen(w[k]) * x[k];
    return sum; }
static inline void tile(const uint16_t *w, const float *x, float *out, int64_t N, int64_t K) {
    floats sum[8] = {0};
    int64_t k = 0;
    for (; k + LANES <= K; k += LANES) {
        floats a = widen_all(w + k), b = widen_all(w + K + k);
        for (int j = 0; j < 4; j++) {
            floats c; memcpy(&c, x + j * K + k, sizeof c); sum[j] += a * c; sum[4 + j] += b * c; } }
    for (int i = 0; i < 8; i++) {
        float total = dot(w + i / 4 * K + k, x + i % 4 * K + k, K - k);
        for (int lane = 0; lane < LANES; lane++) total += sum[i][lane];
        out[i % 4 * N + i / 4] = total; } }
/* out (R, N) = x (R, K) times the transpose of w (N, K) */
void product(const uint16_t *w, const float *x, float *out, int64_t N, int64_t K, int64_t R) {
    int64_t pairs = R < 4 ? 0 : N / 2, tiled = R - R % 4;
    #pragma omp parallel if (N * K > 32768)
    {
        #pragma omp for schedule(static) nowait
        for (int64_t p = 0; p < pairs; p++)
            for (int64_t j = 0; j < tiled; j += 4) tile(w + 2 * p * K, x + j * K, out + j * N + 2 * p, N, K);
        #pragma omp for schedule(static)
        for (int64_t n = 0; n < N; n++)
            for (int64_t j = n < 2 * pairs ? tiled : 0; j < R; j++) out[j * N + n] = dot(w + n * K, x + j * K, K);
    } }
"""


@cache
def load_product() -> ctypes.CDLL | None:
    """Return the library of the C function, or None if it cannot be compiled or loaded."""
    functions = compile_c(SOURCE)
    if functions is not None:
        functions.product.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int64] * 3
    return functions


class Bf16Linear(nn.Linear):
    """Linear layer with weights in bf16, and inputs, sums and outputs in fp32."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_compiling() or (
            torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        ):
            return nn.functional.linear(x.float(), self.weight.float(), self.bias)
        (N, K), weight = self.weight.shape, self.weight.detach()
        x_RK = x.reshape(-1, K).float().contiguous()
        out_RN = torch.empty(len(x_RK), N)
        if len(x_RK) <= FEW_ROWS:
            load_product().product(weight.data_ptr(), x_RK.data_ptr(), out_RN.data_ptr(), N, K, len(x_RK))
        else:
            rows = max(1, BLOCK // K)
            for first in range(0, N, rows):
                block = weight[first : first + rows].float()
                torch.mm(x_RK, block.t(), out=out_RN[:, first : first + rows])
        out = out_RN.view(*x.shape[:-1], N)
        return out if self.bias is None else out + self.bias


class Bf16Embedding(nn.Embedding):
    """Embedding with weights in bf16 and outputs in fp32."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input).float()


CLASSES = {nn.Linear: Bf16Linear, PleiasLinear: Bf16Linear, nn.Embedding: Bf16Embedding}


def _is_exact(weight: torch.Tensor) -> bool:
    """Return whether a matrix is in bf16, or in fp32 with numbers that bf16 represents."""
    if weight.dtype == torch.bfloat16:
        return True
    rows = max(1, BLOCK // weight.shape[1])
    return weight.dtype == torch.float32 and all(torch.equal(x, x.bfloat16().float()) for x in weight.split(rows))


def _convert(model: PreTrainedModel) -> tuple[dict[nn.Module, type], dict[nn.Parameter, torch.dtype]]:
    """Convert a model in place; return the classes of changed modules and the dtypes of changed parameters."""
    classes: dict[nn.Module, type] = {}
    dtypes: dict[nn.Parameter, torch.dtype] = {}
    plain = all(type(x) is nn.Parameter and x.device.type == "cpu" and x.is_contiguous() for x in model.parameters())
    wrapped = any("forward" in vars(module) for module in model.modules())  # by accelerate, for example
    if not plain or wrapped or load_product() is None:
        return classes, dtypes
    exact = {}  # by matrix: head and embedding may share one
    for module in model.modules():
        kind = CLASSES.get(type(module))
        weight = module.weight if kind else None
        if kind and weight not in exact:
            exact[weight] = _is_exact(weight)
        if kind and exact[weight]:
            classes[module] = type(module)
            module.__class__ = kind
        for parameter in module.parameters(recurse=False):
            dtype = torch.bfloat16 if module in classes and parameter is weight else torch.float32
            if parameter.dtype in (torch.bfloat16, torch.float32) and parameter.dtype != dtype:
                dtypes[parameter] = parameter.dtype
                parameter.data = parameter.data.to(dtype)
    return classes, dtypes


def read_bf16_weights(model: PreTrainedModel) -> PreTrainedModel:
    """Convert a model on a CPU in place to weights in bf16 and arithmetic in fp32, for inference, and return it.

    Matrices in fp32 that bf16 does not represent exactly remain fp32. Where there is no C compiler, the model is
    converted to fp32, which is exact, too. A model on another device, quantised, or with wrapped modules is returned
    as it is.
    """
    if load_product() is None and model.device.type == "cpu" and model.dtype == torch.bfloat16:
        return model.float()
    classes, _ = _convert(model)
    return model.requires_grad_(False) if classes else model


@contextmanager
def reading_bf16_weights(model: PreTrainedModel) -> Iterator[None]:
    """Convert a model as `read_bf16_weights` does for the duration of a `with` block; its weights do not change."""
    classes, dtypes = _convert(model)
    try:
        yield
    finally:
        for module, kind in classes.items():
            module.__class__ = kind
        for parameter, dtype in dtypes.items():
            parameter.data = parameter.data.to(dtype)
