// rtgen::W4A4Linear, first half: activations to INT4 codes, and the thin product of the low-rank branch.
//
// A block takes TOKENS tokens; its warps, on Hopper those of a cluster, share out the groups of 64 numbers. In a warp, lane (g, t) holds the numbers
// 16t .. 16t+15 of a group of the tokens g and g+8. With the numbers of a group in that order, the same registers are
// the fragments of the tensor cores' product with low_rank_down, so x is read once.
//
// Codes are written as the tensor cores of the second half read them (w4a4_layout.cuh): two a byte, the first in the low
// half; or (INT8=1) one a byte, the numbers with even places of each 32 before those with odd ones (w4a4_linear.cu).
//
// The last PREPARING blocks of the first row put the layer's constants into the form that the second half takes.
#include "w4a4_layout.cuh"

#if WGMMA
#define CLUSTER __cluster_dims__(1, 1, SPLIT)
#else
#define CLUSTER
#endif

constexpr int WARPS = WGMMA ? 8 : 6;
constexpr int THREADS = WARPS * 32;
constexpr int ROW_TILES = WGMMA ? 2 : 1;     // of 16 tokens, with one look at low_rank_down
constexpr int SPLIT = WGMMA ? 3 : 1;         // blocks of a cluster that share out the groups
constexpr int PREPARING = WGMMA ? 66 : 132;  // blocks, or clusters of them
constexpr int TOKENS = 16 * ROW_TILES;       // of a block
constexpr int OWN = 16;     // numbers of a lane in a row of a group
constexpr int BLOCKS = __CUDA_ARCH__ < 1000 && !WGMMA ? 3 : 2;  // on a multiprocessor; the most without spills

struct Words8 {  // 16 float16
    uint32 word[8];
};

// Not volatile, so that the compiler may load early.
__device__ __forceinline__ Words8 load_16_halves(const half_bits* address) {
    Words8 found;
#pragma unroll
    for (int i = 0; i < 8; i += 4)
        asm("ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4];"
            : "=r"(found.word[i]), "=r"(found.word[i + 1]), "=r"(found.word[i + 2]), "=r"(found.word[i + 3]) : "l"(address + 2 * i));
    return found;
}

// Groups of 16 rows of a warp on their way to shared memory, DEPTH - 1 of them ahead. Pieces of odd rows change places in
// pairs, against bank conflicts.
constexpr int DEPTH = 3, GROUP_ROWS = 16 * GROUP * 2;

__device__ __forceinline__ void copy_group(uint32 target, const half_bits* x, int width, int rows, int lane) {
#pragma unroll
    for (int i = 0; i < 16 * 8; i += 32) {
        int row = (i + lane) / 8, piece = lane % 8;
        copy_16(target + row * 128 + ((piece ^ (row & 1)) << 4), x + int64(row) * width + piece * 8, row < rows);
    }
}

__device__ __forceinline__ Words8 read_row(uint32 group, int row, int t) {
    Words8 found;
#pragma unroll
    for (int i = 0; i < 2; ++i)
        asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                     : "=r"(found.word[4 * i]), "=r"(found.word[4 * i + 1]), "=r"(found.word[4 * i + 2]), "=r"(found.word[4 * i + 3])
                     : "r"(group + row * 128 + (((2 * t + i) ^ (row & 1)) << 4)));
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

#if FP8
// To nearest, ties to even; the first in the low byte.
__device__ __forceinline__ uint32 floats_to_fp8(float a, float b, float c, float d) {
    uint16 low, high;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(low) : "f"(b), "f"(a));
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(high) : "f"(d), "f"(c));
    return pack_halves(low, high);
}
#endif

// Codes as bytes: those of even places in even[], those of odd ones in odd[]. As FP8 they are 1/512 of the integers, and
// numbers of FP8 up to 1/32 are 1/512 apart: their rounding is the one to integers.
__device__ __forceinline__ void round_codes(const float (&v)[OWN], float extreme, bool finite, uint32 (&even)[2], uint32 (&odd)[2]) {
    bool divides = extreme != 0.0f && finite;
    float quotient = __fdiv_rn(-8.0f, divides ? extreme : 1.0f), inverse = divides ? quotient : 0.0f;
    uint32 keep = finite ? ~0u : 0u;
#if FP8
    constexpr float STEP_SIZE = 1.0f / 512.0f;
    inverse *= STEP_SIZE;
    float q[OWN];
#pragma unroll
    for (int i = 0; i < OWN; ++i) q[i] = fminf(__fmul_rn(v[i], inverse), 7.0f * STEP_SIZE);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const float* p = q + 8 * i;
        even[i] = floats_to_fp8(p[0], p[2], p[4], p[6]) & keep;
        odd[i] = floats_to_fp8(p[1], p[3], p[5], p[7]) & keep;
    }
#else
    constexpr float ROUNDING = 12582912.0f;  // 1.5 * 2^23: added to a small number, it leaves its nearest integer
    uint32 q[OWN];
#pragma unroll
    for (int i = 0; i < OWN; ++i)
        q[i] = __float_as_uint(fminf(__fadd_rn(__fmul_rn(v[i], inverse), ROUNDING), ROUNDING + 7.0f));
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const uint32* p = q + 8 * i;
        even[i] = __byte_perm(__byte_perm(p[0], p[2], 0x0040), __byte_perm(p[4], p[6], 0x0040), 0x5410) & keep;
        odd[i] = __byte_perm(__byte_perm(p[1], p[3], 0x0040), __byte_perm(p[5], p[7], 0x0040), 0x5410) & keep;
    }
#endif
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

__device__ __forceinline__ void cluster_barrier() {
    if (SPLIT == 1) return __syncthreads();
#if WGMMA && __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

__device__ __forceinline__ void leave_cluster() {
#if WGMMA && __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.relaxed.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
#endif
}

// Two numbers of a block's shared memory.
__device__ __forceinline__ void read_pair(const float* own, int block, float& low, float& high) {
#if WGMMA && __CUDA_ARCH__ >= 900
    asm volatile("{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %2, %3;\nld.shared::cluster.v2.f32 {%0,%1}, [there];\n}"
                 : "=f"(low), "=f"(high) : "r"(shared_address(own)), "r"(block) : "memory");
#else
    low = own[0], high = own[1];
#endif
}

// Sums over the warps, in their order, as float16: 32 ranks of a panel's rows.
__device__ __forceinline__ void store_hidden(const float (&sums)[ROW_TILES][4][4], uint8* memory, uint8* panel, int first_row, int valid_rows) {
    auto parts = reinterpret_cast<float(*)[TOKENS][RANKS + 2]>(memory);
    __syncthreads();  // the memory has been others'
    int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int tile = 0; tile < ROW_TILES; ++tile)
#pragma unroll
        for (int n = 0; n < 4; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) parts[warp][16 * tile + g + 8 * (i / 2)][8 * n + 2 * t + i % 2] = sums[tile][n][i];
    __syncthreads();
    for (int i = threadIdx.x; i < TOKENS * RANKS; i += THREADS) {  // over the warps of a block, then over blocks
        float sum = 0.0f;
#pragma unroll
        for (int part = 0; part < WARPS; ++part) sum += parts[part][i / RANKS][i % RANKS];
        parts[0][i / RANKS][i % RANKS] = sum;
    }
    cluster_barrier();
    for (int i = blockIdx.z * THREADS + threadIdx.x; i < valid_rows * RANKS / 2; i += THREADS * SPLIT) {
        int token = i / (RANKS / 2), rank = i % (RANKS / 2) * 2;
        float low = 0.0f, high = 0.0f;
#pragma unroll
        for (int block = 0; block < SPLIT; ++block) {
            float one, other;
            read_pair(&parts[0][token][rank], block, one, other);
            low += one, high += other;
        }
        *reinterpret_cast<half2_bits*>(panel + place_64(first_row + token, rank / 8) + rank % 8 * 2) = floats_to_half2(low, high);
    }
    leave_cluster();  // when others have read this block's sums
}

struct Quantization {
    const half_bits* x;               // [tokens, groups * 64]
    const half_bits* pre_scale;       // [groups * 64]
    const half_bits* shift;           // [groups * 64]
    const half_bits* low_rank_down;   // [rank, groups * 64]
    const uint8* weights;             // [features, groups * 32]
    const half_bits* feature_scales;  // [features, groups]
    const half_bits* low_rank_up;     // [features, rank]
    uint8* codes;          // [panels, steps, 48, CODE_ROW]; with WGMMA [steps, token_stride, CODE_ROW]
    uint8* token_scales;   // float32 [groups, token_stride]; of each 16 tokens, those of rows g and g + 8 next to each
                           // other. With WGMMA float16 [steps, token_stride, 2]
    uint8* hidden;         // [panels, ranks / 32, 48, BRANCH_ROW]; with WGMMA [ranks / 32, token_stride, BRANCH_ROW]
    uint8* turned_scales;  // float32 [groups, padded features]; with WGMMA [steps, padded features, SCALE_ROW]
    uint8* wide_weights;   // with WGMMA [steps, padded features, WEIGHT_ROW]
    uint8* up;             // with WGMMA [ranks / 32, padded features, BRANCH_ROW]
    int tokens, features, groups, rank, token_stride;

    __device__ __forceinline__ int padded_features() const { return ceil_div(features, FEATURE_BLOCK) * FEATURE_BLOCK; }
};

#if WGMMA
constexpr int WIDENED = 4;  // pieces of a thread under way

// 32 packed codes to a byte each, those of even places first: as FP8, or 16 times as INT8.
__device__ __forceinline__ void store_wide(const Quantization& q, int feature, int piece, const uint32 (&packed)[4], int padded) {
    uint8* rows = q.wide_weights + int64(piece / 4) * padded * WEIGHT_ROW;
#pragma unroll
    for (int odd = 0; odd < 2; ++odd) {
        uint32 v[4];
#pragma unroll
        for (int j = 0; j < 4; ++j)
            v[j] = FP8 ? codes_to_fp8(packed[j] >> (odd * 4)) : (odd ? packed[j] : packed[j] << 4) & 0xf0f0f0f0u;
        asm volatile("st.global.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(rows + place_128(feature_row(feature), piece % 4 * 2 + odd)),
                     "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3]) : "memory");
    }
}

// Past the last feature nothing is written: what is there reaches no output.
__device__ __forceinline__ void widen_weights(const Quantization& q, int self, int threads) {
    int pieces = q.groups * 2, count = q.features * pieces, padded = q.padded_features();
    for (int first = self; first < count; first += threads * WIDENED) {
        uint32 packed[WIDENED][4];
#pragma unroll
        for (int i = 0; i < WIDENED; ++i) {
            const uint8* from = q.weights + int64(min(first + i * threads, count - 1)) * 16;
            asm("ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4];"
                : "=r"(packed[i][0]), "=r"(packed[i][1]), "=r"(packed[i][2]), "=r"(packed[i][3]) : "l"(from));
        }
#pragma unroll
        for (int i = 0; i < WIDENED; ++i) {
            int index = first + i * threads;
            if (index < count) store_wide(q, index / pieces, index % pieces, packed[i], padded);
        }
    }
}

__device__ __forceinline__ void turn_up(const Quantization& q, int self, int threads) {
    int padded = q.padded_features(), pieces = int(gridDim.y) * (RANKS / 8);
    for (int i = self; i < padded * pieces; i += threads) {
        int feature = i / pieces, first = i % pieces * 8, column = first % RANKS;
        const half_bits* from = q.low_rank_up + int64(feature) * q.rank + first;
        uint32 v[4] = {};
        if (feature < q.features && q.rank % 8 == 0) {
            if (first < q.rank) asm("ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3]) : "l"(from));
        } else if (feature < q.features) {
#pragma unroll
            for (int j = 0; j < 8; ++j)
                if (first + j < q.rank) v[j / 2] |= uint32(from[j]) << (j % 2 * 16);
        }
        uint8* rows = q.up + int64(first / RANKS) * padded * BRANCH_ROW;
        asm volatile("st.global.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(rows + place_64(feature_row(feature), column / 8)),
                     "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3]) : "memory");
    }
}

// Both scales of a step in every pair of places: whichever a token's scale meets, it is the right one.
__device__ __forceinline__ void turn_feature_scales(const Quantization& q, int self, int threads) {
    int padded = q.padded_features(), steps = ceil_div(q.groups, STEP), count = padded * steps;
    for (int start = self; start < count; start += threads * WIDENED) {
        uint32 both[WIDENED];
#pragma unroll
        for (int i = 0; i < WIDENED; ++i) {
            int index = min(start + i * threads, count - 1), feature = min(index / steps, q.features - 1), step = index % steps;
            const half_bits* from = q.feature_scales + int64(feature) * q.groups + step * STEP;
            both[i] = pack_halves(from[0], step * STEP + 1 < q.groups ? from[1] : half_bits(0));
        }
#pragma unroll
        for (int i = 0; i < WIDENED; ++i) {
            int index = start + i * threads;
            if (index >= count) break;
            uint8* row = q.turned_scales + (int64(index % steps) * padded + feature_row(index / steps)) * SCALE_ROW;
#pragma unroll
            for (int j = 0; j < SCALE_ROW; j += 16)
                asm volatile("st.global.v4.u32 [%0], {%1,%1,%1,%1};" ::"l"(row + j), "r"(both[i]) : "memory");
        }
    }
}
#else
// In float32 and units of the integer sums; zeros past the last feature.
__device__ __forceinline__ void turn_feature_scales(const Quantization& q, int self, int threads) {
    int padded = q.padded_features();
    for (int64 i = self; i < int64(q.groups) * padded; i += threads) {
        int group = int(i / padded), feature = int(i % padded);
        half_bits scale = feature < q.features ? q.feature_scales[int64(feature) * q.groups + group] : half_bits(0);
        reinterpret_cast<float*>(q.turned_scales)[i] = half_to_float(scale) * UNIT;
    }
}
#endif

__device__ __forceinline__ void prepare_constants(const Quantization& q, int block) {
    int self = (block * SPLIT + blockIdx.z) * THREADS + threadIdx.x, threads = PREPARING * SPLIT * THREADS;
#if WGMMA
    widen_weights(q, self, threads);
    turn_up(q, self, threads);
#endif
    turn_feature_scales(q, self, threads);
}

__device__ __forceinline__ void store_token_scale(const Quantization& q, int token, int group, half_bits scale) {
#if WGMMA
    reinterpret_cast<half_bits*>(q.token_scales)[(int64(group / STEP) * q.token_stride + token) * STEP + group % STEP] = scale;
#else
    int place = (token & ~15) + (token & 7) * 2 + ((token >> 3) & 1);
    reinterpret_cast<float*>(q.token_scales)[int64(group) * q.token_stride + place] = half_to_float(scale);
#endif
}

template <bool ROTATE>
__device__ __forceinline__ void quantize(const Quantization& q) {
    int preparing = int(blockIdx.x) - int(gridDim.x - PREPARING);
    if (preparing >= 0) {
        if (blockIdx.y == 0) prepare_constants(q, preparing);
        return;
    }
    int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, first_token = blockIdx.x * TOKENS;
    int width = q.groups * GROUP, panel = first_token / PANEL, first_row = WGMMA ? first_token : first_token % PANEL;
    // Of the lane's first rank. Past the last one there are others' numbers: low_rank_up is taken as 0 there.
    int first_rank = min(int(blockIdx.y) * RANKS + g, q.rank - 1), last_rank = q.rank - 1 - first_rank;
    const half_bits* down = q.low_rank_down + int64(first_rank) * width + OWN * t;
    uint8* codes = q.codes + (WGMMA ? 0 : int64(panel) * ceil_div(q.groups, STEP) * CODE_PANEL);
    int64 step_bytes = WGMMA ? int64(q.token_stride) * CODE_ROW : CODE_PANEL;
    bool stores = blockIdx.y == 0;  // blocks of further ranks have the same codes
    __shared__ __align__(128) uint8 memory[WARPS * DEPTH * GROUP_ROWS];
    static_assert(sizeof(memory) >= WARPS * TOKENS * (RANKS + 2) * 4, "also holds the sums of all warps");
    int lane = threadIdx.x % 32, rows = q.tokens - first_token, slot = 0;
    int first = blockIdx.z * WARPS + threadIdx.x / 32, last = q.groups;
    constexpr int APART = WARPS * SPLIT;  // of a warp's groups
    const half_bits* x = q.x + int64(first_token) * width;
    uint32 ring = shared_address(memory) + threadIdx.x / 32 * DEPTH * GROUP_ROWS;
    auto copy = [&](int group, int tile, int place) {
        if (group < last) copy_group(ring + place * GROUP_ROWS, x + int64(tile) * 16 * width + group * GROUP, width, rows - 16 * tile, lane);
        commit_copies();
    };
#pragma unroll
    for (int i = 0; i < DEPTH - 1; ++i) copy(first + i / ROW_TILES * APART, i % ROW_TILES, i);
    float sums[ROW_TILES][4][4] = {};
    for (int group = first; group < last; group += APART) {
        int column = group * GROUP;
        Vectors vectors = {load_16_halves(q.pre_scale + column + OWN * t), load_16_halves(q.shift + column + OWN * t)};
#pragma unroll
        for (int tile = 0; tile < ROW_TILES; ++tile) {
            __syncwarp();  // all lanes have read what is now written over
            copy(group + (tile + DEPTH - 1) / ROW_TILES * APART, (tile + DEPTH - 1) % ROW_TILES, slot == 0 ? DEPTH - 1 : slot - 1);
            wait_copies<DEPTH - 1>();
            __syncwarp();
            uint32 staged = ring + slot * GROUP_ROWS;
            slot = slot + 1 == DEPTH ? 0 : slot + 1;
            int token = first_token + 16 * tile + g;
            Words8 row[2] = {read_row(staged, g, t), read_row(staged, g + 8, t)};
            uint32 smooth[2][8];
            float v[2][OWN];
            smooth_rows(row, vectors, v, smooth);
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                if (ROTATE) rotate(v[i], t);
                float extreme = extreme_of(v[i]);
                bool finite = fabsf(extreme) < infinity(), valid = stores && token + 8 * i < q.tokens;
                uint32 even[2], odd[2];
                round_codes(v[i], extreme, finite, even, odd);
                store_codes(codes + group / STEP * step_bytes, first_row + 16 * tile + g + 8 * i, group % STEP, t, valid, even, odd);
                half_bits scale = finite ? float_to_half(__fmul_rn(extreme, -0.125f)) : half_bits(0x7fff);
                if (valid && t == 0) store_token_scale(q, token + 8 * i, group, scale);
            }
            if (q.rank == 0) continue;
#pragma unroll
            for (int n = 0; n < 4; ++n) {
                Words8 b = load_16_halves(down + (min(8 * n, last_rank) * width + column));
#pragma unroll
                for (int k = 0; k < 4; ++k) {
                    uint32 a[4] = {smooth[0][2 * k], smooth[1][2 * k], smooth[0][2 * k + 1], smooth[1][2 * k + 1]};
                    mma_f16(sums[tile][n], a, b.word[2 * k], b.word[2 * k + 1]);
                }
            }
        }
    }
    uint8* hidden = q.hidden + (WGMMA ? int64(blockIdx.y) * q.token_stride * BRANCH_ROW
                                      : (int64(panel) * gridDim.y + blockIdx.y) * HIDDEN_PANEL);
    store_hidden(sums, memory, hidden, first_row, min(TOKENS, rows));
}

extern "C" __global__ void CLUSTER __launch_bounds__(THREADS, BLOCKS) quantize_plain(
    const half_bits* x, const half_bits* pre_scale, const half_bits* shift, const half_bits* low_rank_down,
    const uint8* weights, const half_bits* feature_scales, const half_bits* low_rank_up, uint8* codes,
    uint8* token_scales, uint8* hidden, uint8* turned_scales, uint8* wide_weights, uint8* up, int tokens, int features,
    int groups, int rank, int token_stride) {
    quantize<false>({x, pre_scale, shift, low_rank_down, weights, feature_scales, low_rank_up, codes, token_scales, hidden,
                 turned_scales, wide_weights, up, tokens, features, groups, rank, token_stride});
}

extern "C" __global__ void CLUSTER __launch_bounds__(THREADS, BLOCKS) quantize_rotated(
    const half_bits* x, const half_bits* pre_scale, const half_bits* shift, const half_bits* low_rank_down,
    const uint8* weights, const half_bits* feature_scales, const half_bits* low_rank_up, uint8* codes,
    uint8* token_scales, uint8* hidden, uint8* turned_scales, uint8* wide_weights, uint8* up, int tokens, int features,
    int groups, int rank, int token_stride) {
    quantize<true>({x, pre_scale, shift, low_rank_down, weights, feature_scales, low_rank_up, codes, token_scales, hidden,
                 turned_scales, wide_weights, up, tokens, features, groups, rank, token_stride});
}
