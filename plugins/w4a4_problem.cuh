// The second half of rtgen::W4A4Linear: its arguments, and what follows the sums: bias, GELU or gate, and the output.
#pragma once
#include "w4a4_layout.cuh"

enum Epilogue { NONE = 0, GELU = 1, GATED = 2 };

struct Problem {
    const uint8* codes;            // of w4a4_quantize.cu, as are all of which that says more
    const uint8* token_scales;
    const uint8* hidden;           // zeros from rank on
    const uint8* weights;          // [features, groups * 32]; with WGMMA of w4a4_quantize_wgmma.cu
    const uint8* feature_scales;
    const half_bits* low_rank_up;  // [features, rank]; with WGMMA of w4a4_quantize_wgmma.cu
    const half_bits* bias;         // [features]
    const float* gate;             // [tokens / tokens_per_gate, features]
    const float* residual;         // [tokens, features]
    void* output;                  // [tokens, features], float16; float32 where gated
    int tokens, features, groups, rank, branch_steps, token_stride, tokens_per_gate, epilogue;

    __device__ __forceinline__ int steps() const { return ceil_div(groups, STEP); }
};

// Tiles in turn: that of a number, and then others so many numbers further, along the features first.
template <int TOKENS, int FEATURES>
struct TileWalk {
    int first_token, first_feature;
    __device__ __forceinline__ TileWalk(const Problem& p, int number) : first_token(0), first_feature(0) { advance(p, number); }
    __device__ __forceinline__ bool is_within(const Problem& p) const { return first_token < p.tokens; }
    __device__ __forceinline__ void advance(const Problem& p, int tiles) {
        int index = first_feature / FEATURES + tiles, columns = ceil_div(p.features, FEATURES);
        first_token += index / columns * TOKENS;
        first_feature = index % columns * FEATURES;
    }
};

// x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2 of two numbers, with one division for both.
__device__ __forceinline__ void gelu(float& a, float& b) {
    const float outer = -2.302208198f, inner = 0.044715f * outer;  // -2 * sqrt(2 / pi) * log2(e)
    float ea = 1.0f + exp2_approx(fminf(a * (outer + inner * (a * a)), 60.0f));
    float eb = 1.0f + exp2_approx(fminf(b * (outer + inner * (b * b)), 60.0f));
    float inverse;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(ea * eb));
    float of_a = a * (eb * inverse);
    b = b * (ea * inverse);
    a = of_a;
}

// residual + gate * y in float32: lanes hold two neighbouring numbers of a row, four lanes a whole sector.
__device__ __forceinline__ void store_gated(const Problem& p, const float (&y)[4], int token, int feature) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        int row = token + i / 2 * 8, column = feature + i % 2;
        if (row >= p.tokens || column >= p.features) continue;
        int64 place = int64(row) * p.features + column;
        float gate = p.gate[int64(row / p.tokens_per_gate) * p.features + column];
        static_cast<float*>(p.output)[place] = __fmaf_rn(gate, y[i], p.residual[place]);
    }
}

// Two tiles side by side: lanes exchange until each has four neighbouring numbers of a row.
template <bool BY_FOUR>
__device__ __forceinline__ void store_halves(const Problem& p, const float (&left)[4], const float (&right)[4], int token, int feature, int t) {
    bool odd = t & 1;
    int column = feature + (odd ? 8 : 0) + t / 2 * 4;
    half_bits* target = static_cast<half_bits*>(p.output) + int64(token) * p.features + column;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        half2_bits a = floats_to_half2(left[2 * i], left[2 * i + 1]), b = floats_to_half2(right[2 * i], right[2 * i + 1]);
        half2_bits other = __shfl_xor_sync(~0u, odd ? a : b, 1);
        half2_bits x = odd ? other : a, y = odd ? b : other;
        half_bits* row = target + int64(8 * i) * p.features;
        bool valid = token + 8 * i < p.tokens && column < p.features;
        if (BY_FOUR) {
            asm volatile("{\n.reg .pred p;\nsetp.ne.s32 p, %3, 0;\n@p st.global.v2.u32 [%0], {%1,%2};\n}"
                         ::"l"(row), "r"(x), "r"(y), "r"(int(valid)) : "memory");
        } else if (valid) {
#pragma unroll
            for (int j = 0; j < 4; ++j)
                if (column + j < p.features) row[j] = half_bits((j < 2 ? x : y) >> (j % 2 * 16));
        }
    }
}

// The bias of a lane's columns, two float16 a word: all of it at once, so that its way from memory is waited for once.
template <int TILES_N>
__device__ __forceinline__ void load_bias(const Problem& p, uint32 (&bias)[TILES_N], int feature, int t) {
    feature += t * 2;
    if (p.features % 2 == 0) {
#pragma unroll
        for (int n = 0; n < TILES_N; ++n) bias[n] = *reinterpret_cast<const uint32*>(p.bias + min(feature + n * 8, p.features - 2));
    } else {
#pragma unroll
        for (int n = 0; n < TILES_N; ++n)
            bias[n] = pack_halves(p.bias[min(feature + n * 8, p.features - 1)], p.bias[min(feature + n * 8 + 1, p.features - 1)]);
    }
}

// From sums [16 * TILES_M, 8 * TILES_N] in the fragments of mma.cuh to the output. `token` and `feature`: those of the
// lane's row g and of the first column.
template <bool BY_FOUR, int TILES_M, int TILES_N>
__device__ __forceinline__ void finish_halves(const Problem& p, float (&total)[TILES_M][TILES_N][4], const uint32 (&bias)[TILES_N], int token, int feature, int t) {
#pragma unroll
    for (int n = 0; n < TILES_N; n += 2) {
#pragma unroll
        for (int m = 0; m < TILES_M; ++m) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                float(&y)[4] = total[m][n + i], low = low_float(bias[n + i]), high = high_float(bias[n + i]);
                y[0] += low, y[1] += high, y[2] += low, y[3] += high;
                if (p.epilogue == GELU) gelu(y[0], y[1]), gelu(y[2], y[3]);
            }
            store_halves<BY_FOUR>(p, total[m][n], total[m][n + 1], token + m * 16, feature + n * 8, t);
        }
    }
}

template <int TILES_M, int TILES_N>
__device__ __forceinline__ void finish(const Problem& p, float (&total)[TILES_M][TILES_N][4], const uint32 (&bias)[TILES_N], int token, int feature, int t) {
    if (p.epilogue != GATED && p.features % 4 == 0) return finish_halves<true>(p, total, bias, token, feature, t);
    if (p.epilogue != GATED) return finish_halves<false>(p, total, bias, token, feature, t);
#pragma unroll
    for (int n = 0; n < TILES_N; ++n) {
        float low = low_float(bias[n]), high = high_float(bias[n]);
#pragma unroll
        for (int m = 0; m < TILES_M; ++m) {
            float(&y)[4] = total[m][n];
            y[0] += low, y[1] += high, y[2] += low, y[3] += high;
            store_gated(p, y, token + m * 16, feature + n * 8 + t * 2);
        }
    }
}
