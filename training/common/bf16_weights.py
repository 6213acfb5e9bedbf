"""Inference on CPUs with weights in bf16 and all arithmetic in fp32, through a matrix product in C.

    model = read_bf16_weights(AutoModelForCausalLM.from_pretrained(folder))

Decoding is bound by the bytes of the weights. PyTorch multiplies bf16 weights by bf16 activations alone, far below the
speed of memory, and on many CPUs slower than fp32 weights of twice the size (training/bench/RESULTS.md). Here a
product with a few rows widens the weights in registers, and one with many rows widens a block of them for PyTorch's
fp32 product. In a small model a third of a token's time is between the products, so that layers of Llama's form
compute all but their attention in C. The model's outputs are those of fp32, except for the order of additions.
"""

import ctypes
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from modeling_pleias.modeling_pleias import CACHE, PleiasDecoderLayer, PleiasLinear

from .c_functions import compile_c

# Up to this many rows the C function is faster than widening blocks; blocks are of 4 MB, which fits in caches.
FEW_ROWS, BLOCK = 32, 2**20

# One row: a loop that the compiler vectorises. Four rows and more: tiles of 2 rows of the weight by 4 of the input, so
# that each weight is widened once for four products.
SOURCE = """
#include <math.h>
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
/* out (R, N) = x (R, K) times the transpose of w (N, K), by all threads, which do not wait for each other */
static void multiply(const uint16_t *w, const float *x, float *out, int64_t N, int64_t K, int64_t R) {
    int64_t pairs = R < 4 ? 0 : N / 2, tiled = R - R % 4;
    #pragma omp for schedule(static) nowait
    for (int64_t p = 0; p < pairs; p++) {
        /* the hardware does not follow two rows at once: femto's head and 4 inputs take 8 ms without, 5 with it */
        for (int64_t k = 0; k < 2 * K; k += 32) __builtin_prefetch(w + (2 * p + 8) * K + k);
        for (int64_t j = 0; j < tiled; j += 4) tile(w + 2 * p * K, x + j * K, out + j * N + 2 * p, N, K); }
    #pragma omp for schedule(static) nowait
    for (int64_t n = 0; n < N; n++)
        for (int64_t j = n < 2 * pairs ? tiled : 0; j < R; j++) out[j * N + n] = dot(w + n * K, x + j * K, K); }
void product(const uint16_t *w, const float *x, float *out, int64_t N, int64_t K, int64_t R) {
    #pragma omp parallel if (N * K > 32768)
    multiply(w, x, out, N, K, R); }
static void add(float *out, const float *x, int64_t count) { for (int64_t i = 0; i < count; i++) out[i] += x[i]; }
static void norm(const float *x, const float *weight, float eps, float *out, int64_t D, int64_t R) {
    for (int64_t r = 0; r < R; r++, x += D, out += D) {
        float sum = 0;
        for (int64_t d = 0; d < D; d++) sum += x[d] * x[d];
        float scale = 1 / sqrtf(sum / D + eps);
        for (int64_t d = 0; d < D; d++) out[d] = weight[d] * (x[d] * scale); } }
static void rotate(float *x, const float *cos, const float *sin, int64_t heads, int64_t K, int64_t R) {
    int64_t half = K / 2;
    for (int64_t r = 0; r < R; r++, cos += K, sin += K)
        for (int64_t h = 0; h < heads; h++, x += K)
            for (int64_t i = 0; i < half; i++) {
                float a = x[i], b = x[i + half];
                x[i] = a * cos[i] - b * sin[i];
                x[i + half] = b * cos[i + half] + a * sin[i + half]; } }
/* A layer before attention: hidden states x (R, D) to queries q (R, H, K), keys k and values v (R, G, K) */
void before_attention(const float *x, const float *weight, const uint16_t *wq, const uint16_t *wk, const uint16_t *wv,
                      const float *cos, const float *sin, float *normed, float *q, float *k, float *v,
                      int64_t D, int64_t H, int64_t G, int64_t K, int64_t R, float eps) {
    norm(x, weight, eps, normed, D, R);
    #pragma omp parallel
    {
        multiply(wq, normed, q, H * K, D, R);
        multiply(wk, normed, k, G * K, D, R);
        multiply(wv, normed, v, G * K, D, R);
    }
    rotate(q, cos, sin, H, K, R);
    rotate(k, cos, sin, G, K, R); }
/* A layer after attention: its output y (R, A) and x to hidden states out (R, D); h and normed are (R, D), g and u
   (R, I). Few regions and serial short loops, because threads may be put to sleep while they wait for each other */
void after_attention(const float *y, const float *x, const uint16_t *wo, const float *weight, const uint16_t *wg,
                     const uint16_t *wu, const uint16_t *wd, float *h, float *normed, float *g, float *u, float *out,
                     int64_t D, int64_t A, int64_t I, int64_t R, float eps) {
    product(wo, y, h, D, A, R);
    add(h, x, R * D);
    norm(h, weight, eps, normed, D, R);
    #pragma omp parallel
    {
        multiply(wg, normed, g, I, D, R);
        multiply(wu, normed, u, I, D, R);
        #pragma omp barrier
        #pragma omp for schedule(static)
        for (int64_t i = 0; i < R * I; i++) g[i] *= u[i] / (1 + expf(-g[i]));
    }
    product(wd, g, out, D, I, R);
    add(out, h, R * D); }
"""


@cache
def load_product() -> ctypes.CDLL | None:
    """Return the library of the C function, or None if it cannot be compiled or loaded."""
    functions = compile_c(SOURCE)
    if functions is not None:
        pointer, integer, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
        functions.product.argtypes = [pointer] * 3 + [integer] * 3
        functions.before_attention.argtypes = [pointer] * 11 + [integer] * 5 + [number]
        functions.after_attention.argtypes = [pointer] * 12 + [integer] * 4 + [number]
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


class Bf16DecoderLayer(nn.Module):
    """Mixin of a decoder layer of Llama's form: a few rows go through two C functions, before and after attention.

    That is for inference with SDPA and converted weights alone. Otherwise the layer calls its modules.
    """

    def forward(self, hidden_states: torch.Tensor, attention_mask=None, position_embeddings=None, **kwargs):
        attention, mlp, norms = self.self_attn, self.mlp, (self.input_layernorm, self.post_attention_layernorm)
        linears = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
        linears += (mlp.gate_proj, mlp.up_proj, mlp.down_proj)
        (B, T, D), K = hidden_states.shape, attention.head_dim
        if (
            B * T > FEW_ROWS
            or self.training
            or torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or hidden_states.dtype != torch.float32
            or attention.config._attn_implementation != "sdpa"
            or any([type(linear) is not Bf16Linear or linear.bias is not None for linear in linears])
            or any([part._forward_hooks or part._forward_pre_hooks for part in (attention, mlp, *norms, *linears)])
        ):
            return super().forward(
                hidden_states, attention_mask=attention_mask, position_embeddings=position_embeddings, **kwargs
            )
        R, A, GK, width = B * T, linears[3].in_features, linears[1].out_features, linears[6].in_features
        x, weights, (before, after) = hidden_states.contiguous(), [linear.weight for linear in linears], norms
        cos, sin = (table.expand(B, T, K).contiguous() for table in position_embeddings)
        q, k, v, h, normed, g, u, out = (torch.empty(R, size) for size in (A, GK, GK, D, D, width, width, D))
        tensors = (x, before.weight, *weights[:3], cos, sin, normed, q, k, v)
        _call("before_attention", tensors, D, A // K, GK // K, K, R, before.variance_epsilon)
        q_BHTK, k_BGTK, v_BGTK = (each.view(B, T, -1, K).transpose(1, 2) for each in (q, k, v))
        if (cache := kwargs.get(CACHE)) is not None:
            k_BGTK, v_BGTK = cache.update(k_BGTK, v_BGTK, attention.layer_idx)
        y_BTHK, _ = sdpa_attention_forward(
            attention, q_BHTK, k_BGTK, v_BGTK, attention_mask, scaling=attention.scaling, **kwargs
        )
        tensors = (y_BTHK.contiguous(), x, weights[3], after.weight, *weights[4:], h, normed, g, u, out)
        _call("after_attention", tensors, D, A, width, R, after.variance_epsilon)
        return out.view(B, T, D)


def _call(function: str, tensors: Iterable[torch.Tensor], *numbers: float) -> None:
    getattr(load_product(), function)(*(tensor.data_ptr() for tensor in tensors), *numbers)


class Bf16PleiasDecoderLayer(Bf16DecoderLayer, PleiasDecoderLayer):
    """Decoder layer of Pleias with weights in bf16."""


class Bf16LlamaDecoderLayer(Bf16DecoderLayer, LlamaDecoderLayer):
    """Decoder layer of Llama with weights in bf16."""


CLASSES = {nn.Linear: Bf16Linear, PleiasLinear: Bf16Linear, nn.Embedding: Bf16Embedding}
LAYERS = {PleiasDecoderLayer: Bf16PleiasDecoderLayer, LlamaDecoderLayer: Bf16LlamaDecoderLayer}


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
        if isinstance(module, (Bf16Linear, Bf16Embedding)):  # converted already, by the user or an enclosing block
            continue
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
    for module in model.modules():
        kind = LAYERS.get(type(module))
        if kind and type(module.self_attn.q_proj) is Bf16Linear and module.self_attn.config.hidden_act == "silu":
            classes[module] = type(module)
            module.__class__ = kind
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
