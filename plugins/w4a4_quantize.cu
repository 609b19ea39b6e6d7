// rtgen::W4A4Linear, first half: activations to INT4 codes, and the thin product of the low-rank branch. On Hopper
// w4a4_quantize_wgmma.cu does it.
//
// A block takes 16 tokens; its warps share out the groups of 64 numbers. In a warp, lane (g, t) holds the numbers
// 16t .. 16t+15 of a group of the tokens g and g+8. With the numbers of a group in that order, the same registers are
// the fragments of the tensor cores' product with low_rank_down, so x is read once.
//
// Codes are written as the tensor cores of the second half read them (w4a4_layout.cuh): two a byte, the first in the low
// half; or (INT8=1) one a byte, the numbers with even places of each 32 before those with odd ones (w4a4_linear.cu).
//
// The last PREPARING blocks of the first row put the weights' scales into the form that the second half takes.
#include "w4a4_round.cuh"

constexpr int WARPS = 6;
constexpr int THREADS = WARPS * 32;
constexpr int PREPARING = 132;  // blocks
constexpr int TOKENS = 16;      // of a block
constexpr int BLOCKS = __CUDA_ARCH__ < 1000 ? 3 : 2;  // on a multiprocessor; the most without spills

// Not volatile, so that the compiler may load early.
__device__ __forceinline__ Words8 load_16_halves(const half_bits* address) {
    Words8 found;
#pragma unroll
    for (int i = 0; i < 8; i += 4)
        asm("ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4];"
            : "=r"(found.word[i]), "=r"(found.word[i + 1]), "=r"(found.word[i + 2]), "=r"(found.word[i + 3]) : "l"(address + 2 * i));
    return found;
}

// Groups of 16 rows of a warp on their way to shared memory, DEPTH - 1 of them ahead.
constexpr int DEPTH = 3, GROUP_ROWS = TOKENS * GROUP * 2;

__device__ __forceinline__ void copy_group(uint32 target, const half_bits* x, int width, int rows, int lane) {
#pragma unroll
    for (int i = 0; i < TOKENS * 8; i += 32) {
        int row = (i + lane) / 8, piece = lane % 8;
        copy_16(target + place_in_group(row, piece), x + int64(row) * width + piece * 8, row < rows);
    }
}

struct Vectors {  // of a lane's columns; packed, for float32 would take twice the registers
    Words8 scale, shift;
};

// Two rows of a group: v, and f16(v), which the branch takes.
__device__ __forceinline__ void smooth_rows(const Words8 (&x)[2], const Vectors& vectors, float (&v)[2][OWN], uint32 (&smooth)[2][8]) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {  // the products are exact: fusing them changes nothing
        half2_bits scale = vectors.scale.word[i], shift = vectors.shift.word[i];
        float low_scale = low_float(scale), high_scale = high_float(scale), low_shift = low_float(shift), high_shift = high_float(shift);
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            v[row][2 * i] = __fmaf_rn(low_float(x[row].word[i]), low_scale, -low_shift);
            v[row][2 * i + 1] = __fmaf_rn(high_float(x[row].word[i]), high_scale, -high_shift);
            smooth[row][i] = floats_to_half2(v[row][2 * i], v[row][2 * i + 1]);
        }
    }
}

// Sums over the warps, in their order, as float16: 32 ranks of a panel's rows.
__device__ __forceinline__ void store_hidden(const float (&sums)[4][4], uint8* memory, uint8* panel, int first_row, int valid_rows) {
    auto parts = reinterpret_cast<float(*)[TOKENS][RANKS + 2]>(memory);
    __syncthreads();  // the memory has been others'
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
        for (int part = 0; part < WARPS; ++part) low += parts[part][token][rank], high += parts[part][token][rank + 1];
        *reinterpret_cast<half2_bits*>(panel + place_64(first_row + token, rank / 8) + rank % 8 * 2) = floats_to_half2(low, high);
    }
}

struct Quantization {
    const half_bits* x;               // [tokens, groups * 64]
    const half_bits* pre_scale;       // [groups * 64]
    const half_bits* shift;           // [groups * 64]
    const half_bits* low_rank_down;   // [rank, groups * 64]
    const half_bits* feature_scales;  // [features, groups]
    uint8* codes;          // [panels, steps, 48, CODE_ROW]
    float* token_scales;   // [groups, token_stride]; of each 16 tokens, those of rows g and g + 8 next to each other
    uint8* hidden;         // [panels, ranks / 32, 48, BRANCH_ROW]
    float* turned_scales;  // [groups, padded features]
    int tokens, features, groups, rank, token_stride;
};

// In float32 and units of the integer sums; zeros past the last feature.
__device__ __forceinline__ void turn_feature_scales(const Quantization& q, int self, int threads) {
    int padded = ceil_div(q.features, FEATURE_BLOCK) * FEATURE_BLOCK;
    for (int64 i = self; i < int64(q.groups) * padded; i += threads) {
        int group = int(i / padded), feature = int(i % padded);
        half_bits scale = feature < q.features ? q.feature_scales[int64(feature) * q.groups + group] : half_bits(0);
        q.turned_scales[i] = half_to_float(scale) * UNIT;
    }
}

__device__ __forceinline__ void store_token_scale(const Quantization& q, int token, int group, half_bits scale) {
    int place = (token & ~15) + (token & 7) * 2 + ((token >> 3) & 1);
    q.token_scales[int64(group) * q.token_stride + place] = half_to_float(scale);
}

// Of a lane's codes in a panel's step.
__device__ __forceinline__ int code_place(int row, int second, int t) {
    return INT8 ? place_128(row, second * 4 + t) : place_64(row, second * 2 + t / 2) + t % 2 * 8;
}

template <bool ROTATE>
__device__ __forceinline__ void quantize(const Quantization& q) {
    int preparing = int(blockIdx.x) - int(gridDim.x - PREPARING);
    if (preparing >= 0) {
        if (blockIdx.y == 0) turn_feature_scales(q, preparing * THREADS + threadIdx.x, PREPARING * THREADS);
        return;
    }
    int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, first_token = blockIdx.x * TOKENS;
    int width = q.groups * GROUP, panel = first_token / PANEL, first_row = first_token % PANEL;
    // Of the lane's first rank. Past the last one there are others' numbers: low_rank_up is taken as 0 there.
    int first_rank = min(int(blockIdx.y) * RANKS + g, q.rank - 1), last_rank = q.rank - 1 - first_rank;
    const half_bits* down = q.low_rank_down + int64(first_rank) * width + OWN * t;
    uint8* codes = q.codes + int64(panel) * ceil_div(q.groups, STEP) * CODE_PANEL;
    bool stores = blockIdx.y == 0;  // blocks of further ranks have the same codes
    __shared__ __align__(128) uint8 memory[WARPS * DEPTH * GROUP_ROWS];
    static_assert(sizeof(memory) >= WARPS * TOKENS * (RANKS + 2) * 4, "also holds the sums of all warps");
    int lane = threadIdx.x % 32, rows = q.tokens - first_token, slot = 0, last = q.groups;
    const half_bits* x = q.x + int64(first_token) * width;
    uint32 ring = shared_address(memory) + threadIdx.x / 32 * DEPTH * GROUP_ROWS;
    auto copy = [&](int group, int place) {
        if (group < last) copy_group(ring + place * GROUP_ROWS, x + group * GROUP, width, rows, lane);
        commit_copies();
    };
    int first = threadIdx.x / 32;
#pragma unroll
    for (int i = 0; i < DEPTH - 1; ++i) copy(first + i * WARPS, i);
    float sums[4][4] = {};
    for (int group = first; group < last; group += WARPS) {
        int column = group * GROUP;
        Vectors vectors = {load_16_halves(q.pre_scale + column + OWN * t), load_16_halves(q.shift + column + OWN * t)};
        __syncwarp();  // all lanes have read what is now written over
        copy(group + (DEPTH - 1) * WARPS, slot == 0 ? DEPTH - 1 : slot - 1);
        wait_copies<DEPTH - 1>();
        __syncwarp();
        uint32 staged = ring + slot * GROUP_ROWS;
        slot = slot + 1 == DEPTH ? 0 : slot + 1;
        int token = first_token + g;
        Words8 row[2] = {read_row(staged, g, t), read_row(staged, g + 8, t)};
        uint32 smooth[2][8];
        float v[2][OWN];
        smooth_rows(row, vectors, v, smooth);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            if (ROTATE) rotate(v[i], t);
            Codes found(v[i], ROTATE);
            bool valid = stores && token + 8 * i < q.tokens;
            found.store(codes + group / STEP * CODE_PANEL + code_place(first_row + g + 8 * i, group % STEP, t), t, valid);
            if (valid && t == 0) store_token_scale(q, token + 8 * i, group, found.scale);
        }
        if (q.rank == 0) continue;
#pragma unroll
        for (int n = 0; n < 4; ++n) {
            Words8 b = load_16_halves(down + (min(8 * n, last_rank) * width + column));
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                uint32 a[4] = {smooth[0][2 * k], smooth[1][2 * k], smooth[0][2 * k + 1], smooth[1][2 * k + 1]};
                mma_f16(sums[n], a, b.word[2 * k], b.word[2 * k + 1]);
            }
        }
    }
    uint8* hidden = q.hidden + (int64(panel) * gridDim.y + blockIdx.y) * HIDDEN_PANEL;
    store_hidden(sums, memory, hidden, first_row, min(TOKENS, rows));
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) quantize_plain(
    const half_bits* x, const half_bits* pre_scale, const half_bits* shift, const half_bits* low_rank_down,
    const half_bits* feature_scales, uint8* codes, float* token_scales, uint8* hidden, float* turned_scales, int tokens,
    int features, int groups, int rank, int token_stride) {
    quantize<false>({x, pre_scale, shift, low_rank_down, feature_scales, codes, token_scales, hidden, turned_scales, tokens,
                     features, groups, rank, token_stride});
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) quantize_rotated(
    const half_bits* x, const half_bits* pre_scale, const half_bits* shift, const half_bits* low_rank_down,
    const half_bits* feature_scales, uint8* codes, float* token_scales, uint8* hidden, float* turned_scales, int tokens,
    int features, int groups, int rank, int token_stride) {
    quantize<true>({x, pre_scale, shift, low_rank_down, feature_scales, codes, token_scales, hidden, turned_scales, tokens,
                     features, groups, rank, token_stride});
}
