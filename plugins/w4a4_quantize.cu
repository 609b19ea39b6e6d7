// rtgen::W4A4Linear, first half: activations to INT4 codes, and the thin product of the low-rank branch.
//
// A block takes 16 tokens; its warps share out the groups of 64 numbers. In a warp, lane (g, t) holds the numbers
// 16t .. 16t+15 of a group of the tokens g and g+8. With the numbers of a group in that order, the same registers are
// the fragments of the tensor cores' product with low_rank_down, so x is read once.
//
// Codes are written as the tensor cores of the second half read them (w4a4_layout.cuh): two a byte, the first in the low
// half; or (INT8=1) one a byte, the numbers with even places of each 32 before those with odd ones (w4a4_linear.cu).
#include "w4a4_layout.cuh"

constexpr int WARPS = 6;
constexpr int THREADS = WARPS * 32;
constexpr int TOKENS = 16;  // of a block
constexpr int OWN = 16;     // numbers of a lane in a row of a group
constexpr int BLOCKS = __CUDA_ARCH__ < 1000 ? 3 : 2;  // on a multiprocessor; the most without spills
constexpr float ROUNDING = 12582912.0f;  // 1.5 * 2^23: added to a small number, it leaves its nearest integer

struct Words8 {  // 16 float16
    uint32 word[8];
};

// Zeros where not valid. Not volatile, so that the compiler may load early.
__device__ __forceinline__ Words8 load_16_halves(const half_bits* address, bool valid) {
    Words8 found;
#pragma unroll
    for (int i = 0; i < 8; i += 4)
        asm("{\n.reg .pred p;\nsetp.ne.s32 p, %5, 0;\nmov.b32 %0, 0;\nmov.b32 %1, 0;\nmov.b32 %2, 0;\nmov.b32 %3, 0;\n"
            "@p ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4];\n}"
            : "=r"(found.word[i]), "=r"(found.word[i + 1]), "=r"(found.word[i + 2]), "=r"(found.word[i + 3])
            : "l"(address + 2 * i), "r"(int(valid)));
    return found;
}

// The butterflies of the reference in its order. Every sum is rounded; none is fused.
__device__ __forceinline__ void rotate(float (&v)[OWN], int t) {
#pragma unroll
    for (int stride = 1; stride < OWN; stride *= 2) {
#pragma unroll
        for (int i = 0; i < OWN; ++i) {
            if ((i & stride) == 0) {
                float first = v[i], second = v[i + stride];
                v[i] = __fadd_rn(first, second);
                v[i + stride] = __fadd_rn(first, -second);
            }
        }
    }
#pragma unroll
    for (int lane = 1; lane <= 2; lane *= 2) {  // strides 16 and 32
        float sign = (t & lane) ? -1.0f : 1.0f;
#pragma unroll
        for (int i = 0; i < OWN; ++i) v[i] = __fmaf_rn(v[i], sign, __shfl_xor_sync(~0u, v[i], lane));
    }
#pragma unroll
    for (int i = 0; i < OWN; ++i) v[i] = __fmul_rn(v[i], 0.125f);
}

// Of the four lanes of a row: the number with the largest magnitude, the negative one of two; NaN above all.
__device__ __forceinline__ float extreme_of(const float (&v)[OWN]) {
    uint32 largest = 0;
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
        uint32 bits = __float_as_uint(v[i]);
        largest = max(largest, __funnelshift_l(bits, bits, 1));
    }
    largest = max(largest, __shfl_xor_sync(~0u, largest, 1));
    largest = max(largest, __shfl_xor_sync(~0u, largest, 2));
    return __uint_as_float(__funnelshift_r(largest, largest, 1));
}

// Codes as bytes: those of even places in even[], those of odd ones in odd[].
__device__ __forceinline__ void round_codes(const float (&v)[OWN], float extreme, bool finite, uint32 (&even)[2], uint32 (&odd)[2]) {
    bool divides = extreme != 0.0f && finite;
    float quotient = __fdiv_rn(-8.0f, divides ? extreme : 1.0f), inverse = divides ? quotient : 0.0f;
    uint32 q[OWN];
#pragma unroll
    for (int i = 0; i < OWN; ++i)
        q[i] = __float_as_uint(fminf(__fadd_rn(__fmul_rn(v[i], inverse), ROUNDING), ROUNDING + 7.0f));
    uint32 keep = finite ? ~0u : 0u;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const uint32* p = q + 8 * i;
        even[i] = __byte_perm(__byte_perm(p[0], p[2], 0x0040), __byte_perm(p[4], p[6], 0x0040), 0x5410) & keep;
        odd[i] = __byte_perm(__byte_perm(p[1], p[3], 0x0040), __byte_perm(p[5], p[7], 0x0040), 0x5410) & keep;
    }
}

// The 64 codes of a row of a panel's step, in its first or second group, from the four lanes that hold them. All lanes
// must call.
__device__ __forceinline__ void store_codes(uint8* panel, int row, int second, int t, bool valid, const uint32 (&even)[2], const uint32 (&odd)[2]) {
#if INT8
    bool is_odd = t & 1;  // an even lane stores the even places of both, an odd lane the odd ones: 16 bytes each
    uint32 first_word = __shfl_xor_sync(~0u, is_odd ? even[0] : odd[0], 1);
    uint32 second_word = __shfl_xor_sync(~0u, is_odd ? even[1] : odd[1], 1);
    uint32 x = is_odd ? first_word : even[0], y = is_odd ? second_word : even[1];
    uint32 z = is_odd ? odd[0] : first_word, w = is_odd ? odd[1] : second_word;
    uint8* target = panel + place_128(row, second * 4 + t);
    if (valid) asm volatile("st.global.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(target), "r"(x), "r"(y), "r"(z), "r"(w) : "memory");
#else
    uint32 x = (even[0] & 0x0f0f0f0fu) | ((odd[0] << 4) & 0xf0f0f0f0u);
    uint32 y = (even[1] & 0x0f0f0f0fu) | ((odd[1] << 4) & 0xf0f0f0f0u);
    uint8* target = panel + place_64(row, second * 2 + t / 2) + t % 2 * 8;
    if (valid) asm volatile("st.global.v2.u32 [%0], {%1,%2};" ::"l"(target), "r"(x), "r"(y) : "memory");
#endif
}

struct Vectors {  // of a lane's columns; packed, for float32 would take twice the registers
    Words8 scale, shift;
};

// A row of a group: v, rotated if asked, and f16(v), which the branch takes.
template <bool ROTATE>
__device__ __forceinline__ void smooth_row(const Words8& x, const Vectors& vectors, int t, float (&v)[OWN], uint32 (&smooth)[8]) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {  // the products are exact: fusing them changes nothing
        half2_bits scale = vectors.scale.word[i], shift = vectors.shift.word[i];
        v[2 * i] = __fmaf_rn(low_float(x.word[i]), low_float(scale), -low_float(shift));
        v[2 * i + 1] = __fmaf_rn(high_float(x.word[i]), high_float(scale), -high_float(shift));
        smooth[i] = floats_to_half2(v[2 * i], v[2 * i + 1]);
    }
    if (ROTATE) rotate(v, t);
}

// Sums over the warps, in their order, as float16: 32 ranks of a panel's rows.
__device__ __forceinline__ void store_hidden(const float (&sums)[4][4], uint8* panel, int first_row, int valid_rows) {
    __shared__ float parts[WARPS][TOKENS][RANKS + 2];
    int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) parts[warp][g + 8 * (i / 2)][8 * n + 2 * t + i % 2] = sums[n][i];
    __syncthreads();
    for (int i = threadIdx.x; i < valid_rows * RANKS / 2; i += THREADS) {
        int token = i / (RANKS / 2), rank = i % (RANKS / 2) * 2;
        float low = 0.0f, high = 0.0f;
#pragma unroll
        for (int part = 0; part < WARPS; ++part) {
            low += parts[part][token][rank];
            high += parts[part][token][rank + 1];
        }
        *reinterpret_cast<half2_bits*>(panel + place_64(first_row + token, rank / 8) + rank % 8 * 2) = floats_to_half2(low, high);
    }
}

// [features, groups] float16 to [groups, padded features] float32, in units of the integer sums; zeros as padding.
__device__ __forceinline__ void turn_feature_scales(const half_bits* scales, float* turned, int features, int groups) {
    int padded = ceil_div(features, FEATURE_BLOCK) * FEATURE_BLOCK;
    int self = (blockIdx.y * gridDim.x + blockIdx.x) * THREADS + threadIdx.x, threads = gridDim.x * gridDim.y * THREADS;
    for (int64 i = self; i < int64(groups) * padded; i += threads) {
        int group = int(i / padded), feature = int(i % padded);
        turned[i] = feature < features ? half_to_float(scales[int64(feature) * groups + group]) * UNIT : 0.0f;
    }
}

struct Quantization {
    const half_bits* x;               // [tokens, groups * 64]
    const half_bits* pre_scale;       // [groups * 64]
    const half_bits* shift;           // [groups * 64]
    const half_bits* low_rank_down;   // [rank, groups * 64]
    const half_bits* feature_scales;  // [features, groups]
    uint8* codes;                     // [panels, steps, CODE_PANEL]
    float* token_scales;  // [groups, token_stride]; of each 16 tokens, those of rows g and g + 8 next to each other
    uint8* hidden;        // [panels, ranks / 32, HIDDEN_PANEL]
    float* turned_scales;  // [groups, padded features]
    int tokens, features, groups, rank, token_stride;
};

template <bool ROTATE>
__device__ __forceinline__ void quantize(const Quantization& q) {
    turn_feature_scales(q.feature_scales, q.turned_scales, q.features, q.groups);
    int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, first_token = blockIdx.x * TOKENS;
    int width = q.groups * GROUP, panel = first_token / PANEL, first_row = first_token % PANEL;
    // Of the lane's first token and rank; those of the others are a uniform number of bytes away.
    const half_bits* x = q.x + int64(first_token + g) * width + OWN * t;
    const half_bits* down = q.low_rank_down + int64(blockIdx.y * RANKS + g) * width + OWN * t;
    uint8* codes = q.codes + int64(panel) * ceil_div(q.groups, STEP) * CODE_PANEL;
    bool stores = blockIdx.y == 0;  // blocks of further ranks have the same codes
    float sums[4][4] = {};
    for (int group = threadIdx.x / 32; group < q.groups; group += WARPS) {
        int column = group * GROUP;
        Vectors vectors = {load_16_halves(q.pre_scale + column + OWN * t, true), load_16_halves(q.shift + column + OWN * t, true)};
        Words8 row[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) row[i] = load_16_halves(x + int64(8 * i) * width + column, first_token + g + 8 * i < q.tokens);
        uint32 smooth[2][8];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            float v[OWN];
            smooth_row<ROTATE>(row[i], vectors, t, v, smooth[i]);
            float extreme = extreme_of(v);
            bool finite = fabsf(extreme) < infinity(), valid = stores && first_token + g + 8 * i < q.tokens;
            uint32 even[2], odd[2];
            round_codes(v, extreme, finite, even, odd);
            store_codes(codes + int64(group / STEP) * CODE_PANEL, first_row + g + 8 * i, group % STEP, t, valid, even, odd);
            float scale = finite ? __fmul_rn(extreme, -0.125f) : __uint_as_float(0x7fc00000u);
            if (valid && t == 0) q.token_scales[int64(group) * q.token_stride + first_token + g * 2 + i] = scale;
        }
#pragma unroll
        for (int n = 0; n < 4; ++n) {
            bool valid = blockIdx.y * RANKS + 8 * n + g < q.rank;
            Words8 b = load_16_halves(down + int64(8 * n) * width + column, valid);
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                uint32 a[4] = {smooth[0][2 * k], smooth[1][2 * k], smooth[0][2 * k + 1], smooth[1][2 * k + 1]};
                mma_f16(sums[n], a, b.word[2 * k], b.word[2 * k + 1]);
            }
        }
    }
    uint8* hidden = q.hidden + (int64(panel) * gridDim.y + blockIdx.y) * HIDDEN_PANEL;
    store_hidden(sums, hidden, first_row, min(TOKENS, q.tokens - first_token));
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) quantize_plain(
    const half_bits* x, const half_bits* pre_scale, const half_bits* shift, const half_bits* low_rank_down,
    const half_bits* feature_scales, uint8* codes, float* token_scales, uint8* hidden, float* turned_scales, int tokens,
    int features, int groups, int rank, int token_stride) {
    quantize<false>({x, pre_scale, shift, low_rank_down, feature_scales, codes, token_scales, hidden, turned_scales,
                     tokens, features, groups, rank, token_stride});
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) quantize_rotated(
    const half_bits* x, const half_bits* pre_scale, const half_bits* shift, const half_bits* low_rank_down,
    const half_bits* feature_scales, uint8* codes, float* token_scales, uint8* hidden, float* turned_scales, int tokens,
    int features, int groups, int rank, int token_stride) {
    quantize<true>({x, pre_scale, shift, low_rank_down, feature_scales, codes, token_scales, hidden, turned_scales,
                    tokens, features, groups, rank, token_stride});
}
