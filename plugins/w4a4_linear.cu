// rtgen::W4A4Linear, second half: the product of INT4 codes, its scales, the low-rank branch, the bias, the epilogue.
//
// INT4 (INT8=0) multiplies on INT4 tensor cores, INT8 (INT8=1) the same integers on INT8 ones. Everything after the
// integers is the same code in the same order, so both give the same bits.
//
// A block makes tiles of WARPS_M * 48 tokens x WARPS_N * 48 features, one after the other. Operands pass through a ring of
// STAGES stages in shared memory, each of two groups (128 numbers) and their scales; after those of a tile come stages
// of 32 ranks of the branch. The ring runs on from tile to tile, so the first stages of a tile are copied while the one
// before is finished.
//
// Weights stay packed in shared memory. INT8 takes a word of eight codes apart as (w << 4) & 0xf0f0f0f0, those of even
// places, and w & 0xf0f0f0f0, those of odd ones: 16 times the codes, in an order that the activations are stored in
// (w4a4_quantize.cu). The factor is taken out of the scale, exactly.
//
// Sums start from the integer whose bits are the float 1.5 * 2^23: read as a float they are that plus the sum, so
// float32 arithmetic starts without a conversion: f * s - 1.5 * 2^23 * s is sum * s, exactly.
#include "w4a4_problem.cuh"

#ifndef WARPS_M
#define WARPS_M 3
#endif
#ifndef WARPS_N
#define WARPS_N 4
#endif
#ifndef STAGES
#define STAGES 3
#endif

constexpr int TILES_M = 3, TILES_N = 6;  // 16x8 products of a warp
constexpr int WARP_M = TILES_M * 16, WARP_N = TILES_N * 8;
constexpr int BLOCK_M = WARPS_M * WARP_M, BLOCK_N = WARPS_N * WARP_N;
constexpr int THREADS = WARPS_M * WARPS_N * 32;
static_assert(WARP_M == PANEL && FEATURE_BLOCK % BLOCK_N == 0, "tiles are made of whole panels");

// Of a stage, in bytes.
constexpr int CODES_SIZE = BLOCK_M * CODE_ROW, WEIGHTS_SIZE = BLOCK_N * WEIGHT_ROW;
constexpr int TOKEN_SCALES = CODES_SIZE + WEIGHTS_SIZE, FEATURE_SCALES = TOKEN_SCALES + STEP * BLOCK_M * 4;
constexpr int STAGE_SIZE = FEATURE_SCALES + STEP * BLOCK_N * 4;

constexpr int ROUND_BITS = 0x4b400000;  // 1.5 * 2^23 as a float
constexpr float ROUND = 12582912.0f;

// threadIdx.x, read anew: what is derived from it would otherwise stay in registers that the products need.
__device__ __forceinline__ int thread() {
    int index;
    asm volatile("mov.u32 %0, %tid.x;" : "=r"(index));
    return index;
}

// Panels of BYTES from global to shared memory, where they lie one after the other.
template <int BYTES>
__device__ __forceinline__ void copy_panels(uint32 target, const uint8* source, int64 apart, int self) {
    constexpr int PIECES = BYTES / 16;
    constexpr bool ALIGNED = PIECES % THREADS == 0 || THREADS % PIECES == 0;  // a thread's pieces are uniformly apart
    const uint8* from = source + (self / PIECES * apart + self % PIECES * 16);
#pragma unroll
    for (int i = 0; i < WARPS_M * PIECES; i += THREADS) {
        int index = i + self;
        const uint8* piece = ALIGNED ? from + (i / PIECES * apart + i % PIECES * 16) : source + (index / PIECES * apart + index % PIECES * 16);
        if (WARPS_M * PIECES % THREADS == 0 || index < WARPS_M * PIECES) copy_16(target + index * 16, piece, true);
    }
}

// 64 bytes of each feature's packed codes. Past the last feature and the last byte others are read, which nothing uses.
__device__ __forceinline__ void copy_weights(uint32 target, const Problem& p, int first_feature, int step, int self) {
    constexpr int APART = THREADS / 4;  // features between the pieces of a thread
    static_assert(APART % 8 == 0 && BLOCK_N % APART == 0, "features that far apart are permuted alike");
    int row = self / 4, piece = self % 4, row_bytes = p.groups * (GROUP / 2);
    const uint8* column = p.weights + min(step * WEIGHT_ROW + piece * 16, row_bytes - 16);
    target += place_64(row, piece);
#pragma unroll
    for (int i = 0; i < BLOCK_N; i += APART)
        copy_16(target + i * WEIGHT_ROW, column + int64(min(first_feature + i + row, p.features - 1)) * row_bytes, true);
}

__device__ __forceinline__ void copy_scales(uint32 stage, const Problem& p, int first_token, int first_feature, int step, int self) {
    constexpr int TOKENS = BLOCK_M / 4, FEATURES = BLOCK_N / 4;  // pieces of a group
    int feature_stride = ceil_div(p.features, FEATURE_BLOCK) * FEATURE_BLOCK;
#pragma unroll
    for (int i = 0; i < STEP * (TOKENS + FEATURES); i += THREADS) {
        int index = i + self;
        bool is_token = index < STEP * TOKENS;
        int piece = is_token ? index : index - STEP * TOKENS, pieces = is_token ? TOKENS : FEATURES;
        int group = min(step * STEP + piece / pieces, p.groups - 1);
        const uint8* row = is_token ? p.token_scales + (int64(group) * p.token_stride + first_token) * 4
                                    : p.feature_scales + (int64(group) * feature_stride + first_feature) * 4;
        if (index < STEP * (TOKENS + FEATURES)) copy_16(stage + TOKEN_SCALES + index * 16, row + piece % pieces * 16, true);
    }
}

// 32 ranks of each feature; zeros past the last rank.
__device__ __forceinline__ void copy_up(uint32 target, const Problem& p, int first_feature, int first_rank, int self) {
    const half_bits* up = p.low_rank_up + int64(first_feature) * p.rank + first_rank;
    int features = p.features - first_feature, ranks = p.rank - first_rank;
    if (p.rank % 8 == 0) {
#pragma unroll 1
        for (int index = self; index < BLOCK_N * 4; index += THREADS) {
            int row = index / 4, piece = index % 4;
            copy_16(target + place_64(row, piece), up + int64(row) * p.rank + piece * 8, row < features && piece * 8 < ranks);
        }
    } else {  // rows that no copy of 16 bytes may start at
#pragma unroll 1
        for (int index = self; index < BLOCK_N * RANKS; index += THREADS) {
            int row = index / RANKS, column = index % RANKS;
            half_bits value = row < features && column < ranks ? up[int64(row) * p.rank + column] : half_bits(0);
            asm volatile("st.shared.u16 [%0], %1;" ::"r"(target + place_64(row, column / 8) + column % 8 * 2), "h"(value) : "memory");
        }
    }
}

typedef TileWalk<BLOCK_M, BLOCK_N> Tile;

// One step of a tile into a stage; past the last tile nothing.
__device__ __forceinline__ void copy_stage(const Problem& p, uint32 stage, const Tile& tile, int step) {
    if (tile.is_within(p)) {
        int panel = tile.first_token / PANEL, steps = p.steps(), self = thread();
        if (step < steps) {
            const uint8* codes = p.codes + (int64(panel) * steps + step) * CODE_PANEL;
            copy_panels<CODE_PANEL>(stage, codes, int64(steps) * CODE_PANEL, self);
            copy_weights(stage + CODES_SIZE, p, tile.first_feature, step, self);
            copy_scales(stage, p, tile.first_token, tile.first_feature, step, self);
        } else {
            const uint8* hidden = p.hidden + (int64(panel) * p.branch_steps + step - steps) * HIDDEN_PANEL;
            copy_panels<HIDDEN_PANEL>(stage, hidden, int64(p.branch_steps) * HIDDEN_PANEL, self);
            copy_up(stage + CODES_SIZE, p, tile.first_feature, (step - steps) * RANKS, self);
        }
    }
    commit_copies();
}

// Where a lane finds its rows of the operands for ldmatrix, in bytes from their start; which piece of the row is put in
// by exclusive or.
__device__ __forceinline__ int token_of(int self) { return self / 32 / WARPS_N * WARP_M + self % 16; }
__device__ __forceinline__ int codes_place(int self) {
    return INT8 ? place_128(token_of(self), self % 32 / 16) : place_64(token_of(self), self % 32 / 16);
}
__device__ __forceinline__ int hidden_place(int self) { return place_64(token_of(self), self % 32 / 16); }
__device__ __forceinline__ int weights_place(int self) {
    return place_64(self / 32 % WARPS_N * WARP_N + self % 8 + self % 32 / 16 * 8, self / 8 % 2);
}

// And its scales of a group, in bytes of shared memory from the start of the stage.
struct Lane {
    int codes, weights, token_scales, feature_scales;
    __device__ __forceinline__ Lane(int self) {
        codes = codes_place(self);
        weights = CODES_SIZE + weights_place(self);
        token_scales = TOKEN_SCALES + (self / 32 / WARPS_N * WARP_M + self % 32 / 4 * 2) * 4;
        feature_scales = FEATURE_SCALES + (self / 32 % WARPS_N * WARP_N + self % 4 * 2) * 4;
    }
};

#if INT8
constexpr int CODE_PARTS = 2;
#else
constexpr int CODE_PARTS = 1;
#endif
typedef uint32 CodeFragments[TILES_M][CODE_PARTS][4];
typedef float Sums[TILES_M][TILES_N][4];

__device__ __forceinline__ void load_codes(CodeFragments& a, uint32 stage, const Lane& lane, int group) {
#pragma unroll
    for (int m = 0; m < TILES_M; ++m) {
#if INT8
        load_matrices(a[m][0], stage + m * 16 * 128 + (lane.codes ^ (group * 64)));
        load_matrices(a[m][1], stage + m * 16 * 128 + (lane.codes ^ (group * 64 + 32)));
#else
        load_matrices(a[m][0], stage + m * 16 * 64 + (lane.codes ^ (group * 32)));
#endif
    }
}

// ROUND_BITS + the sums of a group, of 16 tokens and 8 features.
__device__ __forceinline__ void multiply(int (&sum)[4], const uint32 (&a)[CODE_PARTS][4], uint32 first, uint32 second) {
#if INT8
    mma_s8_from(sum, a[0], (first << 4) & 0xf0f0f0f0u, first & 0xf0f0f0f0u, ROUND_BITS);
    mma_s8(sum, a[1], (second << 4) & 0xf0f0f0f0u, second & 0xf0f0f0f0u);
#else
    mma_s4_from(sum, a[0], first, second, ROUND_BITS);
#endif
}

__device__ __forceinline__ void add_scaled(
    float (&total)[4], const int (&sum)[4], const float (&token)[2], const float (&feature)[2], const float (&round)[2]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        float exact = __fmaf_rn(__int_as_float(sum[i]), feature[i % 2], round[i % 2]);
        total[i] = __fmaf_rn(exact, token[i / 2], total[i]);
    }
}

__device__ __forceinline__ void multiply_group(Sums& total, uint32 stage, const Lane& lane, int group) {
    CodeFragments a;
    load_codes(a, stage, lane, group);
    float token[TILES_M][2];
    uint32 token_scales = stage + lane.token_scales + group * BLOCK_M * 4;
#pragma unroll
    for (int m = 0; m < TILES_M; ++m)
        asm volatile("ld.shared.v2.f32 {%0,%1}, [%2];" : "=f"(token[m][0]), "=f"(token[m][1]) : "r"(token_scales + m * 64));
    uint32 weights = stage + (lane.weights ^ (group * 32));
    uint32 feature_scales = stage + lane.feature_scales + group * BLOCK_N * 4;
#pragma unroll
    for (int pair = 0; pair < TILES_N / 2; ++pair) {
        uint32 w[4];
        load_matrices(w, weights + pair * 16 * 64);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            int n = pair * 2 + half;
            float feature[2];
            asm volatile("ld.shared.v2.f32 {%0,%1}, [%2];" : "=f"(feature[0]), "=f"(feature[1]) : "r"(feature_scales + n * 32));
            float round[2] = {-ROUND * feature[0], -ROUND * feature[1]};
            int sum[TILES_M][4];
#pragma unroll
            for (int m = 0; m < TILES_M; ++m) multiply(sum[m], a[m], w[half * 2], w[half * 2 + 1]);
#pragma unroll
            for (int m = 0; m < TILES_M; ++m) add_scaled(total[m][n], sum[m], token[m], feature, round);
        }
    }
}

__device__ __forceinline__ void multiply_branch(Sums& total, uint32 stage) {
    int self = thread(), hidden = hidden_place(self), up = CODES_SIZE + weights_place(self);
#pragma unroll
    for (int part = 0; part < RANKS / 16; ++part) {
        uint32 a[TILES_M][4];
#pragma unroll
        for (int m = 0; m < TILES_M; ++m) load_matrices(a[m], stage + m * 16 * 64 + (hidden ^ (part * 32)));
#pragma unroll
        for (int pair = 0; pair < TILES_N / 2; ++pair) {
            uint32 b[4];
            load_matrices(b, stage + pair * 16 * 64 + (up ^ (part * 32)));
#pragma unroll
            for (int m = 0; m < TILES_M; ++m) {
                mma_f16(total[m][pair * 2], a[m], b[0], b[1]);
                mma_f16(total[m][pair * 2 + 1], a[m], b[2], b[3]);
            }
        }
    }
}

__device__ __forceinline__ void multiply_stage(const Problem& p, Sums& total, uint32 stage, const Lane& lane, int step) {
    if (step < p.steps()) {
        int groups = min(STEP, p.groups - step * STEP);
#pragma unroll 1
        for (int group = 0; group < groups; ++group) multiply_group(total, stage, lane, group);
    } else {
        multiply_branch(total, stage);
    }
}

__device__ __forceinline__ uint32 next_stage(uint32 stage, uint32 ring) {
    return stage == ring + (STAGES - 1) * STAGE_SIZE ? ring : stage + STAGE_SIZE;
}

__device__ __forceinline__ void linear_tiles(const Problem& p, uint32 ring) {
    int steps = p.steps() + p.branch_steps, next_step = 0;
    Tile next(p, blockIdx.x);  // to be copied
    uint32 stage = ring;
    for (int i = 0; i < STAGES - 1; ++i, stage += STAGE_SIZE) {
        copy_stage(p, stage, next, next_step);
        if (++next_step == steps) next_step = 0, next.advance(p, gridDim.x);
    }
    Lane lane(threadIdx.x);
    for (Tile tile(p, blockIdx.x); tile.is_within(p); tile.advance(p, gridDim.x)) {
        Sums total = {};
#pragma unroll 1
        for (int step = 0; step < steps; ++step) {
            wait_copies<STAGES - 2>();
            __syncthreads();
            copy_stage(p, stage, next, next_step);
            if (++next_step == steps) next_step = 0, next.advance(p, gridDim.x);
            stage = next_stage(stage, ring);  // the oldest of the copied ones is also the next to be copied into
            multiply_stage(p, total, stage, lane, step);
        }
        int self = thread(), warp = self / 32;
        int token = tile.first_token + warp / WARPS_N * WARP_M + self % 32 / 4;
        int feature = tile.first_feature + warp % WARPS_N * WARP_N;
        uint32 bias[TILES_N];
        load_bias(p, bias, feature, self % 4);
        finish(p, total, bias, token, feature, self % 4);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) linear(
    const uint8* codes, const uint8* token_scales, const uint8* hidden, const uint8* weights, const uint8* feature_scales,
    const half_bits* low_rank_up, const half_bits* bias, const float* gate, const float* residual, void* output,
    int tokens, int features, int groups, int rank, int branch_steps, int token_stride, int tokens_per_gate, int epilogue) {
    extern __shared__ __align__(128) uint8 memory[];
    Problem p = {codes, token_scales, hidden, weights, feature_scales, low_rank_up, bias, gate, residual, output,
                 tokens, features, groups, rank, branch_steps, token_stride, tokens_per_gate, epilogue};
    linear_tiles(p, shared_address(memory));
}
