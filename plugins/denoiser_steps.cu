// What lies between the matrix products of the denoiser's blocks, for the torch backend: each step reads its inputs once
// and leaves what the next product takes, float16 or FP8 codes (E4M3) in units of a scale.
//
// WIDTH: numbers of a token; HEAD_DIM: of a head; FP8=1 where the GPU has conversions to FP8 (sm_89 and up). A block
// takes a token, a thread eight neighbouring numbers of it. Sums are float32.
#include "numbers.cuh"

constexpr int OWN = 8;  // numbers of a thread
constexpr int THREADS = (WIDTH / OWN + 31) / 32 * 32;
constexpr int WARPS = THREADS / 32;
constexpr int ELEMENTWISE = 256;  // threads of `gelu`
static_assert(WIDTH % OWN == 0 && HEAD_DIM % OWN == 0 && WIDTH % HEAD_DIM == 0 && THREADS <= 1024, "sizes");

__device__ __forceinline__ void load(const float* from, float (&v)[OWN]) {
    const float4* words = reinterpret_cast<const float4*>(from);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        float4 w = words[i];
        v[4 * i] = w.x, v[4 * i + 1] = w.y, v[4 * i + 2] = w.z, v[4 * i + 3] = w.w;
    }
}

__device__ __forceinline__ void load(const half_bits* from, float (&v)[OWN]) {
    uint4 w = *reinterpret_cast<const uint4*>(from);
    const uint32 pairs[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) v[2 * i] = low_float(pairs[i]), v[2 * i + 1] = high_float(pairs[i]);
}

__device__ __forceinline__ void store(float* to, const float (&v)[OWN]) {
    float4* words = reinterpret_cast<float4*>(to);
#pragma unroll
    for (int i = 0; i < 2; ++i) words[i] = make_float4(v[4 * i], v[4 * i + 1], v[4 * i + 2], v[4 * i + 3]);
}

__device__ __forceinline__ void store_halves(half_bits* to, const float (&v)[OWN]) {
    uint32 pairs[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) pairs[i] = floats_to_half2(v[2 * i], v[2 * i + 1]);
    *reinterpret_cast<uint4*>(to) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}

#if FP8
__device__ __forceinline__ uint32 codes_of(float a, float b, float c, float d) {  // saturating, to nearest even
    uint16 low, high;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(low) : "f"(b), "f"(a));
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(high) : "f"(d), "f"(c));
    return uint32(low) | (uint32(high) << 16);
}
#endif

// Eight results at element `index`: codes of v / *step, or float16 where there is no step.
template <bool CODES>
__device__ __forceinline__ void leave(void* out, uint64 index, const float (&v)[OWN], const float* step) {
#if FP8
    if constexpr (CODES) {
        const float inverse = 1.0f / *step;
        float u[OWN];
#pragma unroll
        for (int i = 0; i < OWN; ++i) u[i] = v[i] * inverse;
        uint2 words = make_uint2(codes_of(u[0], u[1], u[2], u[3]), codes_of(u[4], u[5], u[6], u[7]));
        *reinterpret_cast<uint2*>(static_cast<uint8*>(out) + index) = words;
        return;
    }
#endif
    store_halves(static_cast<half_bits*>(out) + index, v);
}

// The sum over all threads of the block, in every thread. `sums` is used once a call.
__device__ __forceinline__ float block_sum(float value, float* sums) {
#pragma unroll
    for (int lane = 16; lane > 0; lane /= 2) value += __shfl_xor_sync(~0u, value, lane);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = value;
    __syncthreads();
    value = sums[0];
#pragma unroll
    for (int warp = 1; warp < WARPS; ++warp) value += sums[warp];
    return value;
}

// x += branch * gate, where there is a branch (and without a gate x += branch); then the token's LayerNorm times
// `factor` plus `shift`. Gate, factor and shift are rows of WIDTH floats, one a frame: strides between frames, 0 for one
// row that all frames share.
template <bool CODES>
__device__ __forceinline__ void norm_token(
    float* x, const half_bits* branch, const float* gate, const float* factor, const float* shift, const float* step,
    void* out, int frame_tokens, int gate_stride, int stride, float eps) {
    __shared__ float sums[2][WARPS];
    const int column = threadIdx.x * OWN, frame = blockIdx.x / frame_tokens;
    const uint64 index = uint64(blockIdx.x) * WIDTH + column;
    const bool own = column < WIDTH;
    float v[OWN] = {};
    if (own) load(x + index, v);
    if (branch != nullptr && own) {
        float added[OWN];
        load(branch + index, added);
        if (gate != nullptr) {
            float g[OWN];
            load(gate + uint64(frame) * gate_stride + column, g);
#pragma unroll
            for (int i = 0; i < OWN; ++i) added[i] *= g[i];
        }
#pragma unroll
        for (int i = 0; i < OWN; ++i) v[i] += added[i];
        store(x + index, v);
    }
    float sum = 0;
#pragma unroll
    for (int i = 0; i < OWN; ++i) sum += v[i];
    const float mean = block_sum(sum, sums[0]) / WIDTH;
    float squares = 0;
    if (own) {
#pragma unroll
        for (int i = 0; i < OWN; ++i) v[i] -= mean, squares += v[i] * v[i];
    }
    const float inverse = rsqrtf(block_sum(squares, sums[1]) / WIDTH + eps);
    if (!own) return;
    float f[OWN], s[OWN];
    load(factor + uint64(frame) * stride + column, f);
    load(shift + uint64(frame) * stride + column, s);
#pragma unroll
    for (int i = 0; i < OWN; ++i) v[i] = v[i] * inverse * f[i] + s[i];
    leave<CODES>(out, index, v, step);
}

extern "C" __global__ void __launch_bounds__(THREADS) norm_halves(
    float* x, const half_bits* branch, const float* gate, const float* factor, const float* shift, const float* step,
    void* out, int frame_tokens, int gate_stride, int stride, float eps) {
    norm_token<false>(x, branch, gate, factor, shift, step, out, frame_tokens, gate_stride, stride, eps);
}

// The token's RMS norm over its whole width times `gain`.
__device__ __forceinline__ void rms_norm(float (&v)[OWN], const float* gain, float eps, float* sums, bool own) {
    float squares = 0;
#pragma unroll
    for (int i = 0; i < OWN; ++i) squares += v[i] * v[i];
    const float inverse = rsqrtf(block_sum(squares, sums) / WIDTH + eps);
    if (!own) return;
    float g[OWN];
    load(gain, g);
#pragma unroll
    for (int i = 0; i < OWN; ++i) v[i] = v[i] * inverse * g[i];
}

// Queries, keys and values of a token (blockIdx.y) [tokens, WIDTH], rows `stride` apart, to [heads, tokens, HEAD_DIM]:
// queries and keys normed over the whole width and rotated by `rotation` [tokens, HEAD_DIM / 2, (cos, sin)].
extern "C" __global__ void __launch_bounds__(THREADS) heads(
    const half_bits* query, const half_bits* key, const half_bits* value, const float* query_gain,
    const float* key_gain, const float* rotation, half_bits* query_out, half_bits* key_out, half_bits* value_out,
    int tokens, int stride, float eps) {
    __shared__ float sums[WARPS];
    const int column = threadIdx.x * OWN, token = blockIdx.x, part = blockIdx.y;
    const int head = column / HEAD_DIM, place = column % HEAD_DIM;
    const bool own = column < WIDTH;
    const half_bits* from = part == 0 ? query : part == 1 ? key : value;
    half_bits* to = part == 0 ? query_out : part == 1 ? key_out : value_out;
    float v[OWN] = {};
    if (own) load(from + uint64(token) * stride + column, v);
    if (part < 2) {
        rms_norm(v, (part == 0 ? query_gain : key_gain) + column, eps, sums, own);
        if (own) {
            float turn[OWN];
            load(rotation + uint64(token) * HEAD_DIM + place, turn);
#pragma unroll
            for (int i = 0; i < OWN; i += 2) {
                const float real = v[i], imaginary = v[i + 1];
                v[i] = real * turn[i] - imaginary * turn[i + 1];
                v[i + 1] = real * turn[i + 1] + imaginary * turn[i];
            }
        }
    }
    if (own) store_halves(to + (uint64(head) * tokens + token) * HEAD_DIM + place, v);
}

// The RMS norm of each token of x [tokens, WIDTH].
extern "C" __global__ void __launch_bounds__(THREADS) rms(
    const half_bits* x, const float* gain, half_bits* out, float eps) {
    __shared__ float sums[WARPS];
    const int column = threadIdx.x * OWN;
    const uint64 index = uint64(blockIdx.x) * WIDTH + column;
    const bool own = column < WIDTH;
    float v[OWN] = {};
    if (own) load(x + index, v);
    rms_norm(v, gain + column, eps, sums, own);
    if (own) store_halves(out + index, v);
}

// Attention of all heads, heads and tokens `head_stride` and `token_stride` numbers apart, to [tokens, WIDTH].
template <bool CODES>
__device__ __forceinline__ void merge_token(
    const half_bits* x, const float* step, void* out, int head_stride, int token_stride) {
    const int column = threadIdx.x * OWN;
    if (column >= WIDTH) return;
    float v[OWN];
    load(x + uint64(column / HEAD_DIM) * head_stride + uint64(blockIdx.x) * token_stride + column % HEAD_DIM, v);
    leave<CODES>(out, uint64(blockIdx.x) * WIDTH + column, v, step);
}

extern "C" __global__ void __launch_bounds__(THREADS) merge_halves(
    const half_bits* x, const float* step, void* out, int head_stride, int token_stride) {
    merge_token<false>(x, step, out, head_stride, token_stride);
}

// GELU by tanh: x / (1 + exp(-2u)) with u = sqrt(2 / pi) (x + 0.044715 x^3).
__device__ __forceinline__ float gelu_of(float x) {
    const float twice = 1.5957691216f * (x + 0.044715f * x * x * x);
    return __fdividef(x, 1.0f + exp2_approx(-1.4426950409f * twice));
}

template <bool CODES>
__device__ __forceinline__ void gelu_eight(const half_bits* x, const float* step, void* out, int count) {
    const uint64 index = (uint64(blockIdx.x) * ELEMENTWISE + threadIdx.x) * OWN;
    if (index >= count) return;
    float v[OWN];
    load(x + index, v);
#pragma unroll
    for (int i = 0; i < OWN; ++i) v[i] = gelu_of(v[i]);
    leave<CODES>(out, index, v, step);
}

extern "C" __global__ void __launch_bounds__(ELEMENTWISE) gelu_halves(
    const half_bits* x, const float* step, void* out, int count) {
    gelu_eight<false>(x, step, out, count);
}

#if FP8
extern "C" __global__ void __launch_bounds__(THREADS) norm_codes(
    float* x, const half_bits* branch, const float* gate, const float* factor, const float* shift, const float* step,
    void* out, int frame_tokens, int gate_stride, int stride, float eps) {
    norm_token<true>(x, branch, gate, factor, shift, step, out, frame_tokens, gate_stride, stride, eps);
}

extern "C" __global__ void __launch_bounds__(THREADS) merge_codes(
    const half_bits* x, const float* step, void* out, int head_stride, int token_stride) {
    merge_token<true>(x, step, out, head_stride, token_stride);
}

extern "C" __global__ void __launch_bounds__(ELEMENTWISE) gelu_codes(
    const half_bits* x, const float* step, void* out, int count) {
    gelu_eight<true>(x, step, out, count);
}
#endif
